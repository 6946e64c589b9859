"""`readseg train` from a YAML file, and what it says of a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import commandline

RECIPE = """
seed: 1
vocabulary: 400
stages:
  - {kind: vision, name: sight, steps: 2, images_per_step: 1, learning_rate: 0.001, log_every: 1, checkpoint_every: 1}
"""


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return commandline.run(monkeypatch, "train", *words)


def test_trains_and_leaves_weights_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, recipe) == 0
    folder = tmp_path / "runs" / "recipe" / "sight"
    assert (folder / "weights.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert "sight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gigantic",), "no preset 'gigantic'"),
        (("absent.yaml",), "no recipe at absent.yaml"),
        (("tiny", "--stage", "nine"), "no stage 'nine'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("readseg: ")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())
