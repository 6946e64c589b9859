"""The report as files: which cases are shown, that all text is escaped, and that the page needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rule_model
from readseg.core.masks import encode_rle
from readseg.evaluation.benchmarks import open_benchmark
from readseg.evaluation.predictions import Prediction, Result, read_result, result_of
from readseg.evaluation.report import score_tables
from readseg.evaluation.run import evaluate
from readseg.evaluation.scenes import SceneSet, scene_case
from readseg.evaluation.webpage import find_picture, to_html, verdict_of, worst_and_best, write_report
from rule_model import RuleModel

HW = (10, 10)
SETTINGS = {"model": "m", "weights": "w", "benchmark": "fprefcoco/val", "protocol": "generated", "match": "union"}


def rows(count: int) -> np.ndarray:
    """The first `count` of ten rows: IoU with all ten is count / 10."""
    mask = np.zeros(HW, bool)
    mask[:count] = True
    return mask


def prediction(image: str, k: int, present: bool, claimed: int, text: str = "the cup") -> Prediction:
    return rule_model.prediction(
        f"{image}/{k}",
        present,
        f"{text} [SEG]." if claimed else "no.",
        [rows(claimed)] if claimed else [],
        image=f"{image}.png",
        size=HW,
        question=text,
        targets=(encode_rle(rows(10)),) if present else (),
    )


def result(*predictions: Prediction, **about: object) -> Result:
    return result_of(SETTINGS, about, predictions)


def test_the_worst_are_of_all_kinds_and_the_best_come_last() -> None:
    inventions = [prediction(f"i{k}", 0, False, k + 1) for k in range(5)]
    refusals = [prediction(f"r{k}", 0, True, 0) for k in range(5)]
    masks = [prediction(f"m{k}", 0, True, k + 1) for k in range(9)]
    right = [prediction(f"n{k}", 0, False, 0) for k in range(5)]
    worst, best = worst_and_best(result(*right, *masks, *refusals, *inventions), 6)
    assert [e.image for e in worst] == ["i4.png", "i3.png", "r0.png", "r1.png", "m0.png", "m1.png"]
    assert [verdict_of(e) for e in worst] == ["invented", "invented", "refused", "refused", "mask", "mask"]
    assert [round(e.iou, 3) for e in worst] == [0, 0, 0, 0, 0.1, 0.2]
    assert [e.image for e in best] == ["m8.png", "m7.png", "m6.png", "m5.png", "m4.png", "n0.png"]
    assert verdict_of(best[-1]) == "refused rightly"


def test_other_images_come_before_a_second_question_about_one() -> None:
    worst, best = worst_and_best(
        result(*(prediction("a", k, True, 1 + k) for k in range(3)), prediction("b", 0, True, 9)), 2
    )
    assert [e.key for e in worst] == ["a/0", "b/0"]
    assert [e.key for e in best] == ["a/2", "a/1"]
    assert worst_and_best(result(), 3) == ([], [])


def write(folder: Path, *results: Result) -> None:
    write_report(folder, results, score_tables(results))


class Tags(HTMLParser):
    """Every element of a page with its attributes; fails where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


NASTY = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> & \ud800 \x1b[31m"


def test_text_of_data_and_models_is_escaped(tmp_path: Path) -> None:
    bad = prediction("a", 0, True, 3, NASTY)
    bad = replace(bad, image=NASTY, answer=NASTY)
    settings = {**SETTINGS, "model": NASTY, "benchmark": "fprefcoco/" + NASTY, "prompt": NASTY}
    nasty = result_of(settings, {"data": NASTY, "images": 1, "of": 2}, [bad])
    write(tmp_path, nasty, result(prediction("b", 0, True, 2)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert not page.open
    names = [name for name, _ in page.found]
    assert "script" not in names and "img" not in names, "the picture is not there: only an injected one could be"
    assert "&lt;script&gt;" in text and "onerror" not in {key for _, attrs in page.found for key in attrs}
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_the_page_is_one_file_with_pictures_of_both(data: Path, tmp_path: Path) -> None:
    evaluate(RuleModel(), open_benchmark(data, "fprefcoco/val"), folder=tmp_path / "p", settings={"model": "m"})
    made = read_result(tmp_path / "p" / "predictions.jsonl")
    write(tmp_path / "out", made)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert not page.open
    sources = [attrs["src"] or "" for name, attrs in page.found if name == "img"]
    worst, best = worst_and_best(made, 12)
    assert len(sources) == 2 * len([*worst, *best]) > 10
    for source in sources:
        kind, _, content = source.partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:image/jpeg;base64" and max(picture.size) <= 360
    assert not [name for name, _ in page.found if name in ("link", "script", "iframe")]
    assert not re.search(r"""(src|href|url)\s*[=(]\s*['"]?(http|//|file:)""", text)
    assert "answer: no mask" in text and "truth: no mask" in text
    assert "claimed, but it is not there" in text and "refused, but it is there" in text
    for heading in ("See", "cIoU, all", "Worst cases", "Best cases"):
        assert heading in text


def test_the_picture_shows_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Image.new("RGB", (10, 10), (120, 120, 120))
    monkeypatch.setattr("readseg.evaluation.webpage.find_picture", lambda *_: grey)
    text = to_html([result(prediction("a", 0, True, 5))], [])
    answer, truth = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
        for content in re.findall(r'base64,([^"]+)"', text)
    )
    half = len(answer) // 2
    assert np.abs(answer[: half - 40] - truth[: half - 40]).mean() < 12
    assert np.abs(answer[half + 40 :] - truth[half + 40 :]).mean() > 40


def test_pictures_are_looked_for_below_the_folder_only(data: Path, tmp_path: Path) -> None:
    evaluate(RuleModel(), open_benchmark(data, "refcoco/testA"), folder=tmp_path, settings={"model": "m"})
    made = read_result(tmp_path / "predictions.jsonl")
    one = made.outcomes[0]
    assert find_picture(made, one) is not None
    assert find_picture(made, one, tmp_path) is None
    other_size = replace(one, size=(3, 3))
    assert find_picture(made, other_size) is None
    for place in (str(data / one.image), f"../{data.name}/{one.image}", "none.jpg", "\x00"):
        assert find_picture(made, replace(one, image=place)) is None
    nowhere = result_of(made.settings, {"data": 3}, [one])
    assert find_picture(nowhere, one) is None


def test_scenes_are_drawn_again() -> None:
    which = SceneSet(scenes=4, questions=2)
    drawn = scene_case(3, which).picture.image
    settings = {"benchmark": "scenes", "protocol": "generated", "match": "order", "first_seed": 500_000, "questions": 2}
    for name, there in (("scene-500003", True), ("scene-500004", False), ("scene-x", False), ("scene-1", False)):
        size = drawn.shape[:2] if there else (3, 3)
        made = result_of(settings, {}, [rule_model.prediction(f"{name}/0", None, "there.", size=size)])
        found = find_picture(made, made.outcomes[0])
        assert np.array_equal(found, drawn) if there else found is None  # type: ignore[arg-type]


def test_a_report_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = result(prediction("a", 0, True, 5))
    write(tmp_path, one)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("readseg.evaluation.webpage.to_html", lambda *_: 3)
    with pytest.raises(TypeError):
        write(tmp_path, one)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
