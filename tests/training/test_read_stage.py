"""Stage 2: what is frozen stays, what is cached changes nothing, and the questions' masks reach their [SEG]."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from readseg.training.config import ReadStageConfig
from readseg.training.read_stage import ReadStage
from small import small_model, small_processor

OPTIONS = ReadStageConfig(
    kind="read", name="read", steps=5, images_per_step=2, learning_rate=1e-3, questions_per_image=4, images=6
)


MODEL = small_model()


def stage(cache: Path) -> ReadStage:
    tower, sam = MODEL.lmm.model.vision_tower.state_dict(), MODEL.sam.state_dict()
    return ReadStage(small_processor(), OPTIONS, 0, sam, tower, cache)


def test_batch_is_a_function_of_the_step_with_or_without_cache(tmp_path: Path) -> None:
    cold, warm, other = stage(tmp_path / "a"), stage(tmp_path / "a"), stage(tmp_path / "b")
    for step in (0, 4):
        first = cold.batch(step, 0, 1)
        for again in (warm.batch(step, 0, 1), other.batch(step, 0, 1)):
            for key in ("input_ids", "labels", "attention_mask", "features", "embeddings", "coverage"):
                assert torch.equal(first[key], again[key]), key
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 2


def test_each_seg_has_its_mask_and_coverage(tmp_path: Path) -> None:
    built = stage(tmp_path)
    batch = built.batch(0, 0, 1)
    count = int((batch["input_ids"] == built.model.config.seg_token_id).sum())
    assert count > 0
    assert len(batch["masks"]) == len(batch["coverage"]) == count
    for mask, cells in zip(batch["masks"], batch["coverage"], strict=True):
        assert float(cells.mean()) == pytest.approx(float(mask.float().mean()), abs=1e-5)


def test_only_the_trained_parts_move(tmp_path: Path) -> None:
    built = stage(tmp_path)
    values = built(built.batch(0, 0, 1))
    assert all(torch.isfinite(value) for value in values.values())
    values["loss"].backward()
    moved = {name for name, p in built.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(
        name.startswith(("lmm.model.vision_tower", "sam.vision_encoder", "sam.prompt_encoder")) for name in moved
    )
    for part in (
        "lmm.model.multi_modal_projector",
        "lmm.model.language_model",
        "lmm.lm_head",
        "seg_projection",
        "sam.mask_decoder",
        "map_bias",
    ):
        assert any(name.startswith(part) for name in moved), part
