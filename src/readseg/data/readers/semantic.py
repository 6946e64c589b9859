"""Data sets that give every pixel a class: ADE20K, COCO-Stuff, Mapillary Vistas.

An entry asks for each class that its annotation holds, and names those that are surely not there. The target of a class
is 1 where the pixel is of that class, 0 where it is of another one, and 255, which does not count, where nobody
labelled it: it may be anything, and none of the three sets scores it. Frame: pixels of the upright image.
"""

from __future__ import annotations

import io
import re
import warnings
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field

from readseg.core.images import MAX_PIXELS
from readseg.core.masks import IGNORED
from readseg.data.annotations import require_image_size
from readseg.data.class_names import ADE20K as ADE20K_NAMES
from readseg.data.class_names import COCO_STUFF as COCO_STUFF_NAMES
from readseg.data.class_names import surely_absent
from readseg.data.files import Record, Words, parse, read_bytes, read_json
from readseg.data.types import Entry, Expression, SplitReader
from readseg.errors import ReadsegError

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_COLOURS = {_GREY: "grey", 2: "RGB", _PALETTE: "palette", 4: "grey with transparency", 6: "RGB with transparency"}


class _Classes(NamedTuple):
    """What the values of an annotation mean."""

    names: dict[int, str]  # of each value that stands for a class; values of one name are one class
    unlabelled: frozenset[int]  # values that stand for no class


class _SemanticReader(SplitReader):
    """An image (*.jpg) and a picture of its classes (*.png), by the same name in two folders, in the order of names.

    The last two of `FILES` are these folders. An entry holds its annotation, a byte a pixel, as long as it lives.
    """

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self._images, self._annotations = self.paths[-2:]
        self._classes = self._read_classes(root)
        self._names = tuple(dict.fromkeys(self._classes.names.values()))
        try:
            paths = list(self._annotations.iterdir())
        except OSError as error:
            raise ReadsegError(f"{self._annotations} cannot be listed: {error.strerror or error}") from error
        # Names that begin with a dot are what file managers leave behind.
        self._stems = sorted(path.stem for path in paths if path.suffix == ".png" and not path.name.startswith("."))
        if not self._stems:
            raise ReadsegError(f"{self._annotations} holds no annotation (*.png)")

    @staticmethod
    @abstractmethod
    def _read_classes(root: Path) -> _Classes: ...

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Entry:
        """The image at `index` with an expression for each of its classes, in the order of their values."""
        stem = self._stems[index]
        image, annotation = self._images / f"{stem}.jpg", self._annotations / f"{stem}.png"
        values = read_values(annotation)
        present = np.flatnonzero(Image.fromarray(values).histogram()).tolist()
        unknown = [value for value in present if value not in self._classes.unlabelled | self._classes.names.keys()]
        if unknown:
            raise ReadsegError(f"{annotation} holds {unknown[:5]}, which no class of {self.NAME} has")
        names = dict.fromkeys(self._classes.names[value] for value in present if value in self._classes.names)
        expressions = tuple(
            Expression(name, False, True, partial(_target, values, self._table(name), image, annotation))
            for name in names
            if self._is_asked(name)
        )
        if not expressions:
            raise ReadsegError(f"{annotation} has no class to ask for")
        return Entry(stem, image, expressions, absent=surely_absent(filter(self._is_asked, self._names), names))

    def _is_asked(self, name: str) -> bool:
        return True

    def _table(self, name: str) -> np.ndarray:
        """What each value is in the target of a class, uint8 (256,)."""
        table = np.zeros(256, np.uint8)
        table[list(self._classes.unlabelled)] = IGNORED
        table[[value for value, other in self._classes.names.items() if other == name]] = 1
        return table


class ADE20K(_SemanticReader):
    """ADE20K's scene parsing benchmark. A value is class + 1; 0 is unlabelled ("other"), and so is 255.

    Names come from `ade20k/objectInfo150.txt` of the data set where it is there, the first one of several; else they
    are ours, which are the same.
    """

    NAME = "ade20k"
    SPLITS = ("training", "validation")
    FILES = (
        ("ade20k/images/{split}", "images/{split} of ADE20K's ADEChallengeData2016 (*.jpg)"),
        ("ade20k/annotations/{split}", "annotations/{split} of ADE20K's ADEChallengeData2016 (*.png)"),
    )

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        path = root / "ade20k" / "objectInfo150.txt"
        names = _object_info(path) if path.exists() else ADE20K_NAMES
        return _Classes(dict(enumerate(names, start=1)), frozenset({0, IGNORED}))


class COCOStuff(_SemanticReader):
    """COCO-Stuff. A value is the index of a class, 255 is unlabelled.

    Names with "-", such as "wall-other", are not asked for; their pixels are labelled, so in the targets of other
    classes they count as background.
    """

    NAME = "cocostuff"
    SPLITS = ("train2017", "val2017")
    FILES = (
        ("coco/{split}", "the {split} images of COCO (*.jpg)"),
        ("cocostuff/{split}", "{split} of COCO-Stuff's stuffthingmaps (*.png)"),
    )

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        return _Classes(dict(enumerate(COCO_STUFF_NAMES)), frozenset({IGNORED}))

    def _is_asked(self, name: str) -> bool:
        # "-" marks a rest or a kind of stuff: nobody would ask for "wall-other".
        return "-" not in name


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected words")
    return text


class _Label(Record):
    readable: Annotated[Words, AfterValidator(_printable)]


class _Config(Record):
    labels: Annotated[list[_Label], Field(min_length=1, max_length=IGNORED)]


class Mapillary(_SemanticReader):
    """Mapillary Vistas 2.0. A value is the index of a label of its configuration.

    The label is called what its "readable" says, in lower case, and labels of one name are one class. The label
    "Unlabeled" is what it says, and so is 255.
    """

    NAME = "mapillary"
    SPLITS = ("training", "validation")
    FILES = (
        ("mapillary/config_v2.0.json", "config_v2.0.json of Mapillary Vistas 2.0"),
        ("mapillary/{split}/images", "{split}/images of Mapillary Vistas 2.0 (*.jpg)"),
        ("mapillary/{split}/v2.0/labels", "{split}/v2.0/labels of Mapillary Vistas 2.0 (*.png)"),
    )

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        path = root / "mapillary" / "config_v2.0.json"
        labels = parse(_Config, read_json(path), str(path)).labels
        names = {number: label.readable.lower() for number, label in enumerate(labels)}
        unlabelled = {number for number, name in names.items() if name == "unlabeled"}
        named = {number: name for number, name in names.items() if number not in unlabelled}
        return _Classes(named, frozenset(unlabelled | {IGNORED}))


def read_values(path: Path) -> np.ndarray:
    """The values of an annotation: uint8 (H, W), of an 8-bit grey PNG, or the indices of a palette PNG."""
    encoded = read_bytes(path)
    header = encoded[:26]
    if len(header) < 26 or not header.startswith(_PNG):
        raise ReadsegError(f"{path} is {'no PNG' if header else 'empty'}: expected an annotation, an 8-bit PNG")
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    depth, colour = header[24:26]
    # Of grey with fewer than 8 bits Pillow spreads the values over 0 to 255: they would be other classes.
    if colour != _PALETTE and (colour, depth) != (_GREY, 8):
        kind = f"{depth}-bit {_COLOURS.get(colour, 'unknown')}"
        raise ReadsegError(f"{path} is a {kind} PNG: expected 8-bit grey or a palette, one value a class")
    if not 0 < width * height <= MAX_PIXELS:
        raise ReadsegError(f"{path} has {width} x {height} pixels: expected 1 to {MAX_PIXELS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images: the limit is ours
            with Image.open(io.BytesIO(encoded)) as image:
                values = np.asarray(image)
    except Exception as error:  # damaged data raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise ReadsegError(f"{path} is damaged: {error}") from error
    if values.shape != (height, width) or values.dtype != np.uint8:
        raise ReadsegError(f"{path} is damaged: it is {values.dtype} {values.shape}, its header says otherwise")
    return values


def _target(values: np.ndarray, table: np.ndarray, image: Path, annotation: Path) -> np.ndarray:
    require_image_size(image, values.shape, annotation)
    return cv2.LUT(values, table)


def _object_info(path: Path) -> tuple[str, ...]:
    """The 150 names of ADE20K's table: columns apart by tabs, the first one the number, the last one the names."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadsegError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
    names: dict[int, str] = {}
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    for row in rows:
        name = re.split("[,;]", row[-1])[0].strip().lower()
        if row[0].strip().isdecimal() and name and len(row) > 1:
            names[int(row[0])] = name
    expected = range(1, len(ADE20K_NAMES) + 1)
    if sorted(names) != list(expected) or len(rows) > len(expected) + 1:
        raise ReadsegError(
            f"{path} must be a table of classes 1 to {len(expected)}, columns apart by tabs, it names {len(names)}; "
            "without that file readseg uses names of its own"
        )
    return tuple(names[number] for number in expected)


DATA_SETS = tuple(reader.data_set("sem_seg") for reader in (ADE20K, COCOStuff, Mapillary))
