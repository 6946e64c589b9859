"""Scores as decisions: the ROC curve, the area under it, and thresholds that are not chosen on what they are scored on.

M questions with a score each, of which some are true. A score of -inf is the lowest: of what has none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from readseg.errors import ReadsegError


class Roc(NamedTuple):
    """What all thresholds "at least t" decide, from the strictest: K = 1 + number of different scores.

    false_positive: (K,) share of the false ones that are taken for true, from 0 to 1.
    true_positive: (K,) share of the true ones that are, from 0 to 1.
    """

    false_positive: Float[np.ndarray, " K"]
    true_positive: Float[np.ndarray, " K"]


class Cut(NamedTuple):
    """A rule that decides by a score.

    threshold: where it cuts.
    above: True: true is what is at least the threshold. False: what is below it.
    """

    threshold: float
    above: bool

    def decide(self, scores: Float[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """What it takes for true: (M,)."""
        return (scores >= self.threshold) == self.above


def roc(scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"]) -> Roc:
    """The ROC curve; equal scores make one step together, so that it is no better than what a threshold can decide.

    Args:
        scores: (M,), no NaN.
        true: (M,), at least one true and one false.

    Raises:
        ReadsegError: lengths differ, a score is NaN, or only one kind is there.

    >>> roc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])).true_positive.tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    _check(scores, true)
    _, level = np.unique(-scores, return_inverse=True)
    steps = [np.bincount(level[kind], minlength=level.max() + 1) / kind.sum() for kind in (~true, true)]
    false_positive, true_positive = (np.concatenate([[0.0], step.cumsum().clip(max=1)]) for step in steps)
    return Roc(false_positive, true_positive)


def auc(
    scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"], weights: Float[np.ndarray, "R M"] | None = None
) -> Float[np.ndarray, " R"]:
    """Area under the ROC curve: how often a true one scores higher than a false one; equal scores count one half.

        AUC = sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / sum_ij w_i w_j,    i true, j false

    Args:
        scores: (M,), no NaN.
        true: (M,).
        weights: (R, M), how often each question counts, R times; once where left out (R = 1).

    Returns:
        (R,), NaN where no true or no false one has weight.

    Raises:
        ReadsegError: lengths differ or a score is NaN.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])).tolist()
    [0.875]
    """
    _check(scores, true, both=False)
    weights = np.ones((1, len(scores))) if weights is None else weights
    if not len(scores):
        return np.full(len(weights), math.nan)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    positive = np.add.reduceat(weights[:, order] * true[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~true[order], starts, axis=1)
    below = negative.cumsum(axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive * below).sum(axis=1) / pairs, math.nan)


def best_cut(scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"]) -> Cut:
    """The cut with the highest balanced accuracy on these scores, (true positive rate + 1 - false positive rate) / 2.

    It lies midway between two scores. Of equally good ones the lowest is taken, and "above" before "below".

    Args:
        scores: (M,), no NaN.
        true: (M,), at least one true and one false.

    Raises:
        ReadsegError: as `roc`.

    >>> best_cut(np.array([0.1, 0.3, 0.5, 0.9]), np.array([False, False, True, True]))
    Cut(threshold=0.4, above=True)
    """
    curve = roc(scores, true)
    balanced = ((curve.true_positive + 1 - curve.false_positive) / 2)[::-1]  # from the lowest threshold
    levels = np.unique(scores)
    above = int(balanced.argmax())
    below = int(balanced.argmin())
    if balanced[above] >= 1 - balanced[below]:
        return Cut(_between(levels, above), True)
    return Cut(_between(levels, below), False)


def cross_fitted(
    scores: Float[np.ndarray, " M"],
    true: Bool[np.ndarray, " M"],
    groups: Sequence[Hashable],
    *,
    repeats: int = 20,
    seed: int = 0,
) -> Float[np.ndarray, " M"] | None:
    """What a threshold decides that was chosen on other images: `best_cut` of one half, applied to the other half.

    The images are halved by lot `repeats` times; each time both halves are decided by the cut of the other one.

    Args:
        scores: (M,), no NaN.
        true: (M,).
        groups: M keys, the image of each question: questions about one image stay together.
        repeats: how often the images are halved.
        seed: of the lots.

    Returns:
        (M,) in [0, 1], how often each was taken for true; None where some half holds only true or only false ones, so
        that nothing can be chosen on it.

    Raises:
        ReadsegError: lengths differ or a score is NaN.
    """
    _check(scores, true, both=False)
    if len(groups) != len(scores):
        raise ReadsegError(f"expected one group for each of {len(scores)} scores, got {len(groups)}")
    known: dict[Hashable, int] = {}
    index = np.array([known.setdefault(key, len(known)) for key in groups], dtype=np.intp)
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(scores))
    for _ in range(repeats):
        first = np.zeros(len(known), dtype=bool)
        first[rng.permutation(len(known))[: len(known) // 2]] = True
        chosen_on = first[index]
        for half in (chosen_on, ~chosen_on):
            if not true[half].any() or true[half].all():
                return None
            taken[~half] += best_cut(scores[half], true[half]).decide(scores[~half])
    return taken / repeats


def _between(levels: Float[np.ndarray, " K"], place: int) -> float:
    """A threshold that the scores from this place on reach, and no lower one."""
    if place in (0, len(levels)):
        return -math.inf if place == 0 else math.inf
    lower, upper = float(levels[place - 1]), float(levels[place])
    middle = lower + (upper - lower) / 2
    return middle if lower < middle < math.inf else upper


def _check(scores: np.ndarray, true: np.ndarray, *, both: bool = True) -> None:
    if scores.shape != true.shape or scores.ndim != 1:
        raise ReadsegError(f"expected a score and a truth for each question, got {scores.shape} and {true.shape}")
    if np.isnan(scores).any():
        raise ReadsegError("scores: expected numbers, got NaN")
    if both and (not true.any() or true.all()):
        raise ReadsegError("expected true and false questions, got only one kind")
