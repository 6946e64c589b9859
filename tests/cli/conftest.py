"""A tiny model's folder and miniatures of all data sets, anew for each file of tests: a test may spoil them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from small import picture
from tiny_segmenter import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(name="data", scope="module")
def _own_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(data, tmp_path_factory.mktemp("mini") / "data"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture in the working folder."""
    monkeypatch.chdir(tmp_path)
    picture().save(tmp_path / "desk.png")
    return tmp_path / "desk.png"
