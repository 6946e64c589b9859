"""Records of the study of maps: each number against a forward pass and counts of its own, on random weights.

Random weights, and answers that are given: so every token, layer, [SEG] and prompt has another map or mask, and what is
taken at the wrong place is another number.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel

from answers import SIZE, TWO, small
from readseg.analysis import similarity_maps
from readseg.analysis.answer_states import AnswerStates, ExamineOptions, Phrase, collect_states
from readseg.analysis.cases import Case, TargetMask
from readseg.analysis.map_metrics import spearman
from readseg.analysis.prompts import PROMPTS
from readseg.analysis.similarity_maps import MAPS, SimilarityMap, layer_maps, phrase_map
from readseg.analysis.studies import map_records as module
from readseg.analysis.studies.map_records import (
    MapRecord,
    MapScores,
    contains_name,
    examine,
    measure_maps,
    words_right,
)
from readseg.core.masks import Counts, decode_rle
from readseg.core.sasp import PointConfig, select_extremes
from readseg.core.types import Turn
from readseg.evaluation.benchmarks import ImageQuestions, Question
from readseg.model.mask_prompts import embed_prompts
from readseg.model.modeling import ReadOutput
from records import measured
from small import picture

CLOSE = {"rtol": 0, "atol": 1e-4}


@cache
def other_sam() -> SamModel:
    """The original SAM of the small model: its own decoder, the rest as it is."""
    plain = copy.deepcopy(small().model.sam)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in plain.mask_decoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return plain


def target_of(seed: int = 0, *, ignored: bool = False) -> np.ndarray:
    """A blob that no threshold of a map hits exactly."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    middle = np.random.default_rng(seed).uniform((10, 15), (30, 45))
    target = (((y - middle[0]) / 9) ** 2 + ((x - middle[1]) / 13) ** 2 < 1).astype(np.uint8)
    if ignored:
        target[:, 20:30] = 255
    return target


def case_of(
    targets: Sequence[TargetMask], answer: str = TWO, *, view: str = "stretch", given: bool = True, **query: Any
) -> Case:
    segmenter = small(view)
    asked = {"key": "page/0", "text": "the red cup", "sentence": False, "present": True, "targets": list} | query
    encoded = segmenter.encode(picture(*SIZE))
    (reply,) = segmenter.reply(encoded, [asked["text"]], force=answer)
    page = ImageQuestions("page", np.asarray(picture(*SIZE)), "page.jpg", "val", (Question(**asked),))
    reply = reply if given else replace(reply, is_forced=False)
    return Case(page.questions[0], page, encoded, reply, tuple(targets))


TARGETS = (target_of(0), target_of(1, ignored=True))
FIRST = TargetMask(TARGETS[0], (0,))


@cache
def each() -> tuple[MapRecord, ...]:
    """Two masks, a [SEG] for each."""
    units = (FIRST, TargetMask(TARGETS[1], (1,)))
    return tuple(examine(small(), case_of(units), ExamineOptions(original_sam=other_sam())))


@cache
def together() -> MapRecord:
    """One mask, of which both [SEG] speak."""
    (found,) = examine(small(), case_of([TargetMask(target_of(2), (0, 1))]), ExamineOptions(original_sam=other_sam()))
    return found


@cache
def forward(prompt: Any = None) -> ReadOutput:
    """The whole of the small model in one pass, without a cache, on the given answer."""
    model, processor = small().model, small().processor
    image = picture(*SIZE)
    turn = Turn("What is the red cup?")
    ids = [*processor.prompt_ids([turn]), *processor.answer_ids([Turn(turn.question, TWO)])]
    with torch.inference_mode():
        return model(
            torch.tensor([ids]),
            pixel_values=processor.lmm_pixels(image)[None],
            mask_pixel_values=processor.mask_pixels(image)[None],
            frames=[processor.frame(image)],
            prompt=prompt,
        )


def on_image(logits: Tensor) -> np.ndarray:
    """Logits (h, w) of the mask model's square of 32 pixels, in which 40 x 60 fills 21 x 32, as a mask."""
    square = F.interpolate(logits[None, None], (32, 32), mode="bilinear")[..., :21, :]
    return (F.interpolate(square, SIZE, mode="bilinear")[0, 0] > 0).numpy()


def counts(mask: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    counted = target != 255
    both = (mask & (target == 1) & counted).sum()
    return int(both), int(((mask | (target == 1)) & counted).sum())


def best(value_map: np.ndarray, target: np.ndarray) -> tuple[tuple[int, int], float]:
    """One threshold after the other."""
    found = [counts(value_map >= k / 100, target) for k in range(101)]
    ious = [i / u if u else 1.0 for i, u in found]
    k = int(np.argmax(ious))
    return found[k], k / 100


def decoded(sam: SamModel, xy: Tensor, labels: Tensor, token: Tensor | None) -> np.ndarray:
    """A mask of SAM's own modules, written out: points in image pixels."""
    model, processor = small().model, small().processor
    scaled = torch.stack([xy[:, 0] * 32 / 60, xy[:, 1] * 21 / 40], dim=-1)
    with torch.inference_mode():
        image = model.embed_masks_image(processor.mask_pixels(picture(*SIZE))[None])
        sparse = embed_prompts(sam, scaled[None], labels[None], tokens=None if token is None else token[None, None])
        logits, _ = sam.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=False,
        )
    return on_image(logits[0, 0, 0])


# -- maps --------------------------------------------------------------------------------------------------------------


@cache
def states() -> AnswerStates:
    return collect_states(small(), case_of([]).encoded, case_of([]).reply)


def maps_of(name: str) -> list[SimilarityMap]:
    if name == "words":
        return [phrase_map(states(), "the red cup"), phrase_map(states(), "a saw")]
    return MAPS[name].compute(states())


@pytest.mark.parametrize("name", ["lmm", "sam", "before", "words"])
def test_each_map_is_measured_against_its_own_target(name: str) -> None:
    found = []
    for place, record in enumerate(each()):
        scores, value_map = record.maps[name], maps_of(name)[place].map
        target = TARGETS[place]
        assert (scores.counts, scores.threshold) == best(value_map, target)
        wanted, counted = target == 1, target != 255
        peak = counted & (value_map == value_map[counted].max())
        assert scores.pointing == (peak & wanted).sum() / peak.sum()
        assert scores.mass_inside == pytest.approx(value_map[wanted].sum() / value_map[counted].sum(), abs=1e-5)
        on, off = value_map[wanted][:, None], value_map[counted & ~wanted][None]
        assert scores.auc == pytest.approx(((on > off).mean() + (on >= off).mean()) / 2, abs=1e-9)
        if name in ("lmm", "sam"):
            assert len(scores.intersections) == 101
            for k in (0, 37, 100):
                assert (scores.intersections[k], scores.unions[k]) == counts(value_map >= k / 100, target)
        else:
            assert scores.intersections == scores.unions == ()
        found.append(scores)
    assert found[0].counts != found[1].counts


def test_maps_are_those_of_their_places_and_of_no_others() -> None:
    """Every map of the answer gives another number: a wrong layer, token or [SEG] would be seen."""
    target = target_of(0)
    others = [*maps_of("lmm")[1:], *maps_of("sam")[1:], *maps_of("words")[1:], *maps_of("before")[1:]]
    others += [one for layer in (0, 1) for one in layer_maps(states(), layer)]
    others += [phrase_map(states(), phrase) for phrase in ("cup", "red", "it is the red cup", "there")]
    record = each()[0]
    seen = {name: (record.maps[name].counts, record.maps[name].auc) for name in ("lmm", "sam", "before", "words")}
    assert len(set(seen.values())) == 4
    for other in others:
        scores = measure_maps([other], target).scores
        assert (scores.counts, scores.auc) not in seen.values(), (other.layer, other.of)


def test_lmm_map_is_that_of_a_forward_pass() -> None:
    np.testing.assert_allclose(np.stack([one.scores for one in maps_of("lmm")]), forward().scores, **CLOSE)


def test_several_seg_of_one_mask_show_their_maximum() -> None:
    for name in ("lmm", "sam", "before", "words"):
        first, second = (one.map for one in maps_of(name))
        scores = together().maps[name]
        assert (scores.counts, scores.threshold) == best(np.maximum(first, second), target_of(2)), name
        assert len({scores.counts, best(first, target_of(2))[0], best(second, target_of(2))[0]}) > 1
    assert together().places == (0, 1) and together().segs == 2
    assert together().words == "the red cup, a saw"


def test_consistency_of_the_two_maps() -> None:
    for place, (record, target) in enumerate(zip(each(), TARGETS, strict=True)):
        lmm, sam = maps_of("lmm")[place].map, maps_of("sam")[place].map
        masks = [one >= best(one, target)[1] for one in (lmm, sam)]
        both, either = counts(masks[0], np.where(target == 255, 255, masks[1]))
        assert record.consistency == both / either
        assert record.spearman == pytest.approx(spearman(lmm, sam, target != 255))


def test_a_map_that_is_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, second_map = SimilarityMap(2, "[SEG]", np.zeros(16, np.float32), (4, 4), None), maps_of("lmm")[1]
    lmm = replace(MAPS["lmm"], compute=lambda _states: [flat, second_map])
    monkeypatch.setattr(module, "MAPS", {**MAPS, "lmm": lmm})
    first, second = examine(small(), case_of([TargetMask(target_of(), (0,)), TargetMask(target_of(), (0, 1))]))
    assert first.maps["lmm"] is None and first.map_counts("lmm") == (0, first.wanted)
    assert np.isnan(first.consistency) and np.isnan(first.spearman) and first.grids["lmm"] == ()
    assert (second.maps["lmm"].counts, second.maps["lmm"].threshold) == best(second_map.map, target_of())
    assert len(second.grids["lmm"]) == 1 and measure_maps([flat], None).map is None


@pytest.mark.parametrize("view", ["crop", "letterbox", "stretch"])
@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_grids_draw_their_maps(view: str) -> None:
    """By the formula of `Grid`, pixel by pixel."""
    case = case_of([TargetMask(target_of(), (0,))], view=view)
    (record,) = examine(small(view), case)
    own_states = collect_states(small(view), case.encoded, case.reply)
    for name in ("lmm", "sam"):
        value_map = MAPS[name].compute(own_states)[0].map
        (grid,) = record.grids[name]
        (h, w), (x0, y0, x1, y1) = grid.hw, grid.box
        values = np.frombuffer(grid.levels, np.uint8).reshape(h, w) / 255
        x, y = np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5
        columns = np.clip((x - x0) * w / (x1 - x0) - 0.5, 0, w - 1)
        rows = np.clip((y - y0) * h / (y1 - y0) - 0.5, 0, h - 1)
        along = np.stack([np.interp(columns, range(w), row) for row in values])
        drawn = np.stack([np.interp(rows, range(h), column) for column in along.T]).T
        drawn[:, (x < x0) | (x >= x1)] = drawn[(y < y0) | (y >= y1)] = 0
        # SAM's map is resized twice, through its square: half a pixel of that is more than one of the image.
        assert np.abs(drawn - value_map).max() < (0.003 if name == "lmm" else 0.1), name
        assert np.abs(drawn - value_map).mean() < 0.02
    scores = layer_maps(own_states)[0].scores
    if view == "stretch":
        assert record.grids["lmm"][0].low == scores.min() and record.grids["lmm"][0].high == scores.max()


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["both", "seg", "points"])
def test_masks_of_each_prompt_are_those_of_a_forward_pass(prompt: str) -> None:
    masks = [on_image(logits) for logits in forward(prompt).low_res_logits]
    for place, (record, target) in enumerate(zip(each(), TARGETS, strict=True)):
        assert record.prompts[prompt] == counts(masks[place], target)
    assert together().prompts[prompt] == counts(masks[0] | masks[1], target_of(2))


def test_the_model_s_own_prompt() -> None:
    assert [record.prompts["own"] for record in each()] == [record.prompts["both"] for record in each()]
    unit = FIRST
    (alone,) = examine(small(), case_of([unit]), ExamineOptions(prompt="seg"))
    assert alone.prompts["own"] == alone.prompts["seg"] == each()[0].prompts["seg"] and alone.points == ()
    (points,) = examine(small(), case_of([unit]), ExamineOptions(prompt="points"))
    assert points.prompts["own"] == points.prompts["points"] == each()[0].prompts["points"]
    # A decoder that gets no [SEG] has no token to look at: its map is that of both.
    assert points.maps["sam"] == each()[0].maps["sam"] and alone.maps["sam"] != each()[0].maps["sam"]
    for record in (alone, points):
        assert record.prompts["both"] == each()[0].prompts["both"]


def test_own_mask_and_points_are_kept() -> None:
    output = forward()
    for place, record in enumerate(each()):
        mask = on_image(output.low_res_logits[place])
        np.testing.assert_array_equal(decode_rle(dict(record.mask)), mask)
        xy, labels = output.points[place]
        np.testing.assert_allclose([(p.x, p.y) for p in record.points], xy, atol=0.006)
        assert [p.label for p in record.points] == labels.tolist()
        target = TARGETS[place]
        np.testing.assert_array_equal(decode_rle(dict(record.target)), target == 1)
        if place:
            np.testing.assert_array_equal(decode_rle(dict(record.ignored)), target == 255)
        assert (record.wanted, record.counted) == ((target == 1).sum(), (target != 255).sum())
    assert each()[0].ignored is None
    assert len(together().points) == sum(len(record.points) for record in each())


def test_points_alone_in_the_original_sam() -> None:
    output = forward()
    for place, (record, target) in enumerate(zip(each(), TARGETS, strict=True)):
        xy, labels = output.points[place]
        assert record.prompts["plain_points"] == counts(decoded(other_sam(), xy, labels, None), target)
        assert record.prompts["plain_points"] != record.prompts["points"], "another decoder, another mask"


@pytest.mark.parametrize("count", [1, 5])
def test_extremes_in_the_original_sam(count: int) -> None:
    found = select_extremes(forward().scores, SIZE, count=count, box=(0.0, 0.0, 60.0, 40.0))
    scores = forward().scores[0]
    # Written out for one point of each sign: the pixel under the middle of the 4 x 4 grid's highest and lowest cell.
    cells = [int(scores.argmax()), int(scores.argmin())]
    middle = [[int((cell % 4 + 0.5) * 15), int((cell // 4 + 0.5) * 10)] for cell in cells]
    assert [found.xy[0, 0].tolist(), found.xy[0, count].tolist()] == middle
    assert found.labels[0].tolist() == [1] * count + [0] * count
    options = ExamineOptions(original_sam=other_sam(), extremes=count)
    (record,) = examine(small(), case_of([FIRST]), options)
    mask = decoded(other_sam(), found.xy[0], found.labels[0], None)
    assert record.prompts["plain_extremes"] == counts(mask, target_of(0))
    assert (record.prompts["plain_extremes"] == each()[0].prompts["plain_extremes"]) == (count == 5), "five by default"


def test_points_from_the_true_mask_in_the_original_sam() -> None:
    """Written out: cells of 10 x 15 pixels, the model's five points, from the highest share and from the lowest."""
    for record, target in zip(each(), TARGETS, strict=True):
        share = (target == 1).reshape(4, 10, 4, 15).mean(axis=(1, 3)).flatten()
        assert share.min() == 0 < share.max()
        share /= share.max()
        positive = [k for k in np.argsort(-share, kind="stable") if share[k] >= 0.8]
        negative = [k for k in np.argsort(share, kind="stable") if share[k] <= 0.2]
        chosen = [*((k, 1) for k in positive), *((k, 0) for k in negative)][:5]
        xy = torch.tensor([[k % 4 * 15 + 7, k // 4 * 10 + 5] for k, _ in chosen], dtype=torch.float32)
        labels = torch.tensor([label for _, label in chosen])
        assert set(labels.tolist()) == {0, 1}
        assert record.prompts["plain_truth"] == counts(decoded(other_sam(), xy, labels, None), target)
    unit = TargetMask(np.ones(SIZE, np.uint8), (0,))
    assert examine(small(), case_of([unit]), ExamineOptions(original_sam=other_sam()))[0].prompts["plain_truth"] is None
    few = ExamineOptions(points=PointConfig(num_points=1, downsample=1, alignment="exact"), original_sam=other_sam())
    (record,) = examine(small(), case_of([FIRST]), few)
    assert record.prompts["plain_truth"] != each()[0].prompts["plain_truth"], "settings that are given are used"


def test_without_the_original_sam_and_clip_there_is_no_entry() -> None:
    (record,) = examine(small(), case_of([FIRST]))
    assert PROMPTS.keys() - record.prompts.keys() == {"plain_points", "plain_extremes", "plain_truth"}
    assert MAPS.keys() - record.maps.keys() == {"clip"}


def test_words_as_prompts() -> None:
    """Points of the words' map with the projected [SEG], and the words' mean state projected in its place."""
    model, output = small().model, forward()
    for place, phrase in enumerate(("the red cup", "a saw")):
        target = TARGETS[place]
        ids = states().result.answer_ids
        places = [k for k in range(len(ids)) if small().processor.decode(ids[k : k + 1]) in phrase.split()]
        places = places[: len(phrase.split())] if place == 0 else places[-len(phrase.split()) :]
        mean = states().h_answer[-1, places].mean(0, keepdim=True)
        with torch.inference_mode():
            (points,), _ = model.decode_masks(
                mean, mean @ output.h_img[0].T, torch.zeros(1, dtype=torch.long),
                case_of([]).encoded.mask_embeddings, [case_of([]).encoded.frame],
            )  # fmt: skip
            tokens = model.seg_projection(torch.cat([output.h_seg[place][None], mean]))
        for name, token in zip(("words_points", "words_projected"), tokens, strict=True):
            mask = decoded(model.sam, points.xy, points.labels, token)
            assert each()[place].prompts[name] == counts(mask, target), (name, phrase)
    found = [each()[0].prompts[name] for name in ("own", "words_points", "words_projected")]
    assert len(set(found)) == 3


def test_words_have_the_map_of_their_phrase() -> None:
    scores = states().phrase_scores(Phrase("the red cup", tuple(range(2, 5))))[1]
    for phrase in ("the red cup", "is the red"):
        same = np.allclose(scores, phrase_map(states(), phrase).scores, atol=1e-4)
        assert same == (phrase == "the red cup")


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_without_seg_has_nothing() -> None:
    case = case_of([TargetMask(target_of(0), ()), TargetMask(np.zeros(SIZE, np.uint8), ())], "there is no saw.")
    first, empty = examine(small(), case, ExamineOptions(original_sam=other_sam()))
    for record in (first, empty):
        assert set(record.maps.values()) == {None}
        assert {found for name, found in record.prompts.items() if name != "plain_truth"} == {None}
        assert (record.places, record.segs, record.words, record.points) == ((), 0, "", ())
        assert record.grids == {"lmm": (), "sam": ()}
        assert not decode_rle(dict(record.mask)).any()
    assert first.own_iou == 0 and empty.own_iou == 1 and np.isnan(empty.area)
    assert first.prompts["plain_truth"] == each()[0].prompts["plain_truth"], "the truth gives points to any answer"
    assert empty.prompts["plain_truth"] is None, "but nothing gives none"


def test_a_second_target_without_seg_beside_a_first_one_with() -> None:
    first, second = examine(small(), case_of([FIRST, TargetMask(target_of(1), ())], "the cup [SEG]."))
    assert first.maps["lmm"] is not None and first.words == "the cup"
    assert second.maps["lmm"] is None and second.prompts["own"] is None and second.words == ""


def test_words_that_name_nothing() -> None:
    (record,) = examine(small(), case_of([FIRST], "it is [SEG]."))
    assert record.maps["words"] is None and record.prompts["words_points"] is record.prompts["words_projected"] is None
    assert record.maps["lmm"] is not None and record.prompts["own"] is not None
    (both,) = examine(small(), case_of([TargetMask(target_of(0), (0, 1))], "it is [SEG] and a saw [SEG]."))
    assert both.words == "a saw" and both.maps["words"] is not None and both.prompts["words_points"] is not None


def test_a_false_premise_has_no_record() -> None:
    assert examine(small(), case_of([])) == []


def test_what_the_record_says_of_the_question() -> None:
    case = case_of([FIRST], kind="colour", tags=frozenset({"b", "a"}), expected="the saw [SEG].")
    (record,) = examine(small(), case)
    assert (record.key, record.unit, record.image, record.place) == ("page/0", 0, "page", "page.jpg")
    assert (record.section, record.kind, record.tags, record.size) == ("val", "colour", ("a", "b"), SIZE)
    assert (record.question, record.answer, record.expected) == ("the red cup", TWO, "the saw [SEG].")
    assert record.given and [one.unit for one in each()] == [0, 1]


@pytest.mark.parametrize(
    ("query", "given", "places", "expected"),
    [
        ({}, True, (0,), None),
        ({}, False, (0,), True),
        ({}, False, (), False),
        ({"text": "the blue cup"}, False, (0,), False),
        ({"sentence": True, "text": "the red cup"}, False, (0,), None),
        ({"sentence": None}, False, (0,), None),
        ({"sentence": None, "expected": "It is the red cup [SEG], and there is a saw [SEG]"}, False, (0,), True),
        ({"expected": "it is the red cup [SEG]."}, False, (0,), False),
        ({"expected": TWO}, True, (0,), None),
    ],
)
def test_right_words(query: dict[str, Any], given: bool, places: tuple[int, ...], expected: bool | None) -> None:
    case = case_of([], given=given, **query)
    assert words_right(case, TargetMask(target_of(), places), TWO) is expected


def test_misaligned() -> None:
    mask = on_image(forward().low_res_logits[0])
    outside = np.zeros(SIZE, np.uint8)
    outside[np.argwhere(~mask)[0][0], np.argwhere(~mask)[0][1]] = 1
    hit, missed = mask.astype(np.uint8), outside
    for target, given, expected in ((hit, False, False), (missed, False, True), (missed, True, False)):
        (record,) = examine(small(), case_of([TargetMask(target, (0,))], given=given))
        assert record.words_right is (None if given else True)
        assert record.misaligned is expected
    (wrong,) = examine(small(), case_of([TargetMask(missed, (0,))], given=False, text="the blue cup"))
    assert wrong.words_right is False and not wrong.misaligned
    # The limit itself is no miss: targets of so many pixels inside of the mask have just that IoU with it.
    places = np.argwhere(mask)
    for count in (int(np.ceil(0.1 * len(places))), int(np.ceil(0.1 * len(places))) - 1):
        few = np.zeros(SIZE, np.uint8)
        few[tuple(places[:count].T)] = 1
        (record,) = examine(small(), case_of([TargetMask(few, (0,))], given=False))
        assert record.own_iou == count / len(places) and record.misaligned == (count / len(places) < 0.1)
    assert record.misaligned


# -- CLIP, and what is not done twice ----------------------------------------------------------------------------------


def test_clip_gets_the_name_or_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def seen(own_states: AnswerStates, text: str) -> SimilarityMap:
        asked.append((text, own_states.options.clip))
        return maps_of("before")[0]

    monkeypatch.setattr(similarity_maps, "clip_map", seen)
    options = ExamineOptions(clip=("model", "tokenizer"))
    unit, none = FIRST, TargetMask(target_of(0), ())
    (name,) = examine(small(), case_of([unit]), options)
    examine(small(), case_of([unit], sentence=None, text="what is red?"), options)
    examine(small(), case_of([none], "there is no saw.", sentence=None, text="what is red?"), options)
    assert asked == [(text, ("model", "tokenizer")) for text in ("the red cup", "the red cup", "what is red?")]
    assert (name.maps["clip"].counts, name.maps["clip"].threshold) == best(maps_of("before")[0].map, target_of(0))


def test_nothing_is_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of([FIRST])
    calls: list[str] = []
    for name in ("encode_image", "embed_masks_image", "prefill", "generate_answers", "force_answers"):
        monkeypatch.setattr(type(small().model), name, lambda *_, name=name, **__: calls.append(name))
    examine(small(), case, ExamineOptions(original_sam=other_sam()))
    assert calls == []


@pytest.mark.parametrize(
    ("answer", "name", "expected"),
    [
        ("the red cup [SEG].", "red cup", True),
        ("Sure, the Red Cup is [SEG].", "a red cup", True),
        ("the red cup [SEG].", "the cup", True),
        ("the redcup [SEG].", "red cup", False),
        ("the cup [SEG] is red.", "red cup", False),
        ("the cups [SEG].", "cup", False),
        ("it is [SEG].", "it", True),
        ("the [SEG].", "the", True),
        ("a [SEG].", "", False),
        ("the man in the hat [SEG]", "man in the hat", True),
    ],
)
def test_an_answer_holds_a_name(answer: str, name: str, expected: bool) -> None:
    assert contains_name(answer, name) is expected


# -- the record as JSON ------------------------------------------------------------------------------------------------

RECORDS: TypeAdapter[MapRecord] = TypeAdapter(MapRecord)


def to_json(record: MapRecord) -> dict[str, Any]:
    return RECORDS.dump_python(record, mode="json")


def through(record: MapRecord) -> MapRecord:
    return RECORDS.validate_json(json.dumps(to_json(record), allow_nan=False), strict=True)


def test_round_trip() -> None:
    record = measured(ignored=measured().mask, tags=("long", "é 杯"), expected="the cup [SEG].", words_right=None)
    assert through(record) == record
    assert through(record).maps["lmm"].unions[-1] == 201
    assert isinstance(through(record).prompts["own"], Counts)


def test_round_trip_without_seg() -> None:
    maps: dict[str, MapScores | None] = dict.fromkeys(("lmm", "sam", "before", "words"))
    prompts = dict.fromkeys(("own", "both", "seg", "points", "words_points", "words_projected"))
    record = measured(
        maps=maps, prompts=prompts, consistency=math.nan, spearman=math.nan, segs=0, places=(), points=(), wanted=0,
        grids={"lmm": (), "sam": ()},
    )  # fmt: skip
    back = through(record)
    assert math.isnan(back.consistency) and math.isnan(back.spearman) and math.isnan(back.area)
    assert back.maps == maps and back.prompts == prompts and back.grids == record.grids
    # NaN is not equal to itself: all else is.
    assert to_json(back) == to_json(record)


def test_what_is_missing_counts_as_an_empty_mask() -> None:
    record = measured(maps={"lmm": None}, prompts={"own": None, "seg": Counts(3, 9)})
    assert record.map_counts("lmm") == (0, 6)
    assert record.prompt_counts("own") == (0, 6) and record.own_iou == 0
    assert record.prompt_counts("seg") == (3, 9)
    assert measured().map_counts("lmm") == (5, 8) and measured().own_iou == 5 / 6 and measured().area == 6 / 24
    assert measured(prompts={"own": None}, wanted=0).own_iou == 1, "nothing expected, nothing drawn"
    with pytest.raises(KeyError):
        record.map_counts("clip")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unit", -1),
        ("places", "0"),
        ("maps", {"unknown": None}),
        ("maps", {"lmm": {"counts": [1, 2]}}),
        ("prompts", {"own": [1, "2"]}),
        ("prompts", {"own": [1, 2, 3]}),
        ("consistency", "nan"),
        ("target", {"size": [4, 6]}),
        ("points", [[1, 2, 3]]),
        ("points", [[10**400, 2, 1]]),
        ("grids", {"lmm": [{"hw": [1, 3], "box": [0, 0, 1], "low": 0, "high": 1, "levels": "AAAA"}]}),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_field(name: str, value: Any) -> None:
    record = to_json(measured()) | {name: value}
    with pytest.raises(ValidationError) as raised:
        RECORDS.validate_json(json.dumps(record), strict=True)
    assert raised.value.errors()[0]["loc"][0] == name
