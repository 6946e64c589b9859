"""Draws of the mixture as tensors: conversations as rows, packed or not, with the masks of their [SEG].

A batch is a function of its number: no order is remembered, and nothing of the model but its tokenizer and its sizes is
needed. Masks are in the size of their image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from readseg.core.token_grid import cell_coverage
from readseg.data.mixture import Drawn, Mixture, Skipped
from readseg.data.types import Turn as SampleTurn
from readseg.errors import ReadsegError
from readseg.model.packing import pack
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import Turn
from readseg.training.config import FinetuningStageConfig
from readseg.training.feature_cache import image_digest, look_up


@dataclass(frozen=True)
class Row:
    """One conversation: ids and labels behind the prefix, and the masks of its [SEG], uint8 (H, W) each."""

    ids: list[int]
    labels: list[int]
    masks: list[np.ndarray]
    turns: list[SampleTurn]


class Batches:
    """Batches of a mixture.

    Args:
        mixture: what is drawn from.
        processor: of the model.
        options: of the stage.
        seed: of the recipe; with the number of a batch it makes the batch's own seed, for dropout.
        cache: where features of images may lie, and the digest of the encoders that they are of; None without.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: ReadProcessor,
        options: FinetuningStageConfig,
        seed: int,
        cache: tuple[Path, str] | None = None,
    ) -> None:
        self.mixture, self.processor, self.options, self.seed, self.cache = mixture, processor, options, seed, cache
        self.skipped = Skipped(lambda message: warnings.warn(message, UserWarning, stacklevel=4), options.max_broken)
        self.prefix = processor.prefix_ids()

    def draw(self, number: int) -> list[Drawn]:
        """The images of a batch with what is asked about them."""
        count = self.options.images_per_step
        drawn = [self.mixture.draw(number * count + k) for k in range(count)]
        for one in drawn:
            self.skipped.add(one)
        return drawn

    def batch(self, number: int) -> dict[str, Any]:
        """What `FinetuningStage.forward` takes; `number` counts over all steps, accumulation and processes.

        Raises:
            ReadsegError: too many records that cannot be read.
        """
        drawn = self.draw(number)
        images = [Image.fromarray(np.asarray(one.sample.image)) for one in drawn]
        frames = tuple(self.processor.frame(image) for image in images)
        rows = [self.rows(one) for one in drawn]
        masks = [torch.from_numpy(mask) for own in rows for row in own for mask in row.masks]
        batch = self._text(rows) | {"frames": frames, "masks": masks, "seed": _seed(self.seed, number)}
        if self.options.map_loss_weight:
            grid = round(self.processor.config.num_image_tokens**0.5)
            owners = [frame for frame, own in zip(frames, rows, strict=True) for row in own for _ in row.masks]
            cells = [
                cell_coverage(mask[None].numpy() == 1, grid, frame.lmm_box).reshape(1, -1)
                for mask, frame in zip(masks, owners, strict=True)
            ]
            batch["coverage"] = torch.from_numpy(np.concatenate([np.zeros((0, grid * grid), np.float32), *cells]))
        return batch | {"images": [self._seen(image) for image in images]}

    def rows(self, drawn: Drawn) -> list[Row]:
        """The conversations about an image, the longest first, so that packing wastes least.

        A conversation that is too long loses its last rounds: a [SEG] never goes without its mask, or a mask without
        its [SEG]. Of a single question that is too long nothing is left; that is told like a broken record.
        """
        turns = list(drawn.sample.turns)
        conversations = [turns] if drawn.dialogue else [[turn] for turn in turns]
        rows = []
        for own in conversations:
            if (row := self._row(own)) is not None:
                rows.append(row)
            else:
                said = f"{drawn.data_set}, {drawn.sample.name}: {own[0].question[:60]!r}"
                self.skipped.count_in(f"{said} and its answer have more than max_tokens, {self.options.max_tokens}")
        return sorted(rows, key=lambda row: -len(row.ids)) or [Row([], [], [], [])]

    def _row(self, turns: list[SampleTurn]) -> Row | None:
        for kept in range(len(turns), 0, -1):
            part = turns[:kept]
            ids, labels = self.processor.encode([Turn(turn.question, turn.answer) for turn in part])
            start = len(self.prefix)
            if len(ids) - start <= self.options.max_tokens:
                masks = [mask for turn in part for mask in turn.masks]
                seg = self.processor.config.seg_token_id
                if ids.count(seg) != len(masks):
                    raise ReadsegError(f"{part[0].question!r}: {ids.count(seg)} [SEG] for {len(masks)} masks.")
                return Row(ids[start:], labels[start:], masks, part)
        return None

    def _text(self, rows: list[list[Row]]) -> dict[str, Any]:
        """The conversations about each image in one row, or each in a row of its own, padded on the right.

        Alone in its row, a conversation needs no layout: a causal model's token sees nothing of the padding behind it.
        """
        pack_them = self.options.pack
        groups = rows if pack_them else [[row] for own in rows for row in own]
        owners = range(len(rows)) if pack_them else (image for image, own in enumerate(rows) for _ in own)
        pad = self.processor.config.lmm_config.text_config.pad_token_id
        packed = pack(self.prefix, [[(row.ids, row.labels) for row in group] for group in groups], pad)
        return {
            "input_ids": packed.input_ids,
            "labels": packed.labels,
            "position_ids": packed.position_ids,
            "layout": packed.layout if pack_them else None,
            "row_images": torch.tensor(list(owners), dtype=torch.long),
        }

    def _seen(self, image: Image.Image) -> dict[str, Any]:
        """What the encoders say of an image, where that is known; else what they have to look at."""
        key = None
        if self.cache is not None:
            folder, encoders = self.cache
            key = f"{encoders}-{image_digest(image)}"
            found = look_up(folder, key)
            if found is not None and self._fits(found):
                return {"key": key, **found}
        return {
            "key": key,
            "pixels": self.processor.lmm_pixels(image),
            "mask_pixels": self.processor.mask_pixels(image),
        }

    def _fits(self, found: dict[str, Tensor]) -> bool:
        """Whether what lies in the cache is what the encoders would say, by its names, types and sizes."""
        config = self.processor.config
        side = config.mask_size // config.mask_config.vision_config.patch_size
        expected = {
            "features": (config.num_image_tokens, config.lmm_config.vision_config.hidden_size),
            "embeddings": (config.mask_config.vision_config.output_channels, side, side),
        }
        dtype = torch.bfloat16 if self.options.use_bf16() else torch.float32
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()} == {
            name: (shape, dtype) for name, shape in expected.items()
        }


def _seed(seed: int, number: int) -> int:
    """Of a batch: dropout must not depend on how many processes or interruptions came before."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
