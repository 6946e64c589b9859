"""What is measured of one expected mask: every map and every prompt of section 3.2, once, as a record.

Tables, the list of misaligned cases and the HTML page are made of these records alone, without model or data. Frame:
pixels of the image, H x W. Counts are pixels that the target counts; a target's pixels of 255 are in none of them.

    records = [Measured.from_json(record) for record in read_study(path).records]
    records[0].maps["lmm"].iou, records[0].prompts["own"]

T = 101 thresholds (see `thresholds`).

Source: section 3.2, appendices A.1, B and C.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from readseg.errors import ReadsegError
from readseg.viz.tables import plain

MAPS: Mapping[str, str] = {
    "lmm": "language model, last layer",
    "sam": "mask decoder, at the [SEG] token",
    "before": "before the language model",
    "words": "the answer's own words",
    "clip": "CLIP's text and patches",
}
"""What each map compares, in the order of the tables."""

PROMPTS: Mapping[str, str] = {
    "own": "the model's own prompt",
    "both": "points and [SEG]",
    "seg": "[SEG] alone",
    "points": "points alone",
    "plain_points": "points alone, original SAM",
    "plain_extremes": "highest and lowest cells, original SAM",
    "plain_truth": "points from the true mask, original SAM",
    "words_points": "[SEG], and points of the words' map",
    "words_projected": "the words projected, and their points",
}
"""What prompts the mask decoder, in the order of the tables."""


RECORD = 2
"""What a record holds. It counts up when that changes: no study is made of records of two kinds."""


class Counts(NamedTuple):
    """What a mask has in common with its target, in pixels that count.

    intersection: in both.
    union: in either.
    """

    intersection: int
    union: int


class Drawn(NamedTuple):
    """A point prompt: x and y in image pixels, label 1, 0 or -1."""

    x: float
    y: float
    label: int


@dataclass(frozen=True)
class MapScores:
    """What one map knows of its target.

    Attributes:
        counts: of the mask at the map's best threshold for this target (appendix A.1).
        threshold: that one.
        pointing: see `agreement.localisation`; NaN without a pixel on the target.
        mass_inside: likewise.
        auc: likewise.
        intersections: (T,) of the masks at all thresholds; empty where the curve is not kept.
        unions: (T,) likewise.
    """

    counts: Counts
    threshold: float
    pointing: float
    mass_inside: float
    auc: float
    intersections: tuple[int, ...] = field(default=(), repr=False)
    unions: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def from_json(cls, value: Any) -> MapScores:
        """Reads back what `asdict` and `tables.plain` made of one.

        Raises:
            KeyError, TypeError, ValueError: a part is missing or not what it should be.
        """
        return cls(
            counts=_counts(value["counts"]),
            threshold=_number(value["threshold"]),
            pointing=_number(value["pointing"]),
            mass_inside=_number(value["mass_inside"]),
            auc=_number(value["auc"]),
            intersections=_all(_whole)(value["intersections"]),
            unions=_all(_whole)(value["unions"]),
        )


@dataclass(frozen=True)
class Grid:
    """A map before it lies on the image: enough to draw it, not to measure it.

    Pixel (x, y) of the image shows the grid, interpolated between the centres of its cells and constant beyond the
    outermost, at column (x + 0.5 - x0) w / (x1 - x0) - 0.5 and row (y + 0.5 - y0) h / (y1 - y0) - 0.5; 0 outside of
    the box. Where the model rounds (alignment "reference") that is the map to within a pixel.

    Attributes:
        hw: (h, w), its sides.
        box: (x0, y0, x1, y1) in image pixels, the rectangle that it covers; it may reach beyond the image.
        low: the least score, which is 0 on the map.
        high: the greatest one, 1 on the map.
        levels: base64 of h * w bytes in raster order, round(255 v) of the value v on the map.
    """

    hw: tuple[int, int]
    box: tuple[float, float, float, float]
    low: float
    high: float
    levels: str = field(repr=False)

    @property
    def values(self) -> Float[np.ndarray, "h w"]:
        """The values on the map (h, w), float32 in [0, 1], rounded to 1 / 255."""
        return np.frombuffer(base64.b64decode(self.levels), np.uint8).reshape(self.hw).astype(np.float32) / 255


@dataclass(frozen=True)
class Measured:
    """One expected mask of one question, and all that is measured of it.

    Attributes:
        key: of the question, unique within the benchmark.
        unit: which of the question's expected masks, from 0.
        image: name of the page: what scores are grouped by.
        place: the image's file relative to the folder of all data, or the name of a scene.
        section: part of the benchmark.
        kind: kind of question.
        tags: what else scores are grouped by, sorted.
        size: (H, W).
        question: in the data set's words.
        answer: the model's words with its [SEG].
        expected: the answer that is expected, where the data set has one.
        given: whether the model was given its answer.
        segs: how many [SEG] the answer holds.
        places: which of them speak of this mask, from 0.
        words: the answer's own words for it, "" where it has none.
        words_right: whether the answer names what was asked for; None where that cannot be told.
        misaligned: the words are right and the model's own mask misses the target.
        wanted: pixels on the target.
        counted: pixels that count, on the target or not.
        maps: by the names of `MAPS`; None where there is no such map of this mask (no [SEG], no words, a constant
            map), and no entry where it was not asked for or is not available.
        prompts: counts by the names of `PROMPTS`, None and no entry likewise.
        consistency: IoU of the masks of the maps "lmm" and "sam", each at its own best threshold; NaN without both.
        spearman: rank correlation of the two maps; NaN without both.
        target: RLE (`masks.encode_rle`) of what is expected.
        ignored: RLE of the pixels that do not count; None where all do.
        mask: RLE of the model's own mask: the union over `places`.
        points: the points of the model's own prompt, of all `places`.
        grids: of the maps "lmm" and "sam", one for each of `places` that has a map; the map shows their maximum.
    """

    key: str
    unit: int
    image: str
    place: str
    section: str
    kind: str
    tags: tuple[str, ...]
    size: tuple[int, int]
    question: str
    answer: str
    expected: str | None
    given: bool
    segs: int
    places: tuple[int, ...]
    words: str
    words_right: bool | None
    misaligned: bool
    wanted: int
    counted: int
    maps: Mapping[str, MapScores | None] = field(repr=False)
    prompts: Mapping[str, Counts | None] = field(repr=False)
    consistency: float
    spearman: float
    target: Mapping[str, Any] = field(repr=False)
    ignored: Mapping[str, Any] | None = field(repr=False)
    mask: Mapping[str, Any] = field(repr=False)
    points: tuple[Drawn, ...] = field(repr=False)
    grids: Mapping[str, tuple[Grid, ...]] = field(repr=False)

    @property
    def area(self) -> float:
        """Share of the pixels that lie on the target: what pointing and mass_inside are for a constant map.

        NaN where none does.
        """
        return self.wanted / self.counted if self.wanted else math.nan

    @property
    def own_iou(self) -> float:
        """IoU of the model's own mask, 1 where nothing is expected and nothing drawn."""
        return iou_of(self.prompt_counts("own"))

    def map_counts(self, name: str) -> Counts:
        """Counts of a map's mask at its best threshold; where there is no map those of an empty mask."""
        scores = self.maps[name]
        return Counts(0, self.wanted) if scores is None else scores.counts

    def prompt_counts(self, name: str) -> Counts:
        """Counts of a prompt's mask; where there is none those of an empty mask."""
        return self.prompts[name] or Counts(0, self.wanted)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, NaN as null."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    @classmethod
    def from_json(cls, record: Any) -> Measured:
        """Reads back what `to_json` wrote.

        Raises:
            ReadsegError: a field, named, is missing or not what it should be.
        """
        if not isinstance(record, Mapping):
            raise ReadsegError(f"expected a record of measures, got {type(record).__name__}")
        values = {}
        for one in fields(cls):
            try:
                values[one.name] = _READ[one.name](record[one.name])
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                found = repr(record[one.name])[:60] if one.name in record else "nothing"
                raise ReadsegError(
                    f"{one.name!r}: expected what a study of maps measures there, got {found}: the record is damaged "
                    "or of another version"
                ) from error
        return cls(**values)


def iou_of(counts: Counts) -> float:
    """I / U, and 1 where the union is empty.

    >>> iou_of(Counts(1, 4)), iou_of(Counts(0, 0))
    (0.25, 1.0)
    """
    return counts.intersection / counts.union if counts.union else 1.0


Part = TypeVar("Part")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise TypeError
    return math.nan if value is None else float(value)


def _or_none(read: Callable[[Any], Part]) -> Callable[[Any], Part | None]:
    return lambda value: None if value is None else read(value)


def _all(read: Callable[[Any], Part], count: int | None = None) -> Callable[[Any], tuple[Part, ...]]:
    def reader(values: Any) -> tuple[Part, ...]:
        if not isinstance(values, list | tuple) or count not in (None, len(values)):
            raise TypeError
        return tuple(read(value) for value in values)

    return reader


def _named(read: Callable[[Any], Part], known: Mapping[str, str]) -> Callable[[Any], dict[str, Part]]:
    def reader(values: Any) -> dict[str, Part]:
        if not values.keys() <= known.keys():
            raise ValueError
        return {name: read(value) for name, value in values.items()}

    return reader


def _counts(value: Any) -> Counts:
    intersection, union = _all(_whole, 2)(value)
    if intersection > union:
        raise ValueError
    return Counts(intersection, union)


def _drawn(value: Any) -> Drawn:
    x, y, label = value
    if label not in (1, 0, -1):
        raise ValueError
    return Drawn(_number(x), _number(y), label)


def _grid(value: Any) -> Grid:
    height, width = _all(_whole, 2)(value["hw"])
    x0, y0, x1, y1 = _all(_number, 4)(value["box"])
    try:
        levels = base64.b64decode(_text(value["levels"]), validate=True)
    except binascii.Error as error:
        raise ValueError from error
    if len(levels) != height * width:
        raise ValueError
    return Grid((height, width), (x0, y0, x1, y1), _number(value["low"]), _number(value["high"]), value["levels"])


def _rle(value: Any) -> dict[str, Any]:
    return {"size": list(_all(_whole, 2)(value["size"])), "counts": _text(value["counts"])}


_READ: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("key", "image", "place", "section", "kind", "question", "answer", "words"), _text),
    "expected": _or_none(_text),
    "tags": _all(_text),
    **dict.fromkeys(("unit", "segs", "wanted", "counted"), _whole),
    "size": _all(_whole, 2),
    "places": _all(_whole),
    **dict.fromkeys(("given", "misaligned"), _truth),
    "words_right": _or_none(_truth),
    "maps": _named(_or_none(MapScores.from_json), MAPS),
    "prompts": _named(_or_none(_counts), PROMPTS),
    **dict.fromkeys(("consistency", "spearman"), _number),
    **dict.fromkeys(("target", "mask"), _rle),
    "ignored": _or_none(_rle),
    "points": _all(_drawn),
    "grids": _named(_all(_grid), MAPS),
}
"""How each field of a `Measured` is read."""
