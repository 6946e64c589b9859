"""What a stage would begin with: the published settings, counted weights, estimated memory, and the first batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Console
from readseg.checkpoints.adapters import Base, open_base
from readseg.training.recipe import count_weights, estimate_memory
from readseg.training.stages.finetuning import FinetuningStage, trained_config
from released import SMALL, language_shapes, sam_shapes, tower_shapes, write_llava, write_released, write_sam
from tuned import options


@pytest.fixture(scope="module")
def sesame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for SESAME-7B, which READ-7B starts from: its layout, a few channels."""
    folder = tmp_path_factory.mktemp("released") / "SESAME"
    write_released(folder, "sesame")
    return folder


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def printed(console: Console, data: Path, out: Path, *words: object) -> str:
    """What the command line prints, without the frames of tables; nothing is written."""
    console.monkeypatch.setenv("COLUMNS", "160")
    text = console.out("train", *words, "--data", data, "--out", out, "--dry-run")
    assert not out.exists()
    return re.sub(r"[│┃ ]+", " ", text)


def test_read_7b_prints_the_published_settings(console: Console, sesame: Path, data: Path, tmp_path: Path) -> None:
    text = printed(console, data, tmp_path / "run", "read-7b", "--start", sesame)
    for line in (
        "ratio 10:1:1:1:1:10", "learning_rate 0.0003", "lora_rank 8", "lora_alpha 16", "lora_dropout 0.05",
        "lora_targets q_proj, v_proj", "points.num_points 30", "points.t_pos 0.8", "points.t_neg 0.2",
        "points.downsample 2", "points.alignment reference", "dice_loss_weight 0.5", "bce_loss_weight 2.0",
        "warmup_steps 100", "schedule linear", "optimizer adamw", "steps 10000",
        "images a step 20 (2 x 10 x 1 processes)", "family read, prompted by both", "reason_seg 10 ReasonSeg|train",
        "refer_seg 1 refcoco|unc_exclude_unified|train",
    ):  # fmt: skip
        assert line in text, line
    assert "first batch: 2 rows of" in text and "in all" in text


def test_sizes_are_those_of_the_checkpoint(sesame: Path) -> None:
    chosen = options(sesame, lora_rank=3)
    checkpoint = open_base(Base(str(sesame), family="read"))
    total, trained = count_weights(trained_config(checkpoint.config, chosen), chosen)
    shapes = language_shapes("sesame") | sam_shapes() | tower_shapes()
    assert total == count(shapes) + 1  # the bias of the auxiliary loss
    rows = count({"t": shapes["lm_head.weight"]})
    decoder = count({name: shape for name, shape in shapes.items() if name.startswith("mask_decoder.")})
    projection = count({name: shape for name, shape in shapes.items() if "text_hidden_fcs" in name})
    assert dict(trained) == {
        "embed_tokens": rows, "lm_head": rows, "mask_decoder": decoder, "seg_projection": projection,
        "LoRA": SMALL.layers * 2 * 3 * (SMALL.width + SMALL.width),
    }  # fmt: skip


def test_trained_weights_are_those_that_a_stage_moves(start: Path, make: Callable[..., FinetuningStage]) -> None:
    built = make()
    moved = sum(weight.numel() for weight in built.model.parameters() if weight.requires_grad)
    checkpoint = open_base(Base(str(start)))
    chosen = options(start)
    assert count_weights(trained_config(checkpoint.config, chosen), chosen)[1].total() == moved


def test_memory_follows_the_formula(sesame: Path) -> None:
    chosen = options(sesame, gradient_checkpointing=True, ema_decay=0.9)
    config = open_base(Base(str(sesame), family="read")).config
    counts = count_weights(config, chosen)
    estimate = estimate_memory(config, chosen, *counts, rows=2, length=100)
    trained = counts[1].total()
    assert estimate["AdamW"] == 8 * trained and estimate["gradients"] == estimate["running mean"] == 4 * trained
    one = 100 * 2 * SMALL.width * (34 + 5 * 2 * 100 / SMALL.width)
    assert estimate["activations"] == 2 * one + SMALL.layers * 4 * 100 * 2 * SMALL.width  # a layer twice: float32
    without = estimate_memory(config, options(sesame), *counts, rows=2, length=100)
    assert without["activations"] == 2 * SMALL.layers * one and without["running mean"] == 0


def test_read_13b_prints_both_published_stages(console: Console, data: Path, tmp_path: Path) -> None:
    """On stand-ins of LLaVA-1.5-13B and SAM; stage 2 starts from a stage that is not run yet."""
    llava, sam = write_llava(tmp_path / "llava"), write_sam(tmp_path / "sam.pth")
    text = printed(console, data, tmp_path / "run", "read-13b", "--start", llava, "--sam", sam)
    first, second = text.split("stage stage2")
    shared = (
        "lora_rank 64", "lora_alpha 16", "lora_dropout 0.05", "points.t_pos 0.8", "points.t_neg 0.2",
        "points.downsample 1", "bce_loss_weight 2.0", "dice_loss_weight 0.5", "images a step 20", "warmup_steps 100",
    )  # fmt: skip
    for line in (*shared, "ratio 10:10:2:3:1:1", "learning_rate 0.0003", "points.num_points 10", "steps 4000"):
        assert line in first, line
    for line in (*shared, "ratio 3:10:2:3:1:10", "learning_rate 0.0001", "points.num_points 30", "start stage1"):
        assert line in second, line
