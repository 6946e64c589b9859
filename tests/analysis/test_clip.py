"""CLIP's own map, and reading a CLIP with its text encoder: all of its weights or an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from readseg.analysis.clip import clip_map, clip_scores, load_clip
from readseg.core.frames import ImageFrame
from readseg.core.sasp import full_map
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from released import write_tower
from small import picture, small_model, small_processor, small_tokenizer

CPU = torch.device("cpu")
SIZE = (40, 60)
CLOSE = {"rtol": 0, "atol": 1e-4}


@cache
def small(view: str = "stretch") -> Segmenter:
    return Segmenter(small_model(view=view), small_processor(view=view))


@cache
def small_clip(image_size: int = 24) -> CLIPModel:
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **layers, vocab_size=len(small_tokenizer()), eos_token_id=small_tokenizer().eos_token_id, projection_dim=8
    )
    vision = CLIPVisionConfig(**layers, image_size=image_size, patch_size=8, projection_dim=8)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    return model


def words(text: str, **_: Any) -> dict[str, Tensor]:
    """A tokenizer, called as CLIP's."""
    ids = torch.tensor([[*small_tokenizer().encode(text, add_special_tokens=False), small_tokenizer().eos_token_id]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def write_clip(folder: Path) -> Path:
    small_clip().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder(tmp_path: Path) -> None:
    model, tokenizer = load_clip(write_clip(tmp_path / "clip"), CPU)
    assert not model.training and model.dtype == torch.float32
    for name, weight in small_clip().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    found = clip_map(small(), picture(), "red cup", model, tokenizer)
    expected = clip_map(small(), picture(), "red cup", small_clip(), small_tokenizer())
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
    state = {name: weight for name, weight in small_clip().state_dict().items() if name != "text_projection.weight"}
    small_clip().save_pretrained(folder, state_dict=state)
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


@torch.inference_mode()
def test_clip_scores_are_cosines_of_text_and_patches() -> None:
    model, said, pixels = small_clip(), words("red cup"), torch.randn(1, 3, 24, 24)
    ours = clip_scores(model, said["input_ids"], said["attention_mask"], pixels)
    states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    patches = model.visual_projection(model.vision_model.post_layernorm(states))[0]
    text = model.text_projection(model.text_model(**said).pooler_output)
    torch.testing.assert_close(ours, F.cosine_similarity(text, patches[1:]), **CLOSE)
    assert ours.shape == (9,)
    # The class token in the patches' place is CLIP's own score of image and text.
    whole = model(**said, pixel_values=pixels).logits_per_image[0, 0] / model.logit_scale.exp()
    torch.testing.assert_close(F.cosine_similarity(text, patches[:1])[0], whole, **CLOSE)
    other = clip_scores(model, **words("saw"), pixel_values=pixels)
    assert (ours - other).abs().max() > 0.01
    torch.testing.assert_close(clip_scores(model, said["input_ids"], None, pixels), ours)


@pytest.mark.parametrize("view", ["crop", "letterbox", "stretch"])
def test_clip_map_sees_what_the_model_sees(view: str) -> None:
    found = clip_map(small(view), picture(*SIZE), "red cup", small_clip(), words)
    assert (found.name, found.layer, found.of, found.grid_hw) == ("clip", None, "red cup", (3, 3))
    frame = ImageFrame(*SIZE, 24, 32, view)
    expected = full_map(torch.tensor(found.scores)[None], SIZE, box=frame.lmm_box)[0]
    np.testing.assert_allclose(found.map, expected, **CLOSE)
    # With a tower of the model's own size, the pixels are the processor's.
    same = clip_map(small(view), picture(*SIZE), "red cup", small_clip(32), words)
    pixels = small(view).processor.lmm_pixels(picture(*SIZE))[None]
    np.testing.assert_allclose(
        same.scores, clip_scores(small_clip(32), **words("red cup"), pixel_values=pixels), **CLOSE
    )


def test_a_vision_tower_alone_is_not_available() -> None:
    tower = small().model.lmm.model.vision_tower
    message = "not available: it needs a transformers CLIPModel.*got CLIPVisionModel.*without a text encoder"
    with pytest.raises(ReadsegError, match=message):
        clip_map(small(), picture(*SIZE), "red cup", tower, words)
    with pytest.raises(ReadsegError, match="got NoneType"):
        clip_map(small(), picture(*SIZE), "red cup", None, words)
    with pytest.raises(ReadsegError, match="one text and one image; got 1 and 2"):
        clip_scores(small_clip(), **words("a"), pixel_values=torch.zeros(2, 3, 24, 24))
