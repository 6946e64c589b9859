"""Tables in all their forms: what is in them survives, and nothing breaks out of a cell."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from rich.console import Console

from readseg.core.stats import Estimate
from readseg.viz.tables import Row, Table, plain, printable, to_csv, to_json, to_markdown, to_rich

NOTHING = Estimate(math.nan, math.nan, math.nan, 0)
TABLE = Table(
    "Maps | of READ",
    "map",
    {"giou": "gIoU", "n": "masks", "text": "what"},
    [
        Row("before", {"giou": Estimate(0.51234, 0.4, 0.6, 12), "n": "12"}),
        Row("last", {"giou": NOTHING, "n": 0.25, "text": "a | b\nc"}, "model A"),
        Row("first", {"giou": None, "n": math.nan, "text": "x"}, "model A"),
        Row("[red]no colour[/red]", {}, "model \x1b[31mB"),
    ],
    ["first note", "a | note"],
)


def test_markdown() -> None:
    assert to_markdown(TABLE).splitlines() == [
        r"**Maps \| of READ**",
        "",
        "| map | gIoU | masks | what |",
        "|---|---:|---:|---:|",
        "| before | 0.512 [0.400, 0.600] | 12 | - |",
        "| **model A** | | | |",
        r"| last | - | 0.250 | a \| b c |",
        "| first | - | - | x |",
        "| **model ?[31mB** | | | |",
        "| [red]no colour[/red] | - | - | - |",
        "",
        "- first note.",
        r"- a \| note.",
    ]
    for line in to_markdown(TABLE).splitlines()[2:10]:
        assert line.replace(r"\|", "").count("|") == 5


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert [row["map"] for row in rows] == [row.name for row in TABLE.rows]
    assert [row["group"] for row in rows] == ["", "model A", "model A", "model \x1b[31mB"]
    first = rows[0]
    assert float(first["giou"]) == 0.51234 and float(first["giou_low"]) == 0.4 and float(first["giou_high"]) == 0.6
    assert first["giou_count"] == "12" and first["n"] == "12" and first["text"] == ""
    assert rows[1]["giou"] == rows[1]["giou_low"] == "" and rows[1]["giou_count"] == "0"
    assert rows[1]["text"] == "a | b\nc" and rows[1]["n"] == "0.25"
    assert rows[2]["giou"] == rows[2]["giou_count"] == rows[2]["n"] == ""
    assert "n_low" not in first


def test_json() -> None:
    values = json.loads(json.dumps(to_json(TABLE), allow_nan=False))
    assert values["columns"] == {"giou": "gIoU", "n": "masks", "text": "what"}
    assert values["notes"] == ["first note", "a | note"]
    assert values["rows"][0] == {
        "name": "before",
        "group": "",
        "cells": {"giou": {"value": 0.51234, "low": 0.4, "high": 0.6, "count": 12}, "n": "12", "text": None},
    }
    assert values["rows"][1]["cells"]["giou"] == {"value": None, "low": None, "high": None, "count": 0}
    assert values["rows"][2]["cells"]["n"] is None


def test_terminal() -> None:
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
    console.print(to_rich(TABLE))
    shown = console.export_text()
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines[0] == "Maps | of READ"
    assert lines[3].split() == ["before", "0.512", "12", "-"]
    assert "model A" in lines and "model ?[31mB" in lines, "groups stand alone, and steer no terminal"
    assert "[red]no colour[/red]" in shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        ({"a": (1, math.nan), 3: [True, "x"]}, {"a": [1, None], "3": [True, "x"]}),
        (NOTHING, {"value": None, "low": None, "high": None, "count": 0}),
        (0.5, 0.5),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_printable() -> None:
    assert printable("a\x1b[0m\tb\u202e é 杯") == "a?[0m b? é 杯"


def test_a_zero_has_no_sign() -> None:
    table = Table("t", "row", {"a": "a", "b": "b"}, [Row("r", {"a": -0.0001, "b": Estimate(-0.0, -0.0004, 0.0004, 5)})])
    assert "| r | 0.000 | 0.000 [0.000, 0.000] |" in to_markdown(table)
