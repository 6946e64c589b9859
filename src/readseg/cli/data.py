"""`readseg data`: makes data, says what is there, and shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make, check and show data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make, check and show data sets."""


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
    from readseg.scenes.export import write_scenes

    asked, targets = write_scenes(out, count, seed, size=size, questions=questions, wording=wording)
    typer.echo(f"{count} scenes, {asked} questions, {targets} with a mask: {out}")
    typer.echo(f"look at {out / 'contact_sheet.png'}")


@app.command()
def mini(
    out: Annotated[Path, typer.Option(help="Folder to write to: new, or empty.")],
    images: Annotated[int, typer.Option(min=8, max=200, help="Pictures, shared by all data sets.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures; the same seed gives the same files.")] = 0,
) -> None:
    """Write miniatures of all data sets of the field, each in its true layout on disk, made from drawn scenes."""
    import sys

    from readseg.miniatures import write_miniatures

    counts = write_miniatures(out, seed=seed, images=images, progress=sys.stderr.isatty())
    typer.echo(f"{', '.join(f'{name} {count}' for name, count in counts.items())}: {out}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that all data sets lie in.")],
    thorough: Annotated[bool, typer.Option(help="Read every record, image and mask, not only the first.")] = False,
) -> None:
    """Say which data sets are there, what is missing and where to put it, and what is broken.

    Ends with 1 where something is broken; what is merely not there is no error.
    """
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from readseg.cli.errors import printable
    from readseg.data.registry import check as check_folder

    # Whatever reads a pipe does not break lines.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    table = Table(title=escape(printable(str(folder))))  # a name may look like markup
    for name in ("data set", "split", "entries", "expressions", "broken"):
        table.add_column(name, no_wrap=name == "split")
    notes, broken = [], 0
    with Console(stderr=True).status("reading") as status:
        for found in check_folder(folder, thorough=thorough):
            status.update(escape(printable(f"{found.name} {found.split}")))
            counted = "" if found.expressions is None else str(found.expressions)
            table.add_row(
                found.name, escape(printable(found.split)), str(found.entries or "-"), counted, str(found.broken or "")
            )
            notes += [f"{found.name} {found.split}: {problem}" for problem in found.problems]
            broken += found.broken
    console.print(table)
    for note in notes:
        console.print(printable(note), style="dim", highlight=False, markup=False)
    if broken:
        raise typer.Exit(1)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that all data sets lie in.")],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="As data check lists it; without one, all that are there.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the named one; by default the first that is there.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, max=100, help="Samples of a data set: 8 of a named one, else 2."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice.")] = 0,
) -> None:
    """Draw samples of data sets: pictures, one mask each, and what is said of it."""
    from readseg.cli.data_samples import draw_samples
    from readseg.core.io import atomic_write

    sheet = draw_samples(folder, name, split, count=count, seed=seed)
    with atomic_write(out) as place:
        sheet.save(place, format="PNG")
    typer.echo(f"look at {out}")
