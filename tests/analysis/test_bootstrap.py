"""Intervals of functions of sums: those of `metrics.estimate` where that can compute them too, and paired otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from readseg.analysis.bootstrap import of_sums, of_weights
from readseg.errors import ReadsegError
from readseg.evaluation.metrics import estimate


def questions(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    return (
        rng.random(count),
        rng.integers(1, 9, count).astype(float),
        [f"image {k}" for k in rng.integers(0, 13, count)],
    )


def test_a_ratio_has_the_interval_of_estimate() -> None:
    a, b, images = questions()
    expected = estimate(a, b, groups=images)
    found = of_sums(np.stack([a, b], axis=1), lambda sums: sums[:, 0] / sums[:, 1], groups=images)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.count == expected.count == 60


def test_weights_give_the_same_interval() -> None:
    a, b, images = questions(seed=1)
    expected = estimate(a, b, groups=images)
    found = of_weights(lambda weights: (weights @ a) / (weights @ b), groups=images)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_all_scores_of_a_draw_are_over_the_same_images() -> None:
    a, b, images = questions(seed=2)
    terms = np.stack([a, b, a + 0.25 * b, b], axis=1)
    found = of_sums(terms, lambda s: s[:, 2] / s[:, 3] - s[:, 0] / s[:, 1], groups=images)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_draws_without_a_score_are_left_out() -> None:
    # Only image "a" has anything to divide by: the draws without it, about a quarter of them, have no score.
    terms = np.array([[1.0, 2.0], [5.0, 0.0]])
    found = of_sums(terms, lambda s: np.where(s[:, 1] > 0, s[:, 1] / s[:, 1], np.nan), groups=["a", "b"])
    assert (found.value, found.low, found.high, found.count) == (1.0, 1.0, 1.0, 2)


@pytest.mark.parametrize("count", [0, 3])
def test_no_score_is_nan(count: int) -> None:
    groups = ["a"] * count
    for found in (
        of_sums(np.zeros((count, 2)), lambda s: s[:, 0] / s[:, 1], groups=groups),
        of_weights(lambda weights: np.full(len(weights), math.nan), groups=groups),
    ):
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high) and found.count == 0


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ReadsegError, match="each of 2 questions, got 1"):
        of_sums(np.ones((2, 1)), lambda s: s[:, 0], groups=["a"])
