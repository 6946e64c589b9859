"""Data sets of parts of things: PACO-LVIS and PASCAL-Part, both as COCO's instances.

Every annotation is an expression: "the handle of the cup" for category "cup:handle", "cup" for a whole cup. Several
annotations of an image may have one text (the four legs of a chair), each with its own mask. Tag: "no_target", the
annotation has no outline and its mask is empty. Frame: image pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from readseg.data.annotations import ImageRecord, covers_nothing, paint
from readseg.data.files import Record, parse, read_json_at, scan_json
from readseg.data.types import Entry, Expression, SplitReader
from readseg.errors import ReadsegError


class _Annotation(Record):
    category_id: Any
    segmentation: Any = None


class _Spans(NamedTuple):
    """Where the records of an image and of its annotations lie in the file: the first byte of each, and its end."""

    image: array[int]
    annotations: array[int]


class _PartsReader(SplitReader):
    """Images in the order of the file, with an expression for each of their annotations; those without are left out.

    The file is gone through once (1 GB and 20 s for PACO-LVIS); of each image and annotation is kept where it lies, 16
    bytes. What is wrong with a record is told when its entry is read, or its mask is made.
    """

    IMAGES: ClassVar[str]  # what file names are relative to, below the root

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self._path, self._images = self.paths[0], root / self.IMAGES
        self._categories: dict[int | str, Any] = {}
        entries: dict[Hashable, _Spans] = {}  # of each image id, in the order of their first appearance
        for key, record, *span in scan_json(self._path):
            record = record if isinstance(record, dict) else {}
            if key == "categories" and _is_id(record.get("id")):
                self._categories[record["id"]] = record.get("name")
            elif key == "images" and _is_id(record.get("id")):
                entries.setdefault(record["id"], _Spans(array("q"), array("q"))).image.extend(span)
            elif key == "annotations":
                # Without an id of its own it still is an entry, which raises: nothing is lost unseen.
                owner = record.get("image_id") if _is_id(record.get("image_id")) else (span[0],)
                entries.setdefault(owner, _Spans(array("q"), array("q"))).annotations.extend(span)
        self.records = [entry for entry in entries.values() if entry.annotations]
        if not self.records:
            raise ReadsegError(f'{self._path} must hold "images", "categories" and "annotations": it has no annotation')

    def __getitem__(self, index: int) -> Entry:
        image_span, spans = self.records[index]
        annotations = [read_json_at(self._path, *own) for own in zip(spans[::2], spans[1::2], strict=True)]
        if len(image_span) != 2:
            image_id = annotations[0].get("image_id") if isinstance(annotations[0], dict) else None
            why = "occurs twice in" if image_span else "is not in"
            raise ReadsegError(
                f'{self._path}: {len(annotations)} annotations are of image {image_id!r:.60}, which {why} "images"'
            )
        record = read_json_at(self._path, *image_span)
        name = f"image {record['id']!r:.60}"
        image = parse(ImageRecord, record, f"{self._path}: {name}")
        path = self._images / image.file_name
        return Entry(image.file_name, path, tuple(self._expression(own, image, path, name) for own in annotations))

    def _expression(self, record: dict[str, Any], image: ImageRecord, path: Path, name: str) -> Expression:
        name = f"{name}: annotation {record.get('id')!r:.60}"
        annotation = parse(_Annotation, record, f"{self._path}: {name}")
        category = annotation.category_id
        if not _is_id(category) or category not in self._categories:
            raise ReadsegError(f'{self._path}: {name}: category {category!r:.60} is not in "categories"')
        try:
            text = category_phrase(self._categories[category])
        except ValueError as error:
            raise ReadsegError(f"{self._path}: category {category!r:.60}: {error}") from error
        mask = partial(paint, {name: annotation.segmentation}, image, path, self._path)
        tags = frozenset({"no_target"} if covers_nothing(annotation.segmentation) else ())
        return Expression(text, False, True, mask, tags=tags)


class PACO(_PartsReader):
    """PACO-LVIS."""

    NAME = "paco_lvis"
    SPLITS = ("train", "val", "test")
    FILES = (
        ("vlpart/paco/annotations/paco_lvis_v1_{split}.json", "PACO-LVIS's paco_lvis_v1_{split}.json"),
        ("coco/train2017", "the train2017 images of COCO (*.jpg)"),
    )
    IMAGES = "coco"


class PascalPart(_PartsReader):
    """PASCAL-Part."""

    NAME = "pascal_part"
    SPLITS = ("train", "val")
    IMAGES = "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"
    FILES = (
        ("vlpart/pascal_part/{split}.json", "{split}.json of PASCAL-Part, as VLPart prepares it"),
        (IMAGES, "the JPEGImages of PASCAL VOC 2010 (*.jpg)"),
    )


def category_phrase(category: Any) -> str:
    """What a category is called, "_(..)" cut off: "the left button of the mouse" of "mouse_(computer):left_button"."""
    if not isinstance(category, str) or not category.isprintable():
        raise ValueError(f"a name must be text, got {category!r:.60}")
    names = [" ".join(name.split("_(")[0].replace("_", " ").split()) for name in category.split(":")]
    if len(names) > 2 or not all(names):
        raise ValueError(f'a name must be "object" or "object:part", got {category!r:.60}')
    return names[0] if len(names) == 1 else f"the {names[1]} of the {names[0]}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


DATA_SETS = tuple(reader.data_set("sem_seg") for reader in (PACO, PascalPart))
