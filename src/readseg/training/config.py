"""Recipes: what a preset's YAML may say, checked when it is read."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from readseg.errors import ReadsegError


class StageConfig(BaseModel):
    """What every stage says.

    Attributes:
        name: the stage's folder and label.
        steps: optimiser steps.
        images_per_step: images in a batch, on each process.
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up.
        precision: "bf16" autocast, "fp32", or "auto": bf16 where the device multiplies it natively.
        log_every, checkpoint_every: intervals in steps.
        first_seed: scenes are drawn from seeds first_seed, first_seed + 1, ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w-]+$")
    steps: int = Field(gt=0)
    images_per_step: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    first_seed: int = Field(default=1_000_000, ge=1_000_000)

    def use_bf16(self) -> bool:
        """Whether to run under bf16 autocast on this machine."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if torch.cuda.is_available():
            return torch.cuda.is_bf16_supported()
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class MaskStageConfig(StageConfig):
    """Stage 0: the mask model alone, prompted by points, clicks and boxes.

    Attributes:
        masks_per_image: prompts drawn on each image.
    """

    kind: Literal["masks"]
    masks_per_image: int = Field(default=6, gt=0)


class VisionStageConfig(StageConfig):
    """Stage 1: the vision tower alone; what lies under each patch. Its heads are dropped afterwards."""

    kind: Literal["vision"]


class ReadStageConfig(StageConfig):
    """Stage 2: the language model, the projection of [SEG] and the mask decoder, on questions.

    Attributes:
        questions_per_image: questions packed behind one image.
        images: distinct images whose frozen features are cached; they are seen again with new questions.
        mask_decoder_rate: factor on the learning rate of the mask decoder.
        map_loss_weight: weight of the auxiliary map loss; 0 is the paper.
        sight_loss_weight: weight of the auxiliary loss that keeps what a cell shows readable in its image token.
        mask_warmup_steps: steps before the mask losses join (the map lights up first).
        masks_per_step: the most [SEG] of a batch, drawn by lot, that masks are made of; 0 is all. The rest still
            learns text and map, which is cheap.
        false_premise: share of the segmentation questions whose object is not there.
        plain: share of questions that are answered in words.
        next_turn: probability that a question continues the conversation before it, instead of standing alone.
        new_wordings: share of the questions worded by the wide banks of `readseg.data.wide_phrases`.
        kinds: weight of each kind of question; kinds that are absent keep their default.
        late_from: from this step on, `late_kinds` and `late_plain` replace `kinds` and `plain`; never where 0.
        late_kinds, late_plain: see `late_from`.
        prompt: what prompts the mask decoder ("both", "seg" or "points").
    """

    kind: Literal["read"]
    questions_per_image: int = Field(default=6, gt=0)
    images: int = Field(default=4000, gt=0)
    mask_decoder_rate: float = Field(default=0.25, ge=0)
    map_loss_weight: float = Field(default=1.0, ge=0)
    sight_loss_weight: float = Field(default=0.0, ge=0)
    mask_warmup_steps: int = Field(default=0, ge=0)
    masks_per_step: int = Field(default=0, ge=0)
    false_premise: float = Field(default=0.4, ge=0, le=1)
    plain: float = Field(default=0.15, ge=0, le=1)
    next_turn: float = Field(default=0.1, ge=0, le=1)
    new_wordings: float = Field(default=0.0, ge=0, le=1)
    kinds: dict[str, float] = Field(default_factory=dict)
    late_from: int = Field(default=0, ge=0)
    late_kinds: dict[str, float] = Field(default_factory=dict)
    late_plain: float = Field(default=0.15, ge=0, le=1)
    prompt: Literal["both", "seg", "points"] = "both"


AnyStageConfig = Annotated[MaskStageConfig | VisionStageConfig | ReadStageConfig, Field(discriminator="kind")]


class TrainConfig(BaseModel):
    """A recipe: a seed and its stages, each of which starts from the weights of those before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    vocabulary: int = Field(default=1400, ge=300)
    stages: tuple[AnyStageConfig, ...] = Field(min_length=1)


def load_recipe(name_or_path: str) -> TrainConfig:
    """Read a preset by name (``tiny``) or a YAML file by path.

    Raises:
        ReadsegError: no such preset or file, not YAML, or a value that is unknown, missing or out of range.
    """
    presets = files("readseg") / "presets"
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ReadsegError(f"no recipe at {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ReadsegError(f"{name_or_path} is not UTF-8 text: expected a recipe in YAML") from error
    elif (presets / f"{name_or_path}.yaml").is_file():
        text = (presets / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        known = sorted(entry.name.removesuffix(".yaml") for entry in presets.iterdir() if entry.name.endswith(".yaml"))
        raise ReadsegError(f"no preset {name_or_path!r}: expected one of {', '.join(known)}, or a path to a .yaml file")
    try:
        return TrainConfig.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ReadsegError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ReadsegError(f"recipe {name_or_path}: {'; '.join(lines)}") from error
