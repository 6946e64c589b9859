"""The shapes that signatures state are really checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from readseg.core.sasp import similarity


def test_a_contradiction_of_sizes_is_caught() -> None:
    with pytest.raises(TypeCheckError):
        similarity(torch.zeros(2, 3), torch.zeros(4, 5))
