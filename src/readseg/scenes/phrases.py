"""Templates of questions about scenes: how a mask is asked for, how objects are referred to, what is asked in words.

phrases.yaml has them, and explains their placeholders and which are for training and for tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from readseg.core.io import read_yaml


@cache
def placeholders(template: str) -> frozenset[str]:
    """The names of the placeholders of a template."""
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


@dataclass(frozen=True, slots=True)
class TemplateBank:
    """Templates of one thing to say: brief and other ones of training, held-out ones, extra ones of training."""

    short: tuple[str, ...]
    long: tuple[str, ...]
    held_out: tuple[str, ...]
    extra: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator, words: Mapping[str, str], *, held_out: bool = False) -> str:
        """A random template filled with `words`; those that need other words are passed over, KeyError if all do."""
        part = self.held_out if held_out else self.short if not self.long or rng.random() < 0.5 else self.long
        for _ in range(20):
            template = part[int(rng.integers(len(part)))]
            if placeholders(template) <= words.keys():
                return template.format_map(words)
        fitting = [template for template in part if placeholders(template) <= words.keys()]
        if not fitting:
            raise KeyError(f"no template needs only {sorted(words)}; the first one is {part[0]!r}")
        return fitting[int(rng.integers(len(fitting)))].format_map(words)


@dataclass(frozen=True, slots=True)
class TemplateGrammar:
    """Many extra templates of one thing to say: each opener, with its end, with each core and closer; some stand alone.

    In one of four a word or two are made up: what is asked for has to be understood beside words never read before.
    """

    openers: Sequence[tuple[str, str]]
    cores: Sequence[str]
    closers: Sequence[str]
    alone: Sequence[str]

    def draw(self, rng: np.random.Generator, words: Mapping[str, str]) -> str:
        """A random template filled with `words`, of those that stand alone in half of the cases."""
        while True:
            if rng.random() < 0.5:
                template = self.alone[int(rng.integers(len(self.alone)))]
            else:
                opener, end = self.openers[int(rng.integers(len(self.openers)))]
                core = self.cores[int(rng.integers(len(self.cores)))]
                template = f"{opener}{core}{self.closers[int(rng.integers(len(self.closers)))]}{end}"
            if placeholders(template) <= words.keys():
                return (_with_made_up_words(template, rng) if rng.random() < 0.25 else template).format_map(words)


def templates(items: Iterable[str | Mapping[str, Any]]) -> Iterator[str]:
    """The templates of a list of phrases.yaml: an item {openers, cores, closers} stands for all that it combines to."""
    for item in items:
        if isinstance(item, str):
            yield item
        else:
            parts = product(item.get("openers", [("", "")]), item["cores"], item["closers"])
            yield from (f"{opener}{core}{closer}{end}" for (opener, end), core, closer in parts)


def _bank(*tables: Mapping[str, Any]) -> TemplateBank:
    """The bank of one table, or of several, one behind the other."""
    parts = ("short", "long", "held_out", "extra")
    return TemplateBank(*(tuple(t for table in tables for t in templates(table.get(part, ()))) for part in parts))


def _grammar(openers: Any, cores: Any, closers: Any, alone: Any, own: Sequence[str]) -> TemplateGrammar:
    # A third of those that stand alone are the kind's own, where it has some.
    repeats = max(1, round(len(alone) / (2 * len(own)))) if own else 0
    return TemplateGrammar(openers, cores, closers, [*alone, *list(own) * repeats])


_TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))
REQUESTS: Mapping[str, TemplateBank] = {
    kind: _bank(_TABLE["requests"], own) for kind, own in _TABLE["requests_of_kind"].items()
}
"""Ways to ask for a mask, by kind of question."""
EXTRA_REQUESTS: Mapping[str, TemplateGrammar] = {
    kind: _grammar(**_TABLE["extra_requests"], own=own) for kind, own in _TABLE["extra_requests_of_kind"].items()
}
"""The extra ways."""
TEXT_QUESTIONS: Mapping[str, TemplateBank] = {kind: _bank(table) for kind, table in _TABLE["text_questions"].items()}
"""Ways to ask what is answered in words, by kind of question."""
EXPRESSIONS: Mapping[str, TemplateBank] = {key: _bank(table) for key, table in _TABLE["expressions"].items()}
"""Ways to refer to objects, by what tells them apart; the first of each is its plain form."""
RELATIONS: Mapping[str, TemplateBank] = {relation: _bank(table) for relation, table in _TABLE["relations"].items()}
"""Ways to place something beside another object {o}."""
OBJECT_WORDS: list[str] = _TABLE["object_words"]
EXTRA_OBJECT_WORDS: list[str] = _TABLE["extra_object_words"]  # what any object is called, by turns
UNKNOWN_NOUNS: list[str] = _TABLE["unknown_nouns"]  # names of things that no scene shows
NUMBERS: list[str] = _TABLE["numbers"]  # counts as they are answered
_SYLLABLE: list[list[str]] = [_TABLE["syllables"][part] for part in ("onsets", "vowels", "codas")]
# Only what is filled in tells what these mean: their own words may be made up.
_FILLED_IN = {"name", "tint", "relation", "all tint", "several"}


def extra_expression(key: str, rng: np.random.Generator, words: Mapping[str, str]) -> str:
    """A phrase of the extra `EXPRESSIONS`, filled with `words`; in some a word or two are made up."""
    extra = EXPRESSIONS[key].extra
    template = extra[int(rng.integers(len(extra)))]
    is_estranged = key in _FILLED_IN and rng.random() < 0.25
    return (_with_made_up_words(template, rng) if is_estranged else template).format_map(words)


def unknown_noun(rng: np.random.Generator) -> str:
    """One of `UNKNOWN_NOUNS`, or, half of the time, a made-up word."""
    return UNKNOWN_NOUNS[int(rng.integers(len(UNKNOWN_NOUNS)))] if rng.random() < 0.5 else _made_up_word(rng)


def _made_up_word(rng: np.random.Generator) -> str:
    """A word of one to three syllables that looks like English and means nothing."""
    syllables = int(rng.integers(1, 4))
    return "".join(parts[int(rng.integers(len(parts)))] for _ in range(syllables) for parts in _SYLLABLE)


def _with_made_up_words(template: str, rng: np.random.Generator) -> str:
    """The template with made-up words in the place of one or two of its own words."""
    parts = template.split(" ")
    own = [k for k, part in enumerate(parts) if part.isalpha()]
    for k in rng.permutation(len(own))[: int(rng.integers(1, 3))]:
        parts[own[int(k)]] = _made_up_word(rng)
    return " ".join(parts)
