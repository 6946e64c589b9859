"""Part D, what is not text: masks of annotation files, scores of masks, and the pixels that models see.

Where the reference is wrong by its own README, the right result is asserted, and how the stored one differs from it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from parity.released_cases import close, part_with, processor_alone, read_json, stored
from readseg.core import stats
from readseg.core.frames import ImageFrame
from readseg.core.masks import encode_rle, intersection_and_union
from readseg.data.annotations import segmentation_mask
from readseg.data.readers import reasonseg, refer
from readseg.data.readers.semantic import ADE20K_NAMES, COCO_STUFF_NAMES
from readseg.model.tokenizer import MODEL_FILE

EPSILON = 1e-5
SCORES = 1e-6
PIXELS = 1e-5


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return part_with(reference / "D_data", "index.json", "data.safetensors")


@pytest.fixture(scope="module")
def index(folder: Path) -> dict[str, Any]:
    return read_json(folder / "index.json")


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "data.safetensors")


def told(index: dict[str, Any], *keys: str) -> list[Any]:
    """What the index says under these keys."""
    return [index[key] for key in keys]


def test_names_of_classes(reference: Path) -> None:
    names = read_json(reference / "classes.json")
    assert list(ADE20K_NAMES) == names["ade20k"]
    assert list(COCO_STUFF_NAMES) == names["cocostuff"]


# -- masks of annotation files -----------------------------------------------------------------------------------------


def test_reasonseg_files(folder: Path, index: dict[str, Any], tensors: dict[str, Tensor], tmp_path: Path) -> None:
    facts = {key.removeprefix("mask."): fact for key, fact in index.items() if key.startswith("mask.")}
    assert facts
    place = tmp_path / reasonseg.FOLDER / "val"
    place.mkdir(parents=True)
    for name, fact in facts.items():
        shutil.copyfile(folder / "json" / f"{name}.json", place / f"{name}.json")
        Image.new("RGB", fact["hw"][::-1]).save(place / f"{name}.png")
    reader = reasonseg.ReasonSeg(tmp_path, "val")
    assert [entry.name for entry in reader] == sorted(facts)
    for entry in reader:
        fact, theirs = facts[entry.name], tensors[f"mask.{entry.name}"].numpy()
        present = [expression for expression in entry.expressions if expression.present]
        # Without false_premise_QA the reference raises in training; ours has none.
        absent = [[e.text, e.sentence] for e in entry.expressions if not e.present]
        assert [e.text for e in present] == fact["text"]
        assert {e.sentence for e in present} == {fact["is_sentence"]}
        assert absent == [row[:2] for row in fact["fp_qa"] or []]
        for expression in present:
            assert expression.mask is not None
            mask = expression.mask()
            np.testing.assert_array_equal(mask, theirs, err_msg=entry.name)
            assert mask.dtype == theirs.dtype
            assert ("no_target" in expression.tags) == (not (theirs == 1).any())
        assert {value: int((theirs == int(value)).sum()) for value in fact["counts"]} == fact["counts"]
        assert (list(theirs.shape), str(theirs.dtype)) == (fact["hw"], fact["dtype"])


def test_a_file_that_is_no_utf_8(folder: Path, index: dict[str, Any], tmp_path: Path) -> None:
    (fact,) = told(index, "cp1252")
    content = (folder / "json" / "cp1252.json").read_bytes()
    with pytest.raises(UnicodeDecodeError):
        content.decode("utf-8")
    place = tmp_path / reasonseg.FOLDER / "val"
    place.mkdir(parents=True)
    (place / "a.json").write_bytes(content)
    assert [e.text for e in reasonseg.ReasonSeg(tmp_path, "val")[0].expressions] == fact["text"]


def test_coco_annotations(index: dict[str, Any], tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Through the reader of RefCOCO. The reference adds the parts up: where they overlap it has 2, no mask's value."""
    facts, runs = told(index, "coco", "coco_rle")
    hw = tuple(facts["hw"])
    names = sorted(facts["ann"])
    annotations = [facts["ann"][name] for name in names] + [runs["rle"][name] for name in names]
    place = tmp_path / refer.FOLDER / "refcoco"
    place.mkdir(parents=True)
    (tmp_path / refer.COCO_IMAGES).mkdir(parents=True)
    Image.new("RGB", hw[::-1]).save(tmp_path / refer.COCO_IMAGES / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": hw[0], "width": hw[1]}],
        "annotations": [{"id": k, "image_id": 1, "segmentation": parts} for k, parts in enumerate(annotations)],
    }
    (place / "instances.json").write_text(json.dumps(content))
    refs = [
        {"image_id": 1, "ann_id": k, "split": "val", "sentences": [{"sent": "it"}]} for k in range(len(annotations))
    ]
    (place / "refs(unc).json").write_text(json.dumps(refs))
    expressions = refer.RefCoco(tmp_path, "refcoco|val")[0].expressions
    assert len(expressions) == 2 * len(names)
    for k, name in enumerate(names):
        theirs = tensors[f"coco.{name}"].numpy()
        assert theirs.max() == facts["max"][name]
        of_polygons, of_runs = expressions[k].mask, expressions[len(names) + k].mask
        assert of_polygons is not None and of_runs is not None
        np.testing.assert_array_equal(of_polygons(), theirs > 0, err_msg=name)
        assert np.array_equal(of_runs(), of_polygons()) == runs["same_mask_as_polygons"][name]
        for polygon, rle in zip(facts["ann"][name], runs["rle"][name], strict=True):
            assert encode_rle(segmentation_mask([polygon], hw)) == rle


def test_no_value_of_this_part_is_left_out(index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """What the other tests go through is all that is stored; text is compared elsewhere."""
    kept: dict[str, set[str]] = {}
    for name in tensors:
        kind, own, *_ = name.split(".")
        kept.setdefault(kind, set()).add(own)
    kept.pop("conv", None)
    masks, coco, scores, runs, pixels = told(index, "mask.simple", "coco", "validate", "run_eval", "preprocess")
    assert masks and kept == {
        "mask": {key.removeprefix("mask.") for key in index if key.startswith("mask.")},
        "coco": set(coco["ann"]),
        "iou": {str(item["i"]) for item in scores["per_item"]},
        "runeval": {str(k) for k in range(len(runs["preds"]))},
        "prep": {str(fact["i"]) for fact in pixels},
    }


# -- scores ------------------------------------------------------------------------------------------------------------


def counted(pred: Tensor, gt: Tensor) -> tuple[list[int], list[int]]:
    """Intersections and unions of masks (M, H, W) with their targets; what they are counted from stays as it was."""
    before = pred.clone(), gt.clone()
    pairs = [intersection_and_union(a.numpy(), b.numpy()) for a, b in zip(pred, gt, strict=True)]
    assert torch.equal(pred, before[0]) and torch.equal(gt, before[1])  # the reference's changes its input
    return [i for i, _ in pairs], [u for _, u in pairs]


def turned(gt: Tensor) -> Tensor:
    """A target's background as the object: 0 and 1 change places, 255 stays."""
    return torch.where(gt == 255, gt, 1 - gt)


def test_validate(index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The reference adds 1e-5 to the number of masks as well: a right empty mask alone scores 0.99999, ours 1."""
    (facts,) = told(index, "validate")
    assert facts["per_item"]
    intersections, unions = [], []
    for item in facts["per_item"]:
        logits, gt = tensors[f"iou.{item['i']}.logits"], tensors[f"iou.{item['i']}.gt"]
        inter, union = counted((logits > 0).int(), gt)
        assert inter == [counts[1] for counts in item["intersection"]], item["i"]
        assert union == [counts[1] for counts in item["union"]], item["i"]
        assert (gt == 1).flatten(1).sum(1).tolist() == [counts[1] for counts in item["target"]], item["i"]
        background = counted((logits <= 0).int(), turned(gt))
        assert background[0] == [counts[0] for counts in item["intersection"]], item["i"]
        assert background[1] == [counts[0] for counts in item["union"]], item["i"]
        assert (gt == 0).flatten(1).sum(1).tolist() == [counts[0] for counts in item["target"]], item["i"]
        ours = stats.estimate(stats.mask_ious(inter, union)).value
        assert ours * len(inter) / (len(inter) + EPSILON) == pytest.approx(item["giou_alone"], abs=SCORES)
        assert stats.estimate(inter, union).value == pytest.approx(item["ciou_alone"], abs=SCORES)
        if not any(union):
            assert ours == 1
        intersections += inter
        unions += union
    count = len(unions)
    ours = stats.estimate(stats.mask_ious(intersections, unions)).value
    assert ours * count / (count + EPSILON) == pytest.approx(facts["giou"], abs=SCORES)
    assert ours == pytest.approx(facts["giou"], abs=EPSILON)
    assert stats.estimate(intersections, unions).value == pytest.approx(facts["ciou"], abs=SCORES)


def test_run_eval(index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (facts,) = told(index, "run_eval")
    said, true, intersections, unions = [], [], [], []
    background: list[tuple[list[int], list[int]]] = []
    for k, record in enumerate(facts["preds"].values()):
        pred, gt = tensors[f"runeval.{k}.pred"], tensors[f"runeval.{k}.gt"]
        assert [bool(mask.any()) for mask in pred] == record["pred_exists"]
        assert [bool((mask == 1).any()) for mask in gt] == record["gt_exists"]
        background.append(counted(1 - pred, turned(gt)))
        inter, union = counted(pred, gt)
        intersections += inter
        unions += union
        said += record["pred_exists"]
        true += record["gt_exists"]
    assert (sum(intersections), sum(unions)) == (facts["intersection"][1], facts["union"][1])
    assert [sum(sum(inter) for inter, _ in background), sum(sum(union) for _, union in background)] == [
        facts["intersection"][0],
        facts["union"][0],
    ]
    assert stats.estimate(intersections, unions).value == pytest.approx(facts["ciou"], abs=SCORES)
    printed = [float(number) for number in re.findall(r"(?:cIoU|Accuracy): ([\d.]+)", facts["stdout"])]
    see = stats.estimate([s == t for s, t in zip(said, true, strict=True)])
    assert [round(stats.estimate(intersections, unions).value, 4), round(see.value, 4)] == printed


def test_wrong_values_are_refused_where_the_reference_loses_them(index: dict[str, Any]) -> None:
    """Its counts leave out whatever lies beyond its classes."""
    (fact,) = told(index, "iou_out_of_range_values")
    pred, target = np.array([fact["output"]]), np.array([fact["target"]])
    assert set(pred.flat) - {0, 1} and set(target.flat) - {0, 1, 255}
    with pytest.raises(ValueError, match="0 and 1 only"):
        intersection_and_union(pred, np.minimum(target, 1))
    with pytest.raises(ValueError, match="0, 1 and 255 only"):
        intersection_and_union(np.minimum(pred, 1), target)


def test_counting_leaves_its_input(index: dict[str, Any]) -> None:
    (fact,) = told(index, "intersectionAndUnion_mutates_output")
    assert fact["before"] != fact["after"]
    target = np.array([fact["before"]])
    pred = np.ones_like(target)
    intersection_and_union(pred, target)
    assert target.tolist() == [fact["before"]] and pred.all()


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_pixels_that_models_see(reference: Path, index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (facts,) = told(index, "preprocess")
    assert facts
    checkpoint = part_with(reference / "C_read" / "ckpt", MODEL_FILE)
    for fact in facts:
        what = f"prep.{fact['i']}"
        processor = processor_alone(
            checkpoint, "read", lmm_size=fact["clip_shape"][-1], mask_size=fact["images_shape"][-1]
        )
        rgb = tensors[f"{what}.rgb"].numpy()
        image = Image.fromarray(rgb)
        assert list(rgb.shape[:2]) == fact["hw"]
        clip, pixels = processor.lmm_pixels(image), processor.mask_pixels(image)
        assert str(pixels.dtype) == fact["images_dtype"]
        assert list(clip.shape) == fact["clip_shape"] and list(pixels.shape) == fact["images_shape"]
        step = 1 if fact["clip_sub"] == "full" else int(fact["clip_sub"].rsplit(":", 1)[1].strip(" ]"))
        close(clip[:, ::step, ::step], tensors[f"{what}.clip"], f"{what}.clip", atol=PIXELS)
        found = stored(tensors, f"{what}.images")
        assert found is not None
        close(pixels[found[1]], found[0], f"{what}.images", atol=PIXELS)
        assert pixels.double().sum().item() == pytest.approx(fact["images_sum"], rel=1e-5)
        assert pixels[0, -1, -1].item() == pytest.approx(fact["pad_value_right_bottom"], abs=PIXELS)


def test_frames(index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (facts,) = told(index, "preprocess")
    for fact in facts:
        frame = ImageFrame(*fact["hw"], lmm_size=fact["clip_shape"][-1], mask_size=fact["images_shape"][-1])
        assert [list(frame.mask_hw), list(frame.hw)] == fact["sam_mask_shape"]
        assert list(frame.mask_hw) == fact["sam_input_shape"]
        image = Image.fromarray(tensors[f"prep.{fact['i']}.rgb"].numpy())
        assert int(np.asarray(frame.mask_view(image), dtype=np.int64).sum()) == fact["resized_u8_sum"]
