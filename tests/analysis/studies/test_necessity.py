"""What could decide instead of [SEG]: every number against a full forward pass, or a mask made by hand; the study."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

import studies
from readseg.analysis.studies import necessity
from readseg.analysis.studies.necessity import (
    SCORES,
    DecisionRecord,
    check_premises,
    map_scores,
    mask_scores,
    measure,
    place_of,
    seg_probabilities,
)
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, open_benchmark
from readseg.evaluation.predictions import Outcome
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import Points, decode_prompts, embed_prompts
from readseg.model.modeling import ReadOutput
from released import write_released
from small import picture


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
        reply = segmenter.reply(segmenter.encode(picture(*studies.HW, seed=0)), [question], asks=True, sentence=False)[
            0
        ]
        others = [k for k, token in enumerate(reply.answer.ids) if token != segmenter.model.config.seg_token_id]
        h_img = segmenter.encode(picture(*studies.HW, seed=0)).h_img
        wrong = (reply.answer.states[others] @ h_img.T).max(dim=1).values / math.sqrt(width)
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
        assert (record.present, record.image, record.kind, record.section, set(record.tags)) == (
            outcome.present,
            outcome.image,
            outcome.kind,
            outcome.section,
            outcome.tags,
        )
        if not record.present:
            assert all(pair == (0, 0) for pair in record.refused) and len(record.drawn) == 1
        else:
            assert all(intersection == 0 for intersection, _ in record.refused)


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


def test_an_answer_without_a_token_has_no_scores_and_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = studies.segmenter()
    generate = segmenter.model.generate_answers

    def cut(*args: Any, **options: Any) -> Any:
        return [answer._replace(ids=[], states=answer.states[:0]) for answer in generate(*args, **options)]

    monkeypatch.setattr(segmenter.model, "generate_answers", cut)
    (record,) = records_of(segmenter, studies.benchmark([[(studies.CAT, True, [studies.block(0, 0, 9, 9)])]]))
    assert set(record.scores.values()) == {None} and not record.said
    assert record.drawn == record.refused == ((0, 81),)


def test_a_state_that_is_no_number_has_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = studies.segmenter()
    generate = segmenter.model.generate_answers

    def broken(*args: Any, **options: Any) -> Any:
        return [answer._replace(states=answer.states * math.nan) for answer in generate(*args, **options)]

    monkeypatch.setattr(segmenter.model, "generate_answers", broken)
    (record,) = records_of(segmenter, studies.benchmark([[(studies.CAT, True, [studies.block(0, 0, 9, 9)])]]))
    assert record.scores["p_seg"] is None and record.scores["peak"] is None and record.said


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_curves_and_chart(tmp_path: Path, capsys: Capture) -> None:
    studies.run("necessity", studies.context(tmp_path))
    assert sorted(contents(tmp_path)) == sorted([*FILES, "records.jsonl"])
    printed = capsys.readouterr().out
    assert "who decides whether to segment? tiny" in printed and str(tmp_path / "roc.json") not in printed
    with (tmp_path / "necessity-1.csv").open(newline="", encoding="utf-8") as file:
        said = next(csv.DictReader(file))
    # By heart: "the cat" and "all the birds and the tree" are answered, "the unicorn" is refused, whatever is true.
    assert (said["decided by"], float(said["true_positive"]), float(said["false_positive"])) == (
        "[SEG] in the answer",
        pytest.approx(4 / 5),
        pytest.approx(2 / 5),
    )
    assert float(said["balanced"]) == pytest.approx((4 / 5 + 3 / 5) / 2)
    curves = json.loads((tmp_path / "roc.json").read_text())["tiny"]
    assert set(curves) == {*necessity.SCORES, "said"}
    assert curves["said"] == {"false_positive": [pytest.approx(2 / 5)], "true_positive": [pytest.approx(4 / 5)]}
    assert curves["peak"]["false_positive"][0] == 0 and curves["peak"]["true_positive"][-1] == pytest.approx(1)
    assert "10 questions, 5 with a true and 5 with a false premise, about 4 of 4 images" in (
        tmp_path / "necessity.md"
    ).read_text(encoding="utf-8")
    with Image.open(tmp_path / "necessity.png") as chart:
        assert chart.width == 1200


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies.run("necessity", studies.context(tmp_path / "whole"))
    measure, asked = necessity.measure, []

    def counted(segmenter: Any, benchmark: Any, page: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(page.name)
        return measure(segmenter, benchmark, page)

    monkeypatch.setattr(necessity, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        studies.run("necessity", studies.context(tmp_path / "part"))
    assert list(contents(tmp_path / "part")) == [str(Path("records.jsonl"))]
    asked.clear()
    studies.run("necessity", studies.context(tmp_path / "part"))
    assert asked == ["page-2", "page-3"]
    asked.extend(["full"] * 2)  # nobody is asked a third time: the next question would end it
    studies.run("necessity", studies.context(tmp_path / "part"))
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


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


def test_wrong_records_and_other_settings_are_named(tmp_path: Path) -> None:
    studies.run("necessity", studies.context(tmp_path))
    path = tmp_path / "records.jsonl"
    with pytest.raises(ReadsegError, match=r"records.jsonl was made with other settings \(weights: 'w' there"):
        studies.run(
            "necessity",
            studies.context(tmp_path, models=[studies.model(settings={"model": "tiny", "weights": "other"})]),
        )
    head, first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    page = json.loads(first)
    page["records"][0]["said"] = "yes"
    path.write_text("".join([head, json.dumps(page) + "\n", *others]), encoding="utf-8")
    with pytest.raises(ReadsegError, match=r"records.jsonl, line 2: .*the records of the page"):
        studies.run("necessity", studies.context(tmp_path))
    del page["sum"]  # as what wrote no sum would have it
    path.write_text("".join([head, json.dumps(page) + "\n", *others]), encoding="utf-8")
    with pytest.raises(ReadsegError, match=r"records.jsonl, the records of .*said"):
        studies.run("necessity", studies.context(tmp_path))
