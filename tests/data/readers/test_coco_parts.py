"""PACO-LVIS and PASCAL-Part, in their true formats and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.data.readers.coco_parts import PACO, PascalPart, category_phrase
from readseg.data.types import Entry, Expression
from readseg.errors import ReadsegError

Reader = type[PACO] | type[PascalPart]

HW = (40, 50)
SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]
BESIDE = [10.5, 10.0, 38.0, 10.0, 38.0, 38.0, 10.5, 38.0]
PLACES: dict[Any, tuple[str, str]] = {
    PACO: ("vlpart/paco/annotations/paco_lvis_v1_train.json", "coco"),
    PascalPart: ("vlpart/pascal_part/train.json", "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"),
}
IMAGE = {"id": 9, "file_name": "train2017/9.jpg", "height": 40, "width": 50, "license": 1, "neg_category_ids": [1]}
CATEGORIES = [
    {"id": 1, "name": "trash_can", "supercategory": "OBJECT", "synset": "ashcan.n.01"},
    {"id": 300, "name": "mouse_(computer_equipment):left_button", "supercategory": "PART"},
]


def annotation(number: Any = 1, image: Any = 9, category: Any = 1, segmentation: Any = (SQUARE,)) -> dict[str, Any]:
    segmentation = list(segmentation) if isinstance(segmentation, tuple) else segmentation
    ids = {"id": number, "image_id": image, "category_id": category, "obj_ann_id": number}
    return {**ids, "bbox": [5, 5, 15, 15], "area": 225.0, "segmentation": segmentation, "iscrowd": 0}


def whole(*annotations: Any, images: Any = (IMAGE,), categories: Any = CATEGORIES) -> dict[str, Any]:
    return {
        "info": {"description": "made by hand", "images": [3]},
        "images": list(images),
        "annotations": list(annotations),
        "categories": list(categories),
        "attributes": [{"id": 1, "name": "black"}],
        "part_categories": [{"id": 1, "name": "rim"}],
    }


def place(root: Path, reader: Reader) -> Path:
    """The annotation file's place, with all folders made."""
    path, images = (root / part for part in PLACES[reader])
    path.parent.mkdir(parents=True, exist_ok=True)
    (images / "train2017").mkdir(parents=True, exist_ok=True)
    return path


def read(root: Path, content: Any, reader: Reader = PACO) -> Any:
    path = place(root, reader)
    # What UTF-8 cannot hold, half of a character, JSON spells as "\\ud800": just as this does.
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    for name in ("9.jpg", "train2017/9.jpg", "train2017/8.jpg"):
        Image.new("RGB", HW[::-1]).save(root / PLACES[reader][1] / name)
    return reader(root, "train")


def painted(expression: Expression) -> np.ndarray:
    assert expression.mask is not None
    mask = expression.mask()
    assert mask.dtype == np.uint8 and mask.shape == HW and mask.max() <= 1
    return mask.astype(bool)


def texts(entry: Entry) -> list[str]:
    return [expression.text for expression in entry.expressions]


@pytest.mark.parametrize("reader", [PACO, PascalPart])
def test_each_annotation_is_asked_for(tmp_path: Path, reader: Reader) -> None:
    image = IMAGE | {"file_name": "train2017/9.jpg" if reader is PACO else "9.jpg"}
    content = whole(annotation(1, category=300), annotation(2), annotation(3, segmentation=[BESIDE]), images=[image])
    data = read(tmp_path, content, reader)
    assert data.name == ("paco_lvis|train" if reader is PACO else "pascal_part|train")
    assert len(data) == 1
    entry = data[0]
    assert entry.image == tmp_path / PLACES[reader][1] / str(image["file_name"])
    assert entry.name == image["file_name"]
    assert texts(entry) == ["the left button of the mouse", "trash can", "trash can"]
    assert all(expression.present and not expression.sentence for expression in entry.expressions)
    first, second, third = map(painted, entry.expressions)
    assert np.array_equal(first, second) and not np.array_equal(second, third)
    assert first.sum() == 15 * 15 and first[5:20, 5:20].all()


def test_annotations_find_their_images_in_any_order(tmp_path: Path) -> None:
    other = IMAGE | {"id": "2008_000008", "file_name": "train2017/8.jpg", "flickr_url": "Köln 😀"}
    unused = IMAGE | {"id": 7, "file_name": "train2017/7.jpg"}
    content = whole(
        annotation(1, image="2008_000008"),
        annotation(2, category=300),
        annotation(3, image="2008_000008", category=300),
        images=[IMAGE, unused, other],
    )
    for keys in (list(content), list(content)[::-1]):
        data = read(tmp_path, {key: content[key] for key in keys})
        found = {entry.name: texts(entry) for entry in data}
        assert found == {
            "train2017/9.jpg": ["the left button of the mouse"],
            "train2017/8.jpg": ["trash can", "the left button of the mouse"],
        }
        assert data[-1].name == data[1].name
    with pytest.raises(IndexError):
        data[2]


def test_many_annotations_keep_the_order_of_the_file(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE | {"id": 8, "file_name": "train2017/8.jpg"}]
    annotations = (annotation(k, image=8 + k % 2, category=k) for k in range(200))
    first, second = read(
        tmp_path, whole(*annotations, images=images, categories=[{"id": k, "name": f"thing_{k}"} for k in range(200)])
    )
    assert texts(first) == [f"thing {k}" for k in range(1, 200, 2)]
    assert texts(second) == [f"thing {k}" for k in range(0, 200, 2)]


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("cup", "cup"),
        ("cup:handle", "the handle of the cup"),
        ("trash_can:inner_side", "the inner side of the trash can"),
        ("bus:license plate", "the license plate of the bus"),
        ("pipe_(plumbing)", "pipe"),
        ("can_(container):lid_(top)", "the lid of the can"),
        (" car_(automobile):head_light ", "the head light of the car"),
    ],
)
def test_category_phrase(category: str, expected: str) -> None:
    assert category_phrase(category) == expected


@pytest.mark.parametrize(
    "category", ["", " ", "a\0", "\ud800", ":", "cup:", ":handle", "cup:_(x)", "_(x)", "a:b:c", None, 3, ["cup"]]
)
def test_names_that_are_no_names_break_only_their_image(tmp_path: Path, category: Any) -> None:
    other = IMAGE | {"id": 8, "file_name": "train2017/8.jpg"}
    categories = [*CATEGORIES, {"id": 5, "name": category}]
    content = whole(annotation(1, category=5), annotation(2, image=8), images=[IMAGE, other], categories=categories)
    data = read(tmp_path, content)
    with pytest.raises(ReadsegError, match=r"train\.json: category 5: a name must be"):
        data[0]
    assert texts(data[1]) == ["trash can"]


@pytest.mark.parametrize("category", [2, None, float("nan"), [1], {"id": 1}, True, "1"])
def test_a_category_that_is_not_in_the_file(tmp_path: Path, category: Any) -> None:
    data = read(tmp_path, whole(annotation(77, category=category)))
    with pytest.raises(ReadsegError, match=r'image 9: annotation 77: category .* is not in "categories"'):
        data[0]


@pytest.mark.parametrize("image", [5, None, float("nan"), [9], {}, True, "9"])
def test_annotations_of_no_image_raise_where_they_are_read(tmp_path: Path, image: Any) -> None:
    data = read(tmp_path, whole(annotation(1, image=image), annotation(2)))
    assert len(data) == 2
    assert texts(data[0]) == ["trash can"]
    with pytest.raises(ReadsegError, match=r'1 annotations are of image .*, which is not in "images"'):
        data[1]


@pytest.mark.parametrize("broken", [None, 3, "x", [], float("nan")])
def test_records_that_are_no_objects(tmp_path: Path, broken: Any) -> None:
    data = read(tmp_path, whole(annotation(1), broken, images=[broken, IMAGE], categories=[broken, *CATEGORIES]))
    assert [len(data), texts(data[0])] == [2, ["trash can"]]
    with pytest.raises(ReadsegError, match='is not in "images"'):
        data[1]


def test_an_image_id_that_occurs_twice(tmp_path: Path) -> None:
    data = read(tmp_path, whole(annotation(1), images=[IMAGE, IMAGE | {"file_name": "train2017/8.jpg"}]))
    with pytest.raises(ReadsegError, match='image 9, which occurs twice in "images"'):
        data[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": None}, '"file_name": expected a valid string, got None'),
        ({"file_name": "../../etc/passwd"}, '"file_name": expected the name of a file inside its folder'),
        ({"file_name": "/etc/passwd"}, '"file_name": expected the name of a file inside its folder'),
        ({"height": None}, '"height": expected a valid integer, got None'),
        ({"height": float("nan")}, '"height": expected a valid integer, got nan'),
        ({"width": 0}, '"width": expected greater than 0'),
        ({"width": -50}, '"width": expected .*greater than 0'),
        ({"width": "50"}, '"width": expected a valid integer'),
    ],
)
def test_a_broken_image_record(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = read(tmp_path, whole(annotation(1), images=[IMAGE | change]))
    with pytest.raises(ReadsegError, match=f"image 9.*{message}"):
        data[0]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "must be polygons or run lengths"),
        ([[1, 2, float("nan"), 4, 5, 6]], "not finite"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "size"),
    ],
)
def test_a_wrong_segmentation_breaks_only_its_mask(tmp_path: Path, segmentation: Any, message: str) -> None:
    entry = read(tmp_path, whole(annotation(1, segmentation=segmentation), annotation(2)))[0]
    with pytest.raises(ReadsegError, match=rf"train\.json: image 9: annotation 1: .*{message}"):
        painted(entry.expressions[0])
    assert painted(entry.expressions[1]).any()


@pytest.mark.parametrize(
    ("segmentation", "tags"),
    [
        ([], {"no_target"}),
        ([[]], {"no_target"}),
        ([[3, 3, 9, 9]], {"no_target"}),
        ([[60, 60, 70, 60, 70, 70]], set()),
        ([[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]], set()),
    ],
)
def test_what_covers_nothing_is_an_empty_mask(tmp_path: Path, segmentation: Any, tags: set[str]) -> None:
    expression = read(tmp_path, whole(annotation(1, segmentation=segmentation)))[0].expressions[0]
    assert expression.tags == tags
    assert not painted(expression).any()


def test_images_are_read_when_a_mask_is_made(tmp_path: Path) -> None:
    entry = read(tmp_path, whole(annotation(1)))[0]
    entry.image.unlink()
    with pytest.raises(ReadsegError, match=r"9\.jpg: no such image file"):
        painted(entry.expressions[0])
    Image.new("RGB", (40, 50)).save(entry.image)
    with pytest.raises(ReadsegError, match=r"9\.jpg is 50 x 40 .*paco_lvis_v1_train\.json 40 x 50"):
        painted(entry.expressions[0])


def test_an_image_record_of_absurd_size_takes_no_memory(tmp_path: Path) -> None:
    entry = read(tmp_path, whole(annotation(1), images=[IMAGE | {"width": 10**9, "height": 10**9}]))[0]
    with pytest.raises(ReadsegError, match=r"9\.jpg is 40 x 50 .* 1000000000 x 1000000000: expected the original"):
        painted(entry.expressions[0])


WHOLE = json.dumps(whole(annotation(1))).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[: len(WHOLE) // 2], "no whole JSON file"),
        (b"[]", "it has no annotation"),
        (b"{}", "it has no annotation"),
        (b'{"images": [], "annotations": [], "categories": []}', "it has no annotation"),
        (b'{"annotations": {"1": {}}}', "it has no annotation"),
    ],
)
def test_a_broken_file_is_told_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    path = place(tmp_path, PACO)
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=message) as told:
        PACO(tmp_path, "train")
    assert str(told.value).startswith(str(path))
