"""ROC curves, areas and thresholds against what loops over all pairs and all thresholds give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from readseg.core.roc import Cut, auc, best_cut, cross_fitted, roc
from readseg.errors import ReadsegError


def drawn(seed: int, count: int = 40, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, one of them -inf, and truths that they tell something about."""
    rng = np.random.default_rng(seed)
    true = rng.random(count) < 0.4
    scores = np.rint(rng.random(count) * levels + 3 * true)
    scores[rng.integers(count)] = -math.inf
    return scores, true


def brute_auc(scores: np.ndarray, true: np.ndarray) -> float:
    wins = [(s > r) + (s == r) / 2 for s in scores[true] for r in scores[~true]]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_all_pairs(seed: int) -> None:
    scores, true = drawn(seed)
    assert auc(scores, true) == pytest.approx([brute_auc(scores, true)])


def test_a_weight_is_how_often_a_question_counts() -> None:
    scores, true = drawn(7)
    weights = np.random.default_rng(7).integers(0, 4, (5, len(scores)))
    expected = [brute_auc(np.repeat(scores, own), np.repeat(true, own)) for own in weights]
    assert auc(scores, true, weights.astype(float)) == pytest.approx(expected)


def test_no_area_without_both_kinds() -> None:
    scores, true = drawn(3)
    assert np.isnan(auc(scores, true, true[None].astype(float))).all()
    assert np.isnan(auc(scores[true], true[true])).all()
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool))).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_what_every_threshold_decides(seed: int) -> None:
    scores, true = drawn(seed)
    curve = roc(scores, true)
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    expected = [((scores >= t)[~true].mean(), (scores >= t)[true].mean()) for t in thresholds]
    assert np.stack(curve, axis=1) == pytest.approx(np.array(expected))
    x, y = curve
    assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(auc(scores, true)[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_best_cut_is_the_best_of_all(seed: int) -> None:
    scores, true = drawn(seed)
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
    images = ["a"] * 3 + ["b"] * 3
    # The best cut of "b" is 14, that of "a" is 2: by those nothing of "a" and all of "b" is taken for true.
    assert cross_fitted(scores, true, images).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_threshold_for_noise_is_worth_nothing_on_other_images() -> None:
    rng = np.random.default_rng(0)
    on_itself, on_others = [], []
    for _ in range(30):
        true = np.arange(40) % 2 == 0
        scores = rng.random(40)
        taken = cross_fitted(scores, true, list(range(40)), repeats=4)
        itself = best_cut(scores, true).decide(scores)
        for shares, found in ((itself, on_itself), (taken, on_others)):
            found.append((shares[true].mean() + 1 - shares[~true].mean()) / 2)
    assert np.mean(on_itself) > 0.6 and abs(np.mean(on_others) - 0.5) < 0.04


def test_nothing_can_be_chosen_on_one_kind() -> None:
    assert cross_fitted(np.arange(4.0), np.array([True, True, False, False]), ["a", "a", "b", "b"]) is None
    assert cross_fitted(np.arange(4.0), np.array([True, False, True, False]), ["a"] * 4) is None
    assert cross_fitted(np.arange(2.0), np.array([True, True]), ["a", "b"]) is None


def test_wrong_input_is_named() -> None:
    both = np.array([True, False])
    with pytest.raises(ReadsegError, match="only one kind"):
        roc(np.zeros(2), ~both | both)
    with pytest.raises(ReadsegError, match="NaN"):
        auc(np.array([0.0, math.nan]), both)
    with pytest.raises(ReadsegError, match="score and a truth"):
        best_cut(np.zeros(3), both)
    with pytest.raises(ReadsegError, match="one group for each of 2 scores, got 1"):
        cross_fitted(np.zeros(2), both, ["a"])
