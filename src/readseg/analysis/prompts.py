"""What each kind of prompt makes of an answer's [SEG]: the registry `PROMPTS`, of which a prompt is one entry.

Owns the original SAM beside a model too: the mask decoder as it was before any question, with the model's own encoders.
Frame: pixels of the image, H x W. S counts the [SEG] of an answer, N image tokens, D the language model's width.
Source: section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import SamModel

from readseg.analysis.answer_states import TEXTS, AnswerStates, Spec
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER, read_sam
from readseg.checkpoints.files import key_mismatches, read_weights
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.masks import Counts
from readseg.core.sasp import PointConfig, Points
from readseg.core.token_grid import Box, cell_coverage
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.model.mask_prompts import full_precision, masks_from_prompts, select_points

_DECODER, _PROMPTS = "mask_decoder.", "prompt_encoder."
_ROUNDED = 1 / 128  # of a weight: what two types may differ by


class PromptMask(NamedTuple):
    """The mask (H, W) that a prompt makes, its points (P, 2), none with [SEG] alone, and the mask's counts."""

    mask: Bool[np.ndarray, "H W"]
    points_xy: Float[np.ndarray, "P 2"]
    labels: Int[np.ndarray, " P"]
    counts: Counts | None = None  # where it is held against a target


def _model_masks(states: AnswerStates, prompt: Prompt | None = None) -> list[PromptMask]:
    """Of each [SEG] what the model makes of it with a prompt, by default its own."""
    result = states.decode(prompt or states.prompt)
    return list(map(PromptMask, result.masks, result.points_xy, result.point_labels))


def _original_sam_masks(states: AnswerStates, points: Sequence[Points]) -> list[PromptMask]:
    """What the original SAM makes of points alone; where there are none, the mask is empty."""
    if not points:
        return []
    embeddings = states.encoded.mask_embeddings
    moved = [Points(one.xy.to(embeddings.device), one.labels.to(embeddings.device)) for one in points]
    sam = states.options.original_sam
    assert sam is not None
    low_res = masks_from_prompts(sam, moved, None, [0] * len(moved), embeddings, [states.frame])
    return _on_image(states.frame, low_res, points)


def _points_in_original_sam(states: AnswerStates) -> list[PromptMask]:
    masks = _model_masks(states, "points")
    points = [Points(torch.from_numpy(one.points_xy), torch.from_numpy(one.labels)) for one in masks]
    return _original_sam_masks(states, points)


def _extremes_in_original_sam(states: AnswerStates) -> list[PromptMask]:
    """The highest cells of the map as positive and the lowest as negative points."""
    alignment = states.points.alignment
    box = states.frame.lmm_box if alignment == "exact" else None
    scores = torch.from_numpy(states.result.scores)
    with full_precision(scores.device):
        cells = sasp.select_extremes(
            scores, states.frame.hw, count=states.options.extremes, alignment=alignment, box=box
        )
    return _original_sam_masks(states, cells._replace(xy=cells.xy.float()).rows())


def _truth_in_original_sam(states: AnswerStates) -> list[PromptMask | None]:
    """Of each target the mask of points from it; None where it gives no points."""
    side = math.isqrt(states.segmenter.model.config.num_image_tokens)
    points = [ground_truth_points(one.target, states.frame, side, states.points) for one in states.targets]
    return [one if len(one.labels) else None for one in _original_sam_masks(states, points)]


def _phrase_masks(states: AnswerStates, *, projected: bool) -> list[PromptMask | None]:
    """Points of the phrase's map, with the [SEG], or with the phrase's mean state in its place; None without words."""
    segs = [seg for seg, phrase in enumerate(states.phrases) if phrase is not None]
    if not segs:
        return [None] * len(states.phrases)
    means, scores = zip(*(states.phrase_scores(phrase) for phrase in states.phrases if phrase is not None), strict=True)
    h_seg = states.reply.answer.states[[states.seg_positions[seg] for seg in segs]]
    images = torch.zeros(len(segs), dtype=torch.long, device=h_seg.device)
    projections, embeddings = torch.cat(means) if projected else h_seg, states.encoded.mask_embeddings
    points, low_res = states.segmenter.model.decode_masks(
        projections, torch.cat(scores), images, embeddings, [states.frame], points=states.points, prompt="both"
    )
    masks = dict(zip(segs, _on_image(states.frame, low_res, points), strict=True))
    return [masks.get(seg) for seg in range(len(states.phrases))]


def _on_image(frame: ImageFrame, low_res: Float[Tensor, "S h w"], points: Sequence[Points]) -> list[PromptMask]:
    # One after the other: all logits at the image's size would be many times as large as the masks that stay.
    masks = ((frame.masks_to_image(one[None])[0] > 0).cpu().numpy() for one in low_res)
    return [
        PromptMask(mask, one.xy.cpu().numpy(), one.labels.cpu().numpy())
        for mask, one in zip(masks, points, strict=True)
    ]


_TEXTS = TEXTS["prompts"]
_SAM = "original_sam"  # what some of them need of `ExamineOptions`
PROMPTS: Mapping[str, Spec] = {
    "own": Spec(compute=_model_masks, **_TEXTS["own"]),
    "both": Spec(compute=partial(_model_masks, prompt="both"), **_TEXTS["both"]),
    "seg": Spec(compute=partial(_model_masks, prompt="seg"), **_TEXTS["seg"]),
    "points": Spec(compute=partial(_model_masks, prompt="points"), **_TEXTS["points"]),
    "plain_points": Spec(compute=_points_in_original_sam, requires=_SAM, **_TEXTS["plain_points"]),
    "plain_extremes": Spec(compute=_extremes_in_original_sam, requires=_SAM, **_TEXTS["plain_extremes"]),
    "plain_truth": Spec(compute=_truth_in_original_sam, per_target=True, requires=_SAM, **_TEXTS["plain_truth"]),
    "words_points": Spec(compute=partial(_phrase_masks, projected=False), **_TEXTS["words_points"]),
    "words_projected": Spec(compute=partial(_phrase_masks, projected=True), **_TEXTS["words_projected"]),
}
"""Every prompt of the mask decoder, in the order of the tables."""


# -- the original SAM --------------------------------------------------------------------------------------------------


def load_original_sam(segmenter: Segmenter, source: str | Path | None = None) -> SamModel | None:
    """The segmenter's SAM with the original mask decoder; everything else is shared with it, not copied.

    `source` is the SAM that the model was trained from (folder, hub id or file `sam_vit_*.pth`), or a model's folder
    that holds the decoder as `ORIGINAL_SAM_DECODER`, or that file. By default that file beside the segmenter's own
    weights, which the embedded model and every run of `readseg train tiny` have; None where it is not there.
    """
    sam, own_folder = segmenter.model.sam, segmenter.model.config.name_or_path
    path = Path(own_folder if source is None else source).expanduser()
    place = path / ORIGINAL_SAM_DECODER if (path / ORIGINAL_SAM_DECODER).is_file() else path
    if source is None and (not own_folder or place == path):
        return None
    weights = read_weights(place) if place.is_file() else {}
    if not weights or not all(name.startswith(_DECODER) for name in weights):
        weights = read_sam(source or place)[1]
        _check_prompt_encoder(sam, weights, place)
    decoder = {name.removeprefix(_DECODER): w for name, w in weights.items() if name.startswith(_DECODER)}
    with torch.device("meta"):
        original = SamModel(sam.config)
    if problems := key_mismatches(decoder, original.mask_decoder.state_dict()):
        raise ReadsegError(f"{place}: this is no mask decoder of the model's SAM; {problems}.")
    like = sam.mask_decoder.iou_token.weight
    # Copies: weights that are mapped into memory stay with their file.
    original.mask_decoder.load_state_dict(
        {name: weight.to(like.device, like.dtype, copy=True) for name, weight in decoder.items()}, assign=True
    )
    # Training leaves SAM's encoders as they are: one image embedding serves both.
    for shared in ("vision_encoder", "prompt_encoder", "shared_image_embedding"):
        setattr(original, shared, getattr(sam, shared))
    original.mask_decoder.requires_grad_(requires_grad=False)
    return original.eval()


def _check_prompt_encoder(sam: SamModel, weights: Mapping[str, Tensor], place: Path) -> None:
    """SAMs of all sizes have decoders of one shape: the prompt encoder's weights tell whose it is."""
    for name, own in sam.prompt_encoder.state_dict().items():
        other, like = weights.get(_PROMPTS + name), own.float().cpu()
        room = _ROUNDED * float(like.abs().max())
        if other is None or other.shape != own.shape or not other.float().cpu().allclose(like, _ROUNDED, room):
            raise ReadsegError(
                f"{place} is another SAM than the model was trained from: {_PROMPTS}{name} differs; give that one."
            )


def ground_truth_points(
    target: Shaped[np.ndarray, "H W"], frame: ImageFrame, side: int, settings: PointConfig
) -> Points:
    """The points that SasP chooses where the similarity map is the true coverage of its n x n cells; without DtoC.

    A map is normalised to its own range, so the cell that is covered most is a positive point however little of it is.
    A target that covers all cells alike, none or every one, gives no points.
    """
    coverage = torch.from_numpy(true_coverage(target, side, frame.lmm_box)).view(1, -1)
    (points,) = select_points(coverage, [0], [frame], replace(settings, dtoc=False))
    return points


def true_coverage(target: Shaped[np.ndarray, "H W"], side: int, box: Box) -> Float[np.ndarray, "n n"]:
    """The share of each cell of a grid that a target covers (1 in {0, 1, 255}), of the cell's part inside the image.

    To six digits: cells that are covered alike are equal. A cell that lies outside the image has 0.

    >>> true_coverage(np.array([[1, 0, 0, 1], [1, 0, 255, 1]]), 2, (0.0, 0.0, 4.0, 2.0)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    covered, inside = cell_coverage(np.stack([target == 1, np.ones(target.shape, bool)]), side, box, np.float64)
    return np.divide(covered, inside, out=np.zeros_like(covered), where=inside > 0).round(6).astype(np.float32)
