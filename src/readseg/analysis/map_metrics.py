"""Do two maps agree, and does a map light up where the truth is? Numbers that need no threshold of ours.

Frame: pixels of the image. A map is float (H, W), a target holds 0, 1 and 255; pixels of 255 are left out of all
numbers. Ties count as what they are: ranks are averaged, a pair of equal values is half won, one of several
maxima is a share of the pointing.

Source: section 3.2 (the map at the language model beside the map at SAM); the pointing game of Zhang et al.,
"Top-down Neural Attention by Excitation Backprop" (ECCV 2016).

Axes: H, W, P = pixels that count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from readseg.analysis.thresholds import flat_pixels, mask_at, search_thresholds
from readseg.core.masks import IGNORED, iou
from readseg.errors import ReadsegError


@dataclass(frozen=True)
class Consistency:
    """How far two maps of one image and one target agree.

    Attributes:
        iou: of their masks, each at its own best threshold; 1 where both are empty.
        spearman: rank correlation, -1 to 1; NaN where a map is constant.
        thresholds: the best one of the first map and of the second.
        best_ious: what these two masks have in common with the target.
    """

    iou: float
    spearman: float
    thresholds: tuple[float, float]
    best_ious: tuple[float, float]


@dataclass(frozen=True)
class Localisation:
    """Whether a map lights up where the truth is. All are NaN without a pixel on the target.

    Attributes:
        pointing: share of the map's maxima that lie on the target: 0 or 1 if there is one maximum.
        mass_inside: share of the map's sum that lies on the target; NaN where the sum is 0.
        auc: probability that a pixel of the target is above another one; NaN where there is no other one.
        area: share of the pixels that are on the target: what pointing and mass_inside are for a constant map.
    """

    pointing: float
    mass_inside: float
    auc: float
    area: float


def consistency(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]
) -> Consistency:
    """Agreement of two maps: IoU of their masks at best thresholds (appendix A.1), and rank correlation.

    Args:
        first: float16, float32 or float64 in [0, 1].
        second: likewise.
        target: 0, 1 and 255.

    Raises:
        ReadsegError: as `thresholds.search_thresholds`.

    >>> a = np.array([[0.1, 0.5, 0.9]])
    >>> consistency(a, a**2, np.array([[0, 1, 1]]))
    Consistency(iou=1.0, spearman=1.0, thresholds=(0.11, 0.02), best_ious=(1.0, 1.0))
    """
    one, other = search_thresholds(first, target), search_thresholds(second, target)
    counted = np.asarray(target) != IGNORED
    masks = [mask_at(first, one.threshold), mask_at(second, other.threshold)]
    return Consistency(
        iou=iou(masks[0], np.where(counted, masks[1].astype(np.uint8), IGNORED)),
        spearman=spearman(first, second, counted),
        thresholds=(one.threshold, other.threshold),
        best_ious=(one.best_iou, other.best_iou),
    )


def spearman(
    first: Float[np.ndarray, "H W"],
    second: Float[np.ndarray, "H W"],
    counted: Bool[np.ndarray, "H W"] | None = None,
) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks, where equal values share their mean rank.

    rho = sum_q (r_q - r)(s_q - s) / sqrt(sum_q (r_q - r)^2 sum_q (s_q - s)^2)

    Args:
        first: any finite values, float16, float32 or float64: only their order matters.
        second: likewise.
        counted: pixels that count; all by default.

    Returns:
        -1 to 1; NaN where a map is constant over the pixels that count: it has no order.

    Raises:
        ReadsegError: shapes differ, or a map is not finite.

    >>> spearman(np.array([[0.0, 1.0, 2.0]]), np.array([[5.0, 7.0, 6.0]]))
    0.5
    """
    shape = np.shape(first)
    if np.shape(second) != shape:
        raise ReadsegError(f"maps: expected one shape, got {shape} and {np.shape(second)}")
    pixels = np.ones(shape, bool) if counted is None else np.asarray(counted)
    if pixels.dtype != np.bool_ or pixels.shape != shape:
        raise ReadsegError(f"counted: expected booleans of shape {shape}, got {pixels.dtype} of shape {pixels.shape}")
    one, _, _ = flat_pixels(first, pixels)
    other, _, _ = flat_pixels(second, pixels)
    r, s = _centred_ranks(one[pixels.ravel()]), _centred_ranks(other[pixels.ravel()])
    spread = math.sqrt(float(r @ r) * float(s @ s))
    return min(1.0, max(-1.0, float(r @ s) / spread)) if spread else math.nan


def localisation(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> Localisation:
    """The pointing game, the mass inside and the AUC of a map, see there.

    Raises:
        ReadsegError: as `mass_inside`.

    >>> localisation(np.array([[0.0, 0.25, 0.75, 1.0]]), np.array([[0, 0, 1, 1]]))
    Localisation(pointing=1.0, mass_inside=0.875, auc=1.0, area=0.5)
    """
    _, wanted, counted = flat_pixels(value_map, target)
    on, every = int(np.count_nonzero(wanted)), int(np.count_nonzero(counted))
    return Localisation(
        pointing=pointing(value_map, target),
        mass_inside=mass_inside(value_map, target),
        auc=auc(value_map, target),
        area=on / every if on else math.nan,
    )


def pointing(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> float:
    """The pointing game: the share of the map's maxima that lie on the target.

    |{q in A : m_q = max m}| / |{q : m_q = max m}|,  A the target, over the pixels that count

    Args:
        value_map: any finite values, float16, float32 or float64.
        target: 0, 1 and 255.

    Returns:
        0 to 1; NaN without a pixel on the target.

    Raises:
        ReadsegError: shapes or dtypes are others, the map is not finite, or the target holds other values.

    >>> pointing(np.array([[0.2, 1.0, 1.0]]), np.array([[0, 0, 1]]))
    0.5
    """
    values, wanted, counted = flat_pixels(value_map, target)
    if not wanted.any():
        return math.nan
    highest = counted & (values == values[counted].max())
    return int(np.count_nonzero(highest & wanted)) / int(np.count_nonzero(highest))


def mass_inside(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> float:
    """The share of the map's sum that lies on the target: sum_{q in A} m_q / sum_q m_q, over the pixels that count.

    Args:
        value_map: values of at least 0, float16, float32 or float64.
        target: 0, 1 and 255.

    Returns:
        0 to 1; NaN without a pixel on the target, or where the map is 0 everywhere.

    Raises:
        ReadsegError: as `pointing`, or a value below 0.

    >>> mass_inside(np.array([[0.25, 0.0, 0.75]]), np.array([[0, 0, 1]]))
    0.75
    """
    values, wanted, counted = flat_pixels(value_map, target, (0, math.inf))
    # Scaled, so that no sum overflows; two sums that cannot contradict each other.
    scale = float(values.max())
    if not wanted.any() or scale == 0:
        return math.nan
    parts = values.astype(np.float64) / scale
    inside, outside = float(parts[wanted].sum()), float(parts[counted & ~wanted].sum())
    return inside / (inside + outside) if inside + outside else math.nan


def auc(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> float:
    """The area under the ROC curve of the map as a classifier of pixels, exactly, over all pairs of pixels.

    AUC = P(m_a > m_b) + P(m_a = m_b) / 2,   a on the target, b another pixel that counts

    Args:
        value_map: any finite values, float16, float32 or float64: only their order matters.
        target: 0, 1 and 255.

    Returns:
        0 to 1, 0.5 for a constant map; NaN without a pixel on the target, or without another one.

    Raises:
        ReadsegError: as `pointing`.

    >>> auc(np.array([[0.1, 0.5, 0.5, 0.9]]), np.array([[0, 0, 1, 1]]))
    0.875
    """
    values, wanted, counted = flat_pixels(value_map, target)
    on, off = np.sort(values[wanted]), np.sort(values[counted & ~wanted])
    if not len(on) or not len(off):
        return math.nan
    # Pairs won and pairs not lost: each tie is in one of the two sums.
    won = int(np.searchsorted(off, on, side="left").sum())
    not_lost = int(np.searchsorted(off, on, side="right").sum())
    return (won + not_lost) / (2 * len(on) * len(off))


def _centred_ranks(values: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Ranks 1 to P, equal values sharing their mean, less the mean of all, (P + 1) / 2."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2
    return ranks[place] - (len(values) + 1) / 2
