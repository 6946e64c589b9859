from __future__ import annotations

import pytest
import torch
from transformers import SamModel

from readseg.errors import ReadsegError
from readseg.sam_keys import load_original, to_original, to_stock
from small import small_config


@pytest.fixture
def sam() -> SamModel:
    return SamModel(small_config().mask_config)


def test_names_go_there_and_back(sam: SamModel) -> None:
    state = sam.state_dict()
    original = to_original(state)
    assert "image_encoder.blocks.0.attn.rel_pos_h" in original
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight" in original
    assert len(original) == len(state) - 1  # the Fourier features have one name there
    back = to_stock(original)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_loaded_model_is_the_saved_one(sam: SamModel) -> None:
    other = SamModel(small_config().mask_config)
    load_original(other, to_original(sam.state_dict()))
    state = sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_unknown_names_are_listed(sam: SamModel) -> None:
    state = to_original(sam.state_dict()) | {"image_encoder.neck.9.weight": torch.zeros(1), "x": torch.zeros(1)}
    with pytest.raises(ReadsegError, match=r"image_encoder.neck.9.weight, x"):
        to_stock(state)
    with pytest.raises(ReadsegError, match="not names of SamModel: y"):
        to_original({"y": torch.zeros(1)})


def test_missing_and_misshapen_weights_are_listed(sam: SamModel) -> None:
    state = to_original(sam.state_dict())
    del state["mask_decoder.iou_token.weight"]
    state["image_encoder.pos_embed"] = torch.zeros(1)
    with pytest.raises(
        ReadsegError, match=r"missing: mask_decoder.iou_token.weight; of a wrong shape: vision_encoder.pos_embed"
    ):
        load_original(sam, state)
