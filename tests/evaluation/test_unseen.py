"""What models never saw: which pictures and questions there are, and what is told of refusals and claims."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rule_model
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.predictions import Prediction, Result, read_result, result_of
from readseg.evaluation.report import score_tables, to_json
from readseg.evaluation.run import FixedAnswer, evaluate
from readseg.evaluation.unseen import (
    FIRST_UNSEEN_SEED,
    empty_scene,
    names_what_is_not_there,
    names_what_was_asked,
    unseen_benchmark,
    unseen_page,
)
from readseg.evaluation.webpage import find_picture, to_html, write_report
from readseg.scenes.classes import CLASSES, TRAINED
from readseg.scenes.phrases import REQUESTS
from readseg.scenes.render import BACKGROUNDS, SIZES_HW, make_scene, render
from readseg.viz.tables import to_markdown
from rule_model import RuleModel

FROZEN = "d55d7991b186f302"
"""Of the questions about the first 20 images, taken when the set was made."""
SETTINGS = {"model": "m", "weights": "w", "benchmark": "unseen", "protocol": "generated", "match": "order"}


@cache
def pages() -> list[ImageQuestions]:
    return [unseen_page(number) for number in range(20)]


def refuse(image: Image.Image, text: str) -> FixedAnswer:
    return FixedAnswer("no.", False, np.zeros((0, image.height, image.width), bool))


def claim(image: Image.Image, text: str) -> FixedAnswer:
    return FixedAnswer("the dog [SEG].", True, np.ones((1, image.height, image.width), bool))


def test_the_set_is_fixed() -> None:
    benchmark = unseen_benchmark()
    assert (len(benchmark), benchmark.protocol, benchmark.match) == (250, "generated", "order")
    assert len(set(benchmark.names)) == 250
    words = [(page.name, page.section, query.kind, query.text) for page in pages() for query in page.questions]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    assert digest[:16] == FROZEN, "the set has changed: scores hold for the old one"
    for page, name in zip(pages(), benchmark.names, strict=False):
        assert page.name == name and page.questions


def test_no_seed_is_one_of_training_validation_or_test() -> None:
    seeds = {int(name.rpartition("-")[2]) for name in unseen_benchmark().names}
    assert min(seeds) == FIRST_UNSEEN_SEED == 800_000 and max(seeds) < 1_000_000


def test_four_of_five_images_are_scenes_of_what_was_never_trained() -> None:
    assert [page.section for page in pages()] == (["untrained"] * 4 + ["empty"]) * 4
    for page in pages():
        if page.section != "untrained":
            continue
        scene = make_scene(int(page.name.rpartition("-")[2]), trained=False)
        drawn = render(scene)
        assert np.array_equal(page.image, drawn.image)
        areas = drawn.masks.mean(axis=(1, 2))
        clear = {thing.name for thing, area in zip(scene.objects, areas, strict=True) if area >= 0.01}
        assert not clear & set(TRAINED)
        asked = [name for query in page.questions for name in clear if query.text in category_requests(name)]
        assert len(asked) == len(set(asked)) == len(page.questions) == min(4, len(clear)), page.name
        for query in page.questions:
            assert query.present is False and not query.targets() and query.tags == {"untrained"}
            assert query.sentence is None and query.expected is None


def category_requests(name: str) -> set[str]:
    """A class asked for by its name in every wording of training."""
    thing = CLASSES[name]
    a = ("an " if thing.counted[0] in "aeiou" else "a ") + thing.counted
    be, it = ("are", "them") if thing.is_plural else ("is", "it")
    bank = REQUESTS["category"]
    return {t.format(x=f"the {name}", bare=name, a=a, be=be, it=it) for t in (*bank.short, *bank.long)}


def test_empty_backgrounds_are_of_all_textures_and_sizes() -> None:
    scenes = [empty_scene(number) for number in range(50)]
    assert not any(scene.objects for scene in scenes)
    assert {(s.background, s.height, s.width) for s in scenes[:30]} == {
        (b, *hw) for b in BACKGROUNDS for hw in SIZES_HW
    }
    assert [f"unseen-{scene.seed}" for scene in scenes] == list(unseen_benchmark().names[4::5])
    plain = unseen_page(4)
    assert scenes[0].background == "plain" and plain.section == "empty"
    assert np.asarray(plain.image).std(axis=(0, 1)).max() < 5, "one colour and a little grain"


def test_empty_backgrounds_are_asked_for_what_models_know() -> None:
    names = {form: name for name in TRAINED for form in (name, CLASSES[name].counted)}
    for page in pages():
        if page.section != "empty":
            continue
        asked = {query.kind: query.text for query in page.questions}
        assert list(asked) == ["category", "reasoning", "colour", "relation"]
        assert any(asked["category"] in category_requests(name) for name in TRAINED)
        assert any(told in asked["reasoning"] for name in TRAINED for told in CLASSES[name].descriptions)
        assert re.search(r"\b(red|orange|yellow|green|blue|purple|pink|brown)\b", asked["colour"])
        assert re.search(r"\b(left of|right of|above|over|below|under|next to|nearest|closest)\b", asked["relation"])
        for kind in ("colour", "relation"):
            assert any(re.search(rf"\b{form}\b", asked[kind]) for form in names)
        assert {query.present for query in page.questions} == {False}
        assert not any(query.tags or query.targets() for query in page.questions)


def scored(rule: RuleModel, folder: Path, limit: int = 5) -> Result:
    settings = {"model": "m", "weights": "w"}
    evaluate(rule, unseen_benchmark(), folder=folder, settings=settings, limit=limit)
    return read_result(folder / "predictions.jsonl")


def test_who_refuses_all_is_right_and_who_claims_all_is_wrong(tmp_path: Path) -> None:
    for rule, share in ((refuse, 1.0), (claim, 0.0)):
        (table,) = score_tables([scored(RuleModel(rule), tmp_path / rule.__name__)])
        assert table.title == "Never seen: m" and dict(table.columns) == {"questions": "n", "refused": "refused"}
        rows = {row.name.strip(): row for row in table.rows}
        kinds = ["category", "reasoning", "colour", "relation"]
        assert list(rows) == ["classes never trained", "empty backgrounds", *kinds]
        assert all(row.cells["refused"].value == share for row in table.rows)
        assert [rows[name].cells["questions"] for name in ("empty backgrounds", "colour")] == [4, 1]
        assert np.isnan(rows["classes never trained"].cells["giou"].value)


def test_the_questions_are_asked_as_they_stand_and_a_run_goes_on(tmp_path: Path) -> None:
    model = RuleModel(refuse)
    scored(model, tmp_path, limit=2)
    assert [texts for texts, _ in model.calls] == [[query.text for query in page.questions] for page in pages()[:2]]
    assert all(options["sentence"] is None and not options["force"] for _, options in model.calls)
    result = scored(model, tmp_path, limit=5)
    assert len(model.calls) == 5, "two images were known"
    assert len({outcome.image for outcome in result.outcomes}) == 5


def prediction(place: int, section: str, question: str, answer: str) -> Prediction:
    """Of an image of its own; the answer claims if it has a [SEG]."""
    masks = [np.ones((4, 6), bool)] if "[SEG]" in answer else []
    tags = frozenset({"untrained"} if section == "untrained" else ())
    options = {"question": question, "section": section, "kind": "category", "tags": tags}
    return rule_model.prediction(f"i{place}/0", False, answer, masks, **options)


SAID = (
    ("untrained", "find the kangaroo.", "the kangaroo is not here."),
    ("untrained", "find the pig.", "the broccoli is not here, but there is a red cow."),
    ("untrained", "the axe", "the axe [SEG]."),
    ("untrained", "a bell?", "the bee is not here."),
    ("empty", "the cow", "the cow is not here, but there is a dog."),
    ("empty", "the car", "the car [SEG]."),
)


def made(*said: tuple[str, str, str]) -> Result:
    rows = [prediction(place, *one) for place, one in enumerate(said)]
    return result_of(SETTINGS, {"images": len(rows), "of": 250}, rows)


def test_refusals_of_another_thing_and_inventions_in_words_are_told() -> None:
    (table,) = score_tables([made(*SAID)])
    shares = [(row.cells["questions"], row.cells["refused"].value) for row in table.rows]
    assert shares == [(4, 0.75), (2, 0.5), (2, 0.5)]
    told = "\n".join(table.notes)
    assert "refused by their name: 0.250 [" in told, "one of the four questions"
    assert "go on to name a thing that is not there: 0.500 [" in told, "two of the four refusals"
    assert "samples, not whole benchmarks (images): unseen 6 of 250" in told
    markdown = to_markdown(table)
    assert "| classes never trained | 4 | 0.750 [" in markdown and "IoU" not in markdown
    assert all(row["giou"]["value"] is None for row in to_json([made(*SAID)], [table])["tables"][0]["rows"])


def test_nothing_is_told_of_what_is_not_there() -> None:
    (claims,) = score_tables([made(*(one for one in SAID if "[SEG]" in one[2]))])
    assert "refused by their name: 0.000" in "".join(claims.notes)
    assert not any("go on to name" in note for note in claims.notes), "there is no refusal"
    (empty,) = score_tables([made(*SAID[4:])])
    assert [row.name for row in empty.rows] == ["empty backgrounds", "  category"]
    assert not any("by their name" in note for note in empty.notes)


def test_models_stand_one_after_the_other() -> None:
    one, other = made(*SAID), made(*SAID[:4])
    titles = [s.title for s in score_tables([replace(one, settings={**SETTINGS, "prompt": "seg"}), other])]
    assert titles == ["Never seen: m", "Never seen: m, [SEG] only"]


@pytest.mark.parametrize(
    ("question", "answer", "same"),
    [
        ("find the palm tree.", "the tree is not here.", False),
        ("find the palm tree.", "the palm tree is not here.", True),
        ("a pair of scissors?", "the scissors are not here.", True),
        ("Gloves, please", "the glove is not here.", True),
        ("find the ant.", "i want the pants.", False),
        ("", "", False),
    ],
)
def test_whether_an_answer_names_what_was_asked(question: str, answer: str, same: bool) -> None:
    assert names_what_was_asked(question, answer) is same


@pytest.mark.parametrize(
    ("answer", "invents"),
    [
        ("the cow is not here.", False),
        ("The cow is not here, but there are dogs.", True),
        ("the trousers are not here, but there is a yellow pair of trousers.", True),
        ("the cow is not here, but there is a kangaroo.", False),
        ("the cow is not here, but there is a palm tree.", False),
        ("the cow is not here, but there is a tree.", False),
        ("but there is nothing", False),
    ],
)
def test_whether_a_refusal_invents(answer: str, invents: bool) -> None:
    assert names_what_is_not_there(answer) is invents


def test_the_page_shows_pictures_and_no_truth_that_nobody_knows(tmp_path: Path) -> None:
    result = scored(RuleModel(claim), tmp_path / "claims")
    for said in (result.outcomes[0], result.outcomes[-1]):
        page = next(page for page in pages() if page.name == said.image)
        assert np.array_equal(np.asarray(find_picture(result, said)), page.image)
        elsewhere = replace(said, image="unseen-5")
        assert find_picture(result, elsewhere) is None
    tables = score_tables([result])
    cards = to_html([result], tables).split("<article>")[1:]
    assert len(cards) == 12, "there is nothing but claims: they take all the room"
    assert sum("unseen-800004" in card for card in cards) >= 1, "the empty one is among them"
    for card in cards:
        empty = "unseen-800004" in card
        assert 'alt="answer"' in card and ('alt="truth"' in card) == empty
        assert ("claimed, but it is not there" in card) == empty
        assert ("claimed, but it was never learned" in card) != empty
    write_report(tmp_path / "report", [result], tables)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]
