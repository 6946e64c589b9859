"""The small model as a start of training on miniatures: everything that a stage needs, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from readseg.checkpoints.adapters import Base, open_base
from readseg.training.config import FinetuningStageConfig, TrainConfig
from readseg.training.stages.finetuning import FinetuningStage
from small import small_model, small_processor

RATIO = "3:2:1:1:1:3"
SETTINGS: dict[str, Any] = {
    "kind": "mixture",
    "name": "tuned",
    "steps": 4,
    "images_per_step": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "precision": "fp32",
    "log_every": 1,
    "checkpoint_every": 2,
    "ratio": RATIO,
    "lora_rank": 2,
    "lora_dropout": 0.2,
    "gradient_checkpointing": False,
}


def write_start(folder: Path) -> Path:
    """The small model, saved."""
    model = small_model(context=1024)
    model.save_pretrained(folder)
    small_processor(context=1024).save_pretrained(folder)
    return folder


def options(start: Path, **changes: Any) -> FinetuningStageConfig:
    return FinetuningStageConfig.model_validate(SETTINGS | {"start": str(start)} | changes)


def stage(start: Path, data: Path, cache: Path, /, **changes: Any) -> FinetuningStage:
    base = Base(str(start))
    return FinetuningStage(open_base(base), base, options(start, **changes), 3, data, cache)


def recipe(start: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(seed=3, stages=(options(start, **changes),))
