"""ReasonSeg: questions that take reasoning, one target for each image. Frame: pixels of the upright image.

    ROOT/reason_seg/ReasonSeg/{train,val,test}/NAME.json beside NAME.jpg
    {"text": ["..", ..], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ..]}, ..],
     "false_premise_QA": [["question", is_sentence, "answer"], ..]}

All texts of a file ask for the same target, in the file's order; the published protocol asks the first one alone, which
has the tag "first".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from readseg.core.masks import IGNORED, polygons_to_mask
from readseg.data.annotations import MAX_LENGTH, image_hw
from readseg.data.entries import Entry, Expression
from readseg.data.json_records import content
from readseg.errors import ReadsegError

PLACE = Path("reason_seg", "ReasonSeg")
"""Where the splits lie below the root of all data."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of an image beside its JSON, in any case; where several are there, the first of these."""

_INSTEAD = re.compile(
    r"\b(?:but|instead|however),? there(?: is| are|['’]s) (?:only )?(?P<what>[^.,;:!?]+?)(?: instead)?[.!]?$",
    re.IGNORECASE,
)


class ReasonSeg:
    """A split of ReasonSeg, one entry for each JSON file, by name.

    Expressions are all texts, kind and tag "short" (the name of a thing) or "long" (a sentence), then the file's false
    premises, kind "false premise". The two test files without a polygon stay: they ask for something that is there, so
    they are no false premise, but their mask is empty; their texts have the tag "no_target".

    Args:
        root: the root of all data.
        split: a folder of `PLACE`.

    Raises:
        ReadsegError: there is no such split. A file that is damaged raises where it is accessed.
    """

    def __init__(self, root: Path, split: str) -> None:
        there = self.splits(root)
        if split not in there:
            raise ReadsegError(
                f"{root / PLACE}: no split {split!r}; expected a folder of NAME.json and NAME.jpg, "
                f"there is {', '.join(there) or 'none'}"
            )
        self.name = f"ReasonSeg|{split}"
        files = _files(root / PLACE / split)
        self._images = _images(files)
        self._records = [(path, _read(path)) for path in files if path.suffix == ".json"]

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits that are on disk, sorted."""
        folders = sorted(path for path in (root / PLACE).glob("*") if path.is_dir())
        return [folder.name for folder in folders if any(path.suffix == ".json" for path in _files(folder))]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Entry:
        path, record = self._records[index]
        if isinstance(record, ReadsegError):
            raise ReadsegError(str(record))  # a new one: an error that is raised twice grows
        try:
            return _entry(path.stem, self._images.get(path.stem, path.with_suffix(".jpg")), path, record)
        except (ValueError, ReadsegError) as error:
            raise ReadsegError(f"{path}: {error}") from error


def shapes_mask(shapes: Sequence[dict[str, Any]], hw: tuple[int, int]) -> np.ndarray:
    """The target of a ReasonSeg file.

    Shapes are painted from large to small, each filled and outlined: so a small thing on a large one stays seen. Of
    equal ones the later is painted first. "flag" is not painted, "ignore" anywhere in a label is 255, others are 1.

    Args:
        shapes: each with "label" and "points", (K, 2) pixels.
        hw: (H, W) of the image.

    Returns:
        uint8 (H, W) in {0, 1, 255}.

    Raises:
        ValueError: points that are no list of finite pairs, or absurdly far away.
    """
    painted = [shape for shape in shapes if _counts(shape)]
    areas = [np.count_nonzero(_painted(shape, hw)) for shape in painted]
    mask = np.zeros(hw, dtype=np.uint8)
    for place in np.argsort(areas, kind="stable")[::-1]:
        mask[_painted(painted[place], hw)] = IGNORED if _ignored(painted[place]) else 1
    return mask


def _painted(shape: dict[str, Any], hw: tuple[int, int]) -> np.ndarray:
    try:
        points = np.asarray(shape["points"], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon must be a list of (x, y)") from error
    if points.size and np.abs(points).max() > MAX_LENGTH:  # OpenCV walks along such lines for many seconds
        raise ValueError(f"a polygon has coordinates up to {np.abs(points).max():g}: these are no pixels of an image")
    return polygons_to_mask([points], hw)


def _counts(shape: dict[str, Any]) -> bool:
    return shape["label"].lower() != "flag"


def _ignored(shape: dict[str, Any]) -> bool:
    return "ignore" in shape["label"].lower()


def _files(folder: Path) -> list[Path]:
    """Sorted, without the hidden ones that an archive or a file browser leaves behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _images(files: Sequence[Path]) -> dict[str, Path]:
    """The image of each stem."""
    found: dict[str, Path] = {}
    for suffix in IMAGE_SUFFIXES:
        for path in files:
            if path.suffix.lower() == suffix:
                found.setdefault(path.stem, path)
    return found


def _read(path: Path) -> dict[str, Any] | ReadsegError:
    """A file's record, or what is wrong with it: some files are no UTF-8 but cp1252."""
    try:
        encoded = content(path)
        try:
            text = encoded.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = encoded.decode("cp1252")
        record = json.loads(text)
    except ReadsegError as error:
        return error
    except (ValueError, RecursionError) as error:  # neither encoding, no JSON, nested without end
        return ReadsegError(f"{path} is no JSON in UTF-8 or cp1252: {str(error).splitlines()[0]}")
    return (
        record if isinstance(record, dict) else ReadsegError(f"{path}: expected an object, got {type(record).__name__}")
    )


def _entry(name: str, image: Path, path: Path, record: dict[str, Any]) -> Entry:
    shapes = _shapes(record.get("shapes"))
    texts = record.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('expected "text", a list of strings')
    texts = [text.strip() for text in texts if text.strip()]
    expressions = []
    if texts:
        sentence = _flag(record.get("is_sentence"), '"is_sentence"')
        kind = _length(sentence)
        shown = any(_counts(shape) and not _ignored(shape) and shape["points"] for shape in shapes)
        tags = {kind} if shown else {kind, "no_target"}
        mask = partial(_mask, shapes, image, path)
        for place, text in enumerate(texts):
            own = frozenset(tags | {"first"} if place == 0 else tags)
            expressions.append(Expression(text, sentence, True, mask, kind=kind, tags=own))
    return Entry(name, image, (*expressions, *_false_premises(record.get("false_premise_QA"))))


def _mask(shapes: Sequence[dict[str, Any]], image: Path, path: Path) -> np.ndarray:
    hw = image_hw(image)
    try:
        return shapes_mask(shapes, hw)
    except ValueError as error:
        raise ReadsegError(f"{path}: {error}") from error


def _shapes(shapes: Any) -> list[dict[str, Any]]:
    for shape in shapes if isinstance(shapes, list) else [shapes]:
        label, points = (shape.get("label"), shape.get("points")) if isinstance(shape, dict) else (None, None)
        if not isinstance(label, str) or not isinstance(points, list):
            raise ValueError('expected "shapes", a list of objects with "label" and "points"')
    return list(shapes)


def _false_premises(rows: Any) -> list[Expression]:
    if rows is None:
        return []
    found = []
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, list) or len(row) < 2 or not isinstance(row[0], str):
            raise ValueError('expected "false_premise_QA", a list of [question, is_sentence, answer]')
        sentence = _flag(row[1], "the second value of a false premise")
        answer = row[2] if len(row) > 2 and isinstance(row[2], str) else ""
        tags = frozenset({_length(sentence)})
        found.append(
            Expression(row[0].strip(), sentence, False, instead=_instead(answer), kind="false premise", tags=tags)
        )
    return found


def _instead(answer: str) -> str:
    """What an answer ends in saying that there is instead: "..., but there is a red cup." gives "a red cup"."""
    match = _INSTEAD.search(answer.strip())
    return match["what"].strip() if match else ""


def _length(sentence: bool) -> str:
    return "long" if sentence else "short"


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected {what} to be true or false, got {value!r:.40}")
    return value
