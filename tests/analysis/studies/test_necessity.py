"""What could decide instead of [SEG]: numbers against full forward passes, or made by hand; the tables; the study."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

import rule_model
import studies
from readseg.analysis.studies import necessity
from readseg.analysis.studies.necessity import (
    SAID,
    SCORES,
    DecisionRecord,
    area,
    balanced_accuracy,
    check_premises,
    curves,
    decide,
    giou_all,
    map_scores,
    mask_scores,
    measure,
    necessity_tables,
    place_of,
    rate,
    seg_probabilities,
)
from readseg.core.stats import Estimate
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, open_benchmark
from readseg.evaluation.predictions import Outcome
from readseg.evaluation.report import summarise
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import Points, decode_prompts, embed_prompts
from readseg.model.modeling import ReadOutput
from readseg.viz.tables import Row, Table, to_csv, to_json, to_markdown
from released import write_released
from small import picture
from studies import contents


def records_of(segmenter: Segmenter, benchmark: Benchmark, count: int | None = None) -> list[DecisionRecord]:
    pages = range(len(benchmark) if count is None else min(count, len(benchmark)))
    return [record for number in pages for record in measure(segmenter, benchmark, benchmark[number])]


def forward(segmenter: Segmenter, image: Any, question: str, answer: Sequence[int]) -> tuple[ReadOutput, int]:
    """Teacher forcing in one pass without any cache, and where the answer begins."""
    processor, model = segmenter.processor, segmenter.model
    before = [*processor.prefix_ids(), *processor.query_ids([Turn(question)])]
    with torch.no_grad():
        output = model(
            torch.tensor([[*before, *answer]]),
            pixel_values=processor.lmm_pixels(image)[None],
            mask_pixel_values=processor.mask_pixels(image)[None],
            frames=[processor.frame(image)],
            return_logits=True,
        )
    return output, len(before)


def by_hand(segmenter: Segmenter, image: Any, question: str, ids: list[int]) -> tuple[dict[str, float], np.ndarray]:
    """The scores of an answer, and its first mask, from full forward passes alone."""
    seg = segmenter.model.config.seg_token_id
    output, start = forward(segmenter, image, question, ids)
    assert output.logits is not None
    logits = output.logits[0, start - 1 : start - 1 + len(ids)].double()
    probabilities = (logits[:, seg].exp() / logits.exp().sum(-1)).tolist()
    said = [place for place, token in enumerate(ids) if token == seg]
    place = max(said or range(len(ids)), key=lambda k: probabilities[k])
    # Had [SEG] been said there: the text ends in it.
    output, _ = forward(segmenter, image, question, [*ids[:place], seg])
    assert output.scores is not None and output.low_res_logits is not None
    similarity = output.scores[-1].double().numpy()
    mask = segmenter.processor.frame(image).masks_to_image(output.low_res_logits[-1:])[0].double().numpy()
    p = 1 / (1 + np.exp(-mask))
    scores = {
        "p_seg": max(probabilities),
        "peak": similarity.max() / math.sqrt(segmenter.model.config.lmm_config.text_config.hidden_size),
        "peak_z": (similarity.max() - similarity.mean()) / np.sqrt(((similarity - similarity.mean()) ** 2).mean()),
        "mask_highest": p.max(),
        "mask_mean": p[p > 0.5].mean() if (p > 0.5).any() else 0.0,
        "mask_area": (p > 0.5).sum() / p.size,
    }
    return scores, mask > 0


QUESTIONS = (studies.CAT, studies.UNICORN, studies.TWO)


@pytest.mark.parametrize("question", QUESTIONS)
def test_scores_are_those_of_full_forward_passes(question: str) -> None:
    segmenter = studies.segmenter()
    benchmark = studies.benchmark([[(question, True, [studies.block(5, 5, 20, 20)] * 2)]])
    (record,) = records_of(segmenter, benchmark)
    image = picture(*studies.HW, seed=0)
    ids = list(segmenter.segment(image, question, asks=True, sentence=False).answer_ids)
    expected, mask = by_hand(segmenter, image, question, ids)
    found = {name: record.scores[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert record.said == (segmenter.model.config.seg_token_id in ids) == (question != studies.UNICORN)
    if question == studies.UNICORN:
        # Refused: what would be drawn is the mask of the state that came closest, for the first of two targets.
        target = studies.block(5, 5, 20, 20) == 1
        assert record.drawn == (((mask & target).sum(), (mask | target).sum()), (0, target.sum()))
        assert record.scores["p_seg"] < 0.5
    else:
        assert record.scores["p_seg"] > 0.5


def test_the_state_of_an_answer_with_seg_is_the_state_of_its_seg() -> None:
    segmenter = studies.segmenter()
    for question in (studies.CAT, studies.TWO):
        (record,) = records_of(segmenter, studies.benchmark([[(question, False, [])]]))
        result = segmenter.segment(picture(*studies.HW, seed=0), question, asks=True, sentence=False)
        width = segmenter.model.config.lmm_config.text_config.hidden_size
        peaks = result.scores.max(axis=1) / math.sqrt(width)
        areas = result.masks.mean(axis=(1, 2))
        pairs = [pytest.approx((peak, area), abs=1e-4) for peak, area in zip(peaks, areas, strict=True)]
        assert (record.scores["peak"], record.scores["mask_area"]) in pairs
        # Of every other token of the answer the map is another one.
        encoded = segmenter.encode(picture(*studies.HW, seed=0))
        (reply,) = segmenter.reply(encoded, [question], asks=True, sentence=False)
        others = [k for k, token in enumerate(reply.answer.ids) if token != segmenter.model.config.seg_token_id]
        wrong = (reply.answer.states[others] @ encoded.h_img.T).max(dim=1).values / math.sqrt(width)
        assert not np.isclose(wrong.numpy(), record.scores["peak"], atol=1e-3).any()


def test_the_place_of_a_seg_wins_over_a_place_that_came_closer() -> None:
    probabilities = np.array([0.48, 0.1, 0.45, 0.4])
    assert place_of(probabilities, [1, 2, 9, 9], seg=9) == 2
    assert place_of(probabilities, [1, 2, 3, 4], seg=9) == 0
    assert place_of(np.array([math.nan, 0.1]), [1, 2], seg=9) == 1
    assert place_of(np.zeros(0), [], seg=9) is None


def test_what_is_nearly_certain_is_not_all_the_same() -> None:
    segmenter = studies.segmenter()
    seg = segmenter.model.config.seg_token_id
    answer = segmenter.reply(segmenter.encode(picture(*studies.HW)), [studies.CAT], asks=True, sentence=False)[0].answer
    states = answer.states[answer.ids.index(seg)][None] * torch.tensor([[2.6], [2.8]])
    with torch.inference_mode():
        assert segmenter.model.lmm.lm_head(states).softmax(-1)[:, seg].tolist() == [1.0, 1.0], "in float32"
    low, high = seg_probabilities(segmenter, states)
    assert 0.999999 < low < high < 1


def test_the_estimate_is_the_mask_decoders_own() -> None:
    segmenter = studies.segmenter()
    (record,) = records_of(segmenter, studies.benchmark([[(studies.CAT, False, [])]]))
    image = picture(*studies.HW, seed=0)
    encoded = segmenter.encode(image)
    result = segmenter.segment(image, studies.CAT, asks=True, sentence=False)
    reply = segmenter.reply(encoded, [studies.CAT], asks=True, sentence=False)[0]
    h_seg = reply.answer.states[[reply.answer.ids.index(segmenter.model.config.seg_token_id)]]
    points = Points(torch.from_numpy(result.points_xy[0]), torch.from_numpy(result.point_labels[0]))
    with torch.no_grad():
        sparse = embed_prompts(
            segmenter.model.sam,
            encoded.frame.to_mask_frame(points.xy)[None],
            points.labels[None],
            tokens=segmenter.model.seg_projection(h_seg)[:, None],
        )
        _, iou = decode_prompts(segmenter.model.sam, encoded.mask_embeddings, sparse)
    assert record.scores["mask_iou"] == pytest.approx(float(iou), abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_bias_of_the_map_counts_where_it_was_trained(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = studies.segmenter()
    benchmark = studies.benchmark([[(studies.CAT, False, [])]])
    without = records_of(segmenter, benchmark)[0].scores["peak"]
    monkeypatch.setattr(segmenter.model.config, "map_loss_weight", weight)
    monkeypatch.setattr(segmenter.model.map_bias, "data", torch.tensor(-0.75))
    found = records_of(segmenter, benchmark)[0].scores["peak"]
    assert without is not None and found == pytest.approx(without - (0.75 if weight else 0.0), abs=1e-5)


def test_scores_of_maps_and_masks_made_by_hand() -> None:
    assert map_scores(np.array([1.0, 1.0, 1.0], np.float32), 9) == {"peak": pytest.approx(1 / 3), "peak_z": 0.0}
    assert map_scores(np.array([0.0, 0.0, 6.0], np.float32), 4, bias=-1.0) == pytest.approx(
        {"peak": 2.0, "peak_z": math.sqrt(2)}
    )
    empty = mask_scores(np.full((2, 3), -32.0, np.float32))
    assert empty["mask_mean"] == empty["mask_area"] == 0 and empty["mask_highest"] == pytest.approx(1.27e-14, rel=0.01)
    assert mask_scores(np.full((1, 1), -1e4))["mask_highest"] == 0
    full = mask_scores(np.array([[2.0, -2.0], [0.0, 4.0]]))
    sigmoid = [1 / (1 + math.exp(-x)) for x in (2.0, 4.0)]
    assert full == pytest.approx({"mask_highest": sigmoid[1], "mask_mean": sum(sigmoid) / 2, "mask_area": 0.5})


def outcomes(segmenter: Segmenter, benchmark: Benchmark) -> dict[str, Outcome]:
    return {o.key: o for o in evaluate(segmenter, benchmark) if o.present is not None}


def agree(records: Sequence[DecisionRecord], found: dict[str, Outcome]) -> None:
    """What the study counts of the answers as they are is what evaluation counts.

    But for two pixels: on a processor without AMX one of 54,946 came out on the other side of 0.
    """
    assert [record.key for record in records] == list(found)
    for record in records:
        outcome = found[record.key]
        counts = record.drawn if record.said else record.refused
        expected = tuple(zip(outcome.intersections, outcome.unions, strict=True))
        np.testing.assert_allclose(counts, expected, rtol=0, atol=2, err_msg=record.key)
        for name in ("present", "image", "kind", "section"):
            assert getattr(record, name) == getattr(outcome, name)
        assert set(record.tags) == outcome.tags and all(intersection == 0 for intersection, _ in record.refused)
        assert record.present or (len(record.drawn) == 1 and all(union == 0 for _, union in record.refused))


@pytest.mark.parametrize("match", ["order", "union"])
def test_masks_are_counted_as_evaluation_counts_them(match: Any) -> None:
    ignored = [[(studies.CAT, True, [studies.block(4, 5, 30, 40, ignored=6)])]]
    benchmark = studies.benchmark([*studies.PAGES, *ignored], match=match)
    agree(records_of(studies.segmenter(), benchmark), outcomes(studies.segmenter(), benchmark))


@pytest.mark.parametrize("name", ["reasonseg/val", "fprefcoco/val", "grefcoco/val"])
def test_data_sets_with_false_premises(name: str, data: Path) -> None:
    benchmark = open_benchmark(data, name, "generated")
    check_premises(benchmark)
    benchmark = replace(benchmark, names=benchmark.names[:4])
    records = records_of(studies.segmenter(), benchmark)
    assert {record.present for record in records} == {True, False}
    agree(records, outcomes(studies.segmenter(), benchmark))
    adapter = TypeAdapter(list[DecisionRecord])
    assert adapter.validate_json(adapter.dump_json(records)) == records


def test_a_released_checkpoint_of_another_family(data: Path, tmp_path: Path) -> None:
    write_released(tmp_path / "lisa", "lisa")
    segmenter = Segmenter.from_pretrained(tmp_path / "lisa", device="cpu", dtype="float32")
    benchmark = open_benchmark(data, "fprefcoco/val")
    records = records_of(segmenter, benchmark, 2)
    assert records and all(set(record.scores) == set(SCORES) for record in records)
    for record in records:
        p_seg = record.scores["p_seg"]
        assert p_seg is None or 0 <= p_seg <= 1


def changed(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> DecisionRecord:
    """The record of "the cat" with a target of 81 pixels, where what was generated is another answer."""
    generate = segmenter.model.generate_answers
    monkeypatch.setattr(
        segmenter.model, "generate_answers", lambda *args, **options: list(map(change, generate(*args, **options)))
    )
    (record,) = records_of(segmenter, studies.benchmark([[(studies.CAT, True, [studies.block(0, 0, 9, 9)])]]))
    return record


def test_an_answer_without_a_token_has_no_scores_and_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = changed(studies.segmenter(), monkeypatch, lambda answer: answer._replace(ids=[], states=answer.states[:0]))
    assert set(cut.scores.values()) == {None} and not cut.said
    assert cut.drawn == cut.refused == ((0, 81),)


def test_a_state_that_is_no_number_has_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = changed(studies.segmenter(), monkeypatch, lambda answer: answer._replace(states=answer.states * math.nan))
    assert broken.scores["p_seg"] is None and broken.scores["peak"] is None and broken.said


def test_there_must_be_something_to_decide(data: Path) -> None:
    check_premises(studies.benchmark())
    with pytest.raises(ReadsegError, match=r"reasonseg/val.*'forced'.*use --protocol generated"):
        check_premises(open_benchmark(data, "reasonseg/val"))
    with pytest.raises(ReadsegError, match=r"refcoco/val: no false premises are among its \d+ images"):
        check_premises(open_benchmark(data, "refcoco/val", "generated"))
    with pytest.raises(ReadsegError, match="no true premises are among its 1 images"):
        check_premises(studies.benchmark([[(studies.CAT, False, [])], *studies.PAGES], ordered=True), limit=1)
    with pytest.raises(ReadsegError, match="no true or false premises"):
        check_premises(studies.benchmark([[(studies.COUNT, None, [])]]))


def test_wrong_records_are_named() -> None:
    (record,) = records_of(studies.segmenter(), studies.benchmark([[(studies.CAT, False, [])]]))
    adapter = TypeAdapter(DecisionRecord)
    good = adapter.dump_python(record, mode="json")
    large = {"scores": {**good["scores"], "p_seg": 10**400}}
    changes = ({"key": 3}, {"said": "yes"}, {"scores": {}}, {"drawn": [[1]]}, {"tags": [1]}, {"scores": None}, large)
    for change in [*changes, {"image": None}]:
        with pytest.raises(ValidationError):
            adapter.validate_json(json.dumps(good | change), strict=True)


Capture = pytest.CaptureFixture[str]
CSVS = [f"necessity-{k}.csv" for k in (1, 2, 3, 4)]
FILES = ["necessity.json", "necessity.md", "necessity.png", "roc.json", *CSVS]


def test_tables_curves_and_chart(tmp_path: Path, capsys: Capture) -> None:
    studies.run("necessity", studies.context(tmp_path))
    assert sorted(contents(tmp_path)) == sorted([*FILES, "records.jsonl"])
    printed = capsys.readouterr().out
    assert "who decides whether to segment? tiny" in printed and str(tmp_path / "roc.json") not in printed
    with (tmp_path / "necessity-1.csv").open(newline="", encoding="utf-8") as file:
        said = next(csv.DictReader(file))
    # By heart: "the cat" and "all the birds and the tree" are answered, "the unicorn" is refused, whatever is true.
    assert said["decided by"] == "[SEG] in the answer"
    rates = [float(said[name]) for name in ("true_positive", "false_positive", "balanced")]
    assert rates == pytest.approx([4 / 5, 2 / 5, (4 / 5 + 3 / 5) / 2])
    curves = json.loads((tmp_path / "roc.json").read_text())["tiny"]
    assert set(curves) == {*necessity.SCORES, "said"}
    assert curves["said"] == {"false_positive": [pytest.approx(2 / 5)], "true_positive": [pytest.approx(4 / 5)]}
    assert curves["peak"]["false_positive"][0] == 0 and curves["peak"]["true_positive"][-1] == pytest.approx(1)
    assert "10 questions, 5 with a true and 5 with a false premise, about 4 of 4 images" in (
        tmp_path / "necessity.md"
    ).read_text(encoding="utf-8")
    with Image.open(tmp_path / "necessity.png") as chart:
        assert chart.width == 1200


def test_several_models_stand_in_files_of_their_own(tmp_path: Path) -> None:
    studies.run("necessity", studies.context(tmp_path, models=[studies.model("a/b"), studies.model("a b")]))
    found = contents(tmp_path)
    assert {"a-b/records.jsonl", "a-b-2/records.jsonl"} < set(found)
    assert {"necessity-a-b.png", "necessity-a-b-2.png", "necessity-8.csv"} < set(found)
    assert set(json.loads(found["roc.json"])) == {"a/b", "a b"}


def test_a_wrong_benchmark_is_known_before_a_model_is_asked(tmp_path: Path) -> None:
    nobody = replace(studies.model(), loaded={})
    for benchmark, told in (
        (studies.benchmark(protocol="forced"), "use --protocol generated"),
        (studies.benchmark([[(studies.CAT, True, [])]]), "no false premises are among its 1 images"),
    ):
        with pytest.raises(ReadsegError, match=told):
            studies.run("necessity", studies.context(tmp_path, benchmark, [nobody]))
    assert not contents(tmp_path)


def records(count: int = 90, seed: int = 0) -> list[DecisionRecord]:
    """Questions about count / 3 images; the scores tell more or less about the truth, some are missing."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        present = bool(rng.random() < 0.6)
        said = present if rng.random() < 0.85 else not present
        scores: dict[str, float | None] = {name: float(rng.normal() + present) for name in SCORES}
        scores["p_seg"] = float(rng.uniform(0.5, 1) if said else rng.uniform(0, 0.5))
        if rng.random() < 0.1:
            scores["mask_iou"] = None
        targets = (2 if rng.random() < 0.2 else 1) if present else 1
        unions = [int(rng.integers(50, 100)) for _ in range(targets)]
        made.append(
            DecisionRecord(
                key=f"{k // 3}/{k % 3}",
                image=f"image {k // 3}",
                section=("new", "old")[k % 2],
                kind="one kind" if k == 4 else ("big", "red", "left")[k % 3],
                tags=(),
                present=present,
                said=said,
                finished=k != 7,
                scores=scores,
                drawn=tuple((int(rng.integers(0, u)) if present else 0, u) for u in unions),
                refused=tuple((0, u if present else 0) for u in unions),
            )
        )
    return made


def scored(found: Sequence[DecisionRecord]) -> list[Outcome]:
    """The same questions as evaluation sees them."""
    counts = [(r, r.drawn if r.said else r.refused) for r in found]
    return [rule_model.outcome(r.key, r.present, r.said, own, image=r.image) for r, own in counts]


def row(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.name == name)


def cell(table: Table, name: str, column: str) -> Estimate:
    found = row(table, name).cells[column]
    assert isinstance(found, Estimate)
    return found


def test_the_decision_itself_is_scored_as_evaluation_scores_it() -> None:
    found = records()
    decided = decide(found)
    expected = summarise(scored(found))
    found_all = giou_all(decided, SAID)
    assert found_all.value == pytest.approx(expected["giou_all"].value)
    false_positive, true_positive = rate(decided, SAID, False), rate(decided, SAID, True)
    assert true_positive.value == pytest.approx(expected["answered"].value)
    # Evaluation has the images in another order: the same draws are of other images.
    for own, theirs in ((found_all, expected["giou_all"]), (true_positive, expected["answered"])):
        assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert false_positive.value == pytest.approx(1 - expected["refused"].value)
    assert (true_positive.count, false_positive.count) == (expected["answered"].count, expected["refused"].count)
    balanced = balanced_accuracy(decided, SAID)
    assert balanced.value == pytest.approx(expected["see_balanced"].value)
    assert balanced.low < balanced.value < balanced.high
    table = necessity_tables(found, "m", "b")[1]
    assert cell(table, "[SEG] in the answer", "giou").value == pytest.approx(expected["giou"].value)


def test_a_perfect_decision_and_none_at_all() -> None:
    found = records(seed=3)
    decided = decide(found)

    def expected(draws: Sequence[bool]) -> float:
        masks = [pair for r, draw in zip(found, draws, strict=True) for pair in (r.drawn if draw else r.refused)]
        return float(np.mean([1.0 if u == 0 else i / (u + 1e-5) for i, u in masks]))

    for rule, draws in (
        ("always", [True] * len(found)),
        ("never", [False] * len(found)),
        ("truth", [r.present for r in found]),
        (SAID, [r.said for r in found]),
    ):
        assert giou_all(decided, rule).value == pytest.approx(expected(draws)), rule
    assert giou_all(decided, "truth").value >= max(giou_all(decided, name).value for name in decided.rules)


def test_thresholds_are_scored_on_images_that_they_were_not_chosen_on() -> None:
    # Two images: each is decided by the best cut of the other. On "a" it is 5 and on "b" 1.
    def made(image: str, values: Sequence[tuple[float, bool]]) -> list[DecisionRecord]:
        return [
            DecisionRecord(
                f"{image}/{k}", image, "", "", (), present, True, True, dict.fromkeys(SCORES, value),
                ((30, 60),) if present else ((0, 60),), ((0, 40),) if present else ((0, 0),),
            )
            for k, (value, present) in enumerate(values)
        ]  # fmt: skip

    found = made("a", [(4.0, False), (6.0, True)]) + made("b", [(0.0, False), (2.0, True), (3.0, True)])
    decided = decide(found)
    assert decided.rules["peak"].tolist() == [1, 1, 0, 0, 0]
    table = necessity_tables(found, "m", "b")[0]
    assert cell(table, "highest similarity", "true_positive").value == pytest.approx(1 / 3)
    assert cell(table, "highest similarity", "false_positive").value == pytest.approx(1 / 2)
    assert cell(table, "highest similarity", "balanced").value == pytest.approx((1 / 3 + 1 / 2) / 2)
    # [SEG] is in all answers: balanced accuracy 1/2.
    assert cell(table, "highest similarity", "balanced_less").value == pytest.approx((1 / 3 + 1 / 2) / 2 - 1 / 2)
    # a: a mask for the false one (0), one of 30/60 for the true one; b: refused rightly (1), and two lost (0).
    assert giou_all(decided, "peak").value == pytest.approx((0 + 0.5 + 1 + 0 + 0) / 5, abs=1e-6)
    assert giou_all(decided, "peak", SAID).value == pytest.approx(1.5 / 5 - (0 + 0.5 + 0 + 0.5 + 0.5) / 5, abs=1e-6)


def test_areas_and_their_differences() -> None:
    found = records(seed=5)
    decided = decide(found)

    def brute(name: str) -> float:
        values = [(-math.inf if r.scores[name] is None else r.scores[name], r.present) for r in found]
        pairs = [(s, r) for s, there in values if there for r, absent in values if not absent]
        return sum((s > r) + (s == r) / 2 for s, r in pairs) / len(pairs)

    table = necessity_tables(found, "m", "b")[0]
    for name, kind in SCORES.items():
        assert area(decided, name).value == pytest.approx(brute(name))
        assert cell(table, kind.name, "auc") == area(decided, name)
        if name != "p_seg":
            less = cell(table, kind.name, "auc_less")
            assert less.value == pytest.approx(brute(name) - brute("p_seg")) and less.low < less.value < less.high
    none = area(decided, "peak", "peak")
    assert (none.value, none.low, none.high) == (0, 0, 0), "paired"
    for name, curve in curves(decided).items():
        x, y = curve
        assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(brute(name))


def test_the_tables_name_what_they_leave_out() -> None:
    found = records()
    tables = necessity_tables(found, "some | model", "hand", "30 of 80 images")
    decisions, masks, by_area, by_balance = tables
    assert [r.group for r in decisions.rows] == ["the word", *(kind.group for kind in SCORES.values())]
    assert decisions.rows[0].name == "[SEG] in the answer" and "auc" not in decisions.rows[0].cells
    true = sum(r.present for r in found)
    told = " ".join(decisions.notes)
    assert f"90 questions, {true} with a true and {90 - true} with a false premise, about 30 of 80 images" in told
    missing = sum(r.scores["mask_iou"] is None for r in found)
    assert missing and f"counted as the lowest: IoU that SAM predicts of {missing}" in told
    assert "answers that were cut off: 1" in told and "the model answers by itself" in told
    assert len(masks.rows) == 1 + len(SCORES) + 3
    # "one kind" is asked once: it has no curve.
    parts = [*(("kind of question", kind) for kind in ("big", "left", "red")), ("section", "new"), ("section", "old")]
    assert [(r.group, r.name) for r in by_area.rows] == parts
    assert any("(questions: 1 by kind of question)" in note for note in by_area.notes)
    own = [r for r in found if r.kind == "red"]
    red = row(by_balance, "red").cells
    assert red["n"] == f"{sum(r.present for r in own)}/{sum(not r.present for r in own)}"
    right = [np.mean([r.said == p for r in own if r.present == p]) for p in (True, False)]
    assert isinstance(red[SAID], Estimate) and red[SAID].value == pytest.approx(np.mean(right))
    assert np.mean([r.said == r.present for r in found]) > 0.7, "and most answers are right"
    for table in tables:
        assert "some \\| model" in to_markdown(table) and to_csv(table)
        json.dumps(to_json(table), allow_nan=False)


def test_few_images_have_no_thresholds() -> None:
    few = [r for r in records() if r.image == "image 0"]
    few = [few[0], *(r for r in records() if r.present != few[0].present and r.image == "image 1")]
    tables = necessity_tables(few, "m", "b")
    assert list(decide(few).rules) == [SAID, "always", "never", "truth"]
    assert "balanced" not in row(tables[0], "highest similarity").cells
    assert any("no thresholds" in note for note in tables[0].notes)
    assert tables[1].rows[0].name == "[SEG] in the answer" and len(tables[1].rows) == 4
    assert not curves(decide([r for r in records() if r.present])), "no curve without false premises"
