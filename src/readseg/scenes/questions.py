"""Questions about a scene, drawn by lot: which kind, true or false premise, which wording, which tags.

What may be asked comes from drafts.py, the wordings from phrases.py. Everything is a function of the scene and of the
random generator that is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from readseg.data.types import Sample, Turn
from readseg.errors import ReadsegError
from readseg.scenes import question_forms
from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, TRAINED, article
from readseg.scenes.facts import Layout
from readseg.scenes.phrases import (
    EXPRESSIONS,
    EXTRA_OBJECT_WORDS,
    EXTRA_REQUESTS,
    OBJECT_WORDS,
    RELATIONS,
    REQUESTS,
    TEXT_QUESTIONS,
    TemplateBank,
    extra_expression,
)
from readseg.scenes.question_forms import Context, Draft, Form, Source
from readseg.scenes.render import Rendered, Scene

WEIGHTS: Mapping[str, float] = {
    "category": 1.0,
    "colour": 1.8,
    "group": 1.2,
    "size": 1.0,
    "position": 1.2,
    "relation": 1.3,
    "all": 0.9,
    "reasoning": 1.6,
    "several": 0.8,
    "count": 1.0,
    "exists": 1.5,
    "tint": 0.8,
    "naming": 0.8,
    "listing": 0.6,
}
"""How often each kind is drawn: those that segment among themselves, those answered in words among themselves."""

TRUE_SHARE: Mapping[str, float] = {"exists": 0.5, "count": 0.8}
"""Share of questions in words that are about something that is there, where both can be asked."""

_FORMS: Mapping[str, tuple[Form, ...]] = {**question_forms.SEGMENTING, **question_forms.PLAIN}
_BANKS: Mapping[str, TemplateBank] = {**REQUESTS, **TEXT_QUESTIONS}
_POOL = {group: [name for name in g.classes if name in TRAINED] for group, g in GROUPS.items()}
_WHOLE_POOL = {group: list(g.classes) for group, g in GROUPS.items()}


@dataclass(frozen=True)
class Question:
    """One question about a scene and what is true.

    Attributes:
        kind: a key of `WEIGHTS`.
        question: what the user asks.
        answer: what the model should say, one "[SEG]" per target.
        targets: for each [SEG] the indices of the scene's things whose union is its mask.
        present: whether what was asked for is there; None where no mask was asked for.
        tags: any of "phrasing" and "description" (worded as never in training), "pair" (a thing that it is about lies
            in one scene with one that training never shows beside it; about nothing: anywhere in the scene),
            "untrained" (about a class that is never trained), "distractor" (another thing of a target's group is there;
            with a false premise: a thing of the group that was asked for).
        subject: what was asked for in its plain form: "left cow", "something to cut paper with".
    """

    kind: str
    question: str
    answer: str
    targets: tuple[tuple[int, ...], ...]
    present: bool | None
    tags: frozenset[str]
    subject: str


def ask(
    scene: Scene,
    areas: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    count: int,
    phrasing: Source = "train",
    descriptions: Source = "train",
    kinds: Mapping[str, float] | None = None,
    false_premise: float = 0.4,
    plain: float = 0.15,
    new_wordings: float = 0.0,
    strange: float = 0.0,
) -> list[Question]:
    """Draw questions about a scene.

    Whether a premise is true is drawn before the kind, and a false one is asked only in a form that has a true one in
    the same scene: so no kind and no wording gives away whether the object is there.

    Args:
        scene: what lies where.
        areas: (T,) visible share of the image of each thing.
        boxes: (T, 4) x0, y0, x1, y1 of the visible parts, in 0..1 of width and height.
        rng: the only source of chance.
        count: how many questions; fewer come out where the scene does not yield as many different ones.
        phrasing: which wordings of ``phrases``.
        descriptions: which descriptions of classes; those of classes never trained are always held out.
        kinds: weight of each kind, see `WEIGHTS` (the default); kinds not named are not asked.
        false_premise: share of false premises among the questions that ask for a mask.
        plain: share of questions that are answered in words.
        new_wordings: share of questions worded by the wide banks of ``wide_phrases``, whatever `phrasing` is.
        strange: share of the absent classes that are no classes but nouns that no scene shows, real or made up; the
            answer repeats the word. Twice as often a colour or a relation is asked of a class that is not there at all.
            For training.

    Raises:
        ReadsegError: if a kind is unknown, or areas or boxes do not fit the scene.
    """
    kinds = WEIGHTS if kinds is None else kinds
    unknown = sorted(kinds.keys() - WEIGHTS.keys())
    if unknown:
        raise ReadsegError(f"unknown kinds of question {unknown}: expected some of {sorted(WEIGHTS)}")
    layout = Layout(scene, areas, boxes)
    pool = _POOL if all(CLASSES[name].trained for name in layout.names) else _WHOLE_POOL
    context = Context(layout, rng, descriptions, pool, strange)
    segmenting = {kind: w for kind, w in kinds.items() if w > 0 and kind in question_forms.SEGMENTING}
    worded = {kind: w for kind, w in kinds.items() if w > 0 and kind in question_forms.PLAIN}
    used: set[object] = set()
    questions: list[Question] = []
    for _ in range(count):
        in_words = not segmenting or (bool(worded) and rng.random() < plain)
        if in_words:
            drawn = _draw(context, worded, None, used)
        else:
            present = bool(rng.random() >= false_premise)
            drawn = _draw(context, segmenting, present, used) or _draw(context, segmenting, not present, used)
        if drawn is None:
            continue
        kind, draft, is_true = drawn
        used |= {(kind, draft.subject), draft.subject, draft.targets}
        wide = new_wordings > 0 and rng.random() < new_wordings
        questions.append(_word(context, kind, draft, None if in_words else is_true, phrasing, wide=wide))
    return questions


def _draw(
    context: Context, weights: Mapping[str, float], premise: bool | None, used: set[object]
) -> tuple[str, Draft, bool] | None:
    """A draft of a kind drawn by weight; one whose subject or targets were asked for already only if need be.

    Where ``premise`` is None, whether it is true is drawn by the kind's `TRUE_SHARE`.
    """
    # The order of u^(1/w) is that of drawing without replacement, each time in proportion to the weights w.
    keys = {kind: context.rng.random() ** (1 / weight) for kind, weight in weights.items()}
    second: tuple[str, Draft, bool] | None = None
    for kind in sorted(keys, key=lambda kind: -keys[kind]):
        present = context.rng.random() < TRUE_SHARE.get(kind, 1.0) if premise is None else premise
        for form in context.shuffled(_FORMS[kind]):
            if not present and kind in question_forms.SEGMENTING and next(form(context, True), None) is None:
                continue
            for draft in _unused(kind, form(context, present), used):
                if draft.subject not in used and (not draft.targets or draft.targets not in used):
                    return kind, draft, present
                second = second or (kind, draft, present)
    return second


def _unused(kind: str, candidates: Iterator[Draft], used: set[object]) -> Iterator[Draft]:
    return (draft for draft in candidates if (kind, draft.subject) not in used)


def _word(
    context: Context, kind: str, draft: Draft, present: bool | None, phrasing: Source, *, wide: bool = False
) -> Question:
    """Put a draft into words and tag it."""
    rng, held_out = context.rng, phrasing == "held_out"
    words = dict(draft.words)
    if words.get("n") == "thing":
        thing = context.pick((*OBJECT_WORDS, *EXTRA_OBJECT_WORDS) if wide else OBJECT_WORDS)
        words |= {"n": thing, "ns": f"{thing}s", "each": thing}
    if draft.relation and wide and rng.random() < 0.5:
        words["rel"] = context.pick(RELATIONS[draft.relation].extra).format_map(words)
    elif draft.relation:
        words["rel"] = RELATIONS[draft.relation].draw(rng, words, held_out=held_out and rng.random() < 0.5)
    if wide and EXPRESSIONS[draft.way].extra and rng.random() < 0.6:
        phrase = extra_expression(draft.way, rng, words)
    else:
        phrase = EXPRESSIONS[draft.way].draw(rng, words, held_out=held_out and rng.random() < 0.5)
    are = draft.is_plural and not phrase.startswith(("every", "each", "any", "the whole"))
    fill = {"x": phrase, "be": "are" if are else "is", "it": "them" if are else "it"}
    if kind in ("category", "group"):
        fill |= {"bare": words["n"], "a": article(words["each"])}
    elif kind == "exists":
        fill["a"] = _indefinite(draft)
    elif kind == "count":
        fill |= {"ns": words["ns"], "a": article(words["each"])}
    elif draft.relation and draft.words["n"] == "thing":
        fill["rel"] = words["rel"]
    if wide and kind in EXTRA_REQUESTS and rng.random() < 0.8:
        text = EXTRA_REQUESTS[kind].draw(rng, fill)
    else:
        text = _BANKS[kind].draw(rng, fill, held_out=held_out)
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip(".?")
    return Question(kind, text, draft.answer, draft.targets, present, _tags(context, draft, phrasing), draft.subject)


def _indefinite(draft: Draft) -> str:
    """What is asked for with an indefinite article: "an owl", "a red pair of scissors", "an animal that gives milk"."""
    if draft.way == "tint":
        return article(f"{draft.words['c']} {draft.words['each']}")
    if draft.way == "description":
        description = draft.words["d"]
        return article(description.removeprefix("the ")) if description.startswith("the ") else description
    return article(draft.words["each"])


def _tags(context: Context, draft: Draft, phrasing: Source) -> frozenset[str]:
    layout, tags = context.layout, set()
    targets = {i for target in draft.targets for i in target}
    about = targets | set(draft.anchors) or set(layout.things.members)
    if phrasing == "held_out":
        tags.add("phrasing")
    if draft.way == "description" and context.descriptions == "held_out":
        tags.add("description")
    if any(frozenset((layout.names[i], name)) in HELD_OUT_PAIRS for i in about for name in layout.names):
        tags.add("pair")
    about_classes = [name for name in (*draft.asked, *(layout.names[i] for i in targets)) if name in CLASSES]
    if any(not CLASSES[name].trained for name in about_classes):
        tags.add("untrained")
    others = {layout.groups[i] for i in layout.things.members if i not in targets}
    groups = {layout.groups[i] for i in targets} if targets else {draft.group}
    if groups & others:
        tags.add("distractor")
    return frozenset(tags)


def from_scene(name: str, rendered: Rendered, questions: list[Question]) -> Sample:
    """The scene's image with its questions as a `Sample`; masks are unions of visible pixels, uint8 (H, W).

    Raises:
        ReadsegError: if there are no questions.
    """
    turns = tuple(
        Turn(
            q.question,
            q.answer,
            tuple(np.asarray(rendered.masks[list(target)].any(axis=0), np.uint8) for target in q.targets),
            q.present,
            q.kind,
            q.tags,
        )
        for q in questions
    )
    return Sample(name, rendered.image, turns)
