"""One set of miniatures for all tests of this folder, with the scenes that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from readseg.miniatures import write_miniatures
from readseg.miniatures.pictures import Picture, draw_pictures

IMAGES = 8


@dataclass(frozen=True)
class Mini:
    root: Path
    counts: dict[str, int]
    pictures: list[Picture]


@pytest.fixture(scope="package")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    root = tmp_path_factory.mktemp("mini") / "new" / "dataset"
    counts = write_miniatures(root, seed=3, images=IMAGES)
    return Mini(root, counts, list(draw_pictures(3, IMAGES)))
