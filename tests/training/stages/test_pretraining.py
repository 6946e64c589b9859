"""Stages 0 and 1: batches are functions of the step, targets are what the pixels show, and losses fall."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import SamModel

from readseg.scenes.classes import TRAINED
from readseg.scenes.render import make_scene
from readseg.training.config import MaskStageConfig, VisionStageConfig
from readseg.training.stages.pretraining import MaskStage, VisionStage, initialise, initialise_sam
from small import small_config, small_processor

COMMON = {"name": "s", "steps": 20, "images_per_step": 2, "learning_rate": 1e-3}
VISION = VisionStageConfig(kind="vision", **COMMON)
MASKS = MaskStageConfig(kind="masks", masks_per_image=3, **COMMON)


@pytest.mark.parametrize("stage", [VisionStage(small_processor(), VISION, 0), MaskStage(small_processor(), MASKS, 0)])
def test_batches_are_functions_of_step_and_rank(stage: VisionStage | MaskStage) -> None:
    first, again, other = stage.batch(3, 0, 2), stage.batch(3, 0, 2), stage.batch(3, 1, 2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixels"], other["pixels"])


def test_vision_labels_say_what_lies_under_the_patch() -> None:
    stage = VisionStage(small_processor(), VISION, 0)
    names = stage.batch(0, 0, 1)["names"].reshape(2, 4, 4)
    found = {TRAINED[i - 1] for i in names.flatten().tolist() if i > 0}
    scenes = [make_scene(VISION.first_seed + i, count=(4, 8)) for i in range(2)]
    scenes += [make_scene(VISION.first_seed + i, count=(7, 12)) for i in range(2)]
    assert found
    assert found <= {thing.name for scene in scenes for thing in scene.objects}


def test_mask_prompts_lie_in_the_frame_and_targets_leave_padding_out() -> None:
    stage = MaskStage(small_processor(), MASKS, 0)
    kinds: set[frozenset[str]] = set()
    for step in range(60):
        if len(kinds) == 2:
            break
        batch = stage.batch(step, 0, 1)
        kinds.add(frozenset(batch) - {"pixels", "targets"})
        prompts = batch.get("points", batch.get("boxes"))
        assert prompts.min() >= -3
        assert prompts.max() <= 32 + 3
        assert set(batch["targets"].unique().tolist()) <= {0, 1, 255}
    assert kinds == {frozenset({"points", "labels"}), frozenset({"boxes"})}


def test_positive_clicks_fall_on_their_targets() -> None:
    stage = MaskStage(small_processor(), MASKS, 0)
    hits = []
    for step in range(12):
        batch = stage.batch(step, 0, 1)
        if "points" not in batch or batch["points"].shape[2] > 3:
            continue
        columns, rows = batch["points"][..., 0].long().clamp(0, 31), batch["points"][..., 1].long().clamp(0, 31)
        for image in range(2):
            for row in range(3):
                at = batch["targets"][image, row, rows[image, row], columns[image, row]]
                hits += [int(value == label) for value, label in zip(at, batch["labels"][image, row], strict=True)]
    assert len(hits) > 20
    assert sum(hits) / len(hits) > 0.8, "only rounding at a mask's border may miss"


@pytest.mark.parametrize("stage", [VisionStage(small_processor(), VISION, 0), MaskStage(small_processor(), MASKS, 0)])
def test_the_loss_falls_on_one_batch(stage: VisionStage | MaskStage) -> None:
    batch = stage.batch(0, 0, 1)
    optimizer = torch.optim.Adam(stage.parameters(), lr=3e-3)
    history = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = stage(batch)["loss"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


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
