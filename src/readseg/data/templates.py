"""How expressions are asked and answered in training: templates around what a data set has, which is not changed.

A text is the name of a thing ("wall", "the left cow", "man in blue on left", "on the left"), which goes into our
sentences as a phrase, or a sentence, which stands alone; answers to it repeat nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from readseg.core.io import read_yaml
from readseg.core.types import SEG, Turn
from readseg.data.types import Expression
from readseg.errors import ReadsegError

EVALUATION_TEMPLATE_RATE = 0.25
"""Share of questions, and of confirmations, in the very words that scores are made with: the first of their list."""
CONFIRMATION, CORRECTION, DENIAL, WORDS = "confirmation", "correction", "denial", "words"
"""Kinds of turn: a mask, an answer that names something else, one that does not, and conversation without masks."""

TEMPLATES: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml"))
"""Ways to say each thing, and words that tell what may be said of a name."""

_ARTICLES = frozenset({"the", "a", "an"})
_DETERMINERS, _PREPOSITIONS, _VERBS, _NOUNS_IN_ING, _ADJECTIVES = (
    frozenset(str(TEMPLATES[name]).split())
    for name in ("determiners", "prepositions", "verbs", "nouns_in_ing", "adjectives")
)
_NOT_AFTER_NO = _DETERMINERS | _PREPOSITIONS | _VERBS | {"no", "not", "none", "only", "just", "and", "or"}
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:st|nd|rd|th)?")


def make_turn(expression: Expression, mask: np.ndarray | None, rng: np.random.Generator) -> Turn:
    """An expression asked, and answered by its mask (uint8 (H, W) in {0, 1, 255}), a denial or a correction."""
    for text in (expression.text, expression.instead):
        if SEG in text:
            raise ReadsegError(f"expression {text!r:.80} holds {SEG}, which stands for a mask: say it in other words")
    if not _words(expression.text):
        raise ReadsegError(f"expression {expression.text!r:.80} has no word: nobody can ask for it")
    question = make_question(expression.text, is_sentence=expression.sentence, rng=rng)
    if expression.present:
        masks = () if mask is None else (mask,)
        return Turn(question, make_confirmation(rng), masks, True, CONFIRMATION, expression.tags)
    kind = CORRECTION if expression.instead else DENIAL
    answer = make_refusal(expression.text, is_sentence=expression.sentence, instead=expression.instead, rng=rng)
    return Turn(question, answer, (), False, kind, expression.tags)


def dialogue_turns(dialogue: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    """The rounds of a conversation in words, as they are."""
    for _, answer in dialogue:
        if SEG in answer:
            raise ReadsegError(f"the answer {answer!r:.80} holds {SEG}, which stands for a mask: say it in other words")
    return tuple(Turn(question, answer, kind=WORDS) for question, answer in dialogue)


def make_question(text: str, *, is_sentence: bool, rng: np.random.Generator) -> str:
    """A question for a text: "I need a segmentation mask of the wall."."""
    template = _draw("sentence_requests" if is_sentence else "name_questions", rng, EVALUATION_TEMPLATE_RATE)
    sentence = " ".join(text.split())
    closed = f"{sentence}." if sentence[-1:].isalnum() else sentence  # so that another one can follow
    return template.format(x=closed if is_sentence else _trim(text), the=noun_phrase(text))


def make_confirmation(rng: np.random.Generator) -> str:
    """An answer with one mask."""
    return _draw("confirmations", rng, EVALUATION_TEMPLATE_RATE)


def make_refusal(text: str, *, is_sentence: bool, instead: str = "", rng: np.random.Generator) -> str:
    """An answer that a text means nothing in the image, and names what is there `instead`, if that is known."""
    noun = None if is_sentence else bare_noun(text)
    kind = f"{'plain_' if noun is None else ''}{'corrections' if instead else 'denials'}"
    return _draw(kind, rng).format(x=noun or "", y=noun_phrase(instead))


def noun_phrase(text: str) -> str:
    """A name as a phrase that a sentence can hold: "the wall", "a man", "what is on the left", "the left one"."""
    text, words = _trim(text), _words(text)
    if not words or words[0] in _ARTICLES | _DETERMINERS or words[0].isdecimal():
        return text
    if words[0] in ("is", "are", "has", "was"):
        return f"what {text}"
    if _is_predicate(words) or words[0] == "not":
        return f"what is {text}"
    return f"the {text} one" if _ADJECTIVES.issuperset(words) else f"the {text}"


def bare_noun(text: str) -> str | None:
    """A name as it stands after "no": "left cow" of "the left cow"; None where that would be no phrase: "two men"."""
    text, words = _trim(text), _words(text)
    while words and words[0] in _ARTICLES and text.lower().startswith(f"{words[0]} "):
        text, words = text[len(words[0]) :].lstrip(), words[1:]
    if not words or words[0] in _NOT_AFTER_NO or words[0].isdecimal() or not text[0].isalnum():
        return None
    return None if _is_predicate(words) or _ADJECTIVES.issuperset(words) else text


def _is_predicate(words: Sequence[str]) -> bool:
    """Whether these words are said of a thing and do not name it: "on the left", "sitting on a bench"."""
    is_acting = words[0].endswith("ing") and words[0] not in _NOUNS_IN_ING and _PREPOSITIONS.issuperset(words[1:2])
    return words[0] in _PREPOSITIONS or words[0] in _VERBS or is_acting


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _trim(text: str) -> str:
    return " ".join(text.split()).rstrip(" \t\n.,;:!?")


def _draw(kind: str, rng: np.random.Generator, first: float = 0.0) -> str:
    """A random template; the first one with the probability `first`, if that is more than its share."""
    templates: Sequence[str] = TEMPLATES[kind]
    return templates[0] if rng.random() < first else templates[int(rng.integers(len(templates)))]
