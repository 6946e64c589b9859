"""What all tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils import logging

from released import write_released


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def read(folder: Path) -> Path:
    """READ's weights as released, its tower beside them."""
    write_released(folder, "read", form="safetensors")
    return folder
