"""`readseg ablate`: what points are worth, as tables with intervals, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from PIL import Image

from readseg.analysis.studies.ablation import (
    NUMBERS,
    PROMPTED,
    RATIOS,
    Ablated,
    Ablation,
    Variant,
    alignment_variants,
    cells,
    changed_points,
    point_variants,
    prompt_variants,
)
from readseg.analysis.studies.ablation import ablate as run_ablation
from readseg.analysis.studies.ablation_tables import prompted_table, trained_table
from readseg.analysis.study import StudyContext
from readseg.cli.benchmark import study_context
from readseg.cli.options import POINTS, BenchmarkOptions, GridOptions, ModelsOptions, OwnPoints, grouped
from readseg.cli.output import write_results
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.evaluation.report import summarise
from readseg.model.config import ReadConfig
from readseg.viz.charts import Bar, Curve, bar_chart, line_chart
from readseg.viz.tables import Table


@grouped
def ablate(
    what: Annotated[
        Literal["points", "prompt", "alignment"],
        typer.Argument(
            metavar="points|prompt|alignment",
            help="Thresholds and numbers of points (Table 8); SEG and points, alone or together; where the grid lies.",
            show_default=False,
        ),
    ],
    asked: BenchmarkOptions,
    models: ModelsOptions,
    grid: GridOptions,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="scenes, or a split such as reasonseg/val or refcoco/testA.")
    ] = "scenes",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for tables, pictures and predictions, by default runs/ablation/MODEL/BENCHMARK-WHAT; an "
            "interrupted run goes on from there.",
            show_default=False,
        ),
    ] = None,
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
    ratios = [_ratio(text) for text in ratio or ()]
    _check(what, benchmark, ratios, num_points or (), grid.alignment, grid.threshold)
    context = study_context("ablation", what, benchmark, asked, models, out, OwnPoints())
    found = [
        run_ablation(
            model.segmenter,
            context.benchmark,
            _variants(what, model.segmenter.model.config, ratios, num_points or (), asdict(grid)),
            name=model.name,
            settings=model.settings,
            folder=context.folder_of(model) / "predictions",
            limit=asked.count,
            progress=True,
        )
        for model in context.models  # one after the other: large ones do not fit beside each other
    ]
    _finish(what, found, context)


def _check(
    what: Ablation,
    benchmark: str,
    ratios: Sequence[tuple[float, float]],
    numbers: Sequence[int],
    alignment: str | None,
    threshold: str | None,
) -> None:
    """What does not fit together, before anything is loaded."""
    if Path(benchmark).is_file():
        raise ReadsegError(f"{benchmark} is a file: expected a benchmark, such as scenes or reasonseg/val.")
    if what == "points" and threshold is not None:
        raise ReadsegError("--threshold: ablate points goes through the thresholds of --ratio; leave it out.")
    if what == "alignment" and alignment is not None:
        raise ReadsegError("--alignment: ablate alignment goes through both; leave it out.")
    if threshold == "std" and ratios:
        raise ReadsegError("--ratio: the rule std takes its thresholds from the map; leave it out.")
    for option, values in (("--ratio", ratios), ("--num-points", numbers)):
        if what != "points" and len(values) > 1:
            raise ReadsegError(
                f"{option}: ablate {what} takes one, got {len(values)}; ablate points goes through many."
            )


def _ratio(text: str) -> tuple[float, float]:
    """(0.8, 0.2) of "0.8/0.2".

    Raises:
        ReadsegError: it is no pair, or no 0 <= t_neg < t_pos <= 1.
    """
    parts = text.split("/")
    try:
        t_pos, t_neg = (float(part) for part in parts)
    except ValueError:
        raise ReadsegError(f"--ratio {text}: expected two numbers, T_POS/T_NEG, such as 0.8/0.2.") from None
    if not 0 <= t_neg < t_pos <= 1:
        raise ReadsegError(f"--ratio {text}: expected 0 <= T_NEG < T_POS <= 1, such as 0.8/0.2.")
    return t_pos, t_neg


def _variants(
    what: Ablation,
    config: ReadConfig,
    ratios: Sequence[tuple[float, float]],
    numbers: Sequence[int],
    changes: dict[str, Any],
) -> tuple[Variant, ...]:
    """What a model is asked with; the options of points say what all rows share."""
    if what == "points":
        points = changed_points(config, **changes)
        return point_variants(config, points, ratios=ratios or RATIOS, numbers=numbers or NUMBERS)
    if ratios:
        changes = {**changes, "t_pos": ratios[0][0], "t_neg": ratios[0][1], "threshold": "range"}
    points = changed_points(config, **changes, num_points=numbers[0] if numbers else None)
    return prompt_variants(config, points) if what == "prompt" else alignment_variants(config, points)


def _finish(what: Ablation, found: Sequence[Ablated], context: StudyContext) -> None:
    """Tables on the terminal and as files, and their pictures."""
    tables = [prompted_table(what, ablated) for ablated in found]
    shown = [_picture(what, *pair) for pair in zip(found, tables, strict=True)]
    if len(found) > 1:
        tables.append(trained_table(found))
        shown.append(_bars(tables[-1], tables[-1].title))
    # A picture has the number of its table.
    pictures = {"" if len(shown) == 1 else str(place): picture for place, picture in enumerate(shown, start=1)}
    write_results(context.out, what, tables, pictures)


def _picture(what: Ablation, ablated: Ablated, table: Table) -> Image.Image:
    """Table 8 as a curve for each ratio over |P|; else a bar for each row."""
    title = f"{ablated.model} on {table.title.partition(';')[0]}"
    numbers = {variant.points.num_points for variant in ablated.variants if variant.key != "own"}
    return _curves(ablated, title) if what == "points" and len(numbers) > 1 else _bars(table, title)


def _curves(ablated: Ablated, title: str) -> Image.Image:

    curves = []
    grid = [variant for variant in ablated.variants if variant.key != "own"]
    for ratio in dict.fromkeys((v.points.t_pos, v.points.t_neg) for v in grid):
        row = sorted((v for v in grid if (v.points.t_pos, v.points.t_neg) == ratio), key=lambda v: v.points.num_points)
        scores = [summarise(ablated.results[v.key].outcomes)["giou"] for v in row]
        curves.append(
            Curve(
                f"t_pos/t_neg = {ratio[0]:g}/{ratio[1]:g}",
                [v.points.num_points for v in row],
                [score.value for score in scores],
                [score.low for score in scores],
                [score.high for score in scores],
            )
        )
    own = next(variant for variant in ablated.variants if variant.own)
    score = summarise(ablated.own.outcomes)["giou"]
    name, place = ("its own: [SEG] only", 0) if own.prompt == "seg" else ("its own setting", own.points.num_points)
    # On a curve it has that curve's interval.
    low, high = ([score.low], [score.high]) if own.key == "own" else (None, None)
    curves.append(Curve(name, [place], [score.value], low, high, mark=True))
    note = "one trained model, prompted in different ways; bands and whiskers: 95% intervals over images"
    there = min(cells(ablated.config, v.points) for v in grid)
    if any(v.points.num_points > there for v in grid):
        note += f"; beyond {there} points, all cells that there are, |P| changes nothing"
    return line_chart(curves, title=title, x_label="|P|, the most points of a [SEG]", y_label="gIoU", note=note)


def _bars(table: Table, title: str) -> Image.Image:

    bars = []
    for column in ("giou", "ciou"):
        for row in table.rows:
            score = row.cells.get(column)
            if not isinstance(score, Estimate):  # what is impossible is shown as such
                score = Estimate(math.nan, math.nan, math.nan, 0)
            bars.append(Bar(row.name, score.value, score.low, score.high, group=table.columns[column]))
    prompted = table.rows[0].cells["kind"] == PROMPTED
    kind = "one trained model, prompted in different ways" if prompted else "models trained in different ways"
    note = f"{kind}; whiskers: 95% intervals over images"
    return bar_chart(bars, title=title, x_label="score over true premises", note=note)
