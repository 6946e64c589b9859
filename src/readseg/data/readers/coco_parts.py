"""Data sets of parts of things: PACO-LVIS and PASCAL-Part, both as COCO's instances.

Every annotation is an expression: "the handle of the cup" for category "cup:handle", "cup" for a whole cup. Several
annotations of an image may have one text (the four legs of a chair), each with its own mask. Tag: "no_target", the
annotation has no outline and its mask is empty. Frame: image pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from readseg.core.images import MAX_PIXELS
from readseg.data.annotations import covers_nothing, segmentation_mask
from readseg.data.entries import Entry, Expression
from readseg.data.json_records import elements, inside, is_there, read_between, require
from readseg.data.readers.semantic import require_size
from readseg.errors import ReadsegError

_ABSENT, _TWICE = (0, 0), (-1, -1)  # in place of where an image lies in the file


class _Parts(ABC):
    """COCO-style annotations of parts.

    The file is gone through once, here, which takes twice its size in memory (1 GB and 20 s for PACO-LVIS); 16 bytes of
    each image and annotation are kept, where it lies (15 MB), and it is read again when it is asked for. Images come in
    the order of the file; those without annotations are left out.

    Args:
        root: the folder of all data sets.
        split: one of `SPLITS`.

    Raises:
        ReadsegError: a file or folder is missing, or the file is no such JSON. A record that is damaged, of a category
            or an image that is not in the file, raises when its entry is read, a segmentation that cannot be painted
            when its mask is made, and the others can be read.
    """

    SPLITS: ClassVar[tuple[str, ...]]
    _NAME: ClassVar[str]

    def __init__(self, root: Path, split: str) -> None:
        require(self.needs(root, split))
        self.name = f"{self._NAME}|{split}"
        self._path = self._file(root, split)
        self._images = self._folder(root)
        self._categories: dict[int | str, Any] = {}
        numbers: dict[Hashable, int] = {}  # of each image id, in the order of their first appearance
        image_at: dict[int, tuple[int, int]] = {}
        owners, places = array("q"), array("q")
        for key, record, start, end in elements(self._path):
            record = record if isinstance(record, dict) else {}
            if key == "categories" and _is_id(record.get("id")):
                self._categories[record["id"]] = record.get("name")
            elif key == "images" and _is_id(record.get("id")):
                number = numbers.setdefault(record["id"], len(numbers))
                image_at[number] = _TWICE if number in image_at else (start, end)
            elif key == "annotations":
                # Without an id of its own it still gets a number: an entry that raises, where nothing is lost unseen.
                owner = record.get("image_id")
                owners.append(numbers.setdefault(owner if _is_id(owner) else (start,), len(numbers)))
                places.extend((start, end))
        if not owners:
            raise ReadsegError(f'{self._path} must hold "images", "categories" and "annotations": it has no annotation')
        self._index(np.array(owners, np.int64), np.array(places, np.int64).reshape(-1, 2), image_at)

    def _index(self, owners: np.ndarray, places: np.ndarray, image_at: dict[int, tuple[int, int]]) -> None:
        """Sorts annotations by their image.

        Args:
            owners: number of the image of each annotation, (A,).
            places: where each annotation lies in the file, (A, 2).
            image_at: where each image lies, by its number; `_TWICE` if its id is not its own.
        """
        order = np.argsort(owners, kind="stable")
        self._annotations = places[order]
        used, self._starts = np.unique(owners[order], return_index=True)
        self._ends = np.append(self._starts[1:], len(owners))
        self._places = np.array([image_at.get(number, _ABSENT) for number in used.tolist()], np.int64)

    @classmethod
    @abstractmethod
    def needs(cls, root: Path, split: str = "train") -> list[tuple[Path, str]]:
        """The files and folders that must be there, and what belongs there."""

    @staticmethod
    @abstractmethod
    def _file(root: Path, split: str) -> Path: ...

    @staticmethod
    @abstractmethod
    def _folder(root: Path) -> Path:
        """What file names are relative to."""

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits that are on disk."""
        return [split for split in cls.SPLITS if is_there(cls.needs(root, split))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Entry:
        """The image at `index` with an expression for each of its annotations, in the order of the file.

        Raises:
            ReadsegError: as above.
        """
        start, end = self._places[index].tolist()
        spans = self._annotations[self._starts[index] : self._ends[index]].tolist()
        annotations = [read_between(self._path, *span) for span in spans]
        if (start, end) in (_ABSENT, _TWICE):
            image_id = annotations[0].get("image_id") if isinstance(annotations[0], dict) else None
            why = "occurs twice in" if (start, end) == _TWICE else "is not in"
            raise ReadsegError(
                f'{self._path}: {len(spans)} annotations are of image {_short(image_id)}, which {why} "images"'
            )
        record = read_between(self._path, start, end)
        where = f"{self._path}: image {_short(record.get('id'))}"
        name = inside(record.get("file_name"), f'{where}: "file_name"')
        height, width = record.get("height"), record.get("width")
        if not all(isinstance(side, int) and side > 0 for side in (height, width)) or height * width > MAX_PIXELS:
            raise ReadsegError(f'{where}: "height" and "width" must be up to {MAX_PIXELS} pixels')
        image = self._images / name
        expressions = []
        for annotation in annotations:
            about = f"{where}: annotation {_short(annotation.get('id'))}"
            text = self._text(annotation.get("category_id"), about)
            segmentation = annotation.get("segmentation")
            mask = partial(_mask, segmentation, (height, width), image, self._path, about)
            tags = frozenset({"no_target"} if covers_nothing(segmentation) else ())
            expressions.append(Expression(text, False, True, mask, tags=tags))
        return Entry(name, image, tuple(expressions))

    def _text(self, category: Any, where: str) -> str:
        if not _is_id(category) or category not in self._categories:
            raise ReadsegError(f'{where}: category {_short(category)} is not in "categories"')
        try:
            return wording(self._categories[category])
        except ValueError as error:
            raise ReadsegError(f"{self._path}: category {_short(category)}: {error}") from error


class PACO(_Parts):
    """PACO-LVIS: `vlpart/paco/annotations/paco_lvis_v1_{split}.json`, file names relative to `coco`."""

    SPLITS = ("train", "val", "test")
    _NAME = "paco_lvis"

    @classmethod
    def needs(cls, root: Path, split: str = "train") -> list[tuple[Path, str]]:
        """The files and folders that must be there, and what belongs there."""
        path = cls._file(root, split)
        return [
            (path, f"PACO-LVIS's {path.name}"),
            (root / "coco" / "train2017", "the train2017 images of COCO (*.jpg)"),
        ]

    @staticmethod
    def _file(root: Path, split: str) -> Path:
        return root / "vlpart" / "paco" / "annotations" / f"paco_lvis_v1_{split}.json"

    @staticmethod
    def _folder(root: Path) -> Path:
        return root / "coco"


class PascalPart(_Parts):
    """PASCAL-Part: `vlpart/pascal_part/{split}.json`, images in `VOCdevkit/VOC2010/JPEGImages` beside it."""

    SPLITS = ("train", "val")
    _NAME = "pascal_part"

    @classmethod
    def needs(cls, root: Path, split: str = "train") -> list[tuple[Path, str]]:
        """The files and folders that must be there, and what belongs there."""
        return [
            (cls._file(root, split), f"{split}.json of PASCAL-Part, as VLPart prepares it"),
            (cls._folder(root), "the JPEGImages of PASCAL VOC 2010 (*.jpg)"),
        ]

    @staticmethod
    def _file(root: Path, split: str) -> Path:
        return root / "vlpart" / "pascal_part" / f"{split}.json"

    @staticmethod
    def _folder(root: Path) -> Path:
        return root / "vlpart" / "pascal_part" / "VOCdevkit" / "VOC2010" / "JPEGImages"


def wording(category: Any) -> str:
    """What a category is called: "object" or "object:part", "_" for spaces, with what it is in "_(..)" cut off.

    Raises:
        ValueError: the name is no text, or is of more than two parts, or one of them is empty.

    >>> wording("trash_can"), wording("mouse_(computer_equipment):left_button")
    ('trash can', 'the left button of the mouse')
    """
    if not isinstance(category, str) or not category.isprintable():
        raise ValueError(f"a name must be text, got {_short(category)}")
    names = [" ".join(name.split("_(")[0].replace("_", " ").split()) for name in category.split(":")]
    if len(names) > 2 or not all(names):
        raise ValueError(f'a name must be "object" or "object:part", got {_short(category)}')
    return names[0] if len(names) == 1 else f"the {names[1]} of the {names[0]}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return repr(value)[:60]


def _mask(segmentation: Any, hw: tuple[int, int], image: Path, annotations: Path, where: str) -> np.ndarray:
    """The mask of an annotation, uint8 (H, W) in {0, 1}."""
    require_size(image, hw, annotations)
    try:
        return segmentation_mask(segmentation, hw).astype(np.uint8)
    except ValueError as error:
        raise ReadsegError(f"{where}: {error}") from error
