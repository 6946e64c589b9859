"""What a map knows of a target, and how far two maps agree.

Frame: pixels of the image, P = H * W of them. A map is float (H, W), finite; a target holds 0, 1 and 255, and pixels
of 255 are left out of all numbers. Ties count as what they are: ranks are averaged, a pair of equal values is half won,
one of several maxima is a share of the pointing. T = 101 thresholds.

Source: section 3.2 and appendix A.1; the pointing game of Zhang et al. (ECCV 2016).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image, ImageOps

from readseg.core.images import load_image
from readseg.core.masks import IGNORED, iou, union
from readseg.core.stats import auc
from readseg.errors import ReadsegError

STEPS = 100
# Bytes that say where a pixel is: the number of thresholds that it reaches, 0 to 101, off the target, the same from
# here on for the target, or not counted.
_ON_TARGET, _NOT_COUNTED = 128, 255
_BLOCK = 1 << 15  # pixels: a block and what is made of it stay in a core's cache
_ABOVE_ONE = 1e-3  # how far a map may reach above 1: interpolation rounds


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
        return self.best / STEPS  # divided, not summed up: the float next to it

    @property
    def best_iou(self) -> float:
        """The highest IoU."""
        return float(self.ious[self.best])


def search_thresholds(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> ThresholdCurve:
    """Intersection and union with the target of the masks [map >= t] of all thresholds t = 0, 0.01, ..., 1 at once.

    With c(q) = #{t : map(q) >= t}, the number of thresholds that a pixel reaches, and its two histograms

        h_in(c) = #{q on the target : c(q) = c},    h_out(c) the same off the target,
        I_k = sum_{c > k} h_in(c),    U_k = sum_c h_in(c) + sum_{c > k} h_out(c)

    so that one pass over the pixels serves every threshold. The counts are those of `map >= t` in the map's own dtype,
    to the pixel. The map holds values in [0, 1]. The best t of an image looks at the truth: its IoU is a bound on what
    one threshold could reach, not a score that a user would see.

    >>> curve = search_thresholds(np.array([[0.1, 0.4, 0.8, 0.9]]), np.array([[0, 1, 1, 255]]))
    >>> curve.threshold, curve.best_iou
    (0.11, 1.0)
    """
    values, wanted, counted = _flat(value_map, target)
    assert values.min() >= 0 and values.max() <= 1 + _ABOVE_ONE, "expected a map of values in [0, 1]"
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
    on, off = (histogram[first : first + STEPS + 2] for first in (_ON_TARGET, 0))
    above_on, above_off = (part[::-1].cumsum()[::-1][1:] for part in (on, off))
    return ThresholdCurve(above_on, on.sum() + above_off)


@dataclass(frozen=True)
class Localisation:
    """Whether a map lights up where the truth is: see `localisation`."""

    pointing: float
    mass_inside: float
    auc: float
    area: float


def localisation(value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> Localisation:
    """The pointing game, the mass inside and the AUC of a map m >= 0, with A the target, over the pixels that count.

        pointing    |{q in A : m_q = max m}| / |{q : m_q = max m}|
        mass_inside sum_{q in A} m_q / sum_q m_q,  NaN where the sum is 0
        auc         P(m_a > m_b) + P(m_a = m_b) / 2,  over all pairs of a on the target and b off it; NaN without b
        area        |A| / P,  which pointing and mass_inside are for a constant map

    All are NaN without a pixel on the target.

    >>> localisation(np.array([[0.0, 0.25, 0.75, 1.0]]), np.array([[0, 0, 1, 1]]))
    Localisation(pointing=1.0, mass_inside=0.875, auc=1.0, area=0.5)
    """
    values, wanted, counted = _flat(value_map, target)
    if not wanted.any():
        return Localisation(math.nan, math.nan, math.nan, math.nan)
    highest = counted & (values == values[counted].max())
    # Scaled, so that no sum overflows; two sums that cannot contradict each other.
    inside = outside = 0.0
    if scale := float(values.max()):
        parts = values[wanted], values[counted & ~wanted]
        inside, outside = (float((part.astype(np.float64) / scale).sum()) for part in parts)
    return Localisation(
        pointing=int(np.count_nonzero(highest & wanted)) / int(np.count_nonzero(highest)),
        mass_inside=inside / (inside + outside) if inside + outside else math.nan,
        auc=float(auc(values[counted], wanted[counted])[0]),
        area=int(np.count_nonzero(wanted)) / int(np.count_nonzero(counted)),
    )


class Consistency(NamedTuple):
    """How far two maps of one image and one target agree."""

    iou: float
    spearman: float


def consistency(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]
) -> Consistency:
    """Agreement of two maps in [0, 1]: IoU of their masks, each at its own best threshold, and rank correlation.

    The IoU is 1 where both masks are empty, the correlation NaN where a map is constant.

    >>> a = np.array([[0.1, 0.5, 0.9]])
    >>> consistency(a, a**2, np.array([[0, 1, 1]]))
    Consistency(iou=1.0, spearman=1.0)
    """
    counted = np.asarray(target) != IGNORED
    # A threshold is a Python float, which takes the map's dtype: float32(0.3) reaches the threshold 0.3.
    mask, other = (value_map >= search_thresholds(value_map, target).threshold for value_map in (first, second))
    return Consistency(iou(mask, np.where(counted, other.astype(np.uint8), IGNORED)), spearman(first, second, counted))


def spearman(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], counted: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """Spearman's rank correlation over the pixels that count: Pearson's of the ranks, equal values sharing their mean.

    rho = sum_q (r_q - r)(s_q - s) / sqrt(sum_q (r_q - r)^2 sum_q (s_q - s)^2), NaN where a map is constant.

    >>> spearman(np.array([[0.0, 1.0, 2.0]]), np.array([[5.0, 7.0, 6.0]]))
    0.5
    """
    kept = np.ones(first.shape, bool) if counted is None else counted
    ranks = []
    for value_map in (first, second):
        _, place, counts = np.unique(value_map[kept], return_inverse=True, return_counts=True)
        ends = counts.cumsum()  # equal values share the mean of their ranks 1 to P, whose mean is (P + 1) / 2
        ranks.append((ends - (counts - 1) / 2)[place] - (len(place) + 1) / 2)
    r, s = ranks
    spread = math.sqrt(float(r @ r) * float(s @ s))
    return min(1.0, max(-1.0, float(r @ s) / spread)) if spread else math.nan


def _flat(
    value_map: Float[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]
) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """In raster order: a map's values, which pixels are on the target, and which count."""
    truth = np.ravel(target)
    return np.ravel(value_map), truth == 1, truth != IGNORED


# -- targets that a user draws -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A mask that is expected, (H, W) in {0, 1, 255}: its file, and the object's value in it, 1 or 255."""

    source: str
    target: UInt8[np.ndarray, "H W"] = field(repr=False)
    object_value: int

    @property
    def wanted(self) -> int:
        """Pixels on the object."""
        return int(np.count_nonzero(self.target == 1))


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
        bands = np.atleast_3d(np.asarray(image))
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
    if (bands != bands[..., :1]).any():
        raise ReadsegError(f"{path}: the truth has colours: {expected}")
    mask = bands[..., 0]
    values = np.unique(mask)
    if len(others := values[~np.isin(values, (0, 1, IGNORED))]):
        listed = ", ".join(map(str, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ReadsegError(
            f"{path}: the truth holds the values {listed}: expected 0 and 255 (the object), or 0, 1 (the object) and "
            "255 (not counted), in a file without loss such as PNG"
        )
    if 1 in values:
        return GroundTruth(str(path), mask.astype(np.uint8), 1)
    return GroundTruth(str(path), (mask == IGNORED).astype(np.uint8), IGNORED)


def joined_target(truths: Sequence[GroundTruth]) -> UInt8[np.ndarray, "H W"]:
    """All expected masks as one target (H, W): 255 where any is, else 1 where any is."""
    ignored = union([truth.target == IGNORED for truth in truths])
    return np.where(ignored, IGNORED, union([truth.target == 1 for truth in truths])).astype(np.uint8)
