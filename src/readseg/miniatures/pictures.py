"""The pictures that all miniatures share, each drawn and asked about once: exact masks and what is true of them.

Frame: masks in pixels of the picture, (y, x).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import count

import numpy as np
from PIL import Image

from readseg.miniatures.expressions import (
    MULTIPLE,
    SINGLE,
    FalsePremise,
    ReferringExpression,
    absent_names,
    false_premises,
    referring_expressions,
    text_dialogue,
)
from readseg.miniatures.names import COCO_STUFF
from readseg.scenes.facts import TARGET_AREA, VISIBLE_AREA, SceneFacts
from readseg.scenes.render import RenderedScene, make_scene, render

QUALITY = 90
"""JPEG quality of the pictures."""
FIRST_ID = 581_000
"""Image id of the first picture in data sets that number their images as COCO does."""
_SEEDS_APART = 100_000


@dataclass(frozen=True)
class Picture:
    """One drawn scene, the `number`-th from 0, with what is true of it and its file `jpeg`.

    expressions: each means one object. multiple: each means several objects; a few mean none that is there. dialogue:
    questions and answers in words.
    """

    number: int
    rendered: RenderedScene
    facts: SceneFacts
    expressions: tuple[ReferringExpression, ...]
    multiple: tuple[ReferringExpression, ...]
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
        groups = self.facts.groups
        return tuple(
            i for i in self.unique if absent_names(self.facts, groups[i]) and self.expressions_of(i, ("reasoning",))
        )

    def expressions_of(self, index: int, kinds: tuple[str, ...] = SINGLE) -> list[ReferringExpression]:
        """What means this one object, of these kinds, in their order."""
        own = [e for e in self.expressions if e.objects == (index,) and e.kind in kinds]
        return sorted(own, key=lambda expression: kinds.index(expression.kind))

    def false_premises_of(self, index: int) -> list[FalsePremise]:
        """False premises that are nearly true of this object."""
        return false_premises(self.facts, self.expressions, index)


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
        expressions = referring_expressions(scene, rendered, rng, SINGLE, 60)
        # "the cow and the fish" where only the cow is: whether that means nothing is open to dispute.
        multiple = referring_expressions(scene, rendered, rng, MULTIPLE, 8, absent=0.3)
        multiple = tuple(e for e in multiple if e.objects or e.kind == "all")
        dialogue = text_dialogue(scene, rendered, rng, 4)
        stream = BytesIO()
        Image.fromarray(rendered.image).save(stream, format="JPEG", quality=QUALITY)
        picture = Picture(number, rendered, facts, expressions, multiple, dialogue, stream.getvalue())
        several = sum(len(expression.objects) > 1 for expression in multiple)
        if len(picture.described) >= 3 and several >= 2 and len(dialogue) >= 2:
            yield picture
            number += 1
