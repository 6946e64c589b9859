"""ReasonSeg: questions that take reasoning, one target for each image. Frame: pixels of the upright image.

    ROOT/reason_seg/ReasonSeg/{train,val,test}/NAME.json beside NAME.jpg
    {"text": ["..", ..], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ..]}, ..],
     "false_premise_QA": [["question", is_sentence, "answer"], ..]}

All texts of a file ask for the same target, in the file's order; the published protocol asks the first one alone, which
has the tag "first".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from readseg.core.images import image_hw
from readseg.core.masks import IGNORED, polygons_to_mask
from readseg.data.annotations import to_pixels
from readseg.data.files import OptionalText, Record, Text, Words, parse, read_json
from readseg.data.types import DataSet, Entry, Expression
from readseg.errors import ReadsegError

FOLDER = Path("reason_seg", "ReasonSeg")  # where the splits lie below the root of all data
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of an image beside its JSON, in any case; where several are there, the first of these."""

_INSTEAD = re.compile(
    r"\b(?:but|instead|however),? there(?: is| are|['’]s) (?:only )?(?P<what>[^.,;:!?]+?)(?: instead)?[.!]?$",
    re.IGNORECASE,
)


class Shape(Record):
    """An outline in pixels. "ignore" anywhere in its label: what it covers does not count."""

    label: str
    points: list[Any]

    @property
    def value(self) -> int:
        """What it is in a target."""
        return IGNORED if "ignore" in self.label.lower() else 1


class _FalsePremise(Record):
    question: Words
    is_sentence: bool
    answer: OptionalText = ""


def _row_to_dict(row: Any) -> Any:
    return dict(zip(("question", "is_sentence", "answer"), row, strict=False)) if isinstance(row, list) else row


class _File(Record):
    text: Annotated[list[Text], BeforeValidator(lambda text: [text] if isinstance(text, str) else text)]
    is_sentence: bool
    shapes: list[Shape]
    false_premises: list[Annotated[_FalsePremise, BeforeValidator(_row_to_dict)]] | None = Field(
        None, alias="false_premise_QA"
    )


class ReasonSeg:
    """A split of ReasonSeg, one entry for each JSON file, by name.

    Expressions are all texts, kind and tag "short" (the name of a thing) or "long" (a sentence), then the file's false
    premises, kind "false premise". The two test files without a polygon stay: they ask for something that is there, so
    they are no false premise, but their mask is empty; their texts have the tag "no_target".
    """

    def __init__(self, root: Path, split: str) -> None:
        known, _ = self.splits(root)
        if split not in known:
            there = ", ".join(known) or "none"
            raise ReadsegError(f"{root / FOLDER}: no split {split!r} of NAME.json and NAME.jpg; there is {there}")
        self.name = f"ReasonSeg|{split}"
        files = _files(root / FOLDER / split)
        self._paths = [path for path in files if path.suffix == ".json"]
        self._images: dict[str, Path] = {}
        for path in (path for suffix in IMAGE_SUFFIXES for path in files if path.suffix.lower() == suffix):
            self._images.setdefault(path.stem, path)

    @staticmethod
    def files(root: Path) -> list[tuple[Path, str]]:
        """The folder for training, and what belongs there."""
        return [(root / FOLDER / "train", "ReasonSeg's *.jpg and *.json of a split, in a folder of its name")]

    @staticmethod
    def splits(root: Path) -> tuple[list[str], list[str]]:
        """The splits that are on disk, sorted."""
        folders = sorted(path for path in (root / FOLDER).glob("*") if path.is_dir())
        return [folder.name for folder in folders if any(path.suffix == ".json" for path in _files(folder))], []

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Entry:
        path = self._paths[index]
        image = self._images.get(path.stem, path.with_suffix(".jpg"))
        # Some files are no UTF-8.
        record = parse(_File, read_json(path, fallback="cp1252"), str(path))
        texts = [text.strip() for text in record.text if text.strip()]
        kind = "long" if record.is_sentence else "short"
        shapes = [shape for shape in record.shapes if shape.label.lower() != "flag"]
        shown = any(shape.points and shape.value == 1 for shape in shapes)
        tags = frozenset({kind} if shown else {kind, "no_target"})
        mask = partial(_mask, shapes, image, path)
        true = [
            Expression(text, record.is_sentence, True, mask, kind=kind, tags=tags if place else tags | {"first"})
            for place, text in enumerate(texts)
        ]
        false = [_false_expression(premise) for premise in record.false_premises or ()]
        if not true and not false:
            raise ReadsegError(f'{path}: "text" holds no words, and there is no false premise: nothing can be asked')
        return Entry(path.stem, image, (*true, *false))


def shapes_mask(shapes: Sequence[Shape], hw: tuple[int, int]) -> np.ndarray:
    """The target of a ReasonSeg file, uint8 (H, W) in {0, 1, 255}, of shapes in pixels, each filled and outlined.

    Shapes are painted from large to small, so a small thing on a large one stays seen. Of equal ones the later is
    painted first. Points that are no finite pairs, or absurdly far away, are a ValueError.
    """

    def paint(shape: Shape) -> np.ndarray:
        return polygons_to_mask([to_pixels(shape.points)], hw)

    mask = np.zeros(hw, dtype=np.uint8)
    for place in np.argsort([np.count_nonzero(paint(shape)) for shape in shapes], kind="stable")[::-1]:
        mask[paint(shapes[place])] = shapes[place].value
    return mask


def _mask(shapes: Sequence[Shape], image: Path, path: Path) -> np.ndarray:
    hw = image_hw(image)
    try:
        return shapes_mask(shapes, hw)
    except ValueError as error:
        raise ReadsegError(f"{path}: {error}") from error


def _files(folder: Path) -> list[Path]:
    """Sorted, without the hidden ones that an archive or a file browser leaves behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _false_expression(premise: _FalsePremise) -> Expression:
    """With what its answer ends in saying that there is instead: "..., but there is a red cup." gives "a red cup"."""
    match = _INSTEAD.search(premise.answer.strip())
    instead = match["what"].strip() if match else ""
    tags = frozenset({"long" if premise.is_sentence else "short"})
    return Expression(premise.question, premise.is_sentence, False, None, instead, "false premise", tags)


DATA_SETS = (
    DataSet("reasonseg", ReasonSeg.files, ReasonSeg.splits, ReasonSeg, "train", "reason_seg", protocol="forced"),
)
