"""What is true of a scene in a few words, and what is nearly true: premises with one word that makes them false.

Owns which of the scenes' questions become expressions; what is true comes from `readseg.scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from readseg.scenes import question_forms
from readseg.scenes.classes import CLASSES, GROUPS, TINTS
from readseg.scenes.facts import SceneFacts
from readseg.scenes.questions import WEIGHTS, ask
from readseg.scenes.render import RenderedScene, Scene

SINGLE = ("category", "colour", "group", "size", "position", "relation", "reasoning")
"""Kinds of saying that mean one thing."""
MULTIPLE = ("all", "several")
"""Kinds of saying that mean several things."""


@dataclass(frozen=True, slots=True)
class Saying:
    """An expression without "the": "left cow", "something to cut paper with", "key and the drum".

    Attributes:
        kind: one of `SINGLE` or `MULTIPLE`.
        text: the expression.
        things: indices of the scene's things that it means; none where nothing such is there.
    """

    kind: str
    text: str
    things: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    """A premise that is false of a scene, and the saying of a thing that is there which it was made from.

    Attributes:
        name: class that is asked for and not there; "" where only the colour is wrong.
        text: what is asked for: "red cow".
        instead: what is there: "blue cow".
    """

    name: str
    text: str
    instead: str


def sayings(
    scene: Scene,
    rendered: RenderedScene,
    rng: np.random.Generator,
    kinds: Sequence[str],
    count: int,
    *,
    absent: float = 0.0,
) -> tuple[Saying, ...]:
    """Up to `count` different sayings about a scene, of which a share `absent` means nothing that is there."""
    weights = {kind: WEIGHTS[kind] for kind in kinds}
    asked = ask(
        scene,
        rendered.areas,
        rendered.boxes,
        rng,
        count=count,
        kinds=weights,
        text_only_rate=0.0,
        false_premise_rate=absent,
    )
    found = (Saying(q.kind, q.subject, tuple(i for target in q.targets for i in target)) for q in asked)
    return tuple({saying.text: saying for saying in found}.values())


def dialogue(
    scene: Scene, rendered: RenderedScene, rng: np.random.Generator, count: int
) -> tuple[tuple[str, str], ...]:
    """Up to `count` questions about a scene that are answered in words, with their answers."""
    weights = {kind: WEIGHTS[kind] for kind in question_forms.TEXT_ONLY}
    asked = ask(scene, rendered.areas, rendered.boxes, rng, count=count, kinds=weights, text_only_rate=1.0)
    return tuple((sentence(q.question), sentence(q.answer)) for q in asked)


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[0].upper() + text[1:]


def absent_names(layout: SceneFacts, group: str) -> list[str]:
    """Classes of a group of which no thing is there."""
    names = GROUPS[group].classes
    return [name for name in names if CLASSES[name].trained and not layout.class_noun(name).members]


def swaps(layout: SceneFacts, said: Sequence[Saying], index: int) -> list[Swap]:
    """For a thing's sayings by name, description or colour: the same of a class not there, or another colour."""
    name, turn = layout.names[index], layout.scene.seed + index
    others = absent_names(layout, layout.groups[index])
    used = {layout.tints[i] for i in layout.class_noun(name).members}
    tints = [tint for tint in TINTS if tint not in used]
    found: list[Swap] = []
    for saying in said:
        if saying.things != (index,):
            continue
        if saying.kind == "colour" and saying.text == f"{layout.tints[index]} {name}":
            found.append(Swap("", f"{tints[turn % len(tints)]} {name}", saying.text))
        elif others and saying.kind in ("category", "reasoning"):
            other = others[(turn + len(found)) % len(others)]
            text = other if saying.kind == "category" else CLASSES[other].descriptions[0].removeprefix("the ")
            found.append(Swap(other, text, saying.text))
    return list({swap.text: swap for swap in found}.values())
