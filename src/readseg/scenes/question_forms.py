"""What may be asked about a scene: for each kind of question every true and false premise, and its answer.

A question form is a function (context, present) -> drafts in random order: those whose premise is true, or those whose
premise is false. An answer first says in plain words what was asked for, then settles whether it is there, then which
object it is where the question named no class: "the bird above the cow is the owl [SEG].", "the cow is not here, but
there is a horse." So a model decides when what it has to look for stands just before, however the question was put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from readseg.core.types import SEG
from readseg.scenes import phrases
from readseg.scenes.classes import CLASSES, TINTS, WIDE_GROUP_OF, article
from readseg.scenes.facts import PART_AREA, RELATIONS, TARGET_AREA, Extreme, Noun, Relation, SceneFacts

T = TypeVar("T")
Source = Literal["train", "held_out"]
Scope = Literal["thing", "group", "class"]
Words = Mapping[str, str]
HARD_SHARE = 0.8  # share of false premises that ask for a class whose group is there
# Of each extreme of many: what it is called of two.
_SIZES: dict[Extreme, str] = {"biggest": "bigger", "smallest": "smaller"}
_POSITIONS: dict[Extreme, str] = {"leftmost": "left", "rightmost": "right", "topmost": "upper", "bottommost": "lower"}


@dataclass(frozen=True)
class QuestionDraft:
    """A question before its wording: the key of its expression in `EXPRESSIONS`, what fills that, and the answer.

    targets: for each [SEG] of the answer the indices of the objects whose union is its mask. anchors: objects that the
    question leans on ("above the {cow}"). absent: classes that are asked for and not there. group: that an absent
    object would belong to. relation: where the object is from the anchor `words["o"]`, if that is how it is referred
    to. is_plural: whether the expression takes "are".
    """

    template_key: str
    words: Words
    answer: str
    targets: tuple[tuple[int, ...], ...] = ()
    anchors: tuple[int, ...] = ()
    absent: tuple[str, ...] = ()
    group: str | None = None
    relation: Relation | None = None
    is_plural: bool = False

    @cached_property
    def subject(self) -> str:
        """The plain form of the expression, without "the"."""
        return plain_form(self.template_key, self.words, self.relation)


@dataclass(frozen=True)
class Context:
    """What forms draw from: facts, a random generator, which descriptions, the classes that may be absent by group."""

    facts: SceneFacts
    rng: np.random.Generator
    descriptions: Source
    class_pool: Mapping[str, Sequence[str]]
    unknown_noun_rate: float = 0.0  # see `questions.ask`; at 0 no form draws anything for it

    def leaves_test_set(self, times: float = 1.0) -> bool:
        """Whether a false premise goes beyond those of the test set: at random, `times` the rate of unknown nouns."""
        return self.unknown_noun_rate > 0 and bool(self.rng.random() < self.unknown_noun_rate * times)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        return [items[i] for i in self.rng.permutation(len(items)).tolist()]

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[int(self.rng.integers(len(items)))]


QuestionForm = Callable[[Context, bool], Iterator[QuestionDraft]]


def plain_form(template_key: str, words: Words, relation: Relation | None = None) -> str:
    """An object in plain words, without "the": "left cow", "bird to the left of the cow"."""
    rel = {} if relation is None else {"rel": phrases.RELATIONS[relation].short[0].format_map(words)}
    return phrases.EXPRESSIONS[template_key].short[0].format_map({**words, **rel}).removeprefix("the ")


def refusal(what: str, *, are: bool = False, similar: str | None = None, nor: Noun | None = None) -> str:
    """The answer to a false premise: "the cow is not here, but there is a horse."; `nor`: something else not there."""
    but = f", but there is {similar}" if similar else ""
    also = f", nor {'are' if nor.is_plural else 'is'} the {nor.word}" if nor else ""
    return f"the {what} {'are' if are else 'is'} not here{but}{also}."


def _words(noun: Noun, tint: str = "") -> dict[str, str]:
    """What a noun fills in an expression."""
    return {"n": noun.word, "ns": noun.plural, "each": noun.counted, "c": tint}


def _nouns(facts: SceneFacts, scope: Scope) -> tuple[Noun, ...]:
    return {"thing": (facts.everything,), "group": facts.group_nouns, "class": facts.class_nouns}[scope]


def _a(facts: SceneFacts, index: int, *, tinted: bool = False) -> str:
    """An object with its indefinite article: "a cow", "an orange cow"."""
    noun = CLASSES[facts.names[index]].counted
    return article(f"{facts.tints[index]} {noun}" if tinted else noun)


def _similar(context: Context, group: str | None) -> str | None:
    """The largest visible object of a group, or of a group of groups, with its article, to name in a refusal."""
    members = (i for noun in context.facts.group_nouns if noun.group == group for i in noun.members)
    index = context.facts.largest(tuple(members))
    return None if index is None else _a(context.facts, index)


def _absent_classes(context: Context, *, known: bool = False) -> Iterator[Noun]:
    """Classes that are not there, mostly of a group that is there (as often as it has objects), else of any group.

    Some are words that no class has, unless they must be known.
    """
    facts = context.facts
    every = [name for names in context.class_pool.values() for name in names]
    for _ in range(12):
        if not known and context.leaves_test_set():
            word = phrases.unknown_noun(context.rng)
            yield Noun(word, f"{word}s", word, False, "class", (), None)
            continue
        hard = bool(facts.groups) and context.rng.random() < HARD_SHARE
        names = context.class_pool.get(context.pick(facts.groups), ()) if hard else every
        if names:
            noun = facts.class_noun(context.pick(names))
            if not noun.members:
                yield noun


def _absent_groups(context: Context) -> Iterator[Noun]:
    """Groups that are not there, first those that share a group of groups with one that is, mostly."""
    nouns = context.shuffled([noun for noun in context.facts.all_group_nouns if not noun.members])
    if context.rng.random() < HARD_SHARE:
        nouns.sort(key=lambda noun: _similar(context, WIDE_GROUP_OF.get(noun.group or "")) is None)
    yield from nouns


def _absent_nouns(context: Context, scope: Scope) -> Iterator[Noun]:
    return _absent_groups(context) if scope == "group" else _absent_classes(context)


def _absent_draft(
    context: Context, noun: Noun, key: str, words: Words, relation: Relation | None = None, *, all_of: bool = False
) -> QuestionDraft:
    """A draft that asks for a class or a group that is not there; `all_of`: for all of it."""
    is_class, is_plural = noun.kind == "class", all_of or noun.is_plural
    similar = _similar(context, noun.group if is_class else WIDE_GROUP_OF.get(noun.group or ""))
    what = noun.plural if all_of else plain_form(key, words, relation)
    answer, absent = refusal(what, are=is_plural, similar=similar), (noun.word,) if is_class else ()
    return QuestionDraft(key, words, answer, absent=absent, group=noun.group, relation=relation, is_plural=is_plural)


def _present_draft(
    context: Context, noun: Noun, index: int, key: str, words: Words, relation: Relation | None = None
) -> QuestionDraft:
    """A draft that asks for one object by a noun; its answer names the object where that noun is no class."""
    plain, name = plain_form(key, words, relation), context.facts.names[index]
    answer = f"the {plain} {SEG}." if noun.kind == "class" else f"the {plain} is the {name} {SEG}."
    return QuestionDraft(key, words, answer, ((index,),), relation=relation, is_plural=noun.is_plural)


def _named(context: Context, present: bool, *, scope: Scope) -> Iterator[QuestionDraft]:
    """Ask "the cow", "the bird": the only one of its class or group."""
    if not present:
        for noun in _absent_nouns(context, scope):
            yield _absent_draft(context, noun, "name", _words(noun))
        return
    for noun in context.shuffled(_nouns(context.facts, scope)):
        index = context.facts.only(noun.members)
        if index is not None:
            yield _present_draft(context, noun, index, "name", _words(noun))


def _colour(context: Context, present: bool, *, scope: Scope) -> Iterator[QuestionDraft]:
    """Ask "the blue thing", "the blue bird", "the blue cow" (which may stand beside a red one): the only such one.

    False premises prefer a tint that something else has, and name what has the right noun in another tint.
    """
    facts = context.facts
    if not facts.tinted:
        return
    nouns = context.shuffled([noun for noun in _nouns(facts, scope) if scope != "group" or len(noun.members) > 1])
    if context.rng.random() < 0.5:
        nouns.sort(key=lambda noun: len(noun.members) < 2)
    if not present and scope == "class" and context.leaves_test_set(2.0):
        for noun in _absent_classes(context):
            yield _absent_draft(context, noun, "tint", _words(noun, context.pick(TINTS)))
    used = context.shuffled(sorted({str(tint) for tint in facts.tints}))
    tints = used if present else used + context.shuffled([tint for tint in TINTS if tint not in used])
    for noun in nouns:
        for tint in tints:
            members = tuple(i for i in noun.members if facts.tints[i] == tint)
            words = _words(noun, tint)
            if present:
                index = facts.only(members)
                if index is not None:
                    yield _present_draft(context, noun, index, "tint", words)
            elif not members:
                other = None if scope == "thing" else facts.largest(noun.members)
                similar = None if other is None else _a(facts, other, tinted=True)
                answer = refusal(plain_form("tint", words), are=noun.is_plural, similar=similar)
                yield QuestionDraft("tint", words, answer, group=noun.group, is_plural=noun.is_plural)
                break


def _extreme(
    context: Context, present: bool, *, scope: Scope, comparatives: Mapping[Extreme, str]
) -> Iterator[QuestionDraft]:
    """Ask "the biggest thing", "the leftmost bird", "the smaller cow" (of two): see `SceneFacts.extreme`."""
    facts = context.facts
    if not present and scope != "thing":
        for noun in _absent_nouns(context, scope):
            which = context.pick(tuple(comparatives))
            key = which if scope == "group" and context.rng.random() < 0.7 else comparatives[which]
            yield _absent_draft(context, noun, key, _words(noun))
    nouns = _nouns(facts, scope) if present else ()
    pairs = [(noun, which) for noun in nouns if len(noun.members) > 1 for which in comparatives]
    for noun, which in context.shuffled(pairs):
        index = facts.extreme(noun.members, which)
        if index is None or not facts.answerable(index):
            continue
        two = len(noun.members) == 2 and scope != "thing"
        key = comparatives[which] if two and (scope == "class" or context.rng.random() < 0.5) else which
        yield _present_draft(context, noun, index, key, _words(noun))


def _relation(context: Context, present: bool, *, scope: Scope) -> Iterator[QuestionDraft]:
    """Ask "the thing to the left of the cow", "the bird above the cow": see `SceneFacts.related`.

    False premises: nothing such lies there, or the other object is not there at all.
    """
    facts = context.facts
    if not present and context.rng.random() < 0.4:
        for anchor in _absent_classes(context):
            noun = context.pick(_nouns(facts, scope))
            words = {**_words(noun), "o": f"the {anchor.word}"}
            relation = context.pick(RELATIONS)
            answer = refusal(plain_form("relation", words, relation), are=noun.is_plural, nor=anchor)
            yield QuestionDraft(
                "relation", words, answer, (), (), (anchor.word,), anchor.group, relation, is_plural=noun.is_plural
            )
    anchors = [noun for noun in facts.class_nouns if len(noun.members) == 1]
    anchors = [noun for noun in anchors if facts.areas[noun.members[0]] >= TARGET_AREA[0]]
    if not present and scope == "class" and anchors and context.leaves_test_set(2.0):
        for noun in _absent_classes(context):
            words = {**_words(noun), "o": f"the {context.pick(anchors).word}"}
            yield _absent_draft(context, noun, "relation", words, context.pick(RELATIONS))
    for anchor, relation in context.shuffled([(a, r) for a in anchors for r in RELATIONS]):
        at = anchor.members[0]
        nouns = [noun for noun in _nouns(facts, scope) if set(noun.members) - {at}]
        if not nouns:
            continue
        noun = context.pick(nouns)
        words = {**_words(noun), "o": f"the {anchor.word}"}
        if present:
            index = facts.related(noun.members, relation, at)
            if index is not None and facts.answerable(index):
                yield replace(_present_draft(context, noun, index, "relation", words, relation), anchors=(at,))
        elif facts.none_related(noun.members, relation, at):
            other = None if scope == "thing" else facts.largest(tuple(i for i in noun.members if i != at))
            elsewhere = None if other is None else f"{_a(facts, other)} elsewhere"
            answer = refusal(plain_form("relation", words, relation), are=noun.is_plural, similar=elsewhere)
            yield QuestionDraft(
                "relation", words, answer, (), (at,), group=noun.group, relation=relation, is_plural=noun.is_plural
            )


def _all(context: Context, present: bool, *, scope: Scope) -> Iterator[QuestionDraft]:
    """Ask "all cows", "every bird", "all red things": at least two, whose union is one mask."""
    facts = context.facts
    if scope == "thing":
        for tint in context.shuffled(TINTS) if facts.tinted else ():
            members = tuple(i for i, own in enumerate(facts.tints) if own == tint)
            words = _words(facts.everything, tint)
            if present and len(members) > 1 and facts.answerable_union(members):
                yield QuestionDraft("all tint", words, f"the {tint} things {SEG}.", (members,), is_plural=True)
            elif not present and not members:
                yield QuestionDraft("all tint", words, refusal(f"{tint} things", are=True), is_plural=True)
    elif present:
        for noun in context.shuffled(_nouns(facts, scope)):
            if len(noun.members) > 1 and facts.answerable_union(noun.members):
                yield QuestionDraft("all", _words(noun), f"the {noun.plural} {SEG}.", (noun.members,), is_plural=True)
    else:
        for noun in _absent_nouns(context, scope):
            yield _absent_draft(context, noun, "all", _words(noun), all_of=True)


def _reasoning(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "something to cut paper with": what an object is or is for; the answer names it."""
    facts = context.facts
    for noun in context.shuffled(facts.class_nouns) if present else _absent_classes(context, known=True):
        c = CLASSES[noun.word]
        descriptions = c.held_out_descriptions if context.descriptions == "held_out" else c.descriptions
        description = context.pick(descriptions) if descriptions else None
        index = facts.only(noun.members)
        if description is None or (present and index is None):
            continue
        words = {"d": description}
        if index is not None:
            yield QuestionDraft("description", words, f"the {noun.word} {SEG}.", ((index,),))
        else:
            answer = refusal(noun.word, are=noun.is_plural, similar=_similar(context, noun.group))
            yield QuestionDraft("description", words, answer, absent=(noun.word,), group=noun.group)


def _several(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "the cow and the car": two masks. False premise: one of them, or both, are not there."""
    facts = context.facts
    single = [noun for noun in context.shuffled(facts.class_nouns) if facts.only(noun.members) is not None]
    if present:
        for first, second in pairwise(single):
            answer = f"the {first.word} {SEG} and the {second.word} {SEG}."
            words = {"n": first.word, "m": second.word}
            yield QuestionDraft("several", words, answer, (first.members, second.members), is_plural=True)
        return
    nouns = list({noun.word: noun for noun in _absent_classes(context)}.values())
    for noun, other in pairwise(nouns):
        if single and context.rng.random() < 0.7:
            other = single[0]
            answer = refusal(noun.word, are=noun.is_plural, similar=article(other.counted))
            absent: tuple[str, ...] = (noun.word,)
        else:
            answer = refusal(f"{noun.word} and the {other.word}", are=True)
            absent = (noun.word, other.word)
        pair = (noun, other) if context.rng.random() < 0.5 or not other.members else (other, noun)
        words = {"n": pair[0].word, "m": pair[1].word}
        yield QuestionDraft("several", words, answer, absent=absent, group=noun.group, is_plural=True)


def _count(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "how many birds are there?": any noun that covers no hidden object, also absent ones."""
    facts = context.facts
    if present:
        nouns = context.shuffled([*facts.class_nouns, *facts.group_nouns, facts.everything])
    else:
        nouns = list(_absent_nouns(context, "class" if context.rng.random() < 0.5 else "group"))
    for noun in nouns:
        if facts.are_visible(noun.members) and len(noun.members) < len(phrases.NUMBERS):
            absent = (noun.word,) if noun.kind == "class" and not noun.members else ()
            answer = f"{phrases.NUMBERS[len(noun.members)]}."
            yield QuestionDraft("all", _words(noun), answer, absent=absent, anchors=noun.members, group=noun.group)


def _exists(context: Context, present: bool, *, form: QuestionForm) -> Iterator[QuestionDraft]:
    """Ask "is there a cow?", answered yes or no; what is asked for is that of a form that segments."""
    for draft in form(context, present):
        answer = f"no, {draft.answer}"
        if present:
            answer = f"yes, there is {_a(context.facts, draft.targets[0][0], tinted=draft.template_key == 'tint')}."
        anchors = tuple(i for target in draft.targets for i in target)
        yield replace(draft, answer=answer, targets=(), anchors=anchors, is_plural=False)


def _tint(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "what colour is the cow?"."""
    facts = context.facts
    for noun in context.shuffled(facts.class_nouns) if facts.tinted and present else ():
        if len(noun.members) == 1 and facts.areas[noun.members[0]] >= PART_AREA:
            answer = f"{facts.tints[noun.members[0]]}."
            yield QuestionDraft("name", _words(noun), answer, anchors=noun.members, is_plural=noun.is_plural)


def _naming(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "what is the name of the biggest thing?"."""
    for draft in _extreme(context, present, scope="thing", comparatives={**_SIZES, **_POSITIONS}):
        (index,) = draft.targets[0]
        yield QuestionDraft(draft.template_key, draft.words, f"{_a(context.facts, index)}.", anchors=(index,))


def _listing(context: Context, present: bool) -> Iterator[QuestionDraft]:
    """Ask "what is in the picture?": everything from left to right, where that order is clear."""
    facts = context.facts
    members = facts.everything.members
    order = sorted(members, key=lambda i: facts.centres[i])
    gaps = [facts.centres[b][0] - facts.centres[a][0] for a, b in pairwise(order)]
    if not present or len(order) < 2 or not facts.are_visible(members) or min(gaps) < 0.03:
        return
    names = [_a(facts, i) for i in order]
    yield QuestionDraft("all", _words(facts.everything), f"{', '.join(names[:-1])} and {names[-1]}.", anchors=members)


_SCOPES: tuple[Scope, ...] = ("thing", "group", "class")
_CLASS, _GROUP = partial(_named, scope="class"), partial(_named, scope="group")

SEGMENTING: Mapping[str, tuple[QuestionForm, ...]] = {
    "category": (_CLASS,),
    "colour": tuple(partial(_colour, scope=scope) for scope in (*_SCOPES, "class")),
    "group": (_GROUP,),
    "size": tuple(partial(_extreme, scope=scope, comparatives=_SIZES) for scope in _SCOPES),
    "position": tuple(partial(_extreme, scope=scope, comparatives=_POSITIONS) for scope in _SCOPES),
    "relation": tuple(partial(_relation, scope=scope) for scope in _SCOPES),
    "all": tuple(partial(_all, scope=scope) for scope in _SCOPES),
    "reasoning": (_reasoning,),
    "several": (_several,),
}
"""Forms of the kinds of question that ask for masks."""

TEXT_ONLY: Mapping[str, tuple[QuestionForm, ...]] = {
    "count": (_count,),
    "exists": tuple(
        partial(_exists, form=form) for form in (_CLASS, _CLASS, _GROUP, _reasoning, partial(_colour, scope="class"))
    ),
    "tint": (_tint,),
    "naming": (_naming,),
    "listing": (_listing,),
}
"""Forms of the kinds of question that are answered in words."""
