"""The field's scores, as pure functions of pixel counts and of yes/no decisions.

Nothing here knows an image or a model. A mask enters as two counts against its target: intersection I and
union U in pixels of the image, ignored pixels (255) already left out (`readseg.core.masks.intersection_and_union`).

Every score is a ratio of two sums over masks or questions:

    score = sum_m a_m / sum_m b_m

    gIoU                   a = IoU of the mask,        b = 1
    cIoU                   a = I,                      b = U
    precision at t         a = [IoU >= t],             b = 1
    See accuracy           a = [said == true],         b = 1
    refusal recall         a = [not said],             b = 1, over false premises  (gRefCOCO: N-acc)
    true premises answered a = [said],                 b = 1, over true premises   (gRefCOCO: T-acc)

so one function, `estimate`, gives any of them its confidence interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from readseg.errors import ReadsegError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Numbers = Sequence[float] | npt.NDArray[np.generic]
Decisions = Sequence[bool] | npt.NDArray[np.bool_]

UNION_EPSILON = 1e-5
"""Added to the union by the reference of this family; a perfect mask of one pixel scores 0.99999."""


@dataclass(frozen=True)
class Estimate:
    """A score with the interval that says how far to trust it.

    Attributes:
        value: the score; NaN where nothing was counted.
        low: lower end of the interval, NaN where `value` is.
        high: upper end.
        count: how many masks or questions the score is over.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def mask_ious(intersections: Numbers, unions: Numbers) -> Floats:
    """IoU of each mask: I / (U + 1e-5), and 1 where U = 0 (nothing to find, nothing claimed).

    Args:
        intersections: (M,) pixels in both the mask and its target.
        unions: (M,) pixels in either.

    Returns:
        (M,) float64 in [0, 1].

    Raises:
        ReadsegError: lengths differ, a count is negative or not finite, or I > U.
    """
    inter, union = _counts(intersections, unions)
    return np.where(union == 0, 1.0, inter / (union + UNION_EPSILON))


def giou(intersections: Numbers, unions: Numbers) -> float:
    """gIoU: the mean over masks of `mask_ious` (each mask counts alike). NaN without masks.

    Arguments and errors as `mask_ious`.

    >>> round(giou([50, 0], [100, 0]), 3)
    0.75
    """
    return _mean(mask_ious(intersections, unions))


def ciou(intersections: Numbers, unions: Numbers) -> float:
    """cIoU: sum of I over sum of U (large objects count more). NaN without masks, 0 where every union is empty.

    Arguments and errors as `mask_ious`.

    >>> ciou([50, 0], [100, 100])
    0.25
    """
    inter, union = _counts(intersections, unions)
    if len(inter) == 0:
        return math.nan
    return float(inter.sum() / union.sum()) if union.sum() > 0 else 0.0


def precision_at(ious: Numbers, threshold: float) -> float:
    """Share of masks whose IoU is at least `threshold`. NaN without masks.

    Args:
        ious: (M,) in [0, 1].
        threshold: in (0, 1]; the field reports 0.5, 0.7 and 0.9.

    Raises:
        ReadsegError: the threshold or an IoU lies outside.
    """
    if not 0 < threshold <= 1:
        raise ReadsegError(f"threshold: expected a value in (0, 1], got {threshold}")
    values = _vector(ious, "ious")
    if np.any((values < 0) | (values > 1)):
        raise ReadsegError(f"ious: expected values in [0, 1], got {values.min()} to {values.max()}")
    return _mean((values >= threshold).astype(np.float64))


def see_accuracy(said: Decisions, true: Decisions) -> float:
    """FP-RefCOCO's See accuracy: share of questions where the object is said to be there if and only if it is.

    Args:
        said: (Q,) the answer holds a [SEG] and its mask is not empty.
        true: (Q,) the object is in the image.

    Raises:
        ReadsegError: lengths differ, or the values are not booleans.
    """
    s, t = _decisions(said, true)
    return _mean((s == t).astype(np.float64))


def refusal_recall(said: Decisions, true: Decisions) -> float:
    """Share of false premises that were refused (gRefCOCO's N-acc). NaN without any.

    Arguments and errors as `see_accuracy`.
    """
    s, t = _decisions(said, true)
    return _mean((~s[~t]).astype(np.float64))


def answered_rate(said: Decisions, true: Decisions) -> float:
    """Share of true premises that were answered with a mask (gRefCOCO's T-acc). NaN without any.

    Arguments and errors as `see_accuracy`.
    """
    s, t = _decisions(said, true)
    return _mean(s[t].astype(np.float64))


def balanced_see_accuracy(said: Decisions, true: Decisions) -> float:
    """Mean of `refusal_recall` and `answered_rate`: 0.5 for whoever always or never refuses.

    Arguments and errors as `see_accuracy`.
    """
    return (refusal_recall(said, true) + answered_rate(said, true)) / 2


def estimate(
    numerators: Numbers,
    denominators: Numbers | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A ratio of sums with its percentile bootstrap interval.

    Whole groups are drawn with replacement: questions about one image are not independent, and an interval
    that treats them as if they were is too narrow.

    Args:
        numerators: (M,) the a_m of this module's head.
        denominators: (M,) the b_m; ones where left out (a mean).
        groups: M keys, e.g. the image of each question; every entry its own group where left out.
        level: the interval's coverage, in (0, 1).
        repeats: bootstrap samples.
        seed: of the draws: the same input gives the same interval.

    Returns:
        The score; 0 where all denominators are 0, NaN where M = 0.

    Raises:
        ReadsegError: lengths differ, a value is not finite, a denominator is negative, level or repeats are
            out of range.
    """
    a = _vector(numerators, "numerators")
    b = np.ones_like(a) if denominators is None else _vector(denominators, "denominators")
    if len(a) != len(b) or (groups is not None and len(groups) != len(a)):
        lengths = f"{len(a)} numerators, {len(b)} denominators, {len(a) if groups is None else len(groups)} groups"
        raise ReadsegError(f"estimate: expected the same length everywhere, got {lengths}")
    if np.any(b < 0):
        raise ReadsegError(f"denominators: expected values of at least 0, got {b.min()}")
    if not 0 < level < 1 or repeats < 1:
        raise ReadsegError(f"expected a level in (0, 1) and repeats of at least 1, got {level} and {repeats}")
    if len(a) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)

    positions: dict[Hashable, int] = {}
    index = [positions.setdefault(key, len(positions)) for key in (groups if groups is not None else range(len(a)))]
    sums = np.stack([np.bincount(index, weights=v, minlength=len(positions)) for v in (a, b)], axis=1)  # (G, 2)

    size = len(positions)
    draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=repeats)  # (repeats, G)
    resampled = draws @ sums
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = resampled[:, 0] / resampled[:, 1]
    scores = scores[resampled[:, 1] > 0]
    if b.sum() == 0 or len(scores) == 0:
        return Estimate(0.0, 0.0, 0.0, len(a))
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(a.sum() / b.sum()), float(low), float(high), len(a))


def _counts(intersections: Numbers, unions: Numbers) -> tuple[Floats, Floats]:
    inter, union = _vector(intersections, "intersections"), _vector(unions, "unions")
    if len(inter) != len(union):
        raise ReadsegError(f"expected as many intersections as unions, got {len(inter)} and {len(union)}")
    wrong = np.flatnonzero((inter < 0) | (inter > union))
    if len(wrong):
        m = int(wrong[0])
        raise ReadsegError(f"mask {m}: expected 0 <= intersection <= union, got {inter[m]:g} and {union[m]:g}")
    return inter, union


def _vector(values: Numbers, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ReadsegError(f"{name}: expected a list of numbers, got an array of shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ReadsegError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
    return array


def _decisions(said: Decisions, true: Decisions) -> tuple[Bools, Bools]:
    s, t = np.asarray(said), np.asarray(true)
    for name, array in (("said", s), ("true", t)):
        if array.ndim != 1 or (array.dtype != np.bool_ and len(array)):
            raise ReadsegError(f"{name}: expected a list of booleans, got {array.dtype} of shape {array.shape}")
    if len(s) != len(t):
        raise ReadsegError(f"expected as many answers as questions, got {len(s)} and {len(t)}")
    return s.astype(np.bool_), t.astype(np.bool_)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan
