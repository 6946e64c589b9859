"""A result holds together, survives JSON and files, and is drawn."""

from __future__ import annotations

import dataclasses
import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.errors import ReadsegError
from readseg.inference.result import Segmentation

HW = (30, 50)


def result(count: int = 2, *, image: bool = True, **changes: Any) -> Segmentation:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "query": 'a "thing", ein Größeres',
        "answer": "they are " + " and ".join(["[SEG]"] * count),
        "present": count > 0,
        "image_size": HW,
        "masks": rng.random((count, *HW)) > 0.5,
        "points_xy": tuple(rng.uniform(0, 30, (3 * k, 2)).astype(np.float32) for k in range(count)),
        "point_labels": tuple(rng.integers(-1, 2, 3 * k) for k in range(count)),
        "scores": rng.normal(size=(count, 16)).astype(np.float32),
        "box": (0.0, 0.0, 50.0, 30.0),
        "image": Image.new("RGB", HW[::-1], (90, 90, 90)) if image else None,
    }
    return Segmentation(**{**values, **changes})


def test_an_old_result_is_read_and_written_again_byte_for_byte() -> None:
    old = (Path(__file__).parents[1] / "golden" / "old_files" / "result.json").read_text(encoding="utf-8")
    again = Segmentation.from_json(old)
    assert (again.answer, again.masks.shape) == ("the parrot [SEG].", (1, 256, 320))
    assert again.to_json() == old.rstrip("\n")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_json_round_trip_is_exact(count: int) -> None:
    before = result(count)
    text = before.to_json()
    after = Segmentation.from_json(text, before.image)
    for name in ("query", "answer", "present", "image_size", "alignment", "box", "finished"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.masks, before.masks)
    assert after.masks.dtype == bool and after.masks.shape == (count, *HW)
    for name in ("points_xy", "point_labels"):
        for ours, theirs in zip(getattr(after, name), getattr(before, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.shape == theirs.shape
    if count:
        np.testing.assert_array_equal(after.scores, before.scores)
    assert after.to_json() == text


def test_numbers_that_json_lacks_become_null() -> None:
    scores = np.array([[np.nan, np.inf, 1.0, 2.0]], np.float32)
    text = result(1, scores=scores).to_json()
    assert json.loads(text)["similarity"]["scores"] == [[None, None, 1.0, 2.0]]
    assert np.isnan(Segmentation.from_json(text).scores[0, :2]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": np.zeros((2, 50, 30), bool)}, "masks must be bool"),
        ({"masks": np.zeros((2, *HW), np.float32)}, "masks must be bool"),
        ({"present": False}, "present is False"),
        ({"present": None}, "present is None"),
        ({"points_xy": ()}, "of 2 masks"),
        ({"scores": np.zeros((1, 16), np.float32)}, "of 2 masks"),
        ({"scores": np.zeros(2, np.float32)}, "scores must be"),
        ({"point_labels": (np.zeros(0, int), np.array([1, 0, 7]))}, "labels 1, 0 or -1"),
        ({"point_labels": (np.zeros(0, int), np.array([1, 0]))}, "labels 1, 0 or -1"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        result(2, **changes)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result().answer = "another"  # type: ignore[misc]


def test_similarity_is_the_map_at_the_size_of_the_image() -> None:
    scores = np.zeros((1, 16), np.float32)
    scores[0, 0] = 5.0  # the top left of the 4 x 4 grid
    similarity = result(1, scores=scores).similarity
    assert similarity.shape == (1, *HW)
    assert similarity[0, 0, 0] == 1.0
    assert similarity[0, -1, -1] == 0.0
    assert result(0).similarity.shape == (0, *HW)
    assert np.isfinite(result(1, scores=np.full((1, 16), np.nan, np.float32)).similarity).all()


def test_mask_is_the_union() -> None:
    two = result(2)
    np.testing.assert_array_equal(two.mask, two.masks[0] | two.masks[1])
    assert not result(0).mask.any()
    assert result(0).mask.shape == HW


def test_save_writes_every_file_and_nothing_else(tmp_path: Path) -> None:
    folder = result(2).save(tmp_path / "a" / "b")
    names = {path.name for path in folder.iterdir()}
    assert names == {"overlay.png", "result.json", "mask_1.png", "mask_2.png", "heatmap_1.png", "heatmap_2.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "mask_2.png")), 255 * result(2).masks[1])
    loaded = Segmentation.from_json((folder / "result.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(loaded.masks, result(2).masks)


def test_a_later_result_replaces_an_earlier_one_whole(tmp_path: Path) -> None:
    (tmp_path / "mask_of_mine.png").write_bytes(b"mine")
    result(2).save(tmp_path)
    result(0).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"overlay.png", "result.json", "mask_of_mine.png"}


def test_files_of_others_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mask_7.png").write_bytes(b"mine")  # no result.json beside it: not ours
    result(1).save(tmp_path)
    assert (tmp_path / "mask_7.png").read_bytes() == b"mine"


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result(1).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ReadsegError, match="No space left"):
        result(2).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ReadsegError, match=r"cannot write to .*out"):
        result(1).save(tmp_path / "out")


def test_pictures_need_an_image_of_the_right_size() -> None:
    bare = result(1, image=False)
    for draw, message in (
        (bare.overlay, "pass image="),
        (lambda: bare.overlay(Image.new("RGB", (3, 3))), "size"),
        (dataclasses.replace(bare, image=Image.new("RGB", HW)).heatmap, "size"),
        (lambda: result(1).heatmap(1), "no heat map 1"),
    ):
        with pytest.raises(ReadsegError, match=message):
            draw()
    image = Image.new("RGB", HW[::-1])
    assert bare.overlay(image).size[0] >= 480
    assert bare.heatmap(0, image).size[0] >= 480


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "other/1"}', "{not json"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ReadsegError, match="not a saved segmentation"):
        Segmentation.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("masks", 0, "size"), [3, 3], "not a saved segmentation"),
        (("similarity", "alignment"), "rough", "alignment"),
        (("similarity", "box"), [0.0, 1.0], "box"),
        (("similarity", "scores"), [[1.0, 2.0]], "scores"),
    ],
)
def test_damaged_json_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    values = json.loads(result(1).to_json())
    *outer, last = path
    reduce(getitem, outer, values)[last] = value
    with pytest.raises(ReadsegError, match=message):
        Segmentation.from_json(json.dumps(values))
