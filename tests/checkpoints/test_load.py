"""From a name to a model: device, precision, quantisation, and what is said about the files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from readseg.checkpoints.load import load_model, resolve_device
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from released import Size, write_released
from small import picture

WIDE = Size(width=64, inner=64)  # 4-bit weights come in blocks of 64


@pytest.fixture
def read(tmp_path: Path) -> Path:
    write_released(tmp_path / "read", "read", size=WIDE)
    return tmp_path / "read"


def test_notes_tell_what_released_weights_were_taken_for(read: Path, tmp_path: Path) -> None:
    assert load_model(read)[2] == ("released weights of the family read (by config.json)",)
    assert load_model()[2] == ()
    write_released(tmp_path / "glamm", "glamm", unmerged=True)
    _, lora, unused = load_model(tmp_path / "glamm")[2]
    assert "alpha 16" in lora
    assert "model.region_encoder." in unused
    assert load_model(tmp_path / "glamm", family="glamm")[2][0].endswith("(as asked)")


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_language_models(read: Path, bits: int) -> None:
    whole = Segmenter.from_pretrained(read, device="cpu", dtype="bfloat16")
    small = Segmenter.from_pretrained(read, device="cpu", dtype="bfloat16", bits=bits)
    layers = small.model.lmm.model.language_model.layers
    assert {weight.dtype for name, weight in layers.named_parameters() if "norm" not in name} == {
        torch.int8 if bits == 8 else torch.uint8
    }
    for part in (small.model.sam, whole.model.sam.float()):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
    for name in ("vision_tower", "multi_modal_projector"):
        part = getattr(small.model.lmm.model, name)
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
    values = torch.randn(5, WIDE.width, dtype=torch.bfloat16)
    ours, theirs = (s.model.lmm.model.language_model.layers[0].mlp.up_proj(values).float() for s in (small, whole))
    assert (ours - theirs).norm() < {8: 0.02, 4: 0.15}[bits] * theirs.norm()
    assert small.segment(picture(64, 64), "the cup", force=True).masks.shape == (1, 64, 64)


def test_fourier_features_keep_their_digits(tmp_path: Path) -> None:
    """What bfloat16 rounds here is another place in the image."""
    name = "model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

    def change(state: dict[str, torch.Tensor]) -> None:
        state[name] = state[name].float() + 1e-4

    given = write_released(tmp_path / "read", "read", form="bin", change=change)[name].float() + 1e-4
    assert not torch.equal(given, given.bfloat16().float())
    for dtype in ("bfloat16", "float16", "float32", torch.float16):
        model, _, _ = load_model(tmp_path / "read", dtype=dtype)
        assert model.lmm.dtype == getattr(torch, str(dtype).removeprefix("torch."))
        assert torch.equal(model.sam.shared_image_embedding.positional_embedding, given)


def test_the_mask_model_stays_as_it_was_stored(tmp_path: Path) -> None:
    """Also where it was stored in float32, and the rest is loaded in a lower type."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update({name: value.float() * 1.1 for name, value in state.items()})

    given = write_released(tmp_path / "read", "read", form="bin", size=WIDE, change=change)
    model, _, _ = load_model(tmp_path / "read", dtype="bfloat16", bits=8)
    name = "mask_decoder.iou_token.weight"
    assert torch.equal(model.sam.get_parameter(name), given[f"model.visual_model.{name}"].float() * 1.1)


def test_a_map_of_devices(read: Path) -> None:
    plain = Segmenter.from_pretrained(read, device="cpu", dtype="float32")
    spread = Segmenter.from_pretrained(
        read, device_map={"": "cpu", "lmm.model.language_model.layers.1": "cpu"}, dtype="float32"
    )
    one, other = (s.segment(picture(64, 64), "the cup", force=True) for s in (plain, spread))
    assert (one.scores == other.scores).all()
    assert (one.masks == other.masks).all()


def test_wrong_options_are_errors(read: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in (
        ({"bits": 3}, "bits must be 8 or 4"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"family": "tiny"}, "family must be one of read, .*'tiny'"),
        ({"family": ""}, "family must be one of read, .*''"),
        ({"system": "none"}, "system must be one of"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"lora_alpha": 8}, "no LoRA weights"),
    ):
        with pytest.raises(ReadsegError, match=said):
            load_model(read, **options)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ReadsegError, match="pip install bitsandbytes"):
        load_model(read, bits=8)


def test_the_device_is_checked_at_once() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ReadsegError, match="cannot be used here"):
        resolve_device("meta")
