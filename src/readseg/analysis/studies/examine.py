"""Looks at a case with every map and every prompt of section 3.2, and measures what it sees: `measures.Measured`.

An image is encoded once and an answer is generated once (`cases`); here only maps and masks are made of them. Frame:
pixels of the image, H x W. S counts the [SEG] of an answer, N image tokens, D the language model's width.

Source: section 3.2, appendices A.1, B and C.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import CLIPModel, SamModel

from readseg.analysis.cases import Case, Unit
from readseg.analysis.clip import clip_map
from readseg.analysis.looks import EXTREMES, Mask, in_plain_sam, maps_of, on_image, prompted, word_scores, words_of
from readseg.analysis.map_metrics import consistency, localisation
from readseg.analysis.oracle import true_points
from readseg.analysis.own_words import OwnWords, names
from readseg.analysis.similarity_maps import Reading, SimilarityMap, read_reply
from readseg.analysis.studies.measures import Counts, Drawn, Grid, MapScores, Measured, iou_of
from readseg.analysis.thresholds import search_thresholds
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.masks import IGNORED, encode_rle, intersection_and_union, union
from readseg.core.sasp import PointConfig
from readseg.core.token_grid import Box, axes, cells_inside
from readseg.evaluation.predictions import same_words
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt

MISSED = 0.1
"""A case is misaligned where the words are right and the IoU of the model's own mask is below this."""

_CURVES = ("lmm", "sam")  # maps whose counts at all thresholds are kept, and whose grids

Map = Float[np.ndarray, "H W"]


@dataclass(frozen=True)
class Means:
    """What cases are looked at with, beside the model.

    Attributes:
        prompt: the model's own prompt; its configured one where left out.
        points: settings of points; the configured ones where left out.
        plain: the original SAM (`plain_sam.plain_sam`); its prompts are left out without it.
        clip: a CLIPModel and its tokenizer (see `clip.clip_map`); its map is left out without them.
        extremes: k, so many highest cells and lowest ones make the prompt "plain_extremes".
    """

    prompt: Prompt | None = None
    points: PointConfig | None = None
    plain: SamModel | None = field(default=None, repr=False)
    clip: tuple[CLIPModel, Any] | None = field(default=None, repr=False)
    extremes: int = EXTREMES


@torch.inference_mode()
def examine(segmenter: Segmenter, case: Case, means: Means | None = None) -> list[Measured]:
    """Everything of section 3.2 about one question, measured against each mask that it expects.

    A mask of several [SEG] ("union") has the union of their masks and the pixelwise maximum of their maps. The points
    of "plain_truth" come from the expected mask alone: they are there whatever the answer is.

    Args:
        segmenter: the model.
        case: of `cases.cases_of`.
        means: what else is used.

    Returns:
        One record for each of the case's units; none for a false premise.

    Raises:
        ReadsegError: an option of points does not fit the model, or a target is not of the image's size.
    """
    if not case.units:
        return []
    means = means or Means()
    reading = read_reply(segmenter, case.encoded, case.reply, prompt=means.prompt, points=means.points)
    words = words_of(reading)
    maps = maps_of(segmenter, case.encoded, case.reply, reading, words)
    drawn = prompted(segmenter, case.encoded, case.reply, reading, means.plain, means.extremes)
    masks: dict[str, Sequence[Mask | None]] = {name: [one.mask for one in found] for name, found in drawn.items()}
    masks |= _word_masks(segmenter, case, reading, words)
    true = None if means.plain is None else _true_masks(segmenter, case, reading.points, means.plain)
    records = []
    for number, unit in enumerate(case.units):
        own = {name: _found(per_seg, unit) for name, per_seg in maps.items()}
        said = [found.text for found in _found(words, unit)]
        if means.clip is not None:
            # The name that was asked for; where it was asked in other words, what the model calls it.
            text = case.query.text if case.query.sentence is False or not said else said[0]
            how = reading.points.alignment
            own["clip"] = [clip_map(segmenter, case.encoded.image, text, *means.clip, alignment=how)]
        of_unit = {name: _found(per_seg, unit) for name, per_seg in masks.items()}
        if true is not None:
            of_unit["plain_truth"] = true[number]
        records.append(_measured(case, number, reading, ", ".join(dict.fromkeys(said)), own, of_unit))
    return records


def words_right(case: Case, unit: Unit, answer: str) -> bool | None:
    """Whether an answer names what was asked for.

    Where an answer is expected, it must be that one, word for word (`outcomes.same_words`). Else the answer must hold
    the name that was asked for, and a [SEG] for this mask.

    Args:
        case: the question.
        unit: the mask.
        answer: the text.

    Returns:
        None where that cannot be told: the answer was given to the model, or a whole sentence was asked and no answer
        is expected.
    """
    if case.reply.is_forced:
        return None
    if case.query.expected is not None:
        return same_words(answer, case.query.expected)
    if case.query.sentence is not False:
        return None
    return bool(unit.places) and names(answer, case.query.text)


def map_of(maps: Sequence[SimilarityMap]) -> Map | None:
    """The pixelwise maximum (H, W) of those maps that have one; None where none has."""
    there = [one.map for one in maps if one.map is not None]
    return np.maximum.reduce(there) if there else None


def scores_of(value_map: Map | None, target: np.ndarray, *, curves: bool = False) -> MapScores | None:
    """What a map knows of a target; None where there is no map.

    Args:
        value_map: (H, W) in [0, 1].
        target: (H, W) in {0, 1, 255}.
        curves: keep the counts at all thresholds.
    """
    if value_map is None:
        return None
    curve = search_thresholds(value_map, target)
    seen = localisation(value_map, target)
    best = curve.best
    return MapScores(
        counts=Counts(int(curve.intersections[best]), int(curve.unions[best])),
        threshold=curve.threshold,
        pointing=seen.pointing,
        mass_inside=seen.mass_inside,
        auc=seen.auc,
        intersections=tuple(curve.intersections.tolist()) if curves else (),
        unions=tuple(curve.unions.tolist()) if curves else (),
    )


def _found(per_seg: Sequence[Any], unit: Unit) -> list[Any]:
    """What there is for the [SEG] of a unit."""
    return [per_seg[place] for place in unit.places if per_seg[place] is not None]


def _word_masks(
    segmenter: Segmenter, case: Case, reading: Reading, words: Sequence[OwnWords | None]
) -> dict[str, Sequence[Mask | None]]:
    """The masks of the prompts of words, by the names of `measures.PROMPTS`, None for a [SEG] without words."""
    rows = [seg for seg, one in enumerate(words) if one is not None]
    said = [word_scores(case.encoded, case.reply, one) for one in words if one is not None]
    h_seg = case.reply.answer.states[[reading.seg_places[row] for row in rows]]
    found: dict[str, Sequence[Mask | None]] = {}
    for name, states in (("words_points", h_seg), ("words_projected", torch.cat([h_seg[:0], *(h for h, _ in said)]))):
        drawn: Iterator[Mask] = iter(())
        if said:
            scores = torch.cat([score for _, score in said])
            drawn = iter(_decoded(segmenter, case, states, scores, reading.points))
        found[name] = [None if one is None else next(drawn) for one in words]
    return found


def _true_masks(segmenter: Segmenter, case: Case, settings: PointConfig, plain: SamModel) -> list[list[Mask]]:
    """Of each unit what the original SAM makes of points from its target; nothing where that gives no points."""
    side, frame = math.isqrt(segmenter.model.config.num_image_tokens), case.encoded.frame
    points = [true_points(unit.target, frame, side, settings) for unit in case.units]
    drawn = in_plain_sam(plain, case.encoded, points)
    return [[one.mask] if len(one.points.xy) else [] for one in drawn]


def _decoded(
    segmenter: Segmenter, case: Case, h_seg: Float[Tensor, "S D"], scores: Float[Tensor, "S N"], points: PointConfig
) -> list[Mask]:
    """The model's masks of any states, with points of any scores."""
    images = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    _, low_res = segmenter.model.decode_masks(
        h_seg, scores, images, case.encoded.mask_embeddings, [case.encoded.frame], points=points, prompt="both"
    )
    return on_image(case.encoded.frame, low_res)


def _measured(
    case: Case,
    number: int,
    reading: Reading,
    words: str,
    maps: Mapping[str, Sequence[SimilarityMap]],
    masks: Mapping[str, Sequence[Mask]],
) -> Measured:
    """The record of one unit, of its own maps and masks."""
    query, page, unit, result = case.query, case.page, case.units[number], reading.result
    hw, target = reading.frame.hw, case.units[number].target
    on_image = {name: map_of(found) for name, found in maps.items()}
    counts = {
        name: Counts(*intersection_and_union(union(found, hw), target)) if found else None
        for name, found in masks.items()
    }
    right = words_right(case, unit, result.answer)
    wanted = int(np.count_nonzero(target == 1))
    lmm, sam = on_image["lmm"], on_image["sam"]
    agreed = None if lmm is None or sam is None else consistency(lmm, sam, target)
    ignored = target == IGNORED
    grids = {"lmm": [_lmm_grid(reading, one) for one in maps["lmm"] if one.map is not None]}
    grids["sam"] = [_sam_grid(reading.frame, one) for one in maps["sam"] if one.map is not None]
    return Measured(
        key=query.key,
        unit=number,
        image=page.name,
        place=page.image_id,
        section=page.section,
        kind=query.kind,
        tags=tuple(sorted(query.tags)),
        size=hw,
        question=query.text,
        answer=result.answer,
        expected=query.expected,
        given=case.reply.is_forced,
        segs=len(reading.seg_places),
        places=unit.places,
        words=words,
        words_right=right,
        misaligned=right is True and iou_of(counts["own"] or Counts(0, wanted)) < MISSED,
        wanted=wanted,
        counted=int(np.count_nonzero(~ignored)),
        maps={name: scores_of(one, target, curves=name in _CURVES) for name, one in on_image.items()},
        prompts=counts,
        consistency=math.nan if agreed is None else agreed.iou,
        spearman=math.nan if agreed is None else agreed.spearman,
        target=encode_rle(target == 1),
        ignored=encode_rle(ignored) if ignored.any() else None,
        mask=encode_rle(union(masks["own"], hw)),
        points=tuple(
            Drawn(round(float(x), 2), round(float(y), 2), int(label))
            for place in unit.places
            for (x, y), label in zip(result.points_xy[place], result.point_labels[place], strict=True)
        ),
        grids={name: tuple(found) for name, found in grids.items()},
    )


def _lmm_grid(reading: Reading, one: SimilarityMap) -> Grid:
    inside = None
    if reading.points.alignment == "exact":
        axis_y, axis_x = axes(reading.frame.hw, "exact", reading.frame.lmm_box)
        inside = cells_inside(axis_y, axis_x, one.grid_hw[0], torch.device("cpu"))
    return _grid(one, reading.frame.lmm_box, inside)


def _sam_grid(frame: ImageFrame, one: SimilarityMap) -> Grid:
    height, width = frame.mask_hw
    return _grid(one, (0.0, 0.0, frame.width * frame.mask_size / width, frame.height * frame.mask_size / height), None)


def _grid(one: SimilarityMap, box: Box, inside: Bool[Tensor, "h w"] | None) -> Grid:
    scores = torch.from_numpy(one.scores).view(1, *one.grid_hw)
    values = sasp.normalise(scores, inside)[0][0].numpy()
    within = one.scores if inside is None else one.scores[inside.flatten().numpy()]
    levels = np.rint(values * 255).astype(np.uint8)
    return Grid(
        hw=one.grid_hw,
        box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        low=float(within.min()),
        high=float(within.max()),
        levels=base64.b64encode(levels.tobytes()).decode("ascii"),
    )
