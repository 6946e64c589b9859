"""`readseg train` from a YAML file, and what it says of a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commandline import Console

RECIPE = """
seed: 1
vocabulary: 400
stages:
  - {kind: vision, name: sight, steps: 2, images_per_step: 1, learning_rate: 0.001, log_every: 1, checkpoint_every: 1}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_trains_and_leaves_weights_and_metrics(console: Console) -> None:
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert "sight" in console.out("train", "recipe.yaml")
    folder = Path("runs", "recipe", "sight")
    assert (folder / "weights.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gigantic",), "no preset 'gigantic'"),
        (("absent.yaml",), "no recipe at absent.yaml"),
        (("tiny", "--stage", "nine"), "no stage 'nine'"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, console: Console, words: tuple[str, ...], message: str) -> None:
    assert message in console.error("train", *words)
    assert not any(tmp_path.iterdir())
