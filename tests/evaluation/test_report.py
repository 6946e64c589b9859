"""Groups, tables and JSON of outcomes whose scores are known by hand."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from readseg.evaluation import report
from readseg.evaluation.benchmarks import Outcome


def outcome(
    key: str,
    kind: str,
    present: bool | None,
    said: bool,
    pairs: list[tuple[int, int]],
    *tags: str,
    right: bool = False,
    section: str = "scenes",
) -> Outcome:
    inter, union = tuple(i for i, _ in pairs), tuple(u for _, u in pairs)
    return Outcome(key, key.split("/")[0], section, kind, frozenset(tags), present, said, inter, union, right)


OUTCOMES = [
    outcome("a/0", "category", True, True, [(80, 100)], "distractor"),
    outcome("a/1", "category", True, False, [(0, 50)]),
    outcome("a/2", "category", False, False, [(0, 0)]),
    outcome("b/0", "colour", False, True, [(0, 30)], "distractor"),
    outcome("b/1", "two", True, True, [(60, 100), (100, 100)]),
    outcome("b/2", "count", None, False, [], right=True),
    outcome("b/3", "count", None, False, []),
]


def test_scores_of_all() -> None:
    row = report.summarise("all", OUTCOMES)
    assert row.questions == 7
    assert row.giou.value == pytest.approx((0.8 + 0 + 0.6 + 1) / 4, abs=1e-6)
    assert row.giou.count == 4
    assert row.ciou.value == 240 / 350
    assert row.ciou_all.value == 240 / 380
    assert [row.precision_50.value, row.precision_70.value, row.precision_90.value] == [0.75, 0.5, 0.25]
    assert row.answered.value == pytest.approx(2 / 3)
    assert row.refused.value == 0.5
    assert row.see.value == pytest.approx(3 / 5)
    assert row.see_balanced.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert row.words.value == 0.5


def test_groups_without_a_kind_of_question_have_no_score_for_it() -> None:
    row = report.summarise("count", OUTCOMES[5:])
    assert math.isnan(row.giou.value) and math.isnan(row.see_balanced.value)
    assert row.words.value == 0.5
    assert report.summarise("none", []).questions == 0


def test_breakdown_by_kind_and_section() -> None:
    others = [
        outcome("c/0", "category", True, True, [(1, 4)], section="phrasings"),
        outcome("d/0", "reasoning", True, True, [(1, 2)], "description", section="descriptions"),
        outcome("e/0", "category", True, True, [(1, 1)], "pair", section="pairs"),
        outcome("e/1", "category", True, True, [(0, 1)], section="pairs"),
    ]
    rows = {row.name.strip(): row for row in report.breakdown([*OUTCOMES, *others])}
    kinds = ("category", "colour", "count", "two")
    assert list(rows) == ["new scenes", *kinds, "with a distractor", "new phrasings", "new descriptions", "new pairs"]
    assert rows["new scenes"].questions == 7
    assert rows["category"].questions == 3
    assert rows["with a distractor"].questions == 2
    for name, expected in (("new phrasings", 0.25), ("new descriptions", 0.5), ("new pairs", 1.0)):
        assert rows[name].giou.value == pytest.approx(expected, abs=1e-4)


def test_a_kind_called_all_is_a_row_of_its_own() -> None:
    rows = report.breakdown([*OUTCOMES, outcome("c/0", "all", True, True, [(1, 2)])])
    assert [row.questions for row in rows if row.name.strip() in ("new scenes", "all")] == [8, 1]


def test_json_is_json() -> None:
    content = report.to_json({"both": OUTCOMES}, {"model": "tiny"})
    read = json.loads(json.dumps(content, allow_nan=False))
    assert read["settings"] == {"model": "tiny"}
    first = read["systems"]["both"][0]
    assert first["name"] == "new scenes" and first["ciou"]["value"] == 240 / 350
    assert first["ciou"]["low"] <= 240 / 350 <= first["ciou"]["high"]
    colour = next(row for row in read["systems"]["both"] if row["name"].strip() == "colour")
    assert colour["giou"]["value"] is None and colour["refused"]["value"] == 0


def test_tables_show_every_row_and_only_used_columns() -> None:
    rows = report.breakdown(OUTCOMES)
    console = Console(width=80, record=True)
    console.print(report.to_table("scenes", rows))
    shown = console.export_text()
    markdown = report.to_markdown(rows)
    assert "P@0.5" in markdown and "…" not in shown
    for text in (shown, markdown):
        for row in rows:
            assert row.name in text
        assert "gIoU" in text and "0.686" in text
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
    words_only = report.to_markdown([report.summarise("count", OUTCOMES[5:])])
    assert "words right" in words_only and "gIoU" not in words_only
    assert "0.686 [" in report.to_markdown(rows, intervals=True)


def test_one_score_of_all_systems_by_group() -> None:
    better = [outcome(o.key, o.kind, o.present, o.said, [(u, u) for u in o.unions], *o.tags) for o in OUTCOMES]
    lines = report.side_by_side({"mine": OUTCOMES, "best": better}).splitlines()
    assert lines[0] == "| gIoU of questions about | n | mine | best |"
    cells = {row[1].strip(): [cell.strip() for cell in row[2:5]] for row in (line.split("|") for line in lines[2:])}
    assert cells["two"] == ["2", "0.800", "1.000"]
    assert cells["category"] == ["2", "0.400", "1.000"]
    assert "count" not in cells


def test_systems_side_by_side() -> None:
    rows = report.compare({"both": OUTCOMES, "seg": OUTCOMES[:2]})
    assert [(row.name, row.questions) for row in rows] == [("both", 7), ("seg", 2)]
