"""The files of referring expressions as they are published, of each data set: pickles of Python 2 and 3, and JSON.

Records are written out here by hand, not by our own writer. Python 2 wrote text as bytes.
"""

from __future__ import annotations

import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.data.readers.refer import DATA_SETS, RefCoco

HW = (20, 30)
# Two boxes, x0, y0, x1, y1, ...: pixels 3..8 x 2..11 and 5..14 x 8..19. They share 4 x 4.
LEFT = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
RIGHT = [8.0, 5.0, 20.0, 5.0, 20.0, 15.0, 8.0, 15.0]
LEFT_PIXELS, RIGHT_PIXELS, BOTH_PIXELS = 60, 120, 164
# The left box as run lengths, column by column: RefCLEF has them in place of polygons.
LEFT_RUNS = {"size": [20, 30], "counts": [43, *[6, 14] * 9, 6, 371]}


def sentence(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {"tokens": text.split(), "raw": text.title(), "sent_id": number, "sent": text, **more}


def record(ann_id: Any, split: str, *sentences: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "sent_ids": [said["sent_id"] for said in sentences],
        "file_name": name,
        "ann_id": ann_id,
        "ref_id": 3,
        "image_id": 7,
        "split": split,
        "sentences": list(sentences),
        "category_id": 1,
    }


COCO_NAME = "COCO_train2014_000000000007_70.jpg"  # with the number of the annotation: no image is called so
PLAIN = [
    record(70, "val", sentence(0, "the café on the left"), sentence(1, "left box"), name=COCO_NAME),
    record(71, "val", sentence(2, "right box"), name=COCO_NAME),
    record(70, "train", sentence(3, "elsewhere"), name=COCO_NAME),
]
EXPECTED: list[tuple[str, bool, str, int]] = [
    ("the café on the left", True, "", LEFT_PIXELS),
    ("left box", True, "", LEFT_PIXELS),
    ("right box", True, "", RIGHT_PIXELS),
]
CLEF = [record(70, "val", sentence(0, "the sky"), name="19579_2.jpg")]
ROBUST = [
    record(70, "val", sentence(0, "left box", exist=True), sentence(1, "a box that flies", exist=False), name=COCO_NAME)
]
FALSE = [
    record(
        70,
        "val",
        sentence(0, "left box", is_false_premise=False, gt_sent="left box", exist=True),
        sentence(1, "left cat", is_false_premise=True, gt_sent="left box", exist=False),
        name=COCO_NAME,
    )
]
SEVERAL = [
    {**record([70, 71], "val", sentence(0, "both boxes", exist=True), name=COCO_NAME), "no_target": False},
    {**record([-1], "val", sentence(1, "the cat", exist=False), name=COCO_NAME), "no_target": True},
    record([71], "val", sentence(2, "right box", exist=True), name=COCO_NAME),
]


def published(dataset: str) -> tuple[tuple[str, ...], list[dict[str, Any]], list[tuple[str, bool, str, int]]]:
    """What splits are called in brackets, their records, and what these say."""
    own = "umd" if dataset.endswith("g") else "unc"
    if dataset == "refclef":
        return ("unc",), CLEF, [("the sky", True, "", LEFT_PIXELS)]
    if dataset == "grefcoco":
        said = [("both boxes", True, "", BOTH_PIXELS), ("the cat", False, "", 0), ("right box", True, "", RIGHT_PIXELS)]
        return ("unc",), SEVERAL, said
    if dataset.startswith("fp"):
        said = [("left box", True, "", LEFT_PIXELS), ("left cat", False, "left box", 0)]
        return ("berkeley_exclude_unified",), FALSE, said
    if dataset.startswith("R-"):
        said = [("left box", True, "", LEFT_PIXELS), ("a box that flies", False, "", 0)]
        return (own, f"{own}_exclude_unified"), ROBUST, said
    return (own, f"{own}_exclude_unified"), PLAIN, EXPECTED


def python_2(records: Any, protocol: int) -> bytes:
    """A pickle of Python 2: its text is bytes (UTF-8), so the codes of text become those of byte strings."""
    written = pickle.dumps(records, protocol)
    codes = [*pickletools.genops(written)]
    ends = [start for _, _, start in codes[1:]] + [len(written)]
    content = b""
    for (code, argument, start), end in zip(codes, ends, strict=True):
        own = written[start or 0 : end]
        if code.name == "UNICODE":
            own = b"S" + repr(argument.encode("utf-8"))[1:].encode("ascii") + b"\n"
        elif code.name == "BINUNICODE":
            text = argument.encode("utf-8")
            own = b"U" + bytes([len(text)]) + text
        content += own
    assert pickle.loads(content, encoding="bytes")[0][b"split"] == b"val"
    return content


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "python 2, protocol 0": lambda records: python_2(records, 0),
    "python 2, protocol 2": lambda records: python_2(records, 2),
    "python 3, protocol 2": lambda records: pickle.dumps(records, 2),
    "python 3, protocol 4": lambda records: pickle.dumps(records, 4),
}


def write_rest(root: Path, dataset: str) -> None:
    """instances.json, and the picture: all but the sentences."""
    clef = dataset == "refclef"
    name = "19579.jpg" if clef else "COCO_train2014_000000000007.jpg"
    parts: list[Any] = [[LEFT_RUNS] if clef else [LEFT], [RIGHT]]
    common = {"iscrowd": 0, "image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "area": 9.5}
    content = {
        "info": {"description": "by hand", "year": 2014},
        "images": [{"license": 1, "file_name": name, "height": HW[0], "width": HW[1], "id": 7}],
        "licenses": [{"id": 1, "name": "by hand", "url": ""}],
        "annotations": [{**common, "id": 70 + k, "segmentation": part} for k, part in enumerate(parts)],
        "categories": [{"id": 1, "name": "box", "supercategory": "thing"}],
    }
    (root / "refer_seg" / dataset / "instances.json").write_text(json.dumps(content))
    images = root / "refer_seg" / "images" / ("saiapr_tc-12" if clef else "mscoco/images/train2014")
    images.mkdir(parents=True)
    Image.new("RGB", HW[::-1]).save(images / name)


def said_in(root: Path, split: str) -> list[tuple[str, bool, str, int]]:
    (entry,) = RefCoco(root, split)
    masks = [np.zeros(HW, np.uint8) if e.mask is None else e.mask() for e in entry.expressions]
    assert all(mask.shape == HW and set(np.unique(mask)) <= {0, 1} for mask in masks)
    return [(e.text, e.present, e.instead, int(mask.sum())) for e, mask in zip(entry.expressions, masks, strict=True)]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("dataset", [data_set.name for data_set in DATA_SETS])
def test_pickles_of_both_pythons(tmp_path: Path, dataset: str, writer: str) -> None:
    names, records, expected = published(dataset)
    folder = tmp_path / "refer_seg" / dataset
    folder.mkdir(parents=True)
    prefix = "grefs" if dataset == "grefcoco" else "refs"
    for name in names:
        (folder / f"{prefix}({name}).p").write_bytes(WRITERS[writer](records))
    write_rest(tmp_path, dataset)
    for name in names:
        assert said_in(tmp_path, f"{dataset}|{name}|val") == expected
    assert RefCoco(tmp_path, f"{dataset}|val").name == f"{dataset}|{names[-1]}|val"
