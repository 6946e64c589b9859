"""What tests of the studies share: a model that has five answers by heart, and a benchmark made by hand.

`tiny_segmenter.ANSWERS` tells what the model says, whatever the image: so a premise is true or false as the benchmark
says, and the model is right or wrong about it as a test wants.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import tiny_segmenter
from readseg.analysis.study import MEASURED, StudyContext, StudyModel
from readseg.cli.benchmark import run_study
from readseg.core.io import read_lines
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question
from readseg.inference.segmenter import Segmenter
from small import picture

HW = (40, 60)
CAT, UNICORN, TWO, COUNT = "the cat", "the unicorn", "all the birds and the tree", "how many animals are there?"


@cache
def segmenter() -> Segmenter:
    """The tiny segmenter, trained once for all tests of a process."""
    with tempfile.TemporaryDirectory() as folder:
        return tiny_segmenter.load(tiny_segmenter.build(Path(folder)))


def block(top: int, left: int, bottom: int, right: int, *, ignored: int = 0) -> np.ndarray:
    """A rectangle as a target (H, W); `ignored` rows at the top of the image do not count."""
    target = np.zeros(HW, np.uint8)
    target[top:bottom, left:right] = 1
    target[:ignored] = 255
    return target


def recorded(path: Path) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """What a file of records holds: its header, the names of its images, and the records of all of them."""
    lines = read_lines(path, MEASURED)
    return lines.header, list(lines.records), [record for image in lines.records.values() for record in image.records]


Asked = tuple[str, bool | None, Sequence[np.ndarray]]

PAGES: tuple[tuple[Asked, ...], ...] = (
    ((CAT, True, [block(4, 5, 30, 40)]), (UNICORN, False, []), (COUNT, None, [])),
    ((CAT, False, []), (UNICORN, True, [block(0, 0, 20, 30)])),
    ((TWO, True, [block(5, 5, 20, 20), block(20, 30, 40, 60)]), (CAT, True, [block(2, 2, 9, 9)]), (UNICORN, False, [])),
    ((TWO, False, []), (UNICORN, False, []), (CAT, True, [block(10, 0, 40, 60)])),
)
"""Right and wrong answers to true and false premises, with one mask and with two, and a question without a mask."""


def benchmark(pages: Sequence[Sequence[Asked]] = PAGES, **changes: Any) -> Benchmark:
    """Questions as a benchmark; kinds and sections alternate, an image is of the size of its targets."""

    def page(number: int) -> ImageQuestions:
        name = f"page-{number}"
        questions = tuple(
            Question(
                key=f"{name}/{k}",
                text=text,
                sentence=None if present is None else False,
                present=present,
                targets=lambda targets=targets: targets,
                kind="odd" if k % 2 else "even",
                tags=frozenset({"short" if k % 2 else "long"}),
            )
            for k, (text, present, targets) in enumerate(pages[number])
        )
        section = "first" if number % 2 else "second"
        hw = next((target.shape for _, _, targets in pages[number] for target in targets), HW)
        return ImageQuestions(name, np.asarray(picture(*hw, seed=number)), name, section, questions)

    names = tuple(f"page-{number}" for number in range(len(pages)))
    settings: dict[str, Any] = {"name": "hand", "protocol": "generated", "match": "order", "names": names, "page": page}
    return Benchmark(**(settings | changes))


def model(name: str = "tiny", settings: Mapping[str, Any] | None = None) -> StudyModel:
    """The tiny segmenter as a study's model."""
    return loaded_model(name, segmenter(), settings or {"model": name, "weights": "w"}, f"models/{name}")


def loaded_model(name: str, loaded: Segmenter, settings: Mapping[str, Any], source: str | None = None) -> StudyModel:
    """A study's model that is in memory already."""

    def load(_: str | None) -> Segmenter:
        raise AssertionError("it is loaded")

    return StudyModel(name, source, load, lambda *_: settings, {name: loaded})


def context(
    out: Path, asked: Benchmark | None = None, models: Sequence[StudyModel] = (), limit: int | None = None
) -> StudyContext:
    """The tiny segmenter and the benchmark made by hand."""
    out.mkdir(parents=True, exist_ok=True)
    return StudyContext(asked or benchmark(), models or (model(),), out, limit)


def run(name: str, asked: StudyContext, **options: Any) -> None:
    """Runs the study of a name, prints and writes what it finds."""
    study = import_module(f"readseg.analysis.studies.{name}").STUDY
    run_study(study, asked, study.options(**options))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
