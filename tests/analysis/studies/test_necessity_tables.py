"""The numbers of the study from records made by hand, against loops, and against evaluation's own scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

import rule_model
from readseg.analysis.studies.necessity import (
    SAID,
    SCORES,
    DecisionRecord,
    area,
    balanced_accuracy,
    curves,
    decide,
    giou_all,
    necessity_tables,
    rate,
)
from readseg.core.stats import Estimate
from readseg.evaluation.predictions import Outcome
from readseg.evaluation.report import summarise
from readseg.viz.tables import Row, Table, to_csv, to_json, to_markdown


def records(count: int = 90, seed: int = 0) -> list[DecisionRecord]:
    """Questions about count / 3 images; the scores tell more or less about the truth, some are missing."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        present = bool(rng.random() < 0.6)
        said = present if rng.random() < 0.85 else not present
        scores: dict[str, float | None] = {name: float(rng.normal() + present) for name in SCORES}
        scores["p_seg"] = float(rng.uniform(0.5, 1) if said else rng.uniform(0, 0.5))
        if rng.random() < 0.1:
            scores["mask_iou"] = None
        targets = (2 if rng.random() < 0.2 else 1) if present else 1
        unions = [int(rng.integers(50, 100)) for _ in range(targets)]
        made.append(
            DecisionRecord(
                key=f"{k // 3}/{k % 3}",
                image=f"image {k // 3}",
                section=("new", "old")[k % 2],
                kind="one kind" if k == 4 else ("big", "red", "left")[k % 3],
                tags=(),
                present=present,
                said=said,
                finished=k != 7,
                scores=scores,
                drawn=tuple((int(rng.integers(0, u)) if present else 0, u) for u in unions),
                refused=tuple((0, u if present else 0) for u in unions),
            )
        )
    return made


def outcomes(found: Sequence[DecisionRecord]) -> list[Outcome]:
    """The same questions as evaluation sees them."""
    counts = [(r, r.drawn if r.said else r.refused) for r in found]
    return [rule_model.outcome(r.key, r.present, r.said, own, image=r.image) for r, own in counts]


def row(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.name == name)


def cell(table: Table, name: str, column: str) -> Estimate:
    found = row(table, name).cells[column]
    assert isinstance(found, Estimate)
    return found


def test_the_decision_itself_is_scored_as_evaluation_scores_it() -> None:
    found = records()
    decided = decide(found)
    expected = summarise(outcomes(found))
    found_all = giou_all(decided, SAID)
    assert found_all.value == pytest.approx(expected["giou_all"].value)
    false_positive, true_positive = rate(decided, SAID, False), rate(decided, SAID, True)
    assert true_positive.value == pytest.approx(expected["answered"].value)
    # Evaluation has the images in another order: the same draws are of other images.
    for own, theirs in ((found_all, expected["giou_all"]), (true_positive, expected["answered"])):
        assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert false_positive.value == pytest.approx(1 - expected["refused"].value)
    assert (true_positive.count, false_positive.count) == (expected["answered"].count, expected["refused"].count)
    balanced = balanced_accuracy(decided, SAID)
    assert (
        balanced.value == pytest.approx(expected["see_balanced"].value)
        and balanced.low < balanced.value < balanced.high
    )
    table = necessity_tables(found, "m", "b")[1]
    assert cell(table, "[SEG] in the answer", "giou").value == pytest.approx(expected["giou"].value)


def test_a_perfect_decision_and_none_at_all() -> None:
    found = records(seed=3)
    decided = decide(found)

    def expected(draws: Sequence[bool]) -> float:
        masks = [pair for r, draw in zip(found, draws, strict=True) for pair in (r.drawn if draw else r.refused)]
        return float(np.mean([1.0 if u == 0 else i / (u + 1e-5) for i, u in masks]))

    for rule, draws in (
        ("always", [True] * len(found)),
        ("never", [False] * len(found)),
        ("truth", [r.present for r in found]),
        (SAID, [r.said for r in found]),
    ):
        assert giou_all(decided, rule).value == pytest.approx(expected(draws)), rule
    assert giou_all(decided, "truth").value >= max(giou_all(decided, name).value for name in decided.rules)


def test_thresholds_are_scored_on_images_that_they_were_not_chosen_on() -> None:
    # Two images: each is decided by the best cut of the other. On "a" it is 5 and on "b" 1.
    def made(image: str, values: Sequence[tuple[float, bool]]) -> list[DecisionRecord]:
        return [
            DecisionRecord(
                f"{image}/{k}", image, "", "", (), present, True, True, dict.fromkeys(SCORES, value),
                ((30, 60),) if present else ((0, 60),), ((0, 40),) if present else ((0, 0),),
            )
            for k, (value, present) in enumerate(values)
        ]  # fmt: skip

    found = made("a", [(4.0, False), (6.0, True)]) + made("b", [(0.0, False), (2.0, True), (3.0, True)])
    decided = decide(found)
    assert decided.rules["peak"].tolist() == [1, 1, 0, 0, 0]
    table = necessity_tables(found, "m", "b")[0]
    assert cell(table, "highest similarity", "true_positive").value == pytest.approx(1 / 3)
    assert cell(table, "highest similarity", "false_positive").value == pytest.approx(1 / 2)
    assert cell(table, "highest similarity", "balanced").value == pytest.approx((1 / 3 + 1 / 2) / 2)
    # [SEG] is in all answers: balanced accuracy 1/2.
    assert cell(table, "highest similarity", "balanced_less").value == pytest.approx((1 / 3 + 1 / 2) / 2 - 1 / 2)
    # a: a mask for the false one (0), one of 30/60 for the true one; b: refused rightly (1), and two lost (0).
    assert giou_all(decided, "peak").value == pytest.approx((0 + 0.5 + 1 + 0 + 0) / 5, abs=1e-6)
    assert giou_all(decided, "peak", SAID).value == pytest.approx(1.5 / 5 - (0 + 0.5 + 0 + 0.5 + 0.5) / 5, abs=1e-6)


def test_areas_and_their_differences() -> None:
    found = records(seed=5)
    decided = decide(found)

    def brute(name: str) -> float:
        values = [(-math.inf if r.scores[name] is None else r.scores[name], r.present) for r in found]
        pairs = [(s, r) for s, there in values if there for r, absent in values if not absent]
        return sum((s > r) + (s == r) / 2 for s, r in pairs) / len(pairs)

    table = necessity_tables(found, "m", "b")[0]
    for name, kind in SCORES.items():
        assert area(decided, name).value == pytest.approx(brute(name))
        assert cell(table, kind.name, "auc") == area(decided, name)
        if name != "p_seg":
            less = cell(table, kind.name, "auc_less")
            assert less.value == pytest.approx(brute(name) - brute("p_seg")) and less.low < less.value < less.high
    none = area(decided, "peak", "peak")
    assert (none.value, none.low, none.high) == (0, 0, 0), "paired"
    for name, curve in curves(decided).items():
        x, y = curve
        assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(brute(name))


def test_the_tables_name_what_they_leave_out() -> None:
    found = records()
    tables = necessity_tables(found, "some | model", "hand", "30 of 80 images")
    decisions, masks, by_area, by_balance = tables
    assert [r.group for r in decisions.rows] == ["the word"] * 2 + ["a threshold on the map"] * 2 + [
        "a threshold on the mask"
    ] * 4
    assert decisions.rows[0].name == "[SEG] in the answer" and "auc" not in decisions.rows[0].cells
    true = sum(r.present for r in found)
    told = " ".join(decisions.notes)
    assert f"90 questions, {true} with a true and {90 - true} with a false premise, about 30 of 80 images" in told
    missing = sum(r.scores["mask_iou"] is None for r in found)
    assert missing and f"counted as the lowest: IoU that SAM predicts of {missing}" in told
    assert "answers that were cut off: 1" in told and "the model answers by itself" in told
    assert len(masks.rows) == 1 + len(SCORES) + 3
    # "one kind" is asked once: it has no curve.
    assert [(r.group, r.name) for r in by_area.rows] == [
        ("kind of question", "big"),
        ("kind of question", "left"),
        ("kind of question", "red"),
        ("section", "new"),
        ("section", "old"),
    ]
    assert any("(questions: 1 by kind of question)" in note for note in by_area.notes)
    own = [r for r in found if r.kind == "red"]
    red = row(by_balance, "red").cells
    assert red["n"] == f"{sum(r.present for r in own)}/{sum(not r.present for r in own)}"
    right = [np.mean([r.said == p for r in own if r.present == p]) for p in (True, False)]
    assert isinstance(red[SAID], Estimate) and red[SAID].value == pytest.approx(np.mean(right))
    assert np.mean([r.said == r.present for r in found]) > 0.7, "and most answers are right"
    for table in tables:
        assert "some \\| model" in to_markdown(table) and to_csv(table)
        json.dumps(to_json(table), allow_nan=False)


def test_few_images_have_no_thresholds() -> None:
    few = [r for r in records() if r.image == "image 0"]
    few = [few[0], *(r for r in records() if r.present != few[0].present and r.image == "image 1")]
    tables = necessity_tables(few, "m", "b")
    assert list(decide(few).rules) == [SAID, "always", "never", "truth"]
    assert "balanced" not in row(tables[0], "highest similarity").cells
    assert any("no thresholds" in note for note in tables[0].notes)
    assert tables[1].rows[0].name == "[SEG] in the answer" and len(tables[1].rows) == 4
    assert not curves(decide([r for r in records() if r.present])), "no curve without false premises"
