"""What all tests share: no network, one thread, fixed seeds, shapes checked at run time where declared."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports torch or transformers: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from jaxtyping import config, install_import_hook

# Every shape that a signature of these modules states is checked at each call, with what it returns.
SHAPED = ("core.token_grid", "core.sasp", "core.frames", "core.masks", "model.losses")
install_import_hook([f"readseg.{name}" for name in SHAPED], "shapes.check")

# By their names, tests that give wrong input on purpose: they must meet our own errors, not the checker's.
WRONG_INPUT = re.compile(r"error|wrong|bad_|checked")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries that we call draw from the global state
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _shapes_are_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks the shapes of every call, but in tests of wrong input."""
    config.update("jaxtyping_disable", bool(WRONG_INPUT.search(request.node.name)))
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _no_precision_is_left_over() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run and refuses another one: forget it after each test."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line, as `commandline.Console` runs it."""
    from commandline import Console  # after the hook above

    return Console(monkeypatch, capsys)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all data sets, written once: a test that changes them takes a copy."""
    from commandline import run  # after the hook above

    root = tmp_path_factory.mktemp("data") / "mini"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "data", "mini", "--out", root, "--seed", 3, "--images", 8) == 0
    return root


@pytest.fixture(scope="session")
def pictures() -> list[Any]:
    """The drawn pictures of `data`, with what is true of them."""
    from readseg.miniatures.pictures import draw_pictures  # after the hook above

    return list(draw_pictures(3, 8))
