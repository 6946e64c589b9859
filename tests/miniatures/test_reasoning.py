"""ReasonSeg and LLaVA-Instruct in miniature: true questions, exact shapes, the oddities of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readseg.core.masks import iou, polygons_to_mask
from readseg.scenes.classes import CLASSES

FOLDER = "reason_seg/ReasonSeg"


def load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return json.loads(path.read_text(encoding="cp1252"))


def layouts(mini: Any, split: str = "*") -> dict[Path, dict[str, Any]]:
    return {path: load(path) for path in sorted((mini.root / FOLDER).glob(f"{split}/*.json"))}


def picture_of(mini: Any, path: Path) -> Any:
    jpeg = path.with_suffix(".jpg").read_bytes()
    return next(p for p in mini.pictures if p.jpeg == jpeg)


def described(text: str) -> set[str]:
    """Classes that one of their descriptions in the text means: that of the longest one."""
    found = {
        (len(description), name)
        for name, c in CLASSES.items()
        for description in (*c.descriptions, *c.held_out_descriptions)
        if description in text
    }
    longest = max((length for length, _ in found), default=0)
    return {name for length, name in found if length == longest}


def painted(mini: Any, path: Path, layout: dict[str, Any], label: str) -> np.ndarray:
    points = [shape["points"] for shape in layout["shapes"] if shape["label"] == label]
    return polygons_to_mask(points, picture_of(mini, path).hw)


def test_the_shapes_are_the_thing_that_the_texts_describe(mini) -> None:
    for path, layout in layouts(mini).items():
        picture = picture_of(mini, path)
        assert layout.keys() <= {"text", "is_sentence", "shapes", "false_premise_QA"}
        meant = set.union(*(described(text) for text in layout["text"]))
        assert len(meant) == 1, layout["text"]
        (name,) = meant
        indices = [i for i, own in enumerate(picture.facts.names) if own == name]
        target = painted(mini, path, layout, "target")
        if not any(shape["label"] == "target" for shape in layout["shapes"]):
            assert indices == []
            continue
        (index,) = indices
        assert iou(target, picture.rendered.masks[index]) > 0.95
        ignored = painted(mini, path, layout, "ignore")
        overlaps = [iou(ignored, m) for i, m in enumerate(picture.rendered.masks) if i != index]
        assert not ignored.any() or max(overlaps) > 0.95
        for shape in layout["shapes"]:
            assert shape["image_name"] == path.with_suffix(".jpg").name
            assert shape["shape_type"] == "polygon" and len(shape["points"]) >= 3


def test_oddities_of_the_real_files_occur(mini) -> None:
    every = layouts(mini)
    labels = [{shape["label"] for shape in layout["shapes"]} for layout in every.values()]
    for label in ("flag", "ignore", "target"):
        assert any(label in found for found in labels)
    empty = {path: layout for path, layout in every.items() if "target" not in {s["label"] for s in layout["shapes"]}}
    assert {path.parent.name for path in empty} == {"test"}
    assert sorted(len(layout["shapes"]) for layout in empty.values()) == [0, 1]
    (old,) = (path for path in every if "\ufffd" in path.read_text("utf-8", errors="replace"))
    assert old.parent.name == "train" and "“" in every[old]["text"][0]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_each_split_has_short_and_long_questions(mini, split: str) -> None:
    found = layouts(mini, split)
    assert {layout["is_sentence"] for layout in found.values()} == {True, False}
    for layout in found.values():
        assert len(layout["text"]) >= 2 if split == "train" else len(layout["text"]) == 1
        for text in layout["text"]:
            assert ("?" in text) == layout["is_sentence"]
    assert any("false_premise_QA" in layout for layout in found.values())
    assert any("false_premise_QA" not in layout for layout in found.values())


def test_false_premises_ask_for_what_is_not_there_and_are_told_what_is(mini) -> None:
    kinds = set()
    for path, layout in layouts(mini).items():
        names = picture_of(mini, path).facts.names
        for question, is_sentence, answer in layout.get("false_premise_QA", []):
            (asked,) = described(question)
            assert asked not in names
            assert asked in answer.lower() and "not here" in answer
            assert any(f" {CLASSES[name].counted}." in answer for name in names)
            assert is_sentence == ("?" in question)
            kinds.add(is_sentence)
    assert kinds == {True, False}


def test_conversations_are_of_several_rounds_about_pictures_that_are_there(mini) -> None:
    records = json.loads((mini.root / "llava_dataset/llava_instruct_150k.json").read_text(encoding="utf-8"))
    ends = set()
    for record, picture in zip(records, mini.pictures, strict=True):
        assert record["image"] == f"{record['id']}.jpg"
        assert (mini.root / "coco/train2017" / record["image"]).read_bytes() == picture.jpeg
        said = record["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2) and len(said) >= 4
        assert [turn["value"].count("<image>") for turn in said] == [1] + [0] * (len(said) - 1)
        ends.add((said[0]["value"].startswith("<image>\n"), said[0]["value"].endswith("\n<image>")))
        assert not any("[SEG]" in turn["value"] for turn in said)
        for question, answer in zip(said[::2], said[1::2], strict=True):
            if "how many" in question["value"].lower() and answer["value"] == "None.":
                assert not any(f" {CLASSES[n].plural} " in question["value"] for n in picture.facts.names)
    assert ends == {(True, False), (False, True)}
