"""Part C: what is made of files: pixels of images as models see them, and weights, sharded or with LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from parity.released_cases import (
    Released,
    close,
    part_with,
    processor_alone,
    read_json,
    stored,
)
from readseg.checkpoints import key_mapping, lora
from readseg.checkpoints.checkpoint import read_checkpoint

# Mean and standard deviation of CLIP's pixels in 0..1 and of SAM's in 0..255, as both were published.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_are_seen_as_the_reference_saw_them(reference: Path) -> None:
    """No weights are needed: this runs in every clone."""
    folder = part_with(reference / "C_read", "index.json", "images.safetensors")
    tensors, sizes = load_file(folder / "images.safetensors"), read_json(folder / "index.json")["images"]["sizes"]
    names = [name.removesuffix(".orig_rgb_u8") for name in tensors if name.endswith(".orig_rgb_u8")]
    assert names
    padded = 0
    for name in names:
        size, cropped = sizes[name], tensors[f"{name}.clip_cropped_rgb_u8"]
        processor = processor_alone(folder / "ckpt", "read", len(cropped), max(size["sam_input_hw"]))
        picture = Image.fromarray(tensors[f"{name}.orig_rgb_u8"].numpy())
        frame = processor.frame(picture)
        assert (list(frame.hw), list(frame.mask_hw)) == (size["original_hw"], size["sam_input_hw"])

        assert torch.equal(pixels_of(frame.lmm_view(picture)), cropped), name
        resized = pixels_of(frame.mask_view(picture))
        found = stored(tensors, f"{name}.sam_resized_rgb_u8")
        assert found is not None
        assert torch.equal(resized[found[1]], found[0]), name
        assert resized.long().sum() == size["sam_resized_u8_sum"], name

        mean, std = torch.tensor(CLIP[0]), torch.tensor(CLIP[1])
        seen = processor.lmm_pixels(picture)
        close(seen, ((cropped / 255 - mean) / std).permute(2, 0, 1), f"{name}: pixels of the tower", atol=2e-6)
        assert seen.double().sum().item() == pytest.approx(size["images_clip_sum"], rel=1e-5), name

        square, (height, width) = processor.mask_pixels(picture), frame.mask_hw
        mean, std = torch.tensor(SAM[0]), torch.tensor(SAM[1])
        close(square[:, :height, :width], ((resized - mean) / std).permute(2, 0, 1), f"{name}: SAM", atol=2e-6)
        outside = torch.cat([square[:, height:].flatten(), square[:, :, width:].flatten()])
        assert not outside.any(), name
        padded += len(outside)
    assert padded, "every image is a square: nothing was padded"


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


# -- weights -----------------------------------------------------------------------------------------------------------


def same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name]), name


def test_sharded_files_hold_the_same_weights(folder: Path) -> None:
    part_with(folder, "ckpt_sharded")
    whole, sharded = read_checkpoint(folder / "ckpt"), read_checkpoint(folder / "ckpt_sharded")
    same_weights(sharded.weights, whole.weights)


def test_names_of_the_weights(folder: Path, read: Released) -> None:
    said = read_json(part_with(folder, "state_dict_keys.json") / "state_dict_keys.json")
    ours = key_mapping.to_released(read.model.state_dict(), "visual_model")
    theirs = key_mapping.without_computed(
        {name: torch.empty(size) for name, (size, _) in said["with_vision_tower"].items()}
    )
    assert {name: list(value.shape) for name, value in ours.items()} == {
        name: list(value.shape) for name, value in theirs.items()
    }
    own = {name for name in ours if not name.startswith(key_mapping.TOWER_RELEASED)}
    assert own <= said["without_vision_tower"].keys()


@pytest.fixture(scope="module")
def run_weights(reference: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Un-merged weights as a training run leaves them, and the merged ones under the checkpoint's names."""
    tensors = load_file(part_with(reference / "C_read", "lora_merge.safetensors") / "lora_merge.safetensors")
    pre, merged = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("pre.", "merged.")
    )
    assert pre and merged
    return pre, merged


def test_lora_is_merged_exactly(run_weights: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    pre, merged = run_weights
    assert lora.has_lora(pre)
    same_weights(lora.merge_lora(lora.strip_wrapper_prefixes(pre)), merged)
    changed = {name for name in merged if not torch.equal(merged[name], lora.strip_wrapper_prefixes(pre)[name])}
    assert changed, "the LoRA weights change nothing"


@pytest.mark.parametrize("with_tower", [False, True])
def test_weights_of_a_training_run_load_merged(
    folder: Path,
    run_weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    read: Released,
    tmp_path: Path,
    with_tower: bool,
) -> None:
    pre, merged = run_weights
    keys = read_json(part_with(folder, "premerge_keys.json") / "premerge_keys.json")
    prefix = "base_model.model."
    state = {f"{prefix}{name}": value for name, value in load_file(folder / "ckpt" / "model.safetensors").items()} | pre
    tower = {
        f"{prefix}{key_mapping.TOWER_RELEASED}{name}": value
        for name, value in read.model.lmm.model.vision_tower.state_dict().items()
    }
    target = tmp_path / "run"
    target.mkdir()
    for place in (folder / "ckpt").iterdir():
        if "model.safetensors" not in place.name:
            shutil.copy(place, target / place.name)
    if with_tower:
        state |= {name: value.bfloat16() for name, value in tower.items()}
        computed = {name: torch.zeros(size) for name, (size, _) in keys.items() if name not in state}
        state |= computed
        assert {name: list(value.shape) for name, value in state.items()} == {n: s for n, (s, _) in keys.items()}
        assert not key_mapping.without_computed({n.removeprefix(prefix): v for n, v in computed.items()})
    torch.save(state, target / "pytorch_model.bin")
    settings = json.loads((target / "config.json").read_text(encoding="utf-8"))
    vision_tower = folder / settings["mm_vision_tower"]
    loaded = read_checkpoint(target, vision_tower=vision_tower)
    assert any("LoRA" in note for note in loaded.notes)

    plain = read_checkpoint(folder / "ckpt")
    own = key_mapping.to_released(loaded.weights, "visual_model")
    for name, weight in key_mapping.to_released(plain.weights, "visual_model").items():
        if name in merged:
            assert torch.equal(own[name], merged[name]) and own[name].dtype == merged[name].dtype, name
        elif not name.startswith(key_mapping.TOWER_RELEASED):
            assert torch.equal(own[name], weight), name
    assert own.keys() == key_mapping.to_released(plain.weights, "visual_model").keys()
