"""Owns the figures of one image under several models: where each of them looks, and what each prompt makes of it.

Figures 4 and 6 of the paper in one, from the numbers of `analysis.single`; and the maps of all layers. Pictures are
1400 pixels wide, with letters that can be read at 900.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from readseg.analysis.studies.measures import MAPS, PROMPTS, iou_of
from readseg.analysis.studies.single_image import ImageFound, MapFound, MaskFound, ModelFound, SegFound, target_of
from readseg.analysis.truth import joined
from readseg.core.masks import IGNORED
from readseg.viz.overlays import MASK_COLOURS, panel, points_legend, scale_legend, stack, text_block

WIDTH = 1400
COLUMNS, LAYER_COLUMNS = 5, 7
MOST_ROWS = 12
"""So many [SEG], of all models together, are drawn; the JSON holds all."""

_LETTERS, _LARGE = 18, 23  # pixels
_LINES = 4
_TRUTH_COLOUR = MASK_COLOURS[2]
_BOUND = (
    "IoU of a map: of its mask at t, the threshold that suits the truth best. It looks at the truth: a bound on what "
    "the map could give, not a result."
)


class Cell(NamedTuple):
    """A panel with its title and its numbers beneath."""

    picture: Image.Image
    title: str
    numbers: str = ""


def image_figure(found: ImageFound) -> Image.Image:
    """For each [SEG] of each model two lines of panels: where it looks, and the mask of each kind of prompt.

    Line one: image | map and points in the language model | before it | in the mask decoder | of the answer's words.
    Line two: the model's mask | two other prompts | the original SAM with the points alone | truth.

    Args:
        found: of at least one model.
    """
    blocks: list[Image.Image | None] = [text_block(f"question: {found.query}", WIDTH, _LARGE, lines=4)]
    labels: set[int] = set()
    left = MOST_ROWS
    for model in found.models:
        blocks += _head(model)
        if not model.segs:
            blocks += _refusal(found, model)
        for k, seg in enumerate(model.segs[:left]):
            blocks.append(_which(model, k))
            cells = _cells(found, model, k)
            blocks += [_grid(cells, COLUMNS), text_block(_agreement(seg), WIDTH, _LETTERS, lines=2)]
            labels |= set(_points_of(seg).labels.tolist())
        blocks.append(_hidden(len(model.segs) - left))
        blocks.append(text_block(_together(found, model), WIDTH, _LETTERS, lines=2))
        left = max(0, left - len(model.segs))
    blocks += _legend(labels, any(one.segs or one.nearest for one in found.models))
    if found.wanted and any(one.segs or one.nearest for one in found.models):
        blocks.append(text_block(_BOUND, WIDTH, _LETTERS, lines=3))
    return stack([block for block in blocks if block is not None])


def layers_figure(found: ImageFound) -> Image.Image:
    """For each [SEG] of each model its map at every layer, from the embeddings to the last.

    Args:
        found: of at least one model, examined with `layers`.
    """
    blocks: list[Image.Image | None] = [text_block(f"question: {found.query}", WIDTH, _LARGE, lines=4)]
    left = MOST_ROWS
    for model in found.models:
        blocks += _head(model)
        if not model.segs:
            blocks.append(text_block(_no_seg(model), WIDTH, _LETTERS, lines=3))
        for k, seg in enumerate(model.segs[:left]):
            blocks.append(_which(model, k))
            last = len(seg.layers) - 1
            names = {0: "layer 0: embeddings", last: f"layer {last}: last, after the norm"}
            cells = [
                _map_cell(found, one, names.get(place, f"layer {place}"), side=WIDTH // LAYER_COLUMNS)
                for place, one in enumerate(seg.layers)
            ]
            blocks.append(_grid(cells, LAYER_COLUMNS))
        blocks.append(_hidden(len(model.segs) - left))
        left = max(0, left - len(model.segs))
    blocks += _legend(set(), any(model.segs for model in found.models))
    if found.wanted and any(one.segs for one in found.models):
        blocks.append(text_block(_BOUND, WIDTH, _LETTERS, lines=3))
    return stack([block for block in blocks if block is not None])


# -- rows --------------------------------------------------------------------------------------------------------------


def _cells(found: ImageFound, model: ModelFound, k: int) -> list[Cell]:
    """The two lines of panels of one [SEG]."""
    seg = model.segs[k]
    points = _points_of(seg)
    counts = [(int(np.count_nonzero(points.labels == label)), name) for label, name in _LABELS.items()]
    told = ", ".join(f"{count} {name}" for count, name in counts if count) or "no"
    title = f"map: {MAPS['lmm']}; {told} points" + ("" if model.prompt != "seg" else ", not in its prompt")
    cells = [Cell(panel(found.image, side=_side(COLUMNS)), "image", _size(found))]
    cells.append(_map_cell(found, seg.maps["lmm"], title, points=points))
    cells.append(_map_cell(found, seg.maps["before"], f"map: {MAPS['before']}"))
    cells.append(_map_cell(found, seg.maps["sam"], f"map: {MAPS['sam']}"))
    if "words" in seg.maps:
        cells.append(_map_cell(found, seg.maps["words"], f'map: {MAPS["words"]}: "{seg.words}"'))
    else:
        cells.append(_blank(found, f"map: {MAPS['words']}", "the answer has no words for this [SEG]"))
    cells.append(_mask_cell(found, seg.masks["own"], f"the model's mask: {PROMPTS[model.prompt]}"))
    others = [prompt for prompt in ("both", "seg", "points") if prompt != model.prompt]
    cells += [_mask_cell(found, seg.masks[prompt], f"mask: {PROMPTS[prompt]}") for prompt in others]
    title = f"mask: {PROMPTS['plain_points']}"
    if "plain_points" in seg.masks:
        cells.append(_mask_cell(found, seg.masks["plain_points"], title, points=True))
    else:
        cells.append(_blank(found, title, "the model comes without the original SAM"))
    target = target_of(found.truths, k)
    if target is not None:
        cells.append(_truth_cell(found, target))
    return cells


def _refusal(found: ImageFound, model: ModelFound) -> list[Image.Image | None]:
    """What there is to see of an answer without [SEG]: words, and what is no answer named as such."""
    cells = [Cell(panel(found.image, side=_side(COLUMNS)), "image, no mask", _size(found))]
    nearest = model.nearest
    if nearest is not None:
        title = f'NOT an answer: where the state looks that came nearest to [SEG], at "{nearest.token}"'
        numbers = f"chance of [SEG] there {nearest.probability:.1g}"
        cell = _map_cell(found, nearest.look, title)
        cells.append(cell._replace(numbers=f"{numbers}; {cell.numbers}" if cell.numbers else numbers))
    if found.truths:
        cells.append(_truth_cell(found, joined(found.truths)))
    return [text_block(_no_seg(model), WIDTH, _LETTERS, lines=3), _grid(cells, COLUMNS)]


def _head(model: ModelFound) -> list[Image.Image | None]:
    """A line, the model's name and its answer."""
    rule = Image.new("RGB", (WIDTH, 14), (255, 255, 255))
    ImageDraw.Draw(rule).line((0, 8, WIDTH, 8), fill=(190, 190, 190), width=2)
    answer = f"answer{' (given to the model)' if model.given else ''}: {model.answer or '(no words)'}"
    if not model.finished:
        answer += " ... (cut off at its longest length)"
    return [
        rule,
        text_block(f"model: {model.name}", WIDTH, _LARGE, lines=2),
        text_block(answer, WIDTH, _LARGE, lines=4),
    ]


def _no_seg(model: ModelFound) -> str:
    if model.given:
        return "The given answer holds no [SEG]: there is no mask."
    if model.present is None:
        return "No object was asked for, and the answer holds no [SEG]: there is no mask."
    told = "The model refuses: its answer holds no [SEG], so it gives no mask."
    if "own" not in model.together:
        return told
    counts = model.together["own"]
    return f"{told} " + (
        "Nothing is in the truth either: IoU 1." if not counts.union else "IoU with the truth: 0, as for an empty mask."
    )


def _which(model: ModelFound, k: int) -> Image.Image | None:
    """Which [SEG] of several."""
    if len(model.segs) == 1:
        return None
    words = f": {model.segs[k].words}" if model.segs[k].words else ""
    return text_block(f"[SEG] {k + 1} of {len(model.segs)}{words}", WIDTH, _LARGE, lines=2)


def _together(found: ImageFound, model: ModelFound) -> str:
    """What several masks make together, of one truth or of several."""
    if not model.segs or not found.truths or len(model.segs) == len(found.truths) == 1:
        return ""
    told = f"All masks together: IoU {iou_of(model.together['own']):.2f} with "
    if len(found.truths) == 1:
        return told + "the truth. It is one mask: each [SEG] above is held against all of it."
    told += "all truths together."
    if len(model.segs) != len(found.truths):
        told += f" Expected: {len(found.truths)} masks; the answer holds {len(model.segs)} [SEG]."
    return told


def _agreement(seg: SegFound) -> str:
    """How far the maps of the language model and of the mask decoder agree."""
    if math.isnan(seg.spearman):
        return ""
    told = f"Maps of the language model and of the mask decoder: rank correlation {seg.spearman:.2f}"
    if not math.isnan(seg.consistency):
        told += f", IoU of their masks at best thresholds {seg.consistency:.2f}"
    return f"{told}."


def _hidden(count: int) -> Image.Image | None:
    return text_block(f"{count} more [SEG] are in the JSON file.", WIDTH, _LETTERS, lines=1) if count > 0 else None


def _legend(labels: Iterable[int], maps: bool) -> list[Image.Image | None]:
    marks = {label: None for label in _LABELS if label in set(labels)}
    return [
        scale_legend(WIDTH // 2, _LETTERS) if maps else None,
        points_legend(marks, WIDTH // 2, _LETTERS) if marks else None,
    ]


# -- panels ------------------------------------------------------------------------------------------------------------

_LABELS = {1: "positive", 0: "negative", -1: "neutral"}


def _points_of(seg: SegFound) -> MaskFound:
    """The prompt whose points are shown on the map: the model's own, or what it would be with points."""
    own = seg.masks["own"]
    return own if len(own.labels) else seg.masks["points"]


def _map_cell(
    found: ImageFound, one: MapFound, title: str, points: MaskFound | None = None, side: int = WIDTH // COLUMNS
) -> Cell:
    if one.similarity.map is None:
        return _blank(found, title, "all scores are equal, or no numbers: there is no map", side)
    picture = panel(
        found.image,
        side=side - _GAP,
        value_map=one.similarity.map,
        points_xy=None if points is None else points.points_xy,
        point_labels=None if points is None else points.labels,
    )
    scores = one.scores
    if scores is None:
        return Cell(picture, title)
    told = f"IoU {iou_of(scores.counts):.2f} (t {scores.threshold:.2f})"
    # Where the truth covers all that counts, there is no other pixel to tell it from.
    return Cell(picture, title, told if math.isnan(scores.auc) else f"{told}, AUC {scores.auc:.2f}")


def _mask_cell(found: ImageFound, one: MaskFound, title: str, points: bool = False) -> Cell:
    picture = panel(
        found.image,
        side=_side(COLUMNS),
        mask=one.mask,
        points_xy=one.points_xy if points else None,
        point_labels=one.labels if points else None,
    )
    return Cell(
        picture, title, f"{one.mask.mean():.1%} of the image" if one.counts is None else f"IoU {iou_of(one.counts):.2f}"
    )


def _truth_cell(found: ImageFound, target: np.ndarray) -> Cell:
    wanted, ignored = target == 1, target == IGNORED
    picture = panel(
        found.image,
        side=_side(COLUMNS),
        mask=wanted,
        ignored=ignored if ignored.any() else None,
        colour=_TRUTH_COLOUR,
    )
    if not wanted.any():
        return Cell(picture, "truth", "nothing is expected")
    share = wanted.sum() / (~ignored).sum()
    if ignored.any():
        return Cell(picture, "truth (grey: not counted)", f"{share:.1%} of what counts")
    return Cell(picture, "truth", f"{share:.1%} of the image")


def _blank(found: ImageFound, title: str, why: str, side: int = WIDTH // COLUMNS) -> Cell:
    """A panel's place with the reason why it is empty."""
    shape = panel(found.image, side=side - _GAP).size
    picture = Image.new("RGB", (side - _GAP, max(shape[1], 4 * _LETTERS)), (235, 235, 235))
    if text := text_block(why, picture.width, _LETTERS, lines=_LINES):
        inked = Image.composite(
            text, Image.new("RGB", text.size, (235, 235, 235)), text.convert("L").point(lambda v: 255 * (v < 200))
        )
        picture.paste(inked, (0, max(0, (picture.height - text.height) // 2)))
    return Cell(picture, title)


_GAP = 8


def _side(columns: int) -> int:
    return WIDTH // columns - _GAP


def _size(found: ImageFound) -> str:
    return f"{found.image.width} x {found.image.height}"


def _grid(cells: Sequence[Cell], columns: int) -> Image.Image:
    """Cells line by line, the panels of a line on one middle."""
    wide = WIDTH // columns
    lines = []
    for start in range(0, len(cells), columns):
        part = cells[start : start + columns]
        tall = max(cell.picture.height for cell in part)
        blocks = []
        for cell in part:
            room = Image.new("RGB", (wide, tall + _GAP), (255, 255, 255))
            room.paste(cell.picture, (_GAP // 2, _GAP // 2 + (tall - cell.picture.height) // 2))
            texts = [text_block(text, wide, _LETTERS, lines=_LINES) for text in (cell.title, cell.numbers)]
            blocks.append(stack([room, *(text for text in texts if text is not None)]))
        line = Image.new("RGB", (WIDTH, max(block.height for block in blocks)), (255, 255, 255))
        for place, block in enumerate(blocks):
            line.paste(block, (place * wide, 0))
        lines.append(line)
    return stack(lines)
