"""The folder of miniatures as a whole: complete, the same each time, written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readseg.errors import ReadsegError
from readseg.miniatures import write_miniatures
from readseg.miniatures.pictures import draw_pictures

# By hand from the layout that users of this family have on disk; "#" stands for digits, the number for how many files.
LAYOUT = {
    "ade20k/images/training/ADE_train_#.jpg": 8,
    "ade20k/annotations/training/ADE_train_#.png": 8,
    "ade20k/objectInfo150.txt": 1,
    "coco/train2017/#.jpg": 8,
    "cocostuff/train2017/#.png": 8,
    "mapillary/config_v2.0.json": 1,
    "mapillary/training/images/mini#.jpg": 8,
    "mapillary/training/v2.0/labels/mini#.png": 8,
    "vlpart/paco/annotations/paco_lvis_v1_train.json": 1,
    "vlpart/pascal_part/train.json": 1,
    "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_#.jpg": 8,
    "llava_dataset/llava_instruct_150k.json": 1,
    "refer_seg/images/mscoco/images/train2014/COCO_train2014_#.jpg": 8,
    "refer_seg/images/saiapr_tc-12/#/images/#.jpg": 8,
}
for split, count in {"train": 4, "val": 4, "test": 6}.items():
    LAYOUT |= {f"reason_seg/ReasonSeg/{split}/#_o.{kind}": count for kind in ("jpg", "json")}
for folders, splits in (
    (("refclef",), ("unc",)),
    (("refcoco", "refcoco+", "R-refcoco", "R-refcoco+"), ("unc", "unc_exclude_unified")),
    (("refcocog", "R-refcocog"), ("umd", "umd_exclude_unified")),
    (("fprefcoco", "fprefcoco+", "fprefcocog"), ("berkeley_exclude_unified",)),
):
    for folder in folders:
        LAYOUT |= {f"refer_seg/{folder}/{name}": 1 for name in ("instances.json", *(f"refs({s}).p" for s in splits))}
LAYOUT |= {f"refer_seg/grefcoco/{name}": 1 for name in ("instances.json", "grefs(unc).json")}


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_layout_is_complete_and_there_is_nothing_else(mini) -> None:
    found: dict[str, int] = {}
    for path in files_of(mini.root):
        folder, _, name = path.rpartition("/")
        number = re.sub(r"(?<=^COCO_train2014_)\d+|\d{6,}(_\d)?|^\d+(?=\.jpg)", "#", name)
        folder = re.sub(r"saiapr_tc-12/\d\d/", "saiapr_tc-12/#/", folder)
        found[f"{folder}/{number}"] = found.get(f"{folder}/{number}", 0) + 1
    assert found == LAYOUT
    assert re.fullmatch(
        r"COCO_train2014_\d{12}\.jpg", next((mini.root / "refer_seg/images/mscoco").rglob("*.jpg")).name
    )


def test_it_is_small_and_every_picture_can_be_read(mini) -> None:
    assert sum(len(data) for data in files_of(mini.root).values()) < 8e6
    shown = {p.jpeg for p in mini.pictures}
    assert len(shown) == 8
    for path in mini.root.rglob("*.jpg"):
        assert path.read_bytes() in shown
    with Image.open(path) as image:
        assert image.mode == "RGB" and np.asarray(image).std() > 5


def test_the_same_seed_writes_the_same_bytes_and_another_one_does_not(mini, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    counts = write_miniatures(out, seed=3, images=8)
    assert files_of(out) == files_of(mini.root)
    assert next(draw_pictures(4, 1)).jpeg != mini.pictures[0].jpeg
    # The numbers that are told are those of the files.
    assert {counts[name] for name in ("ade20k", "cocostuff", "mapillary", "llava_instruct")} == {8}
    for split in ("train", "val", "test"):
        assert counts[f"ReasonSeg/{split}"] == len(list((out / "reason_seg/ReasonSeg" / split).glob("*.json"))) >= 4
    for name, path in (
        ("paco", "paco/annotations/paco_lvis_v1_train.json"),
        ("pascal_part", "pascal_part/train.json"),
    ):
        assert counts[name] == len(json.loads((out / "vlpart" / path).read_bytes())["annotations"])
    assert min(counts.values()) >= 4


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ReadsegError, match="is a file"):
        write_miniatures(tmp_path / "file")
    with pytest.raises(ReadsegError, match="not empty"):
        write_miniatures(tmp_path)
    assert files_of(tmp_path) == {"file": b"precious"}


def test_a_failure_leaves_an_empty_folder_empty(mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("readseg.miniatures.draw_pictures", lambda seed, images: mini.pictures)
    monkeypatch.setattr("readseg.miniatures.write_refer_seg", fails)
    with pytest.raises(OSError, match="disk full"):
        write_miniatures(tmp_path / "out", images=8)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]
