"""Prompts of the mask model: from similarity to points, from points and embeddings to mask logits.

Works on a bare stock `SamModel`, inside `ReadModel` or on its own (points into the original SAM). Points are in image
pixels until a `Frame` takes them to the mask frame, the square that the mask model sees. S prompts, each for one mask
of one of I images; C is the width of the mask model's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import SamModel

from readseg.core import sasp
from readseg.core.frames import Frame
from readseg.core.sasp import PointConfig

NO_MASK_LOGIT = -32.0
"""The logit of every pixel where there is nothing to prompt with; its sigmoid is 1e-14."""


class Points(NamedTuple):
    """The point prompts of one mask: `xy` (P, 2) float32 image pixels, `labels` (P,) 1, 0 or -1. P may be 0."""

    xy: Float[Tensor, "P 2"]
    labels: Int[Tensor, " P"]


def select_points(
    scores: Float[Tensor, "S N"], seg_images: Sequence[int], frames: Sequence[Frame], settings: PointConfig
) -> list[Points]:
    """Similarity as Points for S rows of scores, each on its own image.

    Args:
        scores: (S, N) similarity with the image tokens.
        seg_images: the image of each row, an index into `frames`.
        frames: the I images' frames: where each one's token grid lies.
        settings: how points are made.

    Raises:
        ValueError: what `sasp.points_from_scores` raises, such as `downsample` beyond the grid, or alignment
            "reference" where the grid does not cover the centre crop.
    """
    found: dict[int, Points] = {}
    with full_precision(scores.device):
        for image, rows in _grouped(seg_images):
            frame = frames[image]
            xy, labels, valid = sasp.points_from_scores(scores[rows], frame.hw, settings, box=frame.lmm_box)
            for place, (row, count) in enumerate(zip(rows, valid.sum(-1).tolist(), strict=True)):
                found[row] = Points(xy[place, :count], labels[place, :count])
    return [found[row] for row in range(len(seg_images))]


def embed_prompts(
    sam: SamModel,
    points_xy_mask: Float[Tensor, "B P 2"] | None = None,
    labels: Int[Tensor, "B P"] | None = None,
    boxes_mask: Float[Tensor, "B 4"] | None = None,
    tokens: Float[Tensor, "B T C"] | None = None,
) -> Float[Tensor, "_ K C"]:
    """Sparse prompt tokens, in the order that SAM was trained with, then tokens of our own.

        points ++ SAM's padding point (only where points, and no box, are given) ++ box corners ++ tokens

    Positions are embedded in float32: lower types move points by pixels.

    Args:
        sam: the stock mask model.
        points_xy_mask: (B, P, 2) in the mask frame.
        labels: (B, P), 1 positive, 0 negative, -1 "not a point" (its place is dropped; it is still a token).
        boxes_mask: (B, 4) as x0, y0, x1, y1, in the mask frame.
        tokens: (B, T, C), embeddings such as the projected [SEG].

    Returns:
        (B, K, C) in the type of SAM's mask decoder; (1, 0, C) without any prompt.
    """
    parts = []
    if points_xy_mask is not None or boxes_mask is not None:
        with full_precision(sam.device):
            sparse, _ = sam.prompt_encoder(
                input_points=None if points_xy_mask is None else points_xy_mask.float()[:, None],
                input_labels=None if labels is None else labels[:, None],
                input_boxes=None if boxes_mask is None else boxes_mask.float()[:, None],
                input_masks=None,
            )
        parts.append(sparse[:, 0])
    if tokens is not None:
        parts.append(tokens)
    weight = sam.mask_decoder.iou_token.weight
    if not parts:
        return weight.new_zeros(1, 0, weight.shape[-1])
    return torch.cat([part.to(weight.dtype) for part in parts], dim=1)


def decode_prompts(
    sam: SamModel,
    image_embeddings: Float[Tensor, "_ C h w"],
    sparse: Float[Tensor, "B K C"],
    *,
    multimask: bool = False,
) -> tuple[Float[Tensor, "B M 4*h 4*w"], Float[Tensor, "B M"]]:
    """Mask logits and predicted IoU of B prompts.

    Args:
        sam: the stock mask model.
        image_embeddings: (B, C, h, w), one image for each prompt, or (1, C, h, w) for all.
        sparse: (B, K, C) from `embed_prompts`; K is the same for all, because the decoder has no prompt mask.
        multimask: three candidate masks for each prompt instead of one.

    Returns:
        logits (B, M, 4h, 4w) in the mask frame, and IoU (B, M).
    """
    count = len(sparse)
    if not count:
        candidates = sam.mask_decoder.num_multimask_outputs if multimask else 1
        size = [4 * side for side in image_embeddings.shape[-2:]]
        return sparse.new_zeros(0, candidates, *size), sparse.new_zeros(0, candidates)
    with full_precision(sam.device):
        position = sam.get_image_wide_positional_embeddings().to(image_embeddings.dtype)
    logits, iou = sam.mask_decoder(
        image_embeddings=image_embeddings.expand(count, -1, -1, -1),
        image_positional_embeddings=position.expand(count, -1, -1, -1),
        sparse_prompt_embeddings=sparse[:, None],
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        multimask_output=multimask,
    )
    return logits[:, 0], iou[:, 0]


def masks_from_prompts(
    sam: SamModel,
    points: Sequence[Points],
    tokens: Float[Tensor, "S C"] | None,
    seg_images: Sequence[int],
    mask_embeddings: Float[Tensor, "I C h w"],
    frames: Sequence[Frame],
) -> Float[Tensor, "S 4*h 4*w"]:
    """Mask logits of S prompts, each made of points and, where given, one token.

    Rows are decoded together where they have equally many points: the decoder attends to every token that it is
    given, so that padding would change a mask.

    Args:
        sam: the stock mask model.
        points: the points of each mask, in image pixels.
        tokens: (S, C), the projected [SEG]; None to prompt with points alone.
        seg_images: the image of each mask, an index into `mask_embeddings` and `frames`.
        mask_embeddings: (I, C, h, w).
        frames: the I images' frames.

    Returns:
        (S, 4h, 4w) float32 in the mask frame; `NO_MASK_LOGIT` everywhere for a row without any prompt.
    """
    size = [4 * side for side in mask_embeddings.shape[-2:]]
    order: list[int] = []
    logits = [mask_embeddings.new_zeros(0, *size, dtype=torch.float32)]
    for count, rows in _grouped([len(row.xy) for row in points]):
        order += rows
        if count == 0 and tokens is None:
            logits.append(torch.full((len(rows), *size), NO_MASK_LOGIT, device=mask_embeddings.device))
            continue
        xy_mask = labels = None
        if count:
            xy_mask = torch.stack([frames[seg_images[row]].to_mask_frame(points[row].xy) for row in rows])
            labels = torch.stack([points[row].labels for row in rows])
        sparse = embed_prompts(sam, xy_mask, labels, tokens=None if tokens is None else tokens[rows, None])
        embeddings = mask_embeddings[[seg_images[row] for row in rows]]
        logits.append(decode_prompts(sam, embeddings, sparse)[0][:, 0].float())
    return torch.cat(logits)[torch.tensor(order, dtype=torch.long).argsort()]


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which similarity, points and positional embeddings stay in float32, also under autocast."""
    return torch.autocast(device.type, enabled=False)


def _grouped(keys: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Indices that share a key: [5, 7, 5] -> [(5, [0, 2]), (7, [1])]."""
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.items())
