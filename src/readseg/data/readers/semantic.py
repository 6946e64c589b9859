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
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field

from readseg.core.images import MAX_PIXELS
from readseg.core.io import read_yaml
from readseg.core.masks import IGNORED
from readseg.data.annotations import require_image_size
from readseg.data.files import Record, Words, parse, read_bytes, read_json
from readseg.data.types import Entry, Expression, SplitReader
from readseg.errors import ReadsegError

_TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))
ADE20K_NAMES: tuple[str, ...] = tuple(_TABLE["ade20k"])
COCO_STUFF_NAMES: tuple[str, ...] = tuple(_TABLE["coco_stuff"])
_FAMILIES = tuple(frozenset[str](family) for family in _TABLE["families"])
_DOUBTFUL = frozenset[str](_TABLE["doubtful"])
_WORD = re.compile(r"[a-z]{3,}")
_Classes = tuple[dict[int, str], frozenset[int]]
"""Of an annotation's values: the class of each (those of one name are one class), and those that stand for none."""


class _SemanticReader(SplitReader):
    """An image (*.jpg) and a picture of its classes (*.png), by the same name in two folders, in the order of names.

    The last two of `FILES` are these folders. An entry holds its annotation, a byte a pixel, as long as it lives.
    """

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self._images, self._annotations = self.paths[-2:]
        self._classes, self._unlabelled = self._read_classes(root)
        try:
            paths = list(self._annotations.iterdir())
        except OSError as error:
            raise ReadsegError(f"{self._annotations} cannot be listed: {error.strerror or error}") from error
        # Names that begin with a dot are what file managers leave behind.
        self.records = sorted(path.stem for path in paths if path.suffix == ".png" and not path.name.startswith("."))
        if not self.records:
            raise ReadsegError(f"{self._annotations} holds no annotation (*.png)")

    @staticmethod
    @abstractmethod
    def _read_classes(root: Path) -> _Classes: ...

    def __getitem__(self, index: int) -> Entry:
        stem = self.records[index]
        image, annotation = self._images / f"{stem}.jpg", self._annotations / f"{stem}.png"
        values = read_values(annotation)
        present = np.flatnonzero(Image.fromarray(values).histogram()).tolist()
        if unknown := [value for value in present if value not in self._unlabelled | self._classes.keys()]:
            raise ReadsegError(f"{annotation} holds {unknown[:5]}, which no class of {self.NAME} has")
        names = dict.fromkeys(self._classes[value] for value in present if value in self._classes)
        expressions = tuple(
            Expression(name, False, True, partial(self._target, name, values, image, annotation))
            for name in names
            if self._is_asked(name)
        )
        if not expressions:
            raise ReadsegError(f"{annotation} has no class to ask for")
        known = dict.fromkeys(filter(self._is_asked, self._classes.values()))
        return Entry(stem, image, expressions, absent=surely_absent(known, names))

    def _is_asked(self, name: str) -> bool:
        return True

    def _target(self, name: str, values: np.ndarray, image: Path, annotation: Path) -> np.ndarray:
        """The target of a class, uint8 (H, W)."""
        require_image_size(image, values.shape, annotation)
        table = np.zeros(256, np.uint8)
        table[list(self._unlabelled)] = IGNORED
        table[[value for value, other in self._classes.items() if other == name]] = 1
        return cv2.LUT(values, table)


def surely_absent(names: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    """The names of which no picture with the labels `present` shows anything, in their order.

    A pixel has one label, though it may deserve two. Left out are names that are there, that share a word with one that
    is ("table", "dining table"), that are of one family with it ("lake", "water"; "clothes", "person"), and those that
    labels never settle ("metal").
    """
    labels = frozenset(present)
    words = frozenset[str]().union(*map(_words, labels))
    doubtful = _DOUBTFUL.union(labels, *map(_relatives, labels))
    return tuple(name for name in names if name not in doubtful and not words & _words(name))


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in _WORD.findall(name))


@cache
def _relatives(name: str) -> frozenset[str]:
    return frozenset[str]().union(*(family for family in _FAMILIES if name in family))


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
        return dict(enumerate(names, start=1)), frozenset({0, IGNORED})


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
        return dict(enumerate(COCO_STUFF_NAMES)), frozenset({IGNORED})

    def _is_asked(self, name: str) -> bool:
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
        return named, frozenset(unlabelled | {IGNORED})


def read_values(path: Path) -> np.ndarray:
    """The values of an annotation: uint8 (H, W), of an 8-bit grey PNG, or the indices of a palette PNG."""
    encoded = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images: the limit is ours
            with Image.open(io.BytesIO(encoded), formats=["PNG"]) as image:
                layout = str(image.tile[0][3])  # such as "L", "P;4" (a palette, 4 bits), "RGB", "I;16B"
                # Of grey with fewer than 8 bits Pillow spreads the values over 0 to 255: they would be other classes.
                if layout != "L" and not layout.startswith("P"):
                    raise ReadsegError(
                        f"{path} is a PNG of {layout}: expected 8-bit grey or a palette, a value a class"
                    )
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise ReadsegError(f"{path} has {size} pixels: expected 1 to {MAX_PIXELS}")
                return np.asarray(image)
    except ReadsegError:
        raise
    except Exception as error:  # damaged data raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise ReadsegError(f"{path} is empty, damaged or no PNG: expected an annotation, an 8-bit PNG") from error


def _object_info(path: Path) -> tuple[str, ...]:
    """The 150 names of ADE20K's table: columns apart by tabs, the first one the number, the last one the names."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadsegError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    named = [(row[0].strip(), re.split("[,;]", row[-1])[0].strip().lower()) for row in rows if len(row) > 1]
    names = {int(number): name for number, name in named if number.isdecimal() and name}
    count = len(ADE20K_NAMES)
    if sorted(names) != list(range(1, count + 1)) or len(rows) > count + 1:
        raise ReadsegError(
            f"{path} must be a table of classes 1 to {count}, columns apart by tabs, it names {len(names)}; without "
            "that file readseg uses names of its own"
        )
    return tuple(names[number] for number in range(1, count + 1))


DATA_SETS = tuple(reader.data_set("sem_seg") for reader in (ADE20K, COCOStuff, Mapillary))
