"""Referring expressions in the layout of their data sets, written by hand, with all that is wrong in some of them."""

from __future__ import annotations

import gc
import json
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.core.masks import encode_rle
from readseg.data.readers import refer
from readseg.data.readers.refer import CLEF_IMAGES, COCO_IMAGES, FOLDER, RefCoco, splits
from readseg.data.types import Entry
from readseg.errors import ReadsegError

HW = (20, 30)
SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
OTHER = [8.0, 5.0, 20.0, 5.0, 20.0, 15.0, 8.0, 15.0]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(HW, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


FIRST, SECOND = box(3, 2, 9, 12), box(5, 8, 15, 20)


def coco_name(image: int) -> str:
    return f"COCO_train2014_{image:012d}.jpg"


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"license": 1, "id": number, "file_name": coco_name(number), "height": HW[0], "width": HW[1], **changes}


def annotation(number: int, of: int, segmentation: Any, **changes: Any) -> dict[str, Any]:
    common = {"area": 1.5, "iscrowd": 0, "bbox": [1, 2, 3, 4], "category_id": 18}
    return {"id": number, "image_id": of, "segmentation": segmentation, **common, **changes}


def sentence(text: str, **more: Any) -> dict[str, Any]:
    return {"tokens": text.split(), "raw": text.upper(), "sent_id": 0, "sent": text, **more}


def ref(of: int, ann_id: Any, *said: Any, split: str = "val", **more: Any) -> dict[str, Any]:
    sentences = [sentence(text) if isinstance(text, str) else text for text in said]
    name = coco_name(of).replace(".jpg", "_7.jpg")  # with the number of the annotation: not the image's
    record = {"image_id": of, "ann_id": ann_id, "split": split, "sentences": sentences, "file_name": name}
    return {"sent_ids": [0], "ref_id": 0, "category_id": 18, **record, **more}


ANNOTATIONS = [annotation(70, 7, [SQUARE]), annotation(71, 7, [OTHER]), annotation(80, 8, [SQUARE])]
REFS = [
    ref(8, 80, "the lady in blue", " lady with back to us "),
    ref(7, 71, "left thing"),
    ref(9, 90, "a train image", split="train"),
    ref(8, 80, "blue shirt"),
]


def write(
    root: Path,
    refs: Any = REFS,
    *,
    dataset: str = "refcoco",
    name: str = "refs(unc).p",
    images: Any = None,
    annotations: Any = ANNOTATIONS,
) -> Path:
    folder = root / FOLDER / dataset
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps(refs))
    else:
        (folder / name).write_bytes(pickle.dumps(refs, 2))
    images = [image(number) for number in (7, 8, 9)] if images is None else images
    (folder / "instances.json").write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    (root / COCO_IMAGES).mkdir(parents=True, exist_ok=True)
    for number in (7, 8, 9):
        Image.new("RGB", HW[::-1]).save(root / COCO_IMAGES / coco_name(number))
    return folder


def only(root: Path, split: str = "refcoco|val") -> Entry:
    reader = RefCoco(root, split)
    assert len(reader) == 1
    return reader[0]


def painted(entry: Entry, place: int = 0) -> np.ndarray:
    mask = entry.expressions[place].mask
    assert mask is not None
    return mask()


# -- RefCOCO/+/g -------------------------------------------------------------------------------------------------------


def test_an_entry_holds_all_sentences_of_an_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    reader = RefCoco(tmp_path, "refcoco|unc|val")
    assert (reader.name, len(reader)) == ("refcoco|unc|val", 2)
    entries = list(reader)
    assert [(entry.name, entry.image) for entry in entries] == [
        (str(number), tmp_path / COCO_IMAGES / coco_name(number)) for number in (8, 7)
    ]
    said = [[expression.text for expression in entry.expressions] for entry in entries]
    assert said == [["the lady in blue", "lady with back to us", "blue shirt"], ["left thing"]]
    for expression in entries[0].expressions:
        assert (expression.sentence, expression.present, expression.kind) == (False, True, "true premise")
        assert not expression.tags and not expression.instead
    np.testing.assert_array_equal(painted(entries[0], 2), FIRST)
    np.testing.assert_array_equal(painted(entries[1]), SECOND)
    assert painted(entries[0]).dtype == np.uint8


@pytest.mark.parametrize(("segmentation", "expected"), [([SQUARE, OTHER], FIRST | SECOND), (encode_rle(FIRST), FIRST)])
def test_masks_are_unions_of_polygons_or_run_lengths(tmp_path: Path, segmentation: Any, expected: np.ndarray) -> None:
    write(tmp_path, [ref(7, 70, "it")], annotations=[annotation(70, 7, segmentation)])
    np.testing.assert_array_equal(painted(only(tmp_path)), expected)


@pytest.mark.parametrize("nothing", [[], [[1, 1, 5, 5]], [[]]])
def test_an_annotation_without_an_outline_has_an_empty_mask(tmp_path: Path, nothing: list[Any]) -> None:
    annotations = [annotation(70, 7, nothing), *ANNOTATIONS[1:]]
    write(tmp_path, [ref(7, 70, "  ", "it", ""), ref(8, 80, "")], annotations=annotations)
    (expression,) = only(tmp_path).expressions  # what has no word is left out
    assert expression.text == "it" and expression.present and expression.tags == {"no_target"}
    assert painted(only(tmp_path)).shape == HW and not painted(only(tmp_path)).any()


# -- several objects, and none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grefs(unc).json", "grefs(unc).p"])
def test_several_annotations_are_one_mask_and_minus_one_is_none(tmp_path: Path, name: str) -> None:
    refs = [
        ref(7, [70, 71], "both", no_target=False),
        ref(7, [-1], "the one in red", no_target=True),
        ref(7, [71], "one"),
        ref(7, [70, -1, 70], "twice"),
        ref(7, -1, "nothing"),
    ]
    write(tmp_path, refs, dataset="grefcoco", name=name)
    entry = only(tmp_path, "grefcoco|val")
    assert [(e.text, e.present, e.kind, e.tags) for e in entry.expressions] == [
        ("both", True, "true premise", {"several"}),
        ("the one in red", False, "false premise", set()),
        ("one", True, "true premise", set()),
        ("twice", True, "true premise", set()),
        ("nothing", False, "false premise", set()),
    ]
    np.testing.assert_array_equal(painted(entry, 0), FIRST | SECOND)
    np.testing.assert_array_equal(painted(entry, 2), SECOND)
    assert entry.expressions[1].mask is None


# -- false premises ----------------------------------------------------------------------------------------------------


def test_sentences_say_themselves_whether_they_are_true(tmp_path: Path) -> None:
    said = [
        sentence("red car", is_false_premise=True, gt_sent=" blue car "),
        sentence("blue car", is_false_premise=False, gt_sent="blue car"),
        sentence("green car", exist=False),
        sentence("my car", exist=True),
        sentence("his car", is_false_premise=True, exist=True, gt_sent=None),
        sentence("her car", is_false_premise=True, gt_sent="her car"),
        sentence("no car", exist=0),
    ]
    write(tmp_path, [ref(7, 70, *said)], dataset="fprefcoco", name="refs(berkeley_exclude_unified).p")
    entry = only(tmp_path, "fprefcoco|val")
    assert [(e.text, e.instead) for e in entry.expressions] == [
        *(("red car", "blue car"), ("blue car", ""), ("green car", ""), ("my car", "")),
        *(("his car", ""), ("her car", ""), ("no car", "")),
    ]
    assert [e.text for e in entry.expressions if e.present] == ["blue car", "my car"]
    assert [e.mask is None for e in entry.expressions] == [not e.present for e in entry.expressions]
    np.testing.assert_array_equal(painted(entry, 1), FIRST)


# -- where files lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "first", "second"),
    [
        ("refcoco", "unc_exclude_unified", "unc"),
        ("refcoco+", "unc_exclude_unified", "unc"),
        ("refcocog", "umd_exclude_unified", "umd"),
        ("R-refcocog", "umd_exclude_unified", "umd"),
        ("R-refcoco+", "unc_exclude_unified", "unc"),
        ("fprefcocog", "berkeley_exclude_unified", "berkeley"),
        ("refclef", "unc", "berkeley"),
        ("grefcoco", "unc_exclude_unified", "unc"),
    ],
)
def test_which_sentences_are_read_by_default(tmp_path: Path, dataset: str, first: str, second: str) -> None:
    write(tmp_path, dataset=dataset, name="refs(google).p")
    assert RefCoco(tmp_path, f"{dataset}|val").name == f"{dataset}|google|val", "the only one"
    for split_by in (second, first):
        write(tmp_path, dataset=dataset, name=f"refs({split_by}).p")
        assert RefCoco(tmp_path, f"{dataset}|val").name == f"{dataset}|{split_by}|val"
    assert RefCoco(tmp_path, f"{dataset}|google|val").name == f"{dataset}|google|val"


def test_splits_that_are_there(tmp_path: Path) -> None:
    assert splits("refcoco", tmp_path) == ([], [])
    write(tmp_path)
    write(tmp_path, [ref(7, [70], "it", split="testA")], dataset="grefcoco", name="grefs(unc).json")
    found = [split for name in ("grefcoco", "refcoco") for split in splits(name, tmp_path)[0]]
    assert found == ["grefcoco|unc|testA", "refcoco|unc|val", "refcoco|unc|train"]
    assert [RefCoco(tmp_path, split).name for split in found] == found


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path)
    for split in ("refcoco", "refcoco|unc|val|x", ""):
        with pytest.raises(ReadsegError, match=r'expected "DATASET\|NAME"'):
            RefCoco(tmp_path, split)
    with pytest.raises(ReadsegError, match=r"refs\(unc\)\.p: no split 'testA'; there is val, train"):
        RefCoco(tmp_path, "refcoco|testA")
    for split in ("refcocog|val", "refcoco|umd|val"):
        with pytest.raises(ReadsegError, match=r"expected refs\(umd\)\.p beside .*data sets there: refcoco"):
            RefCoco(tmp_path, split)
    for split in ("../refer_seg/refcoco|val", "..|val", "|val"):
        with pytest.raises(ReadsegError, match="expected refs"):
            RefCoco(tmp_path, split)
    (tmp_path / FOLDER / "refcoco" / "instances.json").unlink()
    with pytest.raises(ReadsegError, match=r"instances\.json: no such file; it belongs beside refs\(unc\)\.p"):
        RefCoco(tmp_path, "refcoco|val")


@pytest.mark.parametrize("place", ["19579.jpg", "19/images/19579.jpg"])
def test_refclef_s_images_lie_flat_or_as_the_archive_has_them(tmp_path: Path, place: str) -> None:
    images, annotations = [image(19579, file_name="19579.jpg")], [annotation(1, 19579, [SQUARE])]
    write(tmp_path, [ref(19579, 1, "sky")], dataset="refclef", images=images, annotations=annotations)
    path = tmp_path / CLEF_IMAGES / place
    path.parent.mkdir(parents=True)
    Image.new("RGB", HW[::-1]).save(path)
    entry = only(tmp_path, "refclef|val")
    assert entry.image == path
    np.testing.assert_array_equal(painted(entry), FIRST)


def test_the_files_are_read_once_and_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path)
    read: list[Path] = []
    inner = refer.read_json
    monkeypatch.setattr(refer, "read_json", lambda path, **more: read.append(path) or inner(path, **more))
    readers = [RefCoco(tmp_path, "refcoco|val"), RefCoco(tmp_path, "refcoco|train")]
    assert read == [folder / "instances.json"]
    del readers
    gc.collect()
    assert not refer._LOADED
    RefCoco(tmp_path, "refcoco|val")
    assert len(read) == 2


def test_what_no_sentence_names_is_not_kept(tmp_path: Path) -> None:
    write(tmp_path, annotations=[*ANNOTATIONS, annotation(99, 9, [SQUARE])])
    kept = RefCoco(tmp_path, "refcoco|val")._files.records
    assert set(kept) == {"annotation 71", "annotation 80", "image 7", "image 8", "image 9"}


# -- files that are not as they should be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ref(7, None, "x"), r'record 1 .image 7.: "ann_id.0": expected a valid integer, got None'),
        (ref(7, [], "x"), '"ann_id": .* should have at least 1 item'),
        (ref(7, float("nan"), "x"), '"ann_id.0": expected a valid integer, got nan'),
        (ref(7, [[70]], "x"), '"ann_id.0": expected a valid integer'),
        (ref(7, "70", "x"), '"ann_id.0": expected a valid integer'),
        (ref(7, True, "x"), '"ann_id.0": expected a valid integer'),
        (ref(7, 70, {"raw": "x"}), '"sentences.0.sent": is missing'),
        (ref(7, 70, {"sent": float("nan")}), '"sentences.0.sent": expected a valid string'),
        (ref(7, 70, 5), '"sentences.0": expected an object, got 5'),
        (ref(7, 70, sentence("x", exist=float("nan"))), '"sentences.0.exist": expected a valid boolean, got nan'),
        (ref(7, 70, sentence("x", is_false_premise=None)), "is_false_premise.: expected a valid boolean, got None"),
        (ref(7, 70, sentence("a \ud83d")), "half of a character"),
        (ref(7, 70, sentence("x", exist=False, gt_sent="\ud83d")), "half of a character"),
        (ref(7, 70, sentences=None), '"sentences": expected a valid list'),
        (ref(7, 79, "x"), r"instances\.json: expected annotation 79, which refs\(unc\)\.p names, once: it is missing"),
        (ref(7, [70, 80], "x"), r"instances\.json: annotation 80 is of image 8, in .* of image 7"),
        (ref(6, 70, "x"), r"instances\.json: expected image 6, which refs\(unc\)\.p names, once: it is missing"),
        ("no record", "record 1: expected an object, got 'no record'"),
        ({"split": "val"}, 'record 1: "image_id": is missing'),
        (ref(7, 70, "x", split=None), 'record 1: "split": expected a valid string'),
        ({**ref(7, 70, "x"), "image_id": float("nan")}, 'record 1: "image_id": expected a valid integer'),
    ],
)
def test_a_wrong_record_does_not_break_the_others(tmp_path: Path, record: Any, message: str) -> None:
    write(tmp_path, [ref(8, 80, "fine"), record, ref(9, -1, "nothing")])
    reader = RefCoco(tmp_path, "refcoco|val")
    entries, errors = [], []
    for place in range(len(reader)):
        try:
            entries.append(reader[place].name)
        except ReadsegError as error:
            errors.append(str(error))
    assert entries == ["8", "9"]
    (error,) = errors
    assert re.search(message, error) and "refs(unc).p" in error


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, float("nan"), 4, 5, 6]], "annotation 70: .*not finite"),
        (None, "annotation 70: a segmentation must be"),
        ({"size": [10, 10], "counts": [100]}, "annotation 70: .*the image is 20 x 30"),
    ],
)
def test_wrong_annotations_are_an_error_of_the_mask(tmp_path: Path, segmentation: Any, message: str) -> None:
    write(tmp_path, [ref(7, 70, "x"), ref(7, 71, "y")], annotations=[annotation(70, 7, segmentation), ANNOTATIONS[1]])
    entry = only(tmp_path)
    with pytest.raises(ReadsegError, match=rf"instances\.json: {message}"):
        painted(entry, 0)
    np.testing.assert_array_equal(painted(entry, 1), SECOND)


def test_an_id_that_is_not_its_record_s_own(tmp_path: Path) -> None:
    """Which of two different records is meant nobody can say; of two equal ones it does not matter."""
    long = [round(0.01 * k, 2) for k in range(4000)]
    refs = [ref(7, 70, "it"), ref(8, 80, "this"), ref(9, 90, "that")]
    annotations = [
        *(annotation(70, 7, [part]) for part in (long, [*long[:2000], 9.0, *long[2001:]])),
        annotation(80, 8, [SQUARE]),
        annotation(80, 8, [SQUARE], area=3),
        annotation(90, 9, [SQUARE]),
    ]
    images = [image(7), image(8), image(8), image(9), image(9, file_name="b.jpg")]
    write(tmp_path, refs, images=images, annotations=annotations)
    first, second, third = (partial(RefCoco(tmp_path, "refcoco|val").__getitem__, place) for place in range(3))
    with pytest.raises(ReadsegError, match=r"instances\.json: expected annotation 70, .* several and they differ"):
        first()
    np.testing.assert_array_equal(painted(second()), FIRST)
    with pytest.raises(ReadsegError, match=r"instances\.json: expected image 9, .* several and they differ"):
        third()


@pytest.mark.parametrize("dataset", ["refcoco", "refclef"])
@pytest.mark.parametrize(("field", "value"), [("file_name", "../../secret.jpg"), ("height", 0)])
def test_wrong_images_are_told_and_lead_nowhere(tmp_path: Path, dataset: str, field: str, value: Any) -> None:
    write(tmp_path, [ref(7, 70, "x")], dataset=dataset, images=[image(7, **{field: value})])
    with pytest.raises(ReadsegError, match=rf'instances\.json: image 7: "{field}": expected '):
        only(tmp_path, f"{dataset}|val")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("instances.json", b"{ no json", r"instances\.json is no JSON"),
        ("instances.json", b"[]", 'instances.json: expected an object with "images" and "annotations"'),
        ("instances.json", b'{"images": []}', 'expected an object with "images" and "annotations"'),
        ("refs(unc).p", b"", r"refs\(unc\)\.p is damaged"),
        ("refs(unc).p", pickle.dumps({"a": 1}), r"refs\(unc\)\.p: expected a list of records, got dict"),
        ("refs(unc).json", b"{}", r"refs\(unc\)\.json: expected a list of records, got dict"),
        ("refs(unc).json", b"nonsense", r"refs\(unc\)\.json is no JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = write(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ReadsegError, match=message):
        RefCoco(tmp_path, "refcoco|val")
