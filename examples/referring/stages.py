"""How the referring model is trained: its CNN alone, then all that stands on it.

Both are stages of `readseg.training.loop`. Scenes, labels, questions, seeds and numbers of steps are those of the
stages "vision" and "read" of the preset that the embedded model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from model import Fused, Packed, Referrer, ReferringConfig, build_cnn, pack_questions, question_ids
from readseg.checkpoints.load import digest
from readseg.core.masks import union
from readseg.core.token_grid import cell_coverage
from readseg.model import losses
from readseg.model.mask_prompts import Points, full_precision
from readseg.model.processing import ReadProcessor
from readseg.training.config import ReadStageConfig, VisionStageConfig
from readseg.training.feature_cache import FeatureCache
from readseg.training.stages.pretraining import TOKEN_ATTRIBUTES, initialise, vision_batch, vision_heads, vision_losses
from readseg.training.stages.read import sample_scene_batch


class CnnStage(nn.Module):
    """The CNN alone: each cell of its last map says what it shows. What the vision tower of the embedded model learns.

    loss = CE(class) + 0.5 CE(tint) + 2 L1(box), as `training.stages.pretraining.VisionStage`; a box is
    told from the centre of its cell, because a convolution does not know where it is.
    """

    uses_all = True
    rate_factors: Mapping[str, float] = {}

    def __init__(self, processor: ReadProcessor, sizes: ReferringConfig, options: VisionStageConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cnn = build_cnn(sizes)
        width, self.grid = sizes.channels[-1], sizes.grid
        self.heads = vision_heads(width)
        places = (torch.arange(self.grid) + 0.5) / self.grid
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        centres = torch.stack([columns, rows], dim=-1).flatten(0, 1)
        self.register_buffer("centres", centres.repeat(1, 2), persistent=False)
        self.processor, self.options = processor, options

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Scenes with what lies under each cell: ``names``, ``tints`` (B, N), ``boxes`` (B, N, 4); -100 left out."""
        first = self.options.first_seed + (step * world + rank) * self.options.images_per_step
        return vision_batch(self.processor, range(first, first + self.options.images_per_step), self.grid)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the accuracy of class and tint over the cells that show a thing."""
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last)
        states = self.cnn(pixels).feature_maps[-1].flatten(2).transpose(1, 2)
        return vision_losses(self.heads, states, batch, self.centres)


class FusionStage(nn.Module):
    """All that stands on the CNN, and the decoder of SAM, on the questions that the embedded model learns from last.

    The CNN and the encoders of SAM are frozen: what they say of an image is cached. Questions answered in words have
    no mask and are left out; a question with two targets has one mask here, their union.

    loss = BCE(present) + w_map * map loss + 2 BCE + 0.5 DICE of each head's masks + w_sight * what the cells show

    Args:
        processor: tokenizer and config of the embedded model.
        sizes: of the model.
        options: the recipe's last stage: what is drawn, and all weights and rates.
        seed: of the initial weights and of the questions.
        sam: weights of the mask model, as stage 0 left it.
        cnn: weights of the CNN, from `CnnStage`.
        cache: folder for the frozen encoders' features.
    """

    uses_all = False

    def __init__(
        self,
        processor: ReadProcessor,
        sizes: ReferringConfig,
        options: ReadStageConfig,
        seed: int,
        sam: dict[str, Tensor],
        cnn: dict[str, Tensor],
        cache: Path,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = processor.config
        self.model = Referrer(sizes, config.mask_config, config.points)
        initialise(self.model)
        self.model.cnn.load_state_dict(cnn)
        self.model.sam.load_state_dict(sam)
        self.sight = nn.ModuleDict(
            {"heads": nn.ModuleDict({n: nn.Linear(sizes.width, k) for n, k in TOKEN_ATTRIBUTES.items()})}
        )
        initialise(self.sight)
        for module in (self.model.cnn, self.model.sam):
            module.requires_grad_(False)
        self.model.sam.mask_decoder.requires_grad_(True)
        self.processor, self.options, self.seed, self.cache = processor, options, seed, FeatureCache(cache)
        self.rate_factors: Mapping[str, float] = {"model.sam.": options.mask_decoder_rate}  # trained already
        self.weights = config
        self.key = digest((self.model.cnn, self.model.sam.vision_encoder))

    def train(self, mode: bool = True) -> FusionStage:
        """The CNN is frozen: its batch norms keep the statistics that it was trained with."""
        super().train(mode)
        self.model.cnn.eval()
        return self

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        """Images of one cached group, with the questions of this step."""
        options, sizes = self.options, self.model.config
        sampled = sample_scene_batch(options, self.seed, step, rank, world)
        images = [Image.fromarray(np.asarray(sample.image)) for sample in sampled.samples]
        key = f"{self.key}-{sampled.first_seed}-{options.images_per_step}"
        turns = [[turn for turn in sample.turns if turn.present is not None] for sample in sampled.samples]
        rows = [[question_ids(self.processor.tokenizer, turn.question) for turn in row] for row in turns]
        packed = pack_questions(rows, self.processor.config.seg_token_id, sizes.longest)
        flat = [turn for row in turns for turn in row]
        there = [number for number, turn in enumerate(flat) if turn.present]
        masks = [union([mask == 1 for mask in flat[number].masks], flat[number].masks[0].shape) for number in there]
        wanted = options.masks_per_step or len(there)
        warm = step >= options.mask_warmup_steps
        return packed._asdict() | {
            "features": self.cache.get_or_compute(key, lambda: self._encode(images)),
            "frames": tuple(self.processor.frame(image) for image in images),
            "present": torch.tensor([float(bool(turn.present)) for turn in flat]),
            "there": torch.tensor(there, dtype=torch.long),
            "masks": [torch.from_numpy(mask.astype(np.uint8)) for mask in masks],
            "coverage": _coverage(masks, sizes.grid).flatten(1),
            "fine": (_coverage(masks, 8 * sizes.grid) > 0.5).to(torch.uint8),
            "decoded": torch.from_numpy(np.sort(sampled.rng.permutation(len(there))[: wanted if warm else 0])),
            "warm": warm,
            "sight": sampled.cell_labels(sizes.grid),
        }

    @torch.no_grad()
    def _encode(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """The frozen encoders' words: the CNN's maps and the mask model's embeddings."""
        pixels = torch.stack([self.processor.lmm_pixels(image) for image in images])
        mask_pixels = torch.stack([self.processor.mask_pixels(image) for image in images])
        device = self.model.map_bias.device
        return self.model.look(pixels.to(device)) | {
            "embeddings": self.model.sam.get_image_embeddings(mask_pixels.to(device))
        }

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars: the loss, its parts, how often the map's peak lies on the target, and presence is told rightly."""
        model, weights, options = self.model, self.weights, self.options
        features = {name: value.float() for name, value in batch["features"].items()}
        h_img = model.image_tokens(features["stride16"])
        fused = model.fuse(Packed(*(batch[name] for name in Packed._fields)), h_img)
        there, images = batch["there"], batch["images"][batch["there"]]
        found = Fused(*(value[there] for value in fused))
        count = max(1, len(batch["present"]))
        presence = F.binary_cross_entropy_with_logits(fused.present, batch["present"], reduction="sum") / count
        map_loss = losses.map_loss(found.scores, batch["coverage"], model.map_bias, model.config.width)
        peak = batch["coverage"].gather(1, found.scores.argmax(1, keepdim=True))
        loss = presence + options.map_loss_weight * map_loss
        values = {
            "present": presence,
            "map": map_loss,
            "hit": (peak > 0.3).float().sum() / max(1, len(there)),
            "told": ((fused.present > 0) == (batch["present"] > 0.5)).float().sum() / count,
        }
        if batch["warm"] and len(there):
            points = model.find_points(found.scores, images, batch["frames"])
            fine_map = model.fine_map(features["stride4"], features["stride8"], h_img)
            by_head = {
                "sam": self._sam_losses(found, points, images, features["embeddings"], batch),
                "features": _feature_losses(
                    model.feature_masks(found, points, images, fine_map, batch["frames"]), batch["fine"]
                ),
            }
            for name, parts in by_head.items():
                loss = loss + weights.bce_loss_weight * parts.bce + weights.dice_loss_weight * parts.dice
                values |= {f"{name}_bce": parts.bce, f"{name}_dice": parts.dice}
        if options.sight_loss_weight:
            heads = cast(nn.ModuleDict, self.sight["heads"])
            told = [
                F.cross_entropy(head(h_img).flatten(0, 1).float(), batch["sight"][name].flatten())
                for name, head in heads.items()
            ]
            values["sight"] = torch.stack(told).mean()
            loss = loss + options.sight_loss_weight * values["sight"]
        return {"loss": loss} | {name: value.detach() for name, value in values.items()}

    def _sam_losses(
        self, found: Fused, points: list[Points], images: Tensor, embeddings: Tensor, batch: dict[str, Any]
    ) -> losses.MaskLosses:
        """Those of the masks that SAM's decoder makes, of the questions drawn by lot, at the size of their image."""
        chosen = batch["decoded"]
        low_res = self.model.sam_masks(
            found.h_seg[chosen], [points[k] for k in chosen.tolist()], images[chosen], embeddings, batch["frames"]
        )
        with full_precision(low_res.device):
            frames = [batch["frames"][image] for image in images[chosen].tolist()]
            logits = [frame.masks_to_image(low[None])[0] for frame, low in zip(frames, low_res, strict=True)]
            return losses.mask_losses(logits, [batch["masks"][k] for k in chosen.tolist()])


def _coverage(masks: list[np.ndarray], side: int) -> Tensor:
    """Share of each cell of a side x side grid that a mask covers: (M, side, side); sizes may differ."""
    cells = [cell_coverage(mask[None], side) for mask in masks]
    return torch.from_numpy(np.concatenate([np.zeros((0, side, side), np.float32), *cells]))


def _feature_losses(logits: Tensor, targets: Tensor) -> losses.MaskLosses:
    """BCE and DICE of logits (M, 4n, 4n) at twice their side, where all masks are of one size."""
    with full_precision(logits.device):
        larger = F.interpolate(logits[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return losses.mask_losses(list(larger), list(targets))
