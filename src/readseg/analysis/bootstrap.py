"""Intervals of scores that are more than one ratio: differences, means of two shares, areas under curves.

Whole images are drawn with replacement: the draws are those of `evaluation.metrics.estimate`, so that a score gets the
same interval here and there, and all scores of one draw are over the same images (differences are paired). M questions,
G images, R draws, K sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from readseg.core.stats import Estimate, mask_ious
from readseg.errors import ReadsegError
from readseg.evaluation.outcomes import Outcome

_TOGETHER = 4_000_000  # weights that are held at once


def of_sums(
    terms: Float[np.ndarray, "M K"],
    score: Callable[[Float[np.ndarray, "R K"]], Float[np.ndarray, " R"]],
    *,
    groups: Sequence[Hashable],
    count: int | None = None,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A function of sums over questions, score(sum_m terms_m), with its percentile bootstrap interval.

    Args:
        terms: (M, K).
        score: (R, K) -> (R,): of R draws at once; NaN where a draw has no score, as where it divides by nothing.
        groups: M keys, the image of each question.
        count: what the estimate says it is over; M where left out.
        level: the interval's coverage.
        repeats: draws.
        seed: of the draws.

    Returns:
        NaN throughout where M = 0, or where the score has no value.

    Raises:
        ReadsegError: not one group for each row of terms.

    >>> mean = of_sums(np.array([[0.5, 1.0], [1.0, 1.0]]), lambda sums: sums[:, 0] / sums[:, 1], groups=["a", "b"])
    >>> mean.value, mean.low, mean.high
    (0.75, 0.5, 1.0)
    """
    index, size = _places(groups, len(terms))
    sums = np.zeros((size, terms.shape[1]))
    np.add.at(sums, index, terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(score(sums.sum(axis=0, keepdims=True))[0])
        drawn = score(_draws(size, repeats, seed) @ sums)
    return _estimate(value, drawn, len(terms) if count is None else count, level)


def of_weights(
    score: Callable[[Float[np.ndarray, "R M"]], Float[np.ndarray, " R"]],
    *,
    groups: Sequence[Hashable],
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A function of weighted questions with its percentile bootstrap interval: how often a draw holds each of them.

    Args:
        score: (R, M) -> (R,), of R draws at once; NaN where a draw has no score.
        groups: M keys, the image of each question.
        level: the interval's coverage.
        repeats: draws.
        seed: of the draws.

    Returns:
        NaN throughout where M = 0, or where the score has no value with all weights 1.
    """
    index, size = _places(groups, len(groups))
    value = float(score(np.ones((1, len(groups))))[0])
    draws = _draws(size, repeats, seed)
    step = max(1, _TOGETHER // max(1, len(groups)))
    parts = [score(draws[start : start + step][:, index].astype(np.float64)) for start in range(0, repeats, step)]
    return _estimate(value, np.concatenate(parts), len(groups), level)


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[Estimate, Estimate]:
    """How far the gIoU and the cIoU of `one` lie above those of `other`, over the same questions.

    Paired: images are drawn with replacement, and both scores of a draw are over the same images, so that what makes
    an image hard for both does not widen the interval. Only true premises count.

        gIoU: sum_m IoU_m / M - sum_m IoU'_m / M'      cIoU: sum I / sum U - sum I' / sum U'

    Where both say the same words, M = M' and the first is the mean of the differences of single masks.

    Raises:
        ReadsegError: they are not about the same questions.
    """
    if [outcome.key for outcome in one] != [outcome.key for outcome in other]:
        raise ReadsegError("difference: expected outcomes of the same questions in the same order")
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.present]
    images, count = [a.image for a, _ in pairs], sum(len(a.unions) for a, _ in pairs)
    ious = np.array([[*_iou(a), *_iou(b)] for a, b in pairs]).reshape(-1, 4)
    areas = np.array([[sum(a.intersections), sum(a.unions), sum(b.intersections), sum(b.unions)] for a, b in pairs])
    giou = of_sums(ious, _gap, groups=images, count=count)
    return giou, of_sums(areas.reshape(-1, 4).astype(float), _gap, groups=images, count=count)


def _places(groups: Sequence[Hashable], count: int) -> tuple[Int[np.ndarray, " M"], int]:
    """The number of each question's group, in order of appearance, and how many groups there are."""
    if len(groups) != count:
        raise ReadsegError(f"bootstrap: expected one group for each of {count} questions, got {len(groups)}")
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in groups], dtype=np.intp), len(known)


def _draws(size: int, repeats: int, seed: int) -> Int[np.ndarray, "R G"]:
    if not size:
        return np.zeros((repeats, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=repeats)


def _estimate(value: float, drawn: Float[np.ndarray, " R"], count: int, level: float) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not count or not math.isfinite(value) or not len(drawn):
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), count)


def _iou(outcome: Outcome) -> tuple[float, float]:
    """The sum of a question's IoU, and over how many masks."""
    return float(mask_ious(outcome.intersections, outcome.unions).sum()), float(len(outcome.unions))


def _gap(sums: np.ndarray) -> np.ndarray:
    """How far one ratio of sums lies above another: (R, 4) -> (R,)."""
    return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
