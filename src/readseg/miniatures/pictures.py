"""The pictures that all miniatures share, each drawn and asked about once: exact masks and what is true of them.

Frame: masks in pixels of the picture, (y, x).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from readseg.core.io import read_yaml
from readseg.scenes.classes import CLASSES, GROUPS, TINTS
from readseg.scenes.facts import TARGET_AREA, VISIBLE_AREA, SceneFacts
from readseg.scenes.question_forms import TEXT_ONLY
from readseg.scenes.questions import WEIGHTS, Question, ask
from readseg.scenes.render import RenderedScene, make_scene, render

NAMES: Mapping[str, Any] = read_yaml(Path(__file__).with_name("names.yaml"))
"""What the data sets call the classes of scenes, as far as a miniature needs their tables."""
COCO_STUFF: Mapping[str, int] = NAMES["coco_stuff"]
"""Pixel value in COCO-Stuff's label maps of each class that has one there, by our name."""
QUALITY = 90
"""JPEG quality of the pictures."""
FIRST_ID = 581_000  # image id of the first picture in data sets that number their images as COCO does
_SEEDS_APART = 100_000
_SINGLE = ("category", "colour", "group", "size", "position", "relation", "reasoning")  # kinds that mean one object


@dataclass(frozen=True)
class Picture:
    """One drawn scene, the `number`-th from 0, with what is true of it and its file `jpeg`.

    expressions: questions whose `subject` ("left cow") means one object. multiple: those that mean several objects; a
    few mean none that is there. dialogue: questions and answers in words.
    """

    number: int
    rendered: RenderedScene
    facts: SceneFacts
    expressions: tuple[Question, ...]
    multiple: tuple[Question, ...]
    dialogue: tuple[tuple[str, str], ...]
    jpeg: bytes

    @property
    def image_id(self) -> int:
        """The id of the picture where images are numbered as COCO's."""
        return FIRST_ID + 7 * self.number

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.facts.scene.height, self.facts.scene.width

    @cached_property
    def visible(self) -> tuple[int, ...]:
        """Indices of the objects that can be seen: these are annotated."""
        return tuple(i for i, area in enumerate(self.facts.areas) if area >= VISIBLE_AREA)

    @cached_property
    def unique(self) -> tuple[int, ...]:
        """Indices of the objects that are the only one of their class, and not too small."""
        large = (i for i in self.visible if self.facts.areas[i] >= TARGET_AREA[0])
        return tuple(i for i in large if self.facts.class_noun(self.facts.names[i]).members == (i,))

    @cached_property
    def described(self) -> tuple[int, ...]:
        """Those of `unique` that can be asked for by a description, and of whose group a class is not there."""
        return tuple(i for i in self.unique if self.absent_relatives(i) and self.expressions_of(i, ("reasoning",)))

    def absent_relatives(self, index: int) -> list[str]:
        """Trained classes of an object's group of which no object is there."""
        names = GROUPS[self.facts.groups[index]].classes
        return [name for name in names if CLASSES[name].trained and not self.facts.class_noun(name).members]

    def expressions_of(self, index: int, kinds: Sequence[str] = _SINGLE) -> list[str]:
        """What means this one object, of these kinds, in their order."""
        own = [e for e in self.expressions if e.targets == ((index,),) and e.kind in kinds]
        return [e.subject for e in sorted(own, key=lambda expression: kinds.index(expression.kind))]

    def false_premises_of(self, index: int) -> list[tuple[str, str]]:
        """What is false by one word ("red cow"), with the true expression of this object ("blue cow") that it was.

        Of those by name, description or colour: the same of an absent class, or another colour.
        """
        facts = self.facts
        name, turn, others = facts.names[index], facts.scene.seed + index, self.absent_relatives(index)
        used = {facts.tints[i] for i in facts.class_noun(name).members}
        tints = [tint for tint in TINTS if tint not in used]
        premises: list[tuple[str, str]] = []
        for true in self.expressions:
            if true.targets != ((index,),):
                continue
            if true.kind == "colour" and true.subject == f"{facts.tints[index]} {name}":
                premises.append((f"{tints[turn % len(tints)]} {name}", true.subject))
            elif others and true.kind in ("category", "reasoning"):
                other = others[(turn + len(premises)) % len(others)]
                text = other if true.kind == "category" else CLASSES[other].descriptions[0].removeprefix("the ")
                premises.append((text, true.subject))
        return list(dict(premises).items())


def capitalised(text: str) -> str:
    """The text with a capital letter."""
    return text[0].upper() + text[1:]


def draw_pictures(seed: int, images: int) -> Iterator[Picture]:
    """So many pictures, a function of the arguments; each has enough to name, to describe, to part and to deny."""
    number = 0
    for draw in count(seed * _SEEDS_APART):
        if number == images:
            return
        scene = make_scene(draw, count=(5, 8))
        rendered = render(scene)
        facts = SceneFacts(scene, rendered.areas, rendered.boxes)
        if sum(name in COCO_STUFF for name in facts.names) < 3:
            continue
        rng = np.random.default_rng([draw, 2024])
        about = partial(ask, scene, rendered.areas, rendered.boxes, rng)
        single = about(count=60, kinds={kind: WEIGHTS[kind] for kind in _SINGLE}, false_premise_rate=0.0)
        several = about(count=8, kinds={kind: WEIGHTS[kind] for kind in ("all", "several")}, false_premise_rate=0.3)
        in_words = about(count=4, kinds={kind: WEIGHTS[kind] for kind in TEXT_ONLY})
        expressions = tuple({e.subject: e for e in single}.values())
        # "the cow and the fish" where only the cow is: whether that means nothing is open to dispute.
        multiple = tuple(e for e in {e.subject: e for e in several}.values() if e.targets or e.kind == "all")
        dialogue = tuple((capitalised(e.question), capitalised(e.answer)) for e in in_words)
        stream = BytesIO()
        Image.fromarray(rendered.image).save(stream, format="JPEG", quality=QUALITY)
        picture = Picture(number, rendered, facts, expressions, multiple, dialogue, stream.getvalue())
        if len(picture.described) >= 3 and sum(bool(e.targets) for e in multiple) >= 2 and len(dialogue) >= 2:
            yield picture
            number += 1
