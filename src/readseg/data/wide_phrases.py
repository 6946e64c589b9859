"""Wide banks: many more wordings, for training alone.

The fixed test set takes its wordings from `phrases.py`, the held-out ones too; it does not change when these grow. None
of these is held out there (a test compares them). Placeholders are those of `phrases.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from readseg.data.phrases import fields

_ONSETS = (
    "b", "bl", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "qu", "r", "s",
    "sh", "st", "str", "t", "th", "tr", "v", "w", "wh", "y", "z", "",
)  # fmt: skip
_VOWELS = (
    "a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oa", "oo", "ou",
)  # fmt: skip
_CODAS = (
    "", "", "b", "ck", "d", "ft", "g", "ght", "l", "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rk", "s", "st", "t",
    "te", "x",
)  # fmt: skip


def _made_up(rng: np.random.Generator) -> str:
    """A word of one to three syllables that looks like English and means nothing."""
    syllables = int(rng.integers(1, 4))
    return "".join(
        parts[int(rng.integers(len(parts)))] for _ in range(syllables) for parts in (_ONSETS, _VOWELS, _CODAS)
    )


def _estranged(template: str, rng: np.random.Generator) -> str:
    """The template with made-up words in the place of one or two of its own words."""
    parts = template.split(" ")
    places = [k for k, part in enumerate(parts) if part.isalpha()]
    for k in rng.permutation(len(places))[: int(rng.integers(1, 3))]:
        parts[places[int(k)]] = _made_up(rng)
    return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Wide:
    """Many wordings of one thing to say: every opener with every body and closer, and some that stand alone.

    Attributes:
        openers: (opener, mark at the end) of the combined ones.
        bodies: what is asked, drawn with an opener and a closer.
        closers: follow the body.
        alone: wordings with neither, drawn as often as the combined ones.

    In one wording of four, a word or two are made up: what is asked for has to be understood beside words never heard.
    """

    openers: tuple[tuple[str, str], ...]
    bodies: tuple[str, ...]
    closers: tuple[str, ...]
    alone: tuple[str, ...]

    def draw(self, rng: np.random.Generator, words: Mapping[str, str]) -> str:
        """A wording drawn by lot, filled with ``words``; one that needs words not given is drawn anew."""
        while True:
            if rng.random() < 0.5:
                template = self.alone[int(rng.integers(len(self.alone)))]
            else:
                opener, end = self.openers[int(rng.integers(len(self.openers)))]
                body = self.bodies[int(rng.integers(len(self.bodies)))]
                template = f"{opener}{body}{self.closers[int(rng.integers(len(self.closers)))]}{end}"
            if fields(template) <= words.keys():
                return (_estranged(template, rng) if rng.random() < 0.25 else template).format_map(words)

    def all(self) -> Iterator[str]:
        """Every wording, not filled."""
        yield from self.alone
        for opener, end in self.openers:
            for body in self.bodies:
                yield from (f"{opener}{body}{closer}{end}" for closer in self.closers)


_OPENERS = (
    ("", "."), ("", ""), ("", "!"), ("", ", please."), ("please ", "."), ("please ", ""), ("kindly ", "."),
    ("can you ", "?"), ("could you ", "?"), ("will you ", "?"), ("could you ", ", please?"),
    ("can you please ", "?"), ("i'd like you to ", "."), ("you should ", "."), ("let us ", "."),
    ("i need you to ", "."), ("your task: ", "."), ("your job is to ", "."), ("ok, ", "."), ("hello, ", "."),
    ("hi! please ", "."), ("next, ", "."), ("first of all ", "."), ("try to ", "."), ("go and ", "."),
    ("just ", "."), ("quickly ", "."), ("in this picture, ", "."), ("looking at this image, ", "."), ("here, ", "."),
    ("for this image, ", "."), ("it would be nice if you could ", "."), ("are you able to ", "?"),
    ("is it possible to ", "?"), ("i wonder whether you can ", "."), ("we have to ", "."), ("now please ", "."),
)  # fmt: skip
_BODIES = (
    "spot {x}", "detect {x}", "identify {x}", "isolate {x}", "extract {x}", "circle {x}", "label {x}", "tag {x}",
    "single out {x}", "reveal {x}", "display {x}", "shade {x}", "fill in {x}", "flag {x}", "frame {x}", "crop {x}",
    "get me {x}", "fetch {x}", "uncover {x}", "capture {x}", "mask {x}", "mask out {x}", "present {x}",
    "discover {x}", "recognise {x}", "focus on {x}", "zoom in on {x}", "click on {x}", "tap on {x}", "pinpoint {x}",
    "clip out {x}", "colour in {x}", "catch {x}", "retrieve {x}", "hunt for {x}", "track down {x}", "seek {x}",
    "watch for {x}", "put a mask on {x}", "put a mark on {x}", "cover {x} with a mask", "make a mask for {x}",
    "give the mask of {x}", "return a mask for {x}", "produce a mask of {x}", "draw around {x}",
    "draw a line around {x}", "get the shape of {x}", "follow the border of {x}", "show where {x} {be}",
    "show us {x}", "say where {x} {be}", "point out {x}", "point at {x}", "find out where {x} {be}",
    "see where {x} {be}", "lift {x} out of the background", "remove everything except {x}", "keep only {x}",
    "put your finger on {x}", "direct me to {x}", "guide me to {x}", "look at {x}", "find the pixels of {x}",
    "give me the outline of {x}", "sketch {x}", "figure out where {x} {be}", "take {x} and mask {it}",
    "examine {x}", "underline {x}", "encircle {x}", "ring {x}", "stamp {x}", "grab {x}", "snip out {x}",
    "carve out {x}",
    "select all of {x}", "choose {x}", "designate {x}", "expose {x}", "light up {x}", "glance at {x}", "consider {x}",
    "count the pixels of {x}", "tell apart {x}", "note {x}", "check {x}", "bring up {x}", "call up {x}",
    "describe with a mask where {x} {be}", "have a look at {x}", "erase all but {x}", "cover {x}", "scan for {x}",
    "map {x}", "measure {x}", "draw {x}", "draw the contour of {x}", "output {x}", "render {x} as a mask",
    "binarise {x}", "find {x} and show {it} to me", "see {x} and mark {it}", "spot {x} and give me {it} as a mask",
)  # fmt: skip
_CLOSERS = (
    "", "", "", "", " for me", " here", " in the photo", " in this drawing", " on the picture", " in the image",
    " with a mask", " right now", " if you can", " in this view", " as well as you can", " among these things",
    " somewhere here", " exactly", ", thanks", " in what you see", " at once", " from this image",
)  # fmt: skip
_ALONE = (
    "{x}", "{x}.", "{x}?", "{x}!", "only {x}", "just {x}.", "and {x}?", "now {x}.", "{x} please", "mask: {x}",
    "mask of {x}", "a mask for {x}.", "target: {x}.", "query: {x}", "find: {x}", "{x}, thank you.",
    "{x} in this image", "{x} in the picture.", "{x}, if you see {it}.", "{x}, as a mask.", "{x} here.",
    "what about {x}?", "and where {be} {x}?", "where exactly {be} {x}?", "where here {be} {x}?",
    "where on the picture {be} {x}?", "so where {be} {x}?", "where {be} {x} hiding?", "where did {x} go?",
    "where can {x} be?", "where could {x} be?", "where might {x} be?", "where would you find {x}?",
    "where can one find {x}?", "where should i look for {x}?", "where do i find {x}?", "whereabouts {be} {x}?",
    "at what spot {be} {x}?", "what spot shows {x}?", "what area {be} {x} in?", "what part of the image {be} {x}?",
    "what pixels are of {x}?", "which area {be} {x}?", "which pixels are part of {x}?", "which spot has {x}?",
    "{x}: where?", "{x}, where {be} {it}?", "{x} - where {be} {it}?", "{x}. where {be} {it}?", "i look for {x}.",
    "i search {x}.", "i am after {x}.", "i am interested in {x}.", "i want {x} masked.", "i want {x} cut out.",
    "i need {x} marked.", "i need to see {x}.", "i have to find {x}.", "i lost {x}. where {be} {it}?",
    "i can't see {x}, can you?", "my question is about {x}.", "my interest is {x}.", "we are looking for {x}.",
    "we need a mask of {x}.", "what i want {be} {x}.", "what i am looking for {be} {x}.", "show {x}", "show {x}.",
    "there should be {x}: where?", "this is about {x}.", "it is {x} that i want.", "a segmentation of {x}.",
    "the shape of {x}, please.", "the outline of {x}.", "the area of {x}, please.", "the place of {x}?",
    "the position of {x}?", "the pixels of {x}.", "let me know where {x} {be}.", "someone asked for {x}.",
    "{x}, quick!", "{x} if possible", "{x} would be good.", "hey, {x}?", "well, {x}.",
    "{x} is what i mean.", "i mean {x}.", "i think of {x}.", "i talk about {x}.", "with {x} i need help.",
    "can't find {x}.", "i do not see {x}. where?", "it should be {x}.", "let it be {x}.", "the answer is {x}; where?",
    "{x}, wherever {it} may be.", "{x}. that is all.", "{x}. thanks in advance!", "i ask you for {x}.",
    "my dog wants {x}.", "this time {x}.", "not the rest, only {x}.", "nothing but {x}.", "above all {x}.",
    "the teacher asks for {x}.", "my friend looks for {x}.", "do you see {x}? mask {it}.",
    "can you see {x}? show {it} to me.", "if you see {x}, mark {it}.", "once you see {x}, mask {it}.",
    "look closely: where {be} {x}?", "look for {x}, then mask {it}.", "look around for {x}.",
    "search {x}, mark {it}.", "for {x}, give me a mask.", "as for {x}, where {be} {it}?",
    "about {x}: where {be} {it}?", "of all things here, mark {x}.", "among all things, find {x}.",
    "in the image, where {be} {x}?", "in the picture there should be {x}; mark {it}.", "on this picture i want {x}.",
    "from this picture, cut out {x}.", "out of all this, pick {x}.",
)  # fmt: skip
_NAMES = (
    "{bare}", "{bare}!", "{bare} please", "one {bare}", "mask: {bare}", "{bare} mask", "{bare}: where?",
    "{bare} here?", "any {bare}?", "just {a}", "{a}, please.", "spot {a}.", "a mask for {a}.",
    "where {be} there {a}?", "i look for {a}.", "detect {a} here.", "i want {a}.", "give me {a}.",
    "is there {a}? mark {it}.", "if there {be} {a}, mark {it}.", "do you see {a}? where?",
    "there may be {a}: where?", "pick {a}.", "get {a}.", "identify {a}.", "isolate {a}.",
    "extract {a} from the image.", "search for {a} and mask {it}.",
)  # fmt: skip
_NEEDS = (
    "{x} is what i need.", "i could use {x}.", "i am in need of {x}.", "i want to have {x}.", "give me {x}, please.",
    "i would take {x}.", "which one would be {x}?", "which one could be {x}?", "what could be {x}?",
    "what would be {x}?", "what here could be {x}?", "what in the picture {be} {x}?",
    "what do you see that {be} {x}?", "who or what {be} {x}?", "what fits: {x}?", "which thing fits: {x}?",
    "think: {x}.", "a riddle: {x}.", "guess: {x}.", "guess which one {be} {x}.", "one thing here {be} {x}. which?",
    "find the thing: {x}.", "name and mark {x}.", "what {be} it: {x}?", "one of these things {be} {x}; mark {it}.",
    "which of them {be} {x}?", "which of the objects {be} {x}?", "out of these, which {be} {x}?",
    "among these things, which one {be} {x}?", "do you see {x}?", "is there {x} here?",
    "tell me which one {be} {x}.", "i think of {x}. show {it}.", "can you work out which one {be} {x}?",
)  # fmt: skip
_RELATIONS = (
    "what lies {rel}?", "what stands {rel}?", "what sits {rel}?", "whatever is {rel}.", "what is there {rel}?",
    "{rel}, what is there?", "{rel}: what is it?", "what do you find {rel}?", "mask what lies {rel}.",
    "something is {rel}; mark it.", "something is {rel}. what is it?", "what comes {rel}?",
    "is something {rel}? mark it.", "look {rel}: what is there?", "look {rel} and mask what is there.",
    "the one {rel}.", "show what lies {rel}.", "i want what is {rel}.", "cut out what is {rel}.",
    "which one is {rel}?", "which object stands {rel}?", "which thing do you see {rel}?", "pick what lies {rel}.",
    "identify what is {rel}.", "point at what is {rel}.",
)  # fmt: skip


def _wide(*extra: str) -> Wide:
    # A third of those that stand alone are the kind's own, where it has some.
    again = max(1, round(len(_ALONE) / (2 * len(extra)))) if extra else 0
    return Wide(_OPENERS, _BODIES, _CLOSERS, _ALONE + extra * again)


WIDE_REQUESTS: Mapping[str, Wide] = MappingProxyType(
    {
        "category": _wide(*_NAMES),
        "colour": _wide(),
        "group": _wide(*_NAMES),
        "size": _wide(),
        "position": _wide(),
        "relation": _wide(*_RELATIONS),
        "all": _wide(),
        "reasoning": _wide(*_NEEDS),
        "several": _wide(),
    }
)
"""Ways to ask for a mask, by kind of question, for training alone."""


WIDE_EXPRESSIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "name": (
            "the {n}", "the {n} here", "the {n} in the picture", "this {n}", "the {n} over there", "our {n}",
            "the one {n}", "the only {n}", "the {n} in it", "the {n} in this image",
            "that one {n}", "a certain {n}", "the {n} drawn here", "the {n} we see", "the {n} in view",
            "the whole {n}",
        ),
        "tint": (
            "the {n} in {c}", "the {c} coloured {n}", "the {n} which is {c}", "the {n} with the {c} colour",
            "the {c} one of the {ns}", "the {n}, the {c} one", "the one {n} that is {c}", "the {n} of {c} colour",
            "that {c} {n}", "the {c} looking {n}", "among the {ns} the {c} one", "this {c} {n}",
            "the {n} that looks {c}", "the {n} having a {c} colour", "the {n} that has {c} as its colour",
            "the {n} coloured {c}", "the {n}, which is {c}", "the {n} that was made {c}",
            "the {n} of the colour {c}", "the {c} {n} here", "the {n} showing {c}", "the {n} in the colour {c}",
            "the {n} where all is {c}", "the {c} one, a {n}",
        ),
        "biggest": (
            "the biggest of the {ns}", "the largest of all {ns}", "the {n} that takes the most space",
            "the very biggest {n}", "the {n} that covers the most", "the greatest {n}", "the most large {n}",
            "among the {ns} the biggest", "of the {ns} the largest one", "the {n} that is the largest",
            "whichever {n} is biggest", "the {n} with the biggest area", "the one {n} that is largest of all",
            "the {n} which is bigger than the rest", "the {n} larger than the others", "the {n} of the biggest area",
            "the {n} that is bigger than any other", "the {n} of the greatest size", "the hugest {n}",
            "the most big {n}", "the {n} with the greatest size", "the {n} that fills the most of the picture",
            "the {n} no other is larger than",
        ),
        "smallest": (
            "the smallest of the {ns}", "the {n} that takes the least space", "the very smallest {n}",
            "the tiniest {n}", "the {n} that covers the least", "the least large {n}", "the littlest {n}",
            "among the {ns} the smallest", "of the {ns} the smallest one", "whichever {n} is smallest",
            "the {n} with the smallest area", "the one {n} that is smallest of all",
            "the {n} which is smaller than the rest", "the {n} smaller than the others",
            "the {n} of the smallest area",
            "the {n} that is smaller than any other", "the {n} of the least size", "the most tiny {n}",
            "the {n} with the least size", "the {n} that fills the least of the picture",
            "the {n} no other is smaller than",
        ),
        "bigger": (
            "the {n} that is bigger", "the {n} that is larger", "the larger one of the {ns}",
            "the bigger of both {ns}", "of the two {ns} the larger", "of both {ns} the bigger one",
            "the {n} which is larger than the other", "the big {n}, not the small one", "whichever {n} is larger",
            "the {n} with the bigger area",
            "the big one of the {ns}", "the {n} that is the larger of the two", "the {n} of greater size",
            "the larger {n} of both", "the one that is bigger of the two {ns}", "the {n} that takes more space",
        ),
        "smaller": (
            "the {n} which is smaller", "the small {n}, not the big one", "the smaller one of the {ns}",
            "the smaller of both {ns}", "of the two {ns} the smaller", "of both {ns} the smaller one",
            "the {n} which is smaller than the other", "whichever {n} is smaller", "the {n} with the smaller area",
            "the little one of the {ns}", "the {n} that is the smaller of the two", "the {n} of lesser size",
            "the smaller {n} of both", "the one that is smaller of the two {ns}", "the {n} that takes less space",
        ),
        "leftmost": (
            "the {n} most to the left", "the left most {n}", "the furthest left {n}", "the {n} at the left end",
            "the first {n} from the left", "the {n} all the way to the left", "the leftmost of the {ns}",
            "of the {ns} the one furthest left", "the {n} left of all the others", "the {n} at the left border",
            "the {n} that lies furthest left", "the {n} close to the left side", "the {n} that is leftmost",
            "the {n} left of all the rest", "the {n} on the left border", "the {n} closest to the left",
            "the extreme left {n}", "the {n} that is on the left of all {ns}", "the {n} next to the left border",
        ),
        "rightmost": (
            "the {n} most to the right", "the right most {n}", "the furthest right {n}", "the {n} at the right end",
            "the first {n} from the right", "the {n} all the way to the right", "the rightmost of the {ns}",
            "of the {ns} the one furthest right", "the {n} right of all the others", "the {n} at the right border",
            "the {n} that lies furthest right", "the {n} close to the right side", "the {n} that is rightmost",
            "the {n} right of all the rest", "the {n} on the right border", "the {n} closest to the right",
            "the extreme right {n}", "the {n} that is on the right of all {ns}", "the {n} next to the right border",
        ),
        "topmost": (
            "the {n} furthest up", "the top {n}", "the uppermost {n}", "the {n} at the top end", "the {n} on top",
            "the first {n} from the top", "the {n} all the way up", "the topmost of the {ns}",
            "of the {ns} the highest one", "the {n} at the upper border", "the {n} that lies highest",
            "the {n} that is highest", "the {n} higher than the rest", "the {n} close to the top",
            "the {n} that is above the rest", "the {n} on the upper border", "the {n} closest to the top",
            "the {n} at the very top", "the {n} that is higher than any other", "the {n} over all the rest",
        ),
        "bottommost": (
            "the {n} lowest down", "the bottom {n}", "the lowermost {n}", "the {n} at the bottom end",
            "the first {n} from the bottom", "the {n} all the way down", "the bottommost of the {ns}",
            "of the {ns} the lowest one", "the {n} at the lower border", "the {n} that lies lowest",
            "the {n} that is lowest", "the {n} lower than the rest", "the {n} close to the bottom",
            "the {n} that is below the rest", "the {n} on the lower border", "the {n} closest to the bottom",
            "the {n} at the very bottom", "the {n} that is lower than any other", "the {n} under all the rest",
        ),
        "left": (
            "the {n} that is left", "the left one of the {ns}", "the left hand {n}", "of the two {ns} the left one",
            "of both {ns} the one to the left", "the {n} at the left", "the {n} on the left side",
            "the {n} to the left", "the {n} that lies left of the other", "the {n} left of the other one",
            "the left of both {ns}",
            "the {n} left of its fellow", "the one on the left of the two {ns}", "the {n} that is more to the left",
            "the left side {n}", "the {n} with the other on its right",
        ),
        "right": (
            "the {n} that is right", "the right one of the {ns}", "the right hand {n}",
            "of the two {ns} the right one", "of both {ns} the one to the right", "the {n} at the right",
            "the {n} on the right side", "the {n} to the right", "the {n} that lies right of the other",
            "the {n} right of the other one", "the right of both {ns}",
            "the {n} right of its fellow", "the one on the right of the two {ns}",
            "the {n} that is more to the right", "the right side {n}", "the {n} with the other on its left",
        ),
        "upper": (
            "the {n} that is higher", "the upper one of the {ns}", "the top {n} of the two",
            "of the two {ns} the upper one", "of both {ns} the higher one", "the {n} above",
            "the {n} on the upper side", "the {n} above the other", "the {n} that lies above the other one",
            "the upper of both {ns}",
            "the {n} over its fellow", "the one above of the two {ns}", "the {n} that is more up",
            "the upper side {n}", "the higher {n} of the two",
        ),
        "lower": (
            "the {n} which is lower", "the lower one of the {ns}", "the bottom {n} of the two",
            "of the two {ns} the lower one", "of both {ns} the lower one", "the {n} below",
            "the {n} on the lower side", "the {n} below the other", "the {n} that lies below the other one",
            "the lower of both {ns}",
            "the {n} under its fellow", "the one below of the two {ns}", "the {n} that is more down",
            "the lower side {n}", "the lower {n} of the two",
        ),
        "relation": (
            "the {n} which is {rel}", "the {n} that lies {rel}", "the {n} lying {rel}", "the {n} standing {rel}",
            "the {n} that stands {rel}", "the {n} that sits {rel}", "the one {n} {rel}", "the {n} just {rel}",
            "the {n}, the one {rel}", "the {n} placed {rel}", "the {n} found {rel}", "the {n} you find {rel}",
            "the {n} that one sees {rel}", "the {n} which lies {rel}", "the {n} which stands {rel}",
            "the {n} shown {rel}", "the {n} drawn {rel}", "the {n}, {rel}", "the {n} directly {rel}",
            "the {n} there is {rel}",
        ),
        "all": (
            "all of these {ns}", "all these {ns}", "all the {ns} here", "every one of the {ns}",
            "every single {each}", "all {ns} in the picture", "the {ns}, all of them", "all {ns} together",
            "each one of the {ns}", "these {ns}", "every {each} here", "all {ns} at once",
            "as many {ns} as there are", "the entire lot of {ns}", "all of those {ns}", "every {each} there is",
            "both or all {ns}", "each {each} you see",
        ),
        "all tint": (
            "all the {c} {ns}", "all {ns} in {c}", "the {ns} that are {c}", "every {each} that is {c}",
            "all {ns} of {c} colour", "each {c} {each}", "every single {c} {each}", "all {c} coloured {ns}",
            "every {c} {each} here", "all these {c} {ns}",
            "every one of the {c} {ns}", "the {ns} in {c}", "all {ns} coloured {c}", "as many {c} {ns} as there are",
            "each {each} that is {c}", "all of those {c} {ns}",
        ),
        "several": (
            "the {n}, and the {m}", "the {n} plus the {m}", "the {n} and the {m} too", "the {n} along with the {m}",
            "first the {n} and then the {m}", "two things: the {n} and the {m}", "the {n} & the {m}",
            "the {n}, then the {m}", "the {n} with the {m}", "the {n} and, besides, the {m}", "the {n} and this {m}",
            "this {n} and this {m}",
            "the {n}, also the {m}", "both {n} and {m}",
            "one {n} and one {m}", "the pair of the {n} and the {m}", "the {n} - and the {m}",
        ),
    }
)  # fmt: skip
"""More ways to refer to objects; those of "several" keep the order of the two."""
_FILLED_IN = {"name", "tint", "relation", "all tint", "several"}

WIDE_RELATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "left of": (
            "on the left of {o}", "at the left of {o}", "just left of {o}", "to the left side of {o}",
            "left from {o}", "further left than {o}", "on {o}'s left",
            "leftwards of {o}", "more to the left than {o}", "over to the left of {o}", "to {o}'s left",
        ),
        "right of": (
            "on the right of {o}", "at the right of {o}", "just right of {o}", "to the right side of {o}",
            "right from {o}", "further right than {o}", "on {o}'s right",
            "rightwards of {o}", "more to the right than {o}", "over to the right of {o}", "to {o}'s right",
        ),
        "above": (
            "on top of {o}", "just above {o}", "up above {o}", "right over {o}", "higher than {o}",
            "somewhere above {o}", "further up than {o}",
            "more up than {o}", "at a higher place than {o}", "straight above {o}", "upwards of {o}",
        ),
        "below": (
            "underneath {o}", "beneath {o}", "just below {o}", "down below {o}", "lower than {o}",
            "somewhere below {o}", "further down than {o}",
            "more down than {o}", "at a lower place than {o}", "straight below {o}", "downwards of {o}",
        ),
        "next to": (
            "close to {o}", "near {o}", "by {o}", "right next to {o}", "nearest of all to {o}", "at the side of {o}",
            "close by {o}", "near to {o}",
            "touching or nearest to {o}", "in the place nearest to {o}", "not far from {o}",
            "as close as can be to {o}", "next by {o}",
        ),
    }
)  # fmt: skip
"""More ways to place something beside another object."""

WIDE_THING_WORDS = ("item", "figure", "drawing")
"""More words for any object."""


UNKNOWN_NOUNS = (
    "anchor", "arrow", "backpack", "balloon", "barrel", "bear", "beetle", "bench", "boot", "bottle", "bracelet",
    "brick", "bridge", "brush", "bucket", "button", "calculator", "canoe", "castle", "cello", "cherry", "clock",
    "cloud", "coat", "compass", "crow", "curtain", "deer", "diamond", "dinosaur", "dolphin", "dragon", "drill",
    "eagle", "engine", "envelope", "fan", "fence", "fern", "ferry", "fig", "flag", "flute", "fork", "fox", "frog",
    "garlic", "gate", "ghost", "giraffe", "goat", "goose", "gorilla", "hedgehog", "helmet", "horse", "jacket", "jar",
    "kettle", "kite", "lamp", "lantern", "leaf", "lion", "lizard", "lobster", "magnet", "microscope", "mirror",
    "moose", "mosquito", "motorbike", "mountain", "mouse", "mug", "necklace", "needle", "nest", "oven", "panda",
    "parachute", "peach", "pear", "pen", "pencil", "pepper", "plate", "plum", "potato", "pumpkin", "purse", "puzzle",
    "raccoon", "robot", "rope", "ruler", "sandwich", "scooter", "seal", "ship", "shovel", "skateboard", "sled",
    "snail", "snake", "spider", "spoon", "squirrel", "statue", "suitcase", "sweater", "sword", "table", "taxi",
    "telescope", "tent", "tiger", "toaster", "toothbrush", "truck", "tuba", "vase", "wallet", "whistle", "wolf",
    "worm", "wrench", "zebra",
)  # fmt: skip
"""Names of things that no scene shows; no class, group or description has any of them."""


def unknown_noun(rng: np.random.Generator) -> str:
    """One of `UNKNOWN_NOUNS`, or, half of the time, a made-up word."""
    return UNKNOWN_NOUNS[int(rng.integers(len(UNKNOWN_NOUNS)))] if rng.random() < 0.5 else _made_up(rng)


def wide_expression(way: str, rng: np.random.Generator, words: Mapping[str, str]) -> str:
    """A phrase of `WIDE_EXPRESSIONS`, filled with ``words``; in some a word or two are made up.

    Made up are only words of ways whose meaning lies in what is filled in.
    """
    bank = WIDE_EXPRESSIONS[way]
    template = bank[int(rng.integers(len(bank)))]
    strange = way in _FILLED_IN and rng.random() < 0.25
    return (_estranged(template, rng) if strange else template).format_map(words)
