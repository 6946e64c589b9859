"""The HTML page of a study of maps: one file with scores at every threshold, all units, and a gallery to look at.

It opens without a server and asks the network for nothing. What data sets and models say goes into one block of JSON,
and from there into the page as text only. Scores at a threshold are sums over the exact counts of all units; what is
drawn comes from small copies. Lengths are parts of the image's width and height, so that any picture of it fits.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from readseg.analysis.map_metrics import STEPS
from readseg.analysis.prompts import PROMPTS
from readseg.analysis.similarity_maps import MAPS
from readseg.analysis.studies.map_records import Grid, MapRecord
from readseg.core.io import atomic_write
from readseg.evaluation.predictions import decode_mask
from readseg.viz.html import data_uri, render_page
from readseg.viz.tables import Table, plain, printable, to_json

MOST_PICTURES = 200
"""So many units have a picture, by default: about 3 MB."""

_SIDES = (240, 160)  # pixels of a picture's longer side
_JPEG_BYTES, _QUALITIES = 5000, (85, 75, 65, 55, 45, 35)

_MAP_NUMBERS = {"t": "best t", "pointing": "pointing", "auc": "AUC"}
_HEADINGS: Mapping[str, str] = {
    **{name: f"map: {spec.title}" for name, spec in MAPS.items()},
    "own": "IoU, own mask",
    **{f"{name}_iou": f"IoU, {name} map at its best t" for name in MAPS},
    **{f"prompt_{name}": f"IoU, {spec.title}" for name, spec in PROMPTS.items()},
    **{f"{name}_{key}": f"{what}, {name} map" for name in MAPS for key, what in _MAP_NUMBERS.items()},
    "consistency": "IoU, lmm with sam map",
    "spearman": "Spearman, lmm with sam map",
    "area": "area of the target",
}


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    records: Sequence[MapRecord],
    pictures: Mapping[int, Image.Image],
) -> None:
    """Writes the page in one step: all records, those with a picture by their number also as drawings."""
    numbers = [numbers_of(record) for record in records]
    columns = list(dict.fromkeys(name for row in numbers for name in row))
    maps = list(dict.fromkeys(name for record in records for name in record.grids))
    data = {
        "columns": [{"name": name, "heading": _HEADINGS[name]} for name in columns],
        "maps": [{"name": name, "heading": _HEADINGS[name]} for name in maps],
        "cases": [
            {
                "key": f"{record.key}#{record.unit + 1}" if record.unit else record.key,
                "question": record.question,
                "answer": record.answer,
                "kind": record.kind,
                "section": record.section,
                "flags": flags_of(record),
                "numbers": [row.get(column) for column in columns],
                "curves": [_curve(record, name) for name in maps],
                "view": _view(record, pictures[k], maps) if k in pictures else None,
            }
            for k, (record, row) in enumerate(zip(records, numbers, strict=True))
        ],
    }
    values = {"title": title, "facts": dict(facts), "tables": [to_json(table) for table in tables], "data": plain(data)}
    text = render_page("maps.html", **_printable(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(text.encode("utf-8"))


def small_picture(picture: Image.Image, side: int = _SIDES[0]) -> Image.Image:
    """A picture in RGB, its longer side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    return small


def numbers_of(record: MapRecord) -> dict[str, float | None]:
    """IoU of a record's masks, and what its maps know, by the names of their columns."""
    numbers: dict[str, float | None] = {"own": record.own_iou}
    numbers |= {f"{name}_iou": record.map_counts(name).iou for name in record.maps}
    numbers |= {f"prompt_{name}": record.prompt_counts(name).iou for name in record.prompts if name != "own"}
    numbers |= {"consistency": record.consistency, "spearman": record.spearman}
    for name, scores in record.maps.items():
        values = (scores.threshold, scores.pointing, scores.auc) if scores else (None, None, None)
        numbers |= {f"{name}_{key}": value for key, value in zip(_MAP_NUMBERS, values, strict=True)}
    return numbers | {"area": record.area}


def flags_of(record: MapRecord) -> list[str]:
    """What is odd about a record, to filter by."""
    flags = ["misaligned"] if record.misaligned else []
    if not record.places:
        return [*flags, "no [SEG]"]
    return [*flags, "constant map"] if any(record.maps[name] is None for name in record.grids) else flags


def pick_units(ious: Sequence[float], misaligned: Sequence[bool], limit: int = MOST_PICTURES) -> list[int]:
    """Which units to look at: misaligned ones, up to a quarter, and else every k-th in the order of IoU; ascending.

    >>> pick_units([0.1, 0.9, 0.5, 0.3, 0.7], [False, False, False, True, False], 4)
    [0, 1, 3, 4]
    """
    order = sorted(range(len(ious)), key=lambda k: (ious[k], k))
    wrong = spread([k for k in order if misaligned[k]], limit // 4)
    others = [k for k in order if k not in set(wrong)]
    return sorted([*wrong, *spread(others, limit - len(wrong))])


def spread(units: Sequence[int], count: int) -> list[int]:
    """As many of them at even distances, the first and the last among them.

    >>> spread(range(33), 5)
    [0, 8, 16, 24, 32]
    """
    if count >= len(units):
        return list(units)
    if count < 2:
        return list(units[len(units) // 2 :][: max(0, count)])
    return [units[round(k * (len(units) - 1) / (count - 1))] for k in range(count)]


def _curve(record: MapRecord, name: str) -> dict[str, Sequence[int]]:
    """Counts of a map at all thresholds, those of an empty mask where there is none."""
    if scores := record.maps.get(name):
        return {"I": scores.intersections, "U": scores.unions}
    return {"I": [0] * (STEPS + 1), "U": [record.wanted] * (STEPS + 1)}


def _view(record: MapRecord, picture: Image.Image, maps: Sequence[str]) -> dict[str, Any]:
    """Picture, masks and grids as images."""
    height, width = record.size
    size, photo = _jpeg(picture)
    target, own = (decode_mask(rle, record.size, record.key) for rle in (record.target, record.mask))
    ignored = None if record.ignored is None else decode_mask(record.ignored, record.size, record.key)
    return {
        "size": size,
        "picture": photo,
        "target": _mask(target if ignored is None else target & ~ignored, size),
        "ignored": None if ignored is None else _mask(ignored, size),
        "own": _mask(own, size),
        "points": [[round((x + 0.5) / width, 4), round((y + 0.5) / height, 4), label] for x, y, label in record.points],
        "grids": [[_grid(grid, width, height) for grid in record.grids[name]] for name in maps],
    }


def _grid(grid: Grid, width: int, height: int) -> dict[str, Any]:
    levels = Image.frombytes("L", grid.hw[::-1], grid.levels)
    sides = zip(grid.box, (width, height, width, height), strict=True)
    return {"image": data_uri(levels), "box": [round(side / length, 6) for side, length in sides]}


def _mask(mask: Bool[np.ndarray, "H W"], size: tuple[int, int]) -> str:
    levels = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return data_uri(levels.point(lambda level: 255 * (level > 127)).convert("1"))


def _jpeg(picture: Image.Image) -> tuple[tuple[int, int], str]:
    """The size (w, h) and the address of a JPEG that holds a picture, the best one that is short enough."""
    small, options = picture, {"quality": 0}
    for side, quality in product(_SIDES, _QUALITIES):
        small, options = small_picture(picture, side), {"quality": quality, "optimize": True}
        small.save(stream := io.BytesIO(), "JPEG", **options)
        if stream.tell() <= _JPEG_BYTES:
            break
    return small.size, data_uri(small, "JPEG", **options)


def _printable(value: Any) -> Any:
    """Values of a page, their texts without what steers a terminal or turns a line around."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(name): _printable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(part) for part in value]
    return value
