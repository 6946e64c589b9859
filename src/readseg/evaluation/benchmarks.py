"""Benchmarks by name: which images, what is asked about each, under which protocol. No model.

    reasonseg/val, refcoco/testA, fprefcoco/val   a split of a data set below the folder of all data
    refcoco/unc/testA                             the same, of one of several refs(SPLIT_BY) files
    reasonseg, refcoco, all                       every split but "train" of one data set, or of all of them
    scenes                                        the fixed set of drawn scenes (evaluation/scenes.py)
    unseen                                        things that no model was trained on, and empty backgrounds
                                                  (evaluation/unseen.py)

Two protocols, never mixed in one number:

    "forced"     the answer with [SEG] is given to the model, its mask is scored: how ReasonSeg, RefCOCO/+/g and
                 RefCLEF are published. A false premise has no truth under it and is left out.
    "generated"  the model answers by itself: how sets with false premises, or with no target, are scored.

ReasonSeg asks the first text of each file, as published, and under "generated" its false premises too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from readseg.data.entries import Entry, Expression
from readseg.data.readers.reasonseg import ReasonSeg
from readseg.data.readers.refer import RefCoco, preferred
from readseg.data.registry import REFERRING, DataSet, Reader, data_sets
from readseg.errors import ReadsegError
from readseg.evaluation.outcomes import Match

Protocol = Literal["forced", "generated"]

SCENES, UNSEEN, ALL = "scenes", "unseen", "all"
DRAWN = (SCENES, UNSEEN)
"""The benchmarks that are drawn: they need no data, and are scored under "generated" only."""
FIRST_TEST_SEED = 500_000
"""The scenes of the fixed test set have the seeds from here on; training draws from 1,000,000 on."""
UNTRAINED = "untrained"
"""Tag of a question about something that is there but that models are never trained on: it counts as absent."""
FORCED = ("reasonseg", "refclef", "refcoco", "refcoco+", "refcocog")
"""The data sets whose published protocol is "forced"; the others' is "generated"."""
DATA_SETS = ("reasonseg", *REFERRING)
"""The data sets that are benchmarks, in the order of the tables."""


@dataclass(frozen=True, eq=False)
class Query:
    """A question about an image, and what is true.

    Attributes:
        key: unique within the benchmark.
        text: the question, in the data set's words.
        sentence: whether it is a whole sentence, not the name of a thing; None goes to the model as it stands.
        present: whether what is asked for is there; None for a question that is answered in words.
        targets: paints the masks that are expected, each (H, W) in {0, 1, 255}; raises ReadsegError naming the file
            that it cannot read.
        expected: the answer in words; None where there is none.
        kind: kind of question.
        tags: what else scores are grouped by.
    """

    key: str
    text: str
    sentence: bool | None
    present: bool | None
    targets: Callable[[], Sequence[np.ndarray]]
    expected: str | None = None
    kind: str = ""
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Page:
    """An image of a benchmark with all that is asked about it.

    Attributes:
        name: unique within the benchmark; its questions' keys begin with it and a "/".
        image: the file, or pixels (H, W, 3).
        place: how records call the image: the file relative to the folder of all data, or the name of a scene.
        section: part of the benchmark.
        queries: at least one.
    """

    name: str
    image: Path | np.ndarray
    place: str
    section: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A fixed list of images and questions, and how answers are made and scored.

    Attributes:
        name: as in this module's head.
        protocol: how answers are made.
        match: how masks meet their targets, see `outcomes`.
        names: of the pages.
        page: makes the page of a number.
        settings: what else decides the answers: which files.
        about: what else is known: the folder of the data.
        left_out: for each page how many false premises the protocol leaves out.
        ordered: a first part of it is mixed as all of it is, so that a smaller number takes the first pages.
    """

    name: str
    protocol: Protocol
    match: Match
    names: tuple[str, ...]
    page: Callable[[int], Page]
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()
    ordered: bool = False

    def __len__(self) -> int:
        """How many pages there are."""
        return len(self.names)

    def __getitem__(self, number: int) -> Page:
        """The page of a number from 0 on."""
        if not 0 <= number < len(self):  # an IndexError ends a for loop
            raise IndexError(f"{self.name} has {len(self)} images, there is no number {number}")
        return self.page(number)


def chosen(benchmark: Benchmark, limit: int | None) -> list[int]:
    """The pages of a sample, in order: evenly spread over the benchmark; a larger sample holds every smaller one.

    The numbers 0, 1, 2, ... with their bits reversed: 0, 1/2, 1/4, 3/4, 1/8, ... of the benchmark.

    Args:
        benchmark: what to draw from.
        limit: how many pages; all where left out, or where there are fewer.

    Raises:
        ReadsegError: the limit is less than 1.
    """
    count = len(benchmark)
    if limit is not None and limit < 1:
        raise ReadsegError(f"limit: expected at least 1 image, got {limit}")
    if limit is None or limit >= count:
        return list(range(count))
    if benchmark.ordered:
        return list(range(limit))
    bits = (count - 1).bit_length()
    spread = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return sorted([number for number in spread if number < count][:limit])


def open_benchmark(root: Path, name: str, protocol: Protocol | None = None) -> Benchmark:
    """A split of a data set as a benchmark. Reads all its records, so that a broken one is known before any model asks.

    Args:
        root: the folder of all data.
        name: "reasonseg/val", "refcoco/testA", "refcoco/unc/testA".
        protocol: by default the published one.

    Raises:
        ReadsegError: no such data set or split, an unknown protocol, a record that cannot be read, or nothing to ask.
    """
    if protocol is not None and protocol not in get_args(Protocol):
        raise ReadsegError(f"protocol: expected one of {', '.join(get_args(Protocol))}, got {protocol!r}")
    dataset, *middle = name.split("/")
    split = middle.pop() if middle else ""
    if dataset not in DATA_SETS or not split or len(middle) > (dataset != "reasonseg"):
        raise ReadsegError(
            f"benchmark {name!r}: expected DATASET/SPLIT, such as reasonseg/val or refcoco/testA; data sets are "
            f"{', '.join(DATA_SETS)}"
        )
    how: Protocol = protocol or ("forced" if dataset in FORCED else "generated")
    reader = ReasonSeg(root, split) if dataset == "reasonseg" else RefCoco(root, "|".join((dataset, *middle, split)))
    pages, left_out = _pages(reader, dataset, split, how, root)
    if not pages:
        raise ReadsegError(f"benchmark {name!r}: nothing can be asked under the protocol {how!r}")
    return Benchmark(
        name=name,
        protocol=how,
        match="union",
        names=tuple(page.name for page in pages),
        page=pages.__getitem__,
        settings={"split": reader.name},
        about={"data": str(root.absolute())},
        left_out=tuple(left_out),
    )


def resolve(root: Path | None, names: Sequence[str]) -> list[str]:
    """Names of single benchmarks, in the given order and each once.

    Args:
        root: the folder of all data; None where there is none.
        names: as in this module's head.

    Raises:
        ReadsegError: an unknown name; or what it names is not below `root`: where to put what.
    """
    found: list[str] = []
    for name in names:
        dataset = name.split("/")[0]
        if name in DRAWN:
            found.append(name)
        elif name != ALL and dataset not in DATA_SETS:
            raise ReadsegError(
                f"no benchmark {name!r}; there are {', '.join((*DRAWN, *DATA_SETS))}, a split of one of them such as "
                f"refcoco/testA, and {ALL}"
            )
        elif root is None:
            raise ReadsegError(
                f"benchmark {name}: it needs data; name the folder that the data sets lie in with --data"
            )
        elif not root.is_dir():
            raise ReadsegError(f"{root}: no such folder; name the one that the data sets lie in with --data")
        elif "/" in name:
            found.append(_checked(root, name))
        else:
            found += _splits(root, None if name == ALL else name)
    return list(dict.fromkeys(found))


def _checked(root: Path, name: str) -> str:
    """The name of a split, if it is on disk: a wrong one is known before a model is loaded."""
    dataset, _, split = name.partition("/")
    there = next(there for there in data_sets(root) if there.name == dataset)
    parts = [part.split("|") for part in _found(there)]
    if dataset != "reasonseg":
        parts = [part[1:] for part in parts]
    known = dict.fromkeys(place for part in parts for place in (part[-1], "/".join(part)))
    if split not in known:
        told = ", ".join(f"{dataset}/{place}" for place in known) or _wanted(there)
        raise ReadsegError(f"benchmark {name}: no such split is below {root}: {'there is ' if known else ''}{told}")
    return name


def _splits(root: Path, dataset: str | None) -> list[str]:
    """The benchmarks of one data set, or of all, that are on disk."""
    sets = {there.name: there for there in data_sets(root)}
    found = [name for own in (DATA_SETS if dataset is None else (dataset,)) for name in _benchmarks(sets[own])]
    if not found and dataset is not None:
        raise ReadsegError(f"benchmark {dataset}: nothing to evaluate is below {root}: {_wanted(sets[dataset])}")
    if not found:
        raise ReadsegError(f"{root}: no benchmark is there; readseg data check {root} says what belongs where")
    return found


def _wanted(there: DataSet) -> str:
    """What a data set lacks, and where it belongs."""
    missing = [f"put {what} at {place}" for place, what in there.needs if not place.exists()]
    return "; ".join(missing) or "no split but train is there"


def _found(there: DataSet) -> list[str]:
    """The splits of a data set that are on disk.

    Raises:
        ReadsegError: a file that tells them cannot be read.
    """
    names, damaged = there.find()
    if damaged:
        raise ReadsegError(damaged[0])
    return names


def _benchmarks(there: DataSet) -> list[str]:
    """All splits but those for training, of the refs file that is preferred; of each where none is."""
    splits = [name.split("|") for name in _found(there) if not name.split("|")[-1].startswith("train")]
    if there.name == "reasonseg":
        return [f"{there.name}/{split[-1]}" for split in sorted(splits, key=lambda split: split[-1] != "val")]
    sources = dict.fromkeys(split[1] for split in splits)
    best = next((source for source in preferred(there.name) if source in sources), None)
    if best is None and len(sources) > 1:
        return ["/".join(split) for split in splits]
    return [f"{there.name}/{split[2]}" for split in splits if best is None or split[1] == best]


def _pages(reader: Reader, dataset: str, split: str, protocol: Protocol, root: Path) -> tuple[list[Page], list[int]]:
    """All images about which something is asked, and how many false premises of each are left out."""
    pages, left_out, names = [], [], set()
    for number in range(len(reader)):
        entry = reader[number]
        asked = [said for said in entry.expressions if _is_asked(said, dataset)]
        kept = [said for said in asked if said.present or protocol == "generated"]
        if not kept:
            continue
        name = entry.name if entry.name not in names else f"{entry.name}#{number}"
        names.add(name)
        pages.append(_page(name, entry, kept, split, root))
        left_out.append(len(asked) - len(kept))
    return pages, left_out


def _is_asked(said: Expression, dataset: str) -> bool:
    return dataset != "reasonseg" or not said.present or "first" in said.tags


def _page(name: str, entry: Entry, expressions: Sequence[Expression], split: str, root: Path) -> Page:
    queries = tuple(
        Query(
            key=f"{name}/{number}",
            text=said.text,
            sentence=said.sentence,
            present=said.present,
            targets=_painter(said),
            kind=said.kind,
            tags=said.tags,
        )
        for number, said in enumerate(expressions)
    )
    inside = entry.image.is_relative_to(root)
    place = (entry.image.relative_to(root) if inside else entry.image).as_posix()
    return Page(name, entry.image, place, split, queries)


def _painter(said: Expression) -> Callable[[], Sequence[np.ndarray]]:
    return lambda: [] if said.mask is None else [said.mask()]
