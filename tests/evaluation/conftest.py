"""Miniatures of all data sets, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.miniatures import write_miniatures


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "data"
    write_miniatures(root, seed=3, images=8)
    return root
