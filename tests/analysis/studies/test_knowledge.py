"""Naming and reasoning: every number against a loop; systems side by side, only against one truth; the study."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rule_model
import studies
from readseg.analysis.studies.knowledge import (
    ALL,
    LONG,
    NAMING,
    SEEN,
    SHORT,
    UNSEEN,
    SystemResult,
    aligned,
    drop,
    knowledge_tables,
    left_out,
    parts_of,
    read_systems,
)
from readseg.core.io import read_lines, write_lines
from readseg.core.masks import encode_rle
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.evaluation.predictions import PREDICTIONS, Outcome, Result
from readseg.evaluation.run import FixedAnswer, System, run_systems
from readseg.viz.tables import Table, to_json, to_markdown
from rule_model import random_outcomes

PARTS = {NAMING: ("scenes", "category"), SEEN: ("scenes", "reasoning"), UNSEEN: ("descriptions", "reasoning")}


def answered(name: str, found: Sequence[Outcome]) -> SystemResult:
    return SystemResult(name, Result({"benchmark": "scenes", "protocol": "generated"}, {}, tuple(found)), name)


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
    good, bad = random_outcomes(0.9), random_outcomes(0.3)
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
    found = random_outcomes(0.6)
    nothing = drop([found], lambda o: o.kind == "reasoning", lambda o: o.kind == "reasoning")
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_parts_of_scenes_and_of_data_sets() -> None:
    found = random_outcomes(0.5)
    assert list(parts_of("scenes", found)) == [NAMING, SEEN, UNSEEN]
    assert list(parts_of("scenes", [o for o in found if o.section == "scenes"])) == [NAMING, SEEN]
    lengths = parts_of("reasonseg/test", found)
    assert list(lengths) == [SHORT, LONG, ALL]
    assert sum(lengths[SHORT](o) for o in found) == len(found) // 2 and all(lengths[ALL](o) for o in found)
    table, drops = knowledge_tables("reasonseg/test", "forced", [answered("A", found)], [])
    assert {r.group for r in table.rows} == {SHORT, LONG, ALL} and list(drops.columns) == [f"{SHORT} to {LONG}"]
    untagged = [rule_model.outcome("k", True, True, [(5, 9)])]
    (table,) = knowledge_tables("refcoco/val", "forced", [answered("A", untagged)], [])
    assert [r.group for r in table.rows] == [ALL] and list(table.columns) == ["giou", "answered"]


def test_wrong_questions_are_named() -> None:
    found = random_outcomes(0.5)
    with pytest.raises(ReadsegError, match="scenes: no question that names or describes a thing"):
        parts_of("scenes", [o for o in found if o.kind == "colour"])


def system(name: str, answer: str = "here") -> System:
    """Draws the upper half of every image."""
    mask = np.zeros((1, *studies.HW), bool)
    mask[:, : studies.HW[0] // 2] = True

    def answers(page: ImageQuestions, _: Any) -> list[FixedAnswer]:
        return [FixedAnswer(answer, True, mask) for _ in page.questions]

    return System(name, {"model": name}, answers)


def results(folder: Path, *names: str, asked: Benchmark | None = None) -> dict[str, Result]:
    """Files of predictions as a system that is no language model writes them: NAME/predictions.jsonl."""
    asked = asked or studies.benchmark()
    return {name: run_systems([system(name)], asked, folder=folder / name)[name] for name in names}


def test_files_and_folders_are_found_and_named(tmp_path: Path) -> None:
    found = results(tmp_path, "one", "two")
    results(tmp_path / "elsewhere", "one", asked=studies.benchmark(name="other"))
    systems = read_systems([tmp_path, tmp_path / "one" / "predictions.jsonl"], studies.benchmark())
    assert [(s.name, Path(s.source).parent.name) for s in systems] == [("one", "one"), ("two", "two")]
    assert systems[0].result.outcomes == found["one"].outcomes
    results(tmp_path / "again", "one")
    names = [s.name for s in read_systems([tmp_path / "one", tmp_path / "again" / "one"], studies.benchmark())]
    assert names == ["one (one)", "one (one)"]


def test_only_shared_questions_are_compared(tmp_path: Path) -> None:
    found = results(tmp_path, "one", "two")
    short = replace(found["two"], outcomes=found["two"].outcomes[2:5][::-1])
    before = [SystemResult("same", one, "a") for one in (found["one"], short, found["one"])]
    after = aligned(before)
    expected = [o.key for o in found["one"].outcomes[2:5]]
    assert [s.name for s in after] == ["same", "same (2)", "same (3)"]
    assert all([o.key for o in s.result.outcomes] == expected for s in after)
    assert [len(one.result.outcomes) for one in before] == [11, 3, 11]
    told = "answers to questions that not all systems were asked are left out: 8 of same, 8 of same (3)"
    assert left_out(before, after) == [told]
    assert left_out(before[:1], aligned(before[:1])) == []


def test_nothing_shared_is_an_error(tmp_path: Path) -> None:
    found = results(tmp_path, "one")["one"]
    parts = [replace(found, outcomes=found.outcomes[a:b]) for a, b in ((0, 3), (3, 6))]
    with pytest.raises(ReadsegError, match="no question was answered by all of first, second"):
        aligned([SystemResult("x", parts[0], "first"), SystemResult("y", parts[1], "second")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("targets", (encode_rle(np.ones(studies.HW, bool)),)),
        ("question", "the dog"),
        ("present", False),
        ("ignored", encode_rle(np.ones(studies.HW, bool))),
    ],
)
def test_a_wrong_truth_is_named(field: str, value: Any, tmp_path: Path) -> None:
    results(tmp_path, "one", "two")
    path = tmp_path / "two" / "predictions.jsonl"
    lines = read_lines(path, PREDICTIONS)
    first, *others = lines.records.values()
    write_lines(path, PREDICTIONS, lines.header, [replace(first, **{field: value}), *others])
    with pytest.raises(ReadsegError, match=re.escape(f"{path}, 'page-0/0': its {field} is not that of")):
        aligned(read_systems([tmp_path / "one", tmp_path / "two"], studies.benchmark()))


def test_wrong_predictions_are_refused(tmp_path: Path) -> None:
    benchmark = studies.benchmark()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadsegError, match=r"empty: no predictions.jsonl is there"):
        read_systems([tmp_path / "empty"], benchmark)
    with pytest.raises(ReadsegError, match="nowhere"):
        read_systems([tmp_path / "nowhere"], benchmark)
    results(tmp_path, "one")
    with pytest.raises(ReadsegError, match="one: expected predictions for scenes, got those for hand"):
        read_systems([tmp_path / "one"], studies.benchmark(name="scenes"))
    for change in ({"protocol": "forced"}, {"match": "union"}, {"settings": {"first_seed": 7}}):
        name = next(iter(change.get("settings", change)))  # type: ignore[call-overload]
        with pytest.raises(ReadsegError, match=rf"predictions.jsonl: {name}: expected .*do not belong in one table"):
            read_systems([tmp_path / "one"], studies.benchmark(**change))


Capture = pytest.CaptureFixture[str]


def knowing(asked: Benchmark, folder: Path) -> Path:
    """Predictions of a system that knows the truth."""

    def answers(page: ImageQuestions, _: Any) -> list[FixedAnswer]:
        found = [[np.asarray(target) == 1 for target in query.targets()] for query in page.questions]
        empty = np.zeros((0, *studies.HW), bool)
        return [FixedAnswer("", bool(own), np.stack(own) if own else empty) for own in found]

    run_systems([System("oracle", {"model": "oracle"}, answers)], asked, folder=folder)
    return folder


def cells(path: Path) -> dict[tuple[int, str, str], Any]:
    tables = json.loads(path.read_text())["tables"]
    return {(k, row["group"], row["name"]): row["cells"] for k, table in enumerate(tables) for row in table["rows"]}


def test_a_model_beside_predictions(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = studies.benchmark()
    others = knowing(asked, tmp_path / "oracle")
    context = studies.context(tmp_path / "out", asked)
    studies.run("knowledge", context, predictions=[others])
    printed = capsys.readouterr().out
    assert "tiny" in printed and "oracle" in printed
    found = cells(tmp_path / "out" / "knowledge.json")
    assert found[0, "all queries", "oracle"]["giou"]["value"] == pytest.approx(1, abs=1e-6)
    assert found[0, "all queries", "oracle"]["refused"]["value"] == 1
    tiny = found[0, "all queries", "tiny"]
    assert (tiny["answered"]["value"], tiny["refused"]["value"]) == pytest.approx((4 / 5, 3 / 5))
    gap = found[1, "", "all queries"]["tiny - oracle"]
    assert gap["value"] == pytest.approx(tiny["giou"]["value"] - 1, abs=1e-5)
    assert ("system", "oracle") in {(group, name) for k, group, name in found if k == 2}
    with Image.open(tmp_path / "out" / "knowledge.png") as chart:
        assert chart.width == 1200
    kept = read_lines(tmp_path / "out" / "predictions.jsonl", PREDICTIONS)
    assert len(kept.records) == 11 and kept.header["settings"]["weights"] == "w"

    def nobody(*_: Any, **__: Any) -> Any:
        raise AssertionError("what is known is not asked again")

    monkeypatch.setattr(studies.segmenter(), "segment", nobody)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("knowledge*")}
    studies.run("knowledge", context, predictions=[others / "predictions.jsonl"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("knowledge*")} == before


def test_fewer_answers_and_one_system_are_told(tmp_path: Path) -> None:
    asked = studies.benchmark(ordered=True)
    others = knowing(asked, tmp_path / "oracle")
    studies.run("knowledge", studies.context(tmp_path / "out", asked, limit=2), predictions=[others])
    text = (tmp_path / "out" / "knowledge.md").read_text(encoding="utf-8")
    assert "answers to questions that not all systems were asked are left out: 6 of oracle" in text
    embedded = replace(studies.model("embedded"), source=None)
    studies.run("knowledge", studies.context(tmp_path / "one", studies.benchmark(), [embedded]))
    text = (tmp_path / "one" / "knowledge.md").read_text(encoding="utf-8")
    assert "has read nothing but the text of scenes, so it cannot show world knowledge" in text
    assert "one system: nothing is compared" in text and "less that of another" not in text


def test_wrong_predictions_are_known_before_a_model_is_asked(tmp_path: Path) -> None:
    nobody = replace(studies.model(), loaded={})
    others = knowing(studies.benchmark(name="other"), tmp_path / "oracle")
    with pytest.raises(ReadsegError, match="expected predictions for hand, got those for other"):
        studies.run("knowledge", studies.context(tmp_path / "out", models=[nobody]), predictions=[others])
