"""`readseg segment`: what it prints and writes, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import readseg
from readseg.cli import main
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from small import picture
from tiny_segmenter import ANSWERS


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture().save(tmp_path / "desk.png")
    return tmp_path / "desk.png"


class Console:
    """Runs a command in this process and keeps what it printed and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["readseg", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = self.capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(monkeypatch, capsys)


def one_error(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("readseg: ")
    assert err.count("\n") == 1
    return err


def test_one_query(console: Console, model: Path, desk: Path) -> None:
    code, out, err = console("segment", desk, "the cat", "--model", model, "--out", "there", "--device", "cpu")
    assert code == 0, err
    assert "it is the cat [SEG]." in out
    assert "mask 1:" in out
    assert "there" in out
    written = {path.name for path in Path("there").iterdir()}
    assert written == {"result.json", "overlay.png", "mask_1.png", "heatmap_1.png"}


def test_many_queries_and_the_default_folder(console: Console, model: Path, desk: Path) -> None:
    code, out, err = console("segment", desk, *ANSWERS, "--model", model)
    assert code == 0, err
    for answer in ANSWERS.values():
        assert answer in out
    assert "not found" in out
    folders = sorted(path.name for path in Path("outputs/desk").iterdir())
    assert folders == [f"query_{k}" for k in range(1, 6)]


def test_json_is_one_line_a_query(console: Console, model: Path, desk: Path) -> None:
    code, out, err = console("segment", desk, "the cat", "the unicorn", "--model", model, "--json", "--out", "o")
    assert (code, err) == (0, "")
    results = [Segmentation.from_json(line) for line in out.splitlines()]
    assert [r.answer for r in results] == ["it is the cat [SEG].", "there is no unicorn."]
    assert json.loads(Path("o/query_2/result.json").read_text())["present"] is False


def test_options_of_prompts_and_points(console: Console, model: Path, desk: Path) -> None:
    def points(*options: object) -> int:
        code, out, err = console("segment", desk, "the cat", "--model", model, "--json", "--out", "o", *options)
        assert code == 0, err
        return len(json.loads(out)["points"][0]["labels"])

    assert points("--num-points", 2) == 2
    assert points("--points", "off") == 0
    assert points("--points", "only") == 5
    assert "thresholds" in one_error(console("segment", desk, "cat", "--model", model, "--t-pos", 0.1, "--t-neg", 0.5))


def test_bad_images(console: Console, desk: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    picture(64, 64).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for name, words in {
        "missing.png": "no such image",
        "empty.png": "empty",
        "text.png": "not an image",
        "half.jpg": "truncated",
        ".": "directory",
    }.items():
        assert words in one_error(console("segment", name, "the cat"))
    assert not Path("outputs").exists()  # nothing half-written


@pytest.mark.parametrize("query", ["", "  ", "word " * 10_000])
def test_bad_queries(console: Console, model: Path, desk: Path, query: str) -> None:
    assert "query" in one_error(console("segment", desk, query, "--model", model, "--out", "o"))
    assert not list(Path("o").glob("*"))


def test_bytes_that_are_no_text(console: Console, model: Path, desk: Path) -> None:
    query, folder = os.fsdecode(b"the cat\xff"), os.fsdecode(b"o\xff")  # as a shell passes them
    code, out, err = console("segment", desk, query, "--model", model, "--out", folder)
    assert code == 0, err
    assert "the cat?" in out
    assert json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))["query"] == "the cat?"


def test_bad_models(console: Console, desk: Path) -> None:
    assert "no such folder" in one_error(console("segment", desk, "cat", "--model", "nowhere"))
    assert "holds no model" in one_error(console("segment", desk, "cat", "--model", desk.parent))
    assert "device" in one_error(console("segment", desk, "cat", "--model", desk.parent, "--device", "abacus"))


def test_an_output_folder_that_cannot_be(console: Console, desk: Path) -> None:
    error = one_error(console("segment", desk, "the cat", "--out", desk / "sub"))
    assert "cannot write to" in error
    assert "--out" in error


def test_usage_errors_are_one_line(console: Console, desk: Path) -> None:
    for words in (["segment"], ["segment", desk], ["segment", desk, "cat", "--points", "all"], ["nonsense"]):
        error = one_error(console(*words))
        assert "--help" in error
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
    config = json.loads((model / "config.json").read_text())
    other = desk.parent / "crop"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
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
