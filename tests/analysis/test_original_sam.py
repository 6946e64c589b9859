"""The original SAM beside a model: whose weights it has, what it shares, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamModel

from readseg.analysis.original_sam import plain_sam
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import EMBEDDED
from readseg.checkpoints.files import read_weights
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import embed_prompts
from released import sam_state, stock_sam_name, write_released, write_sam, write_state
from small import small_model, small_processor

TOKEN = "mask_decoder.iou_token.weight"


@pytest.fixture
def read(tmp_path: Path) -> Segmenter:
    """READ with a decoder of its own."""

    def trained(state: dict[str, Tensor]) -> None:
        state[f"model.visual_model.{TOKEN}"] += 1

    write_released(tmp_path / "read", "read", change=trained)
    return Segmenter.from_pretrained(tmp_path / "read", device="cpu")


def small() -> Segmenter:
    return Segmenter(small_model(), small_processor())


def write_decoder(place: Path, segmenter: Segmenter) -> dict[str, Tensor]:
    """Another decoder for a segmenter's SAM, as a run of training leaves it beside its model."""
    state = segmenter.model.sam.mask_decoder.state_dict()
    other = {f"mask_decoder.{name}": (weight + 1).bfloat16() for name, weight in state.items()}
    save_file(other, place)
    return other


def test_the_embedded_model_has_one_beside_it() -> None:
    segmenter = Segmenter.from_pretrained(device="cpu")
    plain, own = plain_sam(segmenter), segmenter.model.sam
    assert plain is not None and not plain.training
    for name, weight in read_weights(EMBEDDED / ORIGINAL_SAM_DECODER).items():
        assert torch.equal(plain.state_dict()[name], weight.float()), name
    moved = {
        n for n, w in own.mask_decoder.state_dict().items() if not torch.equal(w, plain.mask_decoder.get_parameter(n))
    }
    assert len(moved) > 100, "training moves nearly every weight of the decoder"
    for shared in ("vision_encoder", "prompt_encoder", "shared_image_embedding"):
        assert getattr(plain, shared) is getattr(own, shared)


def test_a_run_s_folder_and_its_file(tmp_path: Path) -> None:
    segmenter = small()
    assert plain_sam(segmenter) is None, "a model in memory has no folder"
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert plain_sam(loaded) is None, "its folder has no such file"
    other = write_decoder(tmp_path / ORIGINAL_SAM_DECODER, loaded)
    for plain in (
        plain_sam(loaded),
        plain_sam(segmenter, tmp_path),
        plain_sam(segmenter, tmp_path / ORIGINAL_SAM_DECODER),
    ):
        assert plain is not None
        for name, weight in other.items():
            assert torch.equal(plain.state_dict()[name], weight.float()), name


@torch.inference_mode()
def test_it_computes_as_a_sam_of_its_own(read: Segmenter, tmp_path: Path) -> None:
    write_sam(tmp_path / "sam.pth")
    plain = plain_sam(read, tmp_path / "sam.pth")
    assert plain is not None
    alone = SamModel(read.model.config.mask_config).eval()
    alone.load_state_dict({stock_sam_name(n): w.float() for n, w in sam_state().items()}, strict=False)
    alone.shared_image_embedding.positional_embedding.copy_(plain.shared_image_embedding.positional_embedding)
    image = torch.randn(1, 32, 4, 4)
    found = []
    for sam in (plain, alone, read.model.sam):
        points = embed_prompts(sam, torch.tensor([[[10.0, 20.0], [40.0, 30.0]]]), torch.tensor([[1, 0]]))
        masks, _ = sam.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=points[:, None],
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=False,
        )
        found.append(masks)
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 0.01


def test_stock_and_original_layout(read: Segmenter, tmp_path: Path) -> None:
    write_sam(tmp_path / "sam.pth")
    plain = plain_sam(read, tmp_path / "sam.pth")
    assert plain is not None
    plain.save_pretrained(tmp_path / "stock")
    again = plain_sam(read, tmp_path / "stock")
    assert again is not None
    for name, weight in sam_state().items():
        if name.startswith("mask_decoder."):
            for one in (plain, again):
                assert torch.equal(one.state_dict()[stock_sam_name(name)], weight.float()), name
    assert read.model.sam.mask_decoder.iou_token.weight.sub(plain.mask_decoder.iou_token.weight).abs().min() > 0.9


def test_another_sam_is_an_error(read: Segmenter, tmp_path: Path) -> None:
    """SAMs of all sizes have decoders of one shape: weights of another one would give masks, and wrong ones."""
    other = sam_state()
    other["prompt_encoder.point_embeddings.1.weight"] = other["prompt_encoder.point_embeddings.1.weight"] + 1
    torch.save(other, tmp_path / "other.pth")
    message = r"other\.pth is another SAM .*prompt_encoder\.point_embed\.1\.weight differs"
    with pytest.raises(ReadsegError, match=message):
        plain_sam(read, tmp_path / "other.pth")
    write_decoder(tmp_path / "small.safetensors", small())
    with pytest.raises(
        ReadsegError, match=r"small\.safetensors: this is no mask decoder of the model's SAM; of a wrong"
    ):
        plain_sam(read, tmp_path / "small.safetensors")
    decoder = read_weights(tmp_path / "small.safetensors")
    del decoder[TOKEN]
    save_file(decoder, tmp_path / "less.safetensors")
    with pytest.raises(ReadsegError, match=r"missing: iou_token\.weight"):
        plain_sam(small(), tmp_path / "less.safetensors")


def test_what_is_no_sam_is_an_error(read: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=re.escape(str(tmp_path / "nowhere"))):
        plain_sam(read, tmp_path / "nowhere")
    write_state(tmp_path / "words", {"a.weight": torch.zeros(2)})
    with pytest.raises(ReadsegError, match="no SAM"):
        plain_sam(read, tmp_path / "words" / "pytorch_model.bin")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ReadsegError, match=r"text\.pth"):
        plain_sam(read, tmp_path / "text.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadsegError, match="empty"):
        plain_sam(read, tmp_path / "empty")
