"""One image and one question, looked at in every way: the numbers and the figures of `readseg analyse IMAGE`.

Of each [SEG] of each model's answer: all maps and masks, how well each finds the truth where one is given, and how far
they agree where none is. Frame: pixels of the image, H x W. Pictures are 1400 pixels wide, with letters that can be
read at 900. Source: section 3.2, appendices A.1 and B, figures 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, collect_states
from readseg.analysis.map_metrics import GroundTruth, joined_target
from readseg.analysis.prompts import PROMPTS, PromptMask
from readseg.analysis.similarity_maps import MAPS, layer_maps, token_map
from readseg.analysis.studies.map_records import (
    MapResult,
    TargetResult,
    compute_all,
    measure_maps,
    measure_target,
)
from readseg.analysis.study import StudyModel
from readseg.core.masks import IGNORED, Counts, encode_rle, intersection_and_union, iou, union
from readseg.core.sasp import PointConfig
from readseg.inference.result import shortest_float
from readseg.model.config import Prompt
from readseg.viz.overlays import MASK_COLOURS, beside, panel, points_legend, scale_legend, stack, text_block
from readseg.viz.tables import Cell, Row, Table
from readseg.viz.tables import plain as as_json

FORMAT = "readseg.analysis.image/1"
WIDTH = 1400
COLUMNS, LAYER_COLUMNS = 5, 7
MOST_ROWS = 12
"""So many [SEG], of all models together, are drawn; the JSON holds all."""

_MAP_SCORES = {"threshold": "threshold", "pointing": "pointing", "mass_inside": "mass inside", "auc": "AUC"}
_COLUMNS = {"iou": "IoU", **_MAP_SCORES}
_BOUND = (
    "Each map is taken at the threshold that suits the truth best: a bound, no score of a mask that a user would see"
)
_SHORT = {name: spec.short for name, spec in PROMPTS.items() if spec.short}


@dataclass(frozen=True, eq=False)
class SegResult(TargetResult):
    """All that is measured of one [SEG], with the maps and masks that it has."""

    masks: Mapping[str, PromptMask]
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


# -- measuring ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def examine_image(
    model: StudyModel,
    image: Image.Image,
    query: str,
    *,
    truths: Sequence[GroundTruth] = (),
    options: ExamineOptions | None = None,
    answer: str | None = None,
    layers: bool = False,
) -> ModelResult:
    """A model's answer to a question, by itself or the one that is given, and its numbers; `layers`: of all layers."""
    encoded = model.segmenter.encode(image)
    reply = model.segmenter.reply(encoded, [query], force=answer if answer is not None else False)[0]
    states = collect_states(model.segmenter, encoded, reply, options)
    maps = compute_all(states, {name: spec for name, spec in MAPS.items() if not spec.per_target})
    masks = compute_all(states, {name: PROMPTS[name] for name in _SHORT})
    all_layers = [layer_maps(states, layer) for layer in range(states.num_layers + 1)] if layers else []
    segs = []
    for k in range(len(states.seg_positions)):
        target = target_of(truths, k)
        judged = _judged(target)
        result = measure_target(states, maps, masks, (k,), target, judge_maps=judged is not None)
        different = [(kind, one.mask) for kind, one in result.masks.items() if one and kind != states.prompt]
        segs.append(
            SegResult(
                **vars(result) | {"maps": {name: one for name, one in result.maps.items() if one.maps}},
                model_agrees=None if states.result.said is None else states.result.said[k],
                layers=tuple(measure_maps([one[k]], judged) for one in all_layers),
                agreement={(a, b): iou(mask, other) for (a, mask), (b, other) in combinations(different, 2)},
            )
        )
    together = {}
    whole = joined_target(truths) if truths else None
    if whole is not None:
        for kind, of_segs in (masks if segs else {"own": []}).items():
            mask = union([one.mask for one in of_segs], encoded.frame.hw)
            together[kind] = intersection_and_union(mask, whole)
    return ModelResult(
        name=model.name,
        source=model.source,
        settings=model.settings,
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
        "counted": int(np.count_nonzero(~ignored)),
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


def _mask_json(one: PromptMask) -> dict[str, Any]:
    points = zip(one.points_xy, one.labels, strict=True)
    return {
        "share": float(one.mask.mean()),
        "truth": None if one.counts is None else _counts_json(one.counts),
        "points": [[*map(shortest_float, xy), int(label)] for xy, label in points],
        "mask": encode_rle(one.mask),
    }


def _map_json(result: MapResult) -> dict[str, Any]:
    (one,) = result.maps
    return {
        "layer": one.layer,
        "of": one.of,
        "grid": list(one.grid_hw),
        "constant": one.map is None,
        "truth": _map_numbers(result) or None,
        "scores": [shortest_float(score) for score in one.scores],
    }


def _map_numbers(result: MapResult) -> dict[str, Any]:
    scores = result.scores
    return {} if scores is None else _counts_json(scores.counts) | {name: getattr(scores, name) for name in _MAP_SCORES}


def _counts_json(counts: Counts) -> dict[str, Any]:
    return {"iou": counts.iou, "intersection": counts.intersection, "union": counts.union}


# -- tables ------------------------------------------------------------------------------------------------------------


def tables_of(result: ImageResult) -> list[Table]:
    """The tables of one image: masks always, maps where there is something to find; none for answers without [SEG]."""
    map_rows: list[Row] = []
    mask_rows: list[Row] = []
    layer_rows: list[Row] = []
    notes = []
    for model in result.models:
        for number, seg in enumerate(model.segs, start=1):
            group = model.name if len(model.segs) == 1 else f"{model.name}, [SEG] {number}"
            map_rows += [Row(MAPS[name].title, _map_numbers(one), group) for name, one in seg.maps.items()]
            mask_rows += _mask_rows(group, model, seg)
            layer_rows += [Row(f"layer {k}", _map_numbers(one), group) for k, one in enumerate(seg.layers)]
            if not math.isnan(seg.spearman):
                what = "rank correlation of the maps of the language model and of the mask decoder"
                notes.append(f"{group}: {what} {seg.spearman:.3f}")
    if not mask_rows:
        return []
    held_against = []
    if len(result.truths) > 1:
        held_against.append("The k-th [SEG] is held against the k-th truth")
    elif result.truths and any(len(model.segs) > 1 for model in result.models):
        held_against.append("The truth is one mask: each [SEG] is held against all of it")
    columns = {"share": "of the image"} | ({"iou": "IoU"} if result.truths else {})
    columns |= {kind: short for kind, short in _SHORT.items() if any(kind in row.cells for row in mask_rows)}
    title = "The masks of each prompt: how much of the image, IoU with the truth, and with each other's masks"
    masks = Table(title, "prompt", columns, mask_rows, [*notes, *held_against])
    if not any(truth.wanted for truth in result.truths):
        return [masks]
    tables = [Table("Where the maps look", "map", _COLUMNS, map_rows, [_BOUND, *held_against]), masks]
    if layer_rows:
        tables.append(Table("The map at each layer of the language model", "layer", _COLUMNS, layer_rows, [_BOUND]))
    return tables


def _mask_rows(group: str, model: ModelResult, seg: SegResult) -> list[Row]:
    rows = []
    for kind, one in seg.masks.items():
        if kind == model.prompt:
            continue  # the same mask as its own
        cells: dict[str, Cell] = {"share": float(one.mask.mean())}
        if one.counts is not None:
            cells["iou"] = one.counts.iou
        for (first, second), value in seg.agreement.items():
            if kind in (first, second):
                cells[second if kind == first else first] = value
        title = f"own: {PROMPTS[model.prompt].title}" if kind == "own" else PROMPTS[kind].title
        rows.append(Row(title, cells, group))
    return rows


# -- figures -----------------------------------------------------------------------------------------------------------

_GAP = 8
_LETTERS, _LARGE = 18, 23  # pixels
_LINES = 4
_LABELS = {1: "positive", 0: "negative", -1: "neutral"}
_WHITE, _GREY, _RULE = (255, 255, 255), (235, 235, 235), (190, 190, 190)
_MAP_BOUND = (
    "IoU of a map: of its mask at t, the threshold that suits the truth best. It looks at the truth: a bound on what "
    "the map could give, not a result."
)


class Panel(NamedTuple):
    """What is drawn of an image (arguments of `overlays.panel`), with a title and numbers beneath; or why it is not."""

    title: str
    numbers: str
    parts: Mapping[str, Any]
    absent: str = ""


def image_figure(result: ImageResult, *, layers: bool = False) -> Image.Image:
    """The question, each model's answer with what is drawn of each [SEG], and the meaning of colours and numbers.

    Line one: image | map and points in the language model | before it | in the mask decoder | of the answer's words.
    Line two: the model's mask | two other prompts | the original SAM with the points alone | truth.
    With `layers` instead its map at every layer, from the embeddings to the last.
    """
    blocks = [_text(f"question: {result.query}", _LARGE, lines=4)]
    drawn: list[SegResult] = []
    for model in result.models:
        blocks += _head(model)
        if not model.segs:
            blocks.append(_text(_no_seg(model)))
            if not layers:
                blocks.append(_grid(result.image, _refusal_panels(result, model), COLUMNS))
        shown = model.segs[: MOST_ROWS - len(drawn)]
        for k, seg in enumerate(shown):
            if len(model.segs) > 1:
                words = f": {seg.words}" if seg.words else ""
                blocks.append(_text(f"[SEG] {k + 1} of {len(model.segs)}{words}", _LARGE, lines=2))
            if layers:
                names = {0: ": embeddings", len(seg.layers) - 1: ": last, after the norm"}
                panels = [_map_panel(one, f"layer {i}{names.get(i, '')}") for i, one in enumerate(seg.layers)]
                blocks.append(_grid(result.image, panels, LAYER_COLUMNS))
            else:
                panels = _seg_panels(result, model, k)
                blocks += [_grid(result.image, panels, COLUMNS), _text(_agreement(seg), lines=2)]
        drawn += shown
        if len(model.segs) > len(shown):
            blocks.append(_text(f"{len(model.segs) - len(shown)} more [SEG] are in the JSON file.", lines=1))
        if not layers:
            blocks.append(_text(_together(result, model), lines=2))
    has_maps = any(model.segs or (model.nearest and not layers) for model in result.models)
    if has_maps:
        blocks.append(scale_legend(WIDTH // 2, _LETTERS))
    labels = set() if layers else {int(label) for seg in drawn for label in _shown_points(seg).labels}
    if labels:
        blocks.append(points_legend(dict.fromkeys(labels), WIDTH // 2, _LETTERS))
    if has_maps and any(truth.wanted for truth in result.truths):
        blocks.append(_text(_MAP_BOUND))
    return stack(blocks)


def _text(text: str, letters: int = _LETTERS, *, lines: int = 3) -> Image.Image | None:
    return text_block(text, WIDTH, letters, lines=lines)


def _head(model: ModelResult) -> list[Image.Image | None]:
    """A line, the model's name and its answer."""
    rule = Image.new("RGB", (WIDTH, 14), _WHITE)
    ImageDraw.Draw(rule).line((0, 8, WIDTH, 8), fill=_RULE, width=2)
    answer = f"answer{' (given to the model)' if model.given else ''}: {model.answer or '(no words)'}"
    if not model.finished:
        answer += " ... (cut off at its longest length)"
    return [rule, _text(f"model: {model.name}", _LARGE, lines=2), _text(answer, _LARGE, lines=4)]


def _no_seg(model: ModelResult) -> str:
    if model.given:
        return "The given answer holds no [SEG]: there is no mask."
    if model.present is None:
        return "No object was asked for, and the answer holds no [SEG]: there is no mask."
    refusal = "The model refuses: its answer holds no [SEG], so it gives no mask."
    if "own" not in model.together:
        return refusal
    if not model.together["own"].union:
        return f"{refusal} Nothing is in the truth either: IoU 1."
    return f"{refusal} IoU with the truth: 0, as for an empty mask."


def _together(result: ImageResult, model: ModelResult) -> str:
    """What several masks make together, of one truth or of several."""
    if not model.segs or not result.truths or len(model.segs) == len(result.truths) == 1:
        return ""
    text, expected = f"All masks together: IoU {model.together['own'].iou:.2f} with ", len(result.truths)
    if expected == 1:
        return f"{text}the truth. It is one mask: each [SEG] above is held against all of it."
    wrong = f" Expected: {expected} masks; the answer holds {len(model.segs)} [SEG]."
    return f"{text}all truths together.{wrong if len(model.segs) != expected else ''}"


def _agreement(seg: SegResult) -> str:
    """How far the maps of the language model and of the mask decoder agree."""
    if math.isnan(seg.spearman):
        return ""
    text = f"Maps of the language model and of the mask decoder: rank correlation {seg.spearman:.2f}"
    if not math.isnan(seg.consistency):
        text += f", IoU of their masks at best thresholds {seg.consistency:.2f}"
    return f"{text}."


def _seg_panels(result: ImageResult, model: ModelResult, k: int) -> list[Panel]:
    """The two lines of panels of one [SEG]."""
    seg, target, points = model.segs[k], target_of(result.truths, k), _shown_points(model.segs[k])
    counts = [(int(np.count_nonzero(points.labels == label)), name) for label, name in _LABELS.items()]
    marked = ", ".join(f"{count} {name}" for count, name in counts if count) or "no"
    details = {"lmm": f"; {marked} points{', not in its prompt' if model.prompt == 'seg' else ''}"}
    if "words" in seg.maps:
        details["words"] = f': "{seg.words}"'
    panels = [Panel("image", f"{result.image.width} x {result.image.height}", {})]
    for name in ("lmm", "before", "sam", "words"):
        title = f"map: {MAPS[name].title}{details.get(name, '')}"
        if name in seg.maps:
            panels.append(_map_panel(seg.maps[name], title, points if name == "lmm" else None))
        else:
            panels.append(Panel(title, "", {}, "the answer has no words for this [SEG]"))
    panels.append(_mask_panel(seg.masks["own"], f"the model's mask: {PROMPTS[model.prompt].title}"))
    for prompt in ("both", "seg", "points", "plain_points"):
        title = f"mask: {PROMPTS[prompt].title}"
        if prompt not in seg.masks:
            panels.append(Panel(title, "", {}, "the model comes without the original SAM"))
        elif prompt != model.prompt:
            panels.append(_mask_panel(seg.masks[prompt], title, points=prompt == "plain_points"))
    return panels if target is None else [*panels, _truth_panel(target)]


def _refusal_panels(result: ImageResult, model: ModelResult) -> list[Panel]:
    """What there is to see of an answer without [SEG]; what is no answer is named as such."""
    panels = [Panel("image, no mask", f"{result.image.width} x {result.image.height}", {})]
    if nearest := model.nearest:
        title = f'NOT an answer: where the state looks that came nearest to [SEG], at "{nearest.token}"'
        one = _map_panel(nearest.map, title)
        numbers = [f"chance of [SEG] there {nearest.probability:.1g}", one.numbers]
        panels.append(one._replace(numbers="; ".join(filter(None, numbers))))
    return [*panels, _truth_panel(joined_target(result.truths))] if result.truths else panels


def _shown_points(seg: SegResult) -> PromptMask:
    """The prompt whose points are shown on the map: the model's own, or what it would be with points."""
    return seg.masks["own" if len(seg.masks["own"].labels) else "points"]


def _map_panel(one: MapResult, title: str, points: PromptMask | None = None) -> Panel:
    if one.map is None:
        return Panel(title, "", {}, "all scores are equal, or no numbers: there is no map")
    numbers, scores = "", one.scores
    if scores is not None:
        numbers = f"IoU {scores.counts.iou:.2f} (t {scores.threshold:.2f})"
        # Where the truth covers all that counts, there is no other pixel to tell it from.
        numbers += "" if math.isnan(scores.auc) else f", AUC {scores.auc:.2f}"
    return Panel(title, numbers, {"value_map": one.map, "points": _points(points)})


def _mask_panel(one: PromptMask, title: str, points: bool = False) -> Panel:
    numbers = f"{one.mask.mean():.1%} of the image" if one.counts is None else f"IoU {one.counts.iou:.2f}"
    return Panel(title, numbers, {"mask": one.mask, "points": _points(one if points else None)})


def _points(one: PromptMask | None) -> list[tuple[np.ndarray, np.ndarray]]:
    return [] if one is None else [(one.points_xy, one.labels)]


def _truth_panel(target: np.ndarray) -> Panel:
    wanted, ignored = target == 1, target == IGNORED
    title, numbers = "truth", "nothing is expected"
    if wanted.any():
        title = "truth (grey: not counted)" if ignored.any() else "truth"
        numbers = f"{wanted.sum() / (~ignored).sum():.1%} of {'what counts' if ignored.any() else 'the image'}"
    hidden = ignored if ignored.any() else None
    return Panel(title, numbers, {"mask": wanted, "ignored": hidden, "colour": MASK_COLOURS[2]})


def _grid(image: Image.Image, panels: Sequence[Panel], columns: int) -> Image.Image:
    """Panels line by line, those of a line on one middle; in place of one that is absent the reason."""
    width = WIDTH // columns
    lines = []
    for start in range(0, len(panels), columns):
        line = panels[start : start + columns]
        pictures = [panel(image, side=width - _GAP, **one.parts) for one in line]
        for k, one in enumerate(line):
            if text := text_block(one.absent, width - _GAP, _LETTERS, lines=_LINES):
                ink = text.convert("L").point(lambda level: 255 * (level < 200))
                size = (width - _GAP, max(pictures[k].height, 4 * _LETTERS))
                pictures[k] = Image.new("RGB", size, _GREY)
                pictures[k].paste(text, (0, max(0, (size[1] - text.height) // 2)), ink)
        tall = max(picture.height for picture in pictures)
        blocks = []
        for picture, one in zip(pictures, line, strict=True):
            room = Image.new("RGB", (width, tall + _GAP), _WHITE)
            room.paste(picture, (_GAP // 2, _GAP // 2 + (tall - picture.height) // 2))
            texts = [text_block(text, width, _LETTERS, lines=_LINES) for text in (one.title, one.numbers)]
            blocks.append(stack([room, *texts]))
        lines.append(beside(blocks, columns))
    return stack(lines)
