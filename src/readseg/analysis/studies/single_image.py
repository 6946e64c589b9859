"""One image and one question, looked at in every way: the numbers behind the figure of `readseg analyse IMAGE`.

Of each [SEG] of each model's answer: all maps and masks, how well each finds the truth where one is given, and how far
they agree where none is. Frame: pixels of the image, H x W.

Source: section 3.2, appendices A.1 and B, figures 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, collect_states
from readseg.analysis.map_metrics import GroundTruth, joined_target
from readseg.analysis.prompts import PROMPTS
from readseg.analysis.similarity_maps import MAPS, layer_maps, token_map
from readseg.analysis.studies.map_records import (
    Counts,
    MapResult,
    MaskResult,
    TargetResult,
    compute_all,
    iou_of,
    measure_maps,
    measure_target,
)
from readseg.core.masks import IGNORED, encode_rle, intersection_and_union, iou, union
from readseg.core.sasp import PointConfig
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.tables import Cell, Row, Table
from readseg.viz.tables import plain as as_json

FORMAT = "readseg.analysis.image/1"

_COLUMNS = {"iou": "IoU", "threshold": "threshold", "pointing": "pointing", "mass": "mass inside", "auc": "AUC"}
_MAP_SCORES = ("threshold", "pointing", "mass_inside", "auc")  # of `MapScores`, beside its counts
_BOUND = (
    "Each map is taken at the threshold that suits the truth best: a bound, no score of a mask that a user would see"
)
_SHORT = {name: spec.short for name, spec in PROMPTS.items() if spec.short}


# -- what is found -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SegResult(TargetResult):
    """All that is measured of one [SEG], with the maps and masks that it has."""

    masks: Mapping[str, MaskResult]
    model_agrees: bool | None  # of a given answer: would the model itself have said [SEG] here
    layers: tuple[MapResult, ...] = field(repr=False)  # 0 ... K, where they were asked for
    agreement: Mapping[tuple[str, str], float]  # IoU of the masks of any two different prompts


@dataclass(frozen=True, eq=False)
class ClosestToken:
    """Where an answer without [SEG] came nearest to saying it: a state, and no answer."""

    place: int  # which token of the answer stands there
    token: str
    probability: float  # of [SEG] in its place
    rank: int  # of [SEG] among all tokens there, 1 for the likeliest
    map: MapResult  # of that state at the last layer: s = h . h_img^T


@dataclass(frozen=True, eq=False)
class ModelResult:
    """What one model answers, and all that is found of it. JSON has these fields in this order."""

    name: str
    source: str | None  # folder or hub id; None for the embedded one
    settings: Mapping[str, Any]  # how it was loaded, JSON values
    question: str  # as the model was asked
    answer: str  # its words with its [SEG]
    given: bool  # whether it was given its answer
    finished: bool  # False where the answer was cut off at the limit of its length
    present: bool | None  # as in `Segmentation`: None where no object was asked for
    prompt: Prompt
    points: PointConfig
    extremes: int
    original_sam: bool
    segs: tuple[SegResult, ...]
    together: Mapping[str, Counts]  # by prompt, of the union of all masks with that of all truths; empty without one
    nearest: ClosestToken | None  # of an answer without [SEG]; None where it has no word either


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What several models make of one question about one image."""

    source: str  # the image's file
    image: Image.Image = field(repr=False)  # RGB, upright
    query: str
    truths: tuple[GroundTruth, ...]  # one for all [SEG], or the k-th for the k-th; none where that is not known
    models: tuple[ModelResult, ...]

    @property
    def wanted(self) -> bool:
        """Whether there is something to find."""
        return any(truth.wanted for truth in self.truths)


# -- measuring ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def examine_image(
    segmenter: Segmenter,
    image: Image.Image,
    query: str,
    *,
    truths: Sequence[GroundTruth] = (),
    options: ExamineOptions | None = None,
    answer: str | None = None,
    layers: bool = False,
    name: str = "",
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelResult:
    """Asks a model one question about one image, and measures its answer.

    `answer` is given to the model, `layers` makes the maps of all layers too; the rest describes the model.
    """
    encoded = segmenter.encode(image)
    reply = segmenter.reply(encoded, [query], force=answer if answer is not None else False)[0]
    states = collect_states(segmenter, encoded, reply, options)
    maps = compute_all(states, {name: spec for name, spec in MAPS.items() if not spec.per_target})
    masks = compute_all(states, {name: PROMPTS[name] for name in _SHORT})
    all_layers = [layer_maps(states, layer) for layer in range(states.num_layers + 1)] if layers else []
    segs = []
    for k in range(len(states.seg_positions)):
        target = target_of(truths, k)
        judged = _judged(target)
        result = measure_target(states, maps, masks, (k,), target, judge_maps=judged is not None)
        own_masks = {kind: one for kind, one in result.masks.items() if one is not None}
        different = [(kind, one.mask) for kind, one in own_masks.items() if kind != states.prompt]
        segs.append(
            SegResult(
                **vars(result)
                | {"maps": {name: one for name, one in result.maps.items() if one.maps}, "masks": own_masks},
                model_agrees=None if states.result.said is None else states.result.said[k],
                layers=tuple(measure_maps([one[k]], judged) for one in all_layers),
                agreement={(a, b): iou(mask, other) for (a, mask), (b, other) in combinations(different, 2)},
            )
        )
    together = {}
    whole = joined_target(truths) if truths else None
    if whole is not None:
        for kind, of_segs in (masks if segs else {"own": []}).items():
            mask = union([one.mask for one in of_segs if one is not None], encoded.frame.hw)
            together[kind] = Counts(*intersection_and_union(mask, whole))
    return ModelResult(
        name=name,
        source=source,
        settings=settings or {},
        question=reply.question,
        answer=states.result.answer,
        given=reply.is_forced,
        finished=states.result.finished,
        present=states.result.present,
        prompt=states.prompt,
        points=states.points,
        extremes=states.options.extremes,
        original_sam=states.options.original_sam is not None,
        segs=tuple(segs),
        together=together,
        nearest=None if segs else _closest_token(states, whole),
    )


def target_of(truths: Sequence[GroundTruth], k: int) -> UInt8[np.ndarray, "H W"] | None:
    """The target (H, W) that the k-th [SEG] is held against, from 0; None where there is none for it."""
    place = 0 if len(truths) == 1 else k
    return truths[place].target if place < len(truths) else None


def _judged(target: UInt8[np.ndarray, "H W"] | None) -> UInt8[np.ndarray, "H W"] | None:
    """What maps are held against: a target with something to find."""
    return target if target is not None and (target == 1).any() else None


def _closest_token(states: AnswerStates, target: UInt8[np.ndarray, "H W"] | None) -> ClosestToken | None:
    answer, model = states.reply.answer, states.segmenter.model
    if not answer.ids:
        return None
    seg = model.config.seg_token_id
    logits = model.lmm.lm_head(answer.states).float()
    log_probabilities = logits.log_softmax(-1)[:, seg]
    place = int(log_probabilities.argmax())
    token = states.segmenter.processor.decode(answer.ids[place : place + 1])
    rank = 1 + int((logits[place] > logits[place, seg]).sum())
    value_map = measure_maps([token_map(states, [place], token)], _judged(target))
    return ClosestToken(place, token, float(log_probabilities[place].exp()), rank, value_map)


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(result: ImageResult) -> dict[str, Any]:
    """All numbers as JSON values, masks as RLE (`masks.encode_rle`), NaN as null. Maps are told by their scores."""
    values: dict[str, Any] = as_json(
        {
            "format": FORMAT,
            "image": result.source,
            "size": [result.image.height, result.image.width],
            "query": result.query,
            "truths": [_truth_json(truth) for truth in result.truths],
            "models": [_model_json(model) for model in result.models],
        }
    )
    return values


def _truth_json(truth: GroundTruth) -> dict[str, Any]:
    ignored = truth.target == IGNORED
    return {
        "file": truth.source,
        "object_value": truth.object_value,
        "wanted": truth.wanted,
        "counted": truth.counted,
        "mask": encode_rle(truth.target == 1),
        "ignored": encode_rle(ignored) if ignored.any() else None,
    }


def _model_json(model: ModelResult) -> dict[str, Any]:
    nearest = model.nearest
    return vars(model) | {
        "points": vars(model.points),
        "segs": [_seg_json(seg) for seg in model.segs],
        "together": {kind: _counts_json(counts) for kind, counts in model.together.items()},
        "nearest": None if nearest is None else vars(nearest) | {"map": _map_json(nearest.map)},
    }


def _seg_json(seg: SegResult) -> dict[str, Any]:
    return {
        "words": seg.words,
        "said": seg.model_agrees,
        "maps": {name: _map_json(one) for name, one in seg.maps.items()},
        "layers": [_map_json(one) for one in seg.layers],
        "spearman": seg.spearman,
        "consistency": seg.consistency,
        "masks": {kind: _mask_json(one) for kind, one in seg.masks.items()},
        "agreement": [{"prompts": list(pair), "iou": value} for pair, value in seg.agreement.items()],
    }


def _mask_json(one: MaskResult) -> dict[str, Any]:
    points = zip(one.points_xy, one.labels, strict=True)
    return {
        "share": float(one.mask.mean()),
        "truth": None if one.counts is None else _counts_json(one.counts),
        "points": [[_short(x), _short(y), int(label)] for (x, y), label in points],
        "mask": encode_rle(one.mask),
    }


def _map_json(result: MapResult) -> dict[str, Any]:
    (one,), scores = result.maps, result.scores
    truth = None
    if scores is not None:
        truth = _counts_json(scores.counts) | {name: getattr(scores, name) for name in _MAP_SCORES}
    return {
        "layer": one.layer,
        "of": one.of,
        "grid": list(one.grid_hw),
        "constant": one.map is None,
        "truth": truth,
        "scores": [_short(score) for score in one.scores],
    }


def _counts_json(counts: Counts) -> dict[str, Any]:
    return {"iou": iou_of(counts), "intersection": counts.intersection, "union": counts.union}


def _short(value: np.floating) -> float:
    """The shortest number that reads back as this float32."""
    return float(str(np.float32(value)))


# -- tables ------------------------------------------------------------------------------------------------------------


def tables_of(result: ImageResult) -> list[Table]:
    """The tables of one image: masks always, maps where there is something to find; none for answers without [SEG]."""
    segs = [
        (model.name if len(model.segs) == 1 else f"{model.name}, [SEG] {number}", model, seg)
        for model in result.models
        for number, seg in enumerate(model.segs, start=1)
    ]
    if not segs:
        return []
    held_against = []
    if len(result.truths) > 1:
        held_against.append("The k-th [SEG] is held against the k-th truth")
    elif result.truths and any(len(model.segs) > 1 for model in result.models):
        held_against.append("The truth is one mask: each [SEG] is held against all of it")
    rows, notes = [], []
    for group, model, seg in segs:
        rows += _mask_rows(group, model, seg)
        if not math.isnan(seg.spearman):
            what = "rank correlation of the maps of the language model and of the mask decoder"
            notes.append(f"{group}: {what} {seg.spearman:.3f}")
    columns = {"share": "of the image"} | ({"iou": "IoU"} if result.truths else {})
    columns |= {kind: short for kind, short in _SHORT.items() if any(kind in row.cells for row in rows)}
    title = "The masks of each prompt: how much of the image, IoU with the truth, and with each other's masks"
    masks = Table(title, "prompt", columns, rows, [*notes, *held_against])
    if not result.wanted:
        return [masks]
    rows = [Row(MAPS[name].title, _map_cells(one), group) for group, _, seg in segs for name, one in seg.maps.items()]
    tables = [Table("Where the maps look", "map", _COLUMNS, rows, [_BOUND, *held_against]), masks]
    rows = [Row(f"layer {k}", _map_cells(one), group) for group, _, seg in segs for k, one in enumerate(seg.layers)]
    if rows:
        tables.append(Table("The map at each layer of the language model", "layer", _COLUMNS, rows, [_BOUND]))
    return tables


def _map_cells(one: MapResult) -> dict[str, Cell]:
    scores = one.scores
    if scores is None:
        return {}
    values = (iou_of(scores.counts), *(getattr(scores, name) for name in _MAP_SCORES))
    return dict(zip(_COLUMNS, values, strict=True))


def _mask_rows(group: str, model: ModelResult, seg: SegResult) -> list[Row]:
    rows = []
    for kind, one in seg.masks.items():
        if kind == model.prompt:
            continue  # the same mask as its own
        cells: dict[str, Cell] = {"share": float(one.mask.mean())}
        if one.counts is not None:
            cells["iou"] = iou_of(one.counts)
        for (first, second), value in seg.agreement.items():
            if kind in (first, second):
                cells[second if kind == first else first] = value
        title = f"own: {PROMPTS[model.prompt].title}" if kind == "own" else PROMPTS[kind].title
        rows.append(Row(title, cells, group))
    return rows
