"""What the page of a study of maps is made of: its units, checked, as compact JSON values for its script.

Counts, masks and grids are base64 of bytes, pictures are small JPEGs; lengths are parts of the image's width and
height, so that any picture of it fits. T = 101 thresholds (see `thresholds`); H, W are sides of an image, h, w those
of a map's grid, boxes are (x0, y0, x1, y1) in image pixels.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from readseg.analysis.map_metrics import STEPS, ThresholdCurve
from readseg.analysis.studies.map_records import PointPrompt
from readseg.core.token_grid import Box
from readseg.errors import ReadsegError

_SIDE, _SMALL_SIDE = 240, 160  # pixels of a picture's longer side
_JPEG_BYTES, _QUALITIES = 5000, (85, 75, 65, 55, 45, 35)
# Control characters but tab and line feed, marks that turn the direction of a line, halves of characters.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class PageMap:
    """One map of a unit.

    Attributes:
        curve: exact counts at all thresholds; those of an empty mask where there is no map.
        grids: what is drawn, each the values of a grid (h, w), 0 to 255, with the box (x0, y0, x1, y1) in image pixels
            that it covers; the map is their maximum. Empty where there is no map, or no picture to draw on.
    """

    curve: ThresholdCurve
    grids: Sequence[tuple[UInt8[np.ndarray, "h w"], Box]] = ()


@dataclass(frozen=True, eq=False)
class PageView:
    """What a unit looks like.

    Attributes:
        picture: the whole image, of any size; a larger one is shown small.
        target: (H, W) in {0, 1, 255}.
        own: (H, W), the model's own mask.
        points: its prompt, in image pixels.
    """

    picture: Image.Image
    target: Shaped[np.ndarray, "H W"]
    own: Bool[np.ndarray, "H W"]
    points: Sequence[PointPrompt] = ()


@dataclass(frozen=True, eq=False)
class PageCase:
    """One row of the page: an expected mask of a question.

    Attributes:
        key: of the question, and which of its masks if it expects several.
        question: in the data set's words.
        answer: in the model's words.
        model: that answered.
        kind: of question, "" for none.
        section: of the benchmark, "" for none.
        numbers: by the names of their columns; None and NaN show as missing.
        maps: by name; all cases of a model have the same.
        flags: words to filter by, such as "misaligned".
        view: to look at; None where the case is in the table only.
    """

    key: str
    question: str
    answer: str
    model: str
    kind: str
    section: str
    numbers: Mapping[str, float | None] = field(repr=False)
    maps: Mapping[str, PageMap] = field(repr=False)
    flags: Sequence[str] = ()
    view: PageView | None = field(default=None, repr=False)


def content_of(cases: Sequence[PageCase], headings: Mapping[str, str]) -> dict[str, Any]:
    """JSON values that the script reads.

    Args:
        cases: in order.
        headings: of columns and maps by their names.

    Raises:
        ReadsegError: a case, named, has other maps than the others of its model, counts that no map has, or masks or
            grids that are none.
    """
    columns = list(dict.fromkeys(name for case in cases for name in case.numbers))
    maps = list(dict.fromkeys(name for case in cases for name in case.maps))
    models = list(dict.fromkeys(case.model for case in cases))
    _check(cases)

    def headed(names: Iterable[str]) -> list[dict[str, str]]:
        return [{"name": shown(name), "heading": shown(headings.get(name, name))} for name in names]

    return {
        "models": [shown(model) for model in models],
        "columns": headed(columns),
        "maps": headed(maps),
        "cases": [
            {
                "key": shown(case.key),
                "question": shown(case.question),
                "answer": shown(case.answer),
                "model": models.index(case.model),
                "kind": shown(case.kind),
                "section": shown(case.section),
                "flags": [shown(flag) for flag in case.flags],
                "numbers": [_number(case.numbers.get(column)) for column in columns],
                "curves": [_curve(case, name) if name in case.maps else None for name in maps],
                "view": None if case.view is None else _drawing(case, case.view, maps),
            }
            for case in cases
        ],
    }


def small_picture(picture: Image.Image, side: int = _SIDE) -> Image.Image:
    """A picture in RGB, its longer side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    return small


def shown(text: str) -> str:
    """Text without what steers a terminal or turns a line around, and without halves of characters."""
    return _UNSEEN.sub("\ufffd", text)


def _check(cases: Sequence[PageCase]) -> None:
    maps: dict[str, set[str]] = {}
    for case in cases:
        expected = maps.setdefault(case.model, set(case.maps))
        if set(case.maps) != expected:
            raise ReadsegError(
                f"case {case.key!r}: expected the maps of the others, {sorted(expected)}, got {sorted(case.maps)}: "
                "scores must be over the same units; give one without a map the counts of an empty mask"
            )


def _curve(case: PageCase, name: str) -> str:
    """Counts of a map: how many fewer from each threshold to the next, first of the intersections, then unions."""
    curve = case.maps[name].curve
    found = [np.asarray(values) for values in (curve.intersections, curve.unions)]
    for values in found:
        if values.shape != (STEPS + 1,) or not np.issubdtype(values.dtype, np.integer):
            raise ReadsegError(
                f"case {case.key!r}, map {name!r}: expected {STEPS + 1} whole numbers, got {values.dtype} of shape "
                f"{values.shape}"
            )
    inter, union = (values.astype(np.int64) for values in found)
    steps = [step for values in (inter, union) for step in (int(values[0]), *(-np.diff(values)).tolist())]
    if min(*steps, int(inter[-1])) < 0 or (inter > union).any():
        raise ReadsegError(
            f"case {case.key!r}, map {name!r}: expected counts that do not grow with the threshold, and intersections "
            "not above their unions"
        )
    return _packed(steps)


def _drawing(case: PageCase, view: PageView, maps: Sequence[str]) -> dict[str, Any]:
    """Picture, masks and grids; lengths as parts of the image's width and height, so that any size fits."""
    target, own = np.asarray(view.target), np.asarray(view.own)
    if target.ndim != 2 or target.shape != own.shape or not target.size:
        raise ReadsegError(f"case {case.key!r}: expected masks of one size (H, W), got {target.shape} and {own.shape}")
    height, width = target.shape
    size, picture = _jpeg(view.picture)
    ignored = target == 255
    grids = {}
    for place, name in enumerate(maps):
        parts = case.maps[name].grids if name in case.maps else ()
        grids[place] = [_grid(case, name, values, box, width, height) for values, box in parts]
    return {
        "size": list(size),
        "picture": picture,
        "target": _runs(target == 1, size),
        "ignored": _runs(ignored, size) if ignored.any() else None,
        "own": _runs(own, size),
        "points": [
            [round((x + 0.5) / width, 4), round((y + 0.5) / height, 4), label]
            for x, y, label in view.points
            if math.isfinite(x + y)
        ],
        "grids": [grids[place] for place in range(len(maps))],
    }


def _grid(case: PageCase, name: str, values: np.ndarray, box: Box, width: int, height: int) -> dict[str, Any]:
    values = np.asarray(values)
    x0, y0, x1, y1 = (float(side) for side in box)
    if values.ndim != 2 or not values.size or values.dtype != np.uint8:
        raise ReadsegError(f"case {case.key!r}, map {name!r}: expected bytes (h, w), got {values.dtype} {values.shape}")
    if not (math.inf > x1 > x0 > -math.inf and math.inf > y1 > y0 > -math.inf):
        raise ReadsegError(f"case {case.key!r}, map {name!r}: expected a box (x0, y0, x1, y1), got {box}")
    values, (x0, y0, x1, y1) = _visible(values, (x0, y0, x1, y1), width, height)
    return {
        "hw": list(values.shape),
        "box": [round(x0 / width, 6), round(y0 / height, 6), round(x1 / width, 6), round(y1 / height, 6)],
        "levels": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii"),
    }


def _visible(values: np.ndarray, box: Box, width: int, height: int) -> tuple[np.ndarray, Box]:
    """A grid without the cells, one beside the image excepted, that lie beyond it, and the box that is left."""
    cut = []
    for low, high, cells, length in (
        (box[1], box[3], values.shape[0], height),
        (box[0], box[2], values.shape[1], width),
    ):
        step = (high - low) / cells
        first = min(max(0, math.floor(-low / step) - 1), cells - 1)
        end = max(min(cells, math.ceil((length - low) / step) + 1), first + 1)
        cut.append((first, end, low + first * step, low + end * step))
    (top, bottom, y0, y1), (left, right, x0, x1) = cut
    return values[top:bottom, left:right], (x0, y0, x1, y1)


def _jpeg(picture: Image.Image) -> tuple[tuple[int, int], str]:
    """The size (w, h) and the address of a JPEG that holds a picture, the best one that is short enough."""
    content, small = b"", picture
    for side, quality in product((_SIDE, _SMALL_SIDE), _QUALITIES):
        small = small_picture(picture, side)
        file = io.BytesIO()
        small.save(file, format="JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= _JPEG_BYTES:
            break
    return small.size, f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def _runs(mask: np.ndarray, size: tuple[int, int]) -> str:
    """Run lengths of a mask at a picture's size (w, h), in raster order, the first one off the mask."""
    levels = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    flat = np.concatenate([[False], (np.asarray(levels) > 127).ravel(), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return _packed(np.diff(changes, prepend=0).tolist())


def _packed(values: Iterable[int]) -> str:
    """Numbers from 0 on as base64: seven bits a byte, the lowest first, the eighth says that more follow."""
    packed = bytearray()
    for value in values:
        while value > 127:
            packed.append(value & 127 | 128)
            value >>= 7
        packed.append(value)
    return base64.b64encode(bytes(packed)).decode("ascii")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
