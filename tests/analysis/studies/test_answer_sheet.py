"""The sheet of answers: every picture, mask and word is where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import rule_model
from readseg.analysis.studies.answers import NARROWEST, WIDTH, answer_sheet
from readseg.core.masks import encode_rle
from readseg.evaluation.predictions import Outcome, score

HW = (60, 80)
GREY = Image.new("RGB", (HW[1], HW[0]), (90, 90, 90))


def mask(left: int, right: int) -> np.ndarray:
    found = np.zeros((1, *HW), bool)
    found[:, 10:50, left:right] = True
    return found


def line(*masks: np.ndarray, words: str = "", **changes: Any) -> tuple[Image.Image | None, list[Outcome]]:
    """A picture with answers; `changes` are its picture, or fields of the question."""
    changes = {"picture": GREY, "size": HW, "targets": (encode_rle(mask(0, 20)[0]),), **changes}
    shown = changes.pop("picture")
    answers = [rule_model.prediction("a/0", True, words, list(found), **changes) for found in masks]
    return shown, [score(answer, "order") for answer in answers]


def columns(sheet: Image.Image, count: int) -> list[np.ndarray]:
    width = sheet.width // count
    pixels = np.asarray(sheet).astype(int)
    return [pixels[:, k * width : (k + 1) * width] for k in range(count)]


def orange(pixels: np.ndarray) -> np.ndarray:
    """Where the first mask's tint is."""
    return (pixels[..., 0] > pixels[..., 2] + 60) & (pixels[..., 0] > pixels[..., 1])


def test_masks_are_in_their_columns() -> None:
    sheet = answer_sheet([line(mask(60, 80), mask(0, 0))], ["A", "B"], title="t")
    assert sheet.width == WIDTH
    image, truth, first, second = columns(sheet, 4)
    assert not orange(image).any() and not orange(second).any()
    assert orange(truth).nonzero()[1].mean() < truth.shape[1] / 3
    assert orange(first).nonzero()[1].mean() > 2 * first.shape[1] / 3
    # The rest of a picture with a mask is faded, and of one without it is not.
    assert (image == 90).all(axis=-1).sum() > 10_000 and (second == 90).all(axis=-1).sum() > 10_000
    assert not (first == 90).all(axis=-1)[(image == 90).all(axis=-1)].any()


def test_words_and_rows_are_there() -> None:
    plain = answer_sheet([line(mask(0, 9))], ["A"], title="")
    worded = answer_sheet([line(mask(0, 9), words="the answer")], ["A"], title="")
    titled = answer_sheet([line(mask(0, 9))], ["A"], title="a title", note="a note")
    two = answer_sheet([line(mask(0, 9))] * 2, ["A"], title="")
    assert worded.tobytes() != plain.tobytes() and worded.size == plain.size
    assert titled.height > plain.height + 40 and two.height > 1.7 * plain.height - 60
    assert answer_sheet([line(mask(0, 9))], ["A"], title="").tobytes() == plain.tobytes()


def test_many_systems_make_it_wider() -> None:
    names = [f"system {k}" for k in range(6)]
    sheet = answer_sheet([line(*[mask(0, 9)] * 6)], names, title="many")
    assert sheet.width == 8 * NARROWEST


def test_pixels_that_do_not_count_are_hidden_in_the_truth_alone() -> None:
    ignored = np.zeros(HW, bool)
    ignored[:, 60:] = True
    dark = Image.new("RGB", (HW[1], HW[0]), (0, 0, 0))
    empty = line(mask(0, 9)[:0], picture=dark, ignored=encode_rle(ignored), targets=())
    image, truth, first = columns(answer_sheet([empty], ["A"], title=""), 3)
    grey = [(part == 190).all(axis=-1)[100:250].sum() for part in (image, truth, first)]
    assert grey[1] > 5_000 and grey[0] < 100 and grey[2] < 100


def test_an_image_that_is_gone_is_said_to_be() -> None:
    sheet = answer_sheet([line(mask(60, 80), picture=None)], ["A"], title="")
    image, truth, first = columns(sheet, 3)
    assert orange(truth).any() and orange(first).any(), "masks are shown without it"
    white = Image.new("RGB", (HW[1], HW[0]), (255, 255, 255))
    there = columns(answer_sheet([line(mask(60, 80), picture=white)], ["A"], title=""), 3)[0]
    assert (image[100:] < 100).sum() > (there[100:] < 100).sum() + 500, "it is told beneath"


@pytest.mark.parametrize("hw", [(3, 400), (400, 3), (1, 1)])
def test_any_shape_of_image(hw: tuple[int, int]) -> None:
    found = np.ones((1, *hw), bool)
    shown = line(found, words="a" * 500, picture=Image.new("RGB", hw[::-1]), size=hw, targets=(encode_rle(found[0]),))
    assert answer_sheet([shown], ["A"], title="x").width == WIDTH
