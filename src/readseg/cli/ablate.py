"""`readseg ablate`: what points are worth, as tables with intervals, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from readseg.analysis.studies.ablation import Ablation, ablation_output, variants
from readseg.analysis.studies.ablation import ablate as run_ablation
from readseg.cli.benchmark import BenchmarkName, study_context
from readseg.cli.options import POINTS, BenchmarkOptions, GridOptions, ModelsOptions, grouped
from readseg.cli.output import write_results
from readseg.errors import ReadsegError


@grouped
def ablate(
    what: Annotated[
        Ablation,
        typer.Argument(
            metavar="points|prompt|alignment",
            help="Thresholds and numbers of points (Table 8); SEG and points, alone or together; where the grid lies.",
            show_default=False,
        ),
    ],
    asked: BenchmarkOptions,
    models: ModelsOptions,
    grid: GridOptions,
    benchmark: BenchmarkName = "scenes",
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            help="T_POS/T_NEG, such as 0.8/0.2; of points several, in place of Table 8's.",
            rich_help_panel=POINTS,
        ),
    ] = None,
    num_points: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="The most points for a SEG; of points several, in place of Table 8's.",
            rich_help_panel=POINTS,
        ),
    ] = None,
) -> None:
    """Compare ways to prompt a trained model, and, with several --model, models trained in different ways.

    The two are tables of their own. An image is encoded and its questions are answered once for all rows of a model.
    """
    ratios, numbers = [_ratio(text) for text in ratio or ()], num_points or ()
    if what == "points" and grid.threshold is not None:
        raise ReadsegError("--threshold: ablate points goes through the thresholds of --ratio; leave it out.")
    if what == "alignment" and grid.alignment is not None:
        raise ReadsegError("--alignment: ablate alignment goes through both; leave it out.")
    if grid.threshold == "std" and ratios:
        raise ReadsegError("--ratio: the rule std takes its thresholds from the map; leave it out.")
    for option, count in (("--ratio", len(ratios)), ("--num-points", len(numbers))):
        if what != "points" and count > 1:
            raise ReadsegError(f"{option}: ablate {what} takes one, got {count}; ablate points goes through many.")
    context = study_context("ablation", what, benchmark, asked, models)
    ablations = [
        run_ablation(
            model.segmenter,
            context.benchmark,
            variants(what, model.segmenter.model.config, ratios=ratios, numbers=numbers, **asdict(grid)),
            name=model.name,
            settings=model.settings,
            folder=context.folder_of(model) / "predictions",
            limit=asked.count,
            progress=True,
        )
        for model in context.models  # one after the other: large ones do not fit beside each other
    ]
    output = ablation_output(what, ablations)
    write_results(context.out, what, output.tables, output.pictures)


def _ratio(text: str) -> tuple[float, float]:
    """(0.8, 0.2) of "0.8/0.2"."""
    try:
        t_pos, t_neg = (float(part) for part in text.split("/"))
    except ValueError:
        raise ReadsegError(f"--ratio {text}: expected two numbers, T_POS/T_NEG, such as 0.8/0.2.") from None
    if not 0 <= t_neg < t_pos <= 1:
        raise ReadsegError(f"--ratio {text}: expected 0 <= T_NEG < T_POS <= 1, such as 0.8/0.2.")
    return t_pos, t_neg
