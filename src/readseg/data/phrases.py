"""Banks of wordings: how questions are asked, and how they are confirmed, denied and corrected.

Owns words only. Every bank keeps its held-out wordings apart from those of training: they differ in verb or structure,
not in a filler. Placeholders: {x} a phrase for the object with its article ("the cow",
"something to cut paper with"),
{bare} the noun alone, {a} with an indefinite article, {be} is/are, {it} it/them, {rel} "to the left of the cow",
{n} / {ns} a noun and its plural, {c} a colour, {y} another object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter
from types import MappingProxyType

import numpy as np


@dataclass(frozen=True, slots=True)
class Bank:
    """Wordings of one thing to say.

    Attributes:
        short: brief wordings of training, drawn half of the time.
        long: the other wordings of training.
        held_out: wordings kept for tests.
    """

    short: tuple[str, ...]
    long: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def train(self) -> tuple[str, ...]:
        """All wordings of training."""
        return self.short + self.long

    def draw(self, rng: np.random.Generator, words: Mapping[str, str], *, held_out: bool = False) -> str:
        """A wording drawn by lot, filled with ``words``; wordings that need words not given are passed over.

        Raises:
            KeyError: if no wording of the bank can do with these words.
        """
        part = self.held_out if held_out else self.short if not self.long or rng.random() < 0.5 else self.long
        for _ in range(20):
            template = part[int(rng.integers(len(part)))]
            if fields(template) <= words.keys():
                return template.format_map(words)
        fitting = [t for t in part if fields(t) <= words.keys()]
        if not fitting:
            raise KeyError(f"no wording needs only {sorted(words)}; the first one is {part[0]!r}")
        return fitting[int(rng.integers(len(fitting)))].format_map(words)


@cache
def fields(template: str) -> frozenset[str]:
    """The placeholders of a wording."""
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


def _commands(verbs: Iterable[str], openers: Mapping[str, str], closers: Iterable[str]) -> tuple[str, ...]:
    """Every opener + verb phrase + closer, ended by the opener's own mark."""
    closers = tuple(closers)
    return tuple(f"{o}{v}{c}{end}" for o, end in openers.items() for v in verbs for c in closers)


_OPENERS = {"": ".", "please ": ".", "can you ": "?", "could you please ": "?", "i want you to ": ".", "now ": "."}
_CLOSERS = ("", " for me", " in this image", " in the picture", " here")
_PLACES = ("?", " in this image?", " in the picture?", " here?")

_SHORT_REQUESTS = (
    "{x}", "{x}.", "{x}?", "{x}, please.", "segment {x}.", "where {be} {x}?", "show me {x}.", "find {x}.",
    "mark {x}.",
    "mask {x}.", "point to {x}.", "select {x}.",
)  # fmt: skip
_LONG_REQUESTS = (
    *_commands(
        (
            "segment {x}", "show me {x}", "find {x}", "point to {x}", "mark {x}", "select {x}", "cut out {x}",
            "give me a mask of {x}", "draw a mask on {x}", "pick out {x}", "search for {x}",
            "show me where {x} {be}",
        ),
        _OPENERS,
        _CLOSERS,
    ),
    *(q + p for q in ("where {be} {x}", "where can i see {x}", "where do you see {x}", "which pixels show {x}",
                      "which part shows {x}") for p in _PLACES),
    "i am looking for {x}.", "i want to see {x}.", "i want a mask of {x}.", "i need a mask of {x}.",
    "look for {x} and segment {it}.", "find {x} and mark {it}.", "{x}: where {be} {it}?", "{x}: segment {it}.",
    "what {be} {x} in this image? please output segmentation mask.", "{x}. please output segmentation mask.",
    "{x}: please segment {it} for me.", "the mask of {x}, please.",
)  # fmt: skip
_HELD_OUT_REQUESTS = (
    *_commands(
        (
            "locate {x}", "highlight {x}", "outline {x}", "trace the shape of {x}", "tell me where {x} {be}",
            "let me see {x}", "paint {x}", "separate {x} from everything else", "make {x} visible",
            "take me to {x}", "mark the pixels of {x}", "indicate {x}",
        ),
        {"": ".", "please ": ".", "would you ": "?"},
        ("", " in this scene"),
    ),
    "in which place {be} {x}?", "which region {be} {x}?", "i would like {x} as a mask.",
    "i cannot find {x}. help me.",
    "{x} - can you see where?", "segmentation of {x}, please.", "which of these pixels belong to {x}?",
    "do you know where {x} {be}? show me.",
)  # fmt: skip

_NAME_REQUESTS = (
    ("{bare}", "{bare}.", "{a}", "{a}?", "{bare}?", "segment {a}.", "find {a}.", "{bare}, please."),
    ("look for {a} in the picture.", "find {a} in this image.", "i am looking for {a}.", "show me {a} here.",
     "mark {a} for me.", "please segment {a}."),
    ("locate {a}, please.", "highlight {a} for me.", "i would like to see {a} here."),
)  # fmt: skip
_NEED_REQUESTS = (
    ("i need {x}.", "i want {x}.", "{x}: which one?", "which one {be} {x}?"),
    ("i need {x}, where {be} {it}?", "which of these things {be} {x}?", "what here {be} {x}?",
    "which thing {be} {x}?",
     "give me {x}.", "i am looking for {x}, show me.", "which object in the picture {be} {x}?"),
    ("hand me {x}.", "help me get {x}.", "bring me {x}, please.", "choose {x} from what you see."),
)  # fmt: skip
_PLACE_REQUESTS = (
    ("what is {rel}?", "which thing is {rel}?", "what is {rel}"),
    ("what do you see {rel}?", "what is {rel} in the picture?", "show me what is {rel}.", "find what is {rel}.",
     "segment what is {rel}.", "mark what is {rel}.", "please segment what is {rel}."),
    ("what can be seen {rel}?", "highlight what is {rel}.", "locate whatever is {rel}."),
)  # fmt: skip


def _requests(extra: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())) -> Bank:
    return Bank(_SHORT_REQUESTS + extra[0], _LONG_REQUESTS + extra[1], _HELD_OUT_REQUESTS + extra[2])


REQUESTS: Mapping[str, Bank] = MappingProxyType(
    {
        "category": _requests(_NAME_REQUESTS),
        "colour": _requests(),
        "group": _requests(_NAME_REQUESTS),
        "size": _requests(),
        "position": _requests(),
        "relation": _requests(_PLACE_REQUESTS),
        "all": _requests(),
        "reasoning": _requests(_NEED_REQUESTS),
        "several": _requests(),
    }
)
"""Ways to ask for a mask, by kind of question."""


def _plain(short: tuple[str, ...], cores: tuple[str, ...], held_out: tuple[str, ...]) -> Bank:
    """Questions answered in words: each core with each opener and closer."""
    openers = ("", "tell me: ", "can you say: ", "please say: ", "look at the picture: ")
    closers = ("?", " in this image?", " in the picture?")
    return Bank(short, tuple(o + c + end for o in openers for c in cores for end in closers), held_out)


PLAIN: Mapping[str, Bank] = MappingProxyType(
    {
        "count": _plain(
            ("how many {ns} are there?", "how many {ns}?", "count the {ns}.", "how many {ns} do you see?"),
            ("how many {ns} are there", "how many {ns} do you see", "how many {ns} can you count"),
            (
                "what is the number of {ns}?", "give me the number of {ns}.", "tell me how many {ns} i see.",
                "what number of {ns} does the image show?", "the {ns}: how many?", "please count all {ns} you find.",
                "say how many {ns} this scene has.", "i want to know how many {ns} are here.", "number of {ns}?",
                "how large is the number of {ns}?", "do a count of the {ns}.", "how often do you see {a}?",
            ),
        ),
        "exists": _plain(
            ("is there {a}?", "do you see {a}?", "is there {a} here?", "can you see {a}?"),
            ("is there {a}", "do you see {a}", "can you see {a}", "is {a} visible"),
            (
                "does the image show {a}?", "is {a} part of this scene?", "does this picture have {a}?",
                "yes or no: {a}?",
                "have you found {a} here?", "can {a} be seen?", "am i right that there is {a}?",
                "would you say there is {a}?",
                "i wonder if there is {a}.", "tell me if you see {a}.", "is it true that there is {a}?",
                "say if {a} is here.",
            ),
        ),
        "tint": _plain(
            ("what colour {be} {x}?", "which colour {be} {x}?", "the colour of {x}?", "what colour does {x} have?"),
            ("what colour {be} {x}", "which colour {be} {x}", "what colour does {x} have",
            "what is the colour of {x}"),
            (
                "in what colour do you see {x}?", "name the colour of {x}.", "tell me the colour of {x}.",
                "say which colour {x} has.", "how would you call the colour of {x}?", "give me the colour of {x}.",
                "{x}: what colour?", "i want to know the colour of {x}.", "colour of {x}?",
                "what is the colour that {x} has?",
                "with which colour was {x} painted?", "do you know the colour of {x}?",
            ),
        ),
        "naming": _plain(
            ("name {x}.", "what is {x} called?", "what is the name of {x}?", "say what {x} is."),
            ("what is {x} called", "what is the name of {x}", "what do you call {x}", "what kind of thing is {x}"),
            (
                "tell me the name of {x}.", "give me the name of {x}.", "how do you call {x}?",
                "in a word, what is {x}?",
                "which name does {x} have?", "say the name of {x}.", "{x}: what is its name?",
                "i want to know what {x} is.",
                "do you know the name of {x}?", "what word names {x}?", "find a name for {x}.", "put a name to {x}.",
            ),
        ),
        "listing": _plain(
            ("what is in the picture?", "what do you see?", "what is here?", "list the objects.",
            "name all objects."),
            ("what is there to see", "what do you see", "which objects are there", "what are the objects"),
            (
                "describe the image.", "tell me about this picture.", "what does the image show?",
                "make a list of all things.",
                "what can be seen?", "say all that you see.", "go through the objects from left to right.",
                "give me the names of all things.", "which things does this scene have?", "read out the objects.",
                "what is this a picture of?", "name everything you find.",
            ),
        ),
    }
)  # fmt: skip
"""Ways to ask what is answered in words, by kind of question."""


def _way(train: tuple[str, ...], held_out: tuple[str, ...]) -> Bank:
    return Bank(train, (), held_out)


EXPRESSIONS: Mapping[str, Bank] = MappingProxyType(
    {
        "name": _way(("the {n}",), ("that {n}", "the {n} you see")),
        "tint": _way(("the {c} {n}", "the {n} that is {c}"), ("the {n} whose colour is {c}", "the {n} painted {c}")),
        "description": _way(("{d}",), ("{d}",)),
        "biggest": _way(
            ("the biggest {n}", "the largest {n}", "the {n} that is the biggest"),
            ("the {n} bigger than every other", "the {n} of the largest size"),
        ),
        "smallest": _way(
            ("the smallest {n}", "the {n} that is the smallest", "the {n} that is smallest"),
            ("the {n} smaller than every other", "the {n} of the smallest size"),
        ),
        "bigger": _way(
            ("the bigger {n}", "the larger {n}", "the bigger of the two {ns}"),
            ("the {n} that is bigger than the other", "the one of the two {ns} that is larger"),
        ),
        "smaller": _way(
            ("the smaller {n}", "the {n} that is smaller", "the smaller of the two {ns}"),
            ("the {n} that is smaller than the other", "the one of the two {ns} that is smaller"),
        ),
        "leftmost": _way(
            ("the leftmost {n}", "the {n} furthest to the left", "the {n} on the far left"),
            ("the {n} with no other on its left", "the {n} nearest to the left edge"),
        ),
        "rightmost": _way(
            ("the rightmost {n}", "the {n} furthest to the right", "the {n} on the far right"),
            ("the {n} with no other on its right", "the {n} nearest to the right edge"),
        ),
        "topmost": _way(
            ("the topmost {n}", "the {n} at the top", "the highest {n}"),
            ("the {n} above all others", "the {n} nearest to the top edge"),
        ),
        "bottommost": _way(
            ("the bottommost {n}", "the {n} at the bottom", "the lowest {n}"),
            ("the {n} below all others", "the {n} nearest to the bottom edge"),
        ),
        "left": _way(
            ("the left {n}", "the {n} on the left", "the left one of the two {ns}"),
            ("the one of the two {ns} on the left", "the {n} further to the left"),
        ),
        "right": _way(
            ("the right {n}", "the {n} on the right", "the right one of the two {ns}"),
            ("the one of the two {ns} on the right", "the {n} further to the right"),
        ),
        "upper": _way(
            ("the upper {n}", "the higher {n}", "the upper one of the two {ns}"),
            ("the one of the two {ns} that is higher", "the {n} higher up"),
        ),
        "lower": _way(
            ("the lower {n}", "the {n} that is lower", "the lower one of the two {ns}"),
            ("the one of the two {ns} that is lower", "the {n} further down"),
        ),
        "relation": _way(("the {n} {rel}", "the {n} that is {rel}"), ("the {n} seen {rel}", "the {n} i see {rel}")),
        "all": _way(
            ("all {ns}", "all the {ns}", "every {each}", "each {each}", "the {ns}"),
            ("each and every {each}", "all of the {ns}", "any {each} that is there", "the whole set of {ns}"),
        ),
        "all tint": _way(
            ("all {c} {ns}", "every {c} {each}", "the {c} {ns}", "all {ns} that are {c}"),
            ("each and every {c} {each}", "all of the {c} {ns}", "any {each} painted {c}"),
        ),
        "several": _way(
            (
                "the {n} and the {m}",
                "both the {n} and the {m}",
                "the {n} and also the {m}",
                "these two: the {n} and the {m}",
            ),
            ("the {n} as well as the {m}", "the {n} together with the {m}", "not only the {n} but the {m} too"),
        ),
    }
)
"""Ways to refer to objects, by what tells them apart; the first of each is its plain form."""

RELATIONS: Mapping[str, Bank] = MappingProxyType(
    {
        "left of": _way(("to the left of {o}", "left of {o}"), ("on the left side of {o}",)),
        "right of": _way(("to the right of {o}", "right of {o}"), ("on the right side of {o}",)),
        "above": _way(("above {o}", "over {o}"), ("higher up than {o}",)),
        "below": _way(("below {o}", "under {o}"), ("lower down than {o}",)),
        "next to": _way(("next to {o}", "nearest to {o}", "closest to {o}"), ("beside {o}",)),
    }
)
"""Ways to place something beside another object {o}."""

THING_WORDS = ("thing", "object")
"""What any object is called, by turns."""

CONFIRMATIONS: tuple[str, ...] = (
    "Sure, the segmentation result is [SEG].", "Sure, [SEG].", "Sure, here is the mask: [SEG].",
    "Sure, the mask is [SEG].", "Of course, [SEG].", "Of course, here is the mask: [SEG].", "Yes, [SEG].",
    "Yes, right here: [SEG].", "Yes, I found this: [SEG].", "Here you are: [SEG].", "Here is the result: [SEG].",
    "Here is the mask you asked for: [SEG].", "The mask is [SEG].", "The result is [SEG].", "I see this: [SEG].",
    "I found what you mean: [SEG].", "Certainly, [SEG].", "Certainly, the region is [SEG].",
    "You are looking for [SEG].", "What you asked for is [SEG].", "This is where to look: [SEG].",
    "In this image, that is [SEG].", "I have marked the pixels: [SEG].", "[SEG].",
)  # fmt: skip
"""Answers to a true premise, each with one [SEG]; the first is the one of teacher forcing."""

DENIALS: tuple[str, ...] = (
    "No, I see no {x} here.", "No, I see no {x}.", "No, I cannot find any {x} in this image.",
    "The image shows no {x}.", "Sorry, I do not see any {x}.", "Sorry, I find no {x} here.",
    "I cannot see any {x} in the picture.", "The image does not show any {x}.", "This picture has no {x}.",
    "No {x} can be seen here.", "I looked, but I see no {x}.", "This image does not seem to show any {x}.",
    "I am afraid this picture shows no {x}.", "I do not find any {x} in the picture.",
    "The whole image shows no {x}.", "I do not think that this shows any {x}.",
    "As far as I can see, the image shows no {x}.",
    "I searched the image and found no {x}.", "No, this picture does not have any {x}.",
    "Unfortunately, I cannot see any {x}.", "I would mark it, but I see no {x}.",
    "In this image I can find no {x}.",
)  # fmt: skip
"""Answers to a false premise; {x} without an article, in the singular or plural."""

CORRECTIONS: tuple[str, ...] = (
    "No, I see no {x} here, but I see {y}.", "No, I see no {x}, but I do see {y}.",
    "The image shows no {x}, but it shows {y}.", "I cannot find any {x} in this image, but I can find {y}.",
    "Sorry, I do not see any {x}, but I see {y}.", "I see {y}, but no {x}.",
    "I cannot find any {x}, but I found {y}.", "The image shows {y}, but no {x}.",
    "The image shows no {x}; it shows {y}.", "No {x} can be seen here, but {y} can.",
    "I find no {x} here. What I find is {y}.", "This picture does not show any {x}, but it does show {y}.",
    "I do not see any {x}. Did you mean {y}?", "I see no {x} here. Did you mean {y}?",
    "You may mean {y}: I see no {x}.", "I looked and found no {x}, only {y}.",
    "This picture has no {x}, but it has {y}.",
    "What I can find is {y}, but no {x}.", "I am afraid I see no {x}, only {y}.",
    "I can see {y} in the picture, but no {x}.", "I can find no {x}, but you can see {y}.",
    "Perhaps you are asking about {y}, since no {x} can be seen.",
)  # fmt: skip
"""Answers to a false premise that name what is there: {x} without an article, {y} with one, in any number."""
