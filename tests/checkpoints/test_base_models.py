"""Where training starts: base models in the layouts that they are found in, and what is added to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SamModel

from readseg.checkpoints.base_models import start_from
from readseg.checkpoints.checkpoint import build, read_checkpoint, save_checkpoint
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from released import (
    change_settings,
    llava_state,
    pieces,
    sam_state,
    stock_sam_name,
    tokenizer_model,
    weights_of,
    write_json,
    write_llava,
    write_sam,
    write_state,
)
from small import picture, small_config

EMBED, HEAD = "lmm.model.language_model.embed_tokens.weight", "lmm.lm_head.weight"


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """As its authors save it."""
    return write_llava(tmp_path / "llava")


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    """The original's single file."""
    return write_sam(tmp_path / "sam_vit_t.pth")


def test_original_layouts(llava: Path, sam: Path) -> None:
    start = start_from(llava, sam)
    rows = pieces().vocab_size()
    found, given = start.weights, llava_state()
    assert torch.equal(found["lmm.model.language_model.norm.weight"], given["model.norm.weight"])
    assert torch.equal(found["lmm.model.multi_modal_projector.linear_2.bias"], given["model.mm_projector.2.bias"])
    for ours, theirs in ((EMBED, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        assert found[ours].shape == (rows + 3, given[theirs].shape[1])
        assert torch.equal(found[ours][:rows], given[theirs])
        mean = given[theirs].double().mean(0)
        assert torch.allclose(found[ours][rows:].double(), mean.expand(3, -1), atol=1e-3)
    for name, value in sam_state().items():
        assert torch.equal(found[f"sam.{stock_sam_name(name)}"], value), name
    config = start.config
    assert (config.family, config.prompt, config.seg_token_id) == ("read", "both", rows)
    assert config.lmm_config.text_config.vocab_size == rows + 3
    assert start.tokenizer is not None
    assert start.tokenizer.added == {"[SEG]": rows, "<im_start>": rows + 1, "<im_end>": rows + 2}


@pytest.mark.parametrize("family", ["read", "sesame", "lisa", "gsva", "glamm"])
def test_a_start_answers_is_saved_and_comes_back(llava: Path, sam: Path, tmp_path: Path, family: str) -> None:
    start = start_from(llava, sam, family=family)
    model, processor = build(start)
    result = Segmenter(model, processor).segment(picture(64, 64), "the cup", force=True)
    assert result.masks.shape == (1, 64, 64)
    save_checkpoint(start, tmp_path / "out")
    save_checkpoint(start, tmp_path / "released", layout="released")
    for folder in (tmp_path / "out", tmp_path / "released"):
        again = read_checkpoint(folder)
        assert again.config.family == family
        assert again.weights.keys() == start.weights.keys()
        assert all(torch.equal(again.weights[name], value) for name, value in start.weights.items())


def test_the_projection_is_that_of_the_seed(llava: Path, sam: Path) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (start_from(llava, sam, seed=seed).weights["seg_projection.0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < one.abs().max() <= one.shape[1] ** -0.5  # drawn as nn.Linear draws: uniform within 1 / sqrt(D)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def llava_hf(tmp_path: Path) -> tuple[Path, LlavaForConditionalGeneration]:
    """As transformers saves it: its table has rows beyond the tokenizer's, for <image>, <pad> and padding."""
    rows = pieces().vocab_size()
    vision = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2
    )
    text = LlamaConfig(
        vocab_size=rows + 5, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=rows))
    folder = tmp_path / "llava-hf"
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    write_json(folder / "added_tokens.json", {"<image>": rows, "<pad>": rows + 1})
    return folder, model


@pytest.fixture
def sam_hf(tmp_path: Path) -> tuple[Path, SamModel]:
    model = SamModel(small_config().mask_config)
    folder = tmp_path / "sam-hf"
    model.save_pretrained(folder)
    return folder, model


def test_layouts_of_transformers(
    llava_hf: tuple[Path, LlavaForConditionalGeneration], sam_hf: tuple[Path, SamModel]
) -> None:
    rows = pieces().vocab_size()
    start = start_from(llava_hf[0], sam_hf[0])
    for name, value in llava_hf[1].state_dict().items():
        kept = value[:rows] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else value
        assert torch.equal(
            start.weights[f"lmm.{name}"][: len(kept)] if kept.ndim else start.weights[f"lmm.{name}"], kept
        )
    for name, value in sam_hf[1].state_dict().items():
        assert torch.equal(start.weights[f"sam.{name}"], value), name
    assert start.weights[EMBED].shape[0] == start.weights[HEAD].shape[0] == rows + 3
    model, processor = build(start)
    assert Segmenter(model, processor).segment(picture(64, 64), "the cup", force=True).masks.shape == (1, 64, 64)


def test_older_names_of_transformers(
    llava_hf: tuple[Path, LlavaForConditionalGeneration], sam: Path, tmp_path: Path
) -> None:
    folder, model = llava_hf
    old = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.vision_tower.": "vision_tower.vision_model.",
    }
    state = {
        next(there + name.removeprefix(here) for here, there in old.items() if name.startswith(here)): value
        for name, value in model.state_dict().items()
    }
    now = start_from(folder, sam).weights
    write_state(folder, state, "safetensors")
    then = start_from(folder, sam).weights
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


def error(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ReadsegError) as caught:
        start_from(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_base_model_is_an_error(
    llava: Path, sam: Path, sam_hf: tuple[Path, SamModel], llava_hf: tuple[Path, Any], tmp_path: Path
) -> None:
    assert "family must be one of" in error(llava, sam, family="tiny")
    assert "expected a LLaVA" in error(sam_hf[0], sam)
    assert "is no SAM" in error(llava, llava_hf[0])
    assert "no such folder" in error(tmp_path / "none", sam)
    assert "--vision-tower" in error(llava_hf[0], sam, vision_tower=tmp_path / "clip")
    (tmp_path / "clip" / "config.json").unlink()
    assert "the vision tower clip" in error(llava, sam)


def test_damaged_base_models_are_errors(llava: Path, sam: Path, tmp_path: Path) -> None:
    good_sam, state = sam_state(), llava_state()
    cut = {name: value for name, value in good_sam.items() if name != "mask_decoder.iou_token.weight"}
    for weights, message in (
        (cut, "mask_decoder.iou_token.weight"),
        (good_sam | {"mask_decoder.more": torch.ones(1)}, "mask_decoder.more"),
    ):
        torch.save(weights, sam)
        assert message in error(llava, sam)
    torch.save(good_sam, sam)
    for weights, message in (
        (state | {"model.more": torch.ones(1)}, "model.more"),
        ({n: v for n, v in state.items() if n != "model.norm.weight"}, "lmm.model.language_model.norm.weight"),
        (state | {"lm_head.weight": state["lm_head.weight"][:-1]}, "lmm.lm_head.weight"),
        (weights_of("read"), "holds a mask model already"),
    ):
        write_state(llava, weights)
        assert message in error(llava, sam)
    write_state(llava, state)
    write_json(llava / "added_tokens.json", {"[SEG]": pieces().vocab_size()})
    assert "knows [SEG] already" in error(llava, sam)
    (llava / "added_tokens.json").unlink()
    change_settings(llava, hidden_size=...)
    assert "hidden_size" in error(llava, sam)


@pytest.mark.parametrize(
    ("changes", "given", "recorded"),
    [
        ({"mm_vision_tower": None, "vision_tower": "clip"}, None, "clip"),
        ({"mm_vision_tower": "/home/author/clip"}, None, "/home/author/clip"),
        ({"mm_vision_tower": "/home/author/lost"}, "clip", "clip"),
    ],
)
def test_the_tower_is_recorded_as_it_was_found(
    llava: Path, sam: Path, tmp_path: Path, changes: dict[str, Any], given: str | None, recorded: str
) -> None:
    change_settings(llava, **changes)
    tower = None if given is None else tmp_path / given
    start = start_from(llava, sam, vision_tower=tower)
    assert start.config.released["mm_vision_tower"] == (recorded if tower is None else str(tower))
    save_checkpoint(start, tmp_path / "out", layout="released")
    assert read_checkpoint(tmp_path / "out").weights.keys() == start.weights.keys()
