"""ADE20K, COCO-Stuff, Mapillary, PACO and PASCAL-Part in miniature: every label is that of the scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from readseg.core.masks import iou
from readseg.miniatures.pictures import COCO_STUFF
from readseg.miniatures.semantic import lvis_name
from readseg.scenes.classes import CLASSES


def pixels(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == mode
        return np.asarray(image)


def scene_names(picture: Any, backdrop: str = "backdrop") -> np.ndarray:
    """(H, W) of names, "" in a frame of three pixels behind the things."""
    names = np.full(picture.hw, "", dtype=object)
    names[3:-3, 3:-3] = backdrop
    for name, mask in zip(picture.facts.names, picture.rendered.masks, strict=True):
        names[mask] = name
    return names


def test_ade20k_counts_its_classes_from_one(mini) -> None:
    lines = (mini.root / "ade20k/objectInfo150.txt").read_text(encoding="utf-8").splitlines()
    head, *rows = (line.split("\t") for line in lines)
    assert head == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [row[0] for row in rows] == [str(i) for i in range(1, 151)] and {len(row) for row in rows} == {6}
    names = [row[5].split(", ")[0] for row in rows]
    assert len(set(names)) == 150
    files = sorted((mini.root / "ade20k/annotations/training").glob("*.png"))
    share, seen = np.zeros(151), np.zeros(151, int)
    for picture, path in zip(mini.pictures, files, strict=True):
        labels = pixels(path, "L")
        truth = scene_names(picture)
        assert labels.shape == truth.shape
        for value in np.unique(labels):
            assert set(truth[labels == value]) == {names[value - 1] if value else ""}
        counts = np.bincount(labels.ravel(), minlength=151)
        share, seen = share + counts, seen + (counts > 0)
    assert [int(row[2]) for row in rows] == seen[1:].tolist()
    assert [float(row[1]) for row in rows] == pytest.approx((share / share.sum())[1:], abs=6e-5)


def test_cocostuff_has_the_indices_that_everybody_uses(mini) -> None:
    # By hand: ids of COCO-Stuff less one, https://github.com/nightrome/cocostuff labels.txt
    known = {"bicycle": 1, "car": 2, "bus": 5, "cat": 16, "dog": 17, "cow": 20, "elephant": 21, "umbrella": 27}
    known |= {"banana": 51, "apple": 52, "pizza": 58, "chair": 61, "bed": 64, "laptop": 72, "book": 83, "scissors": 86}
    assert known.items() <= COCO_STUFF.items()
    assert COCO_STUFF.keys() <= CLASSES.keys()
    for picture in mini.pictures:
        name = f"train2017/{picture.image_id:012d}"
        assert (mini.root / f"coco/{name}.jpg").is_file()
        labels, truth = pixels(mini.root / f"cocostuff/{name}.png", "L"), scene_names(picture)
        expected = np.vectorize(lambda word: COCO_STUFF.get(word, 255))(truth)
        assert np.array_equal(labels, expected)
        assert (np.unique(labels) < 182).sum() >= 1


def test_mapillary_holds_indices_of_its_own_labels(mini) -> None:
    config = json.loads((mini.root / "mapillary/config_v2.0.json").read_text(encoding="utf-8"))
    labels = config["labels"]
    assert labels[-1]["name"] == "void--unlabeled"
    assert all(len(label["color"]) == 3 and 0 <= min(label["color"]) <= max(label["color"]) < 256 for label in labels)
    for picture in mini.pictures:
        path = mini.root / f"mapillary/training/v2.0/labels/mini{picture.image_id:018d}.png"
        assert (mini.root / f"mapillary/training/images/{path.stem}.jpg").is_file()
        values, truth = pixels(path, "P"), scene_names(picture)
        for value in np.unique(values):
            words = set(truth[values == value])
            assert words == {"" if value == len(labels) - 1 else labels[value]["readable"].lower()}
        with Image.open(path) as image:
            shown = np.asarray(image.convert("RGB"))
        assert shown[values == value][0].tolist() == labels[value]["color"]


def thing_of(picture: Any, name: str, call: Any) -> np.ndarray:
    (index,) = (i for i, own in enumerate(picture.facts.names) if call(own) == name)
    return picture.rendered.masks[index]


def half_of(mask: np.ndarray, part: str) -> np.ndarray:
    """Written again, by hand: the pixels on that side of the middle of the box."""
    ys, xs = np.nonzero(mask)
    lines = ys if part.startswith(("top", "bottom")) else xs
    upper = lines < (lines.min() + lines.max() + 1) // 2
    chosen = upper if part.startswith(("top", "left")) else ~upper
    half = np.zeros_like(mask)
    half[ys[chosen], xs[chosen]] = True
    return half


@pytest.mark.parametrize("name", ["paco", "pascal_part"])
def test_parts_are_where_their_names_say(mini, name: str) -> None:
    paco = name == "paco"
    path = "vlpart/paco/annotations/paco_lvis_v1_train.json" if paco else "vlpart/pascal_part/train.json"
    folder = mini.root / ("coco" if paco else "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages")
    data = COCO(mini.root / path)
    by_image = {p.image_id if paco else p.number + 1: p for p in mini.pictures}
    assert set(data.imgs) == set(by_image)
    parts = objects = 0
    for record in data.anns.values():
        picture, category = by_image[record["image_id"]], data.cats[record["category_id"]]["name"]
        with Image.open(folder / data.imgs[record["image_id"]]["file_name"]) as image:
            assert image.size == picture.hw[::-1]
        thing, _, part = category.partition(":")
        truth = thing_of(picture, thing, lvis_name if paco else str)
        if part:
            truth = half_of(truth, part)
            assert part.replace("_", " ") in ("top half", "bottom half", "left half", "right half")
            assert ("_" in part) == paco
        parts, objects = parts + bool(part), objects + (not part)
        assert iou(data.annToMask(record), truth) > 0.95, category
        assert record["area"] == truth.sum()
    assert parts >= 32 and objects * 2 == (parts if paco else 0)
    if paco:
        assert any("_(" in c["name"] and ":" in c["name"] for c in data.cats.values())
        owners = {a["obj_ann_id"] for a in data.anns.values()}
        assert all(":" not in data.cats[data.anns[owner]["category_id"]]["name"] for owner in owners)
