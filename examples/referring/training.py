"""A run: the CNN, then what stands on it; each stage leaves its weights behind, and goes on where it was killed.

OUT/settings.json   what the run was begun with; other settings are refused
OUT/cnn, OUT/fusion checkpoints, metrics.jsonl, weights.safetensors
OUT/cache           what the frozen encoders say of the images
OUT/model           the finished model
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from answering import save
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stages import CnnStage, FusionStage
from torch import Tensor

from model import ReferringConfig
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import EMBEDDED
from readseg.checkpoints.load import load_model
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.training.config import ReadStageConfig, TrainConfig, VisionStageConfig, load_recipe
from readseg.training.loop import train

StageName = Literal["cnn", "fusion"]
RECIPE = "tiny"
"""The preset that the embedded model was trained with: its stages "vision" and "read" are what is learned here too."""

_GIVEN = {"vocabulary", "image_size"}
"""Sizes that the embedded model's tokenizer and views of an image decide."""
_FREE = {"workers", "trackers", "log_every", "checkpoint_every"}


def train_referring(
    out: Path, *, only: StageName | None = None, changes: Sequence[str] = (), sizes: Sequence[str] = ()
) -> Path:
    """Trains the model, or one of its stages; a second call with the same folder goes on.

    Args:
        out: folder of the run.
        only: one stage.
        changes: of the preset's stages "vision" and "read", as `readseg train --set` has them.
        sizes: of the network, "NAME=NUMBER", or "NAME=NUMBER,NUMBER,NUMBER"; see `ReferringConfig`.

    Returns:
        The folder of the finished model; it is there when the stage "fusion" is done.

    Raises:
        ReadsegError: a setting is unknown or other than the run was begun with, or the CNN is not trained yet.
    """
    recipe = load_recipe(RECIPE, changes)
    vision = next(stage for stage in recipe.stages if isinstance(stage, VisionStageConfig))
    read = next(stage for stage in recipe.stages if isinstance(stage, ReadStageConfig))
    embedded, processor, _ = load_model(dtype="float32", device="cpu")
    config = _sizes(len(processor.tokenizer), processor.config.lmm_size, sizes)
    _check_settings(out / "settings.json", _settings(recipe, vision, read, config))
    console = Console()
    cnn_path, fusion_path = out / "cnn" / "weights.safetensors", out / "fusion" / "weights.safetensors"
    if only in (None, "cnn") and not cnn_path.exists():
        console.print(f"CNN: {vision.steps} steps, in {out / 'cnn'}", highlight=False)
        cnn_stage = CnnStage(processor, config, vision, recipe.seed)
        train(cnn_stage, vision, out / "cnn")
        _write(cnn_stage.cnn.state_dict(), cnn_path)
    if only in (None, "fusion") and not fusion_path.exists():
        console.print(f"fusion: {read.steps} steps, in {out / 'fusion'}", highlight=False)
        sam = embedded.sam.state_dict() | _weights(EMBEDDED / ORIGINAL_SAM_DECODER)
        stage = FusionStage(processor, config, read, recipe.seed, sam, _weights(cnn_path), out / "cache")
        train(stage, read, out / "fusion")
        save(stage.model, processor.tokenizer, out / "model")
        _write(stage.model.state_dict(), fusion_path)
    return out / "model"


def _sizes(vocabulary: int, image_size: int, changes: Sequence[str]) -> ReferringConfig:
    values: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise ReadsegError(f"--size {change!r}: expected NAME=NUMBER, such as width=64") from error
        if min(numbers) < 1:
            raise ReadsegError(f"--size {change!r}: expected numbers from 1 on")
        values[name] = numbers[0] if len(numbers) == 1 else numbers
    names = ReferringConfig(vocabulary).to_dict().keys() - _GIVEN
    if unknown := sorted(values.keys() - names):
        raise ReadsegError(f"--size: there is no {unknown[0]!r}; expected some of {', '.join(sorted(names))}")
    try:
        return ReferringConfig.from_dict(values | {"vocabulary": vocabulary, "image_size": image_size})
    except (TypeError, ValueError) as error:
        raise ReadsegError(f"--size: {error}") from error


def _settings(
    recipe: TrainConfig, vision: VisionStageConfig, read: ReadStageConfig, sizes: ReferringConfig
) -> dict[str, Any]:
    """What a run is trained with, as JSON has it."""
    stages = {"cnn": vision, "fusion": read}
    plain = {
        f"{name}.{key}": value
        for name, stage in stages.items()
        for key, value in stage.model_dump(mode="json").items()
        if key not in _FREE
    }
    plain |= {f"{name}.computes in": "bf16" if stage.use_bf16() else "fp32" for name, stage in stages.items()}
    return json.loads(json.dumps({"seed": recipe.seed, "sizes": sizes.to_dict(), **plain}))


def _check_settings(path: Path, now: dict[str, Any]) -> None:
    """Keeps the settings of a new run; raises ReadsegError where a run was begun with others."""
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        except (OSError, ValueError, AttributeError) as error:
            raise ReadsegError(f"{path} is damaged: choose another folder with --out, or delete this one") from error
        if changed:
            was = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise ReadsegError(f"{path.parent} was begun with other settings ({was}): choose another folder with --out")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as place:
        place.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ReadsegError(f"{path}: no such file; train the stage before this one first") from error
    except SafetensorError as error:
        raise ReadsegError(f"{path}: damaged ({error}); delete it to train its stage again") from error


def _write(state: dict[str, Tensor], path: Path) -> None:
    with atomic_write(path) as place:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, place)
