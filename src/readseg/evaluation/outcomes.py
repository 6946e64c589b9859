"""From what a model said to pixel counts: one `Outcome` a question, all that the scores need of it.

Frame: pixels of the image. How masks meet their targets is part of a benchmark:

    "union"  the union of all masks of an answer against the one target: how the field's data sets are scored
    "order"  the k-th mask against the k-th target; a missing mask counts as empty, and one too many against an empty
             target: how scenes are scored

Where nothing is there, the union of all masks meets an empty target, in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from readseg.core.masks import IGNORED, decode_rle, intersection_and_union, union
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Prediction, Rle, read_predictions

Match = Literal["union", "order"]
MATCHES: tuple[Match, ...] = ("union", "order")


@dataclass(frozen=True)
class Outcome:
    """How one question went: all that the scores need of it.

    Attributes:
        key: of the question.
        image: what it is about; questions about one image are not independent.
        section: part of the benchmark.
        kind: kind of question.
        tags: what was held out of training, and other properties of the question.
        present: whether the object is there; None for a question that is answered in words.
        said: whether the answer has a mask that is not empty.
        intersections: pixels, one number for each mask; empty for a question answered in words.
        unions: likewise.
        right_words: the answer's text is the expected one, whatever its case, spaces and stops.
    """

    key: str
    image: str
    section: str
    kind: str
    tags: frozenset[str]
    present: bool | None
    said: bool
    intersections: tuple[int, ...]
    unions: tuple[int, ...]
    right_words: bool


@dataclass(frozen=True)
class Result:
    """A model's answers to a benchmark, scored.

    Attributes:
        settings: what the answers depend on: the head of a file of predictions.
        about: what else is known of them.
        predictions: in the benchmark's order.
        outcomes: one for each prediction.
    """

    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    predictions: tuple[Prediction, ...]
    outcomes: tuple[Outcome, ...]


def result_of(
    settings: Mapping[str, Any], about: Mapping[str, Any], predictions: Sequence[Prediction], *, source: str = ""
) -> Result:
    """Scores predictions as their settings say.

    Args:
        settings: with "benchmark", "protocol" and "match".
        about: see `Result`.
        predictions: in the benchmark's order.
        source: the file whose second line is the first of them, for errors.

    Raises:
        ReadsegError: the settings do not say what was asked or how it is scored, or a mask cannot be read.
    """
    where = f"{source}, line 1: " if source else ""
    match = settings.get("match")
    if match not in MATCHES:
        raise ReadsegError(f"{where}'match': expected one of {', '.join(MATCHES)}, got {match!r:.40}")
    for name in ("benchmark", "protocol"):
        if not isinstance(settings.get(name), str):
            raise ReadsegError(f"{where}{name!r}: expected a text among the settings, got {settings.get(name)!r:.40}")
    outcomes = []
    for line, prediction in enumerate(predictions, start=2):
        try:
            outcomes.append(score(prediction, match))
        except ReadsegError as error:
            raise ReadsegError(f"{source}, line {line}: {error}" if source else str(error)) from error
    return Result(settings, about, tuple(predictions), tuple(outcomes))


def read_result(path: Path) -> Result:
    """The result that a file of predictions holds: no model and no data are needed.

    Raises:
        ReadsegError: no such file, or a line of it, named by its number, is not what it should be.
    """
    head, predictions = read_predictions(path)
    return result_of(head.settings, head.about, list(predictions.values()), source=str(path))


def score(prediction: Prediction, match: Match) -> Outcome:
    """Compares a prediction with the truth that it carries.

    Raises:
        ReadsegError: a mask cannot be read, or is not of the image's size.
    """
    asked = prediction.asked
    ignored = None if asked.ignored is None else _mask(prediction, asked.ignored, "ignored")
    said, counts = False, []
    for found, wanted in _pairs(prediction, match):
        said = said or bool(found.any())
        if asked.present is not None:
            counts.append(intersection_and_union(found, _counted(wanted, ignored)))
    return Outcome(
        key=asked.key,
        image=asked.image,
        section=asked.section,
        kind=asked.kind,
        tags=asked.tags,
        present=asked.present,
        said=said,
        intersections=tuple(intersection for intersection, _ in counts),
        unions=tuple(either for _, either in counts),
        right_words=asked.expected is not None and same_words(prediction.answer, asked.expected),
    )


def same_words(answer: str, expected: str) -> bool:
    """Whether two texts are the same whatever their case, spaces and stops; [SEG] counts as a word.

    >>> same_words("The cat [SEG].", "the cat [SEG]"), same_words("the cat.", "the cat [SEG]")
    (True, False)
    """
    return words_of(answer) == words_of(expected)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, [SEG] among them as "[seg]".

    >>> words_of("The red cup [SEG].")
    ['the', 'red', 'cup', '[seg]']
    """
    return re.findall(r"\w+|\[seg\]", text.lower())


def _pairs(prediction: Prediction, match: Match) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is compared with what, (H, W) each, one pair after the other: a damaged line may hold very many masks."""
    asked = prediction.asked
    nothing = np.zeros(asked.size, bool)

    def masks(name: str, rles: Sequence[Rle]) -> Iterator[np.ndarray]:
        return (_mask(prediction, rle, name) for rle in rles)

    drawn, targets = masks("masks", prediction.masks), masks("targets", asked.targets)
    if match == "order" and asked.present:
        yield from zip_longest(drawn, targets, fillvalue=nothing)
        if not prediction.masks and not asked.targets:
            yield nothing, nothing
    else:
        yield union(drawn, asked.size), union(targets, asked.size)


def _mask(prediction: Prediction, rle: Rle, name: str) -> np.ndarray:
    """One mask of a prediction, bool (H, W)."""
    size = prediction.asked.size
    if rle["size"] != list(size):  # before it is decoded: a damaged size may be huge
        raise ReadsegError(f"{prediction.key}: {name!r}: expected masks of size {size}, the image's, got {rle['size']}")
    try:
        return decode_rle(dict(rle))
    except ValueError as error:
        raise ReadsegError(f"{prediction.key}: {name!r}: {error}") from error


def _counted(target: np.ndarray, ignored: np.ndarray | None) -> np.ndarray:
    """The target with the pixels that do not count as 255, uint8 (H, W)."""
    return target if ignored is None else np.where(ignored, IGNORED, target).astype(np.uint8)
