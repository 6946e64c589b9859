"""Recipes are checked when they are read, and the presets that ship are whole."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from readseg.errors import ReadsegError
from readseg.training.config import load_recipe

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


def test_a_recipe_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReadsegError, match="not UTF-8"):
        load_recipe(str(path))
