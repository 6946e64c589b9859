"""Where the reference values lie: READSEG_REFERENCE, or the small part of them in tests/golden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with reference values. A test skips only where its part is absent from it."""
    folder = Path(os.environ.get("READSEG_REFERENCE") or GOLDEN).resolve()
    if not folder.is_dir():
        pytest.fail(f"READSEG_REFERENCE names no folder: {folder}")
    return folder
