"""One prediction at a time against a truth that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from readseg.core.masks import encode_rle
from readseg.errors import ReadsegError
from readseg.evaluation.outcomes import Match, Outcome, read_result, result_of, score
from readseg.evaluation.predictions import Asked, Prediction, write_predictions

HW = (4, 6)


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
    asked = Asked(
        key="7/0",
        image="a.jpg",
        size=HW,
        question="the cup",
        present=present,
        targets=tuple(map(encode_rle, targets)),
        ignored=None if ignored is None else encode_rle(ignored),
        section="val",
        kind="short",
        tags=frozenset({"first"}),
    )
    return Prediction(asked, "[SEG].", bool(masks), tuple(map(encode_rle, masks)))


def counts(match: Match, *args: object, **more: object) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    outcome = score(prediction(*args, **more), match)  # type: ignore[arg-type]
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
    outcome = score(prediction([LEFT], [TOP]), "union")
    assert outcome == Outcome("7/0", "a.jpg", "val", "short", frozenset({"first"}), True, True, (4,), (16,), False)


def test_wrong_masks_are_errors() -> None:
    for wrong, told in (
        (np.ones((3, 6), bool), r"\(4, 6\), the image's, got \[3, 6\]"),
        (np.ones((6, 4), bool), "size"),
    ):
        with pytest.raises(ReadsegError, match=told):
            score(prediction([wrong], [TOP]), "union")
    huge = Prediction(prediction([], [TOP]).asked, "", True, ({"size": [10**9, 10**9], "counts": [10**18]},))
    with pytest.raises(ReadsegError, match="'masks'"):
        score(huge, "union")


def test_errors_name_the_line_of_a_file(tmp_path: Path) -> None:
    settings = {"benchmark": "refcoco/val", "protocol": "forced", "match": "union"}
    good, bad = prediction([LEFT], [TOP]), prediction([np.ones((3, 6), bool)], [TOP])
    path = tmp_path / "p.jsonl"
    write_predictions(path, settings, {"images": 1}, [good])
    result = read_result(path)
    assert result.predictions == (good,) and result.outcomes == (score(good, "union"),)
    other = Prediction(Asked("8/0", "b.jpg", HW, "the cup", True, bad.asked.targets), "", True, bad.masks)
    write_predictions(path, settings, {}, [good, other])
    with pytest.raises(ReadsegError, match=r"p\.jsonl, line 3: 8/0"):
        read_result(path)
    for name in settings:
        with pytest.raises(ReadsegError, match=f"'{name}'"):
            result_of({**settings, name: 3}, {}, [good])
