"""The threshold search of appendix A.1: how good are the masks of a map, whatever the threshold?

Frame: pixels of the image. A map is float (H, W) in [0, 1]; a target holds 0, 1 and 255, which is not counted.

    mask_t = [map >= t],    t = 0, 0.01, ..., 1

The IoU of the best t of each image says what a map knows, free of a threshold that someone chose. It looks at the
truth: it is a bound on what one threshold could reach, not a score that a user would see.

Axes: T = 101 thresholds, M images, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image

from readseg.core.masks import IGNORED
from readseg.core.stats import Estimate, estimate, mask_ious
from readseg.errors import ReadsegError

STEPS = 100
# Divided, not summed up: each is the float next to k / 100.
THRESHOLDS: Float[np.ndarray, " T"] = np.arange(STEPS + 1) / STEPS
THRESHOLDS.setflags(write=False)

ABOVE_ONE = 1e-3
"""How far a map may reach above 1: interpolation rounds."""

# Bytes that say where a pixel is: the number of thresholds that it reaches, 0 to 101, off the target, the same
# from here on for the target, or not counted.
_ON_TARGET, _NOT_COUNTED = 128, 255
# Pixels: a block and what is made of it stay in a core's cache.
_BLOCK = 1 << 15


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """What a map's masks have in common with the target, at every threshold.

    Attributes:
        intersections: (T,) int64, pixels both in mask_t and in the target.
        unions: (T,) int64, pixels in either.
    """

    intersections: Int[np.ndarray, " T"]
    unions: Int[np.ndarray, " T"]

    @property
    def ious(self) -> Float[np.ndarray, " T"]:
        """I / U at every threshold, 1 where the union is empty (as `masks.iou`)."""
        return np.where(self.unions == 0, 1.0, self.intersections / np.maximum(self.unions, 1))

    @property
    def best(self) -> int:
        """Index of the threshold with the highest IoU, the lowest threshold of equals."""
        return int(self.ious.argmax())

    @property
    def threshold(self) -> float:
        """The threshold with the highest IoU, the lowest of equals."""
        return float(THRESHOLDS[self.best])

    @property
    def best_iou(self) -> float:
        """The highest IoU."""
        return float(self.ious[self.best])


@dataclass(frozen=True)
class BestScores:
    """The field's two scores of masks at the best threshold of each image.

    Attributes:
        giou: mean over images of I / (U + 1e-5), with its interval.
        ciou: sum of I over sum of U.
    """

    giou: Estimate
    ciou: Estimate


def search_thresholds(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> ThresholdCurve:
    """Intersection and union with the target of the masks of all 101 thresholds at once.

    With c(q) = #{t : map(q) >= t}, the number of thresholds that a pixel reaches, and its two histograms

        h_in(c) = #{q on the target : c(q) = c},    h_out(c) likewise off the target,
        I_k = sum_{c > k} h_in(c),    U_k = sum_c h_in(c) + sum_{c > k} h_out(c)

    so that one pass over the pixels serves every threshold. The counts are those of `map >= t` for t = k / 100 in the
    map's own dtype, to the pixel.

    Args:
        value_map: float16, float32 or float64 in [0, 1].
        target: 0, 1 and 255 (or bool). Without a pixel that counts every IoU is 1; with none on the object the IoU
            is 0 until the mask is empty, then 1.

    Raises:
        ReadsegError: shapes or dtypes are others, a value of the map is NaN or outside [0, 1], or the target holds
            other values.

    Source: appendix A.1.

    >>> curve = search_thresholds(np.array([[0.1, 0.4, 0.8, 0.9]]), np.array([[0, 1, 1, 255]]))
    >>> curve.threshold, curve.best_iou
    (0.11, 1.0)
    """
    values, wanted, counted = flat_pixels(value_map, target, (0, 1 + ABOVE_ONE))
    codes = _reached(values)
    codes += wanted * np.uint8(_ON_TARGET)
    codes |= ~counted * np.uint8(_NOT_COUNTED)
    # Pillow counts bytes as they are; numpy's bincount widens them to eight bytes each first.
    histogram = np.asarray(Image.fromarray(codes[None]).histogram(), dtype=np.int64)
    off = histogram[: len(THRESHOLDS) + 1]
    on = histogram[_ON_TARGET : _ON_TARGET + len(THRESHOLDS) + 1]
    return ThresholdCurve(_from_above(on), on.sum() + _from_above(off))


def mask_at(value_map: Float[np.ndarray, "H W"], threshold: float) -> Bool[np.ndarray, "H W"]:
    """The mask [map >= threshold], compared in the map's own dtype.

    So a float32 map's value that is float32(0.3) reaches the threshold 0.3.

    >>> mask_at(np.array([[0.29, 0.3]], dtype=np.float32), 0.3)
    array([[False,  True]])
    """
    values = np.asarray(value_map)
    # A Python float takes the array's dtype; numpy's own float64 would widen the comparison.
    return values >= float(threshold)


def best_mask(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The mask of the map at its best threshold for this target.

    Arguments and errors as `search_thresholds`.

    >>> best_mask(np.array([[0.1, 0.4, 0.8]]), np.array([[0, 1, 1]]))
    array([[False,  True,  True]])
    """
    return mask_at(value_map, search_thresholds(value_map, target).threshold)


def best_scores(curves: Sequence[ThresholdCurve], *, groups: Sequence[Hashable] | None = None) -> BestScores:
    """The gIoU and cIoU over images, each at its own best threshold, with bootstrap intervals.

    gIoU = mean_m I_m / (U_m + 1e-5),    cIoU = sum_m I_m / sum_m U_m,    at t_m = argmax_t I_m(t) / U_m(t)

    Args:
        curves: M curves, one for each map.
        groups: M keys, e.g. the image of each map, if several are about one image (see `core.stats.estimate`).

    >>> curve = search_thresholds(np.array([[0.1, 0.4, 0.8, 0.9]]), np.array([[1, 0, 1, 1]]))
    >>> print(best_scores([curve]).ciou)
    0.750 [0.750, 0.750]
    """
    best = [curve.best for curve in curves]
    intersections = [int(curve.intersections[k]) for curve, k in zip(curves, best, strict=True)]
    unions = [int(curve.unions[k]) for curve, k in zip(curves, best, strict=True)]
    return BestScores(
        giou=estimate(mask_ious(intersections, unions), groups=groups),
        ciou=estimate(intersections, unions, groups=groups),
    )


def flat_pixels(
    value_map: Float[np.ndarray, "H W"],
    target: Shaped[np.ndarray, "H W"],
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """A map and a target, checked, as values (P,), which pixels are on the target (P,), and which count (P,).

    P = H * W pixels in raster order.

    Args:
        value_map: float16, float32 or float64.
        target: 0, 1 and 255 (or bool).
        limits: the least and the greatest value that the map may have.

    Raises:
        ReadsegError: no floats (H, W) with a pixel, not finite or beyond the limits; a target of another shape or
            with values other than 0, 1 and 255.
    """
    values, truth = np.asarray(value_map), np.asarray(target)
    if values.ndim != 2 or not values.size:
        raise ReadsegError(f"map: expected two axes (H, W) and a pixel, got shape {values.shape}")
    if values.dtype.type not in (np.float16, np.float32, np.float64):
        raise ReadsegError(f"map: expected float16, float32 or float64, got {values.dtype}")
    if truth.shape != values.shape:
        raise ReadsegError(f"target: expected the map's shape {values.shape}, got {truth.shape}")
    values = np.ascontiguousarray(values, dtype=values.dtype.type).ravel()
    truth = np.ascontiguousarray(truth).ravel()
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    if not math.isfinite(low) or not math.isfinite(high):
        raise ReadsegError(f"map: expected finite values, got {np.count_nonzero(~np.isfinite(values))} others")
    if low < limits[0] or high > limits[1]:
        raise ReadsegError(f"map: expected values from {limits[0]:.3g} to {limits[1]:.3g}, got {low:g} to {high:g}")
    wanted, counted = truth == 1, truth != IGNORED
    if np.count_nonzero(wanted) + np.count_nonzero(truth == 0) != np.count_nonzero(counted):
        other = truth[counted & ~wanted & (truth != 0)][0]
        raise ReadsegError(f"target: expected 0, 1 and {IGNORED} only, got {other}")
    return values, wanted, counted


def _reached(values: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
    """How many thresholds each value reaches, 0 to 101, as bytes (P,).

    k = round(100 v) is the threshold next to v, however that product rounds: v lies between its neighbours, so one
    comparison, v >= k / 100, tells whether it is k or k + 1. That quotient is the threshold itself, in v's dtype.
    """
    reached = np.empty(len(values), np.uint8)
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        nearest = np.rint(values[part] * STEPS)
        reached[part] = nearest
        nearest /= STEPS
        reached[part] += values[part] >= nearest
    return reached


def _from_above(histogram: Int[np.ndarray, " bins"]) -> Int[np.ndarray, " T"]:
    """sum_{c > k} h(c) for every k."""
    return histogram[::-1].cumsum()[::-1][1:]
