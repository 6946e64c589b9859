"""`readseg evaluate`: scores of a model on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from readseg.cli import options
from readseg.cli.segment import check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from readseg.evaluation.benchmarks import Benchmark
    from readseg.evaluation.predictions import Result
    from readseg.evaluation.run import System


def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCHMARK",
            help="scenes; unseen; reasonseg/val, refcoco/testA, ...; a data set for all its splits; all for all.",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The folder that all data sets lie in.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keeps predictions and report; an interrupted run goes on from there.")
    ] = None,
    protocol: Annotated[
        Literal["forced", "generated"] | None,
        typer.Option(help="Give the model its answer, or let it answer; by default as each set is published."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each benchmark, evenly spread.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes of the fixed set.")] = 600,
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the scenes; others than the fixed set's are for choosing between models."),
    ] = None,
    variants: Annotated[bool, typer.Option(help="Also with points only and with the SEG embedding only.")] = False,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    bits: options.Bits = None,
    device_map: options.DeviceMap = None,
    family: options.FamilyName = None,
    vision_tower: options.VisionTower = None,
    system: options.System = None,
    lora_alpha: options.LoraAlpha = None,
    points: options.PointsSwitch = None,
    num_points: options.NumPoints = None,
    t_pos: options.TPos = None,
    t_neg: options.TNeg = None,
    downsample: options.Downsample = None,
    alignment: options.AlignmentName = None,
    threshold: options.ThresholdRule = None,
) -> None:
    """Score a model on benchmarks: of the field, below --data, or drawn: scenes, and what it never saw.

    Several processes share the work: accelerate launch -m readseg evaluate ..., on CPUs torchrun.
    """
    from readseg.cli.jobs import settings_of
    from readseg.core.io import processes
    from readseg.errors import ReadsegError
    from readseg.evaluation.benchmarks import DRAWN, SCENES, resolve
    from readseg.evaluation.run import VARIANTS, model_system, run_systems

    names = resolve(data, benchmark)
    if first_seed is not None and SCENES not in names:
        raise ReadsegError("--first-seed: it is of the benchmark scenes only.")
    if protocol == "forced" and (drawn := [name for name in DRAWN if name in names]):
        raise ReadsegError(f"--protocol forced: {drawn[0]} is scored under the protocol generated only.")
    if variants and points is not None:
        raise ReadsegError("--variants: it asks with each kind of points by itself; leave --points out.")
    if out is not None:
        check_writable(out)
    group = processes()
    if device is None and device_map is None and group.num_processes > 1:
        device = str(group.device)  # each process has its own
    loading = {
        "device": device,
        "dtype": dtype,
        "bits": bits,
        "device_map": device_map,
        "family": family,
        "vision_tower": vision_tower,
        "system": system,
        "lora_alpha": lora_alpha,
    }
    segmenter = options.load_segmenter(model, **loading)
    prompt, point_config = options.point_options(
        segmenter,
        points,
        num_points=num_points,
        t_pos=t_pos,
        t_neg=t_neg,
        downsample=downsample,
        alignment=alignment,
        threshold=threshold,
    )
    if group.is_main_process:
        options.tell(segmenter)
    settings = settings_of(segmenter, model, loading)
    own_points = point_config or segmenter.model.config.points
    others = [variant for variant in VARIANTS if variant != segmenter.model.config.prompt] if variants else []
    results: list[Result] = []
    for name in names:
        there, blind = _opened(name, data, protocol, count, first_seed)
        systems = [
            model_system(segmenter, there, settings=settings, prompt=kind, points=own_points)
            for kind in (prompt, *others)
        ]
        found = run_systems(
            [*systems, *blind],
            there,
            folder=None if out is None else out / name.replace("/", "_"),
            rank=group.process_index,
            world=group.num_processes,
            limit=limit,
            progress=True,
        )
        results += found.values()
    if group.is_main_process:
        tell(results, out, data)
    if group.num_processes > 1:
        group.wait_for_everyone()
        group.destroy_process_group()


def _opened(
    name: str, data: Path | None, protocol: Literal["forced", "generated"] | None, count: int, first_seed: int | None
) -> tuple[Benchmark, list[System]]:
    """A benchmark by its name, and the blind baselines that stand beside a model on it."""
    from readseg.evaluation.benchmarks import DRAWN, FIRST_TEST_SEED, UNSEEN, open_benchmark

    if name not in DRAWN:
        return open_benchmark(data or Path(), name, protocol), []
    if name == UNSEEN:
        from readseg.evaluation.unseen import unseen_benchmark  # needs the extra "scenes"

        return unseen_benchmark(), []
    from readseg.evaluation.scenes import SceneSet, blind_systems, scene_benchmark  # likewise

    which = SceneSet(scenes=count, first_seed=FIRST_TEST_SEED if first_seed is None else first_seed)
    return scene_benchmark(which), list(blind_systems(which))


def tell(results: Sequence[Result], out: Path | None, data: Path | None) -> None:
    """Print the tables of results; write the report into a folder where there is one, and say where it is."""
    import sys

    from rich.console import Console

    from readseg.evaluation.report import sheets, to_table
    from readseg.evaluation.webpage import FILES, write_report

    console = Console(width=None if sys.stdout.isatty() else 120)
    tables = sheets(results)
    for sheet in tables:
        console.print(to_table(sheet))
        for note in sheet.notes:
            console.print(note, style="dim", highlight=False, markup=False)
    if out is not None:
        write_report(out, results, tables, data=data)
        typer.echo(f"report: {', '.join(str(out / name) for name in FILES)}")
