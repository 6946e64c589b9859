"""How annotation files tell a mask: COCO's polygons and run lengths. Frame: pixels of the upright image.

What ReasonSeg's files hold is painted in another way, by `readseg.core.masks.polygons_to_mask`.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco
from pydantic import PositiveInt

from readseg.core.images import MAX_PIXELS, load_image
from readseg.core.masks import decode_rle
from readseg.data.files import FileName, Record
from readseg.errors import ReadsegError

_MAX_LENGTH = 1_000_000  # pixels of an outline, and to it from the origin: painting takes memory or time by the length
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that lay the image on its side


class ImageRecord(Record):
    """An image, as COCO's files tell it."""

    file_name: FileName
    height: PositiveInt
    width: PositiveInt


def image_hw(path: Path) -> tuple[int, int]:
    """(H, W) of the image that `load_image` gives, from the file's head: nothing is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, and of damaged EXIF
            if not path.is_file():  # a pipe would be waited for
                raise FileNotFoundError(path)
            with Image.open(path) as image:
                width, height = image.size
                sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        if not 0 < width * height <= MAX_PIXELS:
            raise ValueError(f"{width * height} pixels")
    except Exception:  # what is wrong, if anything is, the whole reader says in its own words
        width, height, sideways = *load_image(path).size, False
    return (width, height) if sideways else (height, width)


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

    >>> segmentation_mask([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]], (3, 3)).astype(int)
    array([[1, 1, 0],
           [1, 1, 1],
           [0, 1, 1]])
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
    """Whether a segmentation can be seen to be empty without painting it: no run lengths, no polygon of three points.

    >>> covers_nothing([]), covers_nothing([[1, 1, 2, 2]]), covers_nothing([[1, 1, 2, 2, 3, 3]])
    (True, True, False)
    """
    if not isinstance(segmentation, list):
        return False
    return all(isinstance(part, list | array) and len(part) < 6 for part in segmentation)


def compact(segmentation: Any) -> Any:
    """A segmentation with its polygons as arrays: a third of the memory. What is none is an error once painted."""
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return [array("d", part) if isinstance(part, list) else part for part in segmentation]
    except (TypeError, OverflowError):
        return segmentation
