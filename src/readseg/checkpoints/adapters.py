"""Adapters: what training changed of a model, written small and read back onto the weights that it started from.

    adapter_config.json, adapter_model.safetensors   LoRA as peft writes it, and the weights that were trained whole
    base.json                                        where training started, and how to tell that it is the same
    config.json, tokenizer files                     of the trained model

Speaks names and tensors of a state dict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.checkpoints import lora
from readseg.checkpoints.base_models import start_from
from readseg.checkpoints.checkpoint import EMBEDDED, Checkpoint, check_names, lora_alpha_of, read_checkpoint
from readseg.checkpoints.config_json import blaming, read_json, read_settings
from readseg.checkpoints.files import fetch
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.model.config import ReadConfig
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import MODEL_FILE, LegacyTokenizer

if TYPE_CHECKING:
    from peft import LoraConfig  # takes a second to import, and only training makes one

WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
EMBEDDED_NAME = "embedded"
_PEFT = "base_model.model."
_LOOKED_AT = 64  # values of each tensor that tell one model from another


@dataclass(frozen=True)
class Base:
    """Where training starts.

    model: folder or hub id of a model or of an adapter, "embedded" for the model of this package, or with `sam` of the
        base model LLaVA-1.5.
    sam: folder, hub id or .pth file of a SAM, which joins two base models.
    family: what released weights are taken for.
    vision_tower: folder or hub id of the CLIP tower, if not where config.json says.
    seed: of the fresh projection between base models.
    """

    model: str
    sam: str | None = None
    family: str | None = None
    vision_tower: str | None = None
    seed: int = 0


def open_base(base: Base) -> Checkpoint:
    """The model that training starts from.

    Raises:
        ReadsegError: as `checkpoints.read_checkpoint` and `base_models.start_from`.
    """
    if base.sam is not None:
        return start_from(
            base.model, base.sam, family=base.family or "read", vision_tower=base.vision_tower, seed=base.seed
        )
    if base.model == EMBEDDED_NAME:
        return read_checkpoint(EMBEDDED)
    folder = fetch(base.model)
    if is_adapter(folder):
        return read_adapter(folder)
    # A model in this package's layout says all of it by itself, and holds its tower.
    ours = read_settings(folder).get("model_type") == ReadConfig.model_type
    if ours and base.vision_tower is not None:
        raise ReadsegError(f"vision_tower: for released weights only; {folder} holds its own.")
    if ours:
        return read_checkpoint(folder)
    return read_checkpoint(folder, family=base.family, vision_tower=base.vision_tower)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / BASE).is_file()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Tells models apart by names, shapes and a few values of each tensor (rounded to bfloat16): 16 hex digits."""
    sha = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        some = weight.detach().flatten()[:_LOOKED_AT].to("cpu", torch.bfloat16).contiguous()
        sha.update(f"{name} {tuple(weight.shape)}".encode())
        sha.update(some.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def save_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    processor: ReadProcessor,
    settings: LoraConfig | None,
    base: Base,
    base_fingerprint: str,
) -> None:
    """Writes an adapter, whole or not at all.

    Args:
        folder: replaced where it exists.
        state: the trained tensors, under the names of `ReadModel` with peft's layers in it.
        processor: of the trained model; its config is written too.
        settings: of LoRA; None where only whole weights were trained.
        base: where training started.
        base_fingerprint: of the weights that it started from.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        _PEFT + name.replace(".default.weight", ".weight"): value.detach().to("cpu").contiguous().clone()
        for name, value in state.items()
    }
    base = dataclasses.replace(
        base, model=_found(base.model), sam=_found(base.sam), vision_tower=_found(base.vision_tower)
    )
    facts = dataclasses.asdict(base) | {"fingerprint": base_fingerprint, "tensors": len(tensors)}
    with atomic_write(folder) as place:
        place.mkdir()
        try:
            save_file(tensors, place / WEIGHTS)
        except SafetensorError as error:
            raise ReadsegError(f"{folder / WEIGHTS} cannot be written: {error}") from error
        if settings is not None:
            settings.base_model_name_or_path = base.model
            settings.save_pretrained(str(place))
        (place / BASE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        processor.config.save_pretrained(place)
        processor.save_pretrained(place)


def _found(name: Any) -> Any:
    """A file or folder by its absolute path, so that it is found from elsewhere; a hub id as it is."""
    if name is None or name == EMBEDDED_NAME:
        return name
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def read_adapter(
    name: str | Path, *, base: str | None = None, sam: str | None = None, vision_tower: str | None = None
) -> Checkpoint:
    """The trained model: the weights that training started from, with what it changed merged into them.

    Args:
        name: folder or hub id of the adapter.
        base: folder or hub id of the weights that it started from, where they are not where they were then.
        sam: likewise of the SAM beside a LLaVA.
        vision_tower: likewise of the CLIP tower.

    Raises:
        ReadsegError: a file is missing or damaged, the base is not there or is another model, or the tensors do not
            fit it.
    """
    folder = fetch(name)
    if not is_adapter(folder):
        raise ReadsegError(f"{folder} is no adapter: expected {BASE} and {WEIGHTS} in it.")
    facts = read_json(folder / BASE)
    known = {field.name for field in dataclasses.fields(Base)}
    if known | {"fingerprint", "tensors"} != facts.keys() or not isinstance(facts["model"], str):
        raise ReadsegError(f"{folder / BASE} is damaged: expected {', '.join(sorted(known))}, fingerprint, tensors.")
    start = Base(**{key: facts[key] for key in known})
    start = dataclasses.replace(
        start, model=base or start.model, sam=sam or start.sam, vision_tower=vision_tower or start.vision_tower
    )
    try:
        under = open_base(start)
    except ReadsegError as error:
        raise ReadsegError(
            f"{folder}: this adapter belongs to {start.model}, which cannot be read ({error}); say where it is now: "
            "readseg merge ADAPTER OUT --base MODEL (--sam, --vision-tower where it has them)"
        ) from error
    if fingerprint(under.weights) != facts["fingerprint"]:
        raise ReadsegError(f"{folder}: this adapter was trained on other weights than those of {start.model}.")
    with blaming(folder / "config.json"):
        config = ReadConfig.from_pretrained(folder)
    tokenizer = LegacyTokenizer.from_folder(folder) if (folder / MODEL_FILE).is_file() else None
    weights = _merged(folder, under.weights, facts["tensors"])
    check_names(weights, config, folder)
    note = f"adapter on {start.model}"
    return Checkpoint(config, tokenizer, weights, folder, (*under.notes, note), under.unused)


def _merged(folder: Path, weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The base's weights with what was trained in their place, in the types of the base."""
    path = folder / WEIGHTS
    try:
        trained = lora.unwrapped(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ReadsegError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if len(trained) != count:
        raise ReadsegError(f"{path} holds {len(trained)} tensors, {BASE} says {count}: it is not whole.")
    whole_ones = {key: value for key, value in trained.items() if key in weights}
    for key, value in whole_ones.items():
        if value.shape != weights[key].shape:
            raise ReadsegError(f"{path}: {key} is {tuple(value.shape)}, the base's is {tuple(weights[key].shape)}.")
        if not torch.isfinite(value).all():
            raise ReadsegError(f"{path}: {key} holds values that are no numbers.")
    state = dict(weights) | {key: value.to(weights[key].dtype) for key, value in whole_ones.items()}
    state |= {key: value for key, value in trained.items() if key not in whole_ones}
    if not lora.has_lora(state):
        return state
    return lora.merge_lora(state, lora_alpha_of(folder))
