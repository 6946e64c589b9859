"""Data sets that give every pixel a class: ADE20K, COCO-Stuff, Mapillary Vistas.

An entry asks for each class that its annotation holds, and names those that are surely not there. The target of a class
is 1 where the pixel is of that class, 0 where it is of another one, and 255, which does not count, where nobody
labelled it: it may be anything, and none of the three sets scores it. Frame: pixels of the upright image.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from readseg.core.images import MAX_PIXELS
from readseg.core.masks import IGNORED
from readseg.data.annotations import image_hw
from readseg.data.class_names import ADE20K as ADE20K_NAMES
from readseg.data.class_names import COCO_STUFF as COCO_STUFF_NAMES
from readseg.data.class_names import surely_absent
from readseg.data.entries import Entry, Expression
from readseg.data.json_records import content, is_there, require
from readseg.errors import ReadsegError

_VALUES = 256
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_COLOURS = {_GREY: "grey", 2: "RGB", _PALETTE: "palette", 4: "grey with transparency", 6: "RGB with transparency"}
_MAPILLARY_UNLABELLED = "unlabeled"


class _Classes(NamedTuple):
    """What the values of an annotation mean.

    Attributes:
        names: of each value that stands for a class. Values of one name are one class.
        unlabelled: values that stand for no class.
    """

    names: dict[int, str]
    unlabelled: frozenset[int]


class _Semantic(ABC):
    """An image and a picture of its classes, by the same name in two folders.

    The names in the folder of annotations are read at once and sorted, an annotation when its entry is asked for. An
    entry holds it, a byte a pixel, as long as it lives.

    Args:
        root: the folder of all data sets.
        split: one of `SPLITS`.

    Raises:
        ReadsegError: a file or folder is missing or holds nothing, or the names of the classes cannot be read. An
            annotation that is damaged, has values that no class has, or no class to ask for, raises when its entry is
            read, an image that is missing or of another size when a mask is made. The others can be read.
    """

    SPLITS: tuple[str, ...]
    _NAME: str

    def __init__(self, root: Path, split: str) -> None:
        require(self.needs(root, split))
        self.name = f"{self._NAME}|{split}"
        self._images, self._annotations = self._folders(root, split)
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
    def needs(root: Path, split: str) -> list[tuple[Path, str]]:
        """The files and folders that must be there, and what belongs there."""

    @staticmethod
    @abstractmethod
    def _folders(root: Path, split: str) -> tuple[Path, Path]:
        """Where images (*.jpg) and annotations (*.png) are."""

    @staticmethod
    @abstractmethod
    def _read_classes(root: Path) -> _Classes: ...

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits that are on disk."""
        return [split for split in cls.SPLITS if is_there(cls.needs(root, split))]

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Entry:
        """The image at `index` with an expression for each of its classes, in the order of their values.

        Raises:
            ReadsegError: as above.
        """
        stem = self._stems[index]
        image, annotation = self._images / f"{stem}.jpg", self._annotations / f"{stem}.png"
        values = read_values(annotation)
        present = np.flatnonzero(Image.fromarray(values).histogram()).tolist()
        unknown = [value for value in present if value not in self._classes.unlabelled | self._classes.names.keys()]
        if unknown:
            raise ReadsegError(f"{annotation} holds {unknown[:5]}, which no class of {self._NAME} has")
        names = dict.fromkeys(self._classes.names[value] for value in present if value in self._classes.names)
        asked = [name for name in names if self._is_asked(name)]
        if not asked:
            raise ReadsegError(f"{annotation} has no class to ask for")
        return Entry(
            stem,
            image,
            tuple(
                Expression(name, False, True, partial(_target, values, self._table(name), image, annotation))
                for name in asked
            ),
            absent=surely_absent(filter(self._is_asked, self._names), names),
        )

    def _is_asked(self, name: str) -> bool:
        return True

    def _table(self, name: str) -> np.ndarray:
        """What each value is in the target of a class, uint8 (256,)."""
        table = np.zeros(_VALUES, np.uint8)
        table[list(self._classes.unlabelled)] = IGNORED
        table[[value for value, other in self._classes.names.items() if other == name]] = 1
        return table


class ADE20K(_Semantic):
    """ADE20K's scene parsing benchmark: `ade20k/{images,annotations}/{split}`.

    A value is class + 1. 0 is unlabelled ("other"), and so is 255. Names come from `ade20k/objectInfo150.txt` of the
    data set where it is there, the first one of several; else they are ours, which are the same.
    """

    SPLITS = ("training", "validation")
    _NAME = "ade20k"

    @staticmethod
    def needs(root: Path, split: str = "training") -> list[tuple[Path, str]]:
        """The folders that must be there, and what belongs there."""
        images, annotations = ADE20K._folders(root, split)
        return [
            (images, f"images/{split} of ADE20K's ADEChallengeData2016 (*.jpg)"),
            (annotations, f"annotations/{split} of ADE20K's ADEChallengeData2016 (*.png)"),
        ]

    @staticmethod
    def _folders(root: Path, split: str) -> tuple[Path, Path]:
        return root / "ade20k" / "images" / split, root / "ade20k" / "annotations" / split

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        path = root / "ade20k" / "objectInfo150.txt"
        names = _object_info(path) if path.exists() else ADE20K_NAMES
        return _Classes(dict(enumerate(names, start=1)), frozenset({0, IGNORED}))


class COCOStuff(_Semantic):
    """COCO-Stuff: `cocostuff/{split}`, with the images in `coco/{split}`.

    A value is the index of a class, 255 is unlabelled. Names with "-", such as "wall-other", are not asked for; their
    pixels are labelled, so in the targets of other classes they count as background.
    """

    SPLITS = ("train2017", "val2017")
    _NAME = "cocostuff"

    @staticmethod
    def needs(root: Path, split: str = "train2017") -> list[tuple[Path, str]]:
        """The folders that must be there, and what belongs there."""
        images, annotations = COCOStuff._folders(root, split)
        return [
            (images, f"the {split} images of COCO (*.jpg)"),
            (annotations, f"{split} of COCO-Stuff's stuffthingmaps (*.png)"),
        ]

    @staticmethod
    def _folders(root: Path, split: str) -> tuple[Path, Path]:
        return root / "coco" / split, root / "cocostuff" / split

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        return _Classes(dict(enumerate(COCO_STUFF_NAMES)), frozenset({IGNORED}))

    def _is_asked(self, name: str) -> bool:
        # "-" marks a rest or a kind of stuff: nobody would ask for "wall-other".
        return "-" not in name


class Mapillary(_Semantic):
    """Mapillary Vistas 2.0: `mapillary/{split}/{images,v2.0/labels}` and `mapillary/config_v2.0.json`.

    A value is the index of a label of that file; the label is called what its "readable" says, in lower case, and
    labels of one name are one class. The label "Unlabeled" is what it says, and so is 255.
    """

    SPLITS = ("training", "validation")
    _NAME = "mapillary"

    @staticmethod
    def needs(root: Path, split: str = "training") -> list[tuple[Path, str]]:
        """The file and the folders that must be there, and what belongs there."""
        images, annotations = Mapillary._folders(root, split)
        return [
            (root / "mapillary" / "config_v2.0.json", "config_v2.0.json of Mapillary Vistas 2.0"),
            (images, f"{split}/images of Mapillary Vistas 2.0 (*.jpg)"),
            (annotations, f"{split}/v2.0/labels of Mapillary Vistas 2.0 (*.png)"),
        ]

    @staticmethod
    def _folders(root: Path, split: str) -> tuple[Path, Path]:
        folder = root / "mapillary" / split
        return folder / "images", folder / "v2.0" / "labels"

    @staticmethod
    def _read_classes(root: Path) -> _Classes:
        path = root / "mapillary" / "config_v2.0.json"
        try:
            config = json.loads(_read_text(path))
        except (ValueError, RecursionError) as error:
            raise ReadsegError(f"{path} is no JSON that can be read: {error}") from error
        labels: Any = config.get("labels") if isinstance(config, dict) else None
        if not isinstance(labels, list) or not 0 < len(labels) <= IGNORED:
            raise ReadsegError(f'{path} must hold "labels", a list of 1 to {IGNORED} labels')
        names: dict[int, str] = {}
        for number, label in enumerate(labels):
            name = label.get("readable") if isinstance(label, dict) else None
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise ReadsegError(f'{path}: label {number} must have a "readable" that is text')
            names[number] = name.strip().lower()
        unlabelled = {number for number, name in names.items() if name == _MAPILLARY_UNLABELLED}
        named = {number: name for number, name in names.items() if number not in unlabelled}
        return _Classes(named, frozenset(unlabelled | {IGNORED}))


def read_values(path: Path) -> np.ndarray:
    """The values of an annotation: uint8 (H, W), of an 8-bit grey PNG, or the indices of a palette PNG.

    Raises:
        ReadsegError: no such file, no PNG, damaged, too large, or colours or 16 bits, which are no classes.
    """
    encoded = content(path)
    header = encoded[:26]
    if len(header) < 26 or not header.startswith(_PNG):
        raise ReadsegError(f"{path} is {'no PNG' if header else 'empty'}: expected an annotation, an 8-bit PNG")
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    depth, colour = header[24:26]
    # Of grey with fewer than 8 bits Pillow spreads the values over 0 to 255: they would be other classes.
    if colour != _PALETTE and (colour, depth) != (_GREY, 8):
        found = f"{depth}-bit {_COLOURS.get(colour, 'unknown')}"
        raise ReadsegError(f"{path} is a {found} PNG: expected 8-bit grey or a palette, one value a class")
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


def require_size(image: Path, hw: tuple[int, ...], annotation: Path) -> None:
    """Checks that an image, once upright, has the size of its annotation. Only its head is read.

    Raises:
        ReadsegError: it is missing, no image, or of another size; names both files.
    """
    found = image_hw(image)
    if found != hw:
        raise ReadsegError(
            f"{image} is {found[0]} x {found[1]} (height x width), its annotation in {annotation} "
            f"{hw[0]} x {hw[1]}: expected the original image"
        )


def _target(values: np.ndarray, table: np.ndarray, image: Path, annotation: Path) -> np.ndarray:
    require_size(image, values.shape, annotation)
    return cv2.LUT(values, table)


def _object_info(path: Path) -> tuple[str, ...]:
    """The 150 names of ADE20K's table: columns apart by tabs, the first one the number, the last one the names.

    Raises:
        ReadsegError: it cannot be read, or does not name the classes 1 to 150 once each.
    """
    names: dict[int, str] = {}
    rows = [line.split("\t") for line in _read_text(path).splitlines() if line.strip()]
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


def _read_text(path: Path) -> str:
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadsegError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
