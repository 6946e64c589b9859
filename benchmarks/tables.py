"""Makes the tables of a document again: runs the commands that stand above them and takes over what they wrote.

    python benchmarks/tables.py docs/findings.md

A document's commands are indented lines that begin with "readseg" or "python". Below them a table is replaced where a
command wrote one with all of its columns, whatever other columns that has; the rest is left as it is, and told. So are
pictures, by the name of their file. A number within a sentence is for the writer: the old table and the new one are
printed where they differ.

What commands write to runs/ goes to runs/tables/DIGEST/, of the embedded model's weights: a second call goes on where
the first stopped, and other weights begin anew.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from readseg import ReadsegError
from readseg.checkpoints.checkpoint import EMBEDDED
from readseg.cli.errors import run
from readseg.core.io import atomic_write

COMMAND = re.compile(r"    (?:readseg|python) ")
PICTURE = re.compile(r"!\[[^]]*]\(([^)]+)\)")
WITH_OUT = {"analyse", "study", "ablate", "evaluate", "score"}
"""Commands of readseg that write tables where --out says."""


@dataclass
class Part:
    """Commands that stand together, and the lines below them, up to the next.

    commands: without the comments behind them.
    tables: (first line, line behind the last) of each table, counted from 0.
    pictures: paths as the document names them.
    """

    commands: list[str]
    tables: list[tuple[int, int]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def parts_of(lines: Sequence[str]) -> list[Part]:
    """The parts of a document, in order; what stands before the first command belongs to none."""
    found: list[Part] = []
    for number, line in enumerate(lines):
        if COMMAND.match(line):
            if not (found and number and COMMAND.match(lines[number - 1])):
                found.append(Part([]))
            found[-1].commands.append(line.split(" #")[0].strip())
        elif found and line.startswith("|"):
            tables = found[-1].tables
            if tables and tables[-1][1] == number:
                tables[-1] = tables[-1][0], number + 1
            else:
                tables.append((number, number + 1))
        elif found:
            found[-1].pictures += PICTURE.findall(line)
    return [part for part in found if part.tables or part.pictures]


def cells(line: str) -> list[str]:
    """The cells of a table's line."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))]


def take_over(old: Sequence[str], new: Sequence[str]) -> list[str] | None:
    """A table of the columns of an old one with the rows of a new one; None where the new one lacks a column."""
    columns, there = cells(old[0]), cells(new[0])
    if not set(columns) <= set(there):
        return None
    places = [there.index(column) for column in columns]
    rows = [cells(line) for line in new[2:]]
    return [*old[:2], *("|" + "|".join(f" {row[k]} " if row[k] else " " for k in places) + "|" for row in rows)]


def written(folder: Path) -> list[list[str]]:
    """All tables of the Markdown files below a folder."""
    found: list[list[str]] = []
    for path in sorted(folder.rglob("*.md")):
        before = False
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                if not before:
                    found.append([])
                found[-1].append(line)
            before = line.startswith("|")
    return found


def words_of(command: str, folder: Path) -> tuple[list[str], Path | None]:
    """What is run for a command, and the folder that it writes to, if it is known."""
    words = [re.sub(r"^runs/", f"{folder.as_posix()}/", word) for word in shlex.split(command)]
    if words[0] == "readseg":
        if words[1] in WITH_OUT and "--out" not in words:
            words += ["--out", str(folder / hashlib.sha256(command.encode()).hexdigest()[:12])]
        words = [sys.executable, "-m", *words]
    else:
        words = [sys.executable, *words[1:]]
    return words, Path(words[words.index("--out") + 1]) if "--out" in words else None


def run_all(commands: Sequence[str], folder: Path, console: Console) -> list[Path]:
    """Runs what was not run before; the folders that the commands write to.

    Raises:
        ReadsegError: a command ended with an error.
    """
    done = folder / "done"
    outs: list[Path] = []
    for command in commands:
        words, out = words_of(command, folder)
        console.print(f"$ {command}")
        if not done.exists() or command not in done.read_text(encoding="utf-8").splitlines():
            if code := subprocess.run(words, check=False).returncode:
                raise ReadsegError(f"{command!r} ended with {code}; nothing was changed")
            with done.open("a", encoding="utf-8") as stream:
                stream.write(command + "\n")
        outs += [out] if out else []
    return outs


def main(
    document: Annotated[Path, typer.Argument(help="A Markdown file, which is changed.")],
    folder: Annotated[Path, typer.Option(help="Of what commands write.")] = Path("runs/tables"),
) -> None:
    """Run the commands of a document, and take their tables and pictures over."""
    if not document.is_file():
        raise ReadsegError(f"{document}: no such file")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    folder /= hashlib.sha256((EMBEDDED / "model.safetensors").read_bytes()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    lines = document.read_text(encoding="utf-8").splitlines()
    changes: list[tuple[int, int, list[str]]] = []
    copies: list[tuple[Path, Path]] = []
    for part in parts_of(lines):
        outs = run_all(part.commands, folder, console)
        tables = [table for out in outs for table in written(out)]
        for first, last in part.tables:
            fitting = [(table, made) for table in tables if (made := take_over(lines[first:last], table))]
            if not fitting:
                console.print(f"{document}:{first + 1}: no command wrote such a table, it is left as it is")
                continue
            tables.remove(fitting[0][0])
            changes.append((first, last, fitting[0][1]))
        for picture in part.pictures:
            place = document.parent / picture
            if made := [path for out in outs for path in sorted(out.rglob(place.name))]:
                copies.append((made[0], place))
            else:
                console.print(f"{document}: no command wrote {place.name}, it is left as it is")
    for first, last, table in sorted(changes, reverse=True):
        if lines[first:last] != table:
            console.print(*(f"- {line}" for line in lines[first:last]), *(f"+ {line}" for line in table), sep="\n")
            lines[first:last] = table
    for source, place in copies:
        with atomic_write(place) as part_:
            shutil.copyfile(source, part_)
    with atomic_write(document) as place:
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
