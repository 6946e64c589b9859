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

# Lists with their digest, of the lists as they stood in Python code. Whoever changes one on purpose changes it too.
DIGESTS = {
    "897dc04e40fcc7eb": "requests text_questions expressions relations object_words extra_requests extra_expressions "
    "extra_relations extra_object_words unknown_nouns syllables",
    "2ddc82d871e2c385": "classes groups",
    "3466a0c7d2300952": "name_questions sentence_requests confirmations denials corrections plain_denials "
    "plain_corrections determiners prepositions verbs nouns_in_ing adjectives",
    "865befbde80b0721": "ade20k coco_stuff families doubtful",
    "b4cbce44d895c6df": "mini_coco_stuff mini_ade20k mini_lvis",
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


@pytest.mark.parametrize("digest", DIGESTS)
def test_no_list_has_changed(digest: str) -> None:
    text = json.dumps([word_list(name) for name in DIGESTS[digest].split()], ensure_ascii=False)
    assert sha256(text.encode()).hexdigest()[:16] == digest
