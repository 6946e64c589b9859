"""The one type that all data sets yield: an image and what is said about it. Pixels and text, no tensors.

Frame: masks have the image's own height and width, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readseg.errors import ReadsegError

SEG = "[SEG]"
"""Stands in an answer for one mask."""
IGNORE = 255
"""Mask value of pixels that count neither as target nor as background."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One question and its answer.

    Attributes:
        question: what the user says, without the conversation's layout.
        answer: what the model should say, with one "[SEG]" per mask.
        masks: uint8 (H, W) each, in {0, 1, 255}, in the order of the answer's "[SEG]".
        present: whether what was asked for is there; None where no mask was asked for.
        kind: kind of question, the row of a table of scores.
        tags: what else scores are grouped by.

    Raises:
        ReadsegError: if the number of masks is not that of "[SEG]", a mask is no uint8 (H, W) of {0, 1, 255}, shapes
            differ, or masks contradict ``present``.

    >>> Turn("the cow", "the cow [SEG].", (np.ones((4, 6), np.uint8),), present=True).masks[0].shape
    (4, 6)
    """

    question: str
    answer: str
    masks: tuple[np.ndarray, ...] = ()
    present: bool | None = None
    kind: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        where = f"turn {self.question!r}"
        expected = self.answer.count(SEG)
        if len(self.masks) != expected:
            raise ReadsegError(f"{where}: the answer {self.answer!r} needs {expected} masks, got {len(self.masks)}")
        if bool(self.masks) != bool(self.present):
            raise ReadsegError(f"{where}: present is {self.present}, but there are {len(self.masks)} masks")
        for index, mask in enumerate(self.masks):
            if mask.ndim != 2 or mask.dtype != np.uint8:
                raise ReadsegError(f"{where}: mask {index} must be uint8 (H, W), got {mask.dtype} {mask.shape}")
            if mask.shape != self.masks[0].shape:
                raise ReadsegError(f"{where}: mask {index} is {mask.shape}, the first one {self.masks[0].shape}")
            if ((mask > 1) & (mask != IGNORE)).any():
                raise ReadsegError(f"{where}: mask {index} has values other than 0, 1 and {IGNORE}")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with its conversation or its separate questions.

    Attributes:
        name: unique within its data set.
        image: uint8 (H, W, 3), RGB, or the file that holds it.
        turns: what is asked and answered.

    Raises:
        ReadsegError: if the image is no uint8 (H, W, 3), there is no turn, or a mask has another size than the image
            (of an image in a file: than the other masks).
    """

    name: str
    image: np.ndarray | Path
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ReadsegError(f"sample {self.name!r} has no turns")
        shapes = {mask.shape for turn in self.turns for mask in turn.masks}
        if isinstance(self.image, np.ndarray):
            if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
                got = f"{self.image.dtype} {self.image.shape}"
                raise ReadsegError(f"sample {self.name!r}: the image must be uint8 (H, W, 3), got {got}")
            shapes.add(self.image.shape[:2])
        if len(shapes) > 1:
            raise ReadsegError(f"sample {self.name!r}: image and masks must have one size, got {sorted(shapes)}")
