"""What all tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"
