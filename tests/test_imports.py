"""`import readseg` and `readseg --help` stay light. Which folder may import which is a contract in pyproject.toml."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import readseg
from readseg.cli.app import COMMANDS
from readseg.cli.study import STUDIES

PACKAGE = Path(readseg.__file__).parent

# Neither `import readseg` nor `readseg --help` may load these.
HEAVY = ("torch", "transformers", "numpy", "cv2", "PIL", "matplotlib")


def _fresh(code: str) -> str:
    """Runs code in a new interpreter that sees this package, returns what it printed."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _best_seconds(code: str, repeats: int = 3) -> float:
    """The least time of a few runs, beyond an empty interpreter's: other work on the machine only adds."""

    def once(what: str) -> float:
        start = time.perf_counter()
        _fresh(what)
        return time.perf_counter() - start

    return min(once(code) for _ in range(repeats)) - min(once("pass") for _ in range(repeats))


def test_import_is_light_and_quick() -> None:
    loaded = _fresh("import sys, readseg; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)
    assert _best_seconds("import readseg") < 0.3


def test_help_is_light_and_quick() -> None:
    code = """
import sys
from readseg.cli import main
sys.argv = ["readseg", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    printed = _fresh(code + "print('MODULES', *sys.modules)")
    shown, _, loaded = printed.partition("MODULES")
    assert not set(HEAVY) & set(loaded.split())
    for command in ("segment", "chat", "train", "evaluate", "analyse", "study", "ablate", "data"):
        assert command in shown
    assert _best_seconds(code) < 0.5


@pytest.mark.parametrize("name", [*COMMANDS, *STUDIES])
def test_the_help_of_a_command_begins_as_the_list_says(name: str) -> None:
    if name in STUDIES:
        assert import_module(f"readseg.analysis.studies.{name}").STUDY.name == name
        return
    doc = inspect.getdoc(getattr(import_module(f"readseg.cli.{name}"), name)) or ""
    assert " ".join(doc.partition("\n\n")[0].split()) == COMMANDS[name]


def test_public_names_exist_and_are_listed() -> None:
    for name in readseg.__all__:
        assert getattr(readseg, name) is not None
        assert name in dir(readseg)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="Segmenter"):
        _ = readseg.Segmentr
