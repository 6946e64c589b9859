"""Scores against plain loops, hand-computed values and hostile input."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.core import stats
from readseg.errors import ReadsegError

# Four masks: exact, half, missed, right and empty.
INTER, UNION = [40, 30, 0, 0], [40, 60, 200, 0]

counts = st.lists(
    st.integers(0, 5000).flatmap(lambda u: st.tuples(st.integers(0, u), st.just(u))), min_size=1, max_size=30
)


def test_hand_computed_values() -> None:
    assert stats.giou(INTER, UNION) == pytest.approx((1 + 0.5 + 0 + 1) / 4, abs=1e-6)
    assert stats.ciou(INTER, UNION) == 70 / 300
    assert stats.precision_at(stats.mask_ious(INTER, UNION), 0.45) == 0.75
    assert stats.precision_at([0.5, 0.49999, 0.7], 0.5) == pytest.approx(2 / 3)


def test_right_empty_is_exactly_one_and_wrongly_filled_is_zero() -> None:
    assert stats.giou([0], [0]) == 1.0
    assert stats.giou([0], [17]) == 0.0
    assert stats.ciou([0], [0]) == 0.0


def test_the_union_carries_the_reference_epsilon() -> None:
    assert stats.giou([1], [1]) == pytest.approx(1 / 1.00001, abs=1e-12)


@given(counts)
@settings(max_examples=50, deadline=None)
def test_equal_exact_fractions(pairs: list[tuple[int, int]]) -> None:
    inter, union = [i for i, _ in pairs], [u for _, u in pairs]
    epsilon = Fraction(1, 100_000)
    exact = sum((Fraction(1) if u == 0 else i / (u + epsilon) for i, u in pairs), Fraction(0)) / len(pairs)
    assert stats.giou(inter, union) == pytest.approx(float(exact), abs=1e-12)
    if sum(union):
        assert stats.ciou(inter, union) == pytest.approx(float(Fraction(sum(inter), sum(union))), abs=1e-12)


def test_counts_from_pixels_agree_with_sets() -> None:
    rng = np.random.default_rng(3)
    pred, target = rng.random((5, 12, 17)) > 0.6, rng.random((5, 12, 17)) > 0.5
    inter, union = (pred & target).sum((1, 2)), (pred | target).sum((1, 2))
    expected = []
    for p, t in zip(pred, target, strict=True):
        a, b = ({tuple(q) for q in np.argwhere(m)} for m in (p, t))
        expected.append(len(a & b) / len(a | b))
    assert stats.giou(inter, union) == pytest.approx(np.mean(expected), abs=1e-6)


def test_decisions() -> None:
    true = [True, True, True, False, False]
    said = [True, True, False, False, True]
    assert stats.see_accuracy(said, true) == 3 / 5
    assert stats.refusal_recall(said, true) == 1 / 2
    assert stats.answered_rate(said, true) == 2 / 3
    assert stats.balanced_see_accuracy(said, true) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("said", [[True] * 6, [False] * 6])
def test_one_answer_to_everything_is_worth_half(said: list[bool]) -> None:
    assert stats.balanced_see_accuracy(said, [True, False, False, True, True, True]) == 0.5


def test_nothing_counted_is_nan_not_a_number_that_looks_good() -> None:
    assert math.isnan(stats.giou([], []))
    assert math.isnan(stats.ciou([], []))
    assert math.isnan(stats.precision_at([], 0.5))
    assert math.isnan(stats.refusal_recall([True], [True]))
    assert math.isnan(stats.answered_rate([], []))
    empty = stats.estimate([])
    assert math.isnan(empty.value) and empty.count == 0 and str(empty) == "-"


def test_estimates_equal_the_plain_scores() -> None:
    ious = stats.mask_ious(INTER, UNION)
    assert stats.estimate(ious).value == pytest.approx(stats.giou(INTER, UNION))
    assert stats.estimate(INTER, UNION).value == stats.ciou(INTER, UNION)
    assert stats.estimate([0, 0], [0, 0]).value == 0.0


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.2, 900)
    result = stats.estimate(values, repeats=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert result.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_of_a_ratio_is_what_a_plain_bootstrap_gives() -> None:
    rng = np.random.default_rng(5)
    union = rng.integers(1, 1000, 60)
    inter = (union * rng.random(60)).astype(int)
    scores = []
    for _ in range(4000):
        pick = rng.integers(0, 60, 60)
        scores.append(inter[pick].sum() / union[pick].sum())
    low, high = np.quantile(scores, [0.05, 0.95])
    result = stats.estimate(inter, union, level=0.9, repeats=4000, seed=1)
    assert result.low == pytest.approx(low, abs=0.01)
    assert result.high == pytest.approx(high, abs=0.01)


def test_questions_of_one_image_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(2).random(50), 8)
    alone = stats.estimate(values)
    grouped = stats.estimate(values, groups=[f"image {i // 8}" for i in range(400)])
    # Eight copies carry no more information than one: the interval is sqrt(8) times wider.
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(8), rel=0.15)
    assert stats.estimate(values, groups=["one"] * 400).low == pytest.approx(values.mean())


def test_the_interval_is_reproducible_and_holds_the_value() -> None:
    first = stats.estimate(INTER, UNION, seed=4)
    assert first == stats.estimate(INTER, UNION, seed=4)
    assert first.low <= first.value <= first.high
    assert str(stats.estimate([0.5, 0.5])) == "0.500 [0.500, 0.500]"


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: stats.giou([1, 2], [3]), "as many"),
        (lambda: stats.giou([5], [3]), "mask 0"),
        (lambda: stats.ciou([-1], [3]), "mask 0"),
        (lambda: stats.giou([math.nan], [1]), "finite"),
        (lambda: stats.giou(np.ones((2, 2)), np.ones((2, 2))), "shape"),
        (lambda: stats.precision_at([0.5], 0.0), "threshold"),
        (lambda: stats.precision_at([1.5], 0.5), r"\[0, 1\]"),
        (lambda: stats.see_accuracy([True], [True, False]), "as many"),
        (lambda: stats.see_accuracy([0.7], [True]), "booleans"),  # type: ignore[list-item]
        (lambda: stats.estimate([1.0], [1.0, 2.0]), "same length"),
        (lambda: stats.estimate([1.0], groups=["a", "b"]), "same length"),
        (lambda: stats.estimate([1.0], [-1.0]), "at least 0"),
        (lambda: stats.estimate([1.0], level=1.0), "level"),
        (lambda: stats.estimate([1.0], repeats=0), "repeats"),
    ],
)
def test_wrong_input_is_named(call: object, part: str) -> None:
    assert callable(call)
    with pytest.raises(ReadsegError, match=part):
        call()


def test_input_is_left_alone() -> None:
    inter, union = np.array(INTER), np.array(UNION)
    stats.giou(inter, union), stats.estimate(inter, union)
    assert inter.tolist() == INTER and union.tolist() == UNION
