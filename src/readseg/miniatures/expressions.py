"""What is true of a scene in a few words, and what is nearly true: premises with one word that makes them false.

Owns which of the scenes' questions become expressions; what is true comes from `readseg.scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from readseg.scenes.classes import CLASSES, GROUPS, TINTS
from readseg.scenes.facts import SceneFacts
from readseg.scenes.question_forms import TEXT_ONLY
from readseg.scenes.questions import WEIGHTS, ask
from readseg.scenes.render import RenderedScene, Scene

SINGLE = ("category", "colour", "group", "size", "position", "relation", "reasoning")
"""Kinds of expression that mean one object."""
MULTIPLE = ("all", "several")
"""Kinds of expression that mean several objects."""


@dataclass(frozen=True, slots=True)
class ReferringExpression:
    """An expression of a kind without "the": "left cow", "something to cut paper with", "key and the drum".

    objects: indices of the scene's objects that it means; none where nothing such is there.
    """

    kind: str
    text: str
    objects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FalsePremise:
    """An expression that is false of a scene ("red cow"), and the true one that it was made from ("blue cow")."""

    text: str
    instead: str


def referring_expressions(
    scene: Scene, rendered: RenderedScene, rng: np.random.Generator, kinds: Sequence[str], count: int, absent: float = 0
) -> tuple[ReferringExpression, ...]:
    """Up to `count` different expressions about a scene, of which a share `absent` means nothing that is there."""
    questions = ask(
        *(scene, rendered.areas, rendered.boxes, rng),
        count=count,
        kinds={kind: WEIGHTS[kind] for kind in kinds},
        text_only_rate=0.0,
        false_premise_rate=absent,
    )
    by_text = {
        q.subject: ReferringExpression(q.kind, q.subject, tuple(i for target in q.targets for i in target))
        for q in questions
    }
    return tuple(by_text.values())


def text_dialogue(
    scene: Scene, rendered: RenderedScene, rng: np.random.Generator, count: int
) -> tuple[tuple[str, str], ...]:
    """Up to `count` questions about a scene that are answered in words, with their answers."""
    kinds = {kind: WEIGHTS[kind] for kind in TEXT_ONLY}
    questions = ask(scene, rendered.areas, rendered.boxes, rng, count=count, kinds=kinds, text_only_rate=1.0)
    return tuple((capitalised(q.question), capitalised(q.answer)) for q in questions)


def capitalised(text: str) -> str:
    """The text with a capital letter."""
    return text[0].upper() + text[1:]


def absent_names(facts: SceneFacts, group: str) -> list[str]:
    """Trained classes of a group of which no object is there."""
    names = GROUPS[group].classes
    return [name for name in names if CLASSES[name].trained and not facts.class_noun(name).members]


def false_premises(facts: SceneFacts, expressions: Sequence[ReferringExpression], index: int) -> list[FalsePremise]:
    """Of an object's expressions by name, description or colour: the same of an absent class, or another colour."""
    name, turn = facts.names[index], facts.scene.seed + index
    others = absent_names(facts, facts.groups[index])
    used = {facts.tints[i] for i in facts.class_noun(name).members}
    tints = [tint for tint in TINTS if tint not in used]
    premises: list[FalsePremise] = []
    for expression in expressions:
        if expression.objects != (index,):
            continue
        if expression.kind == "colour" and expression.text == f"{facts.tints[index]} {name}":
            premises.append(FalsePremise(f"{tints[turn % len(tints)]} {name}", expression.text))
        elif others and expression.kind in ("category", "reasoning"):
            other = others[(turn + len(premises)) % len(others)]
            text = other if expression.kind == "category" else CLASSES[other].descriptions[0].removeprefix("the ")
            premises.append(FalsePremise(text, expression.text))
    return list({premise.text: premise for premise in premises}.values())
