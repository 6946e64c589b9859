"""What a stage would do, shown before it does it: settings, data, model, trained weights, memory, first batch.

No weight is computed with: the model is made without memory, of the sizes that its start has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
from readseg.training.stages.finetuning import PARTS, Collator, freeze_and_add_lora, trained_config

_LONGEST = 200  # characters of a text that are shown


def count_weights(config: ReadConfig, options: FinetuningStageConfig) -> tuple[int, Counter[str]]:
    """Numbers of weights: of the model without LoRA, and of what a stage trains, by part, "LoRA" among them."""
    with torch.device("meta"):
        model = ReadModel(config)
        total = sum(weight.numel() for weight in model.parameters())
        freeze_and_add_lora(model, options)
    trained: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), name)
            trained["LoRA" if ".lora_" in name else part] += weight.numel()
    return total, trained


def estimate_memory(
    config: ReadConfig, options: FinetuningStageConfig, total: int, trained: Counter[str], rows: int, length: int
) -> dict[str, float]:
    """An estimate of the memory of one process, in bytes, by use, where nothing is sharded.

    Weights: 2 bytes a frozen one under bf16, else 4, and 4 a trained one, with 2 more for autocast's copy. Gradients 4,
    AdamW 8 and a running mean 4 bytes a trained weight. Activations of a layer of width h with a heads over s tokens
    (`length`) in b `rows`: s b h (34 + 5 a s / h) bytes in 16 bit; with gradient checkpointing one layer's, and 4 s b h
    for the input of each, which is float32 as the trained embeddings are. The encoders, which run without gradients,
    the mask decoder, masks at the size of their images and the buffers of several processes are not counted.

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
    config = trained_config(checkpoint.config, options)
    processor = checkpoint.processor()
    processor.config = config
    collator = Collator(mixture, processor, options, seed)
    items, batch = collator.draw(0), collator.batch(0)
    rows, length = batch["input_ids"].shape
    total, trained = count_weights(config, options)
    memory = estimate_memory(config, options, total, trained, rows, length)
    memory["in all"] = sum(memory.values())
    text = config.lmm_config.text_config
    share = trained.total() / (total + trained.get("LoRA", 0))
    images = options.images_per_step, options.accumulation, world
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
    return Text(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


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
