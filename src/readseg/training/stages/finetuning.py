"""Training as published: a released or base model goes on with LoRA, on the field's data sets.

The vision tower, the projector and SAM's encoders are frozen: what they say of an image may be cached. The questions on
an image may be packed behind its tokens. Both change the cost and not the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from readseg.checkpoints.adapters import Base, fingerprint, save_adapter
from readseg.checkpoints.checkpoint import Checkpoint, build
from readseg.checkpoints.load import digest, quiet_libraries
from readseg.core.processes import processes
from readseg.data.mixture import Mixture, parse_ratio
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, open_benchmark
from readseg.evaluation.report import summarise
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from readseg.model.config import ReadConfig
from readseg.model.families import FAMILIES
from readseg.model.mask_prompts import full_precision
from readseg.training.config import FinetuningStageConfig
from readseg.training.feature_cache import keep
from readseg.training.stages.batches import Batches
from readseg.training.stages.tuning import tune


def mixture_of(options: FinetuningStageConfig, data: Path, seed: int) -> Mixture:
    """What a stage draws from.

    Raises:
        ReadsegError: as `data.mixture.Mixture`.
    """
    return Mixture(
        data,
        parse_ratio(options.ratio),
        data_sets=options.data_sets or None,
        seed=seed,
        questions=options.questions,
    )


def benchmarks_of(options: FinetuningStageConfig, data: Path) -> list[Benchmark]:
    """What a stage is scored on while it trains; opened before it begins, so that a wrong name is known at once.

    Raises:
        ReadsegError: as `evaluation.benchmarks.open_benchmark`.
    """
    names = options.validate_on if options.validate_every else ()
    return [open_benchmark(data, name, options.validate_protocol) for name in names]


def trained_config(config: ReadConfig, options: FinetuningStageConfig) -> ReadConfig:
    """The configuration of the model that a stage makes: that of its start, with what the stage says.

    Raises:
        ReadsegError: settings of points that do not fit the model.
    """
    changed = ReadConfig.from_dict(config.to_dict())
    family = FAMILIES.get(options.family or "")
    if family is not None and changed.family != family.name:
        # Weights in this package's layout say another family than they are to become.
        changed.family = family.name
        changed.conversation = replace(family.conversation, system=changed.conversation.system)
        changed.points = family.points_for(changed.num_image_tokens, changed.lmm_config.text_config.hidden_size)
    try:
        changed.points = replace(changed.points, **options.points)
        changed.check_points(changed.points)
    except ValueError as error:
        raise ReadsegError(f"points: {error}") from error
    changed.prompt = options.prompt
    for name in ("text_loss_weight", "bce_loss_weight", "dice_loss_weight", "map_loss_weight"):
        setattr(changed, name, getattr(options, name))
    if family is not None and changed.released is not None:
        changed.released = dict(changed.released) | {"architectures": [family.architectures[0]]}
    return changed


class FinetuningStage(nn.Module):
    """Trains LoRA, output layer, embeddings, the [SEG] projection and the mask decoder on a mixture of data sets.

    Args:
        checkpoint: where training starts.
        base: how to find that again.
        options: the stage's part of the recipe.
        seed: of the LoRA weights, of dropout and of the draws.
        data: the folder of all data sets.
        cache: folder for what the frozen encoders say; used where the options say so.
    """

    uses_all = True

    def __init__(
        self, checkpoint: Checkpoint, base: Base, options: FinetuningStageConfig, seed: int, data: Path, cache: Path
    ) -> None:
        super().__init__()
        self.options, self.base = options, base
        self.fingerprint = fingerprint(checkpoint.weights)
        checkpoint = replace(checkpoint, config=trained_config(checkpoint.config, options))
        # Frozen weights are stored as they are multiplied; those that are trained are float32 (see `tune`).
        dtype = torch.bfloat16 if options.use_bf16() else torch.float32
        with quiet_libraries():
            self.model, self.processor = build(checkpoint, dtype=dtype)
        self.lora = tune(self.model, options, seed=seed)
        if options.gradient_checkpointing:
            language = self.model.lmm.model.language_model
            language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.cache, self.room = cache, 0.0
        place = None
        if options.cache:
            place = (cache, self._encoders_digest())
            used = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
            self.room = (options.cache_gb * 1e9 - used) / processes().num_processes
        self.batches = Batches(mixture_of(options, data, seed), self.processor, options, seed, place)
        self.benchmarks = benchmarks_of(options, data)

    def identity(self) -> dict[str, Any]:
        """What a run depends on beside its settings: the weights that it starts from, and the data, by their counts."""
        entries = {part.data_set: part.entries for part in self.batches.mixture.parts}
        return {"starts from": self.fingerprint, "draws from": entries}

    def learning_rates(self) -> dict[str, float]:
        """One rate for all."""
        return {}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        """The batch of a step, and of its part where gradients accumulate, on one process: a function of both."""
        return self.batches.batch(step * world + rank)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars: the loss of `ReadModel.forward`, and its parts."""
        # Of the batch alone: the same dropout in a run that was interrupted, and on any number of processes.
        torch.manual_seed(batch["seed"])
        with full_precision(self.model.device):  # they are stored as they are multiplied, on every device
            features, embeddings = self._seen(batch["images"])
        output = self.model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            position_ids=batch["position_ids"],
            layout=batch["layout"],
            row_images=batch["row_images"],
            image_features=self.model.project(features),
            mask_embeddings=embeddings,
            frames=batch["frames"],
            masks=batch["masks"],
            coverage=batch.get("coverage"),
        )
        named = {"text": output.text_loss, "bce": output.bce_loss, "dice": output.dice_loss, "map": output.map_loss}
        return {"loss": output.loss} | {name: loss.detach() for name, loss in named.items() if loss is not None}

    @torch.no_grad()
    def _seen(self, images: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Patch states (I, N, d) and mask embeddings (I, C, h, w), from the cache or from the frozen encoders.

        Images are encoded one by one: what comes out must not depend on which others were in the cache.
        """
        features, embeddings = [], []
        for image in images:
            if "features" not in image:
                found = {
                    "features": self.model.look_at(image["pixels"][None])[0],
                    "embeddings": self.model.embed_masks_image(image["mask_pixels"][None])[0],
                }
                image = found | {"key": image["key"]}
                if image["key"] is not None and self.room > 0:
                    self._keep(image["key"], found)
            features.append(image["features"])
            embeddings.append(image["embeddings"].float())
        return torch.stack(features), torch.stack(embeddings)

    def _keep(self, key: str, found: dict[str, Tensor]) -> None:
        """Into the cache; a disk that is full ends caching, not training."""
        try:
            self.room -= keep(self.cache, key, {name: tensor.detach().cpu() for name, tensor in found.items()})
        except (OSError, SafetensorError) as error:
            self.room = 0.0
            warnings.warn(f"{self.cache}: nothing more is cached: {error}", UserWarning, stacklevel=2)

    def _encoders_digest(self) -> str:
        """Of the frozen encoders, and of how images are shown to them."""
        config = self.model.config
        encoders = (self.model.lmm.model.vision_tower, self.model.sam.vision_encoder)
        return f"{digest(encoders)}-{config.view}-{config.lmm_config.vision_feature_layer}"

    # -- what the loop asks for now and then ---------------------------------------------------------------------

    def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
        """The score that decides, higher is better, and all scores by benchmark; evaluation's own code and protocol.

        Raises:
            ReadsegError: an image or a mask of a benchmark is broken.
        """
        segmenter = Segmenter(self.model, self.processor, cached_images=1)
        numbers, deciding = {}, []
        try:
            for benchmark in self.benchmarks:
                name, limit = benchmark.name, self.options.validate_images or None
                summary = summarise(name, evaluate(segmenter, benchmark, rank=rank, world=world, limit=limit))
                deciding.append(summary.scores()[self.options.best].value)
                for column in ("giou", "ciou", "answered", "refused"):
                    value = summary.scores()[column].value
                    if value == value:  # NaN where nothing was counted
                        numbers[f"{name} {column}"] = value
        finally:
            self.train()
        return sum(deciding) / len(deciding), numbers

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what was trained as an adapter.

        Args:
            state: of this module, whole.
            folder: replaced where it exists.
        """
        trained = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        stored = self.model.dtype if self.options.use_bf16() else torch.float32
        kept = {}
        for name in trained:
            value = state[f"model.{name}"]
            if not torch.isfinite(value).all():
                raise ReadsegError(f"{name} has become no number: nothing is written; choose a lower learning_rate")
            # LoRA's factors are small and stay exact; whole weights go back to the type of their neighbours.
            kept[name] = value if ".lora_" in name else value.to(stored)
        save_adapter(folder, kept, self.processor, self.lora, self.base, self.fingerprint)
