"""Wide banks: large, apart from what is held out, and filled to the last placeholder."""

from __future__ import annotations

import re

import numpy as np
import pytest

from readseg.data.phrases import EXPRESSIONS, RELATIONS, REQUESTS, fields
from readseg.data.wide_phrases import (
    UNKNOWN_NOUNS,
    WIDE_EXPRESSIONS,
    WIDE_RELATIONS,
    WIDE_REQUESTS,
    unknown_noun,
    wide_expression,
)
from readseg.scenes.classes import CLASSES, GROUPS, WIDE_GROUPS

FILL = {"x": "the cows", "be": "are", "it": "them", "bare": "cow", "a": "a cow", "rel": "left of the car"}
FILLERS = r"\b(please|can you|could you|would you|i want you to|now|for me|here|in (this|the) (image|picture|scene))\b"


def plain(template: str) -> str:
    return re.sub(r"[^a-z{}]+", " ", template.lower()).strip()


def core(template: str) -> str:
    return plain(re.sub(FILLERS, "", template))


def test_there_is_one_for_each_bank() -> None:
    assert WIDE_REQUESTS.keys() == REQUESTS.keys()
    assert WIDE_EXPRESSIONS.keys() == EXPRESSIONS.keys() - {"description"}
    assert WIDE_RELATIONS.keys() == RELATIONS.keys()


@pytest.mark.parametrize("kind", WIDE_REQUESTS)
def test_requests_are_many_and_none_is_held_out(kind: str) -> None:
    found = {core(wording) for wording in WIDE_REQUESTS[kind].all()}
    assert len(found) > 1000
    assert not found & {core(wording) for wording in REQUESTS[kind].held_out}


@pytest.mark.parametrize(("wide", "banks"), [(WIDE_EXPRESSIONS, EXPRESSIONS), (WIDE_RELATIONS, RELATIONS)])
def test_no_expression_is_held_out_and_each_says_as_much(wide: dict, banks: dict) -> None:
    for name, wordings in wide.items():
        assert len(set(wordings)) == len(wordings) >= 7
        assert not {plain(w) for w in wordings} & {plain(w) for w in banks[name].held_out}
        for wording in wordings:
            needed = {"n": "n", "ns": "n", "each": "n"}
            words = {needed.get(word, word) for word in fields(wording)}
            assert words == {needed.get(word, word) for word in fields(banks[name].short[0])}, wording


@pytest.mark.parametrize("kind", WIDE_REQUESTS)
def test_drawn_wordings_are_whole(kind: str) -> None:
    rng = np.random.default_rng(0)
    drawn = [WIDE_REQUESTS[kind].draw(rng, FILL) for _ in range(300)]
    assert len(set(drawn)) > 150
    for text in drawn:
        assert not re.search(r"[{}]", text)
        assert any(FILL[word] in text for word in ("x", "bare", "rel")), text


def test_a_wording_that_needs_words_not_given_is_passed_over() -> None:
    rng, words = np.random.default_rng(0), {word: FILL[word] for word in ("x", "be", "it")}
    assert all("cows" in WIDE_REQUESTS["relation"].draw(rng, words) for _ in range(300))


def test_a_word_or_two_of_some_wordings_are_made_up() -> None:
    rng = np.random.default_rng(0)
    known = {word for wording in WIDE_REQUESTS["size"].all() for word in wording.split(" ")}
    drawn = [WIDE_REQUESTS["size"].draw(rng, {"x": "{x}", "be": "{be}", "it": "{it}"}) for _ in range(400)]
    strange = [sum(word not in known for word in text.split(" ")) for text in drawn]
    assert max(strange) == 2 and 0.15 < np.mean([n > 0 for n in strange]) < 0.35


def test_made_up_words_never_stand_for_what_an_expression_says() -> None:
    rng, words = np.random.default_rng(0), {"n": "{n}", "ns": "{ns}", "each": "{each}", "c": "{c}", "rel": "{rel}"}
    for way, strange in (("tint", True), ("relation", True), ("leftmost", False), ("smaller", False)):
        drawn = {wide_expression(way, rng, words) for _ in range(300)}
        assert (drawn > set(WIDE_EXPRESSIONS[way])) is strange
        assert all(fields(text) & {"n", "ns", "each"} for text in drawn)


def test_unknown_nouns_are_no_words_of_any_scene() -> None:
    known = [f"{c.name} {c.plural} {c.counted}" for c in CLASSES.values()]
    known += [text for c in CLASSES.values() for text in (*c.descriptions, *c.held_out_descriptions)]
    known += [f"{g.singular} {g.plural}" for g in (*GROUPS.values(), *WIDE_GROUPS.values())]
    words = set(re.findall("[a-z]+", " ".join(known)))
    assert len(set(UNKNOWN_NOUNS)) == len(UNKNOWN_NOUNS) > 100
    assert not words & {*UNKNOWN_NOUNS, *(f"{noun}s" for noun in UNKNOWN_NOUNS)}
    rng = np.random.default_rng(0)
    drawn = [unknown_noun(rng) for _ in range(400)]
    assert 0.4 < np.mean([noun in UNKNOWN_NOUNS for noun in drawn]) < 0.6
