"""COCO's segmentations become masks; what is no segmentation is an error, in little time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from readseg.core.images import image_hw, load_image
from readseg.core.masks import encode_rle
from readseg.data.annotations import compact, covers_nothing, segmentation_mask
from readseg.errors import ReadsegError

HW = (20, 30)
SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
OTHER = [8.0, 5.0, 20.0, 5.0, 20.0, 15.0, 8.0, 15.0]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("kept", [lambda segmentation: segmentation, compact])
def test_overlapping_polygons_are_one_mask(kept: Any) -> None:
    found = segmentation_mask(kept([SQUARE, OTHER]), HW)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, box(3, 2, 9, 12) | box(5, 8, 15, 20))


def test_polygons_are_those_of_pycocotools() -> None:
    polygon = np.random.default_rng(0).uniform(-5, 35, 24).round(2).tolist()
    theirs = coco.decode(coco.frPyObjects([polygon], *HW))[:, :, 0]
    np.testing.assert_array_equal(segmentation_mask([polygon], HW), theirs.astype(bool))


@pytest.mark.parametrize("kept", [lambda segmentation: segmentation, compact])
def test_run_lengths_of_every_form(kept: Any) -> None:
    mask = box(3, 2, 9, 12)
    rle = encode_rle(mask)
    plain = {"size": list(HW), "counts": [2 * 20 + 3, *[6, 14] * 9, 6, 11 + 18 * 20]}
    as_bytes = {**rle, "counts": rle["counts"].encode()}
    for segmentation in (rle, [rle], plain, as_bytes, [rle, plain]):
        np.testing.assert_array_equal(segmentation_mask(kept(segmentation), HW), mask)
    np.testing.assert_array_equal(segmentation_mask(kept([rle, OTHER]), HW), mask | box(5, 8, 15, 20))


@pytest.mark.parametrize("outside", [[40, 5, 60, 5, 60, 9, 40, 9], [-9, -9, -2, -9, -2, -2], [0, 100, 30, 100, 9, 200]])
def test_polygons_outside_the_image_cover_nothing_and_others_are_cut(outside: list[float]) -> None:
    assert not segmentation_mask([outside], HW).any()
    np.testing.assert_array_equal(segmentation_mask([outside, SQUARE], HW), box(3, 2, 9, 12))
    assert segmentation_mask([[-10.0, -10.0, 50.0, -10.0, 50.0, 40.0, -10.0, 40.0]], HW).all()


@pytest.mark.parametrize("nothing", [[], [[]], [[1, 1, 5, 5]], [[2.0, 3.0]]])
def test_empty_segmentations_cover_nothing(nothing: list[Any]) -> None:
    # pycocotools takes four numbers for a box: that would be 25 pixels.
    assert covers_nothing(nothing) and covers_nothing(compact(nothing))
    assert not segmentation_mask(nothing, HW).any()


@pytest.mark.parametrize("something", [[SQUARE], [[], SQUARE], encode_rle(box(0, 0, 1, 1)), None, "x", [None]])
def test_what_may_cover_something(something: Any) -> None:
    assert not covers_nothing(something) and not covers_nothing(compact(something))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "must be polygons or run lengths"),
        ("x", "must be polygons or run lengths"),
        (7, "must be polygons or run lengths"),
        ([1, 2, 3, 4, 5, 6], "list of pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "list of pairs"),
        ([[[1, 2], [3, 4], [5, 6]]], "list of pairs"),
        ([[1, 2, "x", 4, 5, 6]], "list of numbers"),
        ([[1, 2, None, 4, 5, 6]], "not finite"),
        ([[1, 2, float("nan"), 4, 5, 6]], "not finite"),
        ([[1, 2, float("inf"), 4, 5, 6]], "not finite"),
        ([[0, 0, 1e12, 5, 5, 1e12]], "no pixels"),
        ([[0, 0, 9e5, 0] * 4], "no pixels"),
        ([[10**400, 0, 1, 1, 2, 2]], "list of numbers"),
        ({"size": [3, 4], "counts": [12]}, "the image is 20 x 30"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "the image is 20 x 30"),
        ({"size": "x" * 5000, "counts": [600]}, f"the size {'x' * 60}, the image"),
        ({"counts": [600]}, "run lengths are of the size None"),
        ({"size": [20, 30], "counts": [5]}, "do not fill"),
        ({"size": [20, 30], "counts": "~~"}, "no run length"),
        ({"size": [20, 30]}, "run lengths must be"),
    ],
)
def test_wrong_segmentations(wrong: Any, message: str) -> None:
    for segmentation in (wrong, compact(wrong)):
        with pytest.raises(ValueError, match=message):
            segmentation_mask(segmentation, HW)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".jpg", ".png"):
        path = tmp_path / f"a{suffix}"
        Image.new("RGB", (30, 20)).save(path, exif=exif)
        assert image_hw(path) == load_image(path).size[::-1]
    assert image_hw(path) == ((30, 20) if orientation > 4 else (20, 30))


def test_images_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReadsegError, match=r"gone\.jpg: no such image file"):
        image_hw(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ReadsegError, match=r"text\.jpg is not an image"):
        image_hw(tmp_path / "text.jpg")
    Image.new("L", (30, 20)).save(tmp_path / "big.png")
    monkeypatch.setattr("readseg.core.images.MAX_PIXELS", 599)
    with pytest.raises(ReadsegError, match="too large"):
        image_hw(tmp_path / "big.png")
