"""`readseg train` on data sets, `readseg merge` and what comes of it, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from commandline import Console, run
from readseg.checkpoints.adapters import read_adapter
from small import picture
from tuned import SETTINGS, write_start


@pytest.fixture(scope="module")
def place(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures, a start, and a recipe that names another one."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(data, root / "data")
    write_start(root / "start")
    stage = SETTINGS | {"start": "nowhere", "steps": 2}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"stages": [stage]}), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        words = ["train", place / "recipe.yaml", "--data", place / "data", "--start", place / "start"]
        assert run(patch, *words, "--out", place / "run", "--set", "steps=1") == 0
    return place / "run" / "tuned" / "adapter"


def test_train_merge_segment(adapter: Path, tmp_path: Path, console: Console) -> None:
    code, _, err = console("merge", adapter, tmp_path / "model")
    assert code == 0 and "adapter on" in err
    merged = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in read_adapter(adapter).weights.items():
        assert torch.equal(merged[name], value), name
    picture().save(tmp_path / "a.png")
    results = []
    for model in (adapter, tmp_path / "model"):
        console.out("segment", tmp_path / "a.png", "the cup", "--model", model, "--out", tmp_path / "o")
        results.append((tmp_path / "o" / "result.json").read_text())
    assert results[0] == results[1]


def test_merge_needs_its_base(place: Path, adapter: Path, tmp_path: Path, console: Console) -> None:
    moved = (place / "start").rename(tmp_path / "moved")
    try:
        assert "--base" in console.error("merge", adapter, tmp_path / "model")
        console.out("merge", adapter, tmp_path / "model", "--base", moved)
    finally:
        moved.rename(place / "start")


def test_dry_run_prints_and_stops(place: Path, tmp_path: Path, console: Console) -> None:
    words = ["train", place / "recipe.yaml", "--data", place / "data", "--start", place / "start"]
    out = console.out(*words, "--out", tmp_path / "run", "--dry-run", "--set", "learning_rate=0.02")
    for word in ("learning_rate", "0.02", "trained in all", "first batch", "memory of a process"):
        assert word in out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "recipe.yaml"], "--data is missing"),
        (["train", "recipe.yaml", "--data", "nothing"], "nothing: no such folder"),
        (["train", "recipe.yaml", "--data", "data"], "'nowhere': no such folder"),
        (["train", "recipe.yaml", "--data", "data", "--set", "speed=3"], "no stage has it"),
        (["train", "tiny", "--start", "start"], "--start: no stage of this recipe"),
        (["train", "tiny", "--dry-run"], "--dry-run is for stages of kind 'mixture'"),
        (["merge", "start", "out"], "is no adapter"),
        (["merge", "start", "data"], "data is there already"),
        (["merge", "nowhere", "out"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, console: Console, words: list[str], message: str
) -> None:
    before = sorted(place.iterdir())
    monkeypatch.chdir(place)
    code, _, error = console(*words)
    assert code == 2 and message in error and error.startswith("readseg: ") and error.count("\n") == 1
    assert sorted(place.iterdir()) == before
