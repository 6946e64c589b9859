"""Miniatures and a start, for all tests of training on data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuned import write_start


@pytest.fixture(scope="session")
def mini(data: Path) -> Path:
    """The folder of all data sets."""
    return data


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few channels."""
    return write_start(tmp_path_factory.mktemp("start") / "model")
