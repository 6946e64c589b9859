"""The demo holds answers against the truth, and its exit code says how that went."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import scripts
from readseg.checkpoints import load as loading
from small import picture
from tiny_segmenter import build, load


@pytest.fixture
def demo() -> ModuleType:
    return scripts.load("demo")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two questions whose truth is what the model answers."""
    model = build(tmp_path / "model")
    monkeypatch.setattr(loading, "EMBEDDED", model)
    picture().save(tmp_path / "scene.png")
    Image.fromarray(load(model).segment(picture(), "the cat").mask).save(tmp_path / "truth.png")
    entries = [
        {"image": "scene.png", "query": "the cat", "expected": "truth.png"},
        {"image": "scene.png", "query": "the unicorn", "expected": None},
    ]
    (tmp_path / "examples.json").write_text(json.dumps(entries))
    return tmp_path / "examples.json"


def test_all_as_expected(demo: ModuleType, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(examples, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1_scene.png", "2_scene.png"}
    out = capsys.readouterr().out
    assert "1.00" in out and "refused" in out and "as expected" in out


def test_a_missed_bar_or_a_mask_where_a_refusal_was_due_ends_with_one(
    demo: ModuleType, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.eye(40, 60, dtype=bool)).save(tmp_path / "truth.png")
    assert demo.main(examples, tmp_path / "out") == 1
    assert "1 of 2 miss the bar" in capsys.readouterr().out
    examples.write_text(json.dumps([{"image": "scene.png", "query": "the cat", "expected": None}]))
    assert demo.main(examples, tmp_path / "out") == 1
