"""What a stage would do, told before it does it: settings, data, model, trained weights, memory, first batch.

No weight is computed with: the model is made without memory, of the sizes that its start has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from readseg.checkpoints.checkpoint import Checkpoint
from readseg.data.mixture import Mixture
from readseg.model.config import ReadConfig
from readseg.model.modeling import ReadModel
from readseg.training.config import FinetuningStageConfig
from readseg.training.stages.batches import Batches, Row
from readseg.training.stages.finetuning import trained_config
from readseg.training.stages.tuning import PARTS, tune

_LONGEST = 200  # characters of a text that are shown


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights.

    total: of the model, without LoRA.
    trained: by part, "LoRA" among them.
    """

    total: int
    trained: Mapping[str, int]

    @property
    def all_trained(self) -> int:
        """All that the optimiser moves."""
        return sum(self.trained.values())


def sizes(config: ReadConfig, options: FinetuningStageConfig) -> Sizes:
    """The numbers of weights of a model, and of those that a stage trains.

    Raises:
        ReadsegError: as `tuning.tune`.
    """
    with torch.device("meta"):
        model = ReadModel(config)
        total = sum(weight.numel() for weight in model.parameters())
        tune(model, options)
    trained: dict[str, int] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            whole = next((part for part, place in PARTS.items() if name.startswith(place)), name)
            part = "LoRA" if ".lora_" in name else whole
            trained[part] = trained.get(part, 0) + weight.numel()
    return Sizes(total, trained)


def memory(
    config: ReadConfig, options: FinetuningStageConfig, counted: Sizes, rows: int, length: int
) -> dict[str, float]:
    """An estimate of the memory of one process, in bytes, by use, where nothing is sharded.

    Weights: 2 bytes a frozen one under bf16, else 4, and 4 a trained one, with 2 more for autocast's copy. Gradients 4,
    AdamW 8 and a running mean 4 bytes a trained weight. Activations of a layer of width h with a heads over s tokens in
    b rows: s b h (34 + 5 a s / h) bytes in 16 bit; with gradient checkpointing one layer's, and 4 s b h for the input
    of each, which is float32 as the trained embeddings are. The encoders, which run without gradients, the mask
    decoder, masks at the size of their images and the buffers of several processes are not counted.

    Source: Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (arXiv 2205.05198), eq. 1.

    Args:
        config: of the model.
        options: of the stage.
        counted: its numbers of weights.
        rows: b.
        length: s.
    """
    text = config.lmm_config.text_config
    half = options.use_bf16()
    whole = sum(number for part, number in counted.trained.items() if part != "LoRA")
    width, layers = text.hidden_size, text.num_hidden_layers
    layer = length * rows * width * (34 + 5 * text.num_attention_heads * length / width)
    kept = (1 if options.gradient_checkpointing else layers) * layer * (1 if half else 2)
    inputs = layers * 4 * length * rows * width if options.gradient_checkpointing else 0
    return {
        "frozen weights": (counted.total - whole) * (2 if half else 4),
        "trained weights": counted.all_trained * (6 if half else 4),
        "gradients": counted.all_trained * 4,
        "AdamW": counted.all_trained * 8,
        "running mean": counted.all_trained * 4 if options.ema_decay else 0,
        "activations": kept + inputs,
    }


def tell(
    console: Console,
    checkpoint: Checkpoint,
    options: FinetuningStageConfig,
    mixture: Mixture,
    seed: int,
    processes: int,
) -> None:
    """Prints all that a stage would begin with.

    Args:
        console: where to.
        checkpoint: where training starts.
        options: of the stage.
        mixture: of the stage.
        seed: of the recipe.
        processes: how many would train.
    """
    config = trained_config(checkpoint.config, options)
    counted = sizes(config, options)
    processor = checkpoint.processor()
    processor.config = config
    batches = Batches(mixture, processor, options, seed)
    drawn = batches.draw(0)
    rows = [batches.rows(one) for one in drawn]
    batch = batches.batch(0)
    console.rule(f"stage {options.name}")
    console.print(_settings(config, options, processes))
    console.print(_data(mixture))
    for missing in mixture.missing:
        console.print(f"not used: {missing}", style="dim", highlight=False, markup=False, soft_wrap=True)
    console.print(_model(checkpoint, config, counted))
    b, s = batch["input_ids"].shape
    console.print(_memory(memory(config, options, counted, b, s)))
    table = Table(title=f"first batch: {b} rows of {s} tokens, {len(batch['masks'])} masks", title_justify="left")
    for name in ("data set", "image", "question", "answer", "masks"):
        table.add_column(name, overflow="fold")
    for one, own in zip(drawn, rows, strict=True):
        for line in _lines(one.data_set, np.asarray(one.sample.image).shape, own):
            table.add_row(*line)
    console.print(table)


def _settings(config: ReadConfig, options: FinetuningStageConfig, processes: int) -> Table:
    table = _pairs("settings")
    for name, value in options.model_dump().items():
        if name not in ("kind", "name", "points") and value not in (None, (), {}):
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    for name, value in config.points.to_dict().items():
        table.add_row(f"points.{name}", str(value))
    batch = options.images_per_step * options.accumulation * processes
    table.add_row(
        "images a step", f"{batch} ({options.images_per_step} x {options.accumulation} x {processes} processes)"
    )
    return table


def _data(mixture: Mixture) -> Table:
    table = Table(title="data", title_justify="left")
    for name in ("kind", "weight", "data set", "entries"):
        table.add_column(name, justify="right" if name in ("weight", "entries") else "left")
    for part in mixture.parts:
        table.add_row(part.kind, str(part.weight), part.data_set, f"{part.entries:,}")
    return table


def _model(checkpoint: Checkpoint, config: ReadConfig, counted: Sizes) -> Table:
    text = config.lmm_config.text_config
    table = _pairs("model")
    table.add_row("start", str(checkpoint.folder))
    table.add_row("family", f"{config.family}, prompted by {config.prompt}")
    table.add_row(
        "language model", f"{text.num_hidden_layers} layers, width {text.hidden_size}, {text.vocab_size:,} tokens"
    )
    table.add_row("image tokens", f"{config.num_image_tokens}, image {config.lmm_size} px, masks {config.mask_size} px")
    table.add_row("parameters", f"{counted.total:,}")
    for part, number in counted.trained.items():
        table.add_row(f"trained: {part}", f"{number:,}")
    share = counted.all_trained / (counted.total + counted.trained.get("LoRA", 0))
    table.add_row("trained in all", f"{counted.all_trained:,} ({share:.2%})")
    return table


def _memory(estimate: Mapping[str, float]) -> Table:
    table = _pairs("memory of a process, estimated")
    for name, size in (*estimate.items(), ("in all", sum(estimate.values()))):
        if size:
            table.add_row(name, f"{size / 1e9:,.2f} GB" if size > 1e8 else f"{size / 1e6:,.2f} MB")
    table.add_row("not in it", "encoders, mask decoder, masks, buffers between processes")
    return table


def _lines(data_set: str, shape: tuple[int, ...], rows: list[Row]) -> list[tuple[str | Text, ...]]:
    turns = [turn for row in rows for turn in row.turns]
    return [
        (
            data_set if place == 0 else "",
            f"{shape[0]} x {shape[1]}" if place == 0 else "",
            _plain(turn.question),
            _plain(turn.answer),
            str(len(turn.masks) or ""),
        )
        for place, turn in enumerate(turns)
    ]


def _plain(text: str) -> Text:
    """Text of a data set: no markup, and not too long."""
    return Text(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def _pairs(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", overflow="fold")
    return table
