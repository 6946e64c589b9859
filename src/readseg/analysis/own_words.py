"""The answer's own words for what a [SEG] stands for, and the tokens that they are made of.

    the purple hat [SEG].                      the purple hat
    the device is the laptop [SEG].            the laptop
    the apple [SEG] and the broom [SEG].       the apple; the broom
    Sure, the segmentation result is [SEG].    none: these words name nothing

Speaks text and places of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from readseg.evaluation.predictions import words_of

# What names an object begins behind the last of these.
_CUT = re.compile(r"\b(?:is|are|was|were)\b|[.,;:!?](?=\s)", re.IGNORECASE)
_FILLERS = re.compile(r"^(?:\W*\b(?:and|or|but|also|sure|yes|okay|ok|here|it)\b)*\W*", re.IGNORECASE)
_ARTICLES = ("the", "a", "an")


@dataclass(frozen=True)
class OwnWords:
    """Words of an answer.

    text: as they stand there.
    places: which of the answer's tokens they are made of.
    """

    text: str
    places: tuple[int, ...]


def own_words(
    answer: str, spans: Sequence[tuple[int, int]], seg_places: Sequence[int], seg: int, phrase: str = ""
) -> OwnWords | None:
    """The words of an answer that name what one of its [SEG] stands for.

    They stand between the [SEG] before and this one: the phrase where the family's answers mark it, else what follows
    the last "is", "are" or stop, without fillers such as "and" or "sure".

    Args:
        answer: the text.
        spans: for each token of the answer its first and last character (exclusive) in it (`maps.Reading`).
        seg_places: which of the tokens are [SEG].
        seg: which of these, from 0.
        phrase: of `Segmentation.phrases`.

    Returns:
        None where no words are left.
    """
    first = spans[seg_places[seg - 1]][1] if seg else 0
    stretch = answer[first : spans[seg_places[seg]][0]]
    if phrase:
        start = stretch.rfind(phrase)
        if start < 0:
            return None
        end = start + len(phrase)
    else:
        start = max((found.end() for found in _CUT.finditer(stretch)), default=0)
        fillers = _FILLERS.match(stretch[start:])
        start += fillers.end() if fillers else 0
        end = max((found.end() for found in re.finditer(r"\w", stretch)), default=0)
    if start >= end:
        return None
    start, end = start + first, end + first
    places = tuple(k for k, (low, high) in enumerate(spans) if low < end and start < high)
    return OwnWords(answer[start:end], places) if places else None


def names(answer: str, name: str) -> bool:
    """Whether an answer holds a name: its words, without an article, in their order; in any case.

    >>> names("Sure, the red cup is [SEG].", "a red cup"), names("the red hat [SEG].", "red cup")
    (True, False)
    """
    said, wanted = words_of(answer), words_of(name)
    while len(wanted) > 1 and wanted[0] in _ARTICLES:
        wanted = wanted[1:]
    count = len(wanted)
    return count > 0 and any(said[k : k + count] == wanted for k in range(len(said) - count + 1))
