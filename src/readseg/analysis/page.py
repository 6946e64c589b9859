"""The HTML page of a study of maps: one file with scores at every threshold, all units, and a gallery to look at.

It opens without a server and asks the network for nothing: style, script, numbers, pictures, maps and masks are inside.
What data sets and models say goes into one block of JSON, and from there into the page as text only. Scores at a
threshold are sums over the exact counts of all units; what is drawn comes from small copies.

    units = [page_case(one, "READ-7B") for one in measured]
    for k in picked([one.own_iou for one in measured], [one.misaligned for one in measured]):
        units[k] = page_case(measured[k], "READ-7B", picture_of(measured[k]))
    write_page(Path("maps.html"), PageData("Maps of READ-7B", facts, tables, units))

T = 101 thresholds (see `thresholds`); H, W are the sides of an image, h, w those of a map's grid.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from readseg.analysis.measures import MAPS, PROMPTS, Drawn, Measured, iou_of
from readseg.analysis.tables import Cell, Table
from readseg.analysis.thresholds import STEPS, ThresholdCurve
from readseg.errors import ReadsegError
from readseg.evaluation.metrics import Estimate
from readseg.files import whole
from readseg.masks import decode_rle

MOST_PICTURES = 200
"""So many units of a model have a picture, by default: a page of about 3 MB."""

_SIDE = 240  # pixels of a picture's longer side
_JPEG_BYTES, _QUALITIES = 5500, (85, 75, 65, 55, 45, 35)
_LOST = "\ufffd"


@dataclass(frozen=True, eq=False)
class PageMap:
    """One map of a unit.

    Attributes:
        curve: exact counts at all thresholds; those of an empty mask where there is no map.
        grids: what is drawn, each the values of a grid (h, w), 0 to 255, with the box (x0, y0, x1, y1) in image pixels
            that it covers; the map is their maximum. None where there is no map, or no picture to draw on.
    """

    curve: ThresholdCurve
    grids: Sequence[tuple[UInt8[np.ndarray, "h w"], tuple[float, float, float, float]]] = ()


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
    points: Sequence[Drawn] = ()


@dataclass(frozen=True, eq=False)
class PageCase:
    """One row of the page: an expected mask of a question.

    Attributes:
        key: unique among the cases of a model.
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


@dataclass(frozen=True, eq=False)
class PageData:
    """All that a page shows.

    Attributes:
        title: of the page.
        facts: what was looked at, by name: model, benchmark, protocol, counts.
        tables: in order, each with its notes.
        cases: in order; those of several models are shown one model at a time.
        notes: on all of it, each a sentence without its stop.
        headings: of columns and maps by their names; what is absent is called by its name.
    """

    title: str
    facts: Mapping[str, str]
    tables: Sequence[Table]
    cases: Sequence[PageCase]
    notes: Sequence[str] = ()
    headings: Mapping[str, str] = field(default_factory=lambda: HEADINGS)


HEADINGS: Mapping[str, str] = {
    **{name: f"map: {what}" for name, what in MAPS.items()},
    "own": "IoU, own mask",
    **{f"{name}_iou": f"IoU, {name} map at its best t" for name in MAPS},
    **{f"prompt_{name}": f"IoU, {what}" for name, what in PROMPTS.items()},
    **{f"{name}_t": f"best t, {name} map" for name in MAPS},
    **{f"{name}_pointing": f"pointing, {name} map" for name in MAPS},
    **{f"{name}_auc": f"AUC, {name} map" for name in MAPS},
    "consistency": "IoU, lmm with sam map",
    "spearman": "Spearman, lmm with sam map",
    "area": "area of the target",
}
"""Headings of what `page_case` makes."""


def page_case(measured: Measured, model: str, picture: Image.Image | None = None) -> PageCase:
    """The row of a record: IoU of its masks, its maps with their curves; with a picture also what it looks like.

    Args:
        measured: of a study of maps.
        model: that was asked.
        picture: the image; it is made small here.

    Raises:
        ReadsegError: a mask of the record is damaged or not of its size.
    """
    numbers: dict[str, float | None] = {"own": measured.own_iou}
    numbers |= {f"{name}_iou": iou_of(measured.map_counts(name)) for name in measured.maps}
    numbers |= {f"prompt_{name}": iou_of(measured.prompt_counts(name)) for name in measured.prompts if name != "own"}
    numbers |= {"consistency": measured.consistency, "spearman": measured.spearman}
    for name, scores in measured.maps.items():
        values = (scores.threshold, scores.pointing, scores.auc) if scores else (None, None, None)
        numbers |= dict(zip((f"{name}_t", f"{name}_pointing", f"{name}_auc"), values, strict=True))
    numbers["area"] = measured.area
    maps = {}
    for name in measured.grids:
        scores = measured.maps.get(name)
        empty = np.zeros(STEPS + 1, np.int64)
        curve = ThresholdCurve(empty, empty + measured.wanted)
        if scores is not None:
            curve = ThresholdCurve(np.array(scores.intersections), np.array(scores.unions))
        grids = [(np.rint(grid.values * 255).astype(np.uint8), grid.box) for grid in measured.grids[name]]
        maps[name] = PageMap(curve, grids if picture is not None else ())
    flags = []
    if measured.misaligned:
        flags.append("misaligned")
    if not measured.places:
        flags.append("no [SEG]")
    elif any(measured.maps[name] is None for name in maps):
        flags.append("constant map")
    return PageCase(
        key=f"{measured.key}#{measured.unit + 1}" if measured.unit else measured.key,
        question=measured.question,
        answer=measured.answer,
        model=model,
        kind=measured.kind,
        section=measured.section,
        numbers=numbers,
        maps=maps,
        flags=flags,
        view=None if picture is None else _view(measured, picture),
    )


def picked(ious: Sequence[float], misaligned: Sequence[bool], limit: int = MOST_PICTURES) -> list[int]:
    """Which units to look at: misaligned ones, up to a quarter, and else every k-th in the order of IoU.

    Args:
        ious: of each unit's own mask.
        misaligned: whether it is.
        limit: the most of them.

    Returns:
        Places in the given sequences, ascending.

    >>> picked([0.1, 0.9, 0.5, 0.3, 0.7], [False, False, False, True, False], 3)
    [0, 1, 4]
    >>> picked([0.1, 0.9, 0.5, 0.3, 0.7], [False, False, False, True, False], 4)
    [0, 1, 3, 4]
    """
    order = sorted(range(len(ious)), key=lambda k: (ious[k], k))
    wrong = _spread([k for k in order if misaligned[k]], limit // 4)
    first = set(wrong)
    return sorted([*wrong, *_spread([k for k in order if k not in first], limit - len(wrong))])


def write_page(path: Path, data: PageData) -> None:
    """Writes the page in one step; the same data make the same bytes.

    Args:
        path: of the file; its folder is made if it does not exist.
        data: what it shows.

    Raises:
        ReadsegError: a case, named, has a key that is taken, other maps than the others of its model, counts that no
            map has, or masks that do not fit each other.
    """
    text = to_html(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as place:
        place.write_bytes(text.encode("utf-8"))


def to_html(data: PageData) -> str:
    """The page as text; errors as `write_page`."""
    style, *scripts = (_file(name) for name in ("page.css", "page_pictures.js", "page.js"))
    script = "".join(scripts)
    # Nothing is loaded from anywhere, and no other script runs, whatever a text holds.
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    # "<" could end the element that holds it, and ASCII survives any encoding.
    content = json.dumps(_content(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    facts = (f"<div><dt>{_text(name)}</dt><dd>{_text(fact)}</dd></div>" for name, fact in data.facts.items())
    return Template(_file("page.html")).substitute(
        policy=escape(policy),
        title=_text(data.title),
        style=style,
        facts="".join(facts),
        tables="\n".join(map(_table, data.tables)),
        notes="".join(f"<p>{_text(note)}.</p>" for note in data.notes),
        data=content,
        script=script,
    )


def _view(measured: Measured, picture: Image.Image) -> PageView:
    try:
        masks = [decode_rle(dict(rle)) for rle in (measured.target, measured.mask)]
        ignored = np.zeros(measured.size, bool) if measured.ignored is None else decode_rle(dict(measured.ignored))
    except ValueError as error:
        raise ReadsegError(f"{measured.key}: a mask of the record is damaged: {error}") from error
    if {mask.shape for mask in (*masks, ignored)} != {tuple(measured.size)}:
        raise ReadsegError(f"{measured.key}: expected masks of the image's size {tuple(measured.size)}")
    target = np.where(ignored, 255, masks[0]).astype(np.uint8)
    return PageView(_small(picture), target, masks[1], measured.points)


# -- data ------------------------------------------------------------------------------------------------------------


def _content(data: PageData) -> dict[str, Any]:
    """JSON values that the script reads."""
    columns = list(dict.fromkeys(name for case in data.cases for name in case.numbers))
    maps = list(dict.fromkeys(name for case in data.cases for name in case.maps))
    models = list(dict.fromkeys(case.model for case in data.cases))
    _check(data.cases)

    def headed(names: Iterable[str]) -> list[dict[str, str]]:
        return [{"name": _shown(name), "heading": _shown(data.headings.get(name, name))} for name in names]

    return {
        "models": [_shown(model) for model in models],
        "columns": headed(columns),
        "maps": headed(maps),
        "cases": [
            {
                "key": _shown(case.key),
                "question": _shown(case.question),
                "answer": _shown(case.answer),
                "model": models.index(case.model),
                "kind": _shown(case.kind),
                "section": _shown(case.section),
                "flags": [_shown(flag) for flag in case.flags],
                "numbers": [_number(case.numbers.get(column)) for column in columns],
                "curves": [_curve(case, name) if name in case.maps else None for name in maps],
                "view": None if case.view is None else _drawing(case, case.view, maps),
            }
            for case in data.cases
        ],
    }


def _check(cases: Sequence[PageCase]) -> None:
    keys: set[tuple[str, str]] = set()
    maps: dict[str, set[str]] = {}
    for case in cases:
        if (case.model, case.key) in keys:
            raise ReadsegError(f"case {case.key!r}: expected one of this key for a model, got two of {case.model!r}")
        keys.add((case.model, case.key))
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
    steps: list[int] = []
    for values in found:
        if values.shape != (STEPS + 1,) or not np.issubdtype(values.dtype, np.integer):
            raise ReadsegError(
                f"case {case.key!r}, map {name!r}: expected {STEPS + 1} whole numbers, got {values.dtype} of shape "
                f"{values.shape}"
            )
        steps += [int(values[0]), *(-np.diff(values)).tolist()]
    if min(steps) < 0 or min(values[-1] for values in found) < 0 or (found[0] > found[1]).any():
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
    picture = _small(view.picture)
    ignored = target == 255
    grids = {}
    for place, name in enumerate(maps):
        parts = case.maps[name].grids if name in case.maps else ()
        grids[place] = [_grid(case, name, values, box, width, height) for values, box in parts]
    return {
        "size": list(picture.size),
        "picture": _jpeg(picture),
        "target": _runs(target == 1, picture.size),
        "ignored": _runs(ignored, picture.size) if ignored.any() else None,
        "own": _runs(own, picture.size),
        "points": [[round((x + 0.5) / width, 4), round((y + 0.5) / height, 4), label] for x, y, label in view.points],
        "grids": [grids[place] for place in range(len(maps))],
    }


def _grid(
    case: PageCase, name: str, values: np.ndarray, box: tuple[float, float, float, float], width: int, height: int
) -> dict[str, Any]:
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


def _visible(
    values: np.ndarray, box: tuple[float, float, float, float], width: int, height: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
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


def _small(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= _SIDE:
        return picture.convert("RGB")
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    return small.convert("RGB")


def _jpeg(picture: Image.Image) -> str:
    """As the address of a JPEG that holds it, of the best quality that is small enough."""
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= _JPEG_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


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


def _spread(places: Sequence[int], count: int) -> list[int]:
    """As many of them at even distances, the first and the last among them."""
    if count >= len(places):
        return list(places)
    if count < 2:
        return list(places[len(places) // 2 :][: max(0, count)])
    return [places[round(k * (len(places) - 1) / (count - 1))] for k in range(count)]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _shown(text: str) -> str:
    """Text without what would steer a terminal or turn a line around, and without halves of characters."""
    return "".join(
        c if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _LOST for c in text
    )


# -- HTML ------------------------------------------------------------------------------------------------------------


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return escape(_shown(text))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _table(table: Table) -> str:
    headings = (table.first, *table.columns.values())
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in headings)
    rows, group = [], ""
    for row in table.rows:
        if row.group != group:
            group = row.group
            rows.append(f'<tr><th scope="rowgroup" colspan="{len(headings)}">{_text(group)}</th></tr>')
        cells = "".join(f"<td>{_cell(row.cells.get(column))}</td>" for column in table.columns)
        part = ' class="part"' if group else ""
        rows.append(f'<tr{part}><th scope="row">{_text(row.name)}</th>{cells}</tr>')
    notes = "".join(f"<p>{_text(note)}.</p>" for note in table.notes)
    return (
        f"<section><h2>{_text(table.title)}</h2><div class='wide' tabindex='0'><table><thead><tr>{head}</tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div><div class='notes'>{notes}</div></section>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, Estimate):
        if math.isnan(value.value):
            return "-"
        return f"{value.value:.3f}<small>{value.low:.3f} to {value.high:.3f}</small>"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return "-" if value is None else _text(value)
