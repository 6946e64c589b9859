"""One image looked at in every way: each number is that of its own map, mask and truth, and JSON holds them all."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from answers import SIZE, TWO, read_answer, small
from readseg.analysis.answer_states import ExamineOptions
from readseg.analysis.map_metrics import GroundTruth, consistency, spearman
from readseg.analysis.similarity_maps import MAPS, layer_maps, phrase_map
from readseg.analysis.studies import single_image
from readseg.analysis.studies.map_records import MapResult
from readseg.analysis.studies.single_image import FORMAT, ImageResult, ModelResult, tables_of, to_json
from readseg.core.masks import decode_rle
from readseg.core.types import Turn
from readseg.inference.segmenter import Segmenter
from readseg.viz.tables import to_markdown
from small import picture, small_model, small_processor
from studies import loaded_model
from tiny_segmenter import ANSWERS, build, load


def examine_image(segmenter: Segmenter, *asked: Any, name: str = "small", **options: Any) -> ModelResult:
    return single_image.examine_image(loaded_model(name, segmenter, {}), *asked, **options)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Answers by itself."""
    return load(build(tmp_path_factory.mktemp("model")))


@cache
def image() -> Image.Image:
    return picture(*SIZE)


def truth_of(top: int, left: int, ignored: bool = True) -> GroundTruth:
    target = np.zeros(SIZE, np.uint8)
    target[top : top + 15, left : left + 20] = 1
    target[:, -4:] = 255 if ignored else 0
    return GroundTruth(f"{top}-{left}.png", target, 1)


ONE = truth_of(10, 15)


@cache
def looked(
    *truths: GroundTruth,
    answer: str = TWO,
    prompt: Any = None,
    plain: bool = True,
    layers: bool = False,
    name: str = "small",
) -> ModelResult:
    return examine_image(
        small(), image(), "the red cup", truths=truths, answer=answer, layers=layers, name=name,
        options=ExamineOptions(prompt, original_sam=small().model.sam if plain else None),
    )  # fmt: skip


def iou_with(mask: np.ndarray, truth: GroundTruth) -> float:
    """I / U over the pixels that count, pixel by pixel."""
    counted = truth.target != 255
    both = ((mask == 1) & (truth.target == 1) & counted).sum()
    either = (((mask == 1) | (truth.target == 1)) & counted).sum()
    return both / either if either else 1.0


def best_iou(value_map: np.ndarray, truth: GroundTruth) -> float:
    """By trying all thresholds."""
    return max(iou_with(value_map >= np.float32(k / 100), truth) for k in range(101))


def own_iou(counts: Any) -> float:
    return counts.intersection / counts.union


@pytest.mark.parametrize("prompt", [None, "both", "seg", "points"])
def test_masks_are_those_of_each_prompt(prompt: Any) -> None:
    found = looked(ONE, prompt=prompt)
    assert found.prompt == (prompt or "both")
    assert len(found.segs) == 2
    for kind, asked in (("own", prompt), ("both", "both"), ("seg", "seg"), ("points", "points")):
        expected = small().segment(image(), "the red cup", force=TWO, prompt=asked)
        for k, seg in enumerate(found.segs):
            np.testing.assert_array_equal(seg.masks[kind].mask, expected.masks[k])
            np.testing.assert_array_equal(seg.masks[kind].points_xy, expected.points_xy[k])
            np.testing.assert_array_equal(seg.masks[kind].labels, expected.point_labels[k])
            assert own_iou(seg.masks[kind].counts) == iou_with(expected.masks[k], ONE)


@pytest.mark.parametrize("prompt", [None, "seg", "points"])
def test_maps_are_those_of_their_names(prompt: Any) -> None:
    states = read_answer(small(), image(), "the red cup", answer=TWO, options=ExamineOptions(prompt))
    expected = {name: MAPS[name].compute(states) for name in ("lmm", "before", "sam")}
    expected["words"] = [phrase_map(states, "the red cup"), phrase_map(states, "a saw")]
    found = looked(ONE, prompt=prompt)
    for k, seg in enumerate(found.segs):
        assert set(seg.maps) == set(expected)
        for name, maps in expected.items():
            (one,) = seg.maps[name].maps
            assert one.grid_hw == (4, 4)
            np.testing.assert_allclose(one.scores, maps[k].scores, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(one.map, maps[k].map, rtol=0, atol=1e-5)
    assert [seg.words for seg in found.segs] == ["the red cup", "a saw"]
    assert found.segs[1].maps["words"].maps[0].of == "a saw"


def test_layers_come_in_their_order_and_only_when_asked_for() -> None:
    found = looked(ONE, layers=True)
    states = read_answer(small(), image(), "the red cup", answer=TWO)
    for k, seg in enumerate(found.segs):
        assert [one.maps[0].layer for one in seg.layers] == [0, 1, 2]
        for layer, one in enumerate(seg.layers):
            np.testing.assert_allclose(one.maps[0].scores, layer_maps(states, layer)[k].scores, rtol=1e-5, atol=1e-5)
            assert one.scores is not None
            assert own_iou(one.scores.counts) == best_iou(one.map, ONE)
    assert all(seg.layers == () for seg in looked(ONE).segs)


def test_agreement_of_maps_and_of_masks() -> None:
    for seg in looked(ONE).segs:
        assert (seg.consistency, seg.spearman) == consistency(seg.maps["lmm"].map, seg.maps["sam"].map, ONE.target)
        for (one, other), value in seg.agreement.items():
            x, y = seg.masks[one].mask, seg.masks[other].mask
            assert value == ((x & y).sum() / (x | y).sum() if (x | y).any() else 1.0)
        kinds = ("own", "seg", "points", "plain_points", "plain_extremes")
        assert set(seg.agreement) == {(a, b) for k, a in enumerate(kinds) for b in kinds[k + 1 :]}
    other = looked(ONE, prompt="seg").segs[0].agreement
    assert ("own", "both") in other and not any("seg" in pair for pair in other)


def test_without_a_truth_nothing_is_held_against_it() -> None:
    found = looked()
    for seg in found.segs:
        assert all(one.scores is None for one in seg.maps.values())
        assert all(one.counts is None for one in seg.masks.values())
        assert math.isnan(seg.consistency)
        assert seg.spearman == spearman(seg.maps["lmm"].map, seg.maps["sam"].map)
    assert found.together == {}


def test_one_truth_is_for_every_seg_and_several_are_for_one_each() -> None:
    other = truth_of(22, 30, ignored=False)
    single, several, few = looked(ONE), looked(ONE, other), looked(ONE, answer=TWO + " the cup [SEG].")
    for k, truth in enumerate((ONE, ONE)):
        assert own_iou(single.segs[k].masks["own"].counts) == iou_with(single.segs[k].masks["own"].mask, truth)
    for k, truth in enumerate((ONE, other)):
        assert own_iou(several.segs[k].masks["own"].counts) == iou_with(several.segs[k].masks["own"].mask, truth)
        lmm = several.segs[k].maps["lmm"]
        assert lmm.scores is not None
        assert own_iou(lmm.scores.counts) == best_iou(lmm.map, truth)
    assert len(few.segs) == 3
    third = looked(ONE, other, answer=TWO + " the cup [SEG].").segs[2]
    assert third.masks["own"].counts is None and third.maps["lmm"].scores is None
    whole = np.where(ONE.target == 255, 255, (ONE.target == 1) | (other.target == 1)).astype(np.uint8)
    for kind, counts in several.together.items():
        together = several.segs[0].masks[kind].mask | several.segs[1].masks[kind].mask
        assert own_iou(counts) == iou_with(together, GroundTruth("", whole, 1))


def test_a_truth_of_nothing() -> None:
    found = looked(GroundTruth("", np.zeros(SIZE, np.uint8), 255))
    for seg in found.segs:
        assert all(one.scores is None for one in seg.maps.values())
        assert math.isnan(seg.consistency) and not math.isnan(seg.spearman)
        counts = seg.masks["own"].counts
        assert counts is not None and counts.intersection == 0 and counts.union == seg.masks["own"].mask.sum()


def test_an_answer_of_its_own(learned: Segmenter) -> None:
    found = examine_image(learned, image(), "all the birds and the tree", truths=(ONE,))
    result = learned.segment(image(), "all the birds and the tree")
    assert (found.answer, found.given, found.present, found.finished) == (result.answer, False, True, True)
    assert len(found.segs) == 2 and found.nearest is None
    assert all(seg.model_agrees is None for seg in found.segs)
    np.testing.assert_array_equal(found.segs[1].masks["own"].mask, result.masks[1])
    given = examine_image(learned, image(), "the unicorn", answer="[SEG] it is the watch [SEG].")
    assert given.given
    assert [seg.model_agrees for seg in given.segs] == [False, True]
    assert [seg.words for seg in given.segs] == ["", "the watch"]
    assert ["words" in seg.maps for seg in given.segs] == [False, True]


@pytest.mark.parametrize("query", ["the unicorn", "how many animals are there?"])
def test_a_refusal_has_no_map_but_where_it_came_nearest(learned: Segmenter, query: str) -> None:
    found = examine_image(learned, image(), query, truths=(ONE,), layers=True)
    assert found.segs == () and found.answer == ANSWERS[query]
    assert found.present is (None if query.startswith("how") else False)
    assert (found.together["own"].intersection, found.together["own"].union) == (0, ONE.wanted)
    nearest = found.nearest
    assert nearest is not None
    # The whole conversation at once, without any of the steps.
    model, processor = learned.model, learned.processor
    ids, _ = processor.encode([Turn(found.question, found.answer)])
    asked = len(processor.prompt_ids([Turn(found.question)]))
    said = processor.answer_ids([Turn(found.question, found.answer)])
    with torch.inference_mode():
        output = model(torch.tensor([ids]), pixel_values=processor.lmm_pixels(image())[None], return_logits=True)
    chances = output.logits[0, asked - 1 : asked - 1 + len(said)].float().softmax(-1)
    seg = model.config.seg_token_id
    place = int(chances[:, seg].argmax())
    assert nearest.place == place
    assert nearest.probability == pytest.approx(float(chances[place, seg]), rel=1e-3)
    assert nearest.rank == 1 + int((chances[place] > chances[place, seg]).sum()) > 1
    assert nearest.token in found.answer
    assert nearest.map.map is not None and nearest.map.scores is not None
    assert own_iou(nearest.map.scores.counts) == best_iou(nearest.map.map, ONE)


def test_a_map_without_a_range_is_no_map() -> None:
    model = small_model()
    with torch.no_grad():
        model.lmm.model.language_model.norm.weight.zero_()
    found = examine_image(
        Segmenter(model, small_processor()), image(), "cup", truths=(ONE,), answer=TWO, layers=True,
        options=ExamineOptions(original_sam=model.sam),
    )  # fmt: skip
    for seg in found.segs:
        assert seg.maps["lmm"].map is None and seg.maps["lmm"].scores is None
        assert len(seg.masks["own"].points_xy) == 0
        assert math.isnan(seg.spearman) and math.isnan(seg.consistency)
        assert not seg.masks["plain_points"].mask.any()  # SAM without a prompt
        assert seg.layers[1].scores is not None
    json.dumps(to_json(ImageResult("cup.png", image(), "cup", (ONE,), (found,))), allow_nan=False)


# -- JSON --------------------------------------------------------------------------------------------------------------


def plain_json(*models: ModelResult, truths: tuple[GroundTruth, ...] = (ONE,)) -> dict[str, Any]:
    found = ImageResult("cup.png", image(), "the red cup", truths, models)
    return json.loads(json.dumps(to_json(found), allow_nan=False))


def test_json_holds_what_was_found() -> None:
    found = looked(ONE, layers=True)
    told = plain_json(found)
    assert told["format"] == FORMAT and told["size"] == list(SIZE) and told["query"] == "the red cup"
    np.testing.assert_array_equal(decode_rle(told["truths"][0]["mask"]), ONE.target == 1)
    np.testing.assert_array_equal(decode_rle(told["truths"][0]["ignored"]), ONE.target == 255)
    one = told["models"][0]
    assert (one["name"], one["answer"], one["present"], one["prompt"]) == ("small", TWO, True, "both")
    assert one["points"] == vars(small().model.config.points)
    for seg, said in zip(found.segs, one["segs"], strict=True):
        for kind, mask in seg.masks.items():
            entry = said["masks"][kind]
            np.testing.assert_array_equal(decode_rle(entry["mask"]), mask.mask)
            assert entry["truth"]["iou"] == iou_with(mask.mask, ONE)
            assert entry["share"] == mask.mask.mean()
            np.testing.assert_array_equal(
                np.array([point[:2] for point in entry["points"]], np.float32).reshape(-1, 2), mask.points_xy
            )
            assert [point[2] for point in entry["points"]] == mask.labels.tolist()
        for name, found_map in seg.maps.items():
            same_map(said["maps"][name], found_map)
        for entry, found_map in zip(said["layers"], seg.layers, strict=True):
            same_map(entry, found_map)
        assert said["spearman"] == seg.spearman and said["consistency"] == seg.consistency
        assert {tuple(pair["prompts"]): pair["iou"] for pair in said["agreement"]} == dict(seg.agreement)
    assert one["together"]["own"]["intersection"] == found.together["own"].intersection
    assert one["extremes"] == 5 and one["original_sam"]


def same_map(told: dict[str, Any], found: MapResult) -> None:
    np.testing.assert_array_equal(np.array(told["scores"], np.float32), found.maps[0].scores)
    assert told["grid"] == [4, 4] and told["layer"] == found.maps[0].layer and not told["constant"]
    assert found.scores is not None
    assert told["truth"]["iou"] == own_iou(found.scores.counts)
    assert told["truth"]["auc"] == found.scores.auc


def test_json_of_a_refusal(learned: Segmenter) -> None:
    told = plain_json(examine_image(learned, image(), "the unicorn"), truths=())["models"][0]
    assert told["present"] is False and told["segs"] == [] and told["together"] == {}
    assert 0 < told["nearest"]["probability"] < 0.5 and told["nearest"]["map"]["truth"] is None


# -- tables ------------------------------------------------------------------------------------------------------------


SOLID = truth_of(10, 15, ignored=False)


def tabled(name: str, answer: str, *truths: GroundTruth, prompt: Any = None, layers: bool = False) -> ModelResult:
    return looked(*truths, answer=answer, prompt=prompt, layers=layers, name=name)


def result_of(*models: ModelResult, truths: tuple[GroundTruth, ...] = (SOLID,)) -> ImageResult:
    return ImageResult("cup.png", image(), "cup", truths, models)


def test_with_a_truth() -> None:
    model = tabled("A", "the cup [SEG].", SOLID, layers=True)
    maps, masks, layers = tables_of(result_of(model))
    seg = model.segs[0]
    assert [row.name for row in maps.rows] == [
        "language model, last layer", "mask decoder, at the [SEG] token", "before the language model",
        "the answer's own words",
    ]  # fmt: skip
    for row, name in zip(maps.rows, ("lmm", "sam", "before", "words"), strict=True):
        scores = seg.maps[name].scores
        assert scores is not None
        assert list(maps.columns) == ["iou", "threshold", "pointing", "mass_inside", "auc"]
        assert [row.cells[column] for column in maps.columns] == [
            scores.counts.iou, scores.threshold, scores.pointing, scores.mass_inside, scores.auc,
        ]  # fmt: skip
    assert list(masks.columns) == ["share", "iou", "own", "seg", "points", "plain_points", "plain_extremes"]
    assert [row.name for row in masks.rows] == [
        "own: points and [SEG]", "[SEG] alone", "points alone", "points alone, original SAM",
        "highest and lowest cells, original SAM",
    ]  # fmt: skip
    own, alone = masks.rows[0].cells, masks.rows[1].cells
    assert own["seg"] == alone["own"] == seg.agreement["own", "seg"]
    assert "own" not in own and own["share"] == seg.masks["own"].mask.mean()
    counts = seg.masks["seg"].counts
    assert counts is not None and alone["iou"] == counts.iou
    assert [row.name for row in layers.rows] == ["layer 0", "layer 1", "layer 2"]
    assert layers.rows[2].cells == maps.rows[0].cells
    assert any("bound" in note for note in maps.notes) and any("bound" in note for note in layers.notes)
    assert any(f"{seg.spearman:.3f}" in note for note in masks.notes)


def test_without_a_truth_only_what_needs_none() -> None:
    for truths in ((), (GroundTruth("t.png", np.zeros((40, 60), np.uint8), 255),)):
        tables = tables_of(result_of(tabled("A", "the cup [SEG].", *truths, layers=True), truths=truths))
        assert [table.first for table in tables] == ["prompt"]
        assert ("iou" in tables[0].columns) == bool(truths)


def test_groups_of_several_segs_and_models() -> None:
    two = tabled("A", "the cup [SEG] and [SEG].", SOLID)
    other = tabled("B", "the cup [SEG].", SOLID, prompt="seg")
    maps, masks = tables_of(result_of(two, other))
    assert list(dict.fromkeys(row.group for row in maps.rows)) == ["A, [SEG] 1", "A, [SEG] 2", "B"]
    assert sum(row.group == "A, [SEG] 2" for row in maps.rows) == 3  # it has no words of its own
    assert [row.name for row in masks.rows if row.group == "B"][:2] == ["own: [SEG] alone", "points and [SEG]"]
    assert "held against all of it" in to_markdown(masks)
    several = tables_of(result_of(tabled("A", "[SEG] [SEG]", SOLID, SOLID), truths=(SOLID, SOLID)))
    assert "The k-th [SEG] is held against the k-th truth" in several[0].notes


def test_no_seg_no_table() -> None:
    assert tables_of(result_of(tabled("A", "no cup.", SOLID))) == []
