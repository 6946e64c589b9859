"""The miniatures of all tests, with the pictures that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from readseg.miniatures.pictures import Picture


class Mini(NamedTuple):
    root: Path
    pictures: list[Picture]


@pytest.fixture(scope="session")
def mini(data: Path, pictures: list[Picture]) -> Mini:
    return Mini(data, pictures)
