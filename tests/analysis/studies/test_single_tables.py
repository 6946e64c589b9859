"""The tables of one image: a row for each map and prompt of each [SEG], and no column that nothing fills."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from readseg.analysis.studies.measures import iou_of
from readseg.analysis.studies.single_image import ImageFound, ModelFound, examine_image
from readseg.analysis.studies.single_tables import tables_of
from readseg.analysis.truth import Truth
from readseg.inference.segmenter import Segmenter
from readseg.viz.tables import to_markdown
from small import picture, small_model, small_processor

TARGET = np.zeros((40, 60), np.uint8)
TARGET[10:25, 15:35] = 1
TRUTH = Truth("t.png", TARGET, 1)


@cache
def small() -> Segmenter:
    return Segmenter(small_model(), small_processor())


@cache
def looked(name: str, answer: str, *truths: Truth, prompt: Any = None, layers: bool = False) -> ModelFound:
    return examine_image(
        small(), picture(40, 60), "cup", truths=truths, answer=answer, prompt=prompt, layers=layers, name=name,
        plain=small().model.sam,
    )  # fmt: skip


def found(*models: ModelFound, truths: tuple[Truth, ...] = (TRUTH,)) -> ImageFound:
    return ImageFound("cup.png", picture(40, 60), "cup", truths, models)


def test_with_a_truth() -> None:
    model = looked("A", "the cup [SEG].", TRUTH, layers=True)
    maps, masks, layers = tables_of(found(model))
    seg = model.segs[0]
    assert [row.name for row in maps.rows] == [
        "language model, last layer", "mask decoder, at the [SEG] token", "before the language model",
        "the answer's own words",
    ]  # fmt: skip
    for row, name in zip(maps.rows, ("lmm", "sam", "before", "words"), strict=True):
        scores = seg.maps[name].scores
        assert scores is not None
        assert row.cells == {
            "iou": iou_of(scores.counts), "threshold": scores.threshold, "pointing": scores.pointing,
            "mass": scores.mass_inside, "auc": scores.auc,
        }  # fmt: skip
    assert list(masks.columns) == ["share", "iou", "own", "seg", "points", "plain_points", "plain_extremes"]
    assert [row.name for row in masks.rows] == [
        "own: points and [SEG]", "[SEG] alone", "points alone", "points alone, original SAM",
        "highest and lowest cells, original SAM",
    ]  # fmt: skip
    own, alone = masks.rows[0].cells, masks.rows[1].cells
    assert own["seg"] == alone["own"] == seg.agreement["own", "seg"]
    assert "own" not in own and own["share"] == seg.masks["own"].mask.mean()
    counts = seg.masks["seg"].counts
    assert counts is not None and alone["iou"] == iou_of(counts)
    assert [row.name for row in layers.rows] == ["layer 0", "layer 1", "layer 2"]
    assert layers.rows[2].cells == maps.rows[0].cells
    assert any("bound" in note for note in maps.notes) and any("bound" in note for note in layers.notes)
    assert any(f"{seg.spearman:.3f}" in note for note in masks.notes)


def test_without_a_truth_only_what_needs_none() -> None:
    for truths in ((), (Truth("t.png", np.zeros((40, 60), np.uint8), 255),)):
        tables = tables_of(found(looked("A", "the cup [SEG].", *truths, layers=True), truths=truths))
        assert [table.first for table in tables] == ["prompt"]
        assert ("iou" in tables[0].columns) == bool(truths)


def test_groups_of_several_segs_and_models() -> None:
    two = looked("A", "the cup [SEG] and [SEG].", TRUTH)
    other = looked("B", "the cup [SEG].", TRUTH, prompt="seg")
    maps, masks = tables_of(found(two, other))
    assert list(dict.fromkeys(row.group for row in maps.rows)) == ["A, [SEG] 1", "A, [SEG] 2", "B"]
    assert sum(row.group == "A, [SEG] 2" for row in maps.rows) == 3  # it has no words of its own
    assert [row.name for row in masks.rows if row.group == "B"][:2] == ["own: [SEG] alone", "points and [SEG]"]
    assert "held against all of it" in to_markdown(masks)
    several = tables_of(found(looked("A", "[SEG] [SEG]", TRUTH, TRUTH), truths=(TRUTH, TRUTH)))
    assert "The k-th [SEG] is held against the k-th truth" in several[0].notes


def test_no_seg_no_table() -> None:
    assert tables_of(found(looked("A", "no cup.", TRUTH))) == []
