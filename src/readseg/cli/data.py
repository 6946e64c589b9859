"""`readseg data`: makes data to look at, to train on and to test with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make data sets."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it does not exist.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene; the others follow.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Longer side of the pictures, in pixels.")] = 320,
    questions: Annotated[int, typer.Option(min=1, max=50, help="Questions about each scene.")] = 6,
    wording: Annotated[str, typer.Option(help="Phrasings and descriptions: train or held_out.")] = "train",
) -> None:
    """Write drawn scenes: pictures, ReasonSeg-style JSON, exact masks and a contact sheet."""
    from readseg.data.scenes.export import write_scenes

    written = write_scenes(out, count, seed, size=size, questions=questions, wording=wording)
    typer.echo(f"{written.scenes} scenes, {written.questions} questions, {written.targets} with a mask: {out}")
    typer.echo(f"look at {written.contact_sheet}")
