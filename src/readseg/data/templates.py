"""How expressions are asked and answered in training: words around what a data set has, which itself is not changed.

A text is the name of a thing ("wall", "the left cow", "man in blue on left", "on the left") or a sentence. Names go
into sentences of ours as phrases: `phrase` and `bare` say how. Sentences stand alone; answers to them repeat nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from readseg.data.entries import Expression
from readseg.data.phrases import CONFIRMATIONS, CORRECTIONS, DENIALS
from readseg.data.training_phrases import NAME_QUESTIONS, PLAIN_CORRECTIONS, PLAIN_DENIALS, SENTENCE_REQUESTS
from readseg.data.types import SEG, Turn
from readseg.errors import ReadsegError

AS_SCORED = 0.25
"""Share of questions, and of confirmations, in the very words that scores are made with: the first of their bank."""
CONFIRMATION, CORRECTION, DENIAL, WORDS = "confirmation", "correction", "denial", "words"
"""Kinds of turn: a mask, an answer that names something else, one that does not, and conversation without masks."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ARTICLES = frozenset({"the", "a", "an"})
# Words that begin a phrase which is whole without an article, and does not follow "no".
_DETERMINERS = _set(
    """
    this that these those my your his her its our their some any all both each every either neither another several many
    few most half one two three four five six seven eight nine ten someone somebody something anyone anybody anything
    everyone everybody everything nobody nothing he she it they him them who whom whoever whose what whatever which
    where wherever when how why there here i me you we us
    """
)
# Words that begin what is said of a thing, not its name.
_PREPOSITIONS = _set(
    """
    in on at by with without under underneath over above below beneath behind beside near next between among against
    inside outside from to into onto off toward towards around across along through of for
    """
)
_VERBS = _set("wearing holding carrying having looking facing leaning is are has was")
_NOUNS_IN_ING = _set(
    """
    awning bedding building ceiling clothing crossing dressing duckling dumpling earring frosting icing king lighting
    painting parking pudding railing ring seating siding string thing wing
    """
)
# Words that name nothing by themselves: "left", "dark blue".
_ADJECTIVES = _set(
    """
    left right middle center centre top bottom front back far near upper lower leftmost rightmost first second third
    last big small large little tall short biggest smallest largest tallest shortest dark bright black white grey
    gray red green blue yellow purple pink brown striped blurry
    """
)
_NOT_AFTER_NO = _DETERMINERS | _PREPOSITIONS | _VERBS | {"no", "not", "none", "only", "just", "and", "or"}
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:st|nd|rd|th)?")
_PLACE = re.compile(r"\{(\w+)\}")
_CLOSING = " \t\n.,;:!?"


def turn(expression: Expression, mask: np.ndarray | None, rng: np.random.Generator) -> Turn:
    """An expression asked, and answered by its mask, a denial or a correction, in words drawn by lot.

    Args:
        expression: what is asked for; a false premise with `instead` is corrected, one without is denied.
        mask: of what is there, uint8 (H, W) in {0, 1, 255}; None of a false premise.
        rng: draws the words.

    Raises:
        ReadsegError: the text or what is there instead holds "[SEG]", which stands for a mask in answers; or the text
            has no word, or the mask does not fit the expression.
    """
    for text in (expression.text, expression.instead):
        if SEG in text:
            raise ReadsegError(f"expression {text!r:.80} holds {SEG}, which stands for a mask: say it in other words")
    if not _words(expression.text):
        raise ReadsegError(f"expression {expression.text!r:.80} has no word: nobody can ask for it")
    question = asked(expression.text, sentence=expression.sentence, rng=rng)
    if expression.present:
        masks = () if mask is None else (mask,)
        return Turn(question, confirmed(rng), masks, True, CONFIRMATION, expression.tags)
    kind = CORRECTION if expression.instead else DENIAL
    answer = denied(expression.text, sentence=expression.sentence, instead=expression.instead, rng=rng)
    return Turn(question, answer, (), False, kind, expression.tags)


def rounds(dialogue: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    """The rounds of a conversation in words, as they are.

    Raises:
        ReadsegError: an answer holds "[SEG]", which stands for a mask.
    """
    for _, answer in dialogue:
        if SEG in answer:
            raise ReadsegError(f"the answer {answer!r:.80} holds {SEG}, which stands for a mask: say it in other words")
    return tuple(Turn(question, answer, kind=WORDS) for question, answer in dialogue)


def asked(text: str, *, sentence: bool, rng: np.random.Generator) -> str:
    """A question for a text.

    >>> asked("wall", sentence=False, rng=np.random.default_rng(0))
    'I need a segmentation mask of the wall.'
    """
    template = _drawn(SENTENCE_REQUESTS if sentence else NAME_QUESTIONS, rng, AS_SCORED)
    return _filled(template, x=_ended(text) if sentence else _trimmed(text), the=phrase(text))


def confirmed(rng: np.random.Generator) -> str:
    """An answer with one mask."""
    return _drawn(CONFIRMATIONS, rng, AS_SCORED)


def denied(text: str, *, sentence: bool, instead: str = "", rng: np.random.Generator) -> str:
    """An answer that a text means nothing in the image, and names what is there `instead`, if that is known.

    >>> denied("the red cow", sentence=False, instead="blue cow", rng=np.random.default_rng(3))
    'I cannot find any red cow in this image, but I can find the blue cow.'
    """
    noun = None if sentence else bare(text)
    if instead:
        bank = PLAIN_CORRECTIONS if noun is None else CORRECTIONS
    else:
        bank = PLAIN_DENIALS if noun is None else DENIALS
    return _filled(_drawn(bank, rng), x=noun or "", y=phrase(instead))


def phrase(text: str) -> str:
    """A name as a phrase that a sentence can hold, in any number.

    >>> phrase("wall"), phrase("a man."), phrase("two stairs"), phrase("on the left"), phrase("left")
    ('the wall', 'a man', 'two stairs', 'what is on the left', 'the left one')
    """
    text, words = _trimmed(text), _words(text)
    if not words or words[0] in _ARTICLES | _DETERMINERS or words[0].isdecimal():
        return text
    if words[0] in ("is", "are", "has", "was"):
        return f"what {text}"
    if _says_something(words) or words[0] == "not":
        return f"what is {text}"
    return f"the {text} one" if _ADJECTIVES.issuperset(words) else f"the {text}"


def bare(text: str) -> str | None:
    """A name as it stands after "no", without its article; None where that would be no phrase.

    >>> bare("wall"), bare("the left cow"), bare("two men"), bare("on the left")
    ('wall', 'left cow', None, None)
    """
    text, words = _trimmed(text), _words(text)
    while words and words[0] in _ARTICLES and text.lower().startswith(f"{words[0]} "):
        text, words = text[len(words[0]) :].lstrip(), words[1:]
    if not words or words[0] in _NOT_AFTER_NO or words[0].isdecimal() or not text[0].isalnum():
        return None
    return None if _says_something(words) or _ADJECTIVES.issuperset(words) else text


def _says_something(words: Sequence[str]) -> bool:
    """Whether these words are said of a thing and do not name it: "on the left", "sitting on a bench"."""
    acting = words[0].endswith("ing") and words[0] not in _NOUNS_IN_ING and _PREPOSITIONS.issuperset(words[1:2])
    return words[0] in _PREPOSITIONS or words[0] in _VERBS or acting


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _trimmed(text: str) -> str:
    return " ".join(text.split()).rstrip(_CLOSING)


def _ended(text: str) -> str:
    """A sentence with a mark at its end, so that another one can follow."""
    text = " ".join(text.split())
    return f"{text}." if text[-1:].isalnum() else text


def _drawn(bank: Sequence[str], rng: np.random.Generator, first: float = 0.0) -> str:
    """One of a bank, by lot; the first one with the probability `first`, if it is more than its share."""
    if rng.random() < first:
        return bank[0]
    return bank[int(rng.integers(len(bank)))]


def _filled(template: str, **words: str) -> str:
    """Placeholders replaced at once, so that braces in a text are just text."""
    return _PLACE.sub(lambda place: words[place[1]], template)
