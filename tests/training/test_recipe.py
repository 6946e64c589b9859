"""A recipe from nothing to a model that loads; what is done is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SamModel

from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.training.config import TrainConfig
from readseg.training.recipe import run_recipe
from readseg.training.stages import read

COMMON = {"steps": 2, "images_per_step": 1, "learning_rate": 1e-3, "warmup_steps": 1}
RECIPE = TrainConfig.model_validate(
    {
        "seed": 3,
        "vocabulary": 400,
        "stages": [
            {"kind": "masks", "name": "zero", "masks_per_image": 2, **COMMON},
            {"kind": "vision", "name": "one", **COMMON},
            {"kind": "read", "name": "two", "questions_per_image": 3, "images": 2, **COMMON},
        ],
    }
)


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Iterator[None]:
    """The tokenizer is learned again by every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "VOCABULARY_SCENES", 10)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert run_recipe(RECIPE, out) == out / "model"
    return out


def test_the_finished_model_loads_and_holds_what_was_trained(run: Path) -> None:
    model = ReadModel.from_pretrained(run / "model")
    trained = load_file(run / "two" / "weights.safetensors")
    tower = load_file(run / "one" / "weights.safetensors")
    for name, tensor in model.state_dict().items():
        expected = trained[name]
        precise = expected if "positional_embedding" in name else expected.to(torch.bfloat16)
        assert torch.equal(tensor, precise.to(tensor.dtype)), name
    frozen = model.lmm.model.vision_tower.state_dict()
    assert all(torch.equal(frozen[name], tensor.to(torch.bfloat16)) for name, tensor in tower.items())
    # The mask decoder of stage 0 lies beside it.
    sam = SamModel(model.config.mask_config)
    plain = load_file(run / "model" / ORIGINAL_SAM_DECODER)
    decoder = {name.removeprefix("mask_decoder."): tensor for name, tensor in plain.items()}
    sam.mask_decoder.load_state_dict(decoder)
    stage = load_file(run / "zero" / "weights.safetensors")
    assert all(torch.equal(tensor, stage[name].to(torch.bfloat16)) for name, tensor in plain.items())
    segmenter = Segmenter(model.float(), ReadProcessor.from_pretrained(run / "model"))
    answer = segmenter.segment(torch.full((40, 60, 3), 200, dtype=torch.uint8).numpy(), "cow", max_new_tokens=3)
    assert answer.image_size == (40, 60)


def test_finished_stages_are_kept(run: Path) -> None:
    files = [run / name / "weights.safetensors" for name in ("zero", "one", "two")]
    before = [path.stat().st_mtime_ns for path in files]
    run_recipe(RECIPE, run)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_finished_model_that_was_deleted_is_written_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("model", "checkpoint-*"))
    weights = out / "two" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert run_recipe(RECIPE, out) == out / "model"
    assert weights.stat().st_mtime_ns == before, "nothing is trained again"
    again, first = load_file(out / "model" / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert (out / "model" / ORIGINAL_SAM_DECODER).exists()


def test_a_run_does_not_go_on_with_other_settings(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(run / "one" / "settings.json", tmp_path / "one")
    other = RECIPE.model_copy(update={"seed": 4})
    with pytest.raises(ReadsegError, match=r"one/settings.json was made with other settings \(seed: 3 there, 4 now\)"):
        run_recipe(other, tmp_path, only="one")


def test_a_stage_needs_those_before_it(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"'masks' stage.*run that stage first"):
        run_recipe(RECIPE, tmp_path, only="two")
    with pytest.raises(ReadsegError, match=r"no stage 'three'.*zero, one, two"):
        run_recipe(RECIPE, tmp_path, only="three")
