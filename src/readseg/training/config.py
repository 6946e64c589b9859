"""Recipes: what a preset's YAML may say, checked when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from readseg.core.sasp import PointConfig
from readseg.data.mixture import parse_ratio
from readseg.errors import ReadsegError
from readseg.model.config import from_dict

_RESERVED_NAMES = {"model", "cache"}  # folders of a run that hold something else than a stage
Decay = Annotated[float, Field(ge=0, lt=1)]
Family = Literal["read", "sesame", "lisa", "gsva", "glamm"]
Optimizer = Literal["muon", "adamw"]
Prompt = Literal["both", "seg", "points"]
Protocol = Literal["forced", "generated"]
Schedule = Literal["cosine", "linear"]
Share = Annotated[float, Field(ge=0, le=1)]
TrainedPart = Literal["lm_head", "embed_tokens", "mask_decoder", "seg_projection", "projector"]


class StageConfig(BaseModel):
    """Settings of every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[\w-]+$", description="folder and label of the stage")
    steps: PositiveInt = Field(description="optimiser steps")
    images_per_step: PositiveInt = Field(description="images in a batch, on each process")
    accumulation: PositiveInt = Field(default=1, description="batches of a step; their gradients are averaged")
    learning_rate: float = Field(gt=0, le=100, description="peak learning rate")
    warmup_steps: NonNegativeInt = Field(default=50, description="steps of linear warm-up")
    schedule: Schedule = Field(default="cosine", description="then down to 2% (cosine) or 0 (linear)")
    optimizer: Optimizer = Field(default="muon", description="Muon: of matrices; the rest uses AdamW")
    precision: Literal["auto", "bf16", "fp32"] = Field(default="auto", description="bf16: autocast; see `use_bf16`")
    log_every: PositiveInt = Field(default=10, description="interval in steps")
    checkpoint_every: PositiveInt = Field(default=100, description="interval in steps")
    workers: int = Field(default=1, gt=0, le=64, description="threads that prepare batches; changes no batch")
    ema_decay: Decay = Field(default=0.0, description="of a mean of the weights that is validated and kept; 0: none")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(default=(), description="they get the metrics too")

    def use_bf16(self) -> bool:
        """Whether to run under bf16 autocast; "auto": where this machine multiplies it faster than float32."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if torch.cuda.is_available():
            return torch.cuda.is_bf16_supported()
        # Of CPUs, x86 with AMX and ARM with bf16.
        capabilities = torch.cpu.get_capabilities()
        return torch.backends.mkldnn.is_available() and bool(capabilities.get("amx_bf16") or capabilities.get("bf16"))


class ScoredStageConfig(StageConfig):
    """Settings of stages that are scored while they are trained."""

    validate_every: NonNegativeInt = Field(default=0, description="interval in steps; 0: never")
    patience: NonNegativeInt = Field(default=0, description="validations without a better one before it stops; 0: any")


class SceneStageConfig(StageConfig):
    """Settings of stages that draw scenes."""

    first_seed: int = Field(default=1_000_000, ge=1_000_000, description="of the scenes; the others follow it")


class MaskStageConfig(SceneStageConfig):
    """Stage 0: the mask model alone, prompted by points, clicks and boxes."""

    kind: Literal["masks"]
    masks_per_image: PositiveInt = Field(default=6, description="prompts drawn on each image")


class VisionStageConfig(SceneStageConfig):
    """Stage 1: the vision tower alone learns the content of each patch. Its heads are dropped afterwards."""

    kind: Literal["vision"]


class ReadStageConfig(SceneStageConfig):
    """Stage 2: the language model, the projection of [SEG] and the mask decoder, on questions about scenes."""

    kind: Literal["read"]
    questions_per_image: PositiveInt = Field(default=6, description="questions packed behind one image")
    images: PositiveInt = Field(default=4000, description="distinct images; seen again with new questions")
    mask_decoder_rate: NonNegativeFloat = Field(default=0.25, description="factor on the mask decoder's learning rate")
    map_loss_weight: NonNegativeFloat = Field(default=1.0, description="of the auxiliary map loss; 0 is the paper")
    sight_loss_weight: NonNegativeFloat = Field(default=0.0, description="of the loss on what image tokens show")
    mask_warmup_steps: NonNegativeInt = Field(default=0, description="steps before the mask losses join the map loss")
    # The other [SEG] still learn text and map, which is cheap.
    masks_per_step: NonNegativeInt = Field(default=0, description="at most so many random [SEG] make a mask; 0: all")
    false_premise: Share = Field(default=0.4, description="of segmentation questions, those whose object is not there")
    plain: Share = Field(default=0.15, description="of questions, those that are answered in words")
    strange: float = Field(default=0.0, ge=0, le=0.5, description="of absent classes, those that are words of no class")
    # Colours are asked for in these scenes only.
    tinted: Share = Field(default=0.45, description="of scenes, those in which every object is recoloured")
    next_turn: Share = Field(default=0.1, description="of steps, those with conversations of two turns")
    new_wordings: Share = Field(default=0.0, description="of questions, those worded by the wide template banks")
    kinds: dict[str, float] = Field(default_factory=dict, description="weights by kind of question, if not the default")
    prompt: Prompt = Field(default="both", description="what prompts the mask decoder")


class FinetuningStageConfig(ScoredStageConfig):
    """A trained or base model, trained on with LoRA, on the field's data sets."""

    kind: Literal["mixture"]
    optimizer: Optimizer = Field(default="adamw", description="AdamW for all, or Muon for matrices")
    schedule: Schedule = Field(default="linear", description="then down to 2% (cosine) or 0 (linear)")
    start: str = Field(min_length=1, description='model, adapter, "embedded", or earlier stage; with sam: a LLaVA-1.5')
    sam: str | None = Field(default=None, description="folder, hub id or .pth file of a SAM: joins two base models")
    family: Family | None = Field(default=None, description="what the model becomes; by default what the start is")
    vision_tower: str | None = Field(default=None, description="CLIP tower, if not where the weights' config.json says")
    ratio: str = Field(description="whole numbers, one for each of `data.mixture.KINDS`")
    data_sets: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="by kind; by default all on disk")
    questions: int = Field(default=3, gt=0, le=64, description="the most questions asked about an image")
    max_broken: NonNegativeInt = Field(default=100, description="unreadable records skipped before the run stops")
    # Longer conversations lose their last rounds.
    max_tokens: int = Field(default=512, ge=32, description="of a conversation, without the image's tokens")
    lora_rank: int = Field(default=8, ge=0, le=4096, description="of the language model's LoRA; 0: none")
    lora_alpha: int = Field(default=16, gt=0, le=100_000)
    lora_dropout: Decay = 0.05
    lora_targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    trained: tuple[TrainedPart, ...] = Field(
        default=("lm_head", "embed_tokens", "mask_decoder", "seg_projection"), description="parts trained whole"
    )
    points: dict[str, Any] = Field(default_factory=dict, description="of `PointConfig`, instead of the weights' own")
    prompt: Prompt = Field(default="both", description="what prompts the mask decoder")
    text_loss_weight: NonNegativeFloat = 1.0
    bce_loss_weight: NonNegativeFloat = 2.0
    dice_loss_weight: NonNegativeFloat = 0.5
    map_loss_weight: NonNegativeFloat = 0.0
    pack: bool = Field(default=True, description="questions of an image share one row, behind its tokens")
    gradient_checkpointing: bool = Field(default=True, description="the layers run again in the backward pass")
    cache: bool = Field(default=False, description="keep the frozen encoders' outputs on disk")
    cache_gb: PositiveFloat = Field(default=100.0, description="limit of the cache's size")
    validate_on: tuple[str, ...] = Field(default=(), description="benchmarks, such as reasonseg/val")
    validate_images: NonNegativeInt = Field(default=0, description="the most images of each benchmark; 0: all")
    validate_protocol: Protocol | None = Field(default=None, description="by default as each benchmark is published")
    best: Literal["giou", "ciou"] = Field(default="giou", description="what decides, as a mean over validate_on")

    @field_validator("ratio", mode="before")
    @classmethod
    def _check_ratio(cls, value: Any) -> Any:
        if not isinstance(value, str):  # YAML takes 10:1:1 for a number to the base of 60
            raise ValueError('write it in quotes, such as "10:1:1:1:1:10"')
        try:
            parse_ratio(value)
        except ReadsegError as error:  # pydantic wants a ValueError
            raise ValueError(str(error)) from error
        return value

    @field_validator("points")
    @classmethod
    def _check_points(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            from_dict(PointConfig, value)
        except TypeError as error:
            raise ValueError(f"a value is of a wrong type ({error})") from error
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.validate_every and not self.validate_on:
            raise ValueError("validate_every needs validate_on, the benchmarks to score")
        if self.patience and not self.validate_every:
            raise ValueError("patience needs validate_every")
        if not self.lora_rank and not self.trained:
            raise ValueError("nothing would be trained: lora_rank is 0 and trained is empty")
        if self.vision_tower is not None and self.start == "embedded":
            raise ValueError("the embedded model has its own vision tower: leave out vision_tower")
        return self


AnyStageConfig = Annotated[
    MaskStageConfig | VisionStageConfig | ReadStageConfig | FinetuningStageConfig, Field(discriminator="kind")
]


class TrainConfig(BaseModel):
    """A recipe: a seed and its stages, each of which starts from the weights of those before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0, lt=2**53)
    vocabulary: int = Field(default=1400, ge=300)
    stages: tuple[AnyStageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if taken := sorted(_RESERVED_NAMES & set(names)):
            raise ValueError(f"no stage can be called {taken[0]!r}: that folder of the run holds something else")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two stages are called {twice[0]!r}: each has a folder of its name")
        for index, stage in enumerate(self.stages):
            if isinstance(stage, FinetuningStageConfig) and stage.start in names[index:]:
                raise ValueError(f"stage {stage.name!r} starts from {stage.start!r}, which does not come before it")
        return self


def load_recipe(name_or_path: str, changes: Sequence[str] = ()) -> TrainConfig:
    """A preset by its name (``tiny``) or a YAML file by its path, with changed settings.

    A change is "SETTING=VALUE" for every stage that has it, or "STAGE.SETTING=VALUE"; "seed" and "vocabulary" are the
    recipe's. Values are written as in YAML.
    """
    name = f"recipe {name_or_path}"
    recipe = _validated(_parse_yaml(_recipe_text(name_or_path), name_or_path), name)
    if changes:
        plain = recipe.model_dump()
        for change in changes:
            _apply_change(plain, change)
        recipe = _validated(plain, name)
    return recipe


def _recipe_text(name_or_path: str) -> str:
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        presets = {preset.stem: preset for preset in (Path(__file__).parents[1] / "presets").glob("*.yaml")}
        if name_or_path not in presets:
            known = ", ".join(sorted(presets))
            raise ReadsegError(f"no preset {name_or_path!r}: expected one of {known}, or a path to a .yaml file")
        path = presets[name_or_path]
    if not path.is_file():
        raise ReadsegError(f"no recipe at {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReadsegError(f"{name_or_path} is not UTF-8 text: expected a recipe in YAML") from error


def _apply_change(recipe: dict[str, Any], change: str) -> None:
    """Replaces a setting in a recipe's plain data, as `load_recipe` says."""
    name, equals, text = change.partition("=")
    stage_name, _, setting = name.strip().rpartition(".")
    if not equals or not setting:
        raise ReadsegError(f"{change!r}: expected SETTING=VALUE or STAGE.SETTING=VALUE, such as steps=1000")
    value = _parse_yaml(text, f"{change!r:.100}: the value")
    if not stage_name and setting in ("seed", "vocabulary"):
        recipe[setting] = value
        return
    settings = sorted({name for stage in recipe["stages"] for name in stage} - {"kind", "name"})
    stages = [stage for stage in recipe["stages"] if stage_name in ("", stage["name"]) and setting in stage]
    if setting not in settings or not stages:
        names = ", ".join(stage["name"] for stage in recipe["stages"])
        raise ReadsegError(f"{change!r}: no stage has it; stages are {names}, settings {', '.join(settings)}")
    for stage in stages:
        stage[setting] = value


def with_start(recipe: TrainConfig, start: str | None, sam: str | None = None) -> TrainConfig:
    """A recipe that starts from other weights; stages that start from an earlier one stay as they are."""
    changes = {name: value for name, value in (("start", start), ("sam", sam)) if value is not None}
    if not changes:
        return recipe
    options = f"--{', --'.join(changes)}"
    names = {stage.name for stage in recipe.stages}
    plain = recipe.model_dump()
    stages = [stage for stage in plain["stages"] if stage["kind"] == "mixture" and stage["start"] not in names]
    if not stages:
        raise ReadsegError(f"{options}: no stage of this recipe starts from trained weights")
    for stage in stages:
        stage.update(changes)
    return _validated(plain, options)


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates, thousands of digits, or of brackets
        raise ReadsegError(f"{name} is not YAML: {' '.join(str(error).split())[:300]}") from error


def _validated(values: Any, name: str) -> TrainConfig:
    """A recipe from plain data; an error names each setting that is wrong."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        # Where one stage is wrong, pydantic adds that there are then no stages.
        deeper = [e for e in errors if e["loc"] != ("stages",) or len(errors) == 1]
        messages = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in deeper)
        raise ReadsegError(f"{name}: {messages}") from error
