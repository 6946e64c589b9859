"""`readseg score`: the same report as evaluation wrote, from predictions alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commandline import Console, run
from tiny_segmenter import build


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the miniatures, and what evaluation made of two benchmarks of them and of a scene."""
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(data, root / "data")
    build(root / "model")
    names = ("reasonseg/val", "grefcoco/testA", "scenes")
    places = ("--model", root / "model", "--data", root / "data", "--out", root / "out")
    words = ("evaluate", *names, "--limit", 2, *places)
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *words) == 0
    return root


def test_score_is_what_evaluate_said(evaluated: Path, tmp_path: Path, console: Console) -> None:
    files = sorted((evaluated / "out").glob("*/predictions.jsonl"), reverse=True)
    printed = console.out("score", *files, "--out", tmp_path / "scored")
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "scored" / name).read_bytes() == (evaluated / "out" / name).read_bytes()
    assert "grefcoco/testA" in printed and "N-acc" in printed and "largest object" in printed
    folder = console.out("score", evaluated / "out")
    assert folder == printed.partition("report:")[0], "a folder stands for all that is in it"


def test_pictures_are_found_elsewhere_or_said_to_be_missing(evaluated: Path, tmp_path: Path, console: Console) -> None:
    moved = tmp_path / "predictions.jsonl"
    shutil.copy(evaluated / "out" / "reasonseg_val" / "predictions.jsonl", moved)
    lines = moved.read_text(encoding="utf-8").splitlines(keepends=True)
    head = json.loads(lines[0])
    head["about"]["data"] = str(tmp_path / "gone")
    moved.write_text(json.dumps(head) + "\n" + "".join(lines[1:]), encoding="utf-8")
    console.out("score", moved, "--out", tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "pictures are not shown" in page and str(tmp_path / "gone") in page and "<img" not in page
    console.out("score", moved, "--out", tmp_path / "b", "--data", evaluated / "data")
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "pictures are not shown" not in page and "<img" in page


def test_damaged_files_are_named_with_their_line(evaluated: Path, tmp_path: Path, console: Console) -> None:
    lines = (evaluated / "out" / "grefcoco_testA" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[2])
    short = {"size": record["size"], "counts": "11"}
    for line, change, told in (
        (3, {**record, "targets": [short]}, "do not fill"),
        (3, {**record, "finished": "yes"}, "finished: "),
        (1, {**json.loads(lines[0]), "settings": {"match": "best"}}, "'match'"),
        (1, {**json.loads(lines[0]), "settings": {"match": "union", "protocol": "forced"}}, "'benchmark'"),
    ):
        path = tmp_path / "damaged.jsonl"
        path.write_text("\n".join([*lines[: line - 1], json.dumps(change), *lines[line:]]) + "\n", encoding="utf-8")
        error = console.error("score", path)
        assert f"damaged.jsonl, line {line}: " in error and told in error


def test_what_is_not_there_is_named(tmp_path: Path, console: Console) -> None:
    assert "none.jsonl" in console.error("score", tmp_path / "none.jsonl")
    assert "no predictions.jsonl" in console.error("score", tmp_path)
