"""The record of a study of maps: it comes back from JSON as it was, and a damaged one is named."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from readseg.analysis.studies.measures import Counts, MapScores, Measured
from readseg.errors import ReadsegError
from records import grid, measured

NAN = math.nan


def through(record: Measured) -> Measured:
    return Measured.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def test_round_trip() -> None:
    record = measured(ignored=measured().mask, tags=("long", "é 杯"), expected="the cup [SEG].", words_right=None)
    assert through(record) == record
    assert through(record).maps["lmm"].unions[-1] == 201
    assert isinstance(through(record).prompts["own"], Counts)


def test_round_trip_without_seg() -> None:
    maps: dict[str, MapScores | None] = dict.fromkeys(("lmm", "sam", "before", "words"))
    prompts = dict.fromkeys(("own", "both", "seg", "points", "words_points", "words_projected"))
    record = measured(
        maps=maps, prompts=prompts, consistency=NAN, spearman=NAN, segs=0, places=(), points=(), wanted=0,
        grids={"lmm": (), "sam": ()},
    )  # fmt: skip
    back = through(record)
    assert math.isnan(back.consistency) and math.isnan(back.spearman) and math.isnan(back.area)
    assert back.maps == maps and back.prompts == prompts and back.grids == record.grids
    # NaN is not equal to itself: all else is.
    assert back.to_json() == record.to_json()


def test_what_is_missing_counts_as_an_empty_mask() -> None:
    record = measured(maps={"lmm": None}, prompts={"own": None, "seg": Counts(3, 9)})
    assert record.map_counts("lmm") == (0, 6)
    assert record.prompt_counts("own") == (0, 6) and record.own_iou == 0
    assert record.prompt_counts("seg") == (3, 9)
    assert measured().map_counts("lmm") == (5, 8) and measured().own_iou == 5 / 6 and measured().area == 6 / 24
    assert measured(prompts={"own": None}, wanted=0).own_iou == 1, "nothing expected, nothing drawn"
    with pytest.raises(KeyError):
        record.map_counts("clip")


def test_levels_of_a_grid() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 3), dtype=np.uint8)
    np.testing.assert_allclose(grid().values, levels / 255, atol=1e-7)
    assert grid().values.shape == (2, 3) and grid().values.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", 3),
        ("unit", -1),
        ("unit", True),
        ("unit", 1.5),
        ("size", [4]),
        ("places", "0"),
        ("given", 1),
        ("words_right", "yes"),
        ("wanted", None),
        ("maps", {"unknown": None}),
        ("maps", [None]),
        ("maps", {"lmm": {"counts": [1, 2]}}),
        ("maps", {"lmm": 3}),
        ("prompts", {"own": [3, 2]}),
        ("prompts", {"own": [1, 2, 3]}),
        ("prompts", {"own": [1.0, 2]}),
        ("consistency", "nan"),
        ("target", {"size": [4, 6]}),
        ("target", None),
        ("ignored", 3),
        ("points", [[1, 2]]),
        ("points", [[1, 2, 3]]),
        ("points", [["1", 2, 1]]),
        ("points", [[10**400, 2, 1]]),
        ("grids", {"lmm": [{"hw": [2, 3], "box": [0, 0, 1, 1], "low": 0, "high": 1, "levels": "AAAA"}]}),
        ("grids", {"lmm": [{"hw": [1, 3], "box": [0, 0, 1], "low": 0, "high": 1, "levels": "AAAA"}]}),
        ("grids", {"lmm": [{"hw": [1, 3], "box": [0, 0, 1, 1], "low": 0, "high": 1, "levels": "?"}]}),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_field(name: str, value: Any) -> None:
    record = measured().to_json() | {name: value}
    with pytest.raises(ReadsegError, match=f"'{name}': expected .*damaged or of another version"):
        Measured.from_json(record)


def test_a_record_that_lacks_a_field_is_an_error() -> None:
    for name in measured().to_json():
        record = {key: value for key, value in measured().to_json().items() if key != name}
        with pytest.raises(ReadsegError, match=f"'{name}': expected .*got nothing"):
            Measured.from_json(record)
    for value in (None, 3, [measured().to_json()]):
        with pytest.raises(ReadsegError, match="expected a record of measures"):
            Measured.from_json(value)
