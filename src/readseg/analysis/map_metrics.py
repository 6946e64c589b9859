"""What a map knows of a target, and how far two maps agree.

Frame: pixels of the image, P = H * W of them. A map is float (H, W); a target holds 0, 1 and 255, and pixels of 255 are
left out of all numbers. Ties count as what they are: ranks are averaged, a pair of equal values is half won, one of
several maxima is a share of the pointing. T = 101 thresholds.

The threshold search (appendix A.1) says how good the masks of a map are at the best threshold:

    mask_t = [map >= t],    t = 0, 0.01, ..., 1

The IoU of the best t of each image looks at the truth: it is a bound on what one threshold could reach, not a score
that a user would see.

Source: section 3.2 and appendix A.1; the pointing game of Zhang et al., "Top-down Neural Attention by Excitation
Backprop" (ECCV 2016).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image, ImageOps

from readseg.core.images import load_image
from readseg.core.masks import IGNORED, iou, union
from readseg.errors import ReadsegError

STEPS = 100
# Divided, not summed up: each is the float next to k / 100.
THRESHOLDS: Float[np.ndarray, " T"] = np.arange(STEPS + 1) / STEPS
THRESHOLDS.setflags(write=False)

# Bytes that say where a pixel is: the number of thresholds that it reaches, 0 to 101, off the target, the same from
# here on for the target, or not counted.
_ON_TARGET, _NOT_COUNTED = 128, 255
_BLOCK = 1 << 15  # pixels: a block and what is made of it stay in a core's cache
_ABOVE_ONE = 1e-3  # how far a map may reach above 1: interpolation rounds


# -- the threshold search ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """What a map's masks have in common with the target at every threshold: (T,) int64 counts of pixels."""

    intersections: Int[np.ndarray, " T"]
    unions: Int[np.ndarray, " T"]

    @property
    def ious(self) -> Float[np.ndarray, " T"]:
        """I / U at every threshold, 1 where the union is empty."""
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


def search_thresholds(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> ThresholdCurve:
    """Intersection and union with the target of the masks of all 101 thresholds at once.

    With c(q) = #{t : map(q) >= t}, the number of thresholds that a pixel reaches, and its two histograms

        h_in(c) = #{q on the target : c(q) = c},    h_out(c) the same off the target,
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

    >>> curve = search_thresholds(np.array([[0.1, 0.4, 0.8, 0.9]]), np.array([[0, 1, 1, 255]]))
    >>> curve.threshold, curve.best_iou
    (0.11, 1.0)
    """
    values, wanted, counted = _flat_pixels(value_map, target, (0, 1 + _ABOVE_ONE))
    # round(100 v) is the threshold next to v, however that product rounds: one comparison tells on which side v lies.
    codes = np.empty(len(values), np.uint8)
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        nearest = np.rint(values[block] * STEPS)
        codes[block] = nearest
        codes[block] += values[block] >= np.divide(nearest, STEPS, out=nearest)
    codes += wanted * np.uint8(_ON_TARGET)
    codes |= ~counted * np.uint8(_NOT_COUNTED)
    # Pillow counts bytes as they are; numpy's bincount widens them to eight bytes each first.
    histogram = np.asarray(Image.fromarray(codes[None]).histogram(), dtype=np.int64)
    on, off = (histogram[first : first + len(THRESHOLDS) + 1] for first in (_ON_TARGET, 0))
    return ThresholdCurve(_sums_above(on), on.sum() + _sums_above(off))


def mask_at(value_map: Float[np.ndarray, "H W"], threshold: float) -> Bool[np.ndarray, "H W"]:
    """The mask [map >= threshold], compared in the map's own dtype: float32(0.3) reaches the threshold 0.3.

    >>> mask_at(np.array([[0.29, 0.3]], dtype=np.float32), 0.3)
    array([[False,  True]])
    """
    # A Python float takes the array's dtype; numpy's own float64 would widen the comparison.
    return np.asarray(value_map) >= float(threshold)


# -- a map and the truth, without a threshold --------------------------------------------------------------------------


@dataclass(frozen=True)
class Localisation:
    """Whether a map lights up where the truth is: see `localisation`."""

    pointing: float
    mass_inside: float
    auc: float
    area: float


def localisation(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> Localisation:
    """The pointing game, the mass inside and the AUC of a map m, with A the target, over the pixels that count.

        pointing    |{q in A : m_q = max m}| / |{q : m_q = max m}|
        mass_inside sum_{q in A} m_q / sum_q m_q,  NaN where the sum is 0
        auc         P(m_a > m_b) + P(m_a = m_b) / 2,  over all pairs of a on the target and b off it; NaN without b
        area        |A| / P,  which pointing and mass_inside are for a constant map

    All are NaN without a pixel on the target.

    Args:
        value_map: finite values of at least 0, float16, float32 or float64.
        target: 0, 1 and 255.

    Raises:
        ReadsegError: shapes or dtypes are others, a value is below 0 or not finite, or the target holds other values.

    >>> localisation(np.array([[0.0, 0.25, 0.75, 1.0]]), np.array([[0, 0, 1, 1]]))
    Localisation(pointing=1.0, mass_inside=0.875, auc=1.0, area=0.5)
    """
    values, wanted, counted = _flat_pixels(value_map, target, (0, math.inf))
    if not wanted.any():
        return Localisation(math.nan, math.nan, math.nan, math.nan)
    on, off = values[wanted], values[counted & ~wanted]
    highest = counted & (values == values[counted].max())
    # Scaled, so that no sum overflows; two sums that cannot contradict each other.
    inside = outside = 0.0
    if scale := float(values.max()):
        inside, outside = (float((part.astype(np.float64) / scale).sum()) for part in (on, off))
    # Pairs won and pairs not lost: each tie is in one of the two sums.
    on, off = np.sort(on), np.sort(off)
    won, not_lost = (int(np.searchsorted(off, on, side=side).sum()) for side in ("left", "right"))
    return Localisation(
        pointing=int(np.count_nonzero(highest & wanted)) / int(np.count_nonzero(highest)),
        mass_inside=inside / (inside + outside) if inside + outside else math.nan,
        auc=(won + not_lost) / (2 * len(on) * len(off)) if len(off) else math.nan,
        area=len(on) / int(np.count_nonzero(counted)),
    )


# -- two maps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consistency:
    """How far two maps of one image and one target agree, with each map's best threshold and IoU with the target."""

    iou: float
    spearman: float
    thresholds: tuple[float, float]
    best_ious: tuple[float, float]


def consistency(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]
) -> Consistency:
    """Agreement of two maps: IoU of their masks, each at its own best threshold, and rank correlation.

    The IoU is 1 where both masks are empty, the correlation NaN where a map is constant.

    Args:
        first: float16, float32 or float64 in [0, 1].
        second: of the same shape.
        target: 0, 1 and 255.

    Raises:
        ReadsegError: as `search_thresholds`.

    >>> a = np.array([[0.1, 0.5, 0.9]])
    >>> consistency(a, a**2, np.array([[0, 1, 1]]))
    Consistency(iou=1.0, spearman=1.0, thresholds=(0.11, 0.02), best_ious=(1.0, 1.0))
    """
    curves = search_thresholds(first, target), search_thresholds(second, target)
    counted = np.asarray(target) != IGNORED
    masks = mask_at(first, curves[0].threshold), mask_at(second, curves[1].threshold)
    return Consistency(
        iou=iou(masks[0], np.where(counted, masks[1].astype(np.uint8), IGNORED)),
        spearman=spearman(first, second, counted),
        thresholds=(curves[0].threshold, curves[1].threshold),
        best_ious=(curves[0].best_iou, curves[1].best_iou),
    )


def spearman(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], counted: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """Spearman's rank correlation over the pixels that count: Pearson's of the ranks, equal values sharing their mean.

    rho = sum_q (r_q - r)(s_q - s) / sqrt(sum_q (r_q - r)^2 sum_q (s_q - s)^2), NaN where a map is constant.

    >>> spearman(np.array([[0.0, 1.0, 2.0]]), np.array([[5.0, 7.0, 6.0]]))
    0.5
    """
    pixels = np.ones(np.shape(first), bool) if counted is None else counted
    ranks = []
    for value_map in (first, second):
        values, kept, _ = _flat_pixels(value_map, pixels)
        _, place, counts = np.unique(values[kept], return_inverse=True, return_counts=True)
        ends = counts.cumsum()  # equal values share the mean of their ranks 1 to P, whose mean is (P + 1) / 2
        ranks.append((ends - (counts - 1) / 2)[place] - (len(place) + 1) / 2)
    r, s = ranks
    spread = math.sqrt(float(r @ r) * float(s @ s))
    return min(1.0, max(-1.0, float(r @ s) / spread)) if spread else math.nan


# -- targets that a user draws -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A mask that is expected: (H, W) in {0, 1, 255}, its file, and the object's value in it, 1 or 255."""

    source: str
    target: UInt8[np.ndarray, "H W"] = field(repr=False)
    object_value: int

    @property
    def wanted(self) -> int:
        """Pixels on the object."""
        return int(np.count_nonzero(self.target == 1))

    @property
    def counted(self) -> int:
        """Pixels that count, on the object or not."""
        return int(np.count_nonzero(self.target != IGNORED))


def read_ground_truth(path: str | Path, image_hw: tuple[int, int]) -> GroundTruth:
    """The expected mask of an image file of grey values without loss, such as a PNG; of a palette image its indices.

    0 is background. Where the file holds a 1, that is the object and 255 is not counted, as in data sets; otherwise 255
    is the object, as in masks that people draw. Only 0: nothing is expected.
    """
    load_image(path)  # says what is wrong with a file that is no image, too large or damaged
    with warnings.catch_warnings(), Image.open(path) as opened:
        warnings.simplefilter("ignore")
        image: Image.Image = opened
        with suppress(Exception):  # unreadable EXIF: as it is stored, like the image
            image = ImageOps.exif_transpose(opened)
        bands = np.asarray(image)
    if image.size != (image_hw[1], image_hw[0]):
        raise ReadsegError(
            f"{path}: the truth has {image.width} x {image.height} pixels (width x height), the image "
            f"{image_hw[1]} x {image_hw[0]}: expected a mask of the image's size"
        )
    expected = "expected a grey image of 0 and 255, or 0, 1 and 255"
    if image.mode in ("LA", "RGBA", "PA"):
        if (bands[..., -1] != IGNORED).any():
            raise ReadsegError(f"{path}: the truth is transparent: {expected}")
        bands = bands[..., :-1]
    if bands.ndim == 3:
        if (bands != bands[..., :1]).any():
            raise ReadsegError(f"{path}: the truth has colours: {expected}")
        bands = bands[..., 0]
    values = np.unique(bands)
    if len(others := values[~np.isin(values, (0, 1, IGNORED))]):
        listed = ", ".join(map(str, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ReadsegError(
            f"{path}: the truth holds the values {listed}: expected 0 and 255 (the object), or 0, 1 (the object) and "
            "255 (not counted), in a file without loss such as PNG"
        )
    if 1 in values:
        return GroundTruth(str(path), bands.astype(np.uint8), 1)
    return GroundTruth(str(path), (bands == IGNORED).astype(np.uint8), IGNORED)


def joined_target(truths: Sequence[GroundTruth]) -> UInt8[np.ndarray, "H W"]:
    """All expected masks as one target (H, W): 255 where any is, else 1 where any is."""
    ignored = union([truth.target == IGNORED for truth in truths])
    return np.where(ignored, IGNORED, union([truth.target == 1 for truth in truths])).astype(np.uint8)


# -- pixels ------------------------------------------------------------------------------------------------------------


def _flat_pixels(
    value_map: Float[np.ndarray, "H W"],
    target: Shaped[np.ndarray, "H W"],
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """A map and a target, checked, in raster order: values, which pixels are on the target, and which count."""
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


def _sums_above(histogram: Int[np.ndarray, " bins"]) -> Int[np.ndarray, " T"]:
    """sum_{c > k} h(c) for every k."""
    return histogram[::-1].cumsum()[::-1][1:]
