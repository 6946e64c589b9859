"""benchmarks/tables.py on a document of its own, with a command that writes tables and a picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"
Capture = pytest.CaptureFixture[str]
WRITER = """
import sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True)
(out / "all.md").write_text(
    "**first**\\n\\n| map | gIoU | cIoU | AUC |\\n|---|---:|---:|---:|\\n"
    "| **a group** | | | |\\n| one | 1 | 2 | 3 |\\n\\n"
    "| map | gIoU | cIoU | AUC |\\n|---|---:|---:|---:|\\n| two | 4 [3, 5] | 5 | 6 |\\n"
)
(out / "curve.png").write_bytes(b"new")
"""
BEFORE = """# Results

| map | AUC |
|---|---:|
| above all commands | 9 |

    python writer.py --out runs/one   # a comment

Words. ![a curve](images/curve.png) ![another](images/other.png)

| map | AUC | gIoU |
|---|---:|---:|
| old | 0 | 0 |
| older | 0 | 0 |

| map | gIoU |
|---|---:|
| old | 0 |

| map | time |
|---|---:|
| by hand | 7 |
"""
AFTER = BEFORE.replace("| old | 0 | 0 |\n| older | 0 | 0 |", "| **a group** | | |\n| one | 3 | 1 |").replace(
    "| old | 0 |", "| two | 4 [3, 5] |"
)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tables.py", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(end.value.code or 0)


def document(folder: Path, writer: str) -> Path:
    (folder / "writer.py").write_text(writer)
    (folder / "images").mkdir()
    (folder / "images" / "curve.png").write_bytes(b"old")
    (folder / "images" / "other.png").write_bytes(b"old")
    path = folder / "results.md"
    path.write_text(BEFORE)
    return path


def test_tables_and_pictures_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    path = document(tmp_path, WRITER)
    assert run(monkeypatch, "results.md") == 0
    assert path.read_text() == AFTER
    assert (tmp_path / "images" / "curve.png").read_bytes() == b"new"
    assert (tmp_path / "images" / "other.png").read_bytes() == b"old"
    printed = capsys.readouterr().out
    assert "results.md:20: no command wrote such a table" in printed
    assert "no command wrote other.png" in printed
    assert "- | old | 0 | 0 |" in printed and "+ | one | 3 | 1 |" in printed
    # The folder is there, so the command would end with an error: it is not run twice.
    assert run(monkeypatch, "results.md") == 0
    assert path.read_text() == AFTER


def test_a_failing_command_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    path = document(tmp_path, "raise SystemExit(3)")
    assert run(monkeypatch, "results.md") != 0
    assert path.read_text() == BEFORE
    assert "'python writer.py --out runs/one' ended with 3; nothing was changed" in capsys.readouterr().err


def test_a_document_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "none.md") != 0
    assert "none.md: no such file" in capsys.readouterr().err
