"""Scores with their intervals, ROC curves, and thresholds that are not chosen on what they are scored on.

Most scores are a ratio of two sums over masks or questions, score = sum_m a_m / sum_m b_m; a mask enters with the
pixels I and U of its intersection and union with the target (`core.masks.intersection_and_union`):

    gIoU                   a = IoU of the mask,        b = 1
    cIoU                   a = I,                      b = U
    precision at t         a = [IoU >= t],             b = 1
    See accuracy           a = [said == true],         b = 1
    refusal recall         a = [not said],             b = 1, over false premises  (gRefCOCO: N-acc)
    true premises answered a = [said],                 b = 1, over true premises   (gRefCOCO: T-acc)

so one function, `estimate`, gives any of them its confidence interval. Others are functions of such sums
(`bootstrap_sums`) or of weighted questions (`bootstrap_weights`). Whole images are drawn with replacement, as questions
about one image are not independent. All functions draw alike: differences are paired.

Axes: M = masks or questions, G = images (groups), R = draws, K = sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

Numbers = Sequence[float] | npt.NDArray[np.generic]

UNION_EPSILON = 1e-5
"""Added to the union by the reference of this family; a perfect mask of one pixel scores 0.99999."""

LEVEL, REPEATS, SEED = 0.95, 1000, 0
"""Coverage of the intervals, number of draws, and their seed: the same input gives the same interval."""

_WEIGHTS_AT_ONCE = 4_000_000
_HALVINGS = 20


@dataclass(frozen=True)
class Estimate:
    """A score with its interval; NaN where nothing was counted. count: how many masks or questions it is over."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def mask_ious(intersections: Numbers, unions: Numbers) -> Float[np.ndarray, " M"]:
    """IoU of each mask: I / (U + 1e-5), and 1 where U = 0 (nothing to find, nothing claimed)."""
    inter, union = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    assert inter.shape == union.shape and ((inter >= 0) & (inter <= union)).all()
    return np.where(union == 0, 1.0, inter / (union + UNION_EPSILON))


def estimate(
    numerators: Numbers, denominators: Numbers | None = None, *, groups: Sequence[Hashable] | None = None
) -> Estimate:
    """A ratio of sums, sum_m a_m / sum_m b_m, b_m >= 0, by default 1, with its percentile bootstrap interval.

    `groups` are M keys, e.g. the image of each question; by default every entry is a group. The score is 0 where all
    denominators are 0, NaN where M = 0.
    """
    a = np.asarray(numerators, dtype=np.float64)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if len(a) and not b.any():
        return Estimate(0.0, 0.0, 0.0, len(a))
    drawn = _drawn_sums(np.stack([a, b], axis=1), range(len(a)) if groups is None else groups)[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return _with_interval(float(a.sum() / b.sum()), drawn[:, 0] / drawn[:, 1], len(a))


def bootstrap_sums(
    terms: Float[np.ndarray, "M K"],
    score: Callable[[Float[np.ndarray, "R K"]], Float[np.ndarray, " R"]],
    *,
    groups: Sequence[Hashable],
    count: int | None = None,
) -> Estimate:
    """A function of sums over questions, score(sum_m terms_m), with its interval; over `count`, by default M.

    `score` takes R draws at once and gives NaN where a draw has none, as where it divides by nothing.
    """
    sums, drawn = _drawn_sums(terms, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(score(sums.sum(axis=0, keepdims=True))[0])
        return _with_interval(value, score(drawn), len(terms) if count is None else count)


def bootstrap_weights(
    score: Callable[[Float[np.ndarray, "R M"]], Float[np.ndarray, " R"]], *, groups: Sequence[Hashable]
) -> Estimate:
    """A function of how often each question counts, with its interval; as `bootstrap_sums` where it has no value."""
    index, size = _group_index(groups)
    value = float(score(np.ones((1, len(groups))))[0])
    draws = _draws(size)
    step = max(1, _WEIGHTS_AT_ONCE // max(1, len(groups)))
    parts = [score(draws[start : start + step][:, index].astype(np.float64)) for start in range(0, REPEATS, step)]
    return _with_interval(value, np.concatenate(parts), len(groups))


def ratio_difference(sums: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, " R"]:
    """How far one ratio of sums lies above another, s0 / s1 - s2 / s3: a score for `bootstrap_sums`."""
    return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]


class Roc(NamedTuple):
    """The shares of false and of true questions that the K - 1 thresholds "at least t" take for true, from 0 to 1."""

    false_positive: Float[np.ndarray, " K"]
    true_positive: Float[np.ndarray, " K"]


class Cut(NamedTuple):
    """A rule that decides by a score: true is what is at least the threshold (`above`), or what is below it."""

    threshold: float
    above: bool

    def decide(self, scores: Float[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """What it takes for true."""
        return (scores >= self.threshold) == self.above


def roc(scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"]) -> Roc:
    """The ROC curve of scores, no NaN, -inf the lowest; both kinds of question must be there.

    Equal scores make one step together, so that it is no better than what a threshold can decide.
    """
    _, level = np.unique(-scores, return_inverse=True)
    steps = [np.bincount(level[kind], minlength=level.max() + 1) / kind.sum() for kind in (~true, true)]
    false_positive, true_positive = (np.concatenate([[0.0], step.cumsum().clip(max=1)]) for step in steps)
    return Roc(false_positive, true_positive)


def auc(
    scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"], weights: Float[np.ndarray, "R M"] | None = None
) -> Float[np.ndarray, " R"]:
    """Area under the ROC curve: how often a true one scores higher than a false one; equal scores count one half.

        AUC = sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / sum_ij w_i w_j,    i true, j false

    The weights say how often each question counts, R times; by default once (R = 1). NaN where no true or no false one
    has weight.
    """
    assert not np.isnan(scores).any()
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
    """
    curve = roc(scores, true)
    balanced = ((curve.true_positive + 1 - curve.false_positive) / 2)[::-1]  # from the lowest threshold
    levels = np.unique(scores)
    above, below = int(balanced.argmax()), int(balanced.argmin())
    is_above = bool(balanced[above] >= 1 - balanced[below])
    # The threshold is one that the scores from this one on reach, and no lower one.
    first = above if is_above else below
    if first in (0, len(levels)):
        return Cut(math.inf if first else -math.inf, is_above)
    lower, upper = float(levels[first - 1]), float(levels[first])
    middle = lower + (upper - lower) / 2
    return Cut(middle if lower < middle < math.inf else upper, is_above)


def cross_fitted(
    scores: Float[np.ndarray, " M"], true: Bool[np.ndarray, " M"], groups: Sequence[Hashable]
) -> Float[np.ndarray, " M"] | None:
    """How often each question is taken for true by a threshold that was chosen on other images, (M,) in [0, 1].

    The images are halved at random 20 times; each half is decided by the `best_cut` of the other one. None where
    some half holds only true or only false questions, so that nothing can be chosen on it.
    """
    index, size = _group_index(groups)
    rng = np.random.default_rng(SEED)
    taken = np.zeros(len(scores))
    for _ in range(_HALVINGS):
        first = np.zeros(size, dtype=bool)
        first[rng.permutation(size)[: size // 2]] = True
        chosen_on = first[index]
        for half in (chosen_on, ~chosen_on):
            if not true[half].any() or true[half].all():
                return None
            taken[~half] += best_cut(scores[half], true[half]).decide(scores[~half])
    return taken / _HALVINGS


def _group_index(groups: Sequence[Hashable]) -> tuple[Int[np.ndarray, " M"], int]:
    """The number of each question's group, in order of appearance, and how many groups there are."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in groups], dtype=np.intp), len(known)


def _draws(size: int) -> Int[np.ndarray, "R G"]:
    """How often each of G groups is in each of R draws with replacement."""
    if not size:
        return np.zeros((REPEATS, 0), dtype=np.int64)
    return np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), size=REPEATS)


def _drawn_sums(
    terms: Float[np.ndarray, "M K"], groups: Sequence[Hashable]
) -> tuple[Float[np.ndarray, "G K"], Float[np.ndarray, "R K"]]:
    """The sums of each group, and of each draw."""
    index, size = _group_index(groups)
    assert len(index) == len(terms)
    sums = np.zeros((size, terms.shape[1]))
    np.add.at(sums, index, terms)
    return sums, _draws(size) @ sums


def _with_interval(value: float, drawn: Float[np.ndarray, " R"], count: int) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not count or not math.isfinite(value) or not len(drawn):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), count)
