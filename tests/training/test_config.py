"""Recipes are checked when they are read, and the presets that ship are whole."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from readseg.errors import ReadsegError
from readseg.training.config import FinetuningStageConfig, load_recipe, with_start

MIXTURE = "{kind: mixture, name: m, steps: 5, images_per_step: 2, learning_rate: 0.001, start: x%s}"
STAGE = "{kind: vision, name: v, steps: 5, images_per_step: 2, learning_rate: 0.001%s}"


@pytest.mark.parametrize("name", [p.name.removesuffix(".yaml") for p in (files("readseg") / "presets").iterdir()])
def test_every_preset_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [" + STAGE % ", size: 3" + "]", "size: Extra inputs"),
        ("stages: [" + STAGE % ", precision: int8" + "]", "precision"),
        ("stages: [{kind: dance, name: v}]", "stages.0"),
        ("stages: [" + STAGE.replace("name: v", "name: ../v") % "" + "]", "name: String should match"),
        ("stages: []", "stages"),
        ("seed: -1\nstages: [" + STAGE % "" + "]", "seed"),
        ("stages: [" + STAGE % ", first_seed: 7" + "]", "first_seed"),
        ("stages: [" + MIXTURE % ", ratio: '1:2'" + "]", r"ratio: .*expected 6 whole numbers"),
        ("stages:\n- " + MIXTURE.replace("{", "{ratio: 10:1:1:1:1:10, ") % "", "ratio: .*in quotes"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', points: {t_pos: 0.1}" + "]", "points: .*t_neg < t_pos"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', points: {size: 1}" + "]", "points: .*no setting size"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', patience: 2" + "]", "patience needs validate_every"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', validate_every: 2" + "]", "needs validate_on"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', lora_rank: 0, trained: []" + "]", "nothing would be trained"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', family: nobody" + "]", "family: Input should be"),
        ("stages: [" + STAGE % "" + ", " + STAGE % "" + "]", "two stages are called 'v'"),
        ("stages: [" + MIXTURE.replace("x%s", "m, ratio: '1:0:0:0:0:0'") + "]", "does not come before it"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', lora_targets: []" + "]", "lora_targets"),
        ("stages: [" + MIXTURE % ", ratio: '1:0:0:0:0:0', points: {t_pos: a}" + "]", "points: .*wrong type"),
        ("stages: [" + STAGE.replace("0.001", ".inf") % "" + "]", "learning_rate"),
        ("stages: [" + STAGE.replace("name: v", "name: cache") % "" + "]", "no stage can be called 'cache'"),
        ("seed: 99999999999999999999\nstages: [" + STAGE % "" + "]", "seed"),
        ("seed: 2020-13-45\nstages: []", "not YAML"),
        ("seed: " + "9" * 5000 + "\nstages: []", "not YAML"),
        ("[" * 3000, "not YAML"),
        ("stages: [", "not YAML"),
        ("just words", "recipe"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ReadsegError, match=message):
        load_recipe(str(path))


def test_unknown_presets_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"no preset 'huge'.*tiny"):
        load_recipe("huge")
    with pytest.raises(ReadsegError, match="no recipe at"):
        load_recipe(str(tmp_path / "absent.yaml"))
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ReadsegError, match="not UTF-8"):
        load_recipe(str(tmp_path / "recipe.yaml"))


PUBLISHED = {  # SPEC's table of recipes: start, ratio, rank, rate, points, DICE
    ("read-7b", "read"): ("tsunghanwu/SESAME", "10:1:1:1:1:10", 8, 3e-4, (30, 0.8, 0.2, 2), 0.5),
    ("read-7b-scratch", "read"): ("liuhaotian/llava-v1.5-7b", "10:10:2:3:1:1", 64, 1e-4, (30, 0.8, 0.2, 2), 4.0),
    ("read-7b-referring", "read"): ("tsunghanwu/SESAME", "0:12:2:2:1:0", 8, 3e-4, (30, 0.8, 0.2, 2), 0.5),
    ("read-13b", "stage1"): ("liuhaotian/llava-v1.5-13b", "10:10:2:3:1:1", 64, 3e-4, (10, 0.8, 0.2, 1), 0.5),
    ("read-13b", "stage2"): ("stage1", "3:10:2:3:1:10", 64, 1e-4, (30, 0.8, 0.2, 1), 0.5),
}


@pytest.mark.parametrize("preset", PUBLISHED, ids="-".join)
def test_presets_are_the_published_recipes(preset: tuple[str, str]) -> None:
    stages = {stage.name: stage for stage in load_recipe(preset[0]).stages}
    stage = stages[preset[1]]
    assert isinstance(stage, FinetuningStageConfig)
    start, ratio, rank, rate, points, dice = PUBLISHED[preset]
    assert (stage.start, stage.ratio, stage.lora_rank, stage.learning_rate) == (start, ratio, rank, rate)
    assert tuple(stage.points[name] for name in ("num_points", "t_pos", "t_neg", "downsample")) == points
    assert (stage.text_loss_weight, stage.bce_loss_weight, stage.dice_loss_weight) == (1.0, 2.0, dice)
    assert (stage.lora_alpha, stage.lora_dropout, stage.lora_targets) == (16, 0.05, ("q_proj", "v_proj"))
    assert (stage.images_per_step, stage.accumulation, stage.warmup_steps) == (2, 10, 100)
    assert (stage.optimizer, stage.schedule, stage.precision) == ("adamw", "linear", "auto")
    assert set(stage.trained) == {"lm_head", "embed_tokens", "mask_decoder", "seg_projection"}


@pytest.mark.parametrize(
    ("cpu", "bf16"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_a_cpu_trains_in_bf16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, bool], bf16: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    stage = load_recipe("tiny").stages[0]
    assert stage.use_bf16() == bf16
    assert stage.model_copy(update={"precision": "bf16"}).use_bf16()
    assert not stage.model_copy(update={"precision": "fp32"}).use_bf16()


def test_settings_can_be_replaced() -> None:
    recipe = load_recipe("read-13b", ["stage2.learning_rate=2.0e-5", "steps=7", "seed=4", "stage1.points={t_pos: 0.9}"])
    first, second = recipe.stages
    assert (first.learning_rate, second.learning_rate, recipe.seed) == (3e-4, 2e-5, 4)
    assert (first.steps, second.steps) == (7, 7)
    assert first.points == {"t_pos": 0.9} and second.points["num_points"] == 30
    # They are checked together.
    (stage,) = load_recipe("read-7b", ["validate_on=[]", "validate_every=0"]).stages
    assert isinstance(stage, FinetuningStageConfig) and not stage.validate_on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "expected SETTING=VALUE"),
        ("stage9.steps=3", "no stage has it; stages are stage1, stage2"),
        ("colour=3", "no stage has it.*learning_rate"),
        ("steps=0", "steps: Input should be greater than 0"),
        ("steps=[", "not YAML"),
        ("name=x", "no stage has it"),
    ],
)
def test_wrong_changes_are_named(change: str, message: str) -> None:
    with pytest.raises(ReadsegError, match=message):
        load_recipe("read-13b", [change])


def test_another_start_is_for_stages_that_start_from_a_model() -> None:
    first, second = with_start(load_recipe("read-13b"), "mine", "sam.pth").stages
    assert (first.start, first.sam, second.start, second.sam) == ("mine", "sam.pth", "stage1", None)
    with pytest.raises(ReadsegError, match="--start: no stage"):
        with_start(load_recipe("tiny"), "mine")
    with pytest.raises(ReadsegError, match=r"--start: .*leave out vision_tower"):
        with_start(load_recipe("read-7b", ["vision_tower=clip"]), "embedded")
