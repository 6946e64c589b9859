"""Questions and answers of training: grammatical for names of any number and form, and for sentences."""

from __future__ import annotations

import re

import numpy as np
import pytest

from readseg.data.templates import (
    TEMPLATES,
    bare_noun,
    dialogue_turns,
    make_confirmation,
    make_question,
    make_refusal,
    make_turn,
    noun_phrase,
)
from readseg.data.types import Expression
from readseg.errors import ReadsegError
from readseg.model.families import READ
from readseg.model.prompt_format import inference_question

MASK = np.ones((4, 6), np.uint8)
SENTENCE = "Where could I sit down?"
PLACEHOLDERS = {
    "name_questions": {"x", "the"},
    "sentence_requests": {"x"},
    "confirmations": set(),
    "denials": {"x"},
    "corrections": {"x", "y"},
    "plain_denials": set(),
    "plain_corrections": {"y"},
}
AGREES = re.compile(r"\b(there is|there are|an?|it is|they are|is it) \{", re.IGNORECASE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def many(make: object, count: int = 400) -> set[str]:
    draw = rng()
    return {make(draw) for _ in range(count)}  # type: ignore[operator]


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_banks_are_large_and_hold_what_they_may(name: str) -> None:
    bank, allowed = TEMPLATES[name], PLACEHOLDERS[name]
    plain = {re.sub(r"\W+", " ", wording.lower()).strip() for wording in bank}
    assert len(bank) == len(set(bank)) >= 20 and len(plain) >= 20
    for wording in bank:
        used = set(re.findall(r"\{(\w*)\}", wording))
        assert used <= allowed, wording
        assert len(used) == 1 if name == "name_questions" else used == allowed, wording
        assert wording.count("[SEG]") == (name == "confirmations"), wording
        assert not AGREES.search(wording), f"{wording}: does not fit every name"


def test_the_first_of_each_bank_is_what_scores_are_made_with() -> None:
    name, sentence = (inference_question(READ.conversation, text) for text in ("wall", SENTENCE))
    for kind, scored, make in (
        ("name_questions", name, lambda draw: make_question("wall", is_sentence=False, rng=draw)),
        ("sentence_requests", sentence, lambda draw: make_question(SENTENCE, is_sentence=True, rng=draw)),
        ("confirmations", "Sure, the segmentation result is [SEG].", make_confirmation),
    ):
        drawn = [make(rng(seed)) for seed in range(400)]
        assert 0.2 < drawn.count(scored) / len(drawn) < 0.36
        assert len(set(drawn)) == len(TEMPLATES[kind])


@pytest.mark.parametrize(
    ("text", "with_article", "without"),
    [
        ("wall", "the wall", "wall"),
        ("stairs", "the stairs", "stairs"),
        ("the left cow", "the left cow", "left cow"),
        ("A man with an umbrella.", "A man with an umbrella", "man with an umbrella"),
        ("an apple", "an apple", "apple"),
        ("man in blue on left", "the man in blue on left", "man in blue on left"),
        ("the handle of the cup", "the handle of the cup", "handle of the cup"),
        ("another one", "another one", None),
        ("two men", "two men", None),
        ("2 men", "2 men", None),
        ("3rd man", "the 3rd man", "3rd man"),
        ("his hand", "his hand", None),
        ("something to sit on", "something to sit on", None),
        ("on the left", "what is on the left", None),
        ("wearing red", "what is wearing red", None),
        ("sitting on a bench", "what is sitting on a bench", None),
        ("standing man", "the standing man", "standing man"),
        ("building on the left", "the building on the left", "building on the left"),
        ("is blue", "what is blue", None),
        ("not the dog", "what is not the dog", None),
        ("left", "the left one", None),
        ("dark blue", "the dark blue one", None),
        ("theatre", "the theatre", "theatre"),
        ("  red \n  cow ", "the red cow", "red cow"),
    ],
)
def test_names_as_phrases(text: str, with_article: str, without: str | None) -> None:
    assert noun_phrase(text) == with_article
    assert bare_noun(text) == without


def test_questions_hold_the_text_as_it_is() -> None:
    for question in many(lambda draw: make_question("the Eiffel Tower {x}", is_sentence=False, rng=draw)):
        assert question.count("the Eiffel Tower {x}") == 1
        assert "the the" not in question
    for question in many(lambda draw: make_question("where could I sit", is_sentence=True, rng=draw)):
        assert "where could I sit." in question
    assert "“Where?” Please output segmentation mask." in many(
        lambda draw: make_question("“Where?”", is_sentence=True, rng=draw)
    )


@pytest.mark.parametrize(
    ("text", "instead", "noun", "told"),
    [
        ("the left cow", "", "left cow", ""),
        ("stairs", "", "stairs", ""),
        ("an apple", "", "apple", ""),
        ("cow", "red bus", "cow", "the red bus"),
        ("the cow", "two cats", "cow", "two cats"),
    ],
)
def test_denials_have_no_article_and_corrections_say_what_is_there(
    text: str, instead: str, noun: str, told: str
) -> None:
    for answer in many(lambda draw: make_refusal(text, is_sentence=False, instead=instead, rng=draw)):
        assert re.search(rf"\b(no|any) {noun}\b", answer, re.IGNORECASE), answer
        assert told in answer and "the the" not in answer


@pytest.mark.parametrize(("text", "sentence"), [(SENTENCE, True), ("on the left", False), ("two men", False)])
def test_what_does_not_follow_no_is_not_repeated(text: str, sentence: bool) -> None:
    assert many(lambda draw: make_refusal(text, is_sentence=sentence, rng=draw)) == set(TEMPLATES["plain_denials"])
    corrections = many(lambda draw: make_refusal(text, is_sentence=sentence, instead="a cow", rng=draw))
    assert corrections == {wording.replace("{y}", "a cow") for wording in TEMPLATES["plain_corrections"]}


def test_turns_are_what_the_expression_says() -> None:
    tags = frozenset({"short"})
    there = make_turn(Expression("cow", False, True, lambda: MASK, tags=tags), MASK, rng())
    assert (there.present, there.kind, there.tags) == (True, "confirmation", tags)
    assert there.masks[0] is MASK and there.answer.count("[SEG]") == 1
    for instead, kind in (("", "denial"), ("the dog", "correction")):
        false = make_turn(Expression("cow", False, False, instead=instead), None, rng())
        assert (false.present, false.kind, false.masks) == (False, kind, ())
        assert ("the dog" in false.answer) == bool(instead)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (Expression("the [SEG] cow", False, True, lambda: MASK), r"'the \[SEG\] cow' holds \[SEG\]"),
        (Expression("cow", False, False, instead="a [SEG]"), r"'a \[SEG\]' holds \[SEG\]"),
        (Expression("?!", False, True, lambda: MASK), "has no word"),
    ],
)
def test_texts_that_cannot_be_said(expression: Expression, said: str) -> None:
    with pytest.raises(ReadsegError, match=said):
        make_turn(expression, MASK if expression.present else None, rng())


def test_conversations_stay_as_they_are() -> None:
    told = dialogue_turns((("How many?", "Two."), ("What is [SEG]?", "A token.")))
    assert [(t.question, t.answer, t.masks, t.present, t.kind) for t in told] == [
        ("How many?", "Two.", (), None, "words"),
        ("What is [SEG]?", "A token.", (), None, "words"),
    ]
    with pytest.raises(ReadsegError, match=r"'It is \[SEG\]\.' holds \[SEG\]"):
        dialogue_turns((("Where?", "It is [SEG]."),))
