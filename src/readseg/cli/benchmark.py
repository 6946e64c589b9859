"""What `readseg study` and `readseg ablate` share: one benchmark, several models, a folder for the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from readseg.analysis.study import NoOptions, PointChoice, Study, StudyContext, StudyModel, folder_name
from readseg.checkpoints.files import fetch
from readseg.cli.errors import printable
from readseg.cli.options import EMBEDDED, BenchmarkOptions, ModelsOptions, PointOptions, grouped, print_notes
from readseg.cli.output import check_writable, write_results
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import ALL, DATA_SETS, DRAWN, SCENES, UNSEEN, Benchmark, open_benchmark, resolve
from readseg.evaluation.scenes import SceneSet, scene_benchmark
from readseg.inference.segmenter import Segmenter

SCENES_BY_DEFAULT = 300
BenchmarkName = Annotated[
    str, typer.Argument(metavar="BENCHMARK", help="scenes, or a split such as reasonseg/val or refcoco/testA.")
]
_RUN_PARTS = ("model", "adapter")  # folders of a run, which their own name says nothing of


def study_command(study: Study[Any]) -> Callable[..., None]:
    """The command of a study: its benchmark, its models, its own options, and those of points where they matter."""

    def run(
        benchmark: BenchmarkName,
        asked: BenchmarkOptions,
        models: ModelsOptions,
        points: PointOptions | NoOptions,
        options: Any,
    ) -> None:
        """What `grouped` makes a command of."""
        choose = points.choose if isinstance(points, PointOptions) else None
        run_study(study, study_context("analysis", study.name, benchmark, asked, models, choose), options)

    return grouped(run, points=PointOptions if study.takes_points else NoOptions, options=study.options)


def run_study(study: Study[Any], context: StudyContext, options: Any) -> None:
    """Measure; print the tables and write them with the pictures."""
    output = study.run(context, options)
    write_results(context.out, study.name, output.tables, output.pictures)
    if output.files:
        typer.echo(f"to look at: {', '.join(printable(str(file)) for file in output.files)}")


def study_context(
    kind: str, name: str, benchmark: str, asked: BenchmarkOptions, models: ModelsOptions,
    points: PointChoice | None = None,
) -> StudyContext:  # fmt: skip
    """What a study asks of whom; its folder, by default runs/KIND/MODEL/BENCHMARK-NAME, exists afterwards."""
    opened = open_one(benchmark, asked)
    chosen = study_models(models)
    out = asked.out
    if out is None:
        names = "+".join(folder_name(model.name) for model in chosen)[:80]
        out = Path("runs") / kind / names / f"{folder_name(opened.name)}-{name}"
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    context = StudyContext(opened, chosen, out, asked.count, asked.data)
    return context if points is None else replace(context, points=points)


def open_one(name: str, asked: BenchmarkOptions) -> Benchmark:
    """The one benchmark that a name stands for."""
    if Path(name).is_file() and name.split("/")[0] not in (ALL, *DRAWN, *DATA_SETS):
        raise ReadsegError(f"{name} is a file: expected a benchmark such as scenes; readseg analyse takes pictures.")
    if name == UNSEEN:
        raise ReadsegError(
            f"benchmark {UNSEEN}: it has no masks to compare with; readseg evaluate {UNSEEN} says what is refused."
        )
    if asked.protocol == "forced" and name == SCENES:
        raise ReadsegError("--protocol forced: scenes are scored under the protocol generated only.")
    names = resolve(asked.data, [name])
    if len(names) > 1:
        raise ReadsegError(f"benchmark {name}: a study takes one split: {', '.join(names)}.")
    if names[0] != SCENES:
        return open_benchmark(asked.data or Path(), names[0], asked.protocol)
    return scene_benchmark(SceneSet(scenes=asked.count or SCENES_BY_DEFAULT))


def study_models(models: ModelsOptions) -> list[StudyModel]:
    """The models of --model: each is there, none is loaded yet."""
    paths = [str(Path(source)) for source in models.model or (EMBEDDED,)]  # with a slash behind it is the same
    for path in paths:
        if paths.count(path) > 1:
            raise ReadsegError(f"--model {path} is given twice: give other ones, or leave one out.")
        if path != EMBEDDED:
            fetch(path)  # known before the first of them has worked for hours

    def load(source: str | None) -> Segmenter:
        segmenter = models.load(source)
        print_notes(segmenter)
        return segmenter

    short = [_short_name(path) for path in paths]
    names = [name if short.count(name) == 1 else path for path, name in zip(paths, short, strict=True)]
    loaded: dict[str, Segmenter] = {}
    return [
        StudyModel(name, None if path == EMBEDDED else path, load, models.settings, loaded)
        for name, path in zip(names, paths, strict=True)
    ]


def _short_name(path: str) -> str:
    """What tables call a model: the last part of a folder, with the run that it belongs to; a hub id as it is."""
    if not Path(path).exists():
        return path
    parts = Path(path).resolve().parts
    return "/".join(parts[-2:]) if parts[-1] in _RUN_PARTS else parts[-1]
