"""Random questions about a scene, as a function of it: which kind, true or false premise, which template, which tags.

What may be asked comes from question_forms.py, the templates from phrases.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readseg.core.io import read_yaml
from readseg.core.types import Turn
from readseg.data.types import Sample
from readseg.scenes import phrases
from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, article
from readseg.scenes.facts import SceneFacts
from readseg.scenes.question_forms import SEGMENTING, TEXT_ONLY, Context, QuestionDraft, Source
from readseg.scenes.render import RenderedScene, Scene

_TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))
WEIGHTS: Mapping[str, float] = _TABLE["weights"]
"""How often each kind is drawn: those that segment among themselves, those answered in words among themselves."""
_FORMS = {**SEGMENTING, **TEXT_ONLY}
_BANKS = {**phrases.REQUESTS, **phrases.TEXT_QUESTIONS}
_TRAINED_POOL = {name: [c for c in group.classes if CLASSES[c].trained] for name, group in GROUPS.items()}
_WHOLE_POOL = {name: group.classes for name, group in GROUPS.items()}


@dataclass(frozen=True)
class Question:
    """One question about a scene and what is true.

    kind: a key of `WEIGHTS`. answer: with one "[SEG]" per target. targets: for each [SEG] the indices of the scene's
    objects whose union is its mask. present: whether what was asked for is there; None where no mask was asked for.
    subject: what was asked for in its plain form: "left cow", "something to cut paper with".
    tags: any of "phrasing" and "description" (worded as never in training), "pair" (an object that it is about lies in
    one scene with one that training never shows beside it; about nothing: anywhere in the scene), "untrained" (about a
    class that is never trained), "distractor" (another object of a target's group is there; with a false premise: an
    object of the group that was asked for).
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
    false_premise_rate: float = 0.4,
    text_only_rate: float = 0.15,
    extra_template_rate: float = 0.0,
    unknown_noun_rate: float = 0.0,
) -> list[Question]:
    """Random questions about a scene; `areas` (T,) and `boxes` (T, 4) of its objects are those of `RenderedScene`.

    Whether a premise is true is drawn before the kind, and a false one is asked only in a form that has a true one in
    the same scene: so no kind and no template gives away whether the object is there. Fewer than `count` come out where
    the scene does not yield as many different ones. `kinds` are weights as in `WEIGHTS`; `descriptions` of classes that
    are never trained are always held out. The rates are shares of false premises among the questions that ask for a
    mask; of questions that are answered in words; of questions worded by the extra templates, whatever `phrasing` is;
    and, for training, of absent classes that are nouns that no scene shows, real or made up, which the answer repeats.
    Twice as often as that a colour or a relation is asked of a class that is not there at all.
    """
    kinds = WEIGHTS if kinds is None else kinds
    assert kinds.keys() <= WEIGHTS.keys(), f"kinds of question are {sorted(WEIGHTS)}, got {sorted(kinds)}"
    facts = SceneFacts(scene, areas, boxes)
    pool = _TRAINED_POOL if all(CLASSES[name].trained for name in facts.names) else _WHOLE_POOL
    context = Context(facts, rng, descriptions, pool, unknown_noun_rate)
    segmenting = {kind: w for kind, w in kinds.items() if w > 0 and kind in SEGMENTING}
    text_only = {kind: w for kind, w in kinds.items() if w > 0 and kind in TEXT_ONLY}
    used: set[object] = set()
    questions: list[Question] = []
    for _ in range(count):
        in_words = not segmenting or (bool(text_only) and rng.random() < text_only_rate)
        if in_words:
            drawn = _draw(context, text_only, None, used)
        else:
            present = bool(rng.random() >= false_premise_rate)
            drawn = _draw(context, segmenting, present, used) or _draw(context, segmenting, not present, used)
        if drawn is None:
            continue
        kind, draft, is_true = drawn
        used |= {(kind, draft.subject), draft.subject, draft.targets}
        extra = extra_template_rate > 0 and bool(rng.random() < extra_template_rate)
        text, tags = _text(context, kind, draft, phrasing, extra=extra), _tags(context, draft, phrasing)
        is_present = None if in_words else is_true
        questions.append(Question(kind, text, draft.answer, draft.targets, is_present, tags, draft.subject))
    return questions


def _draw(
    context: Context, weights: Mapping[str, float], premise: bool | None, used: set[object]
) -> tuple[str, QuestionDraft, bool] | None:
    """A draft of a kind drawn by weight; one whose subject or targets were asked for already only if need be.

    Where `premise` is None, whether it is true is drawn by the kind's share in questions.yaml.
    """
    # The order of u^(1/w) is that of drawing without replacement, each time in proportion to the weights w.
    keys = {kind: context.rng.random() ** (1 / weight) for kind, weight in weights.items()}
    second: tuple[str, QuestionDraft, bool] | None = None
    for kind in sorted(keys, key=lambda kind: -keys[kind]):
        present = context.rng.random() < _TABLE["true_share"].get(kind, 1.0) if premise is None else premise
        for form in context.shuffled(_FORMS[kind]):
            if not present and kind in SEGMENTING and next(form(context, True), None) is None:
                continue
            for draft in form(context, present):
                if (kind, draft.subject) in used:
                    continue
                if draft.subject not in used and (not draft.targets or draft.targets not in used):
                    return kind, draft, present
                second = second or (kind, draft, present)
    return second


def _text(context: Context, kind: str, draft: QuestionDraft, phrasing: Source, *, extra: bool) -> str:
    """A draft in words: a request of its kind, filled with an expression, filled with the words of the draft."""
    rng, held_out = context.rng, phrasing == "held_out"
    words, expressions = dict(draft.words), phrases.EXPRESSIONS[draft.template_key]
    if words.get("n") == "thing":
        noun = context.pick([*phrases.OBJECT_WORDS, *(phrases.EXTRA_OBJECT_WORDS if extra else ())])
        words |= {"n": noun, "ns": f"{noun}s", "each": noun}
    if draft.relation and extra and rng.random() < 0.5:
        words["rel"] = context.pick(phrases.RELATIONS[draft.relation].extra).format_map(words)
    elif draft.relation:
        words["rel"] = phrases.RELATIONS[draft.relation].draw(rng, words, held_out=held_out and rng.random() < 0.5)
    if extra and expressions.extra and rng.random() < 0.6:
        phrase = phrases.extra_expression(draft.template_key, rng, words)
    else:
        phrase = expressions.draw(rng, words, held_out=held_out and rng.random() < 0.5)
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
    if extra and kind in phrases.EXTRA_REQUESTS and rng.random() < 0.8:
        text = phrases.EXTRA_REQUESTS[kind].draw(rng, fill)
    else:
        text = _BANKS[kind].draw(rng, fill, held_out=held_out)
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text.rstrip(".?") if rng.random() < 0.15 else text


def _indefinite(draft: QuestionDraft) -> str:
    """What is asked for with an indefinite article: "an owl", "a red pair of scissors", "an animal that gives milk"."""
    if draft.template_key == "tint":
        return article(f"{draft.words['c']} {draft.words['each']}")
    if draft.template_key == "description":
        description = draft.words["d"]
        return article(description.removeprefix("the ")) if description.startswith("the ") else description
    return article(draft.words["each"])


def _tags(context: Context, draft: QuestionDraft, phrasing: Source) -> frozenset[str]:
    facts = context.facts
    everything, targets = facts.everything.members, {i for target in draft.targets for i in target}
    about = targets | set(draft.anchors) or set(everything)
    about_classes = [name for name in (*draft.absent, *(facts.names[i] for i in targets)) if name in CLASSES]
    groups = {facts.groups[i] for i in targets} if targets else {draft.group}
    tags = {
        "phrasing": phrasing == "held_out",
        "description": draft.template_key == "description" and context.descriptions == "held_out",
        "pair": any(frozenset((facts.names[i], name)) in HELD_OUT_PAIRS for i in about for name in facts.names),
        "untrained": any(not CLASSES[name].trained for name in about_classes),
        "distractor": bool(groups & {facts.groups[i] for i in everything if i not in targets}),
    }
    return frozenset(tag for tag, applies in tags.items() if applies)


def target_masks(question: Question, masks: np.ndarray) -> list[np.ndarray]:
    """The mask (H, W) of each [SEG] of a question's answer: the union of its objects, of their masks (T, H, W)."""
    return [np.asarray(masks[list(target)].any(axis=0)) for target in question.targets]


def make_sample(name: str, rendered: RenderedScene, questions: list[Question]) -> Sample:
    """The scene's image with its questions as a `Sample`; masks are uint8 (H, W)."""
    turns = []
    for q in questions:
        masks = tuple(mask.astype(np.uint8) for mask in target_masks(q, rendered.masks))
        turns.append(Turn(q.question, q.answer, masks, q.present, q.kind, q.tags))
    return Sample(name, rendered.image, tuple(turns))
