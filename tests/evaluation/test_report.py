"""Groups, tables and JSON of outcomes whose scores are known by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from rich.console import Console

import rule_model
from readseg.core.stats import estimate
from readseg.errors import ReadsegError
from readseg.evaluation import report
from readseg.evaluation.predictions import Outcome, Result
from readseg.viz.tables import to_markdown


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
    told = {"section": section, "kind": kind, "tags": frozenset(tags), "right_words": right}
    return rule_model.outcome(key, present, said, pairs, **told)


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
    row = report.summarise(OUTCOMES)
    assert row["giou"].value == pytest.approx((0.8 + 0 + 0.6 + 1) / 4, abs=1e-6)
    assert row["giou"].count == 4
    assert row["ciou"].value == 240 / 350
    assert row["ciou_all"].value == 240 / 380
    assert row["giou_all"].value == pytest.approx((0.8 + 0 + 1 + 0 + 0.6 + 1) / 6, abs=1e-6)
    assert [row["precision_50"].value, row["precision_70"].value, row["precision_90"].value] == [0.75, 0.5, 0.25]
    assert row["answered"].value == pytest.approx(2 / 3)
    assert row["refused"].value == 0.5
    assert row["see"].value == pytest.approx(3 / 5)
    assert row["see_balanced"].value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert row["words"].value == 0.5


def test_groups_without_a_kind_of_question_have_no_score_for_it() -> None:
    row = report.summarise(OUTCOMES[5:])
    assert math.isnan(row["giou"].value) and math.isnan(row["see_balanced"].value)
    assert row["words"].value == 0.5
    assert all(math.isnan(score.value) and score.count == 0 for score in report.summarise([]).values())


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
    assert rows["new scenes"].cells["questions"] == 7
    assert rows["category"].cells["questions"] == 3
    assert rows["with a distractor"].cells["questions"] == 2
    for name, expected in (("new phrasings", 0.25), ("new descriptions", 0.5), ("new pairs", 1.0)):
        assert rows[name].cells["giou"].value == pytest.approx(expected, abs=1e-4)


def test_a_kind_called_all_is_a_row_of_its_own() -> None:
    rows = report.breakdown([*OUTCOMES, outcome("c/0", "all", True, True, [(1, 2)])])
    assert [row.cells["questions"] for row in rows if row.name.strip() in ("new scenes", "all")] == [8, 1]


def result(benchmark: str, outcomes: list[Outcome], protocol: str = "generated", **settings: object) -> Result:
    told = {"model": "tiny", "weights": "w", "benchmark": benchmark, "protocol": protocol, "match": "union"}
    return Result({**told, **settings}, {"images": 2, "of": 2}, tuple(outcomes))


def test_json_is_json() -> None:
    results = [result("scenes", OUTCOMES, match="order")]
    content = report.to_json(results, report.score_tables(results))
    read = json.loads(json.dumps(content, allow_nan=False))
    assert read["results"][0]["settings"]["model"] == "tiny" and read["results"][0]["questions"] == 7
    (table,) = read["tables"]
    first = table["rows"][0]
    assert first["name"] == "new scenes" and first["ciou"]["value"] == 240 / 350
    assert first["ciou"]["low"] <= 240 / 350 <= first["ciou"]["high"]
    colour = next(row for row in table["rows"] if row["name"].strip() == "colour")
    assert colour["giou"]["value"] is None and colour["refused"]["value"] == 0


def test_tables_show_every_row_and_only_used_columns() -> None:
    (table,) = report.score_tables([result("scenes", OUTCOMES)])
    console = Console(width=80, record=True)
    console.print(report.to_rich(table))
    shown = console.export_text()
    markdown = to_markdown(table)
    assert "P@0.5" in markdown and "…" not in shown
    for text in (shown, markdown):
        for row in table.rows:
            assert row.name.strip() in text
        assert "gIoU" in text and "0.686" in text
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert "0.686 [" in markdown
    (words_only,) = report.score_tables([result("scenes", OUTCOMES[5:])])
    assert list(words_only.columns) == ["questions", "words"]


def test_one_score_of_all_systems_by_group() -> None:
    better = [outcome(o.key, o.kind, o.present, o.said, [(u, u) for u in o.unions], *o.tags) for o in OUTCOMES]
    both = [result("scenes", OUTCOMES), result("scenes", better, model="best")]
    lines = report.side_by_side(both).splitlines()
    assert lines[0] == "| gIoU of questions about | n | tiny | best |"
    cells = {row[1].strip(): [cell.strip() for cell in row[2:5]] for row in (line.split("|") for line in lines[2:])}
    assert cells["two"] == ["2", "0.800", "1.000"]
    assert cells["category"] == ["2", "0.400", "1.000"]
    assert "count" not in cells


def test_systems_side_by_side() -> None:
    systems = [
        result("scenes", OUTCOMES[:2], prompt="seg"),
        Result({**result("scenes", []).settings, "model": "blind"}, {}, tuple(OUTCOMES[:1])),
        result("scenes", OUTCOMES),
    ]
    del systems[1].settings["weights"]  # type: ignore[attr-defined]
    alone, beside = report.score_tables(systems)
    assert alone.title == "Scenes: tiny" and alone.rows[0].cells["questions"] == 7
    counts = [(row.name, row.cells["questions"]) for row in beside.rows]
    assert counts == [("tiny", 7), ("tiny, [SEG] only", 2), ("blind", 1)]


def field_outcomes() -> list[Outcome]:
    """Three questions about two images: a mask of IoU 0.6, an invention of 40 pixels, a refusal that is right."""
    return [
        outcome("1/0", "true premise", True, True, [(60, 100)], "long"),
        outcome("1/1", "false premise", False, True, [(0, 40)], "short"),
        outcome("2/0", "false premise", False, False, [(0, 0)], "short"),
    ]


def test_each_field_has_its_own_columns_first() -> None:
    expected = {
        "reasonseg/test": ["gIoU", "cIoU"],
        "refcoco/testA": ["cIoU", "gIoU"],
        "fprefcoco/val": ["See", "cIoU, all"],
        "R-refcoco/val": ["gIoU, true", "refused"],
        "grefcoco/val": ["gIoU", "cIoU", "N-acc", "T-acc"],
    }
    for name, headings in expected.items():
        (table,) = report.score_tables([result(name, field_outcomes())])
        assert list(table.columns.values())[: 1 + len(headings)] == ["n", *headings]
        assert table.rows[0].name == name
    (general,) = report.score_tables([result("grefcoco/val", field_outcomes())])
    scores = general.rows[0].cells
    named = {heading: scores[name].value for name, heading in general.columns.items() if name != "questions"}
    assert named["gIoU"] == pytest.approx((0.6 + 0 + 1) / 3, abs=1e-6)  # no target: 1 if nothing is claimed, else 0
    assert named["cIoU"] == 60 / 140
    assert (named["N-acc"], named["T-acc"]) == (0.5, 1.0)
    (false,) = report.score_tables([result("fprefcoco/val", field_outcomes())])
    assert false.rows[0].cells["see"].value == pytest.approx(2 / 3)
    assert false.rows[0].cells["ciou_all"].value == 60 / 140


def test_reasonseg_test_is_split_by_length() -> None:
    (table,) = report.score_tables(
        [result("reasonseg/test", field_outcomes()), result("reasonseg/val", field_outcomes())]
    )
    rows = [(row.name, row.cells["questions"]) for row in table.rows]
    assert rows == [("reasonseg/val", 3), ("reasonseg/test", 3), ("  short queries", 2), ("  long queries", 1)]


def test_protocols_never_share_a_table_and_are_stated() -> None:
    forced = result("refcoco/val", field_outcomes()[:1], "forced")
    forced.about["left_out"] = 7  # type: ignore[index]
    one, other = report.score_tables([result("refcoco/val", field_outcomes()), forced])
    assert "teacher-forced" in one.notes[0] and "7 of them" in one.notes[1]
    assert "generated" in other.notes[0] and len(other.notes) == 1
    assert "answered" in other.columns.values() and "answered" not in one.columns.values()


def test_samples_and_unfinished_runs_are_told() -> None:
    part = result("refcoco/val", field_outcomes())
    part.about.update(images=5, of=1500)  # type: ignore[attr-defined]
    (table,) = report.score_tables([part])
    assert "refcoco/val 5 of 1500" in table.notes[1] and "refcoco/val 2 of 5" in table.notes[2]


def test_models_side_by_side_in_one_table() -> None:
    (table,) = report.score_tables([result("refcoco/val", OUTCOMES, model=name) for name in ("b", "a\x1b[31m|")])
    assert [row.name for row in table.rows] == ["refcoco/val: a?[31m|", "refcoco/val: b"]
    assert "a?[31m\\|" in to_markdown(table)


def test_unknown_benchmarks_are_errors() -> None:
    for wrong in (result("coco/val", OUTCOMES), result("refcoco/val", OUTCOMES, "guessed")):
        with pytest.raises(ReadsegError, match="expected one of"):
            report.score_tables([wrong])


def answer(key: str, image: str, *counts: tuple[int, int], present: bool | None = True) -> Outcome:
    return rule_model.outcome(key, present, any(i for i, _ in counts), counts, image=image)


def test_a_difference_is_the_mean_of_differences_where_masks_pair() -> None:
    one, other = rule_model.random_outcomes(0.9), rule_model.random_outcomes(0.3)
    gaps, images = [], []
    for a, b in zip(one, other, strict=True):
        for (i, u), (j, v) in zip(zip(*counts_of(a), strict=True), zip(*counts_of(b), strict=True), strict=True):
            if a.present:
                gaps.append(i / (u + 1e-5) - j / (v + 1e-5))
                images.append(a.image)
    giou, ciou = report.difference(one, other)
    assert dataclasses.astuple(giou) == pytest.approx(dataclasses.astuple(estimate(gaps, groups=images)), abs=1e-12)
    totals = [[sum(map(sum, (counts_of(o)[k] for o in side if o.present))) for k in (0, 1)] for side in (one, other)]
    assert ciou.value == pytest.approx(totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1], abs=1e-12)
    assert ciou.low < ciou.value < ciou.high and ciou.count == giou.count == len(gaps)
    assert [dataclasses.astuple(e)[:3] for e in report.difference(one, one)] == [(0, 0, 0), (0, 0, 0)]


def counts_of(one: Outcome) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return one.intersections, one.unions


def test_a_difference_of_models_that_say_different_words() -> None:
    one = [answer("a/0", "a", (50, 100)), answer("b/0", "b", (10, 10), (0, 30))]
    other = [answer("a/0", "a", (20, 100)), answer("b/0", "b", (10, 20))]
    giou, ciou = report.difference(one, other)
    assert giou.value == pytest.approx((0.5 + 1 + 0) / 3 - (0.2 + 0.5) / 2, abs=1e-5)
    assert ciou.value == pytest.approx(60 / 140 - 30 / 120, abs=1e-12)
    assert (giou.low, giou.high) == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.3, abs=1e-5)), "only b, or only a"
    nothing = report.difference([answer("a/0", "a", present=None)], [answer("a/0", "a", present=None)])
    assert all(np.isnan(e.value) and e.count == 0 for e in nothing)
    for wrong in (other[:1], other[::-1]):
        with pytest.raises(ReadsegError, match="same questions in the same order"):
            report.difference(one, wrong)
