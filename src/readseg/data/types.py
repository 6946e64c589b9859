"""The one type that all data sets yield: an image and what is said about it. Pixels and text, no tensors.

Frame: masks have the image's own height and width, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readseg.core.masks import IGNORED
from readseg.core.types import SEG, Turn
from readseg.errors import ReadsegError


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with its conversation or its separate questions.

    Attributes:
        name: unique within its data set.
        image: uint8 (H, W, 3), RGB, or the file that holds it.
        turns: what is asked and answered.

    Raises:
        ReadsegError: if the image is no uint8 (H, W, 3), there is no turn, a turn contradicts itself, or a mask has
            another size than the image (of an image in a file: than the other masks).
    """

    name: str
    image: np.ndarray | Path
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ReadsegError(f"sample {self.name!r} has no turns")
        for turn in self.turns:
            _check(turn)
        shapes = {mask.shape for turn in self.turns for mask in turn.masks}
        if isinstance(self.image, np.ndarray):
            if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
                got = f"{self.image.dtype} {self.image.shape}"
                raise ReadsegError(f"sample {self.name!r}: the image must be uint8 (H, W, 3), got {got}")
            shapes.add(self.image.shape[:2])
        if len(shapes) > 1:
            raise ReadsegError(f"sample {self.name!r}: image and masks must have one size, got {sorted(shapes)}")


def _check(turn: Turn) -> None:
    """Raises ReadsegError where the number of masks is not that of "[SEG]", or a mask is not of the form of targets."""
    where = f"turn {turn.question!r}"
    expected = (turn.answer or "").count(SEG)
    if len(turn.masks) != expected:
        raise ReadsegError(f"{where}: the answer {turn.answer!r} needs {expected} masks, got {len(turn.masks)}")
    if bool(turn.masks) != bool(turn.present):
        raise ReadsegError(f"{where}: present is {turn.present}, but there are {len(turn.masks)} masks")
    for index, mask in enumerate(turn.masks):
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ReadsegError(f"{where}: mask {index} must be uint8 (H, W), got {mask.dtype} {mask.shape}")
        if ((mask > 1) & (mask != IGNORED)).any():
            raise ReadsegError(f"{where}: mask {index} has values other than 0, 1 and {IGNORED}")
