"""A start, and stages on it, for all tests of training on data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from readseg.training.stages.finetuning import FinetuningStage
from tuned import stage, write_start


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few channels."""
    return write_start(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture
def make(start: Path, data: Path, tmp_path: Path) -> Callable[..., FinetuningStage]:
    """Makes a stage on all miniatures, of changed settings; its cache is in the folder "cache"."""
    return partial(stage, start, data, tmp_path / "cache")
