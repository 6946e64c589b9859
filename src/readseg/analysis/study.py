"""What every study of a benchmark is made of: its context, its models, one after the other, and what comes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from readseg.core.sasp import PointConfig
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.evaluation.run import StudyResult, run_study
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.tables import Table

Options = TypeVar("Options")
Record = TypeVar("Record")
PointChoice = Callable[[Segmenter], "tuple[Prompt | None, PointConfig | None]"]
"""What prompts a model's own masks, and how points are chosen, where options say so."""


@dataclass(eq=False)
class StudyModel:
    """A model that a study asks. It is loaded when it is needed, and the one that was needed before is released."""

    name: str  # as tables call it, different for each
    source: str | None  # folder or hub id; None for the embedded one
    load: Callable[[str | None], Segmenter] = field(repr=False)
    settings_of: Callable[[Segmenter, str | None], Mapping[str, Any]] = field(repr=False)
    loaded: dict[str, Segmenter] = field(repr=False)  # shared by the models of a study: the one in memory, by its name

    @property
    def segmenter(self) -> Segmenter:
        """The model; loaded where it is not."""
        if self.name not in self.loaded:
            self.loaded.clear()
            self.loaded[self.name] = self.load(self.source)
        return self.loaded[self.name]

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What its answers depend on; the model is loaded for it once."""
        return self.settings_of(self.segmenter, self.source)


@dataclass(frozen=True)
class StudyContext:
    """What a study asks, whom, and where results go."""

    benchmark: Benchmark
    models: Sequence[StudyModel]
    out: Path  # exists
    limit: int | None = None  # how many images; all for None
    data: Path | None = None  # the folder of all data sets
    points: PointChoice = lambda segmenter: (None, None)  # what prompts each model

    def measure(
        self,
        model: StudyModel,
        measure: Callable[[ImageQuestions], Sequence[Record]],
        record: type[Record],
        name: str,
        settings: Mapping[str, Any],
    ) -> StudyResult[Record]:
        """The records of a model on every image, from its folder where they were measured before."""
        return run_study(
            self.benchmark,
            measure,
            record,
            name=name,
            settings=settings,
            folder=self.folder_of(model),
            limit=self.limit,
            progress=True,
        )

    def folder_of(self, model: StudyModel) -> Path:
        """Where the records of one model are kept: the study's folder, with several models one below it for each."""
        if len(self.models) == 1:
            return self.out
        names = distinct([folder_name(other.name) for other in self.models], "{}-{}")
        return self.out / names[self.models.index(model)]


@dataclass(frozen=True)
class StudyOutput:
    """What a study has to show."""

    tables: Sequence[Table]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)  # by the end of their file's name, "" for none
    files: Sequence[Path] = ()  # others that the study wrote, worth a look


@dataclass(frozen=True)
class Study(Generic[Options]):
    """A study: its name, its own options (a dataclass of typer's annotations) and what it does."""

    name: str
    options: type[Options]
    run: Callable[[StudyContext, Options], StudyOutput]
    takes_points: bool = False  # whether the options of points change what it measures


@dataclass(frozen=True)
class NoOptions:
    """Of a study without options of its own."""


def folder_name(name: str) -> str:
    """A name as a folder is called.

    >>> folder_name("owner/READ 7B")
    'owner-READ-7B'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def distinct(names: Sequence[str], numbered: str) -> list[str]:
    """Names that differ: one that was there before gets a number.

    >>> distinct(["a", "a", "b"], "{}-{}")
    ['a', 'a-2', 'b']
    """
    taken: list[str] = []
    for name in names:
        candidates = (name if k == 1 else numbered.format(name, k) for k in count(1))
        taken.append(next(candidate for candidate in candidates if candidate not in taken))
    return taken
