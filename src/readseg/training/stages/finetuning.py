"""Training as published: a released or base model goes on with LoRA, on the field's data sets.

The vision tower, the projector and SAM's encoders are frozen: their outputs may be cached. The questions on an image
may be packed behind its tokens. Both change the cost and not the result. Masks are in the size of their image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from readseg.checkpoints.adapters import Base, fingerprint, save_adapter
from readseg.checkpoints.checkpoint import Checkpoint, build
from readseg.checkpoints.load import digest, quiet_libraries
from readseg.core.io import processes
from readseg.core.token_grid import cell_coverage
from readseg.core.types import Turn
from readseg.data.mixture import BrokenRecords, Mixture, MixtureItem, parse_ratio
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, open_benchmark
from readseg.evaluation.report import summarise
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from readseg.model.config import ReadConfig
from readseg.model.families import FAMILIES
from readseg.model.mask_prompts import full_precision
from readseg.model.modeling import ReadModel
from readseg.model.packing import pack
from readseg.model.processing import ReadProcessor
from readseg.training.config import FinetuningStageConfig, TrainedPart
from readseg.training.feature_cache import FeatureCache, image_digest

PARTS: dict[TrainedPart, str] = {
    "lm_head": "lmm.lm_head",
    "embed_tokens": "lmm.model.language_model.embed_tokens",
    "mask_decoder": "sam.mask_decoder",
    "seg_projection": "seg_projection",
    "projector": "lmm.model.multi_modal_projector",
}  # where the parts that can be trained whole are in `ReadModel`


def open_mixture(options: FinetuningStageConfig, data: Path, seed: int) -> Mixture:
    """What a stage draws from."""
    ratio, data_sets = parse_ratio(options.ratio), options.data_sets or None
    return Mixture(data, ratio, data_sets=data_sets, seed=seed, questions=options.questions)


def open_benchmarks(options: FinetuningStageConfig, data: Path) -> list[Benchmark]:
    """What a stage is scored on while it trains; opened before it begins, so that a wrong name is known at once."""
    names = options.validate_on if options.validate_every else ()
    return [open_benchmark(data, name, options.validate_protocol) for name in names]


def trained_config(config: ReadConfig, options: FinetuningStageConfig) -> ReadConfig:
    """The configuration of the model that a stage makes: that of its start, with the stage's settings."""
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


def freeze_and_add_lora(model: ReadModel, options: FinetuningStageConfig, *, seed: int = 0) -> Any:
    """Freezes a model, also one on "meta", puts LoRA into it, returns its config, thaws what is trained whole."""
    model.requires_grad_(False)
    settings = None
    if options.lora_rank:
        language = model.lmm.model.language_model
        known = {name.rpartition(".")[2] for name, layer in language.named_modules() if isinstance(layer, nn.Linear)}
        if unknown := sorted(set(options.lora_targets) - known):
            missing, names = ", ".join(unknown), ", ".join(sorted(known))
            raise ReadsegError(f"lora_targets: the language model has no layer {missing}; it has {names}")
        with quiet_libraries():  # peft takes seconds to import, and speaks of libraries that nobody asked for
            from peft import LoraConfig, inject_adapter_in_model
        settings = LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=rf"lmm\.model\.language_model\..*\.({'|'.join(sorted(options.lora_targets))})",
            bias="none",
        )
        on_meta = model.device.type == "meta"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, model, low_cpu_mem_usage=on_meta)
    for part in options.trained:
        model.get_submodule(PARTS[part]).requires_grad_(True)
    if options.map_loss_weight:
        model.map_bias.requires_grad_(True)
    else:  # a parameter without an axis cannot be sharded over GPUs
        bias = model.map_bias.detach()
        del model.map_bias
        model.register_buffer("map_bias", bias)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return settings


@dataclass(frozen=True)
class EncodedConversation:
    """Ids and labels of a conversation behind the prefix, and the masks of its [SEG], uint8 (H, W) each."""

    ids: list[int]
    labels: list[int]
    masks: list[np.ndarray]
    turns: list[Turn]


class Collator:
    """Draws of a mixture as tensors: conversations as rows, packed or not, with the masks of their [SEG]."""

    def __init__(
        self,
        mixture: Mixture,
        processor: ReadProcessor,
        options: FinetuningStageConfig,
        seed: int,
        cache: tuple[FeatureCache, str] | None = None,  # with the digest of the encoders that it holds outputs of
    ) -> None:
        self.mixture, self.processor, self.options, self.seed, self.cache = mixture, processor, options, seed, cache
        self.skipped = BrokenRecords(lambda text: warnings.warn(text, UserWarning, stacklevel=3), options.max_broken)
        self.prefix = processor.prefix_ids()

    def draw(self, number: int) -> list[MixtureItem]:
        """The images of a batch with what is asked about them."""
        count = self.options.images_per_step
        items = [self.mixture.draw(number * count + k) for k in range(count)]
        for item in items:
            for message in item.skipped:
                self.skipped.add(message)
        return items

    def batch(self, number: int) -> dict[str, Any]:
        """What `FinetuningStage.forward` takes; `number` counts over all steps, accumulation and processes."""
        items = self.draw(number)
        images = [Image.fromarray(np.asarray(item.sample.image)) for item in items]
        frames = tuple(self.processor.frame(image) for image in images)
        rows = [self.conversations(item) for item in items]
        masks = [torch.from_numpy(mask) for row in rows for conversation in row for mask in conversation.masks]
        # Dropout must not depend on how many processes or interruptions came before.
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        owners, encoded = list(range(len(rows))), [[(each.ids, each.labels) for each in row] for row in rows]
        if not self.options.pack:  # alone in its row, a conversation sees nothing of the padding behind it
            owners = [image for image, row in enumerate(rows) for _ in row]
            encoded = [[pair] for row in encoded for pair in row]
        pad = self.processor.config.lmm_config.text_config.pad_token_id
        batch = pack(self.prefix, encoded, pad)._asdict()
        batch |= {"frames": frames, "masks": masks, "seed": seed, "row_images": torch.tensor(owners)}
        if not self.options.pack:
            batch["layout"] = None
        if self.options.map_loss_weight:
            grid = round(self.processor.config.num_image_tokens**0.5)
            mask_frames = [frame for frame, row in zip(frames, rows, strict=True) for each in row for _ in each.masks]
            cells = [
                cell_coverage(mask[None].numpy() == 1, grid, frame.lmm_box).reshape(1, -1)
                for mask, frame in zip(masks, mask_frames, strict=True)
            ]
            batch["coverage"] = torch.from_numpy(np.concatenate([np.zeros((0, grid * grid), np.float32), *cells]))
        return batch | {"images": [self._encoder_inputs(image) for image in images]}

    def conversations(self, item: MixtureItem) -> list[EncodedConversation]:
        """The conversations about an image, the longest first, so that packing wastes least.

        One that is too long loses its last rounds; of a single question nothing is left, it counts as a broken record.
        """
        turns = list(item.sample.turns)
        conversations = []
        for part in [turns] if item.dialogue else [[turn] for turn in turns]:
            if (conversation := self._encode(part)) is not None:
                conversations.append(conversation)
            else:
                question = f"{item.data_set}, {item.sample.name}: {part[0].question[:60]!r}"
                self.skipped.add(f"{question} and its answer have more than max_tokens, {self.options.max_tokens}")
        conversations.sort(key=lambda conversation: -len(conversation.ids))
        return conversations or [EncodedConversation([], [], [], [])]

    def _encode(self, turns: list[Turn]) -> EncodedConversation | None:
        start, seg = len(self.prefix), self.processor.config.seg_token_id
        for length in range(len(turns), 0, -1):
            kept = turns[:length]
            ids, labels = self.processor.encode(kept)
            if len(ids) - start <= self.options.max_tokens:
                masks = [mask for turn in kept for mask in turn.masks]
                if ids.count(seg) != len(masks):
                    raise ReadsegError(f"{kept[0].question!r}: {ids.count(seg)} [SEG] for {len(masks)} masks.")
                return EncodedConversation(ids[start:], labels[start:], masks, kept)
        return None

    def _encoder_inputs(self, image: Image.Image) -> dict[str, Any]:
        """The encoders' outputs of an image, where they are cached; else the pixels that they take."""
        key = None
        if self.cache is not None:
            features, encoders = self.cache
            key = f"{encoders}-{image_digest(image)}"
            config, tensors = self.processor.config, features.get(key) or {}
            side = config.mask_size // config.mask_config.vision_config.patch_size
            dtype = torch.bfloat16 if self.options.use_bf16() else torch.float32
            expected = {
                "features": ((config.num_image_tokens, config.lmm_config.vision_config.hidden_size), dtype),
                "embeddings": ((config.mask_config.vision_config.output_channels, side, side), dtype),
            }
            if {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == expected:
                return {"key": key, **tensors}
        pixels, mask_pixels = self.processor.lmm_pixels(image), self.processor.mask_pixels(image)
        return {"key": key, "pixels": pixels, "mask_pixels": mask_pixels}


class FinetuningStage(nn.Module):
    """Trains LoRA, output layer, embeddings, the [SEG] projection and the mask decoder on a mixture of data sets."""

    uses_all = True
    rate_factors: Mapping[str, float] = {}

    def __init__(
        self, checkpoint: Checkpoint, base: Base, options: FinetuningStageConfig, seed: int, data: Path, cache: Path
    ) -> None:
        super().__init__()
        self.options, self.base = options, base
        self.fingerprint = fingerprint(checkpoint.weights)
        checkpoint = replace(checkpoint, config=trained_config(checkpoint.config, options))
        # Frozen weights are stored as they are multiplied; those that are trained are float32.
        dtype = torch.bfloat16 if options.use_bf16() else torch.float32
        with quiet_libraries():
            self.model, self.processor = build(checkpoint, dtype=dtype)
        self.lora = freeze_and_add_lora(self.model, options, seed=seed)
        if options.gradient_checkpointing:
            language = self.model.lmm.model.language_model
            language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        used = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
        self.cache = FeatureCache(cache, (options.cache_gb * 1e9 - used) / processes().num_processes)
        features = (self.cache, self._encoders_digest()) if options.cache else None
        self.collator = Collator(open_mixture(options, data, seed), self.processor, options, seed, features)
        self.benchmarks = open_benchmarks(options, data)

    def identity(self) -> dict[str, Any]:
        """What a run depends on beside its settings: the weights that it starts from, and the data, by their counts."""
        entries = {part.data_set: part.entries for part in self.collator.mixture.sources}
        return {"starts from": self.fingerprint, "draws from": entries}

    def batch(self, number: int, rank: int, world: int) -> dict[str, Any]:
        """The batch of a step, and of its part where gradients accumulate, on one process."""
        return self.collator.batch(number * world + rank)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars: the loss of `ReadModel.forward`, and its parts."""
        # Of the batch alone: the same dropout in a run that was interrupted, and on any number of processes.
        torch.manual_seed(batch["seed"])
        with full_precision(self.model.device):  # they are stored as they are multiplied, on every device
            features, embeddings = self._encoder_outputs(batch["images"])
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
    def _encoder_outputs(self, images: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Patch states (I, N, d) and mask embeddings (I, C, h, w), from the cache or from the frozen encoders."""
        outputs = []  # one by one: what comes out must not depend on which others were in the cache
        for image in images:
            if "features" in image:
                outputs.append(image)
                continue
            tensors = {
                "features": self.model.encode_patches(image["pixels"][None])[0],
                "embeddings": self.model.embed_masks_image(image["mask_pixels"][None])[0],
            }
            if image["key"] is not None:
                self.cache.put(image["key"], tensors)
            outputs.append(tensors)
        features, embeddings = ([output[name] for output in outputs] for name in ("features", "embeddings"))
        return torch.stack(features), torch.stack([embedding.float() for embedding in embeddings])

    def _encoders_digest(self) -> str:
        """Of the frozen encoders, and of how images are shown to them."""
        config = self.model.config
        encoders = (self.model.lmm.model.vision_tower, self.model.sam.vision_encoder)
        return f"{digest(encoders)}-{config.view}-{config.lmm_config.vision_feature_layer}"

    def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
        """The score that decides, higher is better, and all scores by benchmark; evaluation's own code and protocol."""
        segmenter = Segmenter(self.model, self.processor, cached_images=1)
        numbers, deciding = {}, []
        try:
            for benchmark in self.benchmarks:
                name, limit = benchmark.name, self.options.validate_images or None
                scores = summarise(evaluate(segmenter, benchmark, rank=rank, world=world, limit=limit))
                deciding.append(scores[self.options.best].value)
                for column in ("giou", "ciou", "answered", "refused"):
                    value = scores[column].value
                    if not math.isnan(value):  # it is where nothing was counted
                        numbers[f"{name} {column}"] = value
        finally:
            self.train()
        return sum(deciding) / len(deciding), numbers

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what was trained as an adapter; the folder is replaced where it exists."""
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
