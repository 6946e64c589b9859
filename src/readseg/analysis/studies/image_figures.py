"""The figures of one image under several models: where each of them looks, and what each prompt makes of it.

Figures 4 and 6 of the paper in one, from the numbers of `single_image`; and the maps of all layers. Pictures are 1400
pixels wide, with letters that can be read at 900.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from readseg.analysis.map_metrics import joined_target
from readseg.analysis.prompts import PROMPTS
from readseg.analysis.similarity_maps import MAPS
from readseg.analysis.studies.map_records import MapResult, MaskResult, iou_of
from readseg.analysis.studies.single_image import ImageResult, ModelResult, SegResult, target_of
from readseg.core.masks import IGNORED
from readseg.viz.overlays import MASK_COLOURS, beside, panel, points_legend, scale_legend, stack, text_block

WIDTH = 1400
COLUMNS, LAYER_COLUMNS = 5, 7
MOST_ROWS = 12
"""So many [SEG], of all models together, are drawn; the JSON holds all."""

_GAP = 8
_LETTERS, _LARGE = 18, 23  # pixels
_LINES = 4
_LABELS = {1: "positive", 0: "negative", -1: "neutral"}
_WHITE, _GREY, _RULE = (255, 255, 255), (235, 235, 235), (190, 190, 190)
_BOUND = (
    "IoU of a map: of its mask at t, the threshold that suits the truth best. It looks at the truth: a bound on what "
    "the map could give, not a result."
)

Block = Image.Image | None


class Cell(NamedTuple):
    """A panel with its title and its numbers beneath."""

    picture: Image.Image
    title: str
    numbers: str = ""


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
                blocks.append(_grid(_refusal_cells(result, model), COLUMNS))
        shown = model.segs[: MOST_ROWS - len(drawn)]
        for k, seg in enumerate(shown):
            if len(model.segs) > 1:
                words = f": {seg.words}" if seg.words else ""
                blocks.append(_text(f"[SEG] {k + 1} of {len(model.segs)}{words}", _LARGE, lines=2))
            if layers:
                blocks.append(_grid(_layer_cells(result, seg), LAYER_COLUMNS))
            else:
                blocks += [_grid(_seg_cells(result, model, k), COLUMNS), _text(_agreement(seg), lines=2)]
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
    if has_maps and result.wanted:
        blocks.append(_text(_BOUND))
    return stack(blocks)


# -- words -------------------------------------------------------------------------------------------------------------


def _text(text: str, letters: int = _LETTERS, *, lines: int = 3) -> Block:
    return text_block(text, WIDTH, letters, lines=lines)


def _head(model: ModelResult) -> list[Block]:
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
    text = f"All masks together: IoU {iou_of(model.together['own']):.2f} with "
    if len(result.truths) == 1:
        return text + "the truth. It is one mask: each [SEG] above is held against all of it."
    text += "all truths together."
    if len(model.segs) != len(result.truths):
        text += f" Expected: {len(result.truths)} masks; the answer holds {len(model.segs)} [SEG]."
    return text


def _agreement(seg: SegResult) -> str:
    """How far the maps of the language model and of the mask decoder agree."""
    if math.isnan(seg.spearman):
        return ""
    text = f"Maps of the language model and of the mask decoder: rank correlation {seg.spearman:.2f}"
    if not math.isnan(seg.consistency):
        text += f", IoU of their masks at best thresholds {seg.consistency:.2f}"
    return f"{text}."


# -- panels ------------------------------------------------------------------------------------------------------------


def _seg_cells(result: ImageResult, model: ModelResult, k: int) -> list[Cell]:
    """The two lines of panels of one [SEG]."""
    seg, target, points = model.segs[k], target_of(result.truths, k), _shown_points(model.segs[k])
    counts = [(int(np.count_nonzero(points.labels == label)), name) for label, name in _LABELS.items()]
    marked = ", ".join(f"{count} {name}" for count, name in counts if count) or "no"
    details = {"lmm": f"; {marked} points{', not in its prompt' if model.prompt == 'seg' else ''}"}
    if "words" in seg.maps:
        details["words"] = f': "{seg.words}"'
    cells = [_image_cell(result, "image")]
    for name in ("lmm", "before", "sam", "words"):
        title = f"map: {MAPS[name].title}{details.get(name, '')}"
        if name in seg.maps:
            cells.append(_map_cell(result, seg.maps[name], title, points if name == "lmm" else None))
        else:
            cells.append(_blank(result, title, "the answer has no words for this [SEG]"))
    cells.append(_mask_cell(result, seg.masks["own"], f"the model's mask: {PROMPTS[model.prompt].title}"))
    for prompt in ("both", "seg", "points", "plain_points"):
        title = f"mask: {PROMPTS[prompt].title}"
        if prompt not in seg.masks:
            cells.append(_blank(result, title, "the model comes without the original SAM"))
        elif prompt != model.prompt:
            cells.append(_mask_cell(result, seg.masks[prompt], title, points=prompt == "plain_points"))
    return cells if target is None else [*cells, _truth_cell(result, target)]


def _layer_cells(result: ImageResult, seg: SegResult) -> list[Cell]:
    last = len(seg.layers) - 1
    names = {0: ": embeddings", last: ": last, after the norm"}
    side = WIDTH // LAYER_COLUMNS
    return [_map_cell(result, layer, f"layer {k}{names.get(k, '')}", side=side) for k, layer in enumerate(seg.layers)]


def _refusal_cells(result: ImageResult, model: ModelResult) -> list[Cell]:
    """What there is to see of an answer without [SEG]; what is no answer is named as such."""
    cells = [_image_cell(result, "image, no mask")]
    if nearest := model.nearest:
        title = f'NOT an answer: where the state looks that came nearest to [SEG], at "{nearest.token}"'
        cell = _map_cell(result, nearest.map, title)
        numbers = [f"chance of [SEG] there {nearest.probability:.1g}", cell.numbers]
        cells.append(cell._replace(numbers="; ".join(filter(None, numbers))))
    return [*cells, _truth_cell(result, joined_target(result.truths))] if result.truths else cells


def _shown_points(seg: SegResult) -> MaskResult:
    """The prompt whose points are shown on the map: the model's own, or what it would be with points."""
    own = seg.masks["own"]
    return own if len(own.labels) else seg.masks["points"]


def _panel(
    result: ImageResult, side: int = WIDTH // COLUMNS, points: MaskResult | None = None, **parts: Any
) -> Image.Image:
    if points is not None:
        parts |= {"points_xy": points.points_xy, "point_labels": points.labels}
    return panel(result.image, side=side - _GAP, **parts)


def _image_cell(result: ImageResult, title: str) -> Cell:
    return Cell(_panel(result), title, f"{result.image.width} x {result.image.height}")


def _map_cell(
    result: ImageResult, one: MapResult, title: str, points: MaskResult | None = None, side: int = WIDTH // COLUMNS
) -> Cell:
    if one.map is None:
        return _blank(result, title, "all scores are equal, or no numbers: there is no map", side)
    picture, scores = _panel(result, side, points, value_map=one.map), one.scores
    if scores is None:
        return Cell(picture, title)
    numbers = f"IoU {iou_of(scores.counts):.2f} (t {scores.threshold:.2f})"
    # Where the truth covers all that counts, there is no other pixel to tell it from.
    return Cell(picture, title, numbers if math.isnan(scores.auc) else f"{numbers}, AUC {scores.auc:.2f}")


def _mask_cell(result: ImageResult, one: MaskResult, title: str, points: bool = False) -> Cell:
    numbers = f"{one.mask.mean():.1%} of the image" if one.counts is None else f"IoU {iou_of(one.counts):.2f}"
    return Cell(_panel(result, points=one if points else None, mask=one.mask), title, numbers)


def _truth_cell(result: ImageResult, target: np.ndarray) -> Cell:
    wanted, ignored = target == 1, target == IGNORED
    picture = _panel(result, mask=wanted, ignored=ignored if ignored.any() else None, colour=MASK_COLOURS[2])
    if not wanted.any():
        return Cell(picture, "truth", "nothing is expected")
    share = wanted.sum() / (~ignored).sum()
    if ignored.any():
        return Cell(picture, "truth (grey: not counted)", f"{share:.1%} of what counts")
    return Cell(picture, "truth", f"{share:.1%} of the image")


def _blank(result: ImageResult, title: str, reason: str, side: int = WIDTH // COLUMNS) -> Cell:
    """A panel's place with the reason why it is empty."""
    picture = Image.new("RGB", (side - _GAP, max(_panel(result, side).height, 4 * _LETTERS)), _GREY)
    if text := text_block(reason, picture.width, _LETTERS, lines=_LINES):
        ink = text.convert("L").point(lambda level: 255 * (level < 200))
        picture.paste(text, (0, max(0, (picture.height - text.height) // 2)), ink)
    return Cell(picture, title)


def _grid(cells: Sequence[Cell], columns: int) -> Image.Image:
    """Cells line by line, the panels of a line on one middle."""
    width = WIDTH // columns
    lines = []
    for start in range(0, len(cells), columns):
        line = cells[start : start + columns]
        tall = max(cell.picture.height for cell in line)
        blocks = []
        for cell in line:
            room = Image.new("RGB", (width, tall + _GAP), _WHITE)
            room.paste(cell.picture, (_GAP // 2, _GAP // 2 + (tall - cell.picture.height) // 2))
            texts = [text_block(text, width, _LETTERS, lines=_LINES) for text in (cell.title, cell.numbers)]
            blocks.append(stack([room, *texts]))
        lines.append(beside(blocks, columns))
    return stack(lines)
