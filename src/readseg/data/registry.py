"""All data sets that can lie below one folder: what is there, what is missing and where to put it, what is broken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from readseg.core.images import load_image
from readseg.data.entries import Entry
from readseg.data.readers.coco_parts import PACO, PascalPart
from readseg.data.readers.llava_instruct import LlavaInstruct
from readseg.data.readers.reasonseg import PLACE as REASON_PLACE
from readseg.data.readers.reasonseg import ReasonSeg
from readseg.data.readers.refer import CLEF_IMAGES, COCO_IMAGES, PLACE, RefCoco, preferred, refs_files, splits_of
from readseg.data.readers.semantic import ADE20K, COCOStuff, Mapillary
from readseg.errors import ReadsegError
from readseg.viz.overlays import contact_sheet, overlay

REFERRING = (
    *("refclef", "refcoco", "refcoco+", "refcocog", "R-refcoco", "R-refcoco+", "R-refcocog"),
    *("fprefcoco", "fprefcoco+", "fprefcocog", "grefcoco"),
)
"""The referring data sets, as their folders are called."""
_TOLD = 5  # broken records that are named; the rest is counted


class Reader(Protocol):
    """What every data set is read with."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Entry: ...


@dataclass(frozen=True)
class DataSet:
    """A data set that may be there.

    name: for people and for the command line.
    needs: the files and folders it is made of, and what belongs there.
    find: the splits that are on disk, and what is wrong with files that should tell some.
    read: opens one of them.
    """

    name: str
    needs: tuple[tuple[Path, str], ...]
    find: Callable[[], tuple[list[str], list[str]]]
    read: Callable[[str], Reader]


@dataclass(frozen=True)
class Found:
    """What a check says of a split, or of a data set as a whole, where something of it is missing: split "-".

    entries: images or conversations; 0 where it is not there.
    expressions: what may be asked for, counted in a thorough check; None in a quick one.
    broken: how many records cannot be read, of those that were tried.
    problems: the first of them, or what is missing and where to put it.
    """

    name: str
    split: str
    entries: int = 0
    expressions: int | None = None
    broken: int = 0
    problems: tuple[str, ...] = ()


def data_sets(root: Path) -> list[DataSet]:
    """Every data set that this package reads, whether it is below `root` or not. Nothing is read yet."""
    found = [
        DataSet(name, tuple(kind.needs(root)), partial(_sound, kind.splits, root), partial(kind, root))
        for name, kind in (
            ("ade20k", ADE20K),
            ("cocostuff", COCOStuff),
            ("mapillary", Mapillary),
            ("paco_lvis", PACO),
            ("pascal_part", PascalPart),
            ("llava_instruct", LlavaInstruct),
        )
    ]
    reasons = ((root / REASON_PLACE / "train", "ReasonSeg's *.jpg and *.json of a split, in a folder of its name"),)
    found.append(DataSet("reasonseg", reasons, partial(_sound, ReasonSeg.splits, root), partial(ReasonSeg, root)))
    for name in REFERRING:
        folder = root / PLACE / name
        usual = folder / f"refs({preferred(name)[0]}).p"
        needs = (
            (folder / "instances.json", f"{name}'s instances.json"),
            (next(iter(refs_files(folder).values()), usual), f"{name}'s {usual.name}, or another of its refs files,"),
            (root / (CLEF_IMAGES if name == "refclef" else COCO_IMAGES), "the images (*.jpg)"),
        )
        found.append(DataSet(name, needs, partial(splits_of, root, name), partial(RefCoco, root)))
    return found


def _sound(splits: Callable[[Path], list[str]], root: Path) -> tuple[list[str], list[str]]:
    """Splits that are folders, or files of one split each: whether those can be read is told when they are."""
    return splits(root), []


def check(root: Path, *, thorough: bool = False) -> Iterator[Found]:
    """What is below `root`, split by split.

    Args:
        root: of all data sets.
        thorough: reads every record, image and mask; else only the first record of each split.

    Raises:
        ReadsegError: there is no such folder.
    """
    if not root.is_dir():
        raise ReadsegError(f"{root}: no such folder; name the one that the data sets lie in.")
    for data_set in data_sets(root):
        splits, damaged = data_set.find()
        problems = damaged + _missing(data_set)
        if not splits and not problems:
            problems = [_nothing_in(data_set)]
        if problems:
            yield Found(data_set.name, "-", broken=len(damaged), problems=tuple(problems))
        for split in splits:
            try:
                reader = data_set.read(split)
            except ReadsegError as error:
                yield Found(data_set.name, split, broken=1, problems=(str(error),))
                continue
            yield _checked(data_set.name, split, reader, thorough)


def _missing(data_set: DataSet) -> list[str]:
    return [f"{place} is missing: put {what} there" for place, what in data_set.needs if not place.exists()]


def _nothing_in(data_set: DataSet) -> str:
    return f"nothing that can be read is in {' or '.join(str(place) for place, _ in data_set.needs)}"


def _checked(name: str, split: str, reader: Reader, thorough: bool) -> Found:
    expressions = broken = 0
    problems: list[str] = []
    for index in range(len(reader) if thorough else min(1, len(reader))):
        try:
            entry = reader[index]
            expressions += len(entry.expressions)
            _looked_at(entry)
        except ReadsegError as error:
            broken += 1
            problems += [str(error)] if len(problems) < _TOLD else []
    return Found(name, split, len(reader), expressions if thorough else None, broken, tuple(problems))


def _looked_at(entry: Entry) -> tuple[Image.Image, list[np.ndarray]]:
    """The image of an entry and the masks (H, W) of what is in it, read and found to fit.

    Raises:
        ReadsegError: the image or a mask cannot be read, or they differ in size.
    """
    image = load_image(entry.image)
    masks = [expression.mask() for expression in entry.expressions if expression.mask is not None]
    for mask in masks:
        if mask.shape != (image.height, image.width):
            raise ReadsegError(
                f"{entry.image}: the image is {image.height} x {image.width}, a mask of it {mask.shape[0]} x "
                f"{mask.shape[1]} (height x width)."
            )
    return image, masks


def show(
    root: Path, name: str | None = None, split: str | None = None, *, count: int | None = None, seed: int = 0
) -> Image.Image:
    """Samples to look at: pictures with a mask each, and what is said of it.

    Args:
        root: of all data sets.
        name: as in `data_sets`; without one, samples of all that are there, and a warning of those that cannot be read.
        split: of the named one, by default the first that is there.
        count: pictures of each data set; by default 8 of a named one, else 2.
        seed: of the choice of pictures and expressions.

    Raises:
        ReadsegError: there is no such data set or split, or nothing at all; or a chosen record of a named one cannot be
            read.
    """
    if not root.is_dir():
        raise ReadsegError(f"{root}: no such folder; name the one that the data sets lie in.")
    rng = np.random.default_rng(seed)
    if name is not None:
        drawn = _samples(_named(root, name), split, count or 8, rng)
    elif split is not None:
        raise ReadsegError(f"split {split!r} is of one data set: name that as well.")
    else:
        drawn = []
        for data_set in data_sets(root):
            try:
                samples = _samples(data_set, None, count or 2, rng)
            except _AbsentError:
                continue
            except ReadsegError as error:
                warnings.warn(f"{data_set.name} is not shown: {error}", stacklevel=2)
                continue
            drawn += [(picture, f"{data_set.name}: {caption}") for picture, caption in samples]
    if not drawn:
        raise ReadsegError(f"{root}: no data set that can be shown; readseg data check says what is missing.")
    pictures, captions = zip(*drawn, strict=True)
    return contact_sheet(pictures, captions)


def _named(root: Path, name: str) -> DataSet:
    for data_set in data_sets(root):
        if data_set.name == name:
            return data_set
    raise ReadsegError(f"no data set {name!r}; there are {', '.join(d.name for d in data_sets(root))}.")


class _AbsentError(ReadsegError):
    """A data set of which nothing is there."""


def _samples(
    data_set: DataSet, split: str | None, count: int, rng: np.random.Generator
) -> list[tuple[Image.Image, str]]:
    splits, damaged = data_set.find()
    if not splits:
        if damaged:
            raise ReadsegError(damaged[0])
        missing = _missing(data_set) or [_nothing_in(data_set)]
        raise _AbsentError(f"{data_set.name} cannot be shown: {missing[0]}; readseg data check says more.")
    if split is not None and split not in splits:
        raise ReadsegError(f"{data_set.name} has no split {split!r}; there are {', '.join(splits)}.")
    reader = data_set.read(split or splits[0])
    return [_drawn(reader[int(index)], rng) for index in rng.permutation(len(reader))[:count]]


def _drawn(entry: Entry, rng: np.random.Generator) -> tuple[Image.Image, str]:
    image = load_image(entry.image)
    if not entry.expressions:
        question, answer = entry.dialogue[0]
        return image, f"{question} — {answer}"
    expression = entry.expressions[int(rng.integers(len(entry.expressions)))]
    if expression.mask is None:
        instead = f", but {expression.instead}" if expression.instead else ""
        return overlay(image, np.zeros((0, image.height, image.width), bool)), f"not there: {expression.text}{instead}"
    mask = expression.mask() == 1
    if mask.shape != (image.height, image.width):
        raise ReadsegError(f"{entry.image}: {image.height} x {image.width} (height x width), its mask {mask.shape}.")
    return overlay(image, mask[None]), expression.text if mask.any() else f"{expression.text} (its mask is empty)"
