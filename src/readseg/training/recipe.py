"""A recipe from its first stage to the finished model folder.

Each stage leaves ``weights.safetensors`` in its own folder when it is done; a stage whose file is there is not run
again, and one that was killed goes on from its checkpoint. A finished model that was deleted is written again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.checkpoints.adapters import Base, is_adapter, open_base
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.core.io import atomic_write
from readseg.core.processes import processes
from readseg.errors import ReadsegError
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.training.config import (
    AnyStageConfig,
    FinetuningStageConfig,
    MaskStageConfig,
    ReadStageConfig,
    TrainConfig,
    VisionStageConfig,
)
from readseg.training.dry_run import tell
from readseg.training.loop import FINISHED, check_trackers, train
from readseg.training.stages.finetuning import FinetuningStage, benchmarks_of, mixture_of
from readseg.training.stages.pretraining import MaskStage, VisionStage
from readseg.training.stages.read import ReadStage, build_processor

_FREE = {
    *("workers", "trackers", "log_every", "checkpoint_every", "cache", "cache_gb", "max_broken"),
    *("validate_on", "validate_every", "validate_images", "validate_protocol", "best", "patience"),
    *("accumulation", "precision"),  # told below as what they come to
}
"""Settings that may change while a run goes on: they change no weight."""
_OPENED = {"starts from", "draws from"}
_SETTINGS = "settings.json"


def run_recipe(recipe: TrainConfig, out: Path, *, only: str | None = None, data: Path | None = None) -> Path:
    """Run the stages of a recipe in order, or only the one named ``only``.

    Args:
        recipe: what to run.
        out: folder of the run; a second call with the same folder continues.
        only: name of a single stage, so that independent stages can run in processes of their own.
        data: the folder of all data sets, which stages of kind "mixture" draw from.

    Returns:
        What the last stage that was meant leaves behind: the folder of the finished model, ``out/model``, or of its
        adapter, ``out/STAGE/adapter``. ``out/model`` exists once a stage of kind "read" is done.

    Raises:
        ReadsegError: ``only`` names no stage, a stage lacks the weights of an earlier one, or ``data`` is missing.
    """
    chosen = _chosen(recipe, only)
    console = Console(quiet=not processes().is_main_process)
    scenes = [stage for stage in chosen if not isinstance(stage, FinetuningStageConfig)]
    processor = build_processor(recipe) if scenes else None
    for options in chosen:
        _check_settings(out, options, _settings(recipe, options))
        if not _is_done(out, options):
            console.print(f"stage [bold]{options.name}[/bold]: {options.steps} steps, in {out / options.name}")
            if isinstance(options, FinetuningStageConfig):
                _run_mixture(recipe, options, out, data)
            elif processor is not None:
                _run_stage(recipe, options, processor, out)
    last = chosen[-1]
    return _result(out, last) if isinstance(last, FinetuningStageConfig) else out / "model"


def dry_run(recipe: TrainConfig, out: Path, *, only: str | None = None, data: Path | None = None) -> None:
    """Print what the stages of kind "mixture" of a recipe would begin with, and stop.

    Arguments and errors as `run_recipe`; or the recipe has no such stage.
    """
    chosen = [stage for stage in _chosen(recipe, only) if isinstance(stage, FinetuningStageConfig)]
    if not chosen:
        raise ReadsegError("--dry-run is for stages of kind 'mixture', and none was meant")
    group = processes()
    console = Console(quiet=not group.is_main_process)
    for options in chosen:
        folder = _data_folder(data)
        check_trackers(options)
        mixture = mixture_of(options, folder, recipe.seed)
        benchmarks_of(options, folder)
        checkpoint = open_base(_base(recipe, options, out, unless_there=True))
        tell(console, checkpoint, options, mixture, recipe.seed, group.num_processes)


def _chosen(recipe: TrainConfig, only: str | None) -> list[AnyStageConfig]:
    names = [stage.name for stage in recipe.stages]
    if only is not None and only not in names:
        raise ReadsegError(f"no stage {only!r} in the recipe: expected one of {', '.join(names)}")
    return [stage for stage in recipe.stages if only in (None, stage.name)]


def _run_mixture(recipe: TrainConfig, options: FinetuningStageConfig, out: Path, data: Path | None) -> None:
    """Train a model on data sets; what it leaves behind is an adapter."""
    folder = _data_folder(data)
    base = _base(recipe, options, out)
    with _no_search_for_cycles():
        stage = FinetuningStage(open_base(base), base, options, recipe.seed, folder, out / "cache")
    settings = _settings(recipe, options) | stage.identity()
    _check_settings(out, options, settings)
    _keep_settings(out, options, settings)
    train(stage, options, out / options.name)
    if count := stage.batches.skipped.count:
        Console(stderr=True).print(
            f"broken and passed over: {count} (in this process, since it began)", highlight=False
        )
    processes().wait_for_everyone()


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """What is made within it is left alone by Python's search for cycles, now and later.

    Data sets hold millions of small records: half of the time that reading them takes goes into that search, and while
    training it would go through all of them again and again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


def _data_folder(data: Path | None) -> Path:
    if data is None:
        raise ReadsegError("--data is missing: name the folder that the data sets lie in (readseg data check DIR)")
    if not data.is_dir():  # before gigabytes of weights are read
        raise ReadsegError(f"{data}: no such folder; name the one that the data sets lie in")
    return data


def _base(recipe: TrainConfig, options: FinetuningStageConfig, out: Path, *, unless_there: bool = False) -> Base:
    """Where a stage starts: a model, or what an earlier stage of the recipe left behind.

    With `unless_there` a stage that is not done yet stands for its own start, which has the same sizes.
    """
    earlier = {stage.name: stage for stage in recipe.stages[: recipe.stages.index(options)]}
    before = earlier.get(options.start)
    if before is None:
        return Base(options.start, options.sam, options.family, options.vision_tower, recipe.seed)
    if not isinstance(before, FinetuningStageConfig):
        return Base(str(out / "model"))
    place = _result(out, before)
    if not _is_done(out, before):
        if unless_there:
            return _base(recipe, before, out, unless_there=True)
        raise ReadsegError(f"the weights of the stage {before.name!r} are not in {out}: run that stage first")
    return Base(str(place))


def _result(out: Path, options: AnyStageConfig) -> Path:
    """What is there when a stage is done."""
    folder = out / options.name
    return folder / FINISHED if isinstance(options, FinetuningStageConfig) else folder / "weights.safetensors"


def _is_done(out: Path, options: AnyStageConfig) -> bool:
    place = _result(out, options)
    if isinstance(options, FinetuningStageConfig):
        return is_adapter(place)
    return place.exists() and (not isinstance(options, ReadStageConfig) or (out / "model").exists())


def _run_stage(recipe: TrainConfig, options: AnyStageConfig, processor: ReadProcessor, out: Path) -> None:
    """Train one stage on scenes and write its weights; a stage of kind "read" also writes the finished model."""
    path = _weights(out, options.name)
    _keep_settings(out, options, _settings(recipe, options))
    if isinstance(options, MaskStageConfig):
        mask_stage = MaskStage(processor, options, recipe.seed)
        train(mask_stage, options, path.parent)
        _write(mask_stage.sam.state_dict(), path)
    elif isinstance(options, VisionStageConfig):
        vision_stage = VisionStage(processor, options, recipe.seed)
        train(vision_stage, options, path.parent)
        _write(vision_stage.tower.state_dict(), path)
    elif isinstance(options, ReadStageConfig):
        sam, tower = _earlier(recipe, out, "masks"), _earlier(recipe, out, "vision")
        read_stage = ReadStage(processor, options, recipe.seed, sam, tower, out / "cache")
        if path.exists():  # only the finished model was deleted
            read_stage.model.load_state_dict(load_file(path))
        else:
            train(read_stage, options, path.parent)
            _write(read_stage.model.state_dict(), path)
        _write_model(read_stage.model, processor, sam, out / "model")
    processes().wait_for_everyone()


def _settings(recipe: TrainConfig, options: AnyStageConfig) -> dict[str, Any]:
    """What a stage is trained with, as JSON has it."""
    return {
        "seed": recipe.seed,
        "vocabulary": recipe.vocabulary,
        **options.model_dump(mode="json"),
        # Two processes with half of the parts do what one does.
        "parts of a step, over all processes": options.accumulation * processes().num_processes,
        "computes in": "bf16" if options.use_bf16() else "fp32",
    }


def _check_settings(out: Path, options: AnyStageConfig, now: dict[str, Any]) -> None:
    """Raises ReadsegError where a stage was begun with other settings than it would go on with, or is asked for now."""
    path = out / options.name / _SETTINGS
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        # What is told of a stage only once it is open is not compared before.
        names = (now.keys() | before.keys()) - _FREE - (_OPENED - now.keys())
        changed = sorted(key for key in names if now.get(key) != before.get(key))
    except (OSError, ValueError, AttributeError) as error:
        raise ReadsegError(f"{path} is damaged: choose another folder with --out, or delete {path.parent}") from error
    if changed:
        was = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise ReadsegError(f"{path.parent} was begun with other settings ({was}): choose another folder with --out")


def _keep_settings(out: Path, options: AnyStageConfig, settings: dict[str, Any]) -> None:
    """Write down what a stage begins with."""
    path = out / options.name / _SETTINGS
    if not path.exists() and processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as place:
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
    with atomic_write(path) as place:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, place)


def _write_model(model: ReadModel, processor: ReadProcessor, sam: dict[str, Tensor], folder: Path) -> None:
    """The finished model in bfloat16, its tokenizer, and the mask decoder of stage 0 beside it."""
    if not processes().is_main_process:
        return
    half = ReadModel(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    prefix = "mask_decoder."
    plain = {name: tensor.to(torch.bfloat16) for name, tensor in sam.items() if name.startswith(prefix)}
    with atomic_write(folder) as place:
        half.save_pretrained(place)
        processor.save_pretrained(place)
        _write(plain, place / ORIGINAL_SAM_DECODER)
