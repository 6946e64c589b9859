"""ReasonSeg's files, written by hand in their format, with all that is wrong in some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.data.readers.reasonseg import FOLDER, ReasonSeg, Shape, shapes_mask
from readseg.data.types import Entry
from readseg.errors import ReadsegError

HW = (40, 60)
SQUARE = {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": [[5, 5], [30, 5], [30, 30], [5, 30]]}  # fmt: skip  # noqa: E501
RECORD: dict[str, Any] = {
    "text": ["Where could I sit?", " What carries a person? "],
    "is_sentence": True,
    "shapes": [SQUARE],
    "image_name": "a.jpg",
}


def write(
    root: Path, name: str, record: Any, *, split: str = "val", suffix: str | None = ".jpg", encoding: str = "utf-8"
) -> Path:
    folder = root / FOLDER / split
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(record, bytes):
        record = json.dumps(record, ensure_ascii=False).encode(encoding, "backslashreplace")
    (folder / f"{name}.json").write_bytes(record)
    if suffix:
        Image.new("RGB", HW[::-1]).save(folder / f"{name}{suffix}")
    return folder


def only(root: Path, split: str = "val") -> Entry:
    reader = ReasonSeg(root, split)
    assert len(reader) == 1
    return reader[0]


def painted(entry: Entry, place: int = 0) -> np.ndarray:
    mask = entry.expressions[place].mask
    assert mask is not None
    return mask()


def filled(top: int, left: int, bottom: int, right: int, value: int = 1, on: np.ndarray | None = None) -> np.ndarray:
    """A box with its outline, all four sides included."""
    mask = np.zeros(HW, np.uint8) if on is None else on.copy()
    mask[top : bottom + 1, left : right + 1] = value
    return mask


def painted_shapes(shapes: list[dict[str, Any]]) -> np.ndarray:
    return shapes_mask([Shape(**shape) for shape in shapes], HW)


def corners(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


# -- what a file says --------------------------------------------------------------------------------------------------


def test_all_texts_of_a_file_have_its_mask(tmp_path: Path) -> None:
    folder = write(tmp_path, "a", RECORD)
    entry = only(tmp_path)
    assert (entry.name, entry.image) == ("a", folder / "a.jpg")
    assert [(e.text, e.sentence, e.present, e.kind) for e in entry.expressions] == [
        ("Where could I sit?", True, True, "long"),
        ("What carries a person?", True, True, "long"),
    ]
    assert [e.tags for e in entry.expressions] == [{"long", "first"}, {"long"}]
    for place in range(2):
        assert painted(entry, place).dtype == np.uint8
        np.testing.assert_array_equal(painted(entry, place), filled(5, 5, 30, 30))
    write(tmp_path, "a", {**RECORD, "text": ["the handle"], "is_sentence": False})
    (expression,) = only(tmp_path).expressions
    assert (expression.sentence, expression.kind, expression.tags) == (False, "short", {"short", "first"})


def test_files_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c.d"):
        write(tmp_path, name, RECORD)
    write(tmp_path, "._a", b"\x00\x05\x16", suffix=None)  # what macOS leaves behind
    reader = ReasonSeg(tmp_path, "val")
    assert [entry.name for entry in reader] == ["a", "b", "c.d"]
    assert reader[-1].name == "c.d" and reader.name == "ReasonSeg|val"


def test_false_premises_follow_the_texts(tmp_path: Path) -> None:
    rows = [
        ["the sleeping cat", False, "No cat sleeps here."],
        ["Who waters the plants?", True, "Nobody does, but there is a red watering can."],
        ["the boat", False],
    ]
    write(tmp_path, "a", {**RECORD, "false_premise_QA": rows})
    found = only(tmp_path).expressions[2:]
    assert [(e.text, e.sentence, e.present, e.instead, e.kind) for e in found] == [
        ("the sleeping cat", False, False, "", "false premise"),
        ("Who waters the plants?", True, False, "a red watering can", "false premise"),
        ("the boat", False, False, "", "false premise"),
    ]
    assert [e.tags for e in found] == [{"short"}, {"long"}, {"short"}]


@pytest.mark.parametrize(
    ("answer", "instead"),
    [
        ("There is no cat here, but there is a dog.", "a dog"),
        ("No cat. However, there are two dogs on the sofa!", "two dogs on the sofa"),
        ("No. Instead there's only a kettle", "a kettle"),
        ("No, but there is a dog instead.", "a dog"),
        ("There is no cat, but there is a dog. It sleeps.", ""),
        ("There is a dog.", ""),
        ("No, but there is a dog, or a wolf.", ""),
        ("", ""),
    ],
)
def test_what_is_there_instead_is_taken_only_from_clear_answers(tmp_path: Path, answer: str, instead: str) -> None:
    write(tmp_path, "a", {**RECORD, "false_premise_QA": [["the cat", False, answer]]})
    assert only(tmp_path).expressions[-1].instead == instead


def test_a_file_may_hold_false_premises_alone(tmp_path: Path) -> None:
    write(tmp_path, "a", {**RECORD, "text": [], "shapes": [], "false_premise_QA": [["the cat", False, "No."]]})
    (expression,) = only(tmp_path).expressions
    assert not expression.present and expression.mask is None


@pytest.mark.parametrize(
    ("shapes", "values"),
    [
        *((shapes, {0}) for shapes in ([], [{**SQUARE, "label": "flag"}], [{**SQUARE, "points": []}])),
        ([{**SQUARE, "label": "IGNORE"}], {0, 255}),
    ],
)
def test_a_file_without_polygons_of_a_target_has_an_empty_one(tmp_path: Path, shapes: Any, values: set[int]) -> None:
    write(tmp_path, "a", {**RECORD, "shapes": shapes}, split="test")
    entry = only(tmp_path, "test")
    assert all(e.present and "no_target" in e.tags for e in entry.expressions)
    assert painted(entry).shape == HW and set(np.unique(painted(entry))) == values


# -- masks -------------------------------------------------------------------------------------------------------------


def test_shapes_are_painted_from_large_to_small() -> None:
    small, large = corners(10, 10, 15, 15), corners(5, 5, 30, 50)
    shapes = [{"label": "Some Ignored thing", "points": small}, {"label": "target", "points": large}]
    for found in (painted_shapes(shapes), painted_shapes(shapes[::-1])):
        np.testing.assert_array_equal(found, filled(10, 10, 15, 15, 255, filled(5, 5, 30, 50)))
    inside = [{"label": "ignore", "points": large}, {"label": "target", "points": small}]
    np.testing.assert_array_equal(painted_shapes(inside), filled(10, 10, 15, 15, 1, filled(5, 5, 30, 50, 255)))


def test_of_equal_shapes_the_first_lies_on_top() -> None:
    count = 40  # beyond what an unstable sort keeps in order by chance
    shapes = [{"label": "ignore" if k % 2 else "target", "points": corners(3, 3, 9, 9)} for k in range(count)]
    np.testing.assert_array_equal(painted_shapes(shapes), filled(3, 3, 9, 9))
    np.testing.assert_array_equal(painted_shapes(shapes[1:]), filled(3, 3, 9, 9, 255))


def test_flags_are_dropped_and_points_are_truncated(tmp_path: Path) -> None:
    shapes = [
        {"label": "FLAG", "points": corners(0, 0, 39, 59)},
        {"label": "flagpole", "points": [[3.99, 3.99], [9.99, 3.99], [9.99, 9.99], [3.99, 9.99]]},
    ]
    write(tmp_path, "a", {**RECORD, "shapes": shapes})
    np.testing.assert_array_equal(painted(only(tmp_path)), filled(3, 3, 9, 9))


def test_polygons_outside_the_image_and_degenerate_ones() -> None:
    outside = {"label": "target", "points": corners(50, 70, 90, 99)}
    across = {"label": "target", "points": corners(-5.7, -9.2, 4, 5)}
    point, line = {"label": "target", "points": [[20, 20]]}, {"label": "target", "points": [[30, 30], [40, 30]]}
    assert not painted_shapes([outside]).any()
    expected = filled(30, 30, 30, 40, 1, filled(20, 20, 20, 20, 1, filled(0, 0, 4, 5)))
    np.testing.assert_array_equal(painted_shapes([outside, across, point, line]), expected)


def test_masks_are_of_the_upright_image(tmp_path: Path) -> None:
    folder = write(tmp_path, "a", RECORD, suffix=None)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", HW).save(folder / "a.jpg", exif=exif)  # stored on its side
    assert painted(only(tmp_path)).shape == HW


# -- files that are not as they should be ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "a", {**RECORD, "text": ["naïve étude – “x”"]}, encoding=encoding)
    assert only(tmp_path).expressions[0].text == "naïve étude – “x”"


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".webp"])
def test_images_of_other_suffixes(tmp_path: Path, suffix: str) -> None:
    folder = write(tmp_path, "a", RECORD, suffix=suffix)
    entry = only(tmp_path)
    assert entry.image == folder / f"a{suffix}" and painted(entry).any()
    entry.image.unlink()
    assert only(tmp_path).image == folder / "a.jpg"  # an error only where it is needed
    with pytest.raises(ReadsegError, match=r"a\.jpg: no such image file"):
        painted(only(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_one_broken_file_does_not_break_the_others(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "a", RECORD)
    write(tmp_path, "b", b"{ no json \x81")
    write(tmp_path, "c", {**RECORD, "text": ["étude"]}, encoding=encoding)
    (tmp_path / FOLDER / "val" / "d.json").mkdir()
    reader = ReasonSeg(tmp_path, "val")
    assert [reader[place].name for place in (0, 2)] == ["a", "c"]
    for place, message in ((1, r"b\.json is no JSON"), (3, r"d\.json cannot be read")):
        with pytest.raises(ReadsegError, match=message):
            reader[place]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, '"text": expected a valid list, got None'),
        ({"text": [float("nan")]}, '"text.0": expected a valid string, got nan'),
        ({"text": [" "]}, '"text" holds no words, and there is no false premise'),
        ({"text": ["a \ud83d"]}, "half of a character"),
        ({"is_sentence": float("nan")}, '"is_sentence": expected a valid boolean, got nan'),
        ({"is_sentence": None}, '"is_sentence": expected a valid boolean'),
        ({"shapes": None}, '"shapes": expected a valid list'),
        ({"shapes": [{"points": []}]}, '"shapes.0.label": is missing'),
        ({"shapes": [{"label": "target", "points": None}]}, '"shapes.0.points": expected a valid list'),
        ({"shapes": ["target"]}, '"shapes.0": expected an object'),
        ({"false_premise_QA": {"q": 1}}, '"false_premise_QA": expected a valid list'),
        ({"false_premise_QA": [["the cat"]]}, '"false_premise_QA.0.is_sentence": is missing'),
        ({"false_premise_QA": [["the cat", float("nan"), "No."]]}, "is_sentence.: expected a valid boolean, got nan"),
        ({"false_premise_QA": [["", False, "No."]]}, '"false_premise_QA.0.question": expected words'),
        ({"false_premise_QA": [["it", False, "No, but there is a \ud83d"]]}, "half of a character"),
        *((record, "expected an object") for record in ([RECORD], "text", 3, None)),
        (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "a.json"),
    ],
)
def test_wrong_records(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path, "a", {**RECORD, **change} if isinstance(change, dict) else change)
    with pytest.raises(ReadsegError, match=message) as caught:
        ReasonSeg(tmp_path, "val")[0]
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    "points",
    [
        [[1, 2], [float("nan"), 4], [5, 6]],
        [[1, 2], [float("inf"), 4], [5, 6]],
        [[1, 2, 3]],
        [["x" * 5000, "y"]],
        [[1, 2], [3]],
        [[-1e12, -1e12], [1e12, 5], [5, 1e12]],
        [[1, 2], [10**400, 4], [5, 6]],
        [{}],
    ],
)
def test_wrong_points_are_an_error_of_the_mask(tmp_path: Path, points: Any) -> None:
    write(tmp_path, "a", {**RECORD, "shapes": [SQUARE, {"label": "target", "points": points}]})
    entry = only(tmp_path)
    with pytest.raises(ReadsegError, match=r"a\.json") as told:
        painted(entry)
    assert len(str(told.value)) < 400


def test_splits_that_are_there_and_those_that_are_not(tmp_path: Path) -> None:
    assert ReasonSeg.splits(tmp_path) == ([], [])
    for split in ("val", "train"):
        write(tmp_path, "a", RECORD, split=split)
    (tmp_path / FOLDER / "empty").mkdir()
    assert ReasonSeg.splits(tmp_path) == (["train", "val"], [])
    for split in ("test", "", "..", "../ReasonSeg/val", "a.json", "empty"):
        with pytest.raises(ReadsegError, match=r"ReasonSeg: no split .* there is train, val"):
            ReasonSeg(tmp_path, split)
