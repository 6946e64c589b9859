"""Samples with a mask for each [SEG] of their answers; readers tell what is missing and where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from readseg.core.types import Turn
from readseg.data.readers.coco_parts import PACO, PascalPart
from readseg.data.readers.llava_instruct import LlavaInstruct
from readseg.data.readers.semantic import ADE20K, COCOStuff, Mapillary
from readseg.data.types import Sample, SplitReader
from readseg.errors import ReadsegError

IMAGE, MASK = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_sample_has_a_mask_for_each_token(count: int) -> None:
    answer = "the cow [SEG]." * count
    assert Sample("a", IMAGE, (Turn("q", answer, (MASK,) * count),)).turns[0].answer == answer
    with pytest.raises(AssertionError, match=f"{count + 1} masks for the answer"):
        Sample("a", IMAGE, (Turn("q", answer, (MASK,) * (count + 1)),))


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
