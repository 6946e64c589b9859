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
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from readseg.analysis.map_metrics import STEPS, ThresholdCurve
from readseg.analysis.page_data import PageCase, PageMap, PageView, content_of, shown, small_picture
from readseg.analysis.prompts import PROMPTS
from readseg.analysis.similarity_maps import MAPS
from readseg.analysis.studies.map_records import MapRecord, iou_of
from readseg.core.io import atomic_write
from readseg.core.masks import decode_rle
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.viz.tables import Cell, Table

MOST_PICTURES = 200
"""So many units have a picture, by default: about 2 MB."""


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
    **{name: f"map: {spec.title}" for name, spec in MAPS.items()},
    "own": "IoU, own mask",
    **{f"{name}_iou": f"IoU, {name} map at its best t" for name in MAPS},
    **{f"prompt_{name}": f"IoU, {spec.title}" for name, spec in PROMPTS.items()},
    **{f"{name}_t": f"best t, {name} map" for name in MAPS},
    **{f"{name}_pointing": f"pointing, {name} map" for name in MAPS},
    **{f"{name}_auc": f"AUC, {name} map" for name in MAPS},
    "consistency": "IoU, lmm with sam map",
    "spearman": "Spearman, lmm with sam map",
    "area": "area of the target",
}
"""Headings of what `page_case` makes."""


def page_case(measured: MapRecord, model: str, picture: Image.Image | None = None) -> PageCase:
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
        ReadsegError: as `page_data.content_of`.
    """
    text = to_html(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as place:
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
    content = json.dumps(content_of(data.cases, data.headings), separators=(",", ":"), allow_nan=False)
    facts = (f"<div><dt>{_text(name)}</dt><dd>{_text(fact)}</dd></div>" for name, fact in data.facts.items())
    return Template(_file("page.html")).substitute(
        policy=escape(policy),
        title=_text(data.title),
        style=style,
        facts="".join(facts),
        tables="\n".join(map(_table, data.tables)),
        notes="".join(f"<p>{_text(note)}.</p>" for note in data.notes),
        data=content.replace("<", "\\u003c"),
        script=script,
    )


def _view(measured: MapRecord, picture: Image.Image) -> PageView:
    try:
        masks = [decode_rle(dict(rle)) for rle in (measured.target, measured.mask)]
        ignored = np.zeros(measured.size, bool) if measured.ignored is None else decode_rle(dict(measured.ignored))
    except ValueError as error:
        raise ReadsegError(f"{measured.key}: a mask of the record is damaged: {error}") from error
    if {mask.shape for mask in (*masks, ignored)} != {tuple(measured.size)}:
        raise ReadsegError(f"{measured.key}: expected masks of the image's size {tuple(measured.size)}")
    target = np.where(ignored, 255, masks[0]).astype(np.uint8)
    return PageView(small_picture(picture), target, masks[1], measured.points)


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return escape(shown(text))


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


def _spread(places: Sequence[int], count: int) -> list[int]:
    """As many of them at even distances, the first and the last among them."""
    if count >= len(places):
        return list(places)
    if count < 2:
        return list(places[len(places) // 2 :][: max(0, count)])
    return [places[round(k * (len(places) - 1) / (count - 1))] for k in range(count)]
