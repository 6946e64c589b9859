"""Intervals of functions of sums: those of `metrics.estimate` where that can compute them too, and paired otherwise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from readseg.analysis.bootstrap import difference, of_sums, of_weights
from readseg.core.stats import estimate
from readseg.errors import ReadsegError
from readseg.evaluation.outcomes import Outcome


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


def outcome(key: str, image: str, *counts: tuple[int, int], present: bool | None = True) -> Outcome:
    inter, union = tuple(i for i, _ in counts), tuple(u for _, u in counts)
    return Outcome(key, image, "", "", frozenset(), present, sum(inter) > 0, inter, union, False)


def random_outcomes(seed: int) -> list[Outcome]:
    """Twelve images with 1 to 4 questions of 1 to 3 masks; as many masks for every seed."""
    shape, rng, found = np.random.default_rng(99), np.random.default_rng(seed), []
    for image in range(12):
        for question in range(shape.integers(1, 5)):
            unions = shape.integers(50, 500, shape.integers(1, 4))
            counts = [(int(rng.integers(0, u + 1)), int(u)) for u in unions]
            found.append(outcome(f"{image}/{question}", str(image), *counts))
        found.append(outcome(f"{image}/false", str(image), (0, int(rng.integers(0, 9))), present=False))
        found.append(outcome(f"{image}/words", str(image), present=None))
    return found


def test_a_difference_is_the_mean_of_differences_where_masks_pair() -> None:
    one, other = random_outcomes(1), random_outcomes(2)
    gaps, images = [], []
    for a, b in zip(one, other, strict=True):
        for (i, u), (j, v) in zip(zip(*_counts(a), strict=True), zip(*_counts(b), strict=True), strict=True):
            if a.present:
                gaps.append(i / (u + 1e-5) - j / (v + 1e-5))
                images.append(a.image)
    giou, ciou = difference(one, other)
    assert dataclasses.astuple(giou) == pytest.approx(dataclasses.astuple(estimate(gaps, groups=images)), abs=1e-12)
    totals = [[sum(map(sum, (_counts(o)[k] for o in side if o.present))) for k in (0, 1)] for side in (one, other)]
    assert ciou.value == pytest.approx(totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1], abs=1e-12)
    assert ciou.low < ciou.value < ciou.high and ciou.count == giou.count == len(gaps)
    assert [dataclasses.astuple(e)[:3] for e in difference(one, one)] == [(0, 0, 0), (0, 0, 0)]


def _counts(one: Outcome) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return one.intersections, one.unions


def test_a_difference_of_models_that_say_different_words() -> None:
    one = [outcome("a/0", "a", (50, 100)), outcome("b/0", "b", (10, 10), (0, 30))]
    other = [outcome("a/0", "a", (20, 100)), outcome("b/0", "b", (10, 20))]
    giou, ciou = difference(one, other)
    assert giou.value == pytest.approx((0.5 + 1 + 0) / 3 - (0.2 + 0.5) / 2, abs=1e-5)
    assert ciou.value == pytest.approx(60 / 140 - 30 / 120, abs=1e-12)
    assert (giou.low, giou.high) == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.3, abs=1e-5)), "only b, or only a"
    nothing = difference([outcome("a/0", "a", present=None)], [outcome("a/0", "a", present=None)])
    assert all(np.isnan(e.value) and e.count == 0 for e in nothing)
    for wrong in (other[:1], other[::-1]):
        with pytest.raises(ReadsegError, match="same questions in the same order"):
            difference(one, wrong)
