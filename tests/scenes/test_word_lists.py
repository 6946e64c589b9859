"""The word lists are, to the letter and in order, those that the fixed test set was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from hashlib import sha256

import pytest

from readseg.data import class_names, templates
from readseg.scenes import phrases
from readseg.scenes.classes import CLASSES, GROUPS, WIDE_GROUPS

# Of the lists as they stood in Python code. Whoever changes a list on purpose changes its digest too.
DIGESTS = {
    "requests": "fbdbe868636b1c89",
    "text_questions": "5f5d70a3c0dedc44",
    "expressions": "438ea81941727090",
    "relations": "75fbe309878a181b",
    "object_words": "a1fc8309a1653f18",
    "extra_requests": "fa27e77c4d321896",
    "extra_expressions": "b26600fe19c0711b",
    "extra_relations": "6798167b647a5532",
    "extra_object_words": "b240e7b1736f36e4",
    "unknown_nouns": "21985bba2367ce57",
    "syllables": "a4160554c0844ac3",
    "classes": "143d56fb588c8523",
    "groups": "abbb029a1d5e89f3",
    "name_questions": "5b888fce2b9a6dde",
    "sentence_requests": "e7cdcfc435538d3d",
    "confirmations": "dd39f527ce9ad4f7",
    "denials": "14e57a5d225dcddc",
    "corrections": "6822fd4369a8d28c",
    "plain_denials": "82d5c527a3d969f4",
    "plain_corrections": "931cd53a02b2657f",
    "determiners": "599370bed07ccf34",
    "prepositions": "4be7824a1cd3a0ab",
    "verbs": "2151ec186c96e8e6",
    "nouns_in_ing": "4a976fe49c87d1e8",
    "adjectives": "fb95b5f73a48fd9f",
    "ade20k": "9bf5f612ed5c7d1d",
    "coco_stuff": "533604a8edb9bf1a",
    "families": "1e5aabe11e6a7669",
    "doubtful": "7c73dff19fd247a8",
}


def banks(table: Mapping[str, phrases.TemplateBank]) -> list:
    return [[key, [bank.short, bank.long, bank.held_out]] for key, bank in table.items()]


def extra(table: Mapping[str, phrases.TemplateBank]) -> list:
    return [[key, bank.extra] for key, bank in table.items() if bank.extra]


def word_lists() -> dict[str, object]:
    scenes = {name.lower(): getattr(phrases, name) for name in ("OBJECT_WORDS", "EXTRA_OBJECT_WORDS", "UNKNOWN_NOUNS")}
    answers = {
        name.lower(): getattr(templates, name)
        for name in (
            *("NAME_QUESTIONS", "SENTENCE_REQUESTS", "CONFIRMATIONS", "DENIALS", "CORRECTIONS"),
            *("PLAIN_DENIALS", "PLAIN_CORRECTIONS"),
        )
    }
    sets = ("DETERMINERS", "PREPOSITIONS", "VERBS", "NOUNS_IN_ING", "ADJECTIVES")
    return {
        "requests": banks(phrases.REQUESTS),
        "text_questions": banks(phrases.TEXT_QUESTIONS),
        "expressions": banks(phrases.EXPRESSIONS),
        "relations": banks(phrases.RELATIONS),
        "extra_requests": [[kind, astuple(grammar)] for kind, grammar in phrases.EXTRA_REQUESTS.items()],
        "extra_expressions": extra(phrases.EXPRESSIONS),
        "extra_relations": extra(phrases.RELATIONS),
        **scenes,
        "syllables": phrases._SYLLABLE,
        "classes": [astuple(c) for c in CLASSES.values()],
        "groups": [astuple(group) for group in (*GROUPS.values(), *WIDE_GROUPS.values())],
        **answers,
        **{name.lower(): sorted(getattr(templates, f"_{name}")) for name in sets},
        "ade20k": class_names.ADE20K,
        "coco_stuff": class_names.COCO_STUFF,
        "families": [sorted(family) for family in class_names._FAMILIES],
        "doubtful": sorted(class_names._DOUBTFUL),
    }


@pytest.mark.parametrize("name", DIGESTS)
def test_no_list_has_changed(name: str) -> None:
    text = json.dumps(word_lists()[name], ensure_ascii=False)
    assert sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]
