"""Where the reference values lie: READSEG_REFERENCE, or the small part of them in tests/golden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from golden.packing import lay_out

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
