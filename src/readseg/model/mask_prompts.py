"""Prompts of the mask model: from similarity to points, from points and embeddings to mask logits of a bare `SamModel`.

Points are in image pixels until an `ImageFrame` takes them to the mask frame, the square that the mask model sees. S
prompts, each for one mask of one of I images; C is the width of the mask model's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import SamModel

from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points

NO_MASK_LOGIT = -32.0  # of every pixel where there is nothing to prompt with; its sigmoid is 1e-14


def select_points(
    scores: Float[Tensor, "S N"], seg_images: Sequence[int], frames: Sequence[ImageFrame], settings: PointConfig
) -> list[Points]:
    """Similarity as Points (`sasp.points_from_scores`) for S rows of scores, each on its own of I images (an index)."""
    points: dict[int, Points] = {}
    with full_precision(scores.device):
        for image, rows in _grouped(seg_images):
            frame = frames[image]
            prompts = sasp.points_from_scores(scores[rows], frame.hw, settings, box=frame.lmm_box)
            points |= zip(rows, prompts.rows(), strict=True)
    return [points[row] for row in range(len(seg_images))]


def embed_prompts(
    sam: SamModel,
    points_xy_mask: Float[Tensor, "B P 2"] | None = None,
    labels: Int[Tensor, "B P"] | None = None,
    boxes_mask: Float[Tensor, "B 4"] | None = None,
    tokens: Float[Tensor, "B T C"] | None = None,
) -> Float[Tensor, "_ K C"]:
    """Sparse prompt tokens (B, K, C): SAM's in the order of its training, then `tokens`, such as the projected [SEG].

        points ++ SAM's padding point (only where points, and no box, are given) ++ box corners ++ tokens

    Points and boxes (x0, y0, x1, y1) are in the mask frame; a label is 1, 0 or -1 ("not a point": still a token, but
    without its place). The type is that of SAM's mask decoder; without any prompt the shape is (1, 0, C).
    """
    parts = []
    if points_xy_mask is not None or boxes_mask is not None:
        with full_precision(sam.device):  # lower types move points by pixels
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
    """Mask logits (B, M, 4h, 4w) in the mask frame and predicted IoU (B, M) of B prompts; M is 1, with `multimask` 3.

    There is one image for each prompt, or one for all. All have as many tokens: the decoder has no mask of prompts.
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
    frames: Sequence[ImageFrame],
) -> Float[Tensor, "S 4*h 4*w"]:
    """Mask logits of S prompts, each made of points and, where given, one token.

    Points are in image pixels, the logits float32 in the mask frame; `seg_images` are indices into `mask_embeddings`
    and `frames`. A row without any prompt has `NO_MASK_LOGIT` everywhere. Rows are decoded together where they have
    equally many points: the decoder attends to every token that it is given, so that padding would change a mask.
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
