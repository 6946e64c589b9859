"""What data sets and models share: a turn of a conversation, and the marks of what does not count. Text and pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SEG = "[SEG]"
"""Stands in an answer for one mask."""
IGNORE_INDEX = -100
"""The label of a token or a cell that nothing is learned from; of a pixel it is `core.masks.IGNORED`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer, in which "[SEG]" (and its like in other families) stands for a mask."""

    question: str
    answer: str | None = None  # None where it is still to be generated
    # uint8 (H, W) each, in {0, 1, 255}, in the order of the answer's "[SEG]".
    masks: tuple[np.ndarray, ...] = field(default=(), compare=False)
    present: bool | None = None  # whether what was asked for is there; None where no mask was asked for
    kind: str = ""  # of question; scores are grouped by it, and by the tags
    tags: frozenset[str] = frozenset()
    ids: tuple[int, ...] | None = None  # of an answer that a model gave; its text does not always give them again
