"""Readers tell what is missing and where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.data.readers.coco_parts import PACO, PascalPart
from readseg.data.readers.llava_instruct import LlavaInstruct
from readseg.data.readers.semantic import ADE20K, COCOStuff, Mapillary
from readseg.data.types import SplitReader
from readseg.errors import ReadsegError


@pytest.mark.parametrize("reader", [ADE20K, COCOStuff, Mapillary, PACO, PascalPart, LlavaInstruct])
def test_what_is_missing_is_named_with_its_place(tmp_path: Path, reader: type[SplitReader]) -> None:
    assert reader.splits(tmp_path) == ([], [])
    for path, what in reader.files(tmp_path):
        with pytest.raises(ReadsegError, match="is missing: put") as told:
            reader(tmp_path, reader.SPLITS[0])
        assert str(told.value) == f"{path} is missing: put {what} there"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix == ".json" else path.mkdir()
    assert reader.splits(tmp_path) == ([reader.SPLITS[0]], [])
