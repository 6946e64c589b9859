"""Ablations: which variants there are, what is computed once, whose masks come out, and what their scores are."""

from __future__ import annotations

import copy
import csv
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from torch import nn

import studies
from readseg.analysis.studies import ablation
from readseg.analysis.studies.ablation import (
    PROMPTED,
    TRAINED,
    AblationResult,
    SharedReplies,
    Variant,
    ablate,
    cells,
    changed_points,
    describe,
    prompted_table,
    trained_table,
)
from readseg.core.io import read_lines
from readseg.core.masks import decode_rle
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark
from readseg.evaluation.predictions import PREDICTIONS, read_result
from readseg.evaluation.report import difference, summarise
from readseg.inference.segmenter import Segmenter
from readseg.model.config import ConversationConfig
from readseg.model.processing import ReadProcessor
from readseg.viz.tables import Table, to_csv, to_json
from small import picture, small_config

# About each image: one [SEG], two of them (and a target too many), a refusal of what is there, a false premise, words.
ASKED = ("the cat", "all the birds and the tree", "the unicorn", "the unicorn", "how many animals are there?")
TARGETS = (1, 3, 1, 0, 0)
SIZES = ((40, 60), (48, 32), (36, 36))
PAGES = len(SIZES)

point_variants, prompt_variants, alignment_variants = (
    partial(ablation.variants, what) for what in get_args(ablation.Ablation)
)


@pytest.fixture(scope="module")
def learned() -> Segmenter:
    return studies.segmenter()


def targets(page: int, query: int) -> list[np.ndarray]:
    rng = np.random.default_rng([page, query])
    found = []
    for _ in range(TARGETS[query]):
        target = np.zeros(SIZES[page], np.uint8)
        top, left = rng.integers(0, 16, 2)
        target[top : top + 20, left : left + 14] = 1
        target[0] = 255
        found.append(target)
    return found


def made(match: str = "order", protocol: str = "generated") -> Benchmark:
    """Three images of different sizes with five questions each."""
    premises = (True, True, True, False, None)
    pages = [
        [(text, present, targets(number, k)) for k, (text, present) in enumerate(zip(ASKED, premises, strict=True))]
        for number in range(PAGES)
    ]
    return studies.benchmark(pages, name="refcoco/val", match=match, protocol=protocol)


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """How often each module runs."""
    calls = [0] * len(modules)

    def count(place: int) -> Any:
        def hook(*_: object) -> None:
            calls[place] += 1

        return hook

    hooks = [module.register_forward_pre_hook(count(k)) for k, module in enumerate(modules)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def test_the_grid_is_that_of_table_8() -> None:
    config = small_config()  # 5 points of 0.8/0.2: none of the nine
    variants = point_variants(config)
    assert [(v.points.t_pos, v.points.t_neg, v.points.num_points) for v in variants[1:]] == [
        (0.8, 0.2, 10), (0.8, 0.2, 30), (0.8, 0.2, 60),
        (0.7, 0.3, 10), (0.7, 0.3, 30), (0.7, 0.3, 60),
        (0.6, 0.4, 10), (0.6, 0.4, 30), (0.6, 0.4, 60),
    ]  # fmt: skip
    own = variants[0]
    assert own.own and own.points == config.points and own.prompt == "both" and own.key == "own"
    assert not any(v.own for v in variants[1:])
    assert len({v.key for v in variants}) == len({v.name for v in variants}) == 10
    shared = {dataclasses.replace(v.points, t_pos=0.5, t_neg=0.1, num_points=1) for v in variants}
    assert len(shared) == 1, "all but thresholds and numbers is as the model has it"


def test_the_own_setting_is_found_among_the_variants() -> None:
    among = small_config(points=PointConfig(num_points=30, t_pos=0.7, t_neg=0.3, downsample=1, alignment="exact"))
    assert [v.name for v in point_variants(among) if v.own] == ["0.7/0.3, 30 points"]
    variants = point_variants(among, downsample=2)
    assert variants[0].key == "own" and variants[0].points.downsample == 1
    assert {v.points.downsample for v in variants[1:]} == {2}
    # Thresholds that the rule does not look at make no other setting, and a model without points has none.
    std = small_config(points=dataclasses.replace(among.points, threshold="std", t_pos=0.9))
    assert [v.key for v in prompt_variants(std, t_pos=0.8) if v.own] == ["both-dtoc"]
    assert point_variants(std)[0].key == "own" and {v.points.threshold for v in point_variants(std)[1:]} == {"range"}
    lisa = small_config(prompt="seg")
    assert [v.key for v in prompt_variants(lisa, numbers=[3]) if v.own] == ["seg"]
    assert point_variants(lisa)[0].prompt == "seg" and {v.prompt for v in point_variants(lisa)[1:]} == {"both"}


def test_ratios_and_numbers_are_chosen_and_checked() -> None:
    variants = point_variants(small_config(), ratios=[(0.9, 0.1), (0.9, 0.1), (1.0, 0.0)], numbers=[5, 5])
    assert [v.name for v in variants if v.key != "own"] == ["0.9/0.1, 5 points", "1/0, 5 points"]
    with pytest.raises(ReadsegError, match="grid of 16 image tokens"):
        changed_points(small_config(), {"downsample": 5})


def test_prompts_are_alone_and_together_discrete_and_continuous() -> None:
    own = PointConfig(num_points=5, downsample=1, alignment="exact", dtoc=False)
    variants = prompt_variants(small_config(points=own))
    ways = [(prompt, dtoc) for prompt in ("points", "both") for dtoc in (False, True)]
    assert [(v.prompt, v.points.dtoc) for v in variants if v.prompt != "seg"] == ways
    assert variants[0].prompt == "seg"
    assert [v.own for v in variants] == [False, False, False, True, False]


def test_the_rounding_of_the_centre_crop_needs_a_centre_crop() -> None:
    exact, reference = alignment_variants(small_config())
    assert exact.own and not exact.impossible
    assert not reference.own and "the view is 'stretch'" in reference.impossible
    crop = alignment_variants(small_config(view="crop", points=PointConfig(downsample=1, alignment="reference")))
    assert [(v.points.alignment, v.own, v.impossible) for v in crop] == [("exact", False, ""), ("reference", True, "")]


def test_an_image_is_encoded_and_a_question_answered_once_for_all_variants(learned: Segmenter) -> None:
    model = learned.model
    parts = (model.lmm.model.vision_tower, model.sam.vision_encoder, model.lmm.model.language_model)
    decoder = model.sam.mask_decoder

    def work(variants: tuple[Variant, ...]) -> tuple[list[int], int]:
        fresh = Segmenter(model, learned.processor, cached_images=1)
        with counted(*parts, decoder) as calls:
            ablate(fresh, made(), variants, name="small")
        return calls[:3], calls[3]

    one, masks_of_one = work((Variant("own", "own", "both", model.config.points, own=True),))
    grid, masks_of_grid = work(point_variants(model.config))
    assert one == grid, "no variant beyond the first costs an encoding or a word"
    assert grid[:2] == [PAGES, PAGES] and masks_of_one >= PAGES
    assert masks_of_grid >= 10 * masks_of_one, "each variant makes masks of its own"


@pytest.mark.parametrize(("match", "protocol"), [("order", "generated"), ("union", "forced")])
def test_masks_are_those_that_segment_makes(learned: Segmenter, match: str, protocol: str, tmp_path: Path) -> None:
    config = learned.model.config
    variants = (*prompt_variants(config), *point_variants(config, ratios=[(0.6, 0.4)], numbers=[2, 60])[1:])
    folder = tmp_path / "predictions"
    ablated = ablate(learned, made(match, protocol), variants, name="small", folder=folder)
    assert [v.key for v in variants if v.own] == ["both-dtoc"]
    differ = set()
    for variant in variants:
        path = folder if variant.own else folder.with_name(f"predictions_{variant.key}")
        lines = read_lines(path / "predictions.jsonl", PREDICTIONS)
        settings, predictions = lines.header["settings"], lines.records
        assert settings["prompt"] == variant.prompt and settings["points"] == vars(variant.points)
        assert read_result(path / "predictions.jsonl").outcomes == ablated.results[variant.key].outcomes
        for number, size in enumerate(SIZES):
            # As evaluation asks: what is a name or a sentence in one call, what is neither in another.
            for asked, worded in ((range(4), True), (range(4, 5), False)):
                said = Segmenter(learned.model, learned.processor).segment(
                    picture(*size, seed=number),
                    [ASKED[k] for k in asked],
                    asks=worded,
                    prompt=variant.prompt,
                    points=variant.points,
                    force=protocol == "forced" and worded,
                    sentence=False if worded else None,
                )
                for k, one in zip(asked, said, strict=True):
                    prediction = predictions[f"page-{number}/{k}"]
                    assert (prediction.answer, prediction.claimed) == (one.answer, one.present)
                    masks = [decode_rle(dict(rle)) for rle in prediction.masks]
                    assert len(masks) == len(one.masks) and all(map(np.array_equal, masks, one.masks))
        differ.add(tuple(str(dict(mask)) for p in predictions.values() for mask in p.masks))
    assert len(differ) >= 4, "the variants of this model do differ"


def test_replies_are_shared_only_where_the_same_is_asked(learned: Segmenter) -> None:
    config = copy.deepcopy(learned.model.config)
    config.conversation = ConversationConfig(name_question="where is {name}?", sentence_question="{sentence} the tree")
    worded = Segmenter(learned.model, ReadProcessor(learned.processor.tokenizer, config))
    shared, image = SharedReplies(worded), picture(*SIZES[0])
    ways: list[dict[str, Any]] = [
        {"asks": None, "force": False, "sentence": None},
        {"asks": True, "force": False, "sentence": None},
        {"asks": True, "force": True, "sentence": None},
        {"asks": True, "force": True, "sentence": True},
    ]
    for query in ("the unicorn", "how many animals are there?"):
        for way in ways:
            (found,) = shared.segment(image, [query], prompt=None, points=None, **way)
            said = worded.segment(image, query, **way)
            assert (found.answer, found.present, found.said) == (said.answer, said.present, said.said)
            assert np.array_equal(found.scores, said.scores) and np.array_equal(found.masks, said.masks)
    other = shared.segment(picture(*SIZES[1]), ["the cat"], prompt=None, points=None, **ways[0])[0]
    assert other.image_size == SIZES[1] and len(other.masks) == 1


def test_a_run_that_was_cut_off_goes_on(learned: Segmenter, tmp_path: Path) -> None:
    def run(folder: str, **settings: str) -> AblationResult:
        variants = prompt_variants(learned.model.config)
        settings = {"model": "s", **settings}
        return ablate(learned, made(), variants, name="small", settings=settings, folder=tmp_path / folder / "p")

    calm = run("calm")
    files = sorted((tmp_path / "calm").rglob("predictions.jsonl"))
    assert len(files) == 5
    for number, file in enumerate(files):  # as a kill would leave them: some with half a line, one without anything
        part = tmp_path / "cut" / file.parent.name / "predictions-rank0.jsonl"
        part.parent.mkdir(parents=True)
        content = file.read_bytes()
        if number:
            part.write_bytes(content[: content.index(b"\n") + 1 + number * len(content) // 8])
    assert run("cut").results == calm.results
    for file in files:
        assert (tmp_path / "cut" / file.relative_to(tmp_path / "calm")).read_bytes() == file.read_bytes()
    with counted(learned.model.lmm.model.language_model, learned.model.sam.mask_decoder) as calls:
        run("cut")
    assert calls == [0, 0]
    with pytest.raises(ReadsegError, match="other settings"):
        run("cut", model="t")


def test_no_more_points_than_cells(learned: Segmenter) -> None:
    config = learned.model.config
    assert cells(config, config.points) == 16 and cells(config, changed_points(config, {"downsample": 2})) == 4
    found = learned.segment(picture(), "the cat", points=changed_points(config, {"num_points": 60}))
    assert len(found.points_xy[0]) == 16
    assert describe(config, "both", config.points) == "[SEG] and points: 0.8/0.2, 5 points of 4 x 4 cells, DtoC, exact"
    assert describe(config, "seg", config.points) == "[SEG] only"
    std = dataclasses.replace(config.points, threshold="std", dtoc=False, downsample=3)
    assert describe(config, "points", std) == "points only: mean +/- std/2, 5 points of 1 x 1 cells, discrete, exact"


@pytest.fixture(scope="module")
def ablated(learned: Segmenter) -> AblationResult:
    return ablate(learned, made(), prompt_variants(learned.model.config), name="small")


def test_the_table_of_one_model(ablated: AblationResult) -> None:
    table = prompted_table("prompt", ablated)
    ways = [f"{prompt}, {how}" for prompt in ("points only", "[SEG] and points") for how in ("discrete", "DtoC")]
    assert [row.name for row in table.rows] == ["[SEG] only", *ways[:3], f"{ways[3]} (own)"]
    own = ablated.results[ablated.variants[-1].key].outcomes
    for variant, row in zip(ablated.variants, table.rows, strict=True):
        outcomes = ablated.results[variant.key].outcomes
        assert row.cells.items() >= {"kind": PROMPTED, **{k: summarise(outcomes)[k] for k in ("giou", "ciou")}}.items()
        assert row.cells["giou"].count == 15 and row.group == "small"
        if not variant.own:
            assert (row.cells["giou_gap"], row.cells["ciou_gap"]) == difference(outcomes, own)
    assert "giou_gap" not in table.rows[-1].cells
    notes = " ".join(table.notes)
    assert "all sections of the benchmark together: second, first" in notes
    assert "over 15 masks of 9 true premises about 3 images" in notes
    assert "3 of 9 true premises were answered without [SEG]" in notes and "3 of 3 false premises refused" in notes
    told = []
    for pair in (("points-discrete", "points-dtoc"), ("both-discrete", "both-dtoc")):
        masks = [[m for p in ablated.results[key].outcomes for m in p.masks] for key in pair]
        assert len(masks[0]) == 9
        told.append(sum((decode_rle(dict(a)) != decode_rle(dict(b))).any() for a, b in zip(*masks, strict=True)))
    assert f"points only {told[0]} of 9, [SEG] and points {told[1]} of 9" in notes
    assert "TRAINED with and without" in notes


def test_the_table_of_points_says_how_many_there_can_be(learned: Segmenter) -> None:
    config = learned.model.config
    variants = point_variants(config, ratios=[(0.8, 0.2)], numbers=[5, 60])
    table = prompted_table("points", ablate(learned, made(), variants, name="small", limit=2))
    assert [(row.name, row.cells["points"]) for row in table.rows] == [
        ("0.8/0.2, 5 points (own)", "5"),
        ("0.8/0.2, 60 points", "16 of 60"),
    ]
    notes = " ".join(table.notes)
    assert "4 x 4 = 16 cells (4 x 4 image tokens, downsample 1)" in notes and "a sample: 2 of 3 images" in notes


def test_what_is_impossible_has_a_row_without_scores(learned: Segmenter) -> None:
    ablated = ablate(learned, made(), alignment_variants(learned.model.config), name="small", limit=1)
    table = prompted_table("alignment", ablated)
    assert [(row.name, "giou" in row.cells) for row in table.rows] == [("exact (own)", True), ("reference", False)]
    assert any("reference is not possible" in note and "centre crop" in note for note in table.notes)


def test_models_stand_in_a_table_of_their_own(ablated: AblationResult) -> None:
    other = dataclasses.replace(
        ablated,
        model="another",
        variants=tuple(dataclasses.replace(v, own=v.key == "seg") for v in ablated.variants),
    )
    table = trained_table([ablated, other])
    first, second = table.rows
    assert (first.name, second.name) == ("small", "another")
    assert first.cells["setting"] == "[SEG] and points: 0.8/0.2, 5 points of 4 x 4 cells, DtoC, exact"
    assert second.cells["setting"] == "[SEG] only"
    assert "giou_gap" not in first.cells
    prompted = prompted_table("prompt", ablated)
    assert second.cells["giou_gap"] == prompted.rows[0].cells["giou_gap"], "the same predictions beside each other"

    def kinds(shown: Table) -> set[str]:
        in_json = {row["cells"]["kind"] for row in to_json(shown)["rows"]}
        assert {row["kind"] for row in csv.DictReader(to_csv(shown).splitlines())} == in_json
        return in_json

    assert kinds(table) == {TRAINED} and kinds(prompted) == {PROMPTED}
