"""The study of named and described things: a small model beside a system that is no language model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import studies
from readseg.core.io import read_lines
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.evaluation.predictions import PREDICTIONS
from readseg.evaluation.run import FixedAnswer, System, run_systems

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
    kept = tmp_path / "out" / "predictions.jsonl"
    assert (
        len(read_lines(kept, PREDICTIONS).records) == 11
        and read_lines(kept, PREDICTIONS).header["settings"]["weights"] == "w"
    )

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
