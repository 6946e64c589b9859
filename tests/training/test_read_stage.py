"""Stage 2: what is frozen stays, what is cached changes nothing, and the questions' masks reach their [SEG]."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from readseg.data.scenes.classes import TRAINED
from readseg.data.scenes.compose import make_scene, render
from readseg.training.config import ReadStageConfig, load_recipe
from readseg.training.read_stage import ReadStage, draw_lesson
from readseg.training.stages import cell_coverage
from small import small_model, small_processor

OPTIONS = ReadStageConfig(
    kind="read", name="read", steps=5, images_per_step=2, learning_rate=1e-3, questions_per_image=4, images=6
)


MODEL = small_model()


def stage(cache: Path, **changes: object) -> ReadStage:
    tower, sam = MODEL.lmm.model.vision_tower.state_dict(), MODEL.sam.state_dict()
    return ReadStage(small_processor(), OPTIONS.model_copy(update=changes), 0, sam, tower, cache)


def test_batch_is_a_function_of_the_step_with_or_without_cache(tmp_path: Path) -> None:
    cold, warm, other = stage(tmp_path / "a"), stage(tmp_path / "a"), stage(tmp_path / "b")
    for step in (0, 4):
        first = cold.batch(step, 0, 1)
        for again in (warm.batch(step, 0, 1), other.batch(step, 0, 1)):
            for key in ("input_ids", "labels", "position_ids", "features", "embeddings", "coverage", "decoded"):
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


def test_only_some_masks_are_decoded_and_all_maps_learned(tmp_path: Path) -> None:
    built = stage(tmp_path, masks_per_step=2)
    batch = built.batch(0, 0, 1)
    assert len(batch["decoded"]) == 2 < len(batch["masks"]) == len(batch["coverage"])
    batch["decoded"] = torch.tensor([1])
    first = built(batch)
    batch["masks"][0] = 1 - batch["masks"][0]
    assert torch.equal(built(batch)["bce"], first["bce"])
    batch["masks"][1] = 1 - batch["masks"][1]
    assert not torch.equal(built(batch)["bce"], first["bce"])


def test_no_masks_while_the_map_lights_up(tmp_path: Path) -> None:
    built = stage(tmp_path, mask_warmup_steps=3)
    assert not len(built.batch(2, 0, 1)["decoded"]) and len(built.batch(3, 0, 1)["decoded"])
    assert "bce" not in built(built.batch(2, 0, 1))


def test_sight_says_what_the_cells_show(tmp_path: Path) -> None:
    built = stage(tmp_path, sight_loss_weight=1.0)
    batch = built.batch(0, 0, 1)
    scene = make_scene(OPTIONS.first_seed + 2 * int(np.random.default_rng([0, 0, 5]).permutation(3)[0]))
    drawn = render(scene)
    cover = cell_coverage(drawn.masks, 4).reshape(len(scene.things), -1)
    shown = cover.max(0) >= 0.35
    assert shown.any()
    for name, values in batch["sight"].items():
        assert values.shape == (2, 16)
        assert ((values[0].numpy() > (0 if name == "names" else -1)) == shown).all(), name
    for cell in np.flatnonzero(shown):
        thing = cover[:, cell].argmax()
        x0, y0, x1, y1 = drawn.boxes[thing]
        assert TRAINED[batch["sight"]["names"][0, cell] - 1] == scene.things[thing].name
        assert batch["sight"]["columns"][0, cell] == int(4 * (x0 + x1))
        assert batch["sight"]["rows"][0, cell] == int(4 * (y0 + y1))
    built(batch)["loss"].backward()
    assert all(head.weight.grad is not None for head in built.heads.values())
    assert not any(name.startswith("heads") for name in built.model.state_dict())


def test_later_questions_are_of_other_kinds(tmp_path: Path) -> None:
    kinds = {"kinds": {"category": 1.0}, "plain": 0.0, "late_kinds": {"count": 1.0}, "late_plain": 1.0}
    built = stage(tmp_path, late_from=2, **kinds)
    assert len(built.batch(1, 0, 1)["masks"]) and not len(built.batch(2, 0, 1)["masks"])
    never = stage(tmp_path, **kinds)
    assert len(never.batch(2, 0, 1)["masks"])


@pytest.mark.parametrize(
    ("step", "first_seed", "words"), [(3, 20004536, "f88460bbf8ddabe1"), (1400, 20001364, "272bc997be5a349d")]
)
def test_a_lesson_of_the_preset_is_what_the_embedded_model_learned_from(step: int, first_seed: int, words: str) -> None:
    recipe = load_recipe("tiny", ["read.images_per_step=2"])
    options = recipe.stages[2]
    assert isinstance(options, ReadStageConfig)
    lesson = draw_lesson(options, recipe.seed, step)
    said = "\n".join(f"{turn.question}|{turn.answer}" for sample in lesson.samples for turn in sample.turns)
    # Of the questions that the stage drew when it still drew them itself.
    assert (lesson.first_seed, hashlib.sha256(said.encode()).hexdigest()[:16]) == (first_seed, words)
