"""Templates: enough of them, held-out ones apart, extra ones apart from those, every placeholder filled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest

from readseg.scenes.classes import CLASSES, GROUPS, WIDE_GROUPS
from readseg.scenes.phrases import (
    EXPRESSIONS,
    EXTRA_REQUESTS,
    RELATIONS,
    REQUESTS,
    TEXT_QUESTIONS,
    UNKNOWN_NOUNS,
    TemplateBank,
    TemplateGrammar,
    extra_expression,
    placeholders,
    templates,
    unknown_noun,
)

KINDS = {**REQUESTS, **TEXT_QUESTIONS}
REFERRING = {**EXPRESSIONS, **RELATIONS}
BANKS = {**KINDS, **REFERRING}
WORDS = {"x": "the cows", "be": "are", "it": "them", "bare": "cow", "a": "a cow", "rel": "left of the car"}
UNFILLED = {word: f"{{{word}}}" for word in ("x", "be", "it", "n", "ns", "each", "c", "rel")}
FILLERS = r"\b(please|can you|could you|would you|i want you to|now|for me|here|in (this|the) (image|picture|scene))\b"


def plain(template: str) -> str:
    return re.sub(r"[^a-z{}]+", " ", template.lower()).strip()


def trained(bank: TemplateBank) -> tuple[str, ...]:
    return bank.short + bank.long


def every(grammar: TemplateGrammar) -> Iterator[str]:
    return templates([*grammar.alone, asdict(grammar)])


@cache
def core(template: str) -> str:
    return plain(re.sub(FILLERS, "", template))


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_templates(kind: str) -> None:
    assert len({plain(t) for t in trained(KINDS[kind])}) >= 40
    assert len({plain(t) for t in KINDS[kind].held_out}) >= 12


@pytest.mark.parametrize("name", [name for name in BANKS if name != "description"])
def test_held_out_templates_are_never_trained(name: str) -> None:
    bank = BANKS[name]
    assert bank.short and bank.held_out
    assert not {plain(t) for t in trained(bank)} & {plain(t) for t in bank.held_out}


@pytest.mark.parametrize("kind", REQUESTS)
def test_held_out_requests_differ_in_more_than_fillers(kind: str) -> None:
    held_out = {core(t) for t in REQUESTS[kind].held_out}
    extra = {core(t) for t in every(EXTRA_REQUESTS[kind])}
    assert len(held_out) >= 12 and len(extra) > 1000
    assert not held_out & {core(t) for t in trained(REQUESTS[kind])}
    assert not held_out & extra


@pytest.mark.parametrize("name", REFERRING)
def test_no_extra_expression_is_held_out_and_each_says_as_much(name: str) -> None:
    bank, same = REFERRING[name], {"ns": "n", "each": "n"}
    if name == "description":
        assert not bank.extra
        return
    assert len(set(bank.extra)) == len(bank.extra) >= 7
    assert not {plain(t) for t in bank.extra} & {plain(t) for t in bank.held_out}
    expected = {same.get(word, word) for word in placeholders(bank.short[0])}
    for template in bank.extra:
        assert {same.get(word, word) for word in placeholders(template)} == expected, template


def test_drawing_passes_over_templates_that_need_more() -> None:
    bank, rng = TemplateBank(("{x}", "{x} {y}"), (), ("{y}",)), np.random.default_rng(0)
    assert {bank.draw(rng, {"x": "a"}) for _ in range(50)} == {"a"}
    assert {bank.draw(rng, {"x": "a", "y": "b"}) for _ in range(50)} == {"a", "a b"}
    with pytest.raises(KeyError, match="no template"):
        bank.draw(rng, {"x": "a"}, held_out=True)
    words = {word: WORDS[word] for word in ("x", "be", "it")}
    assert all("cows" in EXTRA_REQUESTS["relation"].draw(rng, words) for _ in range(300))


def test_half_of_the_templates_drawn_are_short() -> None:
    bank, rng = REQUESTS["colour"], np.random.default_rng(0)
    drawn = [bank.draw(rng, UNFILLED) for _ in range(600)]
    assert 0.4 < sum(d in bank.short for d in drawn) / len(drawn) < 0.65


@pytest.mark.parametrize("kind", EXTRA_REQUESTS)
def test_extra_requests_are_whole(kind: str) -> None:
    assert EXTRA_REQUESTS.keys() == REQUESTS.keys()
    rng = np.random.default_rng(0)
    drawn = [EXTRA_REQUESTS[kind].draw(rng, WORDS) for _ in range(300)]
    assert len(set(drawn)) > 150
    for text in drawn:
        assert not re.search(r"[{}]", text)
        assert any(WORDS[word] in text for word in ("x", "bare", "rel")), text


def test_a_word_or_two_of_some_requests_are_made_up() -> None:
    rng = np.random.default_rng(0)
    known = {word for template in every(EXTRA_REQUESTS["size"]) for word in template.split(" ")}
    drawn = [EXTRA_REQUESTS["size"].draw(rng, UNFILLED) for _ in range(400)]
    unknown = [sum(word not in known for word in text.split(" ")) for text in drawn]
    assert max(unknown) == 2 and 0.15 < np.mean([n > 0 for n in unknown]) < 0.35


def test_made_up_words_never_stand_for_what_an_expression_says() -> None:
    rng = np.random.default_rng(0)
    for key, estranged in (("tint", True), ("relation", True), ("leftmost", False), ("smaller", False)):
        drawn = {extra_expression(key, rng, UNFILLED) for _ in range(300)}
        assert (drawn > set(EXPRESSIONS[key].extra)) is estranged
        assert all(placeholders(text) & {"n", "ns", "each"} for text in drawn)


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
