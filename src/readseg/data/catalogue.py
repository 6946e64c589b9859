"""All data sets that can lie below one folder: what is there, what is missing and where to put it, what is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from readseg.data.entries import Entry
from readseg.data.parts import PACO, PascalPart
from readseg.data.reasonseg import PLACE as REASON_PLACE
from readseg.data.reasonseg import ReasonSeg
from readseg.data.refcoco import CLEF_IMAGES, COCO_IMAGES, PLACE, RefCoco, preferred
from readseg.data.semantic import ADE20K, COCOStuff, Mapillary
from readseg.data.vqa import LlavaInstruct
from readseg.draw import contact_sheet, overlay
from readseg.errors import ReadsegError
from readseg.images import load_image

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
    splits: the splits that are on disk.
    read: opens one of them.
    """

    name: str
    needs: tuple[tuple[Path, str], ...]
    splits: tuple[str, ...]
    read: Callable[[str], Reader]


@dataclass(frozen=True)
class Found:
    """What a check says of a split, or of a data set without any.

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
    """Every data set that this package reads, whether it is below `root` or not."""
    found = [
        DataSet(name, tuple(kind.needs(root)), tuple(kind.splits(root)), partial(kind, root))
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
    found.append(DataSet("reasonseg", reasons, tuple(ReasonSeg.splits(root)), partial(ReasonSeg, root)))
    there = RefCoco.splits(root)
    for name in REFERRING:
        folder = root / PLACE / name
        images = root / (CLEF_IMAGES if name == "refclef" else COCO_IMAGES)
        refs = f"{name}'s refs({preferred(name)[0]}).p, or another of its refs files"
        needs = (
            (folder / "instances.json", f"{name}'s instances.json"),
            (folder, refs),
            (images, "the images (*.jpg)"),
        )
        splits = tuple(split for split in there if split.split("|")[0] == name)
        found.append(DataSet(name, needs, splits, partial(RefCoco, root)))
    return found


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
        if not data_set.splits:
            missing = [f"{place} is missing: put {what} there" for place, what in data_set.needs if not place.exists()]
            yield Found(data_set.name, "-", problems=tuple(missing) or ("nothing that can be read is there",))
        for split in data_set.splits:
            try:
                reader = data_set.read(split)
            except ReadsegError as error:
                yield Found(data_set.name, split, broken=1, problems=(str(error),))
                continue
            yield _checked(data_set.name, split, reader, thorough)


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


def show(root: Path, name: str, split: str | None = None, *, count: int = 8, seed: int = 0) -> Image.Image:
    """Samples of a data set to look at: pictures with a mask each, and what is said of it.

    Args:
        root: of all data sets.
        name: as in `data_sets`.
        split: by default the first that is there.
        count: pictures.
        seed: of the choice of pictures and expressions.

    Raises:
        ReadsegError: there is no such data set or split, or a chosen record cannot be read.
    """
    data_set = next((data_set for data_set in data_sets(root) if data_set.name == name), None)
    if data_set is None:
        raise ReadsegError(f"no data set {name!r}; there are {', '.join(d.name for d in data_sets(root))}.")
    if not data_set.splits or (split is not None and split not in data_set.splits):
        told = ", ".join(data_set.splits) or "none: readseg data check says what is missing"
        raise ReadsegError(f"{name} has no split {split!r} below {root}; there are {told}.")
    reader = data_set.read(split or data_set.splits[0])
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(reader))[:count]
    if not len(chosen):
        raise ReadsegError(f"{name}, {split or data_set.splits[0]}: it is empty.")
    pictures, captions = zip(*(_drawn(reader[int(index)], rng) for index in chosen), strict=True)
    return contact_sheet(pictures, captions)


def _drawn(entry: Entry, rng: np.random.Generator) -> tuple[Image.Image, str]:
    image = load_image(entry.image)
    if not entry.expressions:
        question, answer = entry.dialogue[0]
        return image, f"{question} — {answer}"
    expression = entry.expressions[int(rng.integers(len(entry.expressions)))]
    masks: Sequence[np.ndarray] = [expression.mask() == 1] if expression.mask is not None else []
    stacked = np.stack(masks) if masks else np.zeros((0, image.height, image.width), bool)
    instead = f", but {expression.instead}" if expression.instead else ""
    return overlay(image, stacked), expression.text if expression.present else f"not there: {expression.text}{instead}"
