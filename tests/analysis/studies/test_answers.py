"""Answers side by side: which are shown, how each of them went, and the sheet that they stand on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rule_model
import studies
from readseg.analysis.studies.answers import NARROWEST, WIDTH, answer_sheet, answers_table, judge, select_examples
from readseg.analysis.studies.knowledge import SystemResult
from readseg.analysis.study import StudyContext
from readseg.core.masks import encode_rle
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.predictions import Outcome, Result, score
from readseg.evaluation.run import FixedAnswer, System, run_systems
from readseg.evaluation.scenes import SceneSet, scene_benchmark
from small import picture


def result(share: float = 0.5) -> Result:
    """Draws a share of every target, of each question after the first of a page; of the first it draws nothing."""

    def answers(page: ImageQuestions, _: object) -> list[FixedAnswer]:
        said = []
        for k, query in enumerate(page.questions):
            masks = [np.asarray(target) == 1 for target in query.targets()]
            for mask in masks:
                mask[:, int(share * studies.HW[1]) :] = False
            masks = masks if k else []
            stacked = np.stack(masks) if masks else np.zeros((0, *studies.HW), bool)
            said.append(FixedAnswer(f"answer {k}", bool(masks), stacked))
        return said

    benchmark = studies.benchmark()
    return run_systems([System("s", {"model": "s"}, answers)], benchmark)["s"]


def test_worst_and_best() -> None:
    found = result()
    of = {o.key: o for o in found.outcomes}
    worst, best = select_examples(found, 3, "worst"), select_examples(found, 3, "best")
    assert "page-0/0" in worst, "a thing that is there and was refused"
    assert all(of[key].present is not None for key in (*worst, *best))
    mixed = select_examples(found, 4)
    assert mixed == ["page-3/2", "page-2/1", "page-1/1"], "IoU 1/2, then both of 1: there are only three masks"
    assert select_examples(found, 6)[:3] == worst and select_examples(found, 2) == ["page-3/2", "page-1/1"]


def test_a_lot_is_the_same_for_a_seed_and_spreads_over_images() -> None:
    found = result()
    assert select_examples(found, 4, "random", 1) == select_examples(found, 4, "random", 1)
    lots = {tuple(select_examples(found, 4, "random", seed)) for seed in range(8)}
    assert len(lots) > 1
    for keys in lots:
        assert len({key.partition("/")[0] for key in keys}) == 4, "each of another image"
        assert list(keys) == sorted(keys)
    asking = [o.key for o in found.outcomes if o.present is not None]
    assert select_examples(found, 99, "random") == asking and len(asking) == len(found.outcomes) - 1


def test_answers_in_words() -> None:
    found = result()
    told = {o.key: judge(o) for o in found.outcomes if o.present is not None}
    assert told["page-0/0"].words == "refused, but it is there" and math.isnan(told["page-0/0"].iou)
    assert told["page-0/1"].words == "refused, rightly"
    right = studies.PAGES[2][1][2][0] == 1
    half = right.copy()
    half[:, 30:] = False
    assert told["page-2/1"].iou == pytest.approx(half.sum() / right.sum(), abs=1e-6)
    assert told["page-2/1"].words == f"IoU {half.sum() / right.sum():.2f}"

    full = np.ones((1, *studies.HW), bool)
    words = {}
    for name, mask in (("c", full), ("e", ~full)):
        claims = [FixedAnswer("x [SEG]", True, mask)] * 9
        system = System(name, {"model": name}, lambda page, _, claims=claims: claims[: len(page.questions)])  # type: ignore[misc]
        answers = run_systems([system], studies.benchmark())[name].outcomes
        words[name] = {o.key: judge(o).words for o in answers}
    assert words["c"]["page-1/0"] == "a mask, but it is not there" and words["c"]["page-2/0"].endswith(", mean of 2")
    assert words["e"]["page-0/0"] == "an empty mask, but it is there"
    assert words["e"]["page-0/1"] == "an empty mask, rightly"


def test_the_table_has_the_same_numbers() -> None:
    systems = [SystemResult("half", result(0.5), "a"), SystemResult("most", result(0.9), "b")]
    table = answers_table(systems, ["page-3/2", "page-0/0"], "two of them")
    assert [row.name for row in table.rows] == [studies.CAT, studies.CAT]
    first, second = (row.cells for row in table.rows)
    assert first["half: iou"] < first["most: iou"] and first["half: answer"] == "answer 2"  # type: ignore[operator]
    assert second["half: went"] == "refused, but it is there" and second["truth"] == "it is there"
    assert "two of them" in table.notes and "not a score" in table.notes[-1]


def test_questions_without_objects_are_an_error() -> None:
    two = FixedAnswer("two", None, np.zeros((0, *studies.HW), bool))
    counting = studies.benchmark([[(studies.COUNT, None, [])]])
    words = run_systems([System("s", {"model": "s"}, lambda page, _: [two])], counting)["s"]
    with pytest.raises(ReadsegError, match="none of its questions asks for an object"):
        select_examples(words, 3)


def rows(folder: Path) -> list[dict[str, Any]]:
    (table,) = json.loads((folder / "answers.json").read_text())["tables"]
    return list(table["rows"])


def drawn(folder: Path) -> np.ndarray:
    with Image.open(folder / "answers.png") as sheet:
        return np.asarray(sheet)


def test_a_sheet_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for number in range(4):  # the files that the benchmark's questions are about
        picture(*studies.HW, seed=number).save(data / f"page-{number}", format="PNG")
    context = StudyContext(
        studies.benchmark(about={"data": str(data)}), [studies.model("one"), studies.model("two")], out, 2, None
    )
    studies.run("answers", context, rows=3, pick="random", seed=5)
    assert str(out / "answers.png") in capsys.readouterr().out
    found = rows(out)
    assert len(found) == 3
    for row in found:
        assert row["cells"]["one: answer"] == row["cells"]["two: answer"]
        assert row["cells"]["one: went"] == row["cells"]["two: went"]
    sheet = drawn(out)
    assert sheet.shape[1] == 1200
    studies.run("answers", context, rows=3, pick="random", seed=5)
    assert np.array_equal(sheet, drawn(out))
    # Noise has many colours; where the images are not to be had there is one grey, and words.
    studies.run("answers", replace(context, data=tmp_path / "nothing"), rows=3, pick="random", seed=5)
    colours = [len(np.unique(pixels[:, :300].reshape(-1, 3), axis=0)) for pixels in (sheet, drawn(out))]
    assert colours[0] > 1000 > colours[1]


def test_a_sheet_of_scenes(tmp_path: Path) -> None:
    context = StudyContext(scene_benchmark(SceneSet(scenes=2)), [studies.model()], tmp_path, None, None)
    studies.run("answers", context, rows=4)
    found = rows(tmp_path)
    assert 1 <= len(found) <= 4 and all(row["cells"]["key"].startswith("scene-50000") for row in found)
    assert "the worst answers of tiny, then its best ones" in (tmp_path / "answers.md").read_text(encoding="utf-8")
    assert drawn(tmp_path).shape[1] == 1200


def test_masks_and_refusals_are_told(tmp_path: Path) -> None:
    studies.run("answers", studies.context(tmp_path), rows=9, pick="random")
    went = {row["cells"]["key"]: row["cells"]["tiny: went"] for row in rows(tmp_path)}
    assert len(went) == 9
    told = {
        "page-0/1": "refused, rightly",
        "page-1/0": "a mask, but it is not there",
        "page-1/1": "refused, but it is there",
    }
    assert all(went[key] == words for key, words in told.items() if key in went) and told.keys() & went.keys()
    iou = next(row["cells"]["tiny: iou"] for row in rows(tmp_path) if row["cells"]["key"] == "page-2/0")
    assert went["page-2/0"] == f"IoU {iou:.2f}, mean of 2"


HW = (60, 80)
GREY = Image.new("RGB", (HW[1], HW[0]), (90, 90, 90))


def strip(left: int, right: int) -> np.ndarray:
    found = np.zeros((1, *HW), bool)
    found[:, 10:50, left:right] = True
    return found


def line(*masks: np.ndarray, words: str = "", **changes: Any) -> tuple[Image.Image | None, list[Outcome]]:
    """A picture with answers; `changes` are its picture, or fields of the question."""
    changes = {"picture": GREY, "size": HW, "targets": (encode_rle(strip(0, 20)[0]),), **changes}
    shown = changes.pop("picture")
    answers = [rule_model.prediction("a/0", True, words, list(found), **changes) for found in masks]
    return shown, [score(answer, "order") for answer in answers]


def columns(sheet: Image.Image, count: int) -> list[np.ndarray]:
    width = sheet.width // count
    pixels = np.asarray(sheet).astype(int)
    return [pixels[:, k * width : (k + 1) * width] for k in range(count)]


def orange(pixels: np.ndarray) -> np.ndarray:
    """Where the first mask's tint is."""
    return (pixels[..., 0] > pixels[..., 2] + 60) & (pixels[..., 0] > pixels[..., 1])


def test_masks_are_in_their_columns() -> None:
    sheet = answer_sheet([line(strip(60, 80), strip(0, 0))], ["A", "B"], title="t")
    assert sheet.width == WIDTH
    image, truth, first, second = columns(sheet, 4)
    assert not orange(image).any() and not orange(second).any()
    assert orange(truth).nonzero()[1].mean() < truth.shape[1] / 3
    assert orange(first).nonzero()[1].mean() > 2 * first.shape[1] / 3
    # The rest of a picture with a mask is faded, and of one without it is not.
    assert (image == 90).all(axis=-1).sum() > 10_000 and (second == 90).all(axis=-1).sum() > 10_000
    assert not (first == 90).all(axis=-1)[(image == 90).all(axis=-1)].any()


def test_words_and_rows_are_there() -> None:
    plain = answer_sheet([line(strip(0, 9))], ["A"], title="")
    worded = answer_sheet([line(strip(0, 9), words="the answer")], ["A"], title="")
    titled = answer_sheet([line(strip(0, 9))], ["A"], title="a title", note="a note")
    two = answer_sheet([line(strip(0, 9))] * 2, ["A"], title="")
    assert worded.tobytes() != plain.tobytes() and worded.size == plain.size
    assert titled.height > plain.height + 40 and two.height > 1.7 * plain.height - 60
    assert answer_sheet([line(strip(0, 9))], ["A"], title="").tobytes() == plain.tobytes()


def test_many_systems_make_it_wider() -> None:
    names = [f"system {k}" for k in range(6)]
    sheet = answer_sheet([line(*[strip(0, 9)] * 6)], names, title="many")
    assert sheet.width == 8 * NARROWEST


def test_pixels_that_do_not_count_are_hidden_in_the_truth_alone() -> None:
    ignored = np.zeros(HW, bool)
    ignored[:, 60:] = True
    dark = Image.new("RGB", (HW[1], HW[0]), (0, 0, 0))
    empty = line(strip(0, 9)[:0], picture=dark, ignored=encode_rle(ignored), targets=())
    image, truth, first = columns(answer_sheet([empty], ["A"], title=""), 3)
    grey = [(part == 190).all(axis=-1)[100:250].sum() for part in (image, truth, first)]
    assert grey[1] > 5_000 and grey[0] < 100 and grey[2] < 100


def test_an_image_that_is_gone_is_said_to_be() -> None:
    sheet = answer_sheet([line(strip(60, 80), picture=None)], ["A"], title="")
    image, truth, first = columns(sheet, 3)
    assert orange(truth).any() and orange(first).any(), "masks are shown without it"
    white = Image.new("RGB", (HW[1], HW[0]), (255, 255, 255))
    there = columns(answer_sheet([line(strip(60, 80), picture=white)], ["A"], title=""), 3)[0]
    assert (image[100:] < 100).sum() > (there[100:] < 100).sum() + 500, "it is told beneath"


@pytest.mark.parametrize("hw", [(3, 400), (400, 3), (1, 1)])
def test_any_shape_of_image(hw: tuple[int, int]) -> None:
    found = np.ones((1, *hw), bool)
    shown = line(found, words="a" * 500, picture=Image.new("RGB", hw[::-1]), size=hw, targets=(encode_rle(found[0]),))
    assert answer_sheet([shown], ["A"], title="x").width == WIDTH
