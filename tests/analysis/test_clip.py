"""Reading a CLIP with its text encoder: all of its weights or an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from readseg.analysis.clip import load_clip
from readseg.analysis.maps import clip_map
from readseg.errors import ReadsegError
from readseg.segmenter import Segmenter
from released import write_tower
from small import picture, small_model, small_processor, small_tokenizer

CPU = torch.device("cpu")


@cache
def clip() -> CLIPModel:
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**layers, vocab_size=len(small_tokenizer()), projection_dim=8)
    vision = CLIPVisionConfig(**layers, image_size=24, patch_size=8, projection_dim=8)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()


def write_clip(folder: Path) -> Path:
    clip().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder(tmp_path: Path) -> None:
    model, tokenizer = load_clip(write_clip(tmp_path / "clip"), CPU)
    assert not model.training and model.dtype == torch.float32
    for name, weight in clip().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    segmenter = Segmenter(small_model(), small_processor())
    found = clip_map(segmenter, picture(), "red cup", model, tokenizer)
    expected = clip_map(segmenter, picture(), "red cup", clip(), small_tokenizer())
    assert found.map is not None and found.map.shape == (40, 60)
    np.testing.assert_allclose(found.map, expected.map, atol=1e-5)


def test_what_is_no_clip_is_an_error(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower")
    with pytest.raises(ReadsegError, match=r"of type 'clip_vision_model'.*the vision tower alone knows no text"):
        load_clip(tmp_path / "tower", CPU)
    with pytest.raises(ReadsegError, match="no such folder"):
        load_clip(tmp_path / "nowhere", CPU)


def test_missing_and_damaged_parts_are_errors(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    state = {name: weight for name, weight in clip().state_dict().items() if name != "text_projection.weight"}
    clip().save_pretrained(folder, state_dict=state)
    with pytest.raises(ReadsegError, match=r"missing or of a wrong shape: text_projection\.weight"):
        load_clip(folder, CPU)
    write_clip(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ReadsegError, match="this CLIP cannot be read"):
        load_clip(folder, CPU)
    write_clip(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ReadsegError, match="this CLIP cannot be read"):
        load_clip(folder, CPU)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ReadsegError, match="the tokenizer of this CLIP is missing"):
        load_clip(folder, CPU)
