"""A recipe from its first stage to the finished model folder.

Each stage on scenes leaves ``weights.safetensors`` in its own folder when it is done, each other one ``adapter``; a
stage that left them is not run again, and one that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from readseg.checkpoints.adapters import Base, is_adapter, open_base
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import Checkpoint
from readseg.core.io import atomic_write, check_settings, processes
from readseg.data.mixture import Mixture
from readseg.errors import ReadsegError
from readseg.model.config import ReadConfig
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.training.config import AnyStageConfig, FinetuningStageConfig, TrainConfig
from readseg.training.loop import FINISHED, check_trackers, train
from readseg.training.stages import finetuning
from readseg.training.stages.pretraining import MaskStage, VisionStage
from readseg.training.stages.read import ReadStage, build_processor

# Settings that may change while a run goes on: they change no weight.
_FREE_SETTINGS = {
    *("workers", "trackers", "log_every", "checkpoint_every", "cache", "cache_gb", "max_broken"),
    *("validate_on", "validate_every", "validate_images", "validate_protocol", "best", "patience"),
    *("accumulation", "precision"),  # their effect is compared instead, see `_settings`
}
_KNOWN_ONCE_OPENED = {"starts from", "draws from"}  # see `FinetuningStage.identity`


def run_recipe(recipe: TrainConfig, out: Path, *, only: str | None = None, data: Path | None = None) -> Path:
    """Run the stages of a recipe in order, or only the one named ``only``; in the same folder a run goes on.

    ``data`` is the folder that stages of kind "mixture" draw from. Returns what the last stage leaves behind:
    ``out/model``, which is there once a stage of kind "read" is done, or its ``out/STAGE/adapter``.
    """
    stages = _select_stages(recipe, only)
    console = Console(quiet=not processes().is_main_process)
    on_scenes = any(not isinstance(stage, FinetuningStageConfig) for stage in stages)
    processor = build_processor(recipe) if on_scenes else None
    for options in stages:
        _check_settings(out, options, _settings(recipe, options), opened=False)
        if not _is_done(out, options):
            console.print(f"stage [bold]{options.name}[/bold]: {options.steps} steps, in {out / options.name}")
            if isinstance(options, FinetuningStageConfig):
                _run_on_data(recipe, options, out, data)
            elif processor is not None:
                _run_on_scenes(recipe, options, processor, out)
            processes().wait_for_everyone()
    return _result(out, stages[-1]) if isinstance(stages[-1], FinetuningStageConfig) else out / "model"


def _select_stages(recipe: TrainConfig, only: str | None) -> list[AnyStageConfig]:
    names = [stage.name for stage in recipe.stages]
    if only is not None and only not in names:
        raise ReadsegError(f"no stage {only!r} in the recipe: expected one of {', '.join(names)}")
    return [stage for stage in recipe.stages if only in (None, stage.name)]


def _run_on_data(recipe: TrainConfig, options: FinetuningStageConfig, out: Path, data: Path | None) -> None:
    """Train a model on data sets; what it leaves behind is an adapter."""
    folder = _data_folder(data)
    base = _base(recipe, options, out)
    # Data sets hold millions of small records: half of the time that reading them takes would go into Python's search
    # for cycles, and while training it would go through all of them again and again.
    gc.disable()
    try:
        stage = finetuning.FinetuningStage(open_base(base), base, options, recipe.seed, folder, out / "cache")
    finally:
        gc.enable()
    gc.freeze()
    _check_settings(out, options, _settings(recipe, options) | stage.identity(), opened=True)
    train(stage, options, out / options.name)
    if count := stage.collator.skipped.count:
        message = f"broken and passed over: {count} (in this process, since it began)"
        Console(stderr=True).print(message, highlight=False)


def _data_folder(data: Path | None) -> Path:
    if data is None:
        raise ReadsegError("--data is missing: name the folder that the data sets lie in (readseg data check DIR)")
    if not data.is_dir():  # before gigabytes of weights are read
        raise ReadsegError(f"{data}: no such folder; name the one that the data sets lie in")
    return data


def _base(recipe: TrainConfig, options: FinetuningStageConfig, out: Path, *, unless_there: bool = False) -> Base:
    """Where a stage starts: a model, or the result of an earlier stage of the recipe.

    With `unless_there` a stage that is not done yet stands for its own start, which has the same sizes.
    """
    earlier = {stage.name: stage for stage in recipe.stages[: recipe.stages.index(options)]}
    start = earlier.get(options.start)
    if start is None:
        return Base(options.start, options.sam, options.family, options.vision_tower, recipe.seed)
    if not isinstance(start, FinetuningStageConfig):
        return Base(str(out / "model"))
    if _is_done(out, start):
        return Base(str(_result(out, start)))
    if unless_there:
        return _base(recipe, start, out, unless_there=True)
    raise ReadsegError(f"the weights of the stage {start.name!r} are not in {out}: run that stage first")


def _result(out: Path, options: AnyStageConfig) -> Path:
    """What is there when a stage is done."""
    return out / options.name / (FINISHED if isinstance(options, FinetuningStageConfig) else "weights.safetensors")


def _is_done(out: Path, options: AnyStageConfig) -> bool:
    result = _result(out, options)
    if isinstance(options, FinetuningStageConfig):
        return is_adapter(result)
    return result.exists() and (options.kind != "read" or (out / "model").exists())


def _run_on_scenes(recipe: TrainConfig, options: AnyStageConfig, processor: ReadProcessor, out: Path) -> None:
    """Train one stage on scenes and write its weights; a stage of kind "read" also writes the finished model."""
    _check_settings(out, options, _settings(recipe, options), opened=True)
    path = _result(out, options)
    stage: MaskStage | VisionStage | ReadStage
    model: nn.Module
    if options.kind == "masks":
        stage = MaskStage(processor, options, recipe.seed)
        model = stage.sam
    elif options.kind == "vision":
        stage = VisionStage(processor, options, recipe.seed)
        model = stage.tower
    else:
        assert options.kind == "read"
        sam, tower = _earlier_weights(recipe, out, "masks"), _earlier_weights(recipe, out, "vision")
        stage = ReadStage(processor, options, recipe.seed, sam, tower, out / "cache")
        model = stage.model
    if there := path.exists():  # only the finished model was deleted
        model.load_state_dict(load_file(path))
    else:
        train(stage, options, path.parent)
    if processes().is_main_process:
        if not there:
            _write(model.state_dict(), path)
        if isinstance(stage, ReadStage):
            _write_model(stage.model, processor, sam, out / "model")


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


def _check_settings(out: Path, options: AnyStageConfig, settings: dict[str, Any], *, opened: bool) -> None:
    """Refuses to go on with other settings than a stage was begun with; a stage that is opened writes its own down."""
    path = out / options.name / "settings.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            message = f"{path} is damaged: choose another folder with --out, or delete {path.parent}"
            raise ReadsegError(message) from error
        ignored = _FREE_SETTINGS if opened else _FREE_SETTINGS | _KNOWN_ONCE_OPENED
        check_settings(path, *({k: v for k, v in each.items() if k not in ignored} for each in (before, settings)))
    elif opened and processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _earlier_weights(recipe: TrainConfig, out: Path, kind: str) -> dict[str, Tensor]:
    """The weights of the recipe's stage of a kind."""
    for stage in recipe.stages:
        if stage.kind == kind and _result(out, stage).exists():
            return load_file(_result(out, stage))
    raise ReadsegError(f"the weights of the {kind!r} stage are not in {out}: run that stage first")


def _write(state: dict[str, Tensor], path: Path) -> None:
    with atomic_write(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, partial)


def _write_model(model: ReadModel, processor: ReadProcessor, sam: dict[str, Tensor], folder: Path) -> None:
    """The finished model in bfloat16, its tokenizer, and the mask decoder of stage 0 beside it."""
    half = ReadModel(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    decoder = {name: tensor.to(torch.bfloat16) for name, tensor in sam.items() if name.startswith("mask_decoder.")}
    with atomic_write(folder) as partial:
        half.save_pretrained(partial)
        processor.save_pretrained(partial)
        _write(decoder, partial / ORIGINAL_SAM_DECODER)


# -- what a stage would do, shown before it does it --------------------------------------------------------------------


def dry_run(recipe: TrainConfig, out: Path, *, only: str | None = None, data: Path | None = None) -> None:
    """Print what the stages of kind "mixture" of a recipe would begin with, and stop; arguments as of `run_recipe`."""
    stages = [stage for stage in _select_stages(recipe, only) if isinstance(stage, FinetuningStageConfig)]
    if not stages:
        raise ReadsegError("--dry-run is for stages of kind 'mixture', and none was meant")
    console = Console(quiet=not processes().is_main_process)
    for options in stages:
        folder = _data_folder(data)
        check_trackers(options)
        mixture = finetuning.open_mixture(options, folder, recipe.seed)
        finetuning.open_benchmarks(options, folder)
        checkpoint = open_base(_base(recipe, options, out, unless_there=True))
        print_dry_run(console, checkpoint, options, mixture, recipe.seed, processes().num_processes)


def count_weights(config: ReadConfig, options: FinetuningStageConfig) -> tuple[int, Counter[str]]:
    """Numbers of weights: of the model without LoRA, and of what a stage trains, by part, "LoRA" among them."""
    with torch.device("meta"):
        model = ReadModel(config)
        total = sum(weight.numel() for weight in model.parameters())
        finetuning.freeze_and_add_lora(model, options)
    trained: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            part = next((part for part, prefix in finetuning.PARTS.items() if name.startswith(prefix)), name)
            trained["LoRA" if ".lora_" in name else part] += weight.numel()
    return total, trained


def estimate_memory(
    config: ReadConfig, options: FinetuningStageConfig, total: int, trained: Counter[str], rows: int, length: int
) -> dict[str, float]:
    """An estimate of the memory of one process, in bytes, by use, where nothing is sharded.

    Weights: 2 bytes a frozen one under bf16, else 4, and 4 a trained one, with 2 more for autocast's copy. Gradients 4,
    AdamW 8 and a running mean 4 bytes a trained weight. Activations of a layer of width h with a heads over s tokens
    (`length`) in b `rows`: s b h (34 + 5 a s / h) bytes in 16 bit; with gradient checkpointing one layer's, and 4 s b h
    for the input of each, which is float32 as the trained embeddings are.

    Source: Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv 2205.05198), eq. 1.
    """
    text = config.lmm_config.text_config
    half = options.use_bf16()
    trained_whole = sum(number for part, number in trained.items() if part != "LoRA")
    width, layers = text.hidden_size, text.num_hidden_layers
    layer = length * rows * width * (34 + 5 * text.num_attention_heads * length / width)
    kept = (1 if options.gradient_checkpointing else layers) * layer * (1 if half else 2)
    inputs = layers * 4 * length * rows * width if options.gradient_checkpointing else 0
    return {
        "frozen weights": (total - trained_whole) * (2 if half else 4),
        "trained weights": trained.total() * (6 if half else 4),
        "gradients": trained.total() * 4,
        "AdamW": trained.total() * 8,
        "running mean": trained.total() * 4 if options.ema_decay else 0,
        "activations": kept + inputs,
    }


def print_dry_run(
    console: Console, checkpoint: Checkpoint, options: FinetuningStageConfig, mixture: Mixture, seed: int, world: int
) -> None:
    """Prints all that a stage would begin with."""
    config = finetuning.trained_config(checkpoint.config, options)
    processor = checkpoint.processor()
    processor.config = config
    collator = finetuning.Collator(mixture, processor, options, seed)
    items, batch = collator.draw(0), collator.batch(0)
    rows, length = batch["input_ids"].shape
    total, trained = count_weights(config, options)
    memory = estimate_memory(config, options, total, trained, rows, length)
    memory["in all"] = sum(memory.values())
    text = config.lmm_config.text_config
    share = trained.total() / (total + trained.get("LoRA", 0))
    images = (options.images_per_step, options.accumulation, world)
    settings = {
        **{name: value for name, value in options.model_dump().items() if name not in ("kind", "name", "points")},
        **{f"points.{name}": str(value) for name, value in vars(config.points).items()},
        "images a step": "{} ({} x {} x {} processes)".format(math.prod(images), *images),
    }
    model = {
        "start": checkpoint.folder,
        "family": f"{config.family}, prompted by {config.prompt}",
        "language model": f"{text.num_hidden_layers} layers, width {text.hidden_size}, {text.vocab_size:,} tokens",
        "image tokens": f"{config.num_image_tokens}, image {config.lmm_size} px, masks {config.mask_size} px",
        "parameters": f"{total:,}",
        **{f"trained: {part}": f"{number:,}" for part, number in trained.items()},
        "trained in all": f"{trained.total():,} ({share:.2%})",
    }
    sizes = {name: f"{b / 1e9:,.2f} GB" if b > 1e8 else f"{b / 1e6:,.2f} MB" for name, b in memory.items() if b}
    sources = [(part.kind, str(part.weight), part.data_set, f"{part.entries:,}") for part in mixture.sources]
    questions: list[Sequence[str | Text]] = []
    for item in items:
        height, width = np.asarray(item.sample.image).shape[:2]
        turns = [turn for conversation in collator.conversations(item) for turn in conversation.turns]
        for k, turn in enumerate(turns):
            first = (item.data_set, f"{height} x {width}") if k == 0 else ("", "")
            questions.append((*first, _plain(turn.question), _plain(turn.answer or ""), str(len(turn.masks) or "")))
    console.rule(f"stage {options.name}")
    console.print(_table("settings", settings))
    console.print(_table("data", sources, ("kind", "weight", "data set", "entries")))
    for missing in mixture.missing:
        console.print(f"not used: {missing}", style="dim", highlight=False, markup=False, soft_wrap=True)
    console.print(_table("model", model))
    sizes["not in it"] = "encoders, mask decoder, masks, buffers between processes"
    console.print(_table("memory of a process, estimated", sizes))
    title = f"first batch: {rows} rows of {length} tokens, {len(batch['masks'])} masks"
    console.print(_table(title, questions, ("data set", "image", "question", "answer", "masks")))


def _plain(text: str) -> Text:
    """Text of a data set: no markup, and not too long."""
    return Text(text if len(text) <= 200 else f"{text[:200]}...")


def _table(
    title: str, rows: Mapping[str, Any] | Iterable[Sequence[str | Text]], columns: Sequence[str] = ("name", "value")
) -> Table:
    """Rows below a title; a mapping gives the names and values of what is set, which need no heading."""
    table = Table(title=title, title_justify="left", show_header=not isinstance(rows, Mapping))
    for name in columns:
        table.add_column(name, justify="right" if name in ("weight", "entries") else "left", overflow="fold")
    if isinstance(rows, Mapping):
        shown = {name: value for name, value in rows.items() if value not in (None, (), {})}
        rows = [(k, ", ".join(map(str, v)) if isinstance(v, tuple) else str(v)) for k, v in shown.items()]
    for row in rows:
        table.add_row(*row)
    return table
