"""Attention goes where the points are sent, only through DtoC, and only that of the object's own patches."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from readseg.inference.segmenter import Segmenter
from readseg.model.processing import CLIP_MEAN, CLIP_STD
from scripts import load, run

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 48,
    "patch_size": 8,
}
N = 36
TOWERS = [
    *((CLIPVisionModel, CLIPVisionConfig), (SiglipVisionModel, SiglipVisionConfig), (ViTModel, ViTConfig)),
    *((DeiTModel, DeiTConfig), (BeitModel, BeitConfig), (Dinov2Model, Dinov2Config)),
    *((Dinov2WithRegistersModel, Dinov2WithRegistersConfig), (DINOv3ViTModel, DINOv3ViTConfig)),
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("edit_attention")


def tower(model: Any = CLIPVisionModel, config: Any = CLIPVisionConfig) -> Any:
    """Random weights, large enough that attention is no even spread."""
    torch.manual_seed(0)
    made = model._from_config(config(**SIZES)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.4)
    return made


@pytest.fixture(scope="module")
def embedded(script: ModuleType) -> tuple[Any, Segmenter]:
    segmenter = Segmenter.from_pretrained(device="cpu")
    return script.Vit(segmenter.model.lmm.model.vision_tower, CLIP_MEAN, CLIP_STD, -2), segmenter


def expected_attention(vit: Any, pair: Any, layer: int) -> Tensor:
    """By transformers' own way to return attention."""
    with torch.no_grad():
        weights = vit.tower(pixel_values=pair.pixels, output_attentions=True).attentions[layer][0]
    first = weights.shape[-1] - N
    rows = weights[:, first + pair.patches][:, :, first:].mean((0, 1))
    return rows / rows.sum()


@pytest.mark.parametrize(("model", "config"), TOWERS, ids=lambda value: value.__name__)
def test_any_tower_is_seen_as_it_is(script: ModuleType, model: Any, config: Any) -> None:
    vit = script.Vit(tower(model, config), CLIP_MEAN, CLIP_STD, -2)
    pair = next(script.pairs(vit))
    attention, points, states, masks = script.look(vit, pair, torch.zeros(16))
    torch.testing.assert_close(attention, expected_attention(vit, pair, 0))
    whole = vit.tower(pixel_values=pair.pixels).last_hidden_state[0]
    torch.testing.assert_close(states, whole[len(whole) - N :])
    assert masks == []
    highest = attention.argsort(descending=True)[: points.shape[1]]
    np.testing.assert_array_equal(points[0].numpy(), np.stack([highest % 6, highest // 6], axis=1))


@pytest.mark.parametrize(("model", "config"), TOWERS, ids=lambda value: value.__name__)
def test_an_offset_is_a_bias_of_the_queries(script: ModuleType, model: Any, config: Any) -> None:
    """A's rows of the layer are those of a tower with another bias; the layer's other rows stay."""
    vit = script.Vit(tower(model, config), CLIP_MEAN, CLIP_STD, -1)
    pair, offset = next(script.pairs(vit)), torch.randn(16)
    shifted = copy.deepcopy(vit)
    with torch.no_grad():
        shifted.attention.q_proj.bias += offset
    attention = script.look(vit, pair, offset)[0]
    torch.testing.assert_close(attention, expected_attention(shifted, pair, 1))
    assert not torch.allclose(attention, expected_attention(vit, pair, 1), atol=1e-3)

    others = torch.tensor([k for k in range(N) if k not in pair.patches])
    states = script.look(vit, pair, offset)[2]
    before = script.look(vit, pair, torch.zeros(16))[2]
    torch.testing.assert_close(states[others], before[others])
    assert not torch.allclose(states[pair.patches], before[pair.patches], atol=1e-3)


def test_nothing_stays_behind(script: ModuleType) -> None:
    vit = script.Vit(tower(), CLIP_MEAN, CLIP_STD, -1)
    pair = next(script.pairs(vit))
    before = expected_attention(vit, pair, 1)
    script.look(vit, pair, torch.randn(16))
    with pytest.raises(RuntimeError):
        script.look(vit, pair, torch.randn(5))
    torch.testing.assert_close(expected_attention(vit, pair, 1), before)


def test_scenes_are_seen_as_the_model_sees_them(script: ModuleType, embedded: tuple[Any, Segmenter]) -> None:
    vit, segmenter = embedded
    for pair in islice(script.pairs(vit), 3):
        torch.testing.assert_close(pair.pixels[0], segmenter.processor.lmm_pixels(pair.image), rtol=0, atol=1e-5)
        features = segmenter.model.encode_patches(pair.pixels)[0]
        torch.testing.assert_close(script.look(vit, pair, torch.zeros(192))[2], features)
        a, b = pair.masks
        assert pair.names[0] != pair.names[1]
        assert a.sum() >= b.sum() > 0
        assert not (a & b).any()
        ys, xs = np.nonzero(b)
        centre = [(xs.mean() + 0.5) / pair.image.width * 14 - 0.5, (ys.mean() + 0.5) / pair.image.height * 14 - 0.5]
        np.testing.assert_allclose(pair.centre, centre, rtol=1e-5)
        assert (pair.cover[0, pair.patches] >= 0.5).all()


def loss_of(attention: np.ndarray, goal: np.ndarray, bandwidth: float, count: int) -> float:
    """The head of the script, cell by cell."""
    side = round(len(attention) ** 0.5)
    cells = np.array([(k % side, k // side) for k in range(len(attention))], float)
    total = 0.0
    for p in cells[np.argsort(-attention, kind="stable")[:count]]:
        w = np.exp(-((cells - p) ** 2).sum(1) / bandwidth**2) * attention
        total += np.linalg.norm((w[:, None] * cells).sum(0) / w.sum() - goal)
    return total / count


def test_the_first_step_goes_down_the_gradient_of_the_formula(script: ModuleType) -> None:
    vit = script.Vit(tower().double(), CLIP_MEAN, CLIP_STD, -1)
    pair = next(script.pairs(vit))
    pair = pair._replace(pixels=pair.pixels.double())
    _, step = script.move(vit, pair, 1, 2.0)
    slopes = []
    for k in range(16):
        ends = [script.look(vit, pair, h * torch.eye(16, dtype=torch.float64)[k])[0].numpy() for h in (1e-5, -1e-5)]
        above, below = (loss_of(end, pair.centre.numpy(), 2.0, script.POINTS) for end in ends)
        slopes.append((above - below) / 2e-5)
    assert np.abs(slopes).min() > 1e-7
    np.testing.assert_array_equal(
        np.sign(step.numpy()), -np.sign(slopes)
    )  # Adam's first step has the length of its rate


def test_attention_moves_to_b_through_dtoc_only(script: ModuleType, embedded: tuple[Any, Segmenter]) -> None:
    vit, segmenter = embedded
    for pair in islice(script.pairs(vit), 2):
        path = script.move(vit, pair, 8, 4.0)
        assert len(path) == 9
        assert not path[0].any()
        noise = torch.randn(192)
        before, moved, control = (
            script.measure(vit, pair, offset, None)
            for offset in (path[0], path[-1], noise * path[-1].norm() / noise.norm())
        )
        for other in (before, control):
            assert moved["attention on B"] > other["attention on B"] + 0.1
            assert moved["attention on A"] < other["attention on A"]
            assert moved["points to B, patches"] < other["points to B, patches"] - 1
        assert moved["like B - like A"] > before["like B - like A"]

        stuck = script.move(vit, pair, 2, 4.0, dtoc=False)
        assert not any(offset.any() for offset in stuck)
        assert script.measure(vit, pair, stuck[-1], None) == before


def test_the_segmenter_is_asked_through_the_edit(script: ModuleType, embedded: tuple[Any, Segmenter]) -> None:
    vit, segmenter = embedded
    pair = next(script.pairs(vit))
    plain = segmenter.segment(pair.image, [f"where is the {name}?" for name in pair.names])
    for mask, answer in zip(script.look(vit, pair, torch.zeros(192), segmenter)[3], plain, strict=True):
        np.testing.assert_array_equal(mask, answer.mask)
    other = script.look(vit, pair, torch.full((192,), 5.0), segmenter)[3]
    assert any((mask != answer.mask).any() for mask, answer in zip(other, plain, strict=True))


def test_from_a_folder_to_table_and_picture(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = CLIPModel(CLIPConfig(vision_config=SIZES, text_config={**SIZES, "vocab_size": 99}, projection_dim=8))
    whole.save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    script.main(str(tmp_path / "vit"), -1, 1, 4, 4.0, tmp_path / "new" / "figure.png")
    out = capsys.readouterr().out
    assert "attention on B" in out
    assert "the offset stays 0 in 1 scenes" in out
    assert "IoU" not in out  # only the embedded model answers
    with Image.open(tmp_path / "new" / "figure.png") as drawn:
        assert drawn.size == (900, 500)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]


def test_the_embedded_model_answers_too(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(None, -2, 1, 4, 4.0, tmp_path / "figure.png")
    assert "IoU of A, asked" in capsys.readouterr().out


@pytest.mark.parametrize("layer", [2, -3])
def test_no_such_layer_is_an_error(script: ModuleType, layer: int) -> None:
    with pytest.raises(script.ReadsegError, match=f"layer {layer}: the model has 2 layers"):
        script.Vit(tower(), CLIP_MEAN, CLIP_STD, layer)


def test_a_wrong_option_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "edit_attention", "--count", "0") == 2
    assert "--count" in capfd.readouterr().err
