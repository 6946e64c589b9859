"""Systems side by side: only questions that all of them answered, and only against one truth."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studies
from readseg.analysis.studies.knowledge import SystemResult, aligned, left_out, read_systems
from readseg.core.io import read_lines, write_lines
from readseg.core.masks import encode_rle
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.evaluation.predictions import PREDICTIONS, Result
from readseg.evaluation.run import FixedAnswer, System, run_systems


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
    assert systems[0].result.predictions == found["one"].predictions
    results(tmp_path / "again", "one")
    names = [s.name for s in read_systems([tmp_path / "one", tmp_path / "again" / "one"], studies.benchmark())]
    assert names == ["one (one)", "one (one)"]


def test_only_shared_questions_are_compared(tmp_path: Path) -> None:
    found = results(tmp_path, "one", "two")
    short = replace(
        found["two"], predictions=found["two"].predictions[2:5][::-1], outcomes=found["two"].outcomes[2:5][::-1]
    )
    before = [
        SystemResult("same", found["one"], "a"),
        SystemResult("same", short, "b"),
        SystemResult("same", found["one"], "c"),
    ]
    after = aligned(before)
    expected = [o.key for o in found["one"].outcomes[2:5]]
    assert [s.name for s in after] == ["same", "same (2)", "same (3)"]
    for s in after:
        assert [o.key for o in s.result.outcomes] == [p.key for p in s.result.predictions] == expected
    assert [len(one.result.outcomes) for one in before] == [11, 3, 11]
    told = "answers to questions that not all systems were asked are left out: 8 of same, 8 of same (3)"
    assert left_out(before, after) == [told]
    assert left_out(before[:1], aligned(before[:1])) == []


def test_nothing_shared_is_an_error(tmp_path: Path) -> None:
    found = results(tmp_path, "one")["one"]
    parts = [
        replace(found, predictions=found.predictions[a:b], outcomes=found.outcomes[a:b]) for a, b in ((0, 3), (3, 6))
    ]
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
