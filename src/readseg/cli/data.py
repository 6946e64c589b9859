"""`readseg data`: makes data, says what is there, and shows it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from readseg.cli.errors import printable
from readseg.cli.output import print_dimmed
from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.data.registry import DATA_SETS, nothing_in, require_folder
from readseg.data.registry import check as check_folder
from readseg.data.types import DataSet, Entry
from readseg.errors import ReadsegError
from readseg.miniatures import write_miniatures
from readseg.scenes.export import write_scenes
from readseg.viz.overlays import contact_sheet, overlay

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
    # Whatever reads a pipe does not break lines.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    table = Table(title=escape(printable(str(folder))))  # a name may look like markup
    for name in ("data set", "split", "entries", "expressions", "broken"):
        table.add_column(name, no_wrap=name == "split")
    notes, broken = [], 0
    with Console(stderr=True).status("reading") as status:
        for result in check_folder(folder, thorough=thorough):
            name = f"{result.name} {result.split}"
            status.update(escape(printable(name)))
            expressions = "" if result.expressions is None else str(result.expressions)
            counts = (str(result.entries or "-"), expressions, str(result.broken or ""))
            table.add_row(result.name, escape(printable(result.split)), *counts)
            notes += [printable(f"{name}: {problem}") for problem in result.problems]
            broken += result.broken
    console.print(table)
    print_dimmed(console, notes)
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
    with atomic_write(out) as file:
        draw_samples(folder, name, split, count=count, seed=seed).save(file, format="PNG")
    typer.echo(f"look at {out}")


def draw_samples(
    root: Path, name: str | None = None, split: str | None = None, *, count: int | None = None, seed: int = 0
) -> Image.Image:
    """A contact sheet of samples below the folder of all data sets: 8 of a named one, else 2 of each that is there."""
    require_folder(root)
    if name is None and split is not None:
        raise ReadsegError(f"split {split!r} is of one data set: name that as well.")
    if name not in (None, *DATA_SETS):
        raise ReadsegError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}.")
    rng = np.random.default_rng(seed)
    samples: list[tuple[Image.Image, str]] = []
    for data_set in DATA_SETS.values() if name is None else [DATA_SETS[name]]:
        try:
            drawn = _samples(data_set, root, split, count or (2 if name is None else 8), rng)
        except ReadsegError as error:
            if name is not None:
                raise
            warnings.warn(f"{data_set.name} is not shown: {error}", stacklevel=2)
            continue
        samples += [(picture, caption if name else f"{data_set.name}: {caption}") for picture, caption in drawn]
    if not samples:
        problem = f"{root}: no data set that can be shown"
        if name is not None:
            missing = DATA_SETS[name].missing(root) or [nothing_in(DATA_SETS[name], root)]
            problem = f"{name} cannot be shown: {missing[0]}"
        raise ReadsegError(f"{problem}; readseg data check says more.")
    pictures, captions = zip(*samples, strict=True)
    return contact_sheet(pictures, captions)


def _samples(
    data_set: DataSet, root: Path, split: str | None, count: int, rng: np.random.Generator
) -> list[tuple[Image.Image, str]]:
    """Samples with their captions; none where nothing of the data set is there."""
    splits, damaged = data_set.splits(root)
    if not splits:
        if damaged:
            raise ReadsegError(damaged[0])
        return []
    if split is not None and split not in splits:
        raise ReadsegError(f"{data_set.name} has no split {split!r}; there are {', '.join(splits)}.")
    reader = data_set.open(root, split or splits[0])
    return [_draw(reader[int(index)], rng) for index in rng.permutation(len(reader))[:count]]


def _draw(entry: Entry, rng: np.random.Generator) -> tuple[Image.Image, str]:
    image = load_image(entry.image)
    if not entry.expressions:
        return image, " — ".join(entry.dialogue[0])
    expression = entry.expressions[int(rng.integers(len(entry.expressions)))]
    if expression.mask is None:
        instead = f", but {expression.instead}" if expression.instead else ""
        return overlay(image, np.zeros((0, image.height, image.width), bool)), f"not there: {expression.text}{instead}"
    mask = expression.mask() == 1
    return overlay(image, mask[None]), expression.text if mask.any() else f"{expression.text} (its mask is empty)"
