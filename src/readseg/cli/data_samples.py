"""Samples of data sets to look at: pictures with a mask each, and what is asked for."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from readseg.core.images import load_image
from readseg.data.registry import DATA_SETS, nothing_in, require_folder
from readseg.data.types import DataSet, Entry
from readseg.errors import ReadsegError
from readseg.viz.overlays import contact_sheet, overlay


def draw_samples(
    root: Path, name: str | None = None, split: str | None = None, *, count: int | None = None, seed: int = 0
) -> Image.Image:
    """A contact sheet of samples below `root`, the folder of all data sets.

    Of a named data set it shows 8 of the first split that is there; else 2 of each that is there, and warns of those
    that cannot be read. `seed` chooses pictures and expressions.
    """
    require_folder(root)
    rng = np.random.default_rng(seed)
    samples: list[tuple[Image.Image, str]] = []
    if name is not None:
        if name not in DATA_SETS:
            raise ReadsegError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}.")
        samples = _samples(DATA_SETS[name], root, split, count or 8, rng)
    elif split is not None:
        raise ReadsegError(f"split {split!r} is of one data set: name that as well.")
    else:
        for data_set in DATA_SETS.values():
            try:
                drawn = _samples(data_set, root, None, count or 2, rng)
            except _AbsentError:
                continue
            except ReadsegError as error:
                warnings.warn(f"{data_set.name} is not shown: {error}", stacklevel=2)
                continue
            samples += [(picture, f"{data_set.name}: {caption}") for picture, caption in drawn]
    if not samples:
        raise ReadsegError(f"{root}: no data set that can be shown; readseg data check says what is missing.")
    pictures, captions = zip(*samples, strict=True)
    return contact_sheet(pictures, captions)


class _AbsentError(ReadsegError):
    """A data set of which nothing is there."""


def _samples(
    data_set: DataSet, root: Path, split: str | None, count: int, rng: np.random.Generator
) -> list[tuple[Image.Image, str]]:
    splits, damaged = data_set.splits(root)
    if not splits:
        if damaged:
            raise ReadsegError(damaged[0])
        missing = data_set.missing(root) or [nothing_in(data_set, root)]
        raise _AbsentError(f"{data_set.name} cannot be shown: {missing[0]}; readseg data check says more.")
    if split is not None and split not in splits:
        raise ReadsegError(f"{data_set.name} has no split {split!r}; there are {', '.join(splits)}.")
    reader = data_set.open(root, split or splits[0])
    return [_draw(reader[int(index)], rng) for index in rng.permutation(len(reader))[:count]]


def _draw(entry: Entry, rng: np.random.Generator) -> tuple[Image.Image, str]:
    image = load_image(entry.image)
    if not entry.expressions:
        question, answer = entry.dialogue[0]
        return image, f"{question} — {answer}"
    expression = entry.expressions[int(rng.integers(len(entry.expressions)))]
    if expression.mask is None:
        instead = f", but {expression.instead}" if expression.instead else ""
        return overlay(image, np.zeros((0, image.height, image.width), bool)), f"not there: {expression.text}{instead}"
    mask = expression.mask() == 1
    return overlay(image, mask[None]), expression.text if mask.any() else f"{expression.text} (its mask is empty)"
