"""`readseg segment`: what it prints and writes, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import readseg
from commandline import Console
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from tiny_segmenter import ANSWERS


def test_one_query(console: Console, model: Path, desk: Path) -> None:
    out = console.out("segment", desk, "the cat", "--model", model, "--out", "there", "--device", "cpu")
    assert "it is the cat [SEG]." in out and "mask 1:" in out and "there" in out
    written = {path.name for path in Path("there").iterdir()}
    assert written == {"result.json", "overlay.png", "mask_1.png", "heatmap_1.png"}


def test_many_queries_and_the_default_folder(console: Console, model: Path, desk: Path) -> None:
    out = console.out("segment", desk, *ANSWERS, "--model", model)
    assert all(words in out for words in (*ANSWERS.values(), "not found"))
    assert sorted(path.name for path in Path("outputs/desk").iterdir()) == [f"query_{k}" for k in range(1, 6)]


def test_json_is_one_line_a_query(console: Console, model: Path, desk: Path) -> None:
    code, out, err = console("segment", desk, "the cat", "the unicorn", "--model", model, "--json", "--out", "o")
    assert (code, err) == (0, "")
    results = [Segmentation.from_json(line) for line in out.splitlines()]
    assert [r.answer for r in results] == ["it is the cat [SEG].", "there is no unicorn."]
    assert json.loads(Path("o/query_2/result.json").read_text())["present"] is False


def test_options_of_prompts_and_points(console: Console, model: Path, desk: Path) -> None:
    words = ("segment", desk, "the cat", "--model", model, "--json", "--out", "o")
    for options, count in ((("--num-points", 2), 2), (("--points", "off"), 0), (("--points", "only"), 5)):
        assert len(json.loads(console.out(*words, *options))["points"][0]["labels"]) == count
    assert "thresholds" in console.error(*words, "--t-pos", 0.1, "--t-neg", 0.5)


def test_bad_images(console: Console, desk: Path) -> None:
    Path("half.png").write_bytes(desk.read_bytes()[: desk.stat().st_size // 2])
    for name, words in {"missing.png": "no such image", "half.png": "truncated", ".": "directory"}.items():
        assert words in console.error("segment", name, "the cat")
    assert not Path("outputs").exists()  # nothing half-written


@pytest.mark.parametrize("query", ["", "  ", "word " * 10_000])
def test_bad_queries(console: Console, model: Path, desk: Path, query: str) -> None:
    assert "query" in console.error("segment", desk, query, "--model", model, "--out", "o")
    assert not list(Path("o").glob("*"))


def test_bytes_that_are_no_text(console: Console, model: Path, desk: Path) -> None:
    query, folder = os.fsdecode(b"the cat\xff"), os.fsdecode(b"o\xff")  # as a shell passes them
    assert "the cat?" in console.out("segment", desk, query, "--model", model, "--out", folder)
    assert json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["query"] == "the cat?"


def test_bad_models_and_folders(console: Console, desk: Path) -> None:
    for words, message in (
        (("--model", "nowhere"), "no such folder"),
        (("--model", desk.parent), "holds no model"),
        (("--model", desk.parent, "--device", "abacus"), "device"),
        (("--out", desk / "sub"), "cannot write to"),
        (("--out", desk / "sub"), "--out"),
    ):
        assert message in console.error("segment", desk, "cat", *words)


def test_usage_errors_are_one_line(console: Console, desk: Path) -> None:
    for words in (["segment"], ["segment", desk], ["segment", desk, "cat", "--points", "all"], ["nonsense"]):
        assert "--help" in console.error(*words)
    code, out, err = console("data")  # a group without a command says what it has
    assert (code, err) == (2, "")
    assert "scenes" in out


def test_an_interrupt_ends_with_130(console: Console, model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Segmenter, "segment", interrupted)
    code, _, err = console("segment", desk, "the cat", "--model", model)
    assert code == 130
    assert "Traceback" not in err


def test_warnings_are_one_line(console: Console, model: Path, desk: Path) -> None:
    other = Path(shutil.copytree(model, desk.parent / "crop"))
    config = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "view": "crop"}))
    code, _, err = console("segment", desk, "the cat", "--model", other)
    assert code == 0
    assert err.startswith("readseg: warning: the model sees only the centre")
    assert err.count("\n") == 1


def test_a_wrong_name_fails_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from readseg.cli import main; sys.argv = ['readseg', 'segment', 'missing.png', 'cat']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(readseg.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
    )
    assert done.stdout == "2 False\n"
    assert done.stderr == "readseg: missing.png: no such image file\n"
