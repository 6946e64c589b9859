"""Asking a model: what it is asked, what comes out, and that nothing depends on interruptions or on processes."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readseg.core.images import load_image
from readseg.core.io import read_lines
from readseg.core.sasp import PointConfig
from readseg.data.readers.refer import RefCoco
from readseg.errors import ReadsegError
from readseg.evaluation import report
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question, open_benchmark
from readseg.evaluation.predictions import PREDICTIONS
from readseg.evaluation.run import FixedAnswer, evaluate
from rule_model import RuleModel, left_or_nothing

SETTINGS = {"model": "rule", "weights": "none"}


def test_scores_are_those_counted_by_hand(data: Path) -> None:
    """gRefCOCO by loops over the reader's own masks: nothing of evaluation is used for the expected numbers."""
    reader = RefCoco(data, "grefcoco|val")
    ious, true_ious, inters, unions, said_true, said_false = [], [], 0, 0, [], []
    for number in range(len(reader)):
        entry = reader[number]
        image = load_image(entry.image)
        for said in entry.expressions:
            target = said.mask() == 1 if said.mask else np.zeros((image.height, image.width), bool)
            claimed = np.zeros_like(target)
            if len(said.text) % 2 == 0:
                claimed[:, : image.width // 3] = True
            inter, union = int((target & claimed).sum()), int((target | claimed).sum())
            inters, unions = inters + inter, unions + union
            ious.append(inter / union if union else 1.0)
            (said_true if said.present else said_false).append(claimed.any())
            true_ious += [ious[-1]] if said.present else []
    row = report.summarise(evaluate(RuleModel(), open_benchmark(data, "grefcoco/val")))
    assert row["see"].count == len(ious) and said_false
    assert row["giou_all"].value == pytest.approx(np.mean(ious), abs=1e-6)
    assert row["giou"].value == pytest.approx(np.mean(true_ious), abs=1e-6)
    assert row["ciou_all"].value == inters / unions
    assert row["answered"].value == pytest.approx(np.mean(said_true))
    assert row["refused"].value == pytest.approx(1 - np.mean(said_false))
    right = [s == 1 for s in said_true] + [s == 0 for s in said_false]
    assert row["see"].value == pytest.approx(np.mean(right))
    assert row["precision_50"].value == pytest.approx(np.mean([iou >= 0.5 for iou in true_ious]))


def test_knowing_everything_is_worth_one(data: Path) -> None:
    for name in ("reasonseg/val", "fprefcoco/val", "grefcoco/testA"):
        benchmark = open_benchmark(data, name, "generated")
        truth = {(load_image(p.image).tobytes(), query.text): query for p in benchmark for query in p.questions}

        def knows(image: Image.Image, text: str, truth: dict[tuple[bytes, str], Question] = truth) -> FixedAnswer:
            query = truth[image.tobytes(), text]
            masks = [np.asarray(target) == 1 for target in query.targets()]
            shape = (0, image.height, image.width)
            return FixedAnswer("", query.present, np.stack(masks) if masks else np.zeros(shape, bool))

        row = report.summarise(evaluate(RuleModel(knows), benchmark))
        assert row["giou_all"].value == pytest.approx(1, abs=1e-3) and row["see"].value == 1


def test_what_a_model_is_asked(data: Path) -> None:
    points = PointConfig(num_points=3)
    for protocol, forced in (("forced", True), ("generated", False)):
        model = RuleModel()
        benchmark = open_benchmark(data, "reasonseg/test", protocol)  # type: ignore[arg-type]
        evaluate(model, benchmark, prompt="points", points=points)
        asked = [(text, options["sentence"]) for texts, options in model.calls for text in texts]
        wanted = [(query.text, query.sentence) for page in benchmark for query in page.questions]
        assert sorted(asked) == sorted(wanted)
        for _, options in model.calls:
            told = {name: options[name] for name in ("asks", "force", "prompt", "points")}
            assert told == {"asks": True, "force": forced, "prompt": "points", "points": points}
    one_call = RuleModel()
    evaluate(one_call, open_benchmark(data, "refcoco/val"))
    assert len(one_call.calls) == len(open_benchmark(data, "refcoco/val")), "all questions of an image together"


def test_a_resumed_run_is_the_same_and_a_finished_one_asks_nothing(data: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark(data, "fprefcoco/val")
    whole = evaluate(RuleModel(), benchmark, folder=tmp_path / "whole", settings=SETTINGS)
    assert whole == evaluate(RuleModel(), benchmark)
    content = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    for kept in (1, 2, len(lines) // 2, len(lines) - 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        part = folder / "predictions-rank0.jsonl"
        part.write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
        assert evaluate(RuleModel(), benchmark, folder=folder, settings=SETTINGS) == whole
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"predictions.jsonl": content}
    # As a kill between the merged file and the removal of the parts leaves it.
    (tmp_path / "whole" / "predictions-rank1.jsonl").write_bytes(b"".join(lines[:3]))
    done = RuleModel()
    assert evaluate(done, benchmark, folder=tmp_path / "whole", settings=SETTINGS) == whole
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["predictions.jsonl"]
    assert not done.calls and (tmp_path / "whole" / "predictions.jsonl").read_bytes() == content


def test_a_larger_sample_goes_on_and_a_smaller_one_is_refused(data: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark(data, "refcocog/train")
    model = RuleModel()
    evaluate(model, benchmark, folder=tmp_path, limit=1)
    assert len(model.calls) == 1
    assert evaluate(model, benchmark, folder=tmp_path, limit=3) == evaluate(RuleModel(), benchmark, limit=3)
    assert len(model.calls) == 3
    content = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(ReadsegError, match="answers to 2 images more"):
        evaluate(model, benchmark, folder=tmp_path, limit=1)
    assert (tmp_path / "predictions.jsonl").read_bytes() == content


def test_other_settings_and_changed_data_are_refused(data: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark(data, "refcoco/testB")
    evaluate(RuleModel(), benchmark, folder=tmp_path, settings=SETTINGS)
    for more in ({"settings": {**SETTINGS, "weights": "b"}}, {"prompt": "seg"}, {"points": PointConfig(num_points=2)}):
        with pytest.raises(ReadsegError, match="other settings"):
            evaluate(RuleModel(), benchmark, folder=tmp_path, **{"settings": SETTINGS, **more})  # type: ignore[arg-type]
    path = tmp_path / "predictions.jsonl"
    text = next(iter(read_lines(path, PREDICTIONS).records.values())).question
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{text}"', '"something else"', 1), encoding="utf-8")
    with pytest.raises(ReadsegError, match="the data have changed"):
        evaluate(RuleModel(), benchmark, folder=tmp_path, settings=SETTINGS)


def test_any_number_of_processes_leaves_parts_that_one_can_finish(data: Path, tmp_path: Path) -> None:
    """Without a group that gathers, each of three ranks does its share and says that the others are missing."""
    benchmark = open_benchmark(data, "R-refcocog/val")
    asked = 0
    for rank in range(3):
        model = RuleModel()
        with pytest.raises(ReadsegError, match="all 3 processes"):
            evaluate(model, benchmark, folder=tmp_path, rank=rank, world=3, settings=SETTINGS)
        asked += len(model.calls)
    assert asked == len(benchmark)
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "predictions-rank2.jsonl"
    last = RuleModel()
    outcomes = evaluate(last, benchmark, folder=tmp_path, settings=SETTINGS)
    assert not last.calls and outcomes == evaluate(RuleModel(), benchmark)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_broken_files_are_named_and_nothing_is_lost(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data / "reason_seg", root / "reason_seg")
    image = sorted((root / "reason_seg" / "ReasonSeg" / "test").glob("*.jpg"))[1]
    pixels = load_image(image)
    benchmark = open_benchmark(root, "reasonseg/test")
    model = RuleModel()
    image.write_bytes(b"no image")
    with pytest.raises(ReadsegError, match=image.name):
        evaluate(model, benchmark, folder=tmp_path / "out")
    image.unlink()
    with pytest.raises(ReadsegError, match=image.name):
        evaluate(model, benchmark, folder=tmp_path / "out")
    kept = read_lines(tmp_path / "out" / "predictions-rank0.jsonl", PREDICTIONS)
    assert len(model.calls) == len(kept.records) == 1
    pixels.resize((pixels.width, pixels.height)).save(image)
    evaluate(model, open_benchmark(root, "reasonseg/test"), folder=tmp_path / "out")
    assert len(model.calls) == len(benchmark)


def page(number: int, target: np.ndarray, hw: tuple[int, int] = (4, 6)) -> ImageQuestions:
    query = Question(f"{number}/0", "the cup", False, True, lambda: [target])
    return ImageQuestions(str(number), np.full((*hw, 3), 9 * number, np.uint8), f"{number}.jpg", "val", (query,))


def few(*pages: ImageQuestions) -> Benchmark:
    return Benchmark("refcoco/val", "forced", "union", tuple(p.name for p in pages), pages.__getitem__)


def test_pixels_that_do_not_count_are_kept_with_the_question(tmp_path: Path) -> None:
    target = np.zeros((4, 6), np.uint8)
    target[:, 2:4], target[0] = 1, 255  # the claimed left third is 4 x 2 pixels, of which a row does not count
    (outcome,) = evaluate(RuleModel(lambda image, _: left_or_nothing(image, "")), few(page(0, target)), folder=tmp_path)
    assert (outcome.intersections, outcome.unions) == ((0,), (12,))
    (kept,) = read_lines(tmp_path / "predictions.jsonl", PREDICTIONS).records.values()
    assert kept.ignored is not None and kept.size == (4, 6)


def test_a_mask_that_does_not_fit_its_image_is_an_error() -> None:
    with pytest.raises(ReadsegError, match="4 x 6, a mask of it 2 x 2"):
        evaluate(RuleModel(), few(page(0, np.ones((2, 2), np.uint8))))


def test_what_a_model_cannot_answer_names_the_image() -> None:
    def fails(image: Image.Image, text: str) -> FixedAnswer:
        raise ReadsegError("the query is too long")

    with pytest.raises(ReadsegError, match=r"^0: the query is too long"):
        evaluate(RuleModel(fails), few(page(0, np.ones((4, 6), np.uint8))))


def test_hidden_parts_are_told_once() -> None:
    def warns(image: Image.Image, text: str) -> FixedAnswer:
        for _ in range(2):  # whatever is looked at twice
            warnings.warn(
                f"the model sees only the centre square of this {image.size} image", UserWarning, stacklevel=1
            )
        if image.getpixel((0, 0)) == (18, 18, 18):
            warnings.warn("something else", UserWarning, stacklevel=1)
        return left_or_nothing(image, text)

    pages = [page(number, np.ones((4, 6), np.uint8)) for number in range(4)]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        evaluate(RuleModel(warns), few(*pages))
    told = [str(one.message) for one in heard]
    assert len(told) == 2 and told[1] == "something else"
    assert told[0].startswith("0.jpg: the model sees only") and "said once" in told[0]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(ReadsegError):
            evaluate(RuleModel(warns), few(*pages), rank=1, world=2)
    assert not heard, "the first process speaks for all"
