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
