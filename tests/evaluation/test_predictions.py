"""What is read from disk is written again byte for byte, and scored against a truth that can be counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rule_model
from readseg.analysis.study import MEASURED
from readseg.core.io import LineFormat, read_lines, write_lines
from readseg.core.masks import encode_rle
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import PREDICTIONS, Match, Outcome, Prediction, read_result, result_of, score

HW = (4, 6)
OLD = Path(__file__).parent.parent / "golden" / "old_files"
FILES: dict[str, LineFormat[Any]] = {
    "predictions": PREDICTIONS,
    "records_maps": MEASURED,
    "records_layers": MEASURED,
    "records_necessity": MEASURED,
}


@pytest.mark.parametrize("name", FILES)
def test_old_files_are_read_and_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    old, new = OLD / f"{name}.jsonl", tmp_path / "new.jsonl"
    lines = read_lines(old, FILES[name])
    assert len(lines.records) == (6 if name == "predictions" else 1)
    write_lines(new, FILES[name], lines.header, lines.records.values())
    assert new.read_bytes() == old.read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predictions", {"key": 1}, "key"),
        ("predictions", {"answer": ...}, "answer: Field required"),
        ("predictions", {"present": 1}, "present"),
        ("predictions", {"said": ...}, "said: Field required"),
        ("predictions", {"finished": None}, "finished"),
        ("predictions", {"masks": [{"size": [1, 1]}]}, r"masks\.0: .*'size' and 'counts'"),
        ("predictions", {"targets": {}}, "targets"),
        ("predictions", {"ignored": 3}, "ignored"),
        ("predictions", {"size": [2]}, r"size\.1: Field required"),
        ("predictions", {"size": [2, True]}, r"size\.1"),
        ("predictions", {"size": [2, 0]}, r"size\.1: .*greater than 0"),
        ("predictions", {"size": [10**6, 10**6]}, "size: .*at most .* pixels"),
        ("predictions", {"tags": [1]}, r"tags\.0"),
        ("records_layers", {"page": ...}, "page: Field required"),
        ("records_layers", {"records": [3]}, r"records\.0"),
        ("records_layers", {"records": [{}]}, "the records of the page 'scene-500000' are not what was measured"),
        ("records_layers", {"sum": 3}, "sum"),
    ],
)
def test_damaged_records_are_named(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    header, line, *_ = (OLD / f"{name}.jsonl").read_bytes().splitlines()
    record = {field: value for field, value in (json.loads(line) | change).items() if value is not ...}
    path = tmp_path / "p.jsonl"
    path.write_bytes(header + b"\n" + json.dumps(record).encode() + b"\n")
    with pytest.raises(ReadsegError, match=rf"p\.jsonl, line 2: {message}"):
        read_lines(path, FILES[name])


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[rows, columns] = True
    return mask


TOP = block(slice(0, 2), slice(0, 6))  # 12 pixels
LEFT = block(slice(0, 4), slice(0, 2))  # 8, of which 4 are in TOP
NOTHING = np.zeros(HW, bool)


def prediction(
    masks: list[np.ndarray], targets: list[np.ndarray], present: bool | None = True, ignored: np.ndarray | None = None
) -> Prediction:
    changes = {"image": "a.jpg", "section": "val", "kind": "short", "tags": frozenset({"first"})}
    return rule_model.prediction(
        "7/0", present, "[SEG].", masks, targets=tuple(map(encode_rle, targets)),
        ignored=None if ignored is None else encode_rle(ignored), **changes,
    )  # fmt: skip


def counts(match: Match, *args: Any, **more: Any) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    outcome = score(prediction(*args, **more), match)
    return outcome.intersections, outcome.unions, outcome.said


def test_all_masks_of_an_answer_are_one() -> None:
    assert counts("union", [LEFT], [TOP]) == ((4,), (16,), True)
    assert counts("union", [LEFT, TOP], [TOP]) == ((12,), (16,), True)
    assert counts("union", [LEFT & TOP, TOP & ~LEFT], [TOP]) == ((12,), (12,), True)
    assert counts("union", [], [TOP]) == ((0,), (12,), False)
    assert counts("union", [NOTHING], [TOP]) == ((0,), (12,), False)


def test_masks_in_order() -> None:
    assert counts("order", [LEFT, TOP], [TOP]) == ((4, 0), (16, 12), True)
    assert counts("order", [LEFT], [TOP, LEFT]) == ((4, 0), (16, 8), True)


@pytest.mark.parametrize("match", ["union", "order"])
def test_where_nothing_is_there(match: Match) -> None:
    assert counts(match, [], [], False) == ((0,), (0,), False)
    assert counts(match, [LEFT, TOP], [], False) == ((0,), (16,), True)
    assert counts(match, [], [NOTHING]) == ((0,), (0,), False)
    assert counts(match, [LEFT], [NOTHING]) == ((0,), (8,), True)
    assert counts(match, [LEFT], [], None) == ((), (), True)


@pytest.mark.parametrize("match", ["union", "order"])
def test_pixels_that_do_not_count(match: Match) -> None:
    """TOP without the first column: 10 pixels, of which LEFT covers 2, and 2 pixels of LEFT below it."""
    first = block(slice(0, 4), slice(0, 1))
    assert counts(match, [LEFT], [TOP], ignored=first) == ((2,), (12,), True)
    assert counts(match, [first], [], False, ignored=first) == ((0,), (0,), True)


def test_the_rest_comes_along() -> None:
    answer = prediction([LEFT], [TOP])
    outcome = score(answer, "union")
    assert outcome == Outcome(**vars(answer), said=True, intersections=(4,), unions=(16,), right_words=False)


def test_wrong_masks_are_errors() -> None:
    for wrong, message in (
        (np.ones((3, 6), bool), r"\(4, 6\), the image's, got \[3, 6\]"),
        (np.ones((6, 4), bool), "size"),
    ):
        with pytest.raises(ReadsegError, match=message):
            score(prediction([wrong], [TOP]), "union")
    huge = replace(prediction([], [TOP]), masks=({"size": [10**9, 10**9], "counts": [10**18]},))
    with pytest.raises(ReadsegError, match="'masks'"):
        score(huge, "union")


def test_errors_name_the_line_of_a_file(tmp_path: Path) -> None:
    header = {"settings": {"benchmark": "refcoco/val", "protocol": "forced", "match": "union"}, "about": {"images": 1}}
    good = prediction([LEFT], [TOP])
    path = tmp_path / "p.jsonl"
    write_lines(path, PREDICTIONS, header, [good])
    result = read_result(path)
    assert result.outcomes == (score(good, "union"),)
    write_lines(path, PREDICTIONS, header, [good, replace(prediction([np.ones((3, 6), bool)], [TOP]), key="8/0")])
    with pytest.raises(ReadsegError, match=r"p\.jsonl, line 3: 8/0"):
        read_result(path)
    for name in header["settings"]:
        with pytest.raises(ReadsegError, match=f"'{name}'"):
            result_of({**header["settings"], name: 3}, {}, [good])
