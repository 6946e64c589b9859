"""Predictions on disk, which can be scored without model or data, and what the scores need of each of them.

A file of predictions is a `core.io.JsonlStore`; each line is a question with what is true, and what a model said to it:

    {"format": "readseg-predictions-2", "settings": {"model": "tiny", ...}, "about": {"images": 20, ...}}
    {"key": "scene-7/2", "image": "scene-7", "size": [256, 320], "question": "where is the cow?", "present": true,
     "targets": [RLE], "ignored": null, "expected": null, "section": "", "kind": "category", "tags": [],
     "answer": "the cow [SEG].", "said": true, "masks": [RLE], "finished": true}

RLE is pycocotools', {"size": [H, W], "counts": "..."}, in pixels of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import AfterValidator, Field, PlainSerializer, PositiveInt

from readseg.core.images import MAX_PIXELS
from readseg.core.io import LineFormat, read_lines
from readseg.core.masks import IGNORED, decode_rle, intersection_and_union, union
from readseg.core.stats import mask_ious
from readseg.errors import ReadsegError

Match = Literal["union", "order"]
"""How masks meet their targets, a setting of the benchmark; where nothing is there, their union meets an empty target.

"union": the union of all masks of an answer against the one target, as the field's data sets are scored. "order": the
k-th mask against the k-th target, as scenes are scored; a missing mask counts as empty, and one too many against an
empty target.
"""


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_PIXELS:  # before anything of this size is made
        raise ValueError(f"expected at most {MAX_PIXELS} pixels")
    return size


def _checked_rle(rle: dict[str, Any]) -> dict[str, Any]:
    if not {"size", "counts"} <= rle.keys():
        raise ValueError("expected an RLE object with 'size' and 'counts'")
    return rle


Rle = Annotated[dict[str, Any], AfterValidator(_checked_rle)]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A question of a benchmark with what is true, and what a model said to it and drew; one line on disk."""

    key: str  # names the question within its benchmark
    image: str  # the file, relative to the folder of all data, or the name of a drawn scene
    size: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_checked_size)]  # (H, W) of the image
    question: str  # in the data set's words
    present: bool | None  # whether what is asked for is there; None for a question that is answered in words
    targets: tuple[Rle, ...]  # one for each mask that is expected
    ignored: Rle | None = None  # the pixels that do not count; None where all do
    expected: str | None = None  # the answer in words; None where the data set has none
    section: str  # part of the benchmark, as its tables name it
    kind: str  # of question
    tags: Annotated[frozenset[str], PlainSerializer(sorted)]  # what else scores are grouped by
    answer: str  # the model's text
    claimed: Annotated[bool | None, Field(alias="said")]  # that the object is there; None where no mask was asked for
    masks: tuple[Rle, ...]  # one for each [SEG] of the answer, in reading order
    finished: bool  # False where the answer was cut off at its longest length


PREDICTIONS = LineFormat("readseg-predictions-2", Prediction)


@dataclass(frozen=True, kw_only=True)
class Outcome(Prediction):
    """A prediction with how it went."""

    said: bool  # whether the answer has a mask that is not empty
    intersections: tuple[int, ...]  # pixels, one number for each mask; none for a question that is answered in words
    unions: tuple[int, ...]  # likewise
    right_words: bool  # the answer's text is the expected one, whatever its case, spaces and stops

    @property
    def iou(self) -> float:
        """Mean over its masks."""
        return float(mask_ious(self.intersections, self.unions).mean())


@dataclass(frozen=True)
class Result:
    """A model's answers to a benchmark in its order, scored; `settings` and `about` are those of the file's header."""

    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]


def result_of(
    settings: Mapping[str, Any], about: Mapping[str, Any], predictions: Sequence[Prediction], *, source: str = ""
) -> Result:
    """Scores predictions as their settings say; `source` names the file whose second line is the first of them."""
    where = f"{source}, line 1: " if source else ""
    match: Any = settings.get("match")
    if match not in get_args(Match):
        raise ReadsegError(f"{where}'match': expected one of {', '.join(get_args(Match))}, got {match!r:.40}")
    for name in ("benchmark", "protocol"):
        if not isinstance(settings.get(name), str):
            raise ReadsegError(f"{where}{name!r}: expected a text among the settings, got {settings.get(name)!r:.40}")
    outcomes = []
    for line, prediction in enumerate(predictions, start=2):
        try:
            outcomes.append(score(prediction, match))
        except ReadsegError as error:
            raise ReadsegError(f"{source}, line {line}: {error}" if source else str(error)) from error
    return Result(settings, about, tuple(outcomes))


def prediction_files(path: Path) -> list[Path]:
    """The file of predictions itself, or all files predictions.jsonl below a folder."""
    files = sorted(path.rglob("predictions.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ReadsegError(f"{path}: no predictions.jsonl is there; readseg evaluate --out writes one when it is done")
    return files


def read_result(path: Path) -> Result:
    """The result that a file of predictions holds: no model and no data are needed."""
    lines = read_lines(path, PREDICTIONS)
    return result_of(lines.header["settings"], lines.header["about"], list(lines.records.values()), source=str(path))


def score(prediction: Prediction, match: Match) -> Outcome:
    """Compares a prediction with the truth that it carries; a mask that is not of the image's size is an error."""
    name = f"{prediction.key}: 'ignored'"
    ignored = None if prediction.ignored is None else decode_mask(prediction.ignored, prediction.size, name)
    said, counts = False, []
    for mask, target in _pairs(prediction, match):
        said = said or bool(mask.any())
        if prediction.present is not None:
            counted = target if ignored is None else np.where(ignored, IGNORED, target).astype(np.uint8)
            counts.append(intersection_and_union(mask, counted))
    return Outcome(
        **{field.name: getattr(prediction, field.name) for field in fields(Prediction)},
        said=said,
        intersections=tuple(intersection for intersection, _ in counts),
        unions=tuple(either for _, either in counts),
        right_words=prediction.expected is not None and same_words(prediction.answer, prediction.expected),
    )


def same_words(answer: str, expected: str) -> bool:
    """Whether two texts are the same whatever their case, spaces and stops; [SEG] counts as a word."""
    return words_of(answer) == words_of(expected)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, [SEG] among them as "[seg]"."""
    return re.findall(r"\w+|\[seg\]", text.lower())


def _pairs(prediction: Prediction, match: Match) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is compared with what, (H, W) each, one pair after the other: a damaged line may hold very many masks."""
    nothing = np.zeros(prediction.size, bool)
    masks = (decode_mask(rle, prediction.size, f"{prediction.key}: 'masks'") for rle in prediction.masks)
    targets = (decode_mask(rle, prediction.size, f"{prediction.key}: 'targets'") for rle in prediction.targets)
    if match == "order" and prediction.present:
        yield from zip_longest(masks, targets, fillvalue=nothing)
        if not prediction.masks and not prediction.targets:
            yield nothing, nothing
    else:
        yield union(masks, prediction.size), union(targets, prediction.size)


def decode_mask(rle: Rle, size: tuple[int, int], name: str) -> np.ndarray:
    """One mask of a record, bool (H, W), of its image's size; `name` says in errors whose it is."""
    if rle["size"] != list(size):  # before it is decoded: a damaged size may be huge
        raise ReadsegError(f"{name}: expected masks of size {size}, the image's, got {rle['size']}")
    try:
        return decode_rle(rle)
    except ValueError as error:
        raise ReadsegError(f"{name}: {error}") from error
