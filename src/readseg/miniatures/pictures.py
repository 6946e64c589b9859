"""The pictures that all miniatures share, each drawn and asked about once: exact masks and what is true of them.

Frame: masks in pixels of the picture, (y, x).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import count, islice

import numpy as np
from PIL import Image

from readseg.miniatures.names import COCO_STUFF
from readseg.miniatures.sayings import MULTIPLE, SINGLE, Saying, Swap, absent_names, dialogue, sayings, swaps
from readseg.scenes.facts import TARGET_AREA, VISIBLE_AREA, SceneFacts
from readseg.scenes.render import RenderedScene, make_scene, render

QUALITY = 90
"""JPEG quality of the pictures."""
FIRST_ID = 581_000
"""Image id of the first picture in data sets that number their images as COCO does."""
_SEEDS_APART = 100_000


@dataclass(frozen=True)
class Picture:
    """One drawn scene.

    Attributes:
        number: place among the pictures, from 0.
        rendered: pixels, and the exact mask of each thing.
        layout: the facts.
        said: what means one thing.
        joined: what means several things; a few mean none that is there.
        talk: questions and answers in words.
        jpeg: the picture as a file.
    """

    number: int
    rendered: RenderedScene
    layout: SceneFacts
    said: tuple[Saying, ...]
    joined: tuple[Saying, ...]
    talk: tuple[tuple[str, str], ...]
    jpeg: bytes

    @property
    def image_id(self) -> int:
        """The id of the picture where images are numbered as COCO's."""
        return FIRST_ID + 7 * self.number

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.layout.scene.height, self.layout.scene.width

    @cached_property
    def things(self) -> tuple[int, ...]:
        """Indices of the things that can be seen: these are annotated."""
        return tuple(i for i, area in enumerate(self.layout.areas) if area >= VISIBLE_AREA)

    @cached_property
    def alone(self) -> tuple[int, ...]:
        """Indices of the things that are the only one of their class, and not too small."""
        layout = self.layout
        noun = layout.class_noun
        return tuple(
            i for i in self.things if layout.areas[i] >= TARGET_AREA[0] and noun(layout.names[i]).members == (i,)
        )

    @cached_property
    def described(self) -> tuple[int, ...]:
        """Those of `alone` that can be asked for by a description, and of whose group a class is not there."""
        groups = self.layout.groups
        named = (i for i in self.alone if absent_names(self.layout, groups[i]))
        return tuple(i for i in named if self.about(i, ("reasoning",)))

    def about(self, index: int, kinds: tuple[str, ...] = SINGLE) -> list[Saying]:
        """What means this one thing, of these kinds, in their order."""
        own = [saying for saying in self.said if saying.things == (index,) and saying.kind in kinds]
        return sorted(own, key=lambda saying: kinds.index(saying.kind))

    def swaps(self, index: int) -> list[Swap]:
        """False premises that are nearly true of this thing."""
        return swaps(self.layout, self.said, index)


def draw_pictures(seed: int, images: int) -> Iterator[Picture]:
    """So many pictures, a function of the arguments; each has enough to name, to describe, to part and to deny."""
    yield from islice(_all_pictures(seed), images)


def _all_pictures(seed: int) -> Iterator[Picture]:
    number = 0
    for draw in count(seed * _SEEDS_APART):
        scene = make_scene(draw, count=(5, 8))
        rendered = render(scene)
        layout = SceneFacts(scene, rendered.areas, rendered.boxes)
        if sum(name in COCO_STUFF for name in layout.names) < 3:
            continue
        rng = np.random.default_rng([draw, 2024])
        picture = Picture(
            number,
            rendered,
            layout,
            sayings(scene, rendered, rng, SINGLE, 60),
            # "the cow and the fish" where only the cow is: whether that means nothing is open to dispute.
            tuple(s for s in sayings(scene, rendered, rng, MULTIPLE, 8, absent=0.3) if s.things or s.kind == "all"),
            dialogue(scene, rendered, rng, 4),
            _jpeg(rendered.image),
        )
        if _has_enough(picture):
            yield picture
            number += 1


def _has_enough(picture: Picture) -> bool:
    several = [saying for saying in picture.joined if len(saying.things) > 1]
    return len(picture.described) >= 3 and len(several) >= 2 and len(picture.talk) >= 2


def _jpeg(image: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()
