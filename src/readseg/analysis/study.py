"""What every study of a benchmark is made of: its context, its models, one after the other, and what comes out.

What was measured is in records.jsonl of a model's folder, a line for each image: a study goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image
from pydantic import TypeAdapter

from readseg.core.io import JsonlStore, LineFormat, parse
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, chosen
from readseg.evaluation.run import ask_all, header_of
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.tables import Table

RECORDS = "records.jsonl"

Options = TypeVar("Options")
Record = TypeVar("Record")
PointChoice = Callable[[Segmenter], "tuple[Prompt | None, PointConfig | None]"]
"""What prompts a model's own masks, and how points are chosen, where options say so."""


@dataclass(frozen=True, kw_only=True)
class MeasuredImage:
    """A line of a study: the records of an image."""

    page: str  # the name of the image within its benchmark
    asked: str | None = None  # digest of its questions: changed data do not pass for what was measured on them
    sum: str | None = None  # digest of the records: a number that was damaged on the disk does not pass either
    records: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if self.sum not in (None, _digest(self.records)):
            raise ValueError(
                f"the records of the page {self.page!r:.80} are not what was measured; without this line it is redone"
            )


MEASURED = LineFormat("readseg-analysis-1", MeasuredImage, key="page")


@dataclass(eq=False)
class StudyModel:
    """A model that a study asks. It is loaded when it is needed, and the one that was needed before is released.

    So no variable of a loop over models may hold a segmenter, or what holds one: two may be more than the memory has.
    """

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
    ) -> list[Record]:
        """The records of a model on every image, in the benchmark's order, measured where they are not on disk yet.

        `record` is their type: what pydantic writes as JSON and reads again. `settings`, JSON values, are what they
        depend on beside the benchmark.
        """
        adapter: TypeAdapter[list[Record]] = TypeAdapter(list[record])  # type: ignore[valid-type]
        numbers = chosen(self.benchmark, self.limit)
        header = {"study": name, **header_of(self.benchmark, settings, len(numbers))}
        path = self.folder_of(model) / RECORDS
        measured: list[Record] = []
        with JsonlStore(path, MEASURED, header) as store:

            def measure_missing(page: ImageQuestions) -> None:
                """Keeps the records of an image; measures it where the store has none of these questions."""
                # What is known of each question before its masks are read.
                asked = [
                    (q.key, q.text, q.sentence, q.present, q.expected, q.kind, sorted(q.tags)) for q in page.questions
                ]
                digest = _digest([page.image_id, asked])
                if page.name not in store.records:
                    records = adapter.dump_python(list(measure(page)), mode="json")
                    store.add(MeasuredImage(page=page.name, asked=digest, sum=_digest(records), records=records))
                known = store.records[page.name]
                if known.asked not in (None, digest):
                    raise ReadsegError(
                        f"{path}: what was measured on {page.image_id} is about other questions than the data now "
                        "ask: the data have changed; give another folder"
                    )
                # As they come back from disk: a resumed study is the same study.
                values = json.dumps(known.records).encode()
                records_of_page = parse(adapter, values, f"{path}, the records of {page.name}")
                measured.extend(records_of_page)

            ask_all(self.benchmark, numbers, [measure_missing], title=f"{self.benchmark.name}: {name}")
        return measured

    @property
    def about(self) -> dict[str, Any]:
        """What is known of a study beside its settings: how many images of how many, the folder of the data."""
        about: dict[str, Any] = header_of(self.benchmark, {}, len(chosen(self.benchmark, self.limit)))["about"]
        return about

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


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()[:16]


def folder_name(name: str) -> str:
    """A name as a folder is called: "owner-READ-7B" of "owner/READ 7B"."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def distinct(names: Sequence[str], numbered: str) -> list[str]:
    """Names that differ: one that was there before gets a number, such as "a-2" by "{}-{}"."""
    taken: list[str] = []
    for name in names:
        candidates = (name if k == 1 else numbered.format(name, k) for k in count(1))
        taken.append(next(candidate for candidate in candidates if candidate not in taken))
    return taken
