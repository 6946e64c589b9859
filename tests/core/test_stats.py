"""Scores, intervals, ROC curves and thresholds against plain loops and hand-computed values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.core import stats
from readseg.core.stats import (
    Cut,
    auc,
    best_cut,
    bootstrap_sums,
    bootstrap_weights,
    cross_fitted,
    estimate,
    mask_ious,
    roc,
)

# Four masks: exact, half, missed, right and empty.
INTER, UNION = [40, 30, 0, 0], [40, 60, 200, 0]

counts = st.lists(
    st.integers(0, 5000).flatmap(lambda u: st.tuples(st.integers(0, u), st.just(u))), min_size=1, max_size=30
)


def test_hand_computed_values() -> None:
    assert estimate(mask_ious(INTER, UNION)).value == pytest.approx((1 + 0.5 + 0 + 1) / 4, abs=1e-6)
    assert estimate(INTER, UNION).value == 70 / 300
    assert estimate([0, 0], [0, 0]).value == 0.0
    assert mask_ious([0, 0], [0, 17]).tolist() == [1.0, 0.0], "right and empty, wrongly filled"
    assert mask_ious([1], [1])[0] == pytest.approx(1 / 1.00001, abs=1e-12), "the reference's epsilon"


@given(counts)
@settings(max_examples=50, deadline=None)
def test_equal_exact_fractions(pairs: list[tuple[int, int]]) -> None:
    inter, union = [i for i, _ in pairs], [u for _, u in pairs]
    epsilon = Fraction(1, 100_000)
    exact = sum((Fraction(1) if u == 0 else i / (u + epsilon) for i, u in pairs), Fraction(0)) / len(pairs)
    assert estimate(mask_ious(inter, union)).value == pytest.approx(float(exact), abs=1e-12)
    if sum(union):
        assert estimate(inter, union).value == pytest.approx(float(Fraction(sum(inter), sum(union))), abs=1e-12)


def test_nothing_counted_is_nan_not_a_number_that_looks_good() -> None:
    empty = estimate([])
    assert math.isnan(empty.value) and empty.count == 0 and str(empty) == "-"


def test_intervals_are_the_normal_one_of_a_mean_and_a_plain_bootstraps_of_a_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stats, "REPEATS", 4000)
    values = np.random.default_rng(0).normal(0.6, 0.2, 900)
    mean, half = estimate(values), 1.96 * values.std() / math.sqrt(len(values))
    assert (mean.low, mean.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)

    rng = np.random.default_rng(5)
    union = rng.integers(1, 1000, 60)
    inter = (union * rng.random(60)).astype(int)
    picks = rng.integers(0, 60, (4000, 60))
    expected = np.quantile(inter[picks].sum(1) / union[picks].sum(1), [0.025, 0.975])
    ratio = estimate(inter, union)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(expected), abs=0.01)


def test_questions_of_one_image_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(2).random(50), 8)
    alone = estimate(values)
    grouped = estimate(values, groups=[f"image {i // 8}" for i in range(400)])
    # Eight copies carry no more information than one: the interval is sqrt(8) times wider.
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(8), rel=0.15)
    assert estimate(values, groups=["one"] * 400).low == pytest.approx(values.mean())


def test_the_interval_is_reproducible_and_holds_the_value() -> None:
    first = estimate(INTER, UNION)
    assert first == estimate(INTER, UNION)
    assert first.low <= first.value <= first.high
    assert str(estimate([0.5, 0.5])) == "0.500 [0.500, 0.500]"
    assert str(estimate(np.arange(20.0) / 20, groups=[k % 7 for k in range(20)])) == "0.475 [0.415, 0.535]", "the draws"


def questions(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    values, weights = rng.random(count), rng.integers(1, 9, count).astype(float)
    return values, weights, [f"image {k}" for k in rng.integers(0, 13, count)]


def test_sums_and_weights_give_the_interval_of_a_ratio() -> None:
    a, b, images = questions()
    expected = estimate(a, b, groups=images)
    for found in (
        bootstrap_sums(np.stack([a, b], axis=1), lambda sums: sums[:, 0] / sums[:, 1], groups=images),
        bootstrap_weights(lambda weights: (weights @ a) / (weights @ b), groups=images),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert found.count == expected.count == 60


def test_all_scores_of_a_draw_are_over_the_same_images() -> None:
    a, b, images = questions(seed=2)
    found = bootstrap_sums(np.stack([a + 0.25 * b, b, a, b], axis=1), stats.ratio_difference, groups=images)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_draws_without_a_score_are_left_out() -> None:
    # Only image "a" has anything to divide by: the draws without it, about a quarter of them, have no score.
    terms = np.array([[1.0, 2.0], [5.0, 0.0]])
    found = bootstrap_sums(terms, lambda s: np.where(s[:, 1] > 0, s[:, 1] / s[:, 1], np.nan), groups=["a", "b"])
    assert (found.value, found.low, found.high, found.count) == (1.0, 1.0, 1.0, 2)


@pytest.mark.parametrize("count", [0, 3])
def test_no_score_is_nan(count: int) -> None:
    groups = ["a"] * count
    for found in (
        bootstrap_sums(np.zeros((count, 2)), lambda s: s[:, 0] / s[:, 1], groups=groups),
        bootstrap_weights(lambda weights: np.full(len(weights), math.nan), groups=groups),
    ):
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high) and found.count == 0


def scored(seed: int, count: int = 40, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, one of them -inf, and truths that they tell something about."""
    rng = np.random.default_rng(seed)
    true = rng.random(count) < 0.4
    scores = np.rint(rng.random(count) * levels + 3 * true)
    scores[rng.integers(count)] = -math.inf
    return scores, true


def brute_auc(scores: np.ndarray, true: np.ndarray) -> float:
    wins = [(s > r) + (s == r) / 2 for s in scores[true] for r in scores[~true]]
    return sum(wins) / len(wins)


def test_the_area_is_that_of_all_pairs_and_a_weight_is_how_often_a_question_counts() -> None:
    for seed in range(5):
        scores, true = scored(seed)
        assert auc(scores, true) == pytest.approx([brute_auc(scores, true)])
        weights = np.random.default_rng(7).integers(0, 4, (5, len(scores)))
        expected = [brute_auc(np.repeat(scores, own), np.repeat(true, own)) for own in weights]
        assert auc(scores, true, weights.astype(float)) == pytest.approx(expected)


def test_no_area_without_both_kinds() -> None:
    scores, true = scored(3)
    assert np.isnan(auc(scores, true, true[None].astype(float))).all()
    assert np.isnan(auc(scores[true], true[true])).all()
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool))).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_what_every_threshold_decides(seed: int) -> None:
    scores, true = scored(seed)
    curve = roc(scores, true)
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    expected = [((scores >= t)[~true].mean(), (scores >= t)[true].mean()) for t in thresholds]
    assert np.stack(curve, axis=1) == pytest.approx(np.array(expected))
    x, y = curve
    assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(auc(scores, true)[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_best_cut_is_the_best_of_all(seed: int) -> None:
    scores, true = scored(seed)
    scores = -scores[::-1] if seed % 2 else scores
    scores, true = np.where(np.isinf(scores), -99.0, scores), true

    def balanced(decided: np.ndarray) -> float:
        return (decided[true].mean() + 1 - decided[~true].mean()) / 2

    levels = np.unique(scores)
    candidates = [-1e9, 1e9, *((levels[1:] + levels[:-1]) / 2)]
    best = max(balanced((scores >= t) == above) for t in candidates for above in (True, False))
    assert balanced(best_cut(scores, true).decide(scores)) == pytest.approx(best)


def test_a_cut_lies_between_scores_also_beside_infinity() -> None:
    true = np.array([False, False, True, True])
    assert best_cut(np.array([1.0, 2.0, 6.0, 7.0]), true) == Cut(4.0, True)
    assert best_cut(np.array([7.0, 6.0, 2.0, 1.0]), true) == Cut(4.0, False)
    assert best_cut(np.array([-math.inf, -math.inf, 6.0, 7.0]), true) == Cut(6.0, True)
    near = np.nextafter(1.0, 2.0)
    assert best_cut(np.array([1.0, 1.0, near, near]), true).decide(np.array([1.0, near])).tolist() == [False, True]


def test_a_half_is_decided_by_the_other_half() -> None:
    # With two images each is decided by the cut of the other, however they are halved.
    scores = np.array([1.0, 3.0, 5.0, 11.0, 13.0, 15.0])
    true = np.array([False, True, True, False, False, True])
    taken = cross_fitted(scores, true, ["a"] * 3 + ["b"] * 3)
    # The best cut of "b" is 14, that of "a" is 2: by those nothing of "a" and all of "b" is taken for true.
    assert taken is not None and taken.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_threshold_for_noise_is_worth_nothing_on_other_images() -> None:
    rng = np.random.default_rng(0)
    on_itself, on_others = [], []
    for _ in range(30):
        true = np.arange(40) % 2 == 0
        scores = rng.random(40)
        taken = cross_fitted(scores, true, list(range(40)))
        assert taken is not None
        itself = best_cut(scores, true).decide(scores)
        for shares, found in ((itself, on_itself), (taken, on_others)):
            found.append((shares[true].mean() + 1 - shares[~true].mean()) / 2)
    assert np.mean(on_itself) > 0.6 and abs(np.mean(on_others) - 0.5) < 0.04


def test_nothing_can_be_chosen_on_one_kind() -> None:
    assert cross_fitted(np.arange(4.0), np.array([True, True, False, False]), ["a", "a", "b", "b"]) is None
    assert cross_fitted(np.arange(4.0), np.array([True, False, True, False]), ["a"] * 4) is None
    assert cross_fitted(np.arange(2.0), np.array([True, True]), ["a", "b"]) is None
