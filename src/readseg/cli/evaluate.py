"""`readseg evaluate`: scores of a model on benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from readseg.cli.options import DataOptions, ModelOptions, PointOptions, grouped, print_notes
from readseg.cli.output import check_writable, print_tables
from readseg.core.io import processes
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import DRAWN, FIRST_TEST_SEED, SCENES, UNSEEN, Benchmark, open_benchmark, resolve
from readseg.evaluation.predictions import Result
from readseg.evaluation.report import score_tables, to_rich
from readseg.evaluation.run import VARIANTS, System, model_system, run_systems
from readseg.evaluation.scenes import SceneSet, blind_systems, scene_benchmark
from readseg.evaluation.unseen import unseen_benchmark
from readseg.evaluation.webpage import FILES, write_report


@grouped
def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCHMARK",
            help="scenes; unseen; reasonseg/val, refcoco/testA, ...; a data set for all its splits; all for all.",
        ),
    ],
    asked: DataOptions,
    model: ModelOptions,
    points: PointOptions,
    out: Annotated[
        Path | None, typer.Option(help="Keeps predictions and report; an interrupted run goes on from there.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each benchmark, evenly spread.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes of the fixed set.")] = 600,
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the scenes; others than the fixed set's are for choosing between models."),
    ] = None,
    variants: Annotated[bool, typer.Option(help="Also with points only and with the SEG embedding only.")] = False,
) -> None:
    """Score a model on benchmarks: of the field, below --data, or drawn: scenes, and what it never saw.

    Several processes share the work: accelerate launch -m readseg evaluate ..., on CPUs torchrun.
    """
    names = resolve(asked.data, benchmark)
    if first_seed is not None and SCENES not in names:
        raise ReadsegError("--first-seed: it is of the benchmark scenes only.")
    if asked.protocol == "forced" and (drawn := [name for name in DRAWN if name in names]):
        raise ReadsegError(f"--protocol forced: {drawn[0]} is scored under the protocol generated only.")
    if variants and points.points is not None:
        raise ReadsegError("--variants: it asks with each kind of points by itself; leave --points out.")
    if out is not None:
        check_writable(out)
    # All of them before any model is loaded: what is not there, or broken, is known at once.
    opened = [_open(name, asked, count, first_seed) for name in names]
    group = processes()
    if model.device is None and model.device_map is None and group.num_processes > 1:
        model = replace(model, device=str(group.device))  # each process has its own
    segmenter = model.load(model.model)
    prompt, point_config = points.choose(segmenter)
    if group.is_main_process:
        print_notes(segmenter)
    settings = model.settings(segmenter, model.model)
    own_points = point_config or segmenter.model.config.points
    others = [variant for variant in VARIANTS if variant != segmenter.model.config.prompt] if variants else []
    results: list[Result] = []
    for name, (benchmark_of_name, baselines) in zip(names, opened, strict=True):
        systems = [
            model_system(segmenter, benchmark_of_name, settings=settings, prompt=variant, points=own_points)
            for variant in (prompt, *others)
        ]
        scored = run_systems(
            [*systems, *baselines],
            benchmark_of_name,
            folder=None if out is None else out / name.replace("/", "_"),
            rank=group.process_index,
            world=group.num_processes,
            limit=limit,
            progress=True,
        )
        results += scored.values()
    if group.is_main_process:
        report_results(results, out, asked.data)
    if group.num_processes > 1:
        group.wait_for_everyone()
        group.destroy_process_group()


def _open(name: str, asked: DataOptions, count: int, first_seed: int | None) -> tuple[Benchmark, Sequence[System]]:
    """A benchmark by its name, and the blind baselines that stand beside a model on it."""
    if name == UNSEEN:
        return unseen_benchmark(), ()
    if name == SCENES:
        scenes = SceneSet(scenes=count, first_seed=FIRST_TEST_SEED if first_seed is None else first_seed)
        return scene_benchmark(scenes), blind_systems(scenes)
    return open_benchmark(asked.data or Path(), name, asked.protocol), ()


def report_results(results: Sequence[Result], out: Path | None, data: Path | None) -> None:
    """Print the tables of results; write the report into a folder where there is one, and say where it is."""
    tables = score_tables(results)
    print_tables(tables, to_rich)
    if out is not None:
        write_report(out, results, tables, data=data)
        typer.echo(f"report: {', '.join(str(out / name) for name in FILES)}")
