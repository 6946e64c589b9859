"""All data sets that can lie below one folder: what is there, what is missing and where to put it, what is broken.

A new data set is one file in `readers` that describes it as a `DataSet`, and its name in `DATA_SETS` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from readseg.core.images import load_image
from readseg.data.readers import coco_parts, llava_instruct, reasonseg, refer, semantic
from readseg.data.types import DataSet, Reader
from readseg.errors import ReadsegError

DATA_SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for family in (semantic, coco_parts, llava_instruct, reasonseg, refer)
    for data_set in family.DATA_SETS
}
"""Every data set that this package reads, by name, in the order of tables and of the mixture's rounds."""

_MAX_PROBLEMS = 5  # broken records that are named; the rest is counted


@dataclass(frozen=True)
class SplitCheck:
    """What a check says of a split, or of a data set as a whole, where something of it is missing: split "-"."""

    name: str
    split: str
    entries: int = 0  # images or conversations; 0 where it is not there
    expressions: int | None = None  # what may be asked for, counted in a thorough check
    broken: int = 0  # how many records cannot be read, of those that were tried
    problems: tuple[str, ...] = ()  # the first of them, or what is missing and where to put it


def require_folder(root: Path) -> None:
    """Checks that the folder of all data is there."""
    if not root.is_dir():
        raise ReadsegError(f"{root}: no such folder; name the one that the data sets lie in.")


def check(root: Path, *, thorough: bool = False) -> Iterator[SplitCheck]:
    """What is below `root`, split by split: every record, image and mask, or only the first record of each split."""
    require_folder(root)
    for data_set in DATA_SETS.values():
        splits, damaged = data_set.splits(root)
        problems = damaged + data_set.missing(root)
        if not splits and not problems:
            problems = [nothing_in(data_set, root)]
        if problems:
            yield SplitCheck(data_set.name, "-", broken=len(damaged), problems=tuple(problems))
        for split in splits:
            try:
                yield _check_split(data_set.name, split, data_set.open(root, split), thorough)
            except ReadsegError as error:
                yield SplitCheck(data_set.name, split, broken=1, problems=(str(error),))


def nothing_in(data_set: DataSet, root: Path) -> str:
    """That all files are there, and no split is in them."""
    return f"nothing that can be read is in {' or '.join(str(path) for path, _ in data_set.files(root))}"


def _check_split(name: str, split: str, reader: Reader, thorough: bool) -> SplitCheck:
    expressions = broken = 0
    problems: list[str] = []
    for index in range(len(reader) if thorough else min(1, len(reader))):
        try:
            entry = reader[index]
            expressions += len(entry.expressions)
            load_image(entry.image)
            for expression in entry.expressions:
                if expression.mask is not None:
                    expression.mask()
        except ReadsegError as error:
            broken += 1
            problems += [str(error)] if len(problems) < _MAX_PROBLEMS else []
    return SplitCheck(name, split, len(reader), expressions if thorough else None, broken, tuple(problems))
