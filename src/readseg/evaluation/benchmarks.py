"""Benchmarks by name: which images, what is asked about each, under which protocol. No model.

    reasonseg/val, refcoco/testA, refcoco/unc/testA   a split of a data set below the folder of all data
    reasonseg, refcoco, all                           every split but "train" of one data set, or of all of them
    scenes, unseen                                    drawn: evaluation/scenes.py and evaluation/unseen.py

Two protocols, never mixed in one number:

    "forced"     the answer with [SEG] is given to the model, its mask is scored: how ReasonSeg, RefCOCO/+/g and
                 RefCLEF are published. A false premise has no truth under it and is left out.
    "generated"  the model answers by itself: how sets with false premises, or with no target, are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from readseg.core.masks import IGNORED, union
from readseg.data.readers.refer import preferred
from readseg.data.registry import DATA_SETS as ALL_DATA_SETS
from readseg.data.types import DataSet, Expression
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Match

Protocol = Literal["forced", "generated"]

SCENES, UNSEEN, ALL = "scenes", "unseen", "all"
DRAWN = (SCENES, UNSEEN)
"""The benchmarks that are drawn: they need no data, and are scored under "generated" only."""
FIRST_TEST_SEED = 500_000
"""The scenes of the fixed test set have the seeds from here on; training draws from 1,000,000 on."""
UNTRAINED = "untrained"
"""Tag of a question about something that is there but that models are never trained on: it counts as absent."""
DATA_SETS = {name: data_set for name, data_set in ALL_DATA_SETS.items() if data_set.protocol is not None}
"""The data sets that are benchmarks, in the order of the tables."""


@dataclass(frozen=True, eq=False)
class Question:
    """A question about an image, and what is true."""

    key: str  # unique within the benchmark
    text: str  # in the data set's words
    sentence: bool | None  # a whole sentence, or the name of a thing; None goes to the model as it stands
    present: bool | None  # whether what is asked for is there; None for a question that is answered in words
    targets: Callable[[], Sequence[np.ndarray]]  # paints the masks that are expected, each (H, W) in {0, 1, 255}
    expected: str | None = None  # the answer in words; None where there is none
    kind: str = ""
    tags: frozenset[str] = frozenset()  # what else scores are grouped by


@dataclass(frozen=True, eq=False)
class ImageQuestions:
    """An image of a benchmark with all that is asked about it."""

    name: str  # unique within the benchmark; its questions' keys begin with it and a "/"
    image: Path | np.ndarray  # the file, or pixels (H, W, 3)
    image_id: str  # in records: the file relative to the folder of all data, or the name of a scene
    section: str  # part of the benchmark
    questions: tuple[Question, ...]  # at least one

    @property
    def source(self) -> Path | str:
        """What an error calls the image."""
        return self.image if isinstance(self.image, Path) else self.name

    def read_targets(self, question: Question, hw: tuple[int, int]) -> tuple[list[np.ndarray], np.ndarray]:
        """The expected masks of one of the questions, bool (H, W) each, and the pixels (H, W) that do not count."""
        targets = [np.asarray(target) for target in question.targets()]
        for target in targets:
            if target.shape != hw:
                raise ReadsegError(
                    f"{self.source}: the image is {hw[0]} x {hw[1]}, a mask of it {' x '.join(map(str, target.shape))} "
                    "(height x width)"
                )
        return [target == 1 for target in targets], union([target == IGNORED for target in targets], hw)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A fixed list of images and questions, and how answers are made and scored."""

    name: str  # as in this module's head
    protocol: Protocol
    match: Match  # how masks meet their targets, see `predictions`
    names: tuple[str, ...]  # of the images
    page: Callable[[int], ImageQuestions]  # makes the image of a number with its questions
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else decides the answers: which files
    about: Mapping[str, Any] = field(default_factory=dict)  # what else is known: the folder of the data
    left_out: tuple[int, ...] = ()  # for each image how many false premises the protocol leaves out
    ordered: bool = False  # a first part is mixed as all of it is: a smaller number takes the first images

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> ImageQuestions:
        if not 0 <= number < len(self):  # an IndexError ends a for loop
            raise IndexError(f"{self.name} has {len(self)} images, there is no number {number}")
        return self.page(number)


def chosen(benchmark: Benchmark, limit: int | None) -> list[int]:
    """The images of a sample, in order: evenly spread over the benchmark; a larger sample holds every smaller one.

    The numbers 0, 1, 2, ... with their bits reversed: 0, 1/2, 1/4, 3/4, 1/8, ... of the benchmark.
    """
    count = len(benchmark)
    if limit is None or limit >= count:
        return list(range(count))
    if benchmark.ordered:
        return list(range(limit))
    bits = (count - 1).bit_length()
    spread = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return sorted([number for number in spread if number < count][:limit])


def open_benchmark(root: Path, name: str, protocol: Protocol | None = None) -> Benchmark:
    """A split of a data set below `root`, such as "refcoco/unc/testA", under its published protocol or another one.

    Reads all its records, so that a broken one is known before any model asks.
    """
    dataset, *middle = name.split("/")
    split = middle.pop() if middle else ""
    if dataset not in DATA_SETS or not split or len(middle) > DATA_SETS[dataset].has_variants:
        raise ReadsegError(
            f"benchmark {name!r}: expected DATASET/SPLIT, such as reasonseg/val or refcoco/testA; data sets are "
            f"{', '.join(DATA_SETS)}"
        )
    data_set = DATA_SETS[dataset]
    protocol = protocol or data_set.protocol or "generated"
    reader = data_set.open(root, "|".join((dataset, *middle, split)) if data_set.has_variants else split)
    images: dict[str, ImageQuestions] = {}
    left_out = []
    for number in range(len(reader)):
        entry = reader[number]
        # ReasonSeg asks the first text of each file.
        asked = [e for e in entry.expressions if dataset != "reasonseg" or not e.present or "first" in e.tags]
        kept = [expression for expression in asked if expression.present or protocol == "generated"]
        if kept:
            image_name = entry.name if entry.name not in images else f"{entry.name}#{number}"
            image_id = entry.image.relative_to(root) if entry.image.is_relative_to(root) else entry.image
            questions = tuple(_question(f"{image_name}/{k}", expression) for k, expression in enumerate(kept))
            images[image_name] = ImageQuestions(image_name, entry.image, image_id.as_posix(), split, questions)
            left_out.append(len(asked) - len(kept))
    if not images:
        raise ReadsegError(f"benchmark {name!r}: nothing can be asked under the protocol {protocol!r}")
    return Benchmark(
        name=name,
        protocol=protocol,
        match="union",
        names=tuple(images),
        page=list(images.values()).__getitem__,
        settings={"split": reader.name},
        about={"data": str(root.absolute())},
        left_out=tuple(left_out),
    )


def _question(key: str, expression: Expression) -> Question:
    return Question(
        key=key,
        text=expression.text,
        sentence=expression.sentence,
        present=expression.present,
        targets=lambda: [] if expression.mask is None else [expression.mask()],
        kind=expression.kind,
        tags=expression.tags,
    )


# -- names -------------------------------------------------------------------------------------------------------------


def resolve(root: Path | None, names: Sequence[str]) -> list[str]:
    """Names of single benchmarks, in the given order and each once; what a name stands for is looked up below `root`.

    A split that is named is taken as it is: `open_benchmark` knows whether it is there.
    """
    benchmarks: list[str] = []
    for name in names:
        dataset = name.partition("/")[0]
        if name in DRAWN:
            benchmarks.append(name)
            continue
        if name != ALL and dataset not in DATA_SETS:
            raise ReadsegError(
                f"no benchmark {name!r}; there are {', '.join((*DRAWN, *DATA_SETS))}, a split of one of them such as "
                f"refcoco/testA, and {ALL}"
            )
        if root is None or not root.is_dir():
            problem = "it needs data" if root is None else f"{root}: no such folder"
            raise ReadsegError(f"benchmark {name}: {problem}; name the folder that the data sets lie in with --data")
        if "/" in name:
            benchmarks.append(name)
            continue
        data_sets = DATA_SETS.values() if name == ALL else [DATA_SETS[name]]
        splits = [split for data_set in data_sets for split in _test_splits(root, data_set)]
        if not splits:
            raise ReadsegError(
                f"benchmark {name}: nothing to evaluate is below {root}; readseg data check {root} says what belongs "
                "where"
            )
        benchmarks += splits
    return list(dict.fromkeys(benchmarks))


def _test_splits(root: Path, dataset: DataSet) -> list[str]:
    """All splits but those for training, of the refs file that is preferred; of each where none is."""
    names, damaged = dataset.splits(root)
    if damaged:
        raise ReadsegError(damaged[0])
    splits = [name.split("|") for name in names if not name.split("|")[-1].startswith("train")]
    if not dataset.has_variants:
        return [f"{dataset.name}/{split}" for (split,) in sorted(splits, key=lambda split: split != ["val"])]
    sources = dict.fromkeys(source for _, source, _ in splits)
    best = next((source for source in preferred(dataset.name) if source in sources), None)
    if best is None and len(sources) > 1:
        return ["/".join(split) for split in splits]
    return [f"{dataset.name}/{split}" for _, source, split in splits if best in (None, source)]
