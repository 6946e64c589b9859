"""A recipe from its first stage to the finished model folder.

Each stage leaves ``weights.safetensors`` in its own folder when it is done; a stage whose file is there is not run
again, and one that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.errors import ReadsegError
from readseg.files import whole
from readseg.model import ReadModel
from readseg.processes import processes
from readseg.processor import ReadProcessor
from readseg.training.config import AnyStageConfig, MaskStageConfig, TrainConfig, VisionStageConfig
from readseg.training.loop import train
from readseg.training.read_stage import ReadStage, blank_processor
from readseg.training.stages import MaskStage, VisionStage

PLAIN_SAM = "sam_mask_decoder.safetensors"
"""The mask decoder as stage 0 left it: with the model's own encoders, the "original SAM" of the analysis."""


def run_recipe(recipe: TrainConfig, out: Path, *, only: str | None = None) -> Path:
    """Run the stages of a recipe in order, or only the one named ``only``.

    Args:
        recipe: what to run.
        out: folder of the run; a second call with the same folder continues.
        only: name of a single stage, so that independent stages can run in processes of their own.

    Returns:
        The folder of the finished model, ``out/model``; it exists once a stage of kind "read" is done.

    Raises:
        ReadsegError: ``only`` names no stage, or a stage lacks the weights of an earlier one.
    """
    names = [stage.name for stage in recipe.stages]
    if only is not None and only not in names:
        raise ReadsegError(f"no stage {only!r} in the recipe: expected one of {', '.join(names)}")
    console = Console(quiet=not processes().is_main_process)
    processor = blank_processor(recipe)
    for options in recipe.stages:
        if only in (None, options.name) and not _weights(out, options.name).exists():
            console.print(f"stage [bold]{options.name}[/bold]: {options.steps} steps, in {out / options.name}")
            _run_stage(recipe, options, processor, out)
    return out / "model"


def _run_stage(recipe: TrainConfig, options: AnyStageConfig, processor: ReadProcessor, out: Path) -> None:
    """Train one stage and write its weights; a stage of kind "read" also writes the finished model."""
    path = _weights(out, options.name)
    _check_settings(recipe, options, path.with_name("settings.json"))
    if isinstance(options, MaskStageConfig):
        mask_stage = MaskStage(processor, options, recipe.seed)
        train(mask_stage, options, path.parent)
        _write(mask_stage.sam.state_dict(), path)
    elif isinstance(options, VisionStageConfig):
        vision_stage = VisionStage(processor, options, recipe.seed)
        train(vision_stage, options, path.parent)
        _write(vision_stage.tower.state_dict(), path)
    else:
        sam, tower = _earlier(recipe, out, "masks"), _earlier(recipe, out, "vision")
        read_stage = ReadStage(processor, options, recipe.seed, sam, tower, out / "cache")
        train(read_stage, options, path.parent)
        _write_model(read_stage.model, processor, sam, out / "model")
        _write(read_stage.model.state_dict(), path)
    processes().wait_for_everyone()


def _check_settings(recipe: TrainConfig, options: AnyStageConfig, path: Path) -> None:
    """Keep what a stage is trained with; a run that goes on must go on with the same."""
    settings = {"seed": recipe.seed, "vocabulary": recipe.vocabulary, **options.model_dump(mode="json")}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
        if changed:
            was = ", ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in changed)
            raise ReadsegError(f"{path.parent} was begun with other settings ({was}): choose another folder with --out")
    elif processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as place:
            place.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _weights(out: Path, name: str) -> Path:
    return out / name / "weights.safetensors"


def _earlier(recipe: TrainConfig, out: Path, kind: str) -> dict[str, Tensor]:
    """The weights of the recipe's stage of a kind."""
    for stage in recipe.stages:
        if stage.kind == kind and _weights(out, stage.name).exists():
            return load_file(_weights(out, stage.name))
    raise ReadsegError(f"the weights of the {kind!r} stage are not in {out}: run that stage first")


def _write(state: dict[str, Tensor], path: Path) -> None:
    """Tensors to a file, atomically, by the first of the processes."""
    if not processes().is_main_process:
        return
    with whole(path) as place:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, place)


def _write_model(model: ReadModel, processor: ReadProcessor, sam: dict[str, Tensor], folder: Path) -> None:
    """The finished model in bfloat16, its tokenizer, and the mask decoder of stage 0 beside it."""
    if not processes().is_main_process:
        return
    half = ReadModel(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    prefix = "mask_decoder."
    plain = {name: tensor.to(torch.bfloat16) for name, tensor in sam.items() if name.startswith(prefix)}
    with whole(folder) as place:
        half.save_pretrained(place)
        processor.save_pretrained(place)
        _write(plain, place / PLAIN_SAM)
