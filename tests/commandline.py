"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from readseg.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Runs `readseg WORDS`; the code that it ends with."""
    monkeypatch.setattr(sys, "argv", ["readseg", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


class Console:
    """Runs commands and keeps what they print."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """The code that a command ends with, what it prints, and what it says on stderr."""
        code = run(self.monkeypatch, *words)
        return code, *self.capsys.readouterr()

    def out(self, *words: object) -> str:
        """What a command prints that ends well."""
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def error(self, *words: object) -> str:
        """The one line of a command that refuses its input."""
        code, out, err = self(*words)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("readseg: "), err
        return err
