"""Banks of wordings: large enough, held-out ones apart, every placeholder filled."""

from __future__ import annotations

import re

import numpy as np
import pytest

from readseg.data.phrases import CONFIRMATIONS, CORRECTIONS, DENIALS, EXPRESSIONS, PLAIN, RELATIONS, REQUESTS, Bank

KINDS = {**REQUESTS, **PLAIN}
BANKS = {**KINDS, **EXPRESSIONS, **RELATIONS}


def plain(template: str) -> str:
    return re.sub(r"[^a-z{}]+", " ", template.lower()).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_wordings(kind: str) -> None:
    bank = KINDS[kind]
    assert len({plain(t) for t in bank.train}) >= 40
    assert len({plain(t) for t in bank.held_out}) >= 12


@pytest.mark.parametrize("name", [name for name in BANKS if name != "description"])
def test_held_out_wordings_are_never_trained(name: str) -> None:
    bank = BANKS[name]
    assert bank.short and bank.held_out
    assert not {plain(t) for t in bank.train} & {plain(t) for t in bank.held_out}


@pytest.mark.parametrize("kind", REQUESTS)
def test_held_out_requests_differ_in_more_than_fillers(kind: str) -> None:
    fillers = (
        r"\b(please|can you|could you|would you|i want you to|now|for me|here|in (this|the) (image|picture|scene))\b"
    )
    cores = [{plain(re.sub(fillers, "", t)) for t in part} for part in (REQUESTS[kind].train, REQUESTS[kind].held_out)]
    assert not cores[0] & cores[1]
    assert len(cores[1]) >= 12


@pytest.mark.parametrize("name", ["confirmations", "denials", "corrections"])
def test_answer_banks(name: str) -> None:
    bank = {"confirmations": CONFIRMATIONS, "denials": DENIALS, "corrections": CORRECTIONS}[name]
    assert len(set(bank)) == len(bank) >= 20
    for answer in bank:
        assert answer.count("[SEG]") == (name == "confirmations")
        assert ("{x}" in answer) == (name != "confirmations")
        assert ("{y}" in answer) == (name == "corrections")


def test_drawing_passes_over_wordings_that_need_more() -> None:
    bank = Bank(("{x}", "{x} {y}"), (), ("{y}",))
    rng = np.random.default_rng(0)
    assert {bank.draw(rng, {"x": "a"}) for _ in range(50)} == {"a"}
    assert {bank.draw(rng, {"x": "a", "y": "b"}) for _ in range(50)} == {"a", "a b"}
    with pytest.raises(KeyError, match="no wording"):
        bank.draw(rng, {"x": "a"}, held_out=True)


def test_half_of_the_wordings_drawn_are_short() -> None:
    bank, rng = REQUESTS["colour"], np.random.default_rng(0)
    words = {"x": "{x}", "be": "{be}", "it": "{it}"}
    drawn = [bank.draw(rng, words) for _ in range(600)]
    assert 0.4 < sum(d in bank.short for d in drawn) / len(drawn) < 0.65
