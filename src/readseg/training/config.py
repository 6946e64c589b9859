"""Recipes: what a preset's YAML may say, checked when it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from readseg.core.sasp import PointConfig
from readseg.data.mixture import parse_ratio
from readseg.errors import ReadsegError

# Of a date that there is not, of thousands of digits, of thousands of brackets.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
Trained = Literal["lm_head", "embed_tokens", "mask_decoder", "seg_projection", "projector"]
"""Parts that can be trained whole."""


class StageConfig(BaseModel):
    """What every stage says.

    Attributes:
        name: the stage's folder and label.
        steps: optimiser steps.
        images_per_step: images in a batch, on each process.
        accumulation: batches of a step, on each process; their gradients are averaged.
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up.
        schedule: how the rate falls then, "cosine" (to 2%) or "linear" (to 0).
        optimizer: "muon" for matrices and AdamW for the rest, or "adamw" for all.
        precision: "bf16" autocast, "fp32", or "auto": bf16 where the device multiplies it faster, which are GPUs that
            know it, x86 CPUs with AMX and ARM CPUs with bf16.
        log_every, checkpoint_every: intervals in steps.
        workers: threads that make batches ahead; their number changes no batch.
        ema_decay: of a running mean of the weights, which is then what is validated and kept; 0 for none.
        trackers: "tensorboard" and "wandb", where installed: they get what metrics.jsonl gets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[\w-]+$")
    steps: int = Field(gt=0)
    images_per_step: int = Field(gt=0)
    accumulation: int = Field(default=1, gt=0)
    learning_rate: float = Field(gt=0, le=100)
    warmup_steps: int = Field(default=50, ge=0)
    schedule: Literal["cosine", "linear"] = "cosine"
    optimizer: Literal["muon", "adamw"] = "muon"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    workers: int = Field(default=1, gt=0, le=64)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def use_bf16(self) -> bool:
        """Whether to run under bf16 autocast on this machine."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if torch.cuda.is_available():
            return torch.cuda.is_bf16_supported()
        told = torch.cpu.get_capabilities()
        return torch.backends.mkldnn.is_available() and bool(told.get("amx_bf16") or told.get("bf16"))


class ScoredStageConfig(StageConfig):
    """What the stages say that are scored while they are trained.

    Attributes:
        validate_every: interval in steps; 0 for never.
        patience: stop after so many validations without a better one; 0 for never.
    """

    validate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=0, ge=0)


class SceneStageConfig(StageConfig):
    """What the stages say that draw scenes.

    Attributes:
        first_seed: scenes are drawn from seeds first_seed, first_seed + 1, ...
    """

    first_seed: int = Field(default=1_000_000, ge=1_000_000)


class MaskStageConfig(SceneStageConfig):
    """Stage 0: the mask model alone, prompted by points, clicks and boxes.

    Attributes:
        masks_per_image: prompts drawn on each image.
    """

    kind: Literal["masks"]
    masks_per_image: int = Field(default=6, gt=0)


class VisionStageConfig(SceneStageConfig):
    """Stage 1: the vision tower alone; what lies under each patch. Its heads are dropped afterwards."""

    kind: Literal["vision"]


class ReadStageConfig(SceneStageConfig):
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
        strange: share of the absent classes that are words which no class has; see `scenes.questions.ask`.
        tinted: share of the scenes in which every thing is painted in a tint; only there colours are asked for.
        next_turn: share of the steps whose questions come in conversations of two turns, instead of standing alone.
        new_wordings: share of the questions worded by the extra templates of `readseg.scenes.phrases`.
        kinds: weight of each kind of question; kinds that are absent keep their default.
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
    strange: float = Field(default=0.0, ge=0, le=0.5)
    tinted: float = Field(default=0.45, ge=0, le=1)
    next_turn: float = Field(default=0.1, ge=0, le=1)
    new_wordings: float = Field(default=0.0, ge=0, le=1)
    kinds: dict[str, float] = Field(default_factory=dict)
    prompt: Literal["both", "seg", "points"] = "both"


class FinetuningStageConfig(ScoredStageConfig):
    """A trained or base model, trained on with LoRA, on the field's data sets.

    Attributes:
        start: folder or hub id of a model or an adapter, "embedded", or the name of an earlier stage of the recipe;
            with `sam` the base model LLaVA-1.5.
        sam: folder, hub id or .pth file of a SAM: joins two base models.
        family: of the model that is trained: its words, points and alignment; by default the start's.
        vision_tower: folder or hub id of the CLIP tower, if not where the weights' config.json says.
        ratio: whole numbers, one for each of `data.mixture.KINDS`.
        data_sets: by kind, the data sets to draw from; by default all that are on disk.
        questions: the most questions asked about an image.
        max_broken: records that cannot be read and are passed over, before the run stops.
        max_tokens: the longest conversation, without the image's tokens; longer ones lose their last rounds.
        lora_rank, lora_alpha, lora_dropout, lora_targets: of the language model's LoRA; rank 0 for none.
        trained: what is trained whole.
        points: settings of `core.sasp.PointConfig` that replace those of the weights.
        prompt: what prompts the mask decoder ("both", "seg" or "points").
        text_loss_weight, bce_loss_weight, dice_loss_weight, map_loss_weight: as in `config.ReadConfig`.
        pack: questions of an image share one row, behind its tokens; else each has a row of its own.
        gradient_checkpointing: the language model's layers are run again in the backward pass, to save memory.
        cache: keep what the frozen encoders say of an image on disk.
        cache_gb: the cache grows no further than this.
        validate_on: benchmarks, such as "reasonseg/val", that are scored while training.
        validate_images: the most images of each benchmark; 0 for all.
        validate_protocol: "forced" or "generated"; by default as each benchmark is published.
        best: the score that decides which weights are the best, a mean over `validate_on`.
    """

    kind: Literal["mixture"]
    optimizer: Literal["muon", "adamw"] = "adamw"
    schedule: Literal["cosine", "linear"] = "linear"
    start: str = Field(min_length=1)
    sam: str | None = None
    family: Literal["read", "sesame", "lisa", "gsva", "glamm"] | None = None
    vision_tower: str | None = None
    ratio: str
    data_sets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    questions: int = Field(default=3, gt=0, le=64)
    max_broken: int = Field(default=100, ge=0)
    max_tokens: int = Field(default=512, ge=32)
    lora_rank: int = Field(default=8, ge=0, le=4096)
    lora_alpha: int = Field(default=16, gt=0, le=100_000)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    lora_targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    trained: tuple[Trained, ...] = ("lm_head", "embed_tokens", "mask_decoder", "seg_projection")
    points: dict[str, Any] = Field(default_factory=dict)
    prompt: Literal["both", "seg", "points"] = "both"
    text_loss_weight: float = Field(default=1.0, ge=0)
    bce_loss_weight: float = Field(default=2.0, ge=0)
    dice_loss_weight: float = Field(default=0.5, ge=0)
    map_loss_weight: float = Field(default=0.0, ge=0)
    pack: bool = True
    gradient_checkpointing: bool = True
    cache: bool = False
    cache_gb: float = Field(default=100.0, gt=0)
    validate_on: tuple[str, ...] = ()
    validate_images: int = Field(default=0, ge=0)
    validate_protocol: Literal["forced", "generated"] | None = None
    best: Literal["giou", "ciou"] = "giou"

    @field_validator("ratio", mode="before")
    @classmethod
    def _is_ratio(cls, value: Any) -> str:
        if not isinstance(value, str):  # YAML takes 10:1:1 for a number to the base of 60
            raise ValueError('write it in quotes, such as "10:1:1:1:1:10"')
        return _said(parse_ratio, value)

    @field_validator("points")
    @classmethod
    def _are_points(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            PointConfig.from_dict(value)
        except TypeError as error:
            raise ValueError(f"a value is of a wrong type ({error})") from error
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.validate_every and not self.validate_on:
            raise ValueError("validate_every needs validate_on, the benchmarks to score")
        if self.patience and not self.validate_every:
            raise ValueError("patience needs validate_every")
        if not self.lora_rank and not self.trained:
            raise ValueError("nothing would be trained: lora_rank is 0 and trained is empty")
        if self.vision_tower is not None and self.start == "embedded":
            raise ValueError("the embedded model has its own vision tower: leave out vision_tower")
        return self


def _said(parse: Callable[[str], Any], value: str) -> str:
    """The text, once it is parsed; pydantic wants a ValueError where it cannot be."""
    try:
        parse(value)
    except ReadsegError as error:
        raise ValueError(str(error)) from error
    return value


AnyStageConfig = Annotated[
    MaskStageConfig | VisionStageConfig | ReadStageConfig | FinetuningStageConfig, Field(discriminator="kind")
]


_TAKEN = {"model", "cache"}


class TrainConfig(BaseModel):
    """A recipe: a seed and its stages, each of which starts from the weights of those before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0, lt=2**53)
    vocabulary: int = Field(default=1400, ge=300)
    stages: tuple[AnyStageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = [stage.name for stage in self.stages]
        if taken := sorted(_TAKEN & set(names)):
            raise ValueError(f"no stage can be called {taken[0]!r}: that folder of the run holds something else")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two stages are called {twice[0]!r}: each has a folder of its name")
        for place, stage in enumerate(self.stages):
            if isinstance(stage, FinetuningStageConfig) and stage.start in names[place:]:
                raise ValueError(f"stage {stage.name!r} starts from {stage.start!r}, which does not come before it")
        return self


def load_recipe(name_or_path: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a preset by name (``tiny``) or a YAML file by path.

    Args:
        name_or_path: of the recipe.
        changes: settings to replace, as "SETTING=VALUE" for every stage that has it, or "STAGE.SETTING=VALUE"; "seed"
            is the recipe's. Values are written as in YAML.

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
        recipe = TrainConfig.model_validate(yaml.safe_load(text))
        if changes:
            plain = recipe.model_dump()
            for change in changes:
                _change(plain, change)
            recipe = TrainConfig.model_validate(plain)
    except ValidationError as error:
        raise ReadsegError(f"recipe {name_or_path}: {_lines(error)}") from error
    except _NO_YAML as error:
        raise ReadsegError(f"{name_or_path} is not YAML: {' '.join(str(error).split())[:300]}") from error
    return recipe


def _change(recipe: dict[str, Any], change: str) -> None:
    """Replaces a setting in a recipe's plain data, as `load_recipe` says."""
    name, equals, text = change.partition("=")
    stage_name, _, setting = name.strip().rpartition(".")
    if not equals or not setting:
        raise ReadsegError(f"{change!r}: expected SETTING=VALUE or STAGE.SETTING=VALUE, such as steps=1000")
    try:
        value = yaml.safe_load(text)
    except _NO_YAML as error:
        raise ReadsegError(f"{change!r:.100}: the value is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not stage_name and setting in ("seed", "vocabulary"):
        recipe[setting] = value
        return
    settings = sorted({own for stage in recipe["stages"] for own in stage} - {"kind", "name"})
    meant = [stage for stage in recipe["stages"] if stage_name in ("", stage["name"]) and setting in stage]
    if setting not in settings or not meant:
        stages = ", ".join(stage["name"] for stage in recipe["stages"])
        raise ReadsegError(f"{change!r}: no stage has it; stages are {stages}, settings {', '.join(settings)}")
    for stage in meant:
        stage[setting] = value


def with_start(recipe: TrainConfig, start: str | None, sam: str | None = None) -> TrainConfig:
    """A recipe that starts from other weights; stages that start from an earlier one stay as they are.

    Args:
        recipe: of stages of kind "mixture" among others.
        start: replaces where it starts; None leaves that as it is.
        sam: replaces the mask model of base models.

    Raises:
        ReadsegError: no stage starts from a model.
    """
    given = {name: value for name, value in (("start", start), ("sam", sam)) if value is not None}
    if not given:
        return recipe
    names = {stage.name for stage in recipe.stages}
    plain = recipe.model_dump()
    starts = [stage for stage in plain["stages"] if stage["kind"] == "mixture" and stage["start"] not in names]
    if not starts:
        raise ReadsegError(f"--{', --'.join(given)}: no stage of this recipe starts from trained weights")
    for stage in starts:
        stage.update(given)
    try:
        return TrainConfig.model_validate(plain)
    except ValidationError as error:
        raise ReadsegError(f"--{', --'.join(given)}: {_lines(error)}") from error


def _lines(error: ValidationError) -> str:
    """What is wrong with settings, each by its name."""
    found = error.errors()
    # Where one stage is wrong, pydantic adds that there are then no stages.
    deeper = [e for e in found if e["loc"] != ("stages",) or len(found) == 1]
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in deeper)
