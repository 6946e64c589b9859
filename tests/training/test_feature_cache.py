"""The cache gives the same values whether or not they were there before."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from readseg.checkpoints.load import digest
from readseg.training.feature_cache import FeatureCache


def test_computed_once_and_equal_afterwards(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.linspace(0, 1, 7)}

    first, second = (FeatureCache(tmp_path).get_or_compute("a", compute) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first["x"], second["x"])
    assert torch.allclose(first["x"].float(), torch.linspace(0, 1, 7), atol=4e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 5)
    assert torch.equal(
        FeatureCache(tmp_path).get_or_compute("a", lambda: {"x": torch.ones(2)})["x"].float(), torch.ones(2)
    )


def test_digest_knows_every_weight() -> None:
    layer = nn.Linear(3, 2)
    before = digest([layer])
    assert before == digest([layer])
    with torch.no_grad():
        layer.bias[1] += 1e-6
    assert digest([layer]) != before
