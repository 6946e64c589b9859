"""The layer sweep: the map of each layer, measured, and what is made of it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from readseg.analysis.answer_states import collect_states
from readseg.analysis.cases import Case, TargetMask
from readseg.analysis.page import spread
from readseg.analysis.similarity_maps import layer_maps
from readseg.analysis.studies.layers import (
    LayerRecord,
    LayerStudy,
    examples,
    layer_table,
    measure_layers,
)
from readseg.analysis.studies.maps import WHOLE
from readseg.core.masks import Counts
from readseg.core.stats import Estimate
from readseg.evaluation.benchmarks import ImageQuestions, Question
from readseg.inference.segmenter import Segmenter
from readseg.viz.tables import to_markdown
from records import scores
from small import picture, small_model, small_processor

SIZE = (40, 60)
RECORDS = TypeAdapter(LayerRecord)
TWO = "it is the red cup [SEG] and there is a saw [SEG]."


@cache
def small() -> Segmenter:
    return Segmenter(small_model(), small_processor())


def target_of(*, ignored: bool = False) -> np.ndarray:
    target = np.zeros(SIZE, np.uint8)
    target[5:22, 10:37] = 1
    target[:8] = 255 if ignored else target[:8]
    return target


@cache
def case(answer: str = TWO) -> Case:
    encoded = small().encode(picture(*SIZE))
    (reply,) = small().reply(encoded, ["the red cup"], force=answer)
    query = Question("page/0", "the red cup", False, True, list)
    page = ImageQuestions("page", np.asarray(picture(*SIZE)), "page.jpg", "val", (query,))
    ignoring = TargetMask(target_of(ignored=True), (1,))
    units = (TargetMask(target_of(), (0,)), ignoring, TargetMask(target_of(), (0, 1)), TargetMask(target_of(), ()))
    return Case(query, page, encoded, reply, units)


@cache
def found() -> list[LayerRecord]:
    return measure_layers(small(), case())


def counts(mask: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    counted = target != 255
    return int((mask & (target == 1) & counted).sum()), int(((mask | (target == 1)) & counted).sum())


def test_each_layer_is_measured() -> None:
    reading = collect_states(small(), case().encoded, case().reply)
    seen = set()
    for layer in range(3):
        first, second = (one.map for one in layer_maps(reading, layer))
        maps = (first, second, np.maximum(first, second))
        for record, unit, value_map in zip(found(), case().targets, maps, strict=False):
            all_counts = [counts(value_map >= k / 100, unit.target) for k in range(101)]
            k = int(np.argmax([i / u for i, u in all_counts]))
            there = record.layers[layer]
            assert (there.counts, there.threshold) == (all_counts[k], k / 100)
            counted = unit.target != 255
            peak = counted & (value_map == value_map[counted].max())
            assert there.pointing == (peak & (unit.target == 1)).sum() / peak.sum()
            assert there.intersections == ()
            seen.add((there.counts, there.auc))
    assert len(seen) == 9, "another layer or [SEG] is another number"


def test_what_a_record_says() -> None:
    assert [(record.key, record.unit, record.image) for record in found()] == [("page/0", k, "page") for k in range(4)]
    assert [record.segs for record in found()] == [1, 1, 2, 0]
    assert [len(record.layers) for record in found()] == [3] * 4
    assert found()[3].layers == (None,) * 3
    assert found()[0].wanted == 17 * 27 and found()[1].wanted == 14 * 27 and found()[1].counted == 32 * 60
    assert measure_layers(small(), Case(case().query, case().page, case().encoded, case().reply, ())) == []


def test_round_trip() -> None:
    for record in found():
        text = json.dumps(RECORDS.dump_python(record, mode="json"), allow_nan=False)
        assert RECORDS.validate_json(text, strict=True) == record


@pytest.mark.parametrize(
    "change",
    [
        *({"layers": [3]}, {"layers": None}, {"layers": [{"counts": [2, 1]}]}),
        {"layers": [{"counts": [1, 2], "threshold": 10**400}]},
        *({"unit": "x"}, {"unit": 0.5}, {"segs": -1}, {"wanted": float("inf")}, {"key": None}, {"image": 3}),
    ],
)
def test_a_damaged_record_is_an_error(change: dict[str, Any]) -> None:
    record = RECORDS.dump_python(found()[0], mode="json") | change
    with pytest.raises(ValidationError) as raised:
        RECORDS.validate_json(json.dumps(record), strict=True)
    assert raised.value.errors()[0]["loc"][0] == next(iter(change))


def record(key: str, *layers: Any, segs: int = 1) -> LayerRecord:
    return LayerRecord(key, 0, key.split("/")[0], segs, 6, 24, layers)


def test_table() -> None:
    records = [
        record("a/0", scores(1, 8, pointing=0), scores(6, 8)),
        record("b/0", scores(3, 8, pointing=0), scores(3, 12, pointing=0.5)),
        record("c/0", None, None, segs=0),
    ]
    one = LayerStudy("tiny", records, "forced", {"images": 3, "of": 3})
    table = layer_table([one])
    assert [row.name for row in table.rows] == ["layer 0", "layer 1 (last)", WHOLE]
    last = table.rows[1].cells
    assert isinstance(last["ciou"], Estimate) and last["ciou"].value == 9 / (8 + 12 + 6)
    assert last["giou"].value == pytest.approx((6 / 8 + 3 / 12) / 3, abs=1e-5)
    assert last["pointing"].value == 0.5 and table.rows[0].cells["pointing"].value == 0
    assert table.rows[2].cells["ciou"].value == 6 / 24
    text = to_markdown(table)
    assert "1 of 3 masks: the answer holds no [SEG]" in text and "teacher-forced" in text and "a sample" not in text
    both = layer_table([one, LayerStudy("other", records[:1], "forced", {})])
    assert [row.group for row in both.rows] == ["tiny"] * 3 + ["other"] * 3
    assert layer_table([LayerStudy("tiny", [], "forced", {})]).rows[0].name == WHOLE


def test_layers_and_samples_to_look_at() -> None:
    assert spread(range(7), 7) == list(range(7)) and spread(range(3), 7) == [0, 1, 2]
    for count in (8, 33, 41, 100):
        chosen = spread(range(count), 7)
        assert len(set(chosen)) == 7 and chosen[0] == 0 and chosen[-1] == count - 1
        assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
    keys = ["a/0", "a/1", "b/0", "c/0", "d/0", "e/0"]
    records = [record(key, scores(1, 2), segs=int(key not in ("a/0", "b/0"))) for key in keys]
    found = LayerStudy("tiny", records, "forced", {})
    assert [one.key for one in examples(found, 9)] == ["a/1", "c/0", "d/0", "e/0"]
    assert [one.key for one in examples(found, 2)] == ["a/1", "d/0"]
    assert examples(LayerStudy("tiny", [], "forced", {}), 2) == []
    assert Counts(1, 2) == records[0].layers[0].counts
