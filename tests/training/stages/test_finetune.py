"""Recipes on data sets, from the command line to a model: resumed after kills, on two processes, in two stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from readseg.checkpoints.adapters import WEIGHTS
from readseg.checkpoints.load import load_model
from readseg.errors import ReadsegError
from readseg.training.config import TrainConfig
from readseg.training.recipe import run_recipe
from released import change_weights
from tuned import SETTINGS, recipe, stage

STEPS = 6
WHOLE = {"validate_on": ["reasonseg/val"], "validate_every": 3, "validate_images": 2, "ema_decay": 0.9, "cache": True}


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "tuned" / name).read_text(encoding="utf-8").splitlines()]


def write_recipe(path: Path, start: Path, **changes: Any) -> Path:
    settings = SETTINGS | {"start": str(start), "steps": STEPS} | changes
    path.write_text(yaml.safe_dump({"seed": 3, "stages": [settings]}), encoding="utf-8")
    return path


def command(recipe_path: Path, data: Path, out: Path, processes: int = 1) -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    module = [*(several if processes > 1 else []), "-m", "readseg"]
    return [sys.executable, *module, "train", str(recipe_path), "--data", str(data), "--out", str(out)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def whole(start: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run, with validation, running mean and cache."""
    out = tmp_path_factory.mktemp("whole")
    result = run_recipe(recipe(start, steps=STEPS, **WHOLE), out, data=data)
    assert result == out / "tuned" / "adapter"
    return out


def test_a_run_leaves_metrics_scores_and_adapters(whole: Path) -> None:
    assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))
    assert all({"loss", "text", "bce", "dice"} <= line.keys() for line in lines(whole))
    assert [line["step"] for line in lines(whole, "validation.jsonl")] == [3, 6]
    assert {path.name for path in (whole / "tuned").iterdir()} == {
        "metrics.jsonl", "validation.jsonl", "settings.json", "checkpoint-6", "best", "adapter", ".lock",
    }  # fmt: skip


def test_the_adapter_is_a_model(whole: Path) -> None:
    model, _, notes = load_model(whole / "tuned" / "adapter", device="cpu")
    assert any("adapter on" in note for note in notes)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_finished_run_is_not_run_again(whole: Path, start: Path, data: Path) -> None:
    before = (whole / "tuned" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    run_recipe(recipe(start, steps=STEPS, **WHOLE), whole, data=data)
    assert (whole / "tuned" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_killed_run_ends_as_an_unbroken_one(whole: Path, start: Path, data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", start, **WHOLE)
    out, seen = tmp_path / "killed", tmp_path / "killed" / "tuned" / "metrics.jsonl"
    process = subprocess.Popen(command(path, data, out), env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (seen.exists() and seen.read_bytes().count(b"\n") >= 4):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    for partial in out.rglob("*.safetensors"):  # what is there under its own name is whole
        if not partial.name.startswith(".") and not any(part.startswith(".") for part in partial.parts):
            load_file(partial)
    run_recipe(recipe(start, steps=STEPS, **WHOLE), out, data=data)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert lines(out, name) == lines(whole, name)
    ours, theirs = (load_file(run / "tuned" / "adapter" / "adapter_model.safetensors") for run in (out, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_two_processes_train_as_one(start: Path, data: Path, tmp_path: Path) -> None:
    scored = {"steps": 4, "validate_on": ["refcoco/val", "fprefcoco/val"], "validate_every": 4, "validate_images": 2}
    run_recipe(recipe(start, accumulation=2, **scored), tmp_path / "1", data=data)
    path = write_recipe(tmp_path / "2.yaml", start, **scored)
    launch = command(path, data, tmp_path / "2", processes=2)
    subprocess.run(launch, env=environment(), check=True, capture_output=True)
    for one, two in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    (one,), (two,) = (lines(tmp_path / name, "validation.jsonl") for name in ("1", "2"))
    assert one == two  # metrics are counts of pixels: equal, or not
    one, two = (load_file(tmp_path / name / "tuned" / "adapter" / WEIGHTS) for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-4, rtol=0, msg=name)


def test_a_stage_goes_on_from_an_earlier_one(start: Path, data: Path, tmp_path: Path) -> None:
    first = recipe(start, steps=2).stages[0]
    second = first.model_copy(update={"name": "second", "start": "tuned", "ratio": "0:0:0:0:0:1"})
    two = TrainConfig(seed=3, stages=(first, second))
    with pytest.raises(ReadsegError, match=r"stage 'tuned' are not in .*run that stage first"):
        run_recipe(two, tmp_path, only="second", data=data)
    result = run_recipe(two, tmp_path, data=data)
    assert result == tmp_path / "second" / "adapter"
    model, _, notes = load_model(result, device="cpu")
    assert [note for note in notes if note.startswith("adapter")] == [
        f"adapter on {start}", f"adapter on {tmp_path / 'tuned' / 'adapter'}",
    ]  # fmt: skip
    before, _, _ = load_model(start, device="cpu")
    name = "lmm.model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[name], before.state_dict()[name])


def test_it_needs_the_folder_of_data(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="--data is missing"):
        run_recipe(recipe(start), tmp_path)
    assert not any(tmp_path.iterdir())


def test_it_goes_on_with_more_workers_but_no_other_rate(start: Path, data: Path, tmp_path: Path) -> None:
    run_recipe(recipe(start, steps=2), tmp_path, data=data)
    (tmp_path / "tuned" / "adapter").rename(tmp_path / "elsewhere")
    free = {"workers": 3, "max_broken": 7, "validate_on": ("reasonseg/val",), "validate_every": 2}
    run_recipe(recipe(start, steps=2, **free), tmp_path, data=data)
    (tmp_path / "tuned" / "adapter").rename(tmp_path / "elsewhere2")
    with pytest.raises(ReadsegError, match=r"other settings \(learning_rate: 0.001 there, 0.1 now\)"):
        run_recipe(recipe(start, steps=2, learning_rate=0.1), tmp_path, data=data)


def test_it_goes_on_with_the_same_start_and_the_same_data_only(start: Path, data: Path, tmp_path: Path) -> None:
    own, copied, run = tmp_path / "start", tmp_path / "data", tmp_path / "run"
    shutil.copytree(start, own)
    shutil.copytree(data, copied)
    chosen = recipe(own, steps=2)
    run_recipe(chosen, run, data=copied)
    with pytest.raises(ReadsegError, match=r"other settings \(steps: 2 there, 9 now\)"):  # also where it is finished
        run_recipe(recipe(own, steps=9), run, data=copied)
    shutil.rmtree(run / "tuned" / "adapter")
    (copied / "ade20k" / "annotations" / "training").rename(tmp_path / "away")
    with pytest.raises(ReadsegError, match=r"other settings \(draws from: .*ade20k"):
        run_recipe(chosen, run, data=copied)
    (tmp_path / "away").rename(copied / "ade20k" / "annotations" / "training")
    change_weights(own / "model.safetensors", lambda state: state["lmm.lm_head.weight"][0, 0].add_(1))
    with pytest.raises(ReadsegError, match=r"other settings \(starts from: "):
        run_recipe(chosen, run, data=copied)


def test_weights_that_are_no_numbers_are_not_kept(start: Path, data: Path, tmp_path: Path) -> None:
    built = stage(start, data, tmp_path / "cache")
    with torch.no_grad():
        next(built.model.seg_projection.parameters())[0, 0] = torch.inf
    with pytest.raises(ReadsegError, match=r"has become no number.*lower learning_rate"):
        built.export(built.state_dict(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_broken_records_are_passed_over_and_too_many_stop_the_run(
    start: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    train = sorted((copied / "reason_seg" / "ReasonSeg" / "train").glob("*.jpg"))
    train[0].write_bytes(b"no image")
    with pytest.warns(UserWarning, match=str(train[0])):
        run_recipe(recipe(start, steps=6, ratio="0:0:0:0:0:1"), tmp_path / "run", data=copied)
    assert "broken and passed over: 1" in capsys.readouterr().err
    for path in train[:3]:
        path.write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ReadsegError, match=r"3 records are broken, the limit is 2"):
            run_recipe(recipe(start, steps=9, ratio="0:0:0:0:0:1", max_broken=2), tmp_path / "run2", data=copied)
