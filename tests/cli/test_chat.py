"""`readseg chat`: several turns, typed or piped."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from readseg.cli import main
from small import picture


class Terminal(io.StringIO):
    """Standard input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture().save(tmp_path / "desk.png")
    return tmp_path / "desk.png"


def talk(
    monkeypatch: pytest.MonkeyPatch, stdin: io.TextIOBase, *words: object, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "argv", ["readseg", "chat", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_piped_questions(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.StringIO("the cat\n\n  \nthe unicorn\nquit\nnever asked\n")
    code, out, err = talk(monkeypatch, stdin, desk, "--model", model, "--out", "turns", capsys=capsys)
    assert (code, err) == (0, "")
    assert "it is the cat [SEG]." in out
    assert "never asked" not in out
    assert sorted(path.name for path in Path("turns").iterdir()) == ["turn_1", "turn_2"]
    assert (Path("turns") / "turn_1" / "mask_1.png").exists()


def test_the_end_of_the_input_ends_it_and_nothing_is_written(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = talk(monkeypatch, io.StringIO("the cat"), desk, "--model", model, capsys=capsys)
    assert code == 0
    assert "it is the cat" in out
    assert [path.name for path in desk.parent.iterdir()] == ["desk.png"]


def test_bad_input_at_a_terminal_is_told_and_forgiven(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = Terminal("word " * 5000 + "\nthe cat\n")
    code, out, err = talk(monkeypatch, typed, desk, "--model", model, capsys=capsys)
    assert code == 0
    assert "too long" in err
    assert "it is the cat" in out


def test_bad_input_in_a_pipe_ends_it(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.StringIO("word " * 5000)
    code, _, err = talk(monkeypatch, stdin, desk, "--model", model, capsys=capsys)
    assert code == 2
    assert err.startswith("readseg: ")
    assert err.count("\n") == 1


def test_bytes_that_are_no_text(
    model: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xff\n"), encoding="utf-8")
    code, _, err = talk(monkeypatch, stdin, desk, "--model", model, capsys=capsys)
    assert code == 2
    assert "UTF-8" in err


def test_a_missing_image(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = talk(monkeypatch, io.StringIO(""), "missing.png", capsys=capsys)
    assert code == 2
    assert "no such image" in err
