"""LISA's loop with and without the lines of SasP gives what the package's own models give with and without points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from readseg.inference.segmenter import Segmenter
from scripts import load as load_script
from scripts import run
from small import picture
from tiny_segmenter import ANSWERS, build, load


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("sasp_in_lisa")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return load(build(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("query", ["the cat", "all the birds and the tree", "the unicorn"])
def test_all_three_ways_equal_the_segmenter(script: ModuleType, learned: Segmenter, query: str) -> None:
    settings = learned.model.config.points
    (states,) = script.ask(learned, picture(), [query])
    assert states.answer == ANSWERS[query]
    masks = script.three_ways(learned.model, states)
    expected = {
        script.LISA: learned.segment(picture(), query, prompt="seg").masks,
        script.DISCRETE: learned.segment(picture(), query, points=replace(settings, dtoc=False)).masks,
        script.DTOC: learned.segment(picture(), query, points=replace(settings, dtoc=True)).masks,
    }
    assert list(masks) == list(expected)
    for way, found in masks.items():
        assert len(found) == ANSWERS[query].count("[SEG]")
        np.testing.assert_array_equal(found, expected[way])
    if len(states.h_seg):
        assert (masks[script.LISA] != masks[script.DTOC]).any()


def test_many_questions_are_answered_as_one(script: ModuleType, learned: Segmenter) -> None:
    alone = [script.ask(learned, picture(), [query])[0] for query in ANSWERS]
    for one, of_many in zip(alone, script.ask(learned, picture(), list(ANSWERS)), strict=True):
        assert one.answer == of_many.answer
        torch.testing.assert_close(one.h_seg, of_many.h_seg, rtol=0, atol=1e-4)


def test_a_map_without_a_range_leaves_the_token_alone(script: ModuleType, learned: Segmenter) -> None:
    (states,) = script.ask(learned, picture(), ["the cat"])
    flat = replace(states, h_img=torch.zeros_like(states.h_img))
    assert not script.points_of(flat, learned.model.config.points).valid.any()
    masks = script.three_ways(learned.model, flat)
    np.testing.assert_array_equal(masks[script.DTOC], masks[script.LISA])


def test_overlap_of_each_target_with_the_mask_in_its_place(script: ModuleType) -> None:
    targets = np.zeros((2, 4, 4), bool)
    targets[0, :2], targets[1, 2:] = True, True
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True  # 4 of 8 pixels, none too many
    assert script.overlaps(masks, targets) == pytest.approx([0.5, 0.0], abs=1e-6)
    assert script.overlaps(np.concatenate([targets, targets]), targets) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert script.overlaps(masks[:0], targets) == [0.0, 0.0]


def test_on_the_embedded_model_points_make_the_masks(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scene: the table, its gain above zero, and the picture."""
    script.main(None, 1, tmp_path / "new" / "figure.png")
    lines = {name: line for line in capsys.readouterr().out.splitlines() for name in ("alone", "DtoC") if name in line}
    alone, dtoc = (float(lines[name].split("│")[2].split()[0]) for name in ("alone", "DtoC"))
    assert alone < 0.3 < dtoc
    with Image.open(tmp_path / "new" / "figure.png") as drawn:
        assert drawn.width == 880
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]


def test_no_such_model_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "sasp_in_lisa", "--model", "nowhere") == 2
    error = capfd.readouterr().err.strip()
    assert "nowhere" in error
    assert "\n" not in error


# -- a sibling whose SAM was fine-tuned with [SEG] alone ---------------------------------------------------------------


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return load_script("make_lisa")


def test_the_sibling_learns_projection_and_decoder_only(maker: ModuleType) -> None:
    segmenter = Segmenter.from_pretrained(device="cpu")
    before = {name: weight.clone() for name, weight in segmenter.model.named_parameters()}
    torch.manual_seed(0)
    maker.begin(segmenter.model)
    lesson = maker.study(segmenter, maker.FIRST_SEED)
    assert len(lesson.h_seg) == len(lesson.scores) == len(lesson.masks) > 0
    with torch.no_grad():
        first = maker.losses(segmenter.model, [lesson], "seg").item()
    maker.train(segmenter.model, [lesson], "seg", 6)
    with torch.no_grad():
        assert maker.losses(segmenter.model, [lesson], "seg").item() < first
    changed = {name for name, weight in segmenter.model.named_parameters() if not torch.equal(weight, before[name])}
    assert {".".join(name.split(".")[:2]) for name in changed} == {
        *("seg_projection.0", "seg_projection.2", "sam.mask_decoder")
    }


def test_the_sibling_is_a_model_that_is_prompted_without_points(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lisa"
    maker.main(folder, "seg", 1, 1, 0)
    segmenter = Segmenter.from_pretrained(folder, device="cpu")
    result = segmenter.segment(picture(64, 64), "where is it?", force="it is [SEG].")
    assert len(result.masks) == 1
    assert len(result.points_xy[0]) == 0
    assert len(segmenter.segment(picture(64, 64), "where is it?", force="it is [SEG].", prompt="both").points_xy[0])
    capfd.readouterr()
    assert run(monkeypatch, "make_lisa", "--out", folder) == 2
    assert f"{folder} is there already" in capfd.readouterr().err
