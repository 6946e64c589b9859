"""Where the reference values lie: READSEG_REFERENCE, or the small part of them in tests/golden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from golden.packing import lay_out
from parity.released_cases import Case, Released, part_with, read_json, released, teacher_forced

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with reference values. Both have all parts: a test that lacks its own fails."""
    named = os.environ.get("READSEG_REFERENCE")
    if not named:
        return lay_out(GOLDEN, tmp_path_factory.mktemp("reference"))
    folder = Path(named).resolve()
    if not folder.is_dir():
        pytest.fail(f"READSEG_REFERENCE names no folder: {folder}")
    return folder


# -- part C ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return part_with(reference / "C_read", "index.json", "ckpt/config.json", "images.safetensors")


@pytest.fixture(scope="module")
def index(folder: Path) -> dict[str, Any]:
    return read_json(folder / "index.json")


@pytest.fixture(scope="module")
def read(folder: Path) -> Released:
    return released(folder / "ckpt", folder / "images.safetensors")


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    return teacher_forced(folder)
