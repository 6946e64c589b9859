"""A tiny model's folder and miniatures of all data sets, anew for each file of tests: a test may spoil them."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.miniatures import write_miniatures
from tiny_segmenter import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "data"
    write_miniatures(root, seed=3, images=8)
    return root
