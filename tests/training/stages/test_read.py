"""Stage 2: what is frozen stays, what is cached changes nothing, and the questions' masks reach their [SEG]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from readseg.core.token_grid import cell_coverage
from readseg.model.families import EOS
from readseg.scenes.classes import TRAINED
from readseg.scenes.render import make_scene, render
from readseg.training.config import ReadStageConfig, load_recipe
from readseg.training.stages.read import ReadStage, sample_scene_batch
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
    frozen = ("lmm.model.vision_tower", "sam.vision_encoder", "sam.prompt_encoder")
    assert not any(name.startswith(frozen) for name in moved)
    language = ("lmm.model.multi_modal_projector", "lmm.model.language_model", "lmm.lm_head")
    for part in (*language, "seg_projection", "sam.mask_decoder", "map_bias"):
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
    cover = cell_coverage(drawn.masks, 4).reshape(len(scene.objects), -1)
    shown = cover.max(0) >= 0.35
    assert shown.any()
    for name in built.heads:
        values = batch["attributes"][name]
        assert values.shape == (2, 16)
        assert ((values[0].numpy() > (0 if name == "names" else -1)) == shown).all(), name
    for cell in np.flatnonzero(shown):
        thing = cover[:, cell].argmax()
        x0, y0, x1, y1 = drawn.boxes[thing]
        assert TRAINED[batch["attributes"]["names"][0, cell] - 1] == scene.objects[thing].name
        assert batch["attributes"]["columns"][0, cell] == int(4 * (x0 + x1))
        assert batch["attributes"]["rows"][0, cell] == int(4 * (y0 + y1))
    built(batch)["loss"].backward()
    assert all(head.weight.grad is not None for head in built.heads.values())
    assert not any(name.startswith("heads") for name in built.model.state_dict())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scenes_are_tinted_as_often_as_the_recipe_says(tmp_path: Path, share: float) -> None:
    built = stage(tmp_path, tinted=share)
    lesson = sample_scene_batch(built.options, 0, 0)
    assert {thing.tint is not None for scene in lesson.scenes for thing in scene.objects} == {bool(share)}
    assert ((built.batch(0, 0, 1)["attributes"]["tints"] > 0).any() == bool(share)).item()


def test_features_are_those_of_the_scenes_as_they_were_tinted(tmp_path: Path) -> None:
    plain, tinted = (stage(tmp_path, tinted=share).batch(0, 0, 1)["features"] for share in (0.0, 1.0))
    assert not torch.equal(plain, tinted), "one cache holds both"


def test_conversations_have_two_turns_in_all_of_a_step_or_in_none(tmp_path: Path) -> None:
    for share, turns in ((0.0, 1), (1.0, 2)):
        built = stage(tmp_path, next_turn=share)
        batch = built.batch(0, 0, 1)
        asked = len(sample_scene_batch(built.options, 0, 0).samples[0].turns)
        ends = batch["labels"] == built.processor.tokenizer.convert_tokens_to_ids(EOS)
        assert ends[0].sum() == asked, "every answer is learned"
        assert len(batch["layout"].widths) == -(-asked // turns)


def test_a_lesson_is_a_function_of_its_arguments() -> None:
    options = load_recipe("tiny", ["read.images_per_step=2"]).stages[2]
    assert isinstance(options, ReadStageConfig)

    def said(*arguments: int) -> list[str]:
        samples = sample_scene_batch(options, *arguments).samples
        return [f"{turn.question}|{turn.answer}" for sample in samples for turn in sample.turns]

    first = said(1, 3)
    assert len(first) > 20 and said(1, 3) == first
    assert all(said(*others) != first for others in ((2, 3), (1, 4), (1, 3, 1, 2)))
