"""Predictions on disk: JSON lines that survive a kill at any moment, and that can be scored without model or data.

The first line says what made the file; every further line is a question with what is true, and what a model said to it:

    {"format": "readseg-predictions-2", "settings": {"model": "tiny", ...}, "about": {"images": 20, ...}}
    {"key": "scene-7/2", "image": "scene-7", "size": [256, 320], "question": "where is the cow?", "present": true,
     "targets": [RLE], "ignored": null, "expected": null, "section": "", "kind": "category", "tags": [],
     "answer": "the cow [SEG].", "said": true, "masks": [RLE], "finished": true}

What `settings` say decides the answers: a file is never added to with other ones. `about` only describes. A line is
written in one piece as soon as its question is answered. After a kill only the last line can be incomplete; it is cut
off when the file is opened again, and the run goes on where it stood. RLE is pycocotools', {"size": [H, W], "counts":
"..."}, in pixels of the image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from readseg.core.images import MAX_PIXELS
from readseg.core.io import atomic_write, lock
from readseg.core.json_lines import check_settings, complete_lines, from_line, to_line
from readseg.errors import ReadsegError

FORMAT = "readseg-predictions-2"

Rle = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question of a benchmark, and what is true.

    Attributes:
        key: names the question within its benchmark.
        image: the file, relative to the folder of all data, or the name of a drawn scene.
        size: (H, W) of the image.
        question: the text, in the data set's words.
        present: whether what is asked for is there; None for a question that is answered in words.
        targets: one RLE for each mask that is expected.
        ignored: RLE of the pixels that do not count; None where all do.
        expected: the answer in words; None where the data set has none.
        section: part of the benchmark, as its tables name it.
        kind: kind of question.
        tags: what else scores are grouped by.
    """

    key: str
    image: str
    size: tuple[int, int]
    question: str
    present: bool | None
    targets: tuple[Rle, ...] = ()
    ignored: Rle | None = None
    expected: str | None = None
    section: str = ""
    kind: str = ""
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prediction:
    """What a model said to one question, and what it drew.

    Attributes:
        asked: the question.
        answer: the text.
        present: whether the model says the object is there; None where no segmentation was asked for.
        masks: one RLE for each [SEG] of the answer, in reading order.
        finished: False where the answer was cut off at its longest length.
    """

    asked: Asked
    answer: str
    present: bool | None
    masks: tuple[Rle, ...] = ()
    finished: bool = True

    @property
    def key(self) -> str:
        """The question's."""
        return self.asked.key

    def to_json(self) -> dict[str, Any]:
        """The line of the file, as a dictionary."""
        asked = self.asked
        return {
            "key": asked.key,
            "image": asked.image,
            "size": list(asked.size),
            "question": asked.question,
            "present": asked.present,
            "targets": [dict(target) for target in asked.targets],
            "ignored": None if asked.ignored is None else dict(asked.ignored),
            "expected": asked.expected,
            "section": asked.section,
            "kind": asked.kind,
            "tags": sorted(asked.tags),
            "answer": self.answer,
            "said": self.present,
            "masks": [dict(mask) for mask in self.masks],
            "finished": self.finished,
        }

    @classmethod
    def from_json(cls, record: Any) -> Prediction:
        """Reads back what `to_json` wrote.

        Raises:
            ReadsegError: a field is missing or of another type.
        """
        if not isinstance(record, dict):
            raise ReadsegError(f"expected an object, got {type(record).__name__}")
        size, tags = record.get("size"), record.get("tags")
        if not isinstance(size, list) or len(size) != 2 or not all(_is_length(side) for side in size):
            raise ReadsegError(f"'size': expected [H, W], the image's, got {size!r:.40}")
        if size[0] * size[1] > MAX_PIXELS:
            raise ReadsegError(f"'size': expected at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ReadsegError(f"'tags': expected a list of texts, got {tags!r:.40}")
        if not isinstance(record.get("finished"), bool):
            raise ReadsegError(f"'finished': expected true or false, got {record.get('finished')!r:.40}")
        ignored = record.get("ignored")
        asked = Asked(
            key=_text(record, "key"),
            image=_text(record, "image"),
            size=(size[0], size[1]),
            question=_text(record, "question"),
            present=_decision(record, "present"),
            targets=_masks(record.get("targets"), "targets"),
            ignored=None if ignored is None else _masks([ignored], "ignored")[0],
            expected=None if record.get("expected") is None else _text(record, "expected"),
            section=_text(record, "section"),
            kind=_text(record, "kind"),
            tags=frozenset(tags),
        )
        masks = _masks(record.get("masks"), "masks")
        return cls(asked, _text(record, "answer"), _decision(record, "said"), masks, record["finished"])


class PredictionFile:
    """An open file of predictions: what it holds already, and a way to add to it.

        with PredictionFile(path, {"model": "tiny", "benchmark": "refcoco/val"}) as file:
            for question in questions:
                if question.key not in file:
                    file.add(answer(question))

    Args:
        path: made with its folders if it does not exist.
        settings: what the predictions depend on; JSON values.
        about: what else the head of a new file says.

    Raises:
        ReadsegError: the file exists and was made with other settings, is no file of predictions, or another process
            has it open.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            write_predictions(self.path, settings, about or {}, ())
        # Unbuffered: a line reaches the system in one call, and a killed process loses none that it finished.
        self._file = self.path.open("ab", buffering=0)
        try:
            lock(self._file, str(self.path))
            _, self.predictions, good_bytes = _parse(self.path, settings)
            os.truncate(self.path, good_bytes)
        except BaseException:
            self._file.close()
            raise

    def __contains__(self, key: object) -> bool:
        return key in self.predictions

    def __getitem__(self, key: str) -> Prediction:
        return self.predictions[key]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def add(self, prediction: Prediction) -> None:
        """Writes one prediction at once.

        Raises:
            ReadsegError: its key is there already.
        """
        if prediction.key in self.predictions:
            raise ReadsegError(f"{self.path}: a prediction with key {prediction.key!r} is there already")
        self._file.write(to_line(prediction.to_json()))
        self.predictions[prediction.key] = prediction

    def close(self) -> None:
        """Makes sure that everything is on the disk, and closes the file."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


@dataclass(frozen=True)
class Head:
    """The first line of a file of predictions.

    settings: what the answers depend on.
    about: what else is known of them.
    """

    settings: Mapping[str, Any]
    about: Mapping[str, Any]


def read_predictions(path: Path, settings: Mapping[str, Any] | None = None) -> tuple[Head, dict[str, Prediction]]:
    """Reads a file of predictions without changing it; a half last line is left out.

    Args:
        path: the file.
        settings: what they must be; any where left out.

    Returns:
        The head, and the predictions by key, in the order of the file: the k-th, from 0, is line k + 2.

    Raises:
        ReadsegError: no such file, a line (named by its number) is not what it should be, or other settings.
    """
    head, predictions, _ = _parse(Path(path), settings)
    return head, predictions


def write_predictions(
    path: Path, settings: Mapping[str, Any], about: Mapping[str, Any], predictions: Iterable[Prediction]
) -> None:
    """Writes a file of predictions in one step: a file without a complete head never exists."""
    with atomic_write(path) as place, place.open("wb") as file:
        file.write(to_line({"format": FORMAT, "settings": dict(settings), "about": dict(about)}))
        file.writelines(to_line(prediction.to_json()) for prediction in predictions)


def _parse(path: Path, expected: Mapping[str, Any] | None) -> tuple[Head, dict[str, Prediction], int]:
    """Head, predictions by key, and the length in bytes of all complete lines."""
    lines, length = complete_lines(path, "a file of predictions")
    head = _head(from_line(lines[0], path, 1), path)
    if expected is not None:
        check_settings(path, head.settings, json.loads(json.dumps(dict(expected))))
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(lines[1:], start=2):
        record = from_line(line, path, number)
        try:
            prediction = Prediction.from_json(record)
        except ReadsegError as error:
            raise ReadsegError(f"{path}, line {number}: {error}") from error
        if prediction.key in predictions:
            raise ReadsegError(f"{path}, line {number}: key {prediction.key!r} occurs twice")
        predictions[prediction.key] = prediction
    return head, predictions, length


def _head(record: Any, path: Path) -> Head:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        told = f"it has {found!r}: made by another version?" if found else "this is no file of predictions"
        raise ReadsegError(f"{path}, line 1: expected a head with format {FORMAT!r}; {told}")
    settings, about = record.get("settings"), record.get("about")
    if not isinstance(settings, dict) or not isinstance(about, dict):
        raise ReadsegError(f"{path}, line 1: expected the objects 'settings' and 'about' beside 'format'")
    return Head(settings, about)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise ReadsegError(f"{name!r}: expected a text, got {value!r:.40}")
    return value


def _decision(record: Mapping[str, Any], name: str) -> bool | None:
    value = record.get(name, "nothing")
    if value is not None and not isinstance(value, bool):
        raise ReadsegError(f"{name!r}: expected true, false or null, got {value!r:.40}")
    return value


def _masks(value: Any, name: str) -> tuple[Rle, ...]:
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"size", "counts"} <= m.keys() for m in value):
        raise ReadsegError(f"{name!r}: expected RLE objects with 'size' and 'counts'")
    return tuple(value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
