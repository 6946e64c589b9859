"""`readseg score`: scores of predictions on disk, without model or data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.cli.evaluate import report_results
from readseg.cli.output import check_writable
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import read_result


def score(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            metavar="PREDICTIONS", help="Files of predictions, or folders that hold some.", show_default=False
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="The folder of all data, for pictures; by default where it was.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that gets report.json, report.md and report.html.")] = None,
) -> None:
    """Score predictions that readseg evaluate has written; several together stand in the same tables."""
    if out is not None:
        check_writable(out)
    paths = []
    for place in predictions:
        found = sorted(place.rglob("predictions.jsonl")) if place.is_dir() else [place]
        if not found:
            raise ReadsegError(
                f"{place}: no predictions.jsonl is there; readseg evaluate --out writes one when it is done"
            )
        paths += found
    results = [read_result(path) for path in {path.resolve(): path for path in paths}.values()]
    report_results(results, out, data)
