"""What a data set says about an image, before anybody words a question: expressions and their masks.

Frame: masks have the image's own height and width, in pixels. Readers yield entries; how an expression is asked, in
training or in evaluation, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readseg.errors import ReadsegError


def half_a_character(text: str) -> bool:
    r"""Whether a text holds a lone surrogate, as JSON may spell it: no tokenizer takes it.

    >>> half_a_character("caf\u00e9 \U0001f600"), half_a_character("caf\ud83d")
    (False, True)
    """
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """Something that may be asked for.

    Attributes:
        text: the name of a thing ("the red cup") or a whole sentence ("Where could I sit?"), as the data set has it.
        sentence: which of the two it is.
        present: whether it is in the image.
        mask: makes its mask, uint8 (H, W) in {0, 1, 255}, 255 for pixels that do not count; None where `present` is
            False. It reads and paints when it is called, and raises ReadsegError naming the file that it cannot read.
        instead: of what is not there, what is there instead; "" where the data set does not say.
        kind: the row of a table of scores.
        tags: what else scores are grouped by.

    Raises:
        ReadsegError: the text is empty or holds half of a character, or `mask` and `present` contradict each other.
    """

    text: str
    sentence: bool
    present: bool
    mask: Callable[[], np.ndarray] | None = None
    instead: str = ""
    kind: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ReadsegError("an expression is empty: expected the name of a thing or a sentence")
        if half_a_character(self.text + self.instead):
            raise ReadsegError(f"expression {self.text!r:.60} holds half of a character (a lone surrogate)")
        if (self.mask is not None) != self.present:
            raise ReadsegError(f"expression {self.text!r}: present is {self.present}, mask is {self.mask}")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An image of a data set.

    Attributes:
        name: unique within its split.
        image: the file; nothing says that it is there until it is read.
        expressions: what may be asked for.
        dialogue: questions and answers in words, for data sets of conversations.
        absent: names of the data set's classes that are surely not in the image, where it knows.

    Raises:
        ReadsegError: there is nothing to ask.
    """

    name: str
    image: Path
    expressions: tuple[Expression, ...] = ()
    dialogue: tuple[tuple[str, str], ...] = ()
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.expressions and not self.dialogue:
            raise ReadsegError(f"entry {self.name!r} has neither expressions nor a dialogue")
