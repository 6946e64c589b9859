"""`readseg evaluate` end to end on a very small model: scenes, every benchmark of the miniatures, two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import readseg
from commandline import Console
from readseg.core.io import read_lines
from readseg.evaluation.predictions import PREDICTIONS


def test_scenes_are_scored_and_go_on(model: Path, tmp_path: Path, console: Console) -> None:
    words = ("scenes", "--model", model, "--out", tmp_path, "--variants", "--device", "cpu", "-n")
    console.out("evaluate", *words, 1)
    first = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/predictions.jsonl")}
    assert sorted(first) == ["scenes", "scenes_largest-object", "scenes_points", "scenes_random-object", "scenes_seg"]
    printed = console.out("evaluate", *words, 2)
    for name, content in first.items():
        now = (tmp_path / name / "predictions.jsonl").read_bytes()
        assert now.splitlines()[1:7] == content.splitlines()[1:]
    assert len(read_lines(tmp_path / "scenes" / "predictions.jsonl", PREDICTIONS).records) == 12
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["results"]) == 5 and report["tables"][0]["rows"][0]["questions"] == 12
    assert "largest object" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "gIoU" in printed
    # Answers that were asked for once are not thrown away.
    assert "more than are asked for now" in console.error("evaluate", *words, 1)


def test_what_was_never_seen_is_scored(model: Path, tmp_path: Path, console: Console) -> None:
    console.out("evaluate", "unseen", "--model", model, "--out", tmp_path, "--device", "cpu", "--limit", 5)
    lines = read_lines(tmp_path / "unseen" / "predictions.jsonl", PREDICTIONS)
    about = lines.header["about"]
    assert (lines.header["settings"]["protocol"], about["images"], about["of"]) == ("generated", 5, 250)
    assert [p.section for p in lines.records.values()].count("empty") == 4
    printed = console.out("score", tmp_path, "--out", tmp_path / "again")
    assert "Never seen" in printed and "refused" in printed and "IoU" not in printed
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_two_processes_are_one(model: Path, data: Path, tmp_path: Path, console: Console) -> None:
    names = ("reasonseg/test", "fprefcoco/val")
    words = ("evaluate", *names, "--limit", "3", "--model", str(model), "--data", str(data), "--device", "cpu", "--out")
    console.out(*words, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun and accelerate launch start them.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(readseg.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "readseg", *words, str(tmp_path / "two")]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**environment, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert "FP-RefCOCO" in printed[0] and not printed[1], "only the first process prints"
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name
    assert not list((tmp_path / "two").rglob("*rank*"))


def test_protocols_and_points_are_chosen(model: Path, data: Path, tmp_path: Path, console: Console) -> None:
    words = ("reasonseg/val", "--model", model, "--data", data, "--out", tmp_path)
    console.out("evaluate", *words, "--protocol", "generated", "--num-points", 3, "--points", "only")
    path = tmp_path / "reasonseg_val" / "predictions.jsonl"
    lines = read_lines(path, PREDICTIONS)
    settings = lines.header["settings"]
    assert settings["protocol"] == "generated" and settings["prompt"] == "points"
    assert settings["points"]["num_points"] == 3
    assert {p.present for p in lines.records.values()} == {True, False}
    error = console.error("evaluate", *words)
    assert "protocol: 'generated' there, 'forced' now" in error and str(path) in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("coco", "--data", "{data}"), "there are scenes, unseen, reasonseg, refclef"),
        (("refcoco/dev", "--data", "{data}"), "no split 'dev'; there is"),
        (("refcoco",), "--data"),
        (("all", "--data", "{empty}"), "readseg data check"),
        (("scenes", "--protocol", "forced"), "generated only"),
        (("unseen", "scenes", "--protocol", "forced"), "generated only"),
        (("unseen/empty",), "no benchmark 'unseen/empty'"),
        (("scenes", "--variants", "--points", "on"), "--variants"),
        (("scenes", "-n", "0"), "count"),
        (("unseen", "--first-seed", "1"), "--first-seed"),
        (("refcoco/val", "--data", "{data}", "--limit", "0"), "limit"),
        (("scenes", "--model", "{none}"), "none"),
        ((), "BENCHMARK"),
    ],
)
def test_bad_input(words: tuple[str, ...], told: str, data: Path, tmp_path: Path, console: Console) -> None:
    (tmp_path / "empty").mkdir()
    places = {"{data}": data, "{none}": tmp_path / "none", "{empty}": tmp_path / "empty"}
    assert told in console.error("evaluate", *(places.get(word, word) for word in words))


def test_scenes_to_choose_by_are_not_those_of_the_test_set(model: Path, tmp_path: Path, console: Console) -> None:
    words = ("scenes", "--model", model, "--out", tmp_path, "--device", "cpu", "-n", 1)
    console.out("evaluate", *words, "--first-seed", 700_000)
    lines = read_lines(tmp_path / "scenes" / "predictions.jsonl", PREDICTIONS)
    assert lines.header["settings"]["first_seed"] == 700_000
    assert set(lines.records) == {f"scene-700000/{k}" for k in range(6)}
    assert "from seed 700000 on: not the fixed test set" in (tmp_path / "report.md").read_text()
    # Scores of the test set are not mixed with others.
    assert "first_seed" in console.error("evaluate", *words)
