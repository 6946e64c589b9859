"""The table of classes: complete, unambiguous in words, held-out parts apart."""

from __future__ import annotations

import re

import pytest

from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, TRAINED, WIDE_GROUPS, article


def test_size_of_the_world() -> None:
    assert len(TRAINED) >= 60
    assert sum(any(name in TRAINED for name in g.classes) for g in GROUPS.values()) >= 10
    assert sorted(name for g in GROUPS.values() for name in g.classes) == sorted(CLASSES)
    assert all(re.fullmatch(r"[0-9A-F]{4,5}", c.glyph) for c in CLASSES.values())
    assert len({c.glyph for c in CLASSES.values()}) == len(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_descriptions_never_name_a_class(name: str) -> None:
    c = CLASSES[name]
    assert len(c.descriptions) == (3 if c.trained else 0)
    assert c.held_out_descriptions
    names = {word for other in CLASSES.values() for word in (other.name, other.plural)}
    for description in (*c.descriptions, *c.held_out_descriptions):
        assert not any(re.search(rf"\b{re.escape(word)}\b", description) for word in names), description
        assert re.match(r"(the|a|something|clothing) [a-z ]+$", description), description


def test_each_description_belongs_to_one_class_and_one_split() -> None:
    every = [d for c in CLASSES.values() for d in (*c.descriptions, *c.held_out_descriptions)]
    assert len(every) == len(set(every))


def test_held_out_pairs_are_about_eight_percent_and_fixed() -> None:
    pairs = len(TRAINED) * (len(TRAINED) - 1) / 2
    assert 0.06 < len(HELD_OUT_PAIRS) / pairs < 0.1
    assert all(len(pair) == 2 and pair <= set(TRAINED) for pair in HELD_OUT_PAIRS)
    for name in TRAINED:
        assert sum(name in pair for pair in HELD_OUT_PAIRS) < len(TRAINED) / 2, "too few companions left"


def test_words() -> None:
    assert (article("owl"), article("cow"), article("pair of scissors")) == ("an owl", "a cow", "a pair of scissors")
    assert [CLASSES[name].plural for name in ("strawberry", "bus", "cow")] == ["strawberries", "buses", "cows"]
    assert [GROUPS[name].plural for name in ("furniture", "bird")] == ["pieces of furniture", "birds"]
    assert set(WIDE_GROUPS["animal"].classes) >= set(GROUPS["bird"].classes) | set(GROUPS["insect"].classes)
