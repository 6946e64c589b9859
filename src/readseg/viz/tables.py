"""Named rows of scores with intervals, for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from readseg.core.stats import Estimate

Cell = Estimate | float | int | str | None


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells by the name of their column; what is absent, None or NaN shows as "-".

    Rows of one group stand together under its name; "" for none.
    """

    name: str
    cells: Mapping[str, Cell]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its notes, each a sentence without its stop."""

    title: str
    first: str
    """Heading of the rows' names."""
    columns: Mapping[str, str]
    """Heading of each column by its name, in order."""
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def to_rich(table: Table, *, padding: int = 1) -> RichTable:
    """For the terminal, without intervals."""
    shown = RichTable(title=Text(printable(table.title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, padding))
    shown.add_column(table.first)
    for heading in table.columns.values():
        shown.add_column(heading, justify="right")
    group = ""
    for row in table.rows:
        if row.group != group:
            group = row.group
            shown.add_row(Text(printable(group), style="bold"), *("" for _ in table.columns))
        name = f"  {row.name}" if group else row.name
        shown.add_row(Text(printable(name)), *(_short(row.cells.get(column)) for column in table.columns))
    return shown


def to_markdown(table: Table, *, bullet: str = "- ") -> str:
    """With intervals, and a list of the notes beneath."""
    lines = [
        *((f"**{escape_cell(table.title)}**", "") if table.title else ()),
        "| " + " | ".join([table.first, *map(escape_cell, table.columns.values())]) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    group = ""
    for row in table.rows:
        if row.group != group:
            group = row.group
            lines.append(f"| **{escape_cell(group)}** |" + " |" * len(table.columns))
        values = [row.cells.get(column) for column in table.columns]
        cells = [str(value) if isinstance(value, Estimate) else _short(value) for value in values]
        lines.append("| " + " | ".join(map(escape_cell, [row.name, *cells])) + " |")
    return "\n".join([*lines, "", *(f"{bullet}{escape_cell(note)}." for note in table.notes)]).rstrip() + "\n"


def to_csv(table: Table) -> str:
    """A column for each score, and beside it its interval and its count."""
    estimates = {c for c in table.columns if any(isinstance(row.cells.get(c), Estimate) for row in table.rows)}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["group", table.first]
    for column in table.columns:
        head += [column, f"{column}_low", f"{column}_high", f"{column}_count"] if column in estimates else [column]
    writer.writerow(head)
    for row in table.rows:
        line: list[Any] = [row.group, row.name]
        for column in table.columns:
            value = row.cells.get(column)
            parts = astuple(value) if isinstance(value, Estimate) else (value, None, None, None)
            parts = parts[: 4 if column in estimates else 1]
            line += [None if isinstance(part, float) and math.isnan(part) else part for part in parts]
        writer.writerow(line)
    return file.getvalue()


def to_json(table: Table) -> dict[str, Any]:
    """As JSON values: NaN, which JSON lacks, becomes null."""
    return {
        "title": table.title,
        "first": table.first,
        "columns": dict(table.columns),
        "rows": [
            {"name": row.name, "group": row.group, "cells": {c: plain(row.cells.get(c)) for c in table.columns}}
            for row in table.rows
        ],
        "notes": list(table.notes),
    }


def plain(value: Any) -> Any:
    """A value as JSON has it: an `Estimate` as an object, NaN and infinity as null, also within lists and objects."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def printable(text: str) -> str:
    """Text without what would steer a terminal: names of models and answers may come from anywhere."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _short(value: Cell) -> str:
    if isinstance(value, Estimate):
        value = value.value
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:z.3f}"
    return "-" if value is None else printable(str(value))


def escape_cell(text: str) -> str:
    """Text that does not break out of a Markdown table's cell."""
    return " ".join(printable(text).replace("|", "\\|").split())
