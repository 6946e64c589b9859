"""Predictions on disk: JSON lines that survive a kill at any moment.

The first line says what made the file (model, data, protocol); every further line is one answered question:

    {"format": "readseg-predictions-1", "settings": {"model": "tiny", ...}}
    {"key": "scene-7/2", "answer": "the cow [SEG].", "present": true, "masks": [{"size": ..., "counts": ...}]}

A line is written in one piece as soon as its question is answered. After a kill only the last line can be
incomplete; it is cut off when the file is opened again, and the run goes on where it stood. Masks are
pycocotools' RLE, (H, W) in pixels of the image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from readseg.errors import ReadsegError
from readseg.files import whole

FORMAT = "readseg-predictions-1"


@dataclass(frozen=True)
class Prediction:
    """What a model said to one question, and what it drew.

    Attributes:
        key: names the question within its benchmark.
        answer: the text.
        present: whether the model says the object is there; None where no segmentation was asked for.
        masks: one RLE ({"size": [H, W], "counts": str}) for each [SEG] of the answer, in reading order.
    """

    key: str
    answer: str
    present: bool | None
    masks: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The line of the file, as a dictionary."""
        masks = [dict(mask) for mask in self.masks]
        return {"key": self.key, "answer": self.answer, "present": self.present, "masks": masks}

    @classmethod
    def from_json(cls, record: Any) -> Prediction:
        """Reads back what `to_json` wrote.

        Raises:
            ReadsegError: a field is missing or of another type.
        """
        if not isinstance(record, dict):
            raise ReadsegError(f"expected an object, got {type(record).__name__}")
        key, answer = record.get("key"), record.get("answer")
        present, masks = record.get("present"), record.get("masks")
        if not isinstance(key, str) or not isinstance(answer, str):
            raise ReadsegError("expected the texts 'key' and 'answer'")
        if not (present is None or isinstance(present, bool)):
            raise ReadsegError(f"'present': expected true, false or null, got {present!r}")
        if not isinstance(masks, list) or not all(
            isinstance(m, dict) and {"size", "counts"} <= m.keys() for m in masks
        ):
            raise ReadsegError("'masks': expected a list of RLE objects with 'size' and 'counts'")
        return cls(key, answer, present, tuple(masks))


class PredictionFile:
    """An open file of predictions: what it holds already, and a way to add to it.

        with PredictionFile(path, {"model": "tiny", "data": "scenes"}) as file:
            for question in questions:
                if question.key not in file:
                    file.add(answer(question))

    Args:
        path: made with its folders if it does not exist.
        settings: what the predictions depend on; JSON values.

    Raises:
        ReadsegError: the file exists and was made with other settings, or is no file of predictions.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.predictions: dict[str, Prediction] = {}
        self._settings = json.loads(json.dumps(dict(settings)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self._create()
        self._resume()
        # Unbuffered: a line reaches the system in one call, and a killed process loses none that it finished.
        self._file = self.path.open("ab", buffering=0)

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
        self._file.write(_line(prediction.to_json()))
        self.predictions[prediction.key] = prediction

    def close(self) -> None:
        """Makes sure that everything is on the disk, and closes the file."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _create(self) -> None:
        """Puts the head in place in one step: a file without a complete head never exists."""
        with whole(self.path) as place:
            place.write_bytes(_line({"format": FORMAT, "settings": self._settings}))

    def _resume(self) -> None:
        settings, predictions, good_bytes = _parse(self.path)
        if settings != self._settings:
            names = sorted(settings.keys() | self._settings.keys())
            changed = [n for n in names if settings.get(n) != self._settings.get(n)]
            detail = ", ".join(f"{n}: {settings.get(n)!r} there, {self._settings.get(n)!r} now" for n in changed)
            raise ReadsegError(f"{self.path} was made with other settings ({detail}); give another file or delete it")
        if good_bytes < self.path.stat().st_size:
            os.truncate(self.path, good_bytes)
        self.predictions = predictions


def read_predictions(path: Path) -> tuple[dict[str, Any], dict[str, Prediction]]:
    """Reads a file of predictions without changing it; a half last line is left out.

    Returns:
        The settings of the head, and the predictions by key, in the order of the file.

    Raises:
        ReadsegError: no such file, or a line (named by its number) is not what it should be.
    """
    settings, predictions, _ = _parse(Path(path))
    return settings, predictions


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, Prediction], int]:
    """Settings, predictions by key, and the length in bytes of all complete lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadsegError(f"{path}: cannot be read ({error.strerror}); expected a file of predictions") from error
    complete, _, _ = content.rpartition(b"\n")
    lines = complete.split(b"\n")
    head = _record(lines[0], path, 1)
    if not isinstance(head, dict) or head.get("format") != FORMAT or not isinstance(head.get("settings"), dict):
        raise ReadsegError(f"{path}, line 1: expected a head with format {FORMAT!r}; this is no file of predictions")
    predictions: dict[str, Prediction] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            prediction = Prediction.from_json(_record(line, path, number))
        except ReadsegError as error:
            prefix = f"{path}, line {number}: "
            raise ReadsegError(prefix + str(error).removeprefix(prefix)) from error
        if prediction.key in predictions:
            raise ReadsegError(f"{path}, line {number}: key {prediction.key!r} occurs twice")
        predictions[prediction.key] = prediction
    return head["settings"], predictions, len(complete) + 1


def _record(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ReadsegError(f"{path}, line {number}: expected JSON; the file is damaged or of another kind") from error


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
