"""`readseg evaluate scenes` end to end on a very small model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from readseg.cli import main
from readseg.evaluation.predictions import read_predictions
from tiny_segmenter import build

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["readseg", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_scores_and_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    words = ("scenes", "--model", model, "--out", tmp_path, "--variants", "--device", "cpu", "-n")
    assert run(monkeypatch, *words, 1) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.glob("predictions-*.jsonl")}
    assert sorted(first) == ["predictions-both.jsonl", "predictions-points.jsonl", "predictions-seg.jsonl"]
    assert run(monkeypatch, *words, 2) == 0
    for name, content in first.items():
        assert (tmp_path / name).read_bytes().startswith(content)
    assert len(read_predictions(tmp_path / "predictions-both.jsonl")[1]) == 12
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["systems"]) == {"both", "points", "seg", "largest object", "random object"}
    assert report["systems"]["both"][0]["questions"] == 12
    assert "largest object" in (tmp_path / "report.md").read_text()
    assert "gIoU" in capsys.readouterr().out


def test_bad_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run(monkeypatch, "scenes", "--model", tmp_path / "none") == 2
    assert run(monkeypatch, "scenes", "-n", 0) == 2
    words = ("scenes", "--out", tmp_path, "-n", 1, "--model")
    assert run(monkeypatch, *words, model) == 0
    capsys.readouterr()
    (tmp_path / "predictions-both.jsonl").write_text("something else\n")
    assert run(monkeypatch, *words, model) == 2
    error = capsys.readouterr().err
    assert error.startswith("readseg: ") and "predictions-both.jsonl" in error and "Traceback" not in error
