"""How annotation files tell a mask: COCO's polygons and run lengths. Frame: pixels of the upright image.

What ReasonSeg's files hold is painted in another way, by `readseg.core.masks.polygons_to_mask`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pydantic import PositiveInt

from readseg.core.images import image_hw
from readseg.core.masks import decode_rle
from readseg.data.files import FileName, Record
from readseg.errors import ReadsegError

_MAX_LENGTH = 1_000_000  # pixels of an outline, and to it from the origin: painting takes memory or time by the length


class ImageRecord(Record):
    """An image, as COCO's files tell it."""

    file_name: FileName
    height: PositiveInt
    width: PositiveInt


def require_image_size(image: Path, hw: tuple[int, ...], annotation: Path) -> None:
    """Checks that an image, once upright, has the size that its annotation has or tells. Only its head is read."""
    height, width = image_hw(image)
    if (height, width) != hw:
        raise ReadsegError(
            f"{image} is {height} x {width} (height x width), its annotation in {annotation} {hw[0]} x {hw[1]}: "
            "expected the original image"
        )


def paint(segmentations: Mapping[str, Any], record: ImageRecord, image: Path, file: Path) -> np.ndarray:
    """The union of an image's annotations, by what errors call them in their file: uint8 (H, W) in {0, 1}."""
    hw = record.height, record.width
    require_image_size(image, hw, file)  # first: a hostile size would take the memory
    mask = np.zeros(hw, dtype=bool)
    for name, segmentation in segmentations.items():
        try:
            mask |= segmentation_mask(segmentation, hw)
        except ValueError as error:
            raise ReadsegError(f"{file}: {name}: {error}") from error
    return mask.astype(np.uint8)


def segmentation_mask(segmentation: Any, hw: tuple[int, int]) -> np.ndarray:
    """The mask of one annotation, bool (H, W), as COCO paints it: overlapping parts of one object are one mask.

    Parts are polygons, each flat x0, y0, x1, y1, ... in pixels, or run lengths, compressed or plain. A polygon of fewer
    than three points covers nothing, what lies outside the image is cut off. Anything else is a ValueError.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list):
        raise ValueError(f"a segmentation must be polygons or run lengths, got {type(parts).__name__}")
    mask = np.zeros(hw, dtype=bool)
    polygons: list[list[float]] = []
    for part in parts:
        if isinstance(part, dict):
            if part.get("size") != list(hw):  # before a hostile size takes the memory
                image = f"the image is {hw[0]} x {hw[1]} (height x width)"
                raise ValueError(f"run lengths are of the size {part.get('size')!s:.60}, {image}")
            mask |= decode_rle(part)
            continue
        flat = to_pixels(part)
        if flat.ndim != 1 or len(flat) % 2:
            raise ValueError(f"a polygon must be a list of pairs x0, y0, x1, y1, ..., got shape {flat.shape}")
        points = flat.reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum() > _MAX_LENGTH:
            raise ValueError(f"a polygon's outline is over {_MAX_LENGTH} long: these are no pixels of an image")
        if len(points) > 2:  # of two pycocotools would make a box
            polygons.append(flat.tolist())
    if polygons:
        mask |= coco.decode(coco.merge(coco.frPyObjects(polygons, *hw))).astype(bool)
    return mask


def to_pixels(polygon: Any) -> np.ndarray:
    """A polygon's numbers as float64; ValueError where they are none, or lie absurdly far away."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon must be a list of numbers, or of pairs of numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError("a polygon has a coordinate that is not finite")
    if (largest := np.abs(numbers).max(initial=0)) > _MAX_LENGTH:  # OpenCV walks along such lines for many seconds
        raise ValueError(f"a polygon has coordinates up to {largest:g}: these are no pixels of an image")
    return numbers


def covers_nothing(segmentation: Any) -> bool:
    """Whether a segmentation is seen to be empty without painting it: no run lengths, no polygon of three points."""
    return isinstance(segmentation, list) and all(
        isinstance(part, list | array) and len(part) < 6 for part in segmentation
    )


def compact(segmentation: Any) -> Any:
    """A segmentation with its polygons as arrays: a third of the memory. What is none is an error once painted."""
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return [array("d", part) if isinstance(part, list) else part for part in segmentation]
    except (TypeError, OverflowError):
        return segmentation
