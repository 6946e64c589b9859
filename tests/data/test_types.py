"""A sample of any number of masks, one for each [SEG] of its answers."""

from __future__ import annotations

import numpy as np
import pytest

from readseg.core.types import Turn
from readseg.data.types import Sample

IMAGE, MASK = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_sample_has_a_mask_for_each_token(count: int) -> None:
    answer = "the cow [SEG]." * count
    assert Sample("a", IMAGE, (Turn("q", answer, (MASK,) * count),)).turns[0].answer == answer
    with pytest.raises(AssertionError, match=f"{count + 1} masks for the answer"):
        Sample("a", IMAGE, (Turn("q", answer, (MASK,) * (count + 1)),))
