"""Naming and reasoning: every number of the tables against a loop over the questions."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from readseg.analysis.studies.knowledge import (
    ALL,
    LONG,
    NAMING,
    SEEN,
    SHORT,
    UNSEEN,
    SystemResult,
    drop,
    knowledge_tables,
    parts_of,
)
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Outcome, Result
from readseg.viz.tables import Table, to_json, to_markdown

PARTS = {NAMING: ("scenes", "category"), SEEN: ("scenes", "reasoning"), UNSEEN: ("descriptions", "reasoning")}
OTHERS = (("phrasings", "category"), ("pairs", "reasoning"), ("scenes", "colour"))


def outcomes(skill: float, seed: int = 0, questions: int = 160) -> list[Outcome]:
    """Questions of all parts and of none, some with two masks; the same for every skill, the answers are not."""
    world, own = np.random.default_rng(seed), np.random.default_rng([seed, int(100 * skill)])
    places = [*PARTS.values(), *OTHERS]
    made = []
    for k in range(questions):
        section, kind = places[world.integers(len(places))]
        present = bool(world.random() < 0.7)
        unions = tuple(int(u) for u in world.integers(50, 99, 1 if world.random() < 0.8 else 2))
        said = bool(own.random() < (0.9 if present else 0.2))
        inter = tuple(int(u * min(1, own.random() * skill * 2)) if said and present else 0 for u in unions)
        if not present:
            unions, inter = ((40,), (0,)) if said else ((0,), (0,))
        tags = frozenset({("short", "long")[k % 2]})
        made.append(
            Outcome(f"{k // 4}/{k % 4}", f"image {k // 4}", section, kind, tags, present, said, inter, unions, False)
        )
    return made


def answered(name: str, found: Sequence[Outcome]) -> SystemResult:
    return SystemResult(name, Result({"benchmark": "scenes", "protocol": "generated"}, {}, (), tuple(found)), name)


def mean_iou(found: Sequence[Outcome]) -> float:
    return float(
        np.mean([i / (u + 1e-5) for o in found if o.present for i, u in zip(o.intersections, o.unions, strict=True)])
    )


def part(found: Sequence[Outcome], name: str) -> list[Outcome]:
    return [o for o in found if (o.section, o.kind) == PARTS[name]]


def cell(table: Table, row: str, column: str, group: str | None = None) -> Estimate:
    found = next(r for r in table.rows if r.name == row and group in (None, r.group)).cells[column]
    assert isinstance(found, Estimate)
    return found


def test_all_numbers_of_the_tables() -> None:
    good, bad = outcomes(0.9), outcomes(0.3)
    scores, gaps, drops = knowledge_tables(
        "scenes", "generated", [answered("A", good), answered("B", bad)], ["a note of ours"]
    )
    for name in PARTS:
        for system, own in (("A", good), ("B", bad)):
            mine = part(own, name)
            assert cell(scores, system, "giou", name).value == pytest.approx(mean_iou(mine))
            assert cell(scores, system, "answered", name).value == np.mean([o.said for o in mine if o.present])
            assert cell(scores, system, "refused", name).value == np.mean([not o.said for o in mine if not o.present])
        gap = cell(gaps, name, "A - B")
        assert gap.value == pytest.approx(mean_iou(part(good, name)) - mean_iou(part(bad, name)))
        assert gap.low < gap.value < gap.high
    for one, other in ((NAMING, SEEN), (SEEN, UNSEEN), (NAMING, UNSEEN)):
        column, found = f"{one} to {other}", {}
        for system, own in (("A", good), ("B", bad)):
            found[system] = mean_iou(part(own, one)) - mean_iou(part(own, other))
            assert cell(drops, system, column).value == pytest.approx(found[system])
        assert cell(drops, "A - B", column).value == pytest.approx(found["A"] - found["B"])
    assert "a note of ours" in scores.notes
    count = sum(bool(o.present) for o in part(good, NAMING))
    assert any(f"{NAMING} {count} true and" in note for note in scores.notes)
    for table in (scores, gaps, drops):
        json.dumps(to_json(table), allow_nan=False)
        assert "whole images" in to_markdown(table)


def test_a_drop_to_itself_is_nothing() -> None:
    found = outcomes(0.6)
    nothing = drop(found, lambda o: o.kind == "reasoning", lambda o: o.kind == "reasoning")
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_parts_of_scenes_and_of_data_sets() -> None:
    found = outcomes(0.5)
    assert list(parts_of("scenes", found)) == [NAMING, SEEN, UNSEEN]
    assert list(parts_of("scenes", [o for o in found if o.section == "scenes"])) == [NAMING, SEEN]
    lengths = parts_of("reasonseg/test", found)
    assert list(lengths) == [SHORT, LONG, ALL]
    assert sum(lengths[SHORT](o) for o in found) == len(found) // 2 and all(lengths[ALL](o) for o in found)
    table, drops = knowledge_tables("reasonseg/test", "forced", [answered("A", found)], [])
    assert {r.group for r in table.rows} == {SHORT, LONG, ALL} and list(drops.columns) == [f"{SHORT} to {LONG}"]
    untagged = [Outcome("k", "i", "", "", frozenset(), True, True, (5,), (9,), False)]
    (table,) = knowledge_tables("refcoco/val", "forced", [answered("A", untagged)], [])
    assert [r.group for r in table.rows] == [ALL] and list(table.columns) == ["giou", "answered"]


def test_wrong_questions_are_named() -> None:
    found = outcomes(0.5)
    with pytest.raises(ReadsegError, match="scenes: no question that names or describes a thing"):
        parts_of("scenes", [o for o in found if o.kind == "colour"])
