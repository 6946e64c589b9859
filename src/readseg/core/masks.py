"""Masks as arrays, run lengths and polygons; their intersection and union. numpy, image frame.

A mask is a bool array (H, W). A target is uint8 (H, W): 0 background, 1 object, 255 not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Shaped
from pycocotools import mask as coco

IGNORED = 255
"""The value of a target's pixels that are not counted."""


def encode_rle(mask: Shaped[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, {"size": [H, W], "counts": str}, as JSON can hold them."""
    encoded = coco.encode(np.asfortranarray(np.asarray(mask).astype(bool), dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> Bool[np.ndarray, "H W"]:
    """The mask of COCO run lengths, compressed (str or bytes) or plain (a list of numbers); ValueError otherwise."""
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, str):
            counts = counts.encode("ascii")
        runs = _run_lengths(counts) if isinstance(counts, bytes) else [int(count) for count in counts]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        expected = 'run lengths must be a dict with "size" [H, W] and "counts", text or numbers'
        raise ValueError(f"{expected}: {error}") from error
    if min([height, width, *runs]) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths do not fill their size {height} x {width}: they hold {sum(runs)} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((height, width), order="F")


def _run_lengths(counts: bytes) -> list[int]:
    """Decompressed: 5 bits a character and one to go on; from the 4th on, differences to the one before the last.

    Decoded here because pycocotools returns uninitialised memory where the runs end before the mask does.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = character - 48
        value |= (code & 31) << shift
        shift += 5
        if not 0 <= code < 64 or shift > 60:  # bits of a run length
            raise ValueError('"counts" holds what is no run length')
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the last run length is cut off")
    return runs


def union(masks: Iterable[Shaped[np.ndarray, "H W"]], hw: tuple[int, int] | None = None) -> Bool[np.ndarray, "H W"]:
    """The union of masks of one size; of no masks an empty one of size `hw`."""
    whole = None if hw is None else np.zeros(hw, dtype=bool)
    for mask in masks:
        part = np.asarray(mask).astype(bool)
        if whole is not None and part.shape != whole.shape:  # numpy would stretch some
            raise ValueError(f"masks of one image must have one size, got {sorted({part.shape, whole.shape})}")
        whole = part if whole is None else whole | part
    assert whole is not None, "the union of no masks needs their size"
    return whole


def polygons_to_mask(polygons: Iterable[Any], hw: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The union of polygons, sequences of (x, y) or COCO's flat x0, y0, ..., each filled and outlined by one pixel.

    As in the data sets' own code: points truncated to whole pixels, painted by OpenCV (1% of Pillow's pixels differ).
    """
    canvas = np.zeros(hw, dtype=np.uint8)
    limits = np.iinfo(np.int32)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
            points = points.reshape(-1, 2) if points.ndim < 2 else points
            if points.shape[1:] != (2,) or not np.isfinite(points).all():
                raise ValueError(f"got an array of shape {points.shape}")
        except (TypeError, ValueError) as error:
            raise ValueError("a polygon must be a list of finite (x, y), or x0, y0, x1, y1, ...") from error
        pixels = points.clip(limits.min, limits.max).astype(np.int32)[:, None]
        if len(pixels):
            cv2.polylines(canvas, [pixels], isClosed=True, color=1, thickness=1)
            cv2.fillPoly(canvas, [pixels], color=1)
    return canvas.astype(bool)


class Counts(NamedTuple):
    """What a mask has in common with its target, in pixels that count: those in both, and those in either."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """I / U, and 1 where the union is empty."""
        return self.intersection / self.union if self.union else 1.0


def intersection_and_union(pred: Shaped[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> Counts:
    """Pixels in both masks (bool, or 0 and 1) and in any of them, where the target is not 255."""
    if pred.shape != target.shape:
        raise ValueError(f"mask and target must have one shape, got {pred.shape} and {target.shape}")
    counted = target != IGNORED
    on_pred, on_target = pred == 1, target == 1
    if not (on_pred | (pred == 0)).all():
        raise ValueError("a mask must hold 0 and 1 only")
    if not (on_target | (target == 0) | ~counted).all():
        raise ValueError(f"a target must hold 0, 1 and {IGNORED} only")
    intersection, either = on_pred & on_target & counted, (on_pred | on_target) & counted
    return Counts(int(np.count_nonzero(intersection)), int(np.count_nonzero(either)))


def iou(pred: Shaped[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"]) -> float:
    """Intersection over union, I / U, of `intersection_and_union`; 1 where the union is empty."""
    return intersection_and_union(pred, target).iou
