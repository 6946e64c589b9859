"""Masks as arrays, run lengths, polygons and PNG files; their intersection and union. numpy, image frame.

A mask is a bool array (H, W). A target is uint8 (H, W): 0 background, 1 object, 255 not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image
from pycocotools import mask as coco

from readseg.core.io import atomic_write

IGNORED = 255
_LONGEST_RUN = 60  # bits of a run length


def encode_rle(mask: Shaped[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask: {"size": [H, W], "counts": str}. JSON can hold it.

    Raises:
        ValueError: the mask has not two axes.

    >>> encode_rle(np.eye(2, dtype=bool))
    {'size': [2, 2], 'counts': '0120'}
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask must have two axes (H, W), got shape {mask.shape}")
    encoded = coco.encode(np.asfortranarray(mask.astype(bool), dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> Bool[np.ndarray, "H W"]:
    """The mask of COCO run lengths, compressed (str or bytes) or plain (a list of numbers).

    Raises:
        ValueError: "size" or "counts" is missing or not of that kind, or the run lengths do not fill the size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError('run lengths must be a dict with "size" [H, W] and "counts"') from error
    if height < 0 or width < 0:
        raise ValueError(f"run lengths have a negative size {height} x {width}")
    runs = _runs(counts)
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths do not fill their size {height} x {width}: they hold {sum(runs)} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def union(masks: Iterable[Shaped[np.ndarray, "H W"]], hw: tuple[int, int] | None = None) -> Bool[np.ndarray, "H W"]:
    """The union of masks of one size.

    Args:
        masks: any number of masks.
        hw: (H, W) of the empty mask that no masks at all give.

    Raises:
        ValueError: sizes differ, or there is no mask and no `hw`.
    """
    whole = None if hw is None else np.zeros(hw, dtype=bool)
    for mask in masks:
        part = np.asarray(mask).astype(bool)
        if whole is None:
            whole = part
        elif part.shape != whole.shape:
            raise ValueError(f"masks of one image must have one size, got {sorted({part.shape, whole.shape})}")
        else:
            whole |= part
    if whole is None:
        raise ValueError("the union of no masks needs hw, the size of the empty mask")
    return whole


def polygons_to_mask(polygons: Iterable[Any], hw: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The union of polygons, each filled and outlined by a line of one pixel.

    Points are truncated to whole pixels and painted by OpenCV, as the data sets' own code does: Pillow's
    polygons differ by 1% of the pixels. A polygon without points paints nothing.

    Args:
        polygons: each a sequence of (x, y) in image pixels, or COCO's flat x0, y0, x1, y1, ...
        hw: (H, W) of the image.

    Raises:
        ValueError: a polygon that is no list of finite pairs.
    """
    canvas = np.zeros(hw, dtype=np.uint8)
    for polygon in polygons:
        points = _pixels(polygon)
        if len(points):
            cv2.polylines(canvas, [points], isClosed=True, color=1, thickness=1)
            cv2.fillPoly(canvas, [points], color=1)
    return canvas.astype(bool)


def save_png(path: str | Path, mask: Shaped[np.ndarray, "H W"]) -> None:
    """Writes a mask as a grey PNG of 0 and 255; the file appears whole or not at all.

    Raises:
        ValueError: the mask has not two axes, or no pixel.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask must have two axes (H, W) and a pixel, got shape {mask.shape}")
    with atomic_write(Path(path)) as place:
        Image.fromarray(mask.astype(bool).astype(np.uint8) * 255).save(place, format="PNG", optimize=True)


def load_png(path: str | Path) -> Bool[np.ndarray, "H W"]:
    """The mask of a grey, palette or RGB PNG: every pixel that is not 0 (black).

    Raises:
        OSError: no such file, or no image.
    """
    with Image.open(path) as image:
        pixels = np.asarray(image if image.mode in ("1", "L", "P") else image.convert("L"))
    return pixels.astype(bool)


def intersection_and_union(
    pred: Shaped[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"], ignore: int = IGNORED
) -> tuple[int, int]:
    """Pixels in both masks and in any of them, where the target counts.

    Args:
        pred: a mask, bool or 0 and 1.
        target: 0, 1 and `ignore` (or bool).
        ignore: the value of pixels that are left out of both counts.

    Raises:
        ValueError: the shapes differ, or values other than these occur.

    >>> intersection_and_union(np.array([[1, 1, 0, 1]]), np.array([[1, 0, 0, 255]]))
    (1, 2)
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape:
        raise ValueError(f"mask and target must have one shape, got {pred.shape} and {target.shape}")
    counted = target != ignore
    found, wanted = pred == 1, target == 1
    if not (found | (pred == 0)).all():
        raise ValueError(f"a mask must hold 0 and 1 only, got {_others(pred, (0, 1))}")
    if not (wanted | (target == 0) | ~counted).all():
        raise ValueError(f"a target must hold 0, 1 and {ignore} only, got {_others(target, (0, 1, ignore))}")
    intersection, either = found & wanted & counted, (found | wanted) & counted
    return int(np.count_nonzero(intersection)), int(np.count_nonzero(either))


def iou(pred: Shaped[np.ndarray, "H W"], target: Shaped[np.ndarray, "H W"], ignore: int = IGNORED) -> float:
    """Intersection over union, I / U, and 1 where the union is empty.

    Arguments and errors as `intersection_and_union`.
    """
    intersection, whole = intersection_and_union(pred, target, ignore)
    return intersection / whole if whole else 1.0


def _runs(counts: Any) -> list[int]:
    """Run lengths as numbers. Compressed: 5 bits a character and one to go on; from the 4th on, differences.

    Decoded here because pycocotools returns uninitialised memory where the runs end before the mask does.
    """
    if isinstance(counts, list | tuple):
        try:
            return [int(count) for count in counts]
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError('"counts" must be a list of numbers') from error
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if not isinstance(counts, bytes):
        raise ValueError(f'"counts" must be a str, bytes or a list of numbers, got {type(counts).__name__}')
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError(f'"counts" holds a character that no run length has: {chr(character)!r}')
        value |= (code & 31) << shift
        shift += 5
        if shift > _LONGEST_RUN:
            raise ValueError('"counts" holds a run length that no image has')
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError('"counts" ends in the middle of a run length')
    return runs


def _pixels(polygon: Any) -> np.ndarray:
    """A polygon's points, truncated to int32, (K, 1, 2)."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
        points = points.reshape(-1, 2) if points.ndim < 2 else points
    except (TypeError, ValueError) as error:
        raise ValueError("a polygon must be a list of (x, y), or x0, y0, x1, y1, ...") from error
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon must be a list of finite (x, y), got an array of shape {points.shape}")
    limits = np.iinfo(np.int32)
    return points.clip(limits.min, limits.max).astype(np.int32)[:, None]


def _others(values: Shaped[np.ndarray, "*axes"], allowed: Sequence[int]) -> list[Any]:
    """Up to five values that are not allowed, for an error."""
    found = np.unique(values)
    return [value.item() for value in found[~np.isin(found, allowed)][:5]]
