"""`readseg chat`: several turns, typed or piped."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from commandline import Console


class Terminal(io.StringIO):
    """Standard input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def talk(console: Console, stdin: io.TextIOBase, *words: object) -> tuple[int, str, str]:
    console.monkeypatch.setattr(sys, "stdin", stdin)
    return console("chat", *words)


def test_piped_questions(console: Console, model: Path, desk: Path) -> None:
    stdin = io.StringIO("the cat\n\n  \nthe unicorn\nquit\nnever asked\n")
    code, out, err = talk(console, stdin, desk, "--model", model, "--out", "turns")
    assert (code, err) == (0, "")
    assert "it is the cat [SEG]." in out and "never asked" not in out
    assert sorted(path.name for path in Path("turns").iterdir()) == ["turn_1", "turn_2"]
    assert (Path("turns") / "turn_1" / "mask_1.png").exists()


def test_the_end_of_the_input_ends_it_and_nothing_is_written(console: Console, model: Path, desk: Path) -> None:
    code, out, _ = talk(console, io.StringIO("the cat"), desk, "--model", model)
    assert code == 0 and "it is the cat" in out
    assert [path.name for path in desk.parent.iterdir()] == ["desk.png"]


def test_bad_input_at_a_terminal_is_told_and_forgiven(console: Console, model: Path, desk: Path) -> None:
    code, out, err = talk(console, Terminal("word " * 5000 + "\nthe cat\n"), desk, "--model", model)
    assert code == 0 and "too long" in err and "it is the cat" in out


def test_bad_input_in_a_pipe_ends_it(console: Console, model: Path, desk: Path) -> None:
    bytes_that_are_no_text = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xff\n"), encoding="utf-8")
    for stdin, message in ((io.StringIO("word " * 5000), "too long"), (bytes_that_are_no_text, "UTF-8")):
        console.monkeypatch.setattr(sys, "stdin", stdin)
        assert message in console.error("chat", desk, "--model", model)
    assert "no such image" in console.error("chat", "missing.png")
