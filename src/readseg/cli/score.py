"""`readseg score`: scores of predictions on disk, without model or data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.cli.evaluate import report_results
from readseg.cli.output import check_writable
from readseg.evaluation.predictions import prediction_files, read_result


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
    paths = [path for place in predictions for path in prediction_files(place)]
    results = [read_result(path) for path in {path.resolve(): path for path in paths}.values()]
    report_results(results, out, data)
