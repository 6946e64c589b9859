"""What may be asked about a layout: for each kind of question every true and false premise, and its answer.

A form of question is a function (context, present) -> drafts in random order: those whose premise is true, or those
whose premise is false. Owns the few fixed forms of answers. An answer first says in plain words what was asked for,
then settles whether it is there: "the cow [SEG]." or "the cow is not here, but there is a horse."; where the question
named no class it goes on to say which thing it is: "the bird above the cow is the owl [SEG]." So a model decides when
what it has to look for stands just before, in words that do not depend on how the question was put. What is true comes
from facts.py, how it is worded from questions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from readseg.data.types import SEG
from readseg.scenes import facts
from readseg.scenes.classes import CLASSES, GROUPS, TINTS, WIDE_GROUPS, article
from readseg.scenes.facts import Extreme, Layout, Noun, Relation, wide_group
from readseg.scenes.phrases import EXPRESSIONS, RELATIONS, unknown_noun

T = TypeVar("T")
Source = Literal["train", "held_out"]
Scope = Literal["thing", "group", "class"]
HARD_SHARE = 0.8
"""Share of false premises that ask for a class whose group is there."""
NUMBERS = (
    *("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen"),
)
"""Counts as they are answered."""

_COMPARATIVES: Mapping[Extreme, str] = {
    "biggest": "bigger",
    "smallest": "smaller",
    "leftmost": "left",
    "rightmost": "right",
    "topmost": "upper",
    "bottommost": "lower",
}
_SIZES: tuple[Extreme, ...] = ("biggest", "smallest")
_PLACES: tuple[Extreme, ...] = ("leftmost", "rightmost", "topmost", "bottommost")


@dataclass(frozen=True)
class Draft:
    """A question before its wording.

    Attributes:
        way: key of ``EXPRESSIONS``, how the object is referred to.
        words: what fills the placeholders of the expression.
        answer: the answer, one "[SEG]" per target.
        targets: for each [SEG] the indices of the things whose union is its mask.
        anchors: things that the question leans on ("above the {cow}").
        asked: classes that are asked for and absent.
        group: group that an absent thing would belong to.
        relation: where the object is from the anchor ``words["o"]``, if that is how it is referred to.
        is_plural: whether the expression takes "are".
    """

    way: str
    words: Mapping[str, str]
    answer: str
    targets: tuple[tuple[int, ...], ...] = ()
    anchors: tuple[int, ...] = ()
    asked: tuple[str, ...] = ()
    group: str | None = None
    relation: Relation | None = None
    is_plural: bool = False
    subject: str = field(init=False)
    """The plain form of the expression, without "the"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", plain_form(self.way, self.words, self.relation))


@dataclass(frozen=True)
class Context:
    """What forms draw from: the facts, a random generator, which descriptions, the classes that may be absent.

    strange: see `questions.ask`; at 0 no form draws anything for it.
    """

    layout: Layout
    rng: np.random.Generator
    descriptions: Source
    pool: Mapping[str, Sequence[str]]
    """Names of classes by group."""
    strange: float = 0.0

    def is_strange(self, share: float = 1.0) -> bool:
        """By lot, whether a false premise goes beyond those of the test set; `share` times as often as `strange`."""
        return self.strange > 0 and bool(self.rng.random() < self.strange * share)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        return [items[i] for i in self.rng.permutation(len(items)).tolist()]

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[int(self.rng.integers(len(items)))]


Form = Callable[[Context, bool], Iterator[Draft]]


def plain_form(way: str, words: Mapping[str, str], relation: Relation | None = None) -> str:
    """An object in plain words, without "the": "left cow", "bird to the left of the cow"."""
    place = {} if relation is None else {"rel": RELATIONS[relation].short[0].format_map(words)}
    return EXPRESSIONS[way].short[0].format_map({**words, **place}).removeprefix("the ")


def _words(noun: Noun, tint: str = "") -> dict[str, str]:
    """Placeholders of an expression for a noun."""
    return {"n": noun.word, "ns": noun.plural, "each": noun.counted, "c": tint}


def found(name: str, *, among: str | None = None) -> str:
    """The answer that names and segments one thing; ``among`` says what it was asked for as.

    >>> found("cow"), found("apple", among="fruit")
    ('the cow [SEG].', 'the fruit is the apple [SEG].')
    """
    return f"the {name} {SEG}." if among is None else f"the {among} is the {name} {SEG}."


def refusal(what: str, *, are: bool = False, similar: str | None = None, nor: Noun | None = None) -> str:
    """The answer to a false premise; ``nor`` is something else that is not there.

    >>> refusal("cow", similar="a horse")
    'the cow is not here, but there is a horse.'
    """
    but = f", but there is {similar}" if similar else ""
    also = f", nor {'are' if nor.is_plural else 'is'} the {nor.word}" if nor else ""
    return f"the {what} {'are' if are else 'is'} not here{but}{also}."


def _similar(context: Context, group: str | None) -> str | None:
    index = context.layout.similar(group)
    return None if index is None else article(CLASSES[context.layout.names[index]].counted)


def _absent_classes(context: Context, *, known: bool = False) -> Iterator[Noun]:
    """Classes that are not there, mostly of a group that is there (as often as it has things), else of any group.

    Some are words that no class has, unless they must be known.
    """
    layout = context.layout
    every = [name for names in context.pool.values() for name in names]
    for _ in range(12):
        if not known and context.is_strange():
            yield _unknown(context)
            continue
        hard = bool(layout.groups) and context.rng.random() < HARD_SHARE
        names = context.pool.get(context.pick(layout.groups), ()) if hard else every
        if names:
            noun = layout.class_noun(context.pick(names))
            if not noun.members:
                yield noun


def _unknown(context: Context) -> Noun:
    """A noun that no scene shows: a real one that is no class, or a made-up one."""
    word = unknown_noun(context.rng)
    return Noun(word, f"{word}s", word, False, "class", (), None)


def _absent_groups(context: Context) -> Iterator[Noun]:
    """Groups that are not there, first those that share a group of groups with one that is, mostly."""
    layout = context.layout
    nouns = [layout.group_noun(g) for g in (*GROUPS.values(), *WIDE_GROUPS.values())]
    nouns = context.shuffled([noun for noun in nouns if not noun.members])
    if context.rng.random() < HARD_SHARE:
        nouns.sort(key=lambda noun: _similar(context, wide_group(noun.group or "")) is None)
    yield from nouns


def _category(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "the cow": the only one of its class."""
    if not present:
        for noun in _absent_classes(context):
            yield _absent(context, noun, "name", _words(noun))
        return
    for noun in context.shuffled(context.layout.classes):
        index = context.layout.only(noun.members)
        if index is not None:
            yield Draft("name", _words(noun), found(noun.word), ((index,),), is_plural=noun.is_plural)


def _absent(
    context: Context, noun: Noun, way: str, words: Mapping[str, str], relation: Relation | None = None
) -> Draft:
    """A draft that asks for a class or a group that is not there."""
    is_class = noun.kind == "class"
    similar = _similar(context, noun.group if is_class else wide_group(noun.group or ""))
    answer = refusal(plain_form(way, words, relation), are=noun.is_plural, similar=similar)
    asked = (noun.word,) if is_class else ()
    return Draft(way, words, answer, asked=asked, group=noun.group, relation=relation, is_plural=noun.is_plural)


def _group(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "the bird": the only one of its group."""
    if not present:
        for noun in _absent_groups(context):
            yield _absent(context, noun, "name", _words(noun))
        return
    for noun in context.shuffled(context.layout.supers):
        index = context.layout.only(noun.members)
        if index is not None:
            answer = found(context.layout.names[index], among=noun.word)
            yield Draft("name", _words(noun), answer, ((index,),))


def _with_tint(layout: Layout, noun: Noun, tint: str) -> tuple[int, ...]:
    return tuple(i for i in noun.members if layout.tints[i] == tint)


def _colour(context: Context, present: bool, *, scope: Scope) -> Iterator[Draft]:
    """Ask "the blue thing", "the blue bird", "the blue cow" (which may stand beside a red one): the only such one.

    False premises prefer a tint that something else has, and name what has the right noun in another tint.
    """
    layout = context.layout
    if not layout.tinted:
        return
    nouns = context.shuffled([noun for noun in _nouns(layout, scope) if scope != "group" or len(noun.members) > 1])
    if context.rng.random() < 0.5:
        nouns.sort(key=lambda noun: len(noun.members) < 2)
    if not present and scope == "class" and context.is_strange(2.0):
        for noun in _absent_classes(context):
            yield _absent(context, noun, "tint", _words(noun, context.pick(TINTS)))
    there = context.shuffled(sorted({str(tint) for tint in layout.tints}))
    tints = there if present else there + context.shuffled([tint for tint in TINTS if tint not in there])
    for noun in nouns:
        for tint in tints:
            members = _with_tint(layout, noun, tint)
            words = _words(noun, tint)
            if present:
                index = layout.only(members)
                if index is not None:
                    answer = _found(layout, index, scope, "tint", words)
                    yield Draft("tint", words, answer, ((index,),), is_plural=noun.is_plural)
            elif not members:
                other = None if scope == "thing" else layout.similar_of(noun.members)
                similar = None if other is None else _a_tinted(layout, other)
                answer = refusal(plain_form("tint", words), are=noun.is_plural, similar=similar)
                yield Draft("tint", words, answer, group=noun.group, is_plural=noun.is_plural)
                break


def _a_tinted(layout: Layout, index: int) -> str:
    return article(f"{layout.tints[index]} {CLASSES[layout.names[index]].counted}")


def _extreme(context: Context, present: bool, *, scope: Scope, kinds: tuple[Extreme, ...]) -> Iterator[Draft]:
    """Ask "the biggest thing", "the leftmost bird", "the smaller cow" (of two): see `Layout.extreme`."""
    layout = context.layout
    if not present and scope != "thing":
        for noun in _absent_groups(context) if scope == "group" else _absent_classes(context):
            which = context.pick(kinds)
            way = which if scope == "group" and context.rng.random() < 0.7 else _COMPARATIVES[which]
            yield _absent(context, noun, way, _words(noun))
    nouns = _nouns(layout, scope) if present else ()
    pairs = [(noun, which) for noun in nouns if len(noun.members) > 1 for which in kinds]
    for noun, which in context.shuffled(pairs):
        index = layout.extreme(noun.members, which)
        if index is None or not layout.answerable(index):
            continue
        two = len(noun.members) == 2 and scope != "thing"
        way = _COMPARATIVES[which] if two and (scope == "class" or context.rng.random() < 0.5) else which
        words = _words(noun)
        answer = _found(layout, index, scope, way, words)
        yield Draft(way, words, answer, ((index,),), is_plural=noun.is_plural)


def _found(
    layout: Layout, index: int, scope: Scope, way: str, words: Mapping[str, str], relation: Relation | None = None
) -> str:
    """The answer that repeats in plain words what was asked for, and names it where that was no class."""
    plain = plain_form(way, words, relation)
    return found(plain) if scope == "class" else found(layout.names[index], among=plain)


def _relation(context: Context, present: bool, *, scope: Scope) -> Iterator[Draft]:
    """Ask "the thing to the left of the cow", "the bird above the cow": see `Layout.related`.

    False premises: nothing such lies there, or the other object is not there at all.
    """
    layout = context.layout
    if not present and context.rng.random() < 0.4:
        yield from _relation_to_absent(context, scope)
    anchors = [noun for noun in layout.classes if len(noun.members) == 1]
    anchors = [noun for noun in anchors if layout.areas[noun.members[0]] >= facts.TARGET_AREA[0]]
    if not present and scope == "class" and anchors and context.is_strange(2.0):
        for noun in _absent_classes(context):
            words = {**_words(noun), "o": f"the {context.pick(anchors).word}"}
            yield _absent(context, noun, "relation", words, context.pick(facts.RELATIONS))
    for anchor, relation in context.shuffled([(a, r) for a in anchors for r in facts.RELATIONS]):
        at = anchor.members[0]
        nouns = [noun for noun in _nouns(layout, scope) if set(noun.members) - {at}]
        if not nouns:
            continue
        noun = context.pick(nouns)
        words = {**_words(noun), "o": f"the {anchor.word}"}
        if present:
            index = layout.related(noun.members, relation, at)
            if index is not None and layout.answerable(index):
                answer = _found(layout, index, scope, "relation", words, relation)
                yield Draft("relation", words, answer, ((index,),), (at,), relation=relation, is_plural=noun.is_plural)
        elif layout.none_related(noun.members, relation, at):
            other = None if scope == "thing" else layout.similar_of(tuple(i for i in noun.members if i != at))
            elsewhere = None if other is None else f"{article(CLASSES[layout.names[other]].counted)} elsewhere"
            answer = refusal(plain_form("relation", words, relation), are=noun.is_plural, similar=elsewhere)
            yield Draft(
                "relation", words, answer, (), (at,), group=noun.group, relation=relation, is_plural=noun.is_plural
            )


def _nouns(layout: Layout, scope: Scope) -> tuple[Noun, ...]:
    return {"thing": (layout.things,), "group": layout.supers, "class": layout.classes}[scope]


def _relation_to_absent(context: Context, scope: Scope) -> Iterator[Draft]:
    for anchor in _absent_classes(context):
        noun = context.pick(_nouns(context.layout, scope))
        words = {**_words(noun), "o": f"the {anchor.word}"}
        relation = context.pick(facts.RELATIONS)
        yield Draft(
            "relation",
            words,
            refusal(plain_form("relation", words, relation), are=noun.is_plural, nor=anchor),
            asked=(anchor.word,),
            group=anchor.group,
            relation=relation,
            is_plural=noun.is_plural,
        )


def _all(context: Context, present: bool, *, scope: Scope) -> Iterator[Draft]:
    """Ask "all cows", "every bird", "all red things": at least two, whose union is one mask."""
    layout = context.layout
    if scope == "thing":
        for tint in context.shuffled(TINTS) if layout.tinted else ():
            members = _with_tint(layout, layout.things, tint)
            words = _words(layout.things, tint)
            if present and len(members) > 1 and layout.answerable_union(members):
                yield Draft("all tint", words, f"the {tint} things {SEG}.", (members,), is_plural=True)
            elif not present and not members:
                yield Draft("all tint", words, refusal(f"{tint} things", are=True), is_plural=True)
    elif present:
        for noun in context.shuffled(_nouns(layout, scope)):
            if len(noun.members) > 1 and layout.answerable_union(noun.members):
                yield Draft("all", _words(noun), f"the {noun.plural} {SEG}.", (noun.members,), is_plural=True)
    else:
        for noun in _absent_groups(context) if scope == "group" else _absent_classes(context):
            near = noun.group if scope == "class" else wide_group(noun.group or "")
            answer = refusal(noun.plural, are=True, similar=_similar(context, near))
            asked = (noun.word,) if scope == "class" else ()
            yield Draft("all", _words(noun), answer, asked=asked, group=noun.group, is_plural=True)


def _describe(context: Context, noun: Noun) -> str | None:
    """One of the descriptions of a class, without its name; None if it has none."""
    c = CLASSES[noun.word]
    choices = c.held_out_descriptions if context.descriptions == "held_out" else c.descriptions
    return context.pick(choices) if choices else None


def _reasoning(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "something to cut paper with": what a thing is or is for; the answer names it."""
    layout = context.layout
    for noun in context.shuffled(layout.classes) if present else _absent_classes(context, known=True):
        description = _describe(context, noun)
        index = layout.only(noun.members)
        if description is None or (present and index is None):
            continue
        words = {"d": description}
        if index is not None:
            yield Draft("description", words, found(noun.word), ((index,),))
        else:
            answer = refusal(noun.word, are=noun.is_plural, similar=_similar(context, noun.group))
            yield Draft("description", words, answer, asked=(noun.word,), group=noun.group)


def _several(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "the cow and the car": two masks. False premise: one of them, or both, are not there."""
    layout = context.layout
    there = [noun for noun in context.shuffled(layout.classes) if layout.only(noun.members) is not None]
    if present:
        for first, second in pairwise(there):
            answer = f"the {first.word} {SEG} and the {second.word} {SEG}."
            words = {"n": first.word, "m": second.word}
            yield Draft("several", words, answer, (first.members, second.members), is_plural=True)
        return
    absent = list({noun.word: noun for noun in _absent_classes(context)}.values())
    for noun, other in pairwise(absent):
        if there and context.rng.random() < 0.7:
            other = there[0]
            answer = refusal(noun.word, are=noun.is_plural, similar=other.a)
            asked: tuple[str, ...] = (noun.word,)
        else:
            answer = refusal(f"{noun.word} and the {other.word}", are=True)
            asked = (noun.word, other.word)
        pair = (noun, other) if context.rng.random() < 0.5 or not other.members else (other, noun)
        words = {"n": pair[0].word, "m": pair[1].word}
        yield Draft("several", words, answer, asked=asked, group=noun.group, is_plural=True)


def _count(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "how many birds are there?": any noun that covers no hidden thing, also absent ones."""
    layout = context.layout
    nouns = [*layout.classes, *layout.supers, layout.things] if present else []
    absent = iter(()) if present else _either(context, _absent_classes(context), _absent_groups(context))
    for noun in (*context.shuffled(nouns), *absent):
        if layout.clear(noun.members) and len(noun.members) < len(NUMBERS):
            asked = () if noun.members else (noun.word,) if noun.kind == "class" else ()
            answer = f"{NUMBERS[len(noun.members)]}."
            yield Draft("all", _words(noun), answer, asked=asked, anchors=noun.members, group=noun.group)


def _either(context: Context, first: Iterator[T], second: Iterator[T]) -> Iterator[T]:
    return first if context.rng.random() < 0.5 else second


def _exists(context: Context, present: bool, *, form: Form) -> Iterator[Draft]:
    """Ask "is there a cow?", answered yes or no; what is asked for is that of a form that segments."""
    for draft in form(context, present):
        answer = f"no, {draft.answer}"
        if present:
            layout, (index,) = context.layout, draft.targets[0]
            name = _a_tinted(layout, index) if draft.way == "tint" else article(CLASSES[layout.names[index]].counted)
            answer = f"yes, there is {name}."
        yield Draft(
            draft.way,
            draft.words,
            answer,
            anchors=tuple(i for target in draft.targets for i in target),
            asked=draft.asked,
            group=draft.group,
        )


def _tint(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "what colour is the cow?"."""
    layout = context.layout
    for noun in context.shuffled(layout.classes) if layout.tinted and present else ():
        if len(noun.members) == 1 and layout.areas[noun.members[0]] >= facts.PART_AREA:
            answer = f"{layout.tints[noun.members[0]]}."
            yield Draft("name", _words(noun), answer, anchors=noun.members, is_plural=noun.is_plural)


def _naming(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "what is the name of the biggest thing?"."""
    for draft in _extreme(context, present, scope="thing", kinds=_SIZES + _PLACES):
        (index,) = draft.targets[0]
        name = CLASSES[context.layout.names[index]].counted
        yield Draft(draft.way, draft.words, f"{article(name)}.", anchors=(index,))


def _listing(context: Context, present: bool) -> Iterator[Draft]:
    """Ask "what is in the picture?": everything from left to right, where that order is clear."""
    layout = context.layout
    order = sorted(layout.things.members, key=lambda i: layout.centres[i])
    gaps = [layout.centres[b][0] - layout.centres[a][0] for a, b in pairwise(order)]
    if not present or len(order) < 2 or not layout.clear(layout.things.members) or min(gaps) < 0.03:
        return
    names = [article(CLASSES[layout.names[i]].counted) for i in order]
    answer = f"{', '.join(names[:-1])} and {names[-1]}."
    yield Draft("all", _words(layout.things), answer, anchors=layout.things.members)


_SCOPES: tuple[Scope, ...] = ("thing", "group", "class")

SEGMENTING: Mapping[str, tuple[Form, ...]] = {
    "category": (_category,),
    "colour": tuple(partial(_colour, scope=scope) for scope in (*_SCOPES, "class")),
    "group": (_group,),
    "size": tuple(partial(_extreme, scope=scope, kinds=_SIZES) for scope in _SCOPES),
    "position": tuple(partial(_extreme, scope=scope, kinds=_PLACES) for scope in _SCOPES),
    "relation": tuple(partial(_relation, scope=scope) for scope in _SCOPES),
    "all": tuple(partial(_all, scope=scope) for scope in _SCOPES),
    "reasoning": (_reasoning,),
    "several": (_several,),
}
"""Forms of the kinds of question that ask for masks."""

PLAIN: Mapping[str, tuple[Form, ...]] = {
    "count": (_count,),
    "exists": tuple(
        partial(_exists, form=form)
        for form in (_category, _category, _group, _reasoning, partial(_colour, scope="class"))
    ),
    "tint": (_tint,),
    "naming": (_naming,),
    "listing": (_listing,),
}
"""Forms of the kinds of question that are answered in words."""
