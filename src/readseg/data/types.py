"""What all data sets yield: an image and what may be asked for in it, before and after a question is worded.

Frame: masks have the image's own height and width, in pixels. Pixels and text, no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from readseg.core.types import Turn
from readseg.errors import ReadsegError


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """Something that may be asked for, as the data set words it."""

    text: str
    sentence: bool  # "Where could I sit?", not the name of a thing, "the red cup"
    present: bool
    # Paints uint8 (H, W) in {0, 1, 255}, 255 for pixels that do not count, and raises ReadsegError naming the file that
    # it cannot read; None where `present` is False.
    mask: Callable[[], np.ndarray] | None = None
    instead: str = ""  # of what is not there, what is there instead; "" where the data set does not say
    kind: str = ""  # the row of a table of scores
    tags: frozenset[str] = frozenset()  # what else scores are grouped by


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An image of a data set, as its reader yields it: how a question is worded is decided elsewhere."""

    name: str  # unique within its split
    image: Path  # nothing says that it is there until it is read
    expressions: tuple[Expression, ...] = ()
    dialogue: tuple[tuple[str, str], ...] = ()  # questions and answers, for data sets of conversations
    absent: tuple[str, ...] = ()  # classes that are surely not in the image, where the data set knows


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image, uint8 (H, W, 3), RGB, with its conversation or its separate questions."""

    name: str  # unique within its data set
    image: np.ndarray
    turns: tuple[Turn, ...]


class Reader(Protocol):
    """A split of a data set that is open. A record that is broken raises where it is accessed, and no other."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Entry: ...


@dataclass(frozen=True)
class DataSet:
    """A data set as a file of `readers` describes it to the registry. `root` is the folder of all data."""

    name: str  # for people and for the command line
    files: Callable[[Path], list[tuple[Path, str]]]  # the files and folders it is made of, and what belongs there
    splits: Callable[[Path], tuple[list[str], list[str]]]  # those on disk, and which files cannot tell theirs
    open: Callable[[Path, str], Reader]  # one of these splits
    training_split: str
    kind: str | None = None  # of the training mixture, which takes it by default where it is there
    other_kinds: tuple[str, ...] = ()  # that take it by name
    protocol: Literal["forced", "generated"] | None = None  # its published one; None where it is no benchmark
    has_variants: bool = False  # its splits are DATASET|SPLIT_BY|NAME, of several files side by side

    def missing(self, root: Path) -> list[str]:
        """What is not there, and what belongs in its place."""
        return missing(self.files(root))


class SplitReader(Reader):
    """Base of readers whose splits are known beforehand, each made of the files and folders of `FILES`."""

    NAME: ClassVar[str]
    SPLITS: ClassVar[tuple[str, ...]]  # the first one is for training
    FILES: ClassVar[tuple[tuple[str, str], ...]]  # below the root, and what belongs there; "{split}" is replaced

    def __init__(self, root: Path, split: str) -> None:
        self.name = f"{self.NAME}|{split}"
        self.records: Sequence[Any] = ()  # what an entry is made of
        self.paths = [path for path, _ in self.files(root, split)]
        if problems := missing(self.files(root, split)):
            raise ReadsegError(problems[0])

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def files(cls, root: Path, split: str | None = None) -> list[tuple[Path, str]]:
        """The files and folders of a split, by default of that for training, and what belongs there."""
        split = split or cls.SPLITS[0]
        return [(root / path.format(split=split), what.format(split=split)) for path, what in cls.FILES]

    @classmethod
    def splits(cls, root: Path) -> tuple[list[str], list[str]]:
        """The splits that are on disk; whether they can be read is told when they are."""
        return [split for split in cls.SPLITS if not missing(cls.files(root, split))], []

    @classmethod
    def data_set(cls, kind: str, name: str | None = None) -> DataSet:
        """The data set as the registry has it, for a kind of the training mixture."""
        return DataSet(name or cls.NAME, cls.files, cls.splits, cls, training_split=cls.SPLITS[0], kind=kind)


def missing(files: list[tuple[Path, str]]) -> list[str]:
    """What is not there, and what belongs in its place."""
    return [f"{path} is missing: put {what} there" for path, what in files if not path.exists()]
