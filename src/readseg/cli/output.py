"""What commands print and write: tables with their notes, answers in words, files in one step."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

import readseg
from readseg.cli.errors import printable
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.viz.tables import Table, to_csv, to_json, to_markdown, to_rich


def check_writable(folder: Path) -> None:
    """Fail now rather than after the work; leaves nothing behind, so that a failure makes no empty folder."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadsegError(f"cannot write to {folder}: {reason}; choose another folder with --out") from error


def stdout_console() -> Console:
    """120 columns wide where the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120)


def print_tables(tables: Sequence[Table], render: Callable[[Table], RichTable] = to_rich) -> None:
    """Tables with their notes."""
    console = stdout_console()
    for table in tables:
        console.print(render(table))
        print_dimmed(console, table.notes)


def print_dimmed(console: Console, notes: Sequence[str]) -> None:
    """Each on a line of its own, as it stands."""
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)


def write_results(folder: Path, name: str, tables: Sequence[Table], pictures: Mapping[str, Image.Image]) -> None:
    """Print tables; write NAME.md, NAME.json, one CSV for each table, and pictures as NAME-KEY.png (NAME.png for "").

    Every file is written in one step, and named on the terminal.
    """
    print_tables(tables)
    texts = {
        f"{name}.md": "\n".join(to_markdown(table) for table in tables),
        f"{name}.json": json.dumps({"tables": [to_json(table) for table in tables]}, indent=1, allow_nan=False) + "\n",
    }
    for number, table in enumerate(tables, start=1):
        texts[f"{name}.csv" if len(tables) == 1 else f"{name}-{number}.csv"] = to_csv(table)
    for file, text in texts.items():
        with atomic_write(folder / file) as part:
            part.write_text(text, encoding="utf-8", errors="replace")
    files = list(texts)
    for key, picture in pictures.items():
        files.append(f"{name}-{key}.png" if key else f"{name}.png")
        with atomic_write(folder / files[-1]) as part:
            picture.save(part, format="PNG")
    typer.echo(f"written: {', '.join(printable(str(folder / file)) for file in files)}")


def print_answer(result: readseg.Segmentation, folder: Path | None, *, question: bool = True) -> None:
    """An answer for people: question (unless they just typed it), words, masks, and where the pictures are."""
    text = Text()
    if question:
        text.append(f"{printable(result.query.strip()[:200])}\n", style="bold")
    text.append(f"  {printable(result.answer) or '(no words)'}\n", style="green" if result.present else "yellow")
    if not result.finished:
        text.append("  the answer was cut off at its longest length\n", style="yellow")
    if result.present is False:
        text.append("  not found: the model gave no mask\n", style="yellow")
    for index, mask in enumerate(result.masks):
        count = len(result.point_labels[index])
        phrase = f" ({printable(result.phrases[index])})" if result.phrases[index] else ""
        text.append(f"  mask {index + 1}{phrase}: {mask.mean():.1%} of the image, {count} points\n", style="dim")
        if result.said is not None and not result.said[index]:
            text.append("    given: the model by itself would not have segmented here\n", style="yellow")
    for phrase in result.rejected:
        text.append(f"  not found: {printable(phrase)}\n", style="yellow")
    if folder is not None:
        text.append(f"  pictures and JSON: {folder}\n", style="dim")
    Console(highlight=False, soft_wrap=True).print(text, end="")
