"""`readseg evaluate`: scores of a model on a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.cli import options
from readseg.cli.segment import check_writable

app = typer.Typer(help="Score a model on a benchmark.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Score a model on a benchmark."""


@app.command()
def scenes(
    out: Annotated[
        Path | None, typer.Option(help="Keeps predictions and report; an interrupted run goes on from there.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes of the fixed set.")] = 600,
    variants: Annotated[bool, typer.Option(help="Also with points only and with the SEG embedding only.")] = False,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Score generated answers on the fixed test set of drawn scenes, beside blind baselines."""
    import json

    from rich.console import Console

    from readseg.evaluation import report
    from readseg.evaluation.benchmarks import PROMPTS, SceneSet, evaluate_scenes
    from readseg.files import whole
    from readseg.training.cache import digest

    if out is not None:
        check_writable(out)
    segmenter = options.load_segmenter(model, device=device, dtype=dtype)
    options.tell(segmenter)
    # The weights too: a model that was trained on must not go on with the predictions of its former self.
    settings = {"model": model or "embedded", "weights": digest([segmenter.model])}
    systems = evaluate_scenes(
        segmenter,
        SceneSet(scenes=count),
        prompts=PROMPTS if variants else PROMPTS[:1],
        folder=out,
        settings=settings,
        progress=True,
    )
    beside = report.compare(systems)
    by_kind = report.breakdown(systems["both"])
    console = Console()
    console.print(report.to_table(f"{settings['model']}: scenes, generated answers", by_kind))
    console.print(report.to_table("points and SEG (both), and what it is compared with", beside))
    if out is not None:
        content = json.dumps(report.to_json(systems, {**settings, "scenes": count}), indent=1)
        tables = [
            report.side_by_side(systems),
            *(report.to_markdown(rows, intervals=True) for rows in (beside, by_kind)),
        ]
        for name, text in (("report.json", content), ("report.md", "\n".join(tables))):
            with whole(out / name) as place:
                place.write_text(text, encoding="utf-8")
        typer.echo(f"report: {out / 'report.json'}, {out / 'report.md'}")
