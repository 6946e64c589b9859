"""As a user without any data would: miniatures, the six-way mixture for 20 steps, every benchmark, all in minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from readseg.evaluation.benchmarks import DATA_SETS, resolve

MOST_SECONDS = 240


def readseg(*words: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "readseg", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_and_evaluate_on_miniatures(tmp_path: Path) -> None:
    start = time.monotonic()
    data, run, scores = tmp_path / "mini", tmp_path / "run", tmp_path / "scores"
    readseg("data", "mini", "--out", data)
    readseg("train", "mini", "--data", data, "--out", run)
    words = ("all", "--model", run / "mini" / "adapter", "--data", data, "--limit", 1)
    shown = readseg("evaluate", *words, "--out", scores)
    assert time.monotonic() - start < MOST_SECONDS

    lines = [json.loads(line) for line in (run / "mini" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    names = resolve(data, ["all"])
    assert {name.partition("/")[0] for name in names} == set(DATA_SETS) and len(names) == 27
    results = json.loads((scores / "report.json").read_text())["results"]
    assert {result["about"]["images"] for result in results} == {1}
    protocols = {result["settings"]["benchmark"]: result["settings"]["protocol"] for result in results}
    assert protocols.keys() == set(names)
    assert protocols["refcoco/val"] == "forced" and protocols["grefcoco/val"] == "generated"
    assert not any("train" in name for name in names)
    for name in names:
        assert name in shown
        assert (scores / name.replace("/", "_") / "predictions.jsonl").is_file()
    assert readseg("score", scores).split("report:")[0] == shown.split("report:")[0]
