"""Imports point one way, and `import readseg` and `readseg --help` stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import readseg

PACKAGE = Path(readseg.__file__).parent

# Every module or folder directly under src/readseg, and what it may import of its neighbours. A line may
# use what the lines above it define; a name that stands in no list is no one's to import.
PIXELS = "errors files images geometry masks"
CORE = f"{PIXELS} grids sasp losses config"
FILES = "lora weight_files descriptions layouts towers checkpoints base_models adapters loading"
MODEL = f"{CORE} families conversation tokenizer packing prompting answering sam_keys model processor {FILES}"
PICTURES = f"{PIXELS} draw"
USER = f"{MODEL} draw segmentation queries replies segmenter processes json_lines"
WORK = f"{USER} data evaluation training analysis charts sheets figures"

MAY_IMPORT = {
    "errors": "",
    "files": "errors",
    "images": "errors",
    "grids": "errors",
    "sasp": "errors grids",
    "geometry": "errors grids sasp",
    "masks": "errors files geometry",
    "losses": "errors files grids sasp geometry masks",
    "config": "errors grids sasp geometry masks losses",
    "families": CORE,
    "conversation": f"{CORE} families",
    "tokenizer": "errors files",
    "prompting": CORE,
    "answering": "errors",
    "packing": "",
    "sam_keys": CORE,
    "lora": "errors",
    "weight_files": "errors files",
    "descriptions": "errors",
    "layouts": f"{CORE} families tokenizer sam_keys",
    "towers": "errors weight_files descriptions layouts",
    "model": f"{CORE} families conversation packing prompting answering sam_keys",
    "processor": f"{CORE} families conversation tokenizer prompting sam_keys model",
    "checkpoints": f"{CORE} families tokenizer lora weight_files sam_keys descriptions layouts towers model processor",
    "base_models": f"{CORE} families tokenizer lora weight_files sam_keys descriptions layouts towers checkpoints",
    "adapters": f"{CORE} families tokenizer lora weight_files descriptions processor checkpoints base_models",
    "loading": f"{CORE} families weight_files model processor checkpoints adapters",
    "draw": PIXELS,
    "charts": "",
    "sheets": PICTURES,
    "data": PICTURES,
    "segmentation": f"{PICTURES} sasp",
    "queries": "errors",
    "replies": f"{MODEL} queries",
    "segmenter": f"{MODEL} draw segmentation queries replies",
    "processes": "",
    "json_lines": "errors",
    "evaluation": f"{USER} data",
    "training": f"{USER} data evaluation",
    "analysis": f"{USER} data evaluation training",
    "figures": f"{PICTURES} analysis",
    "serve": WORK,
    "cli": f"{WORK} serve",
    "__main__": "cli",
}

# Neither `import readseg` nor `readseg --help` may load these.
HEAVY = ("torch", "transformers", "numpy", "cv2", "PIL", "matplotlib")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The name directly under src/readseg that a file belongs to; "" for the package's own __init__."""
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported_parts(path: Path) -> set[tuple[str, int]]:
    """What a file imports of readseg, at its head or inside functions, as (name under readseg, line)."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it out"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "readseg":
                found.add((pieces[1] if len(pieces) > 1 else "", node.lineno))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "":
        return  # its imports are lazy or for the type checker: it may name anything
    assert part in MAY_IMPORT, f"{path.name} is new: give it a line in MAY_IMPORT"
    # Anyone may ask for the version; through `readseg` itself nothing else is taken.
    allowed = {part, "__version__", *MAY_IMPORT[part].split()}
    wrong = sorted((line, name) for name, line in imported_parts(path) if name not in allowed)
    told = "; ".join(f"line {line} imports {name or 'readseg itself'}" for line, name in wrong)
    assert not wrong, f"{path}: {told}"


def test_the_table_has_no_circle() -> None:
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        # images, draw, data, ... stand in the order in which they may use each other.
        assert part not in allowed.split()
        for other in allowed.split():
            assert part not in MAY_IMPORT[other].split(), f"{part} and {other} may import each other"
            assert other in order


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from readseg.cli import main\n    import readseg.model as m\n")
    assert {name for name, _ in imported_parts(bad)} == {"cli", "model"}


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
    for command in ("segment", "chat", "train", "evaluate", "analyse", "ablate", "data"):
        assert command in shown
    assert _best_seconds(code) < 0.5


def test_public_names_exist_and_are_listed() -> None:
    for name in readseg.__all__:
        assert getattr(readseg, name) is not None
        assert name in dir(readseg)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="Segmenter"):
        _ = readseg.Segmentr
