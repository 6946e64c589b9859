"""The masks that a user expects, read from pictures of them. Frame: pixels of the image, (H, W)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from readseg.core.images import load_image
from readseg.core.masks import IGNORED, union
from readseg.errors import ReadsegError


@dataclass(frozen=True, eq=False)
class Truth:
    """The mask that is expected.

    Attributes:
        source: its file.
        target: (H, W) in {0, 1, 255}; 255 is not counted.
        object_value: the value of the object's pixels in the file, 1 or 255.
    """

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


def read_truth(path: str | Path, image_hw: tuple[int, int]) -> Truth:
    """The expected mask of an image file of grey values.

    0 is background. Where the file holds a 1, that is the object and 255 is not counted, as in data sets; otherwise 255
    is the object, as in masks that people draw. Only 0: nothing is expected.

    Args:
        path: of a PNG or any other file without loss. The values of a palette image are its indices.
        image_hw: (H, W) of the image, upright.

    Raises:
        ReadsegError: the file cannot be read, is of another size, coloured or transparent, or holds other values.
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
    if image.mode in ("LA", "RGBA", "PA"):
        if (bands[..., -1] != IGNORED).any():
            raise ReadsegError(f"{path}: the truth is transparent: expected a grey image of 0 and 255, or 0, 1 and 255")
        bands = bands[..., :-1]
    if bands.ndim == 3:
        if (bands != bands[..., :1]).any():
            raise ReadsegError(f"{path}: the truth has colours: expected a grey image of 0 and 255, or 0, 1 and 255")
        bands = bands[..., 0]
    there = np.unique(bands)
    if len(others := there[~np.isin(there, (0, 1, IGNORED))]):
        told = ", ".join(str(value) for value in others[:5]) + (
            f" and {len(others) - 5} more" if len(others) > 5 else ""
        )
        raise ReadsegError(
            f"{path}: the truth holds the values {told}: expected 0 and 255 (the object), or 0, 1 (the object) and 255 "
            "(not counted), in a file without loss such as PNG"
        )
    if 1 in there:
        return Truth(str(path), bands.astype(np.uint8), 1)
    return Truth(str(path), (bands == IGNORED).astype(np.uint8), IGNORED)


def joined(truths: Sequence[Truth]) -> UInt8[np.ndarray, "H W"]:
    """All expected masks as one target (H, W): 255 where any is, else 1 where any is."""
    ignored = union([truth.target == IGNORED for truth in truths])
    return np.where(ignored, IGNORED, union([truth.target == 1 for truth in truths])).astype(np.uint8)
