"""What each kind of prompt makes of an answer's [SEG]: the registry `PROMPTS`, of which a prompt is one entry.

ImageFrame: pixels of the image, H x W. S counts the [SEG] of an answer, N image tokens, D the language model's width.

    PROMPTS["seg"].compute(states)[0].mask

Source: section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from readseg.analysis.answer_states import NO_WORDS, AnswerStates, Spec
from readseg.analysis.original_sam import ground_truth_points
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import Points
from readseg.model.config import Prompt
from readseg.model.mask_prompts import full_precision, masks_from_prompts

Mask = Bool[np.ndarray, "H W"]


class PromptMask(NamedTuple):
    """The mask (H, W) that a prompt makes, and the points in the prompt; none with [SEG] alone."""

    mask: Mask
    points: Points


def _model_masks(states: AnswerStates, prompt: Prompt | None = None) -> list[PromptMask]:
    """Of each [SEG] what the model makes of it with a prompt, by default its own."""
    result = states.decode(prompt or states.prompt)
    points = zip(result.points_xy, result.point_labels, strict=True)
    prompted = [Points(torch.from_numpy(xy), torch.from_numpy(labels)) for xy, labels in points]
    return list(map(PromptMask, result.masks, prompted))


def _original_sam_masks(states: AnswerStates, points: Sequence[Points]) -> list[PromptMask]:
    """What the original SAM makes of points alone; where there are none, the mask is empty."""
    if not points:
        return []
    embeddings = states.encoded.mask_embeddings
    moved = [Points(one.xy.to(embeddings.device), one.labels.to(embeddings.device)) for one in points]
    sam = states.options.original_sam
    assert sam is not None
    low_res = masks_from_prompts(sam, moved, None, [0] * len(moved), embeddings, [states.frame])
    return list(map(PromptMask, _on_image(states.frame, low_res), points))


def _points_in_original_sam(states: AnswerStates) -> list[PromptMask]:
    return _original_sam_masks(states, [one.points for one in _model_masks(states, "points")])


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
    return [one if len(one.points.xy) else None for one in _original_sam_masks(states, points)]


def _phrase_masks(states: AnswerStates, *, projected: bool) -> list[PromptMask | None]:
    """Points of the phrase's map, with the [SEG], or with the phrase's mean state in its place; None without words."""
    segs = [seg for seg, phrase in enumerate(states.phrases) if phrase is not None]
    if not segs:
        return [None] * len(states.phrases)
    means, scores = zip(*(states.phrase_scores(phrase) for phrase in states.phrases if phrase is not None), strict=True)
    h_seg = states.reply.answer.states[[states.seg_positions[seg] for seg in segs]]
    masks = dict(zip(segs, _decoded(states, torch.cat(means) if projected else h_seg, torch.cat(scores)), strict=True))
    return [masks.get(seg) for seg in range(len(states.phrases))]


def _decoded(states: AnswerStates, h_seg: Float[Tensor, "S D"], scores: Float[Tensor, "S N"]) -> list[PromptMask]:
    """The model's masks of any states, with points of any scores."""
    images = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    points, low_res = states.segmenter.model.decode_masks(
        h_seg, scores, images, states.encoded.mask_embeddings, [states.frame], points=states.points, prompt="both"
    )
    return list(map(PromptMask, _on_image(states.frame, low_res), points))


def _on_image(frame: ImageFrame, low_res: Float[Tensor, "S h w"]) -> Iterable[Mask]:
    # One after the other: all logits at the image's size would be many times as large as the masks that stay.
    return ((frame.masks_to_image(one[None])[0] > 0).cpu().numpy() for one in low_res)


# -- the registry ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PromptSpec(Spec):
    """A kind of prompt: tables, figures and the page go through the entries of `PROMPTS`."""

    compute: Callable[[AnswerStates], Sequence[PromptMask | None]]  # of each [SEG] or target; None where there is none
    short: str = ""  # heading in the tables of one image; without it the prompt is made for benchmarks only


PROMPTS: Mapping[str, PromptSpec] = {
    "own": PromptSpec(title="the model's own prompt", compute=_model_masks, short="own"),
    "both": PromptSpec(title="points and [SEG]", compute=partial(_model_masks, prompt="both"), short="both"),
    "seg": PromptSpec(title="[SEG] alone", compute=partial(_model_masks, prompt="seg"), short="[SEG]"),
    "points": PromptSpec(title="points alone", compute=partial(_model_masks, prompt="points"), short="points"),
    "plain_points": PromptSpec(
        title="points alone, original SAM",
        note="the same points as the only prompt of the mask decoder as it was before it met a [SEG]",
        compute=_points_in_original_sam,
        short="SAM",
        requires="original_sam",
    ),
    "plain_extremes": PromptSpec(
        title="highest and lowest cells, original SAM",
        note="the highest cells of the map as positive points, and as many of the lowest as negative ones, in that "
        "same decoder",
        compute=_extremes_in_original_sam,
        short="extremes",
        requires="original_sam",
    ),
    "plain_truth": PromptSpec(
        title="points from the true mask, original SAM",
        note="SasP with the model's settings on the share of each image token's cell that the true mask covers, in "
        "that same decoder; also where the answer holds no [SEG]. It knows the truth: what perfect maps would give, "
        "not a score to be ranked",
        compute=_truth_in_original_sam,
        per_target=True,
        requires="original_sam",
    ),
    "words_points": PromptSpec(
        title="[SEG], and points of the words' map",
        note="the projected [SEG], with the points of the words' map",
        compute=partial(_phrase_masks, projected=False),
        absent=NO_WORDS,
    ),
    "words_projected": PromptSpec(
        title="the words projected, and their points",
        note="the mean state of the words is projected in place of [SEG], with the points of their map",
        compute=partial(_phrase_masks, projected=True),
        absent=NO_WORDS,
    ),
}
"""Every prompt of the mask decoder, in the order of the tables."""
