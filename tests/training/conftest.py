"""Miniatures and a start, for all tests of training on data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.miniatures import write_miniatures
from tuned import write_start


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all data sets."""
    root = tmp_path_factory.mktemp("data") / "mini"
    write_miniatures(root, seed=5, images=8)
    return root


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few channels."""
    return write_start(tmp_path_factory.mktemp("start") / "model")
