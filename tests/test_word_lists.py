"""The word lists are, to the letter and in order, those that the fixed test set was made with."""

from __future__ import annotations

import json
from dataclasses import astuple
from hashlib import sha256

import pytest

from readseg.data import templates
from readseg.data.readers import semantic
from readseg.miniatures import pictures
from readseg.miniatures import semantic as mini_semantic
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
    "mini_coco_stuff": "07a4a66469ffdcf5",
    "mini_ade20k": "68e473f40b0ff1c7",
    "mini_lvis": "e17cf26964966f51",
}
BANKS = ("requests", "text_questions", "expressions", "relations")
WORD_SETS = ("determiners", "prepositions", "verbs", "nouns_in_ing", "adjectives")


def word_list(name: str) -> object:
    if name in BANKS:
        banks = getattr(phrases, name.upper())
        return [[key, [bank.short, bank.long, bank.held_out]] for key, bank in banks.items()]
    if name in ("extra_expressions", "extra_relations"):
        banks = getattr(phrases, name.removeprefix("extra_").upper())
        return [[key, bank.extra] for key, bank in banks.items() if bank.extra]
    if name in WORD_SETS:
        return sorted(getattr(templates, f"_{name.upper()}"))
    others = {
        "extra_requests": [[kind, astuple(grammar)] for kind, grammar in phrases.EXTRA_REQUESTS.items()],
        "syllables": phrases._SYLLABLE,
        "classes": [astuple(c) for c in CLASSES.values()],
        "groups": [astuple(group) for group in (*GROUPS.values(), *WIDE_GROUPS.values())],
        "families": [sorted(family) for family in semantic._FAMILIES],
        "doubtful": sorted(semantic._DOUBTFUL),
        "ade20k": semantic.ADE20K_NAMES,
        "coco_stuff": semantic.COCO_STUFF_NAMES,
        "mini_coco_stuff": list(pictures.COCO_STUFF.items()),
        "mini_ade20k": mini_semantic.ADE20K,
        "mini_lvis": [mini_semantic.lvis_name(c) for c in CLASSES],
    }
    if name in others:
        return others[name]
    return templates.TEMPLATES[name] if name in templates.TEMPLATES else getattr(phrases, name.upper())


@pytest.mark.parametrize("name", DIGESTS)
def test_no_list_has_changed(name: str) -> None:
    text = json.dumps(word_list(name), ensure_ascii=False)
    assert sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]
