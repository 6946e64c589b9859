"""Initialisation keeps the scale of what passes through, and SAM's cross-attention starts at its points."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import SamModel

from readseg.training.stages.pretraining import initialise, initialise_sam
from small import small_config


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(256, 128), (512, 256)), (nn.Conv2d(16, 64, 3, padding=0), (4, 16, 24, 24))],
)
def test_variance_is_kept(layer: nn.Module, shape: tuple[int, ...]) -> None:
    initialise(layer)
    assert layer(torch.randn(shape)).std().item() == pytest.approx(1.0, rel=0.1)


def test_sam_first_attends_to_equal_places() -> None:
    sam = SamModel(small_config().mask_config)
    initialise_sam(sam)
    place = torch.nn.functional.normalize(torch.randn(9, 16))
    for layer in sam.mask_decoder.transformer.layers:
        attention = layer.cross_attn_token_to_image
        q, k = attention.q_proj(place), attention.k_proj(place)
        assert torch.equal(torch.cdist(q, k).argmin(1), torch.arange(9))
    image, prompt = sam.shared_image_embedding, sam.prompt_encoder.shared_embedding
    assert torch.equal(image.positional_embedding, prompt.positional_embedding)
