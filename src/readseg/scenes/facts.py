"""What is true of a scene, with margins: who is biggest, furthest left, above whom, which names are there or absent.

Frame: centres and boxes of visible parts in 0..1 of the image's width and height; offsets between objects in shares of
the image's shorter side, so that right angles stay right. Knows no templates. A fact that is not clear by its margin is
reported as None, and no question is asked about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np

from readseg.scenes.classes import CLASSES, GROUPS, WIDE_GROUPS
from readseg.scenes.render import Scene

TARGET_AREA = (0.01, 0.15)  # smallest and largest visible share of the image of a single target
PART_AREA = 0.004  # smallest visible share of each object of a target that is a union
VISIBLE_AREA = 0.003  # an object that shows less than this share is hidden: nothing is asked whose answer depends on it
SIZE_RATIO = 1.4  # the biggest object has at least this many times the visible area of the next one
POSITION_MARGIN = 0.08
"""The leftmost object's centre is at least this far (in 0..1 of the width) from the next one's; others alike."""
NEARNESS_RATIO = 1.3  # the nearest object is at least this many times nearer than the next one

Extreme = Literal["biggest", "smallest", "leftmost", "rightmost", "topmost", "bottommost"]
Relation = Literal["left of", "right of", "above", "below", "next to"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below", "next to")
_STEPS_XY = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}
_EDGES = {"leftmost": (0, 1.0), "rightmost": (2, -1.0), "topmost": (1, 1.0), "bottommost": (3, -1.0)}


@dataclass(frozen=True, slots=True)
class Noun:
    """A word for objects of a scene, as in "the {word}", "all {plural}", "a {counted}", and the objects it covers.

    members: indices of these. group: the group that its objects belong to, None for objects of any group.
    """

    word: str
    plural: str
    counted: str
    is_plural: bool
    kind: Literal["thing", "class", "group"]
    members: tuple[int, ...]
    group: str | None


def is_a(name: str, other: str) -> bool:
    """Whether a thing called `name` may also be called `other`: a palm tree is a tree."""
    return name == other or name.endswith(f" {other}")


@cache
def _called(name: str) -> tuple[str, ...]:
    """Names of all classes that may be called `name`."""
    return tuple(other for other in CLASSES if is_a(other, name))


class SceneFacts:
    """The facts of a scene of T objects; areas (T,) and boxes (T, 4) of their visible parts as in `RenderedScene`."""

    def __init__(self, scene: Scene, areas: np.ndarray, boxes: np.ndarray) -> None:
        count = len(scene.objects)
        assert np.shape(areas) == (count,) and np.shape(boxes) == (count, 4)
        self.scene = scene
        self.names = tuple(obj.name for obj in scene.objects)
        self.groups = tuple(CLASSES[name].group for name in self.names)
        self.tints = tuple(obj.tint for obj in scene.objects)
        self.tinted = count > 0 and all(tint is not None for tint in self.tints)
        self.areas: list[float] = np.asarray(areas, float).tolist()
        self.boxes: list[list[float]] = np.asarray(boxes, float).tolist()
        self.centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in self.boxes]

    @cached_property
    def everything(self) -> Noun:
        """The noun that covers every object."""
        return Noun("thing", "things", "thing", False, "thing", tuple(range(len(self.names))), None)

    @cached_property
    def class_nouns(self) -> tuple[Noun, ...]:
        """One noun per class that is there."""
        return tuple(self.class_noun(name) for name in dict.fromkeys(self.names))

    @cached_property
    def group_nouns(self) -> tuple[Noun, ...]:
        """One noun per group, and per group of groups, that is there."""
        return tuple(noun for noun in self.all_group_nouns if noun.members)

    @cached_property
    def all_group_nouns(self) -> tuple[Noun, ...]:
        """One noun per group, and per group of groups, there or not."""
        groups = (*GROUPS.values(), *WIDE_GROUPS.values())
        members = (tuple(i for i, name in enumerate(self.names) if name in group.classes) for group in groups)
        return tuple(
            Noun(group.singular, group.plural, group.singular, False, "group", own, group.name)
            for group, own in zip(groups, members, strict=True)
        )

    def class_noun(self, name: str) -> Noun:
        """The noun of a class, there or not."""
        c, covered = CLASSES[name], _called(name)
        members = tuple(i for i, n in enumerate(self.names) if n in covered)
        return Noun(c.name, c.plural, c.counted, c.is_plural, "class", members, c.group)

    def are_visible(self, members: tuple[int, ...]) -> bool:
        """Whether none of these objects is hidden."""
        return all(self.areas[i] >= VISIBLE_AREA for i in members)

    def answerable(self, index: int) -> bool:
        """Whether the object can be the only target of a [SEG]: neither too small nor too large."""
        return TARGET_AREA[0] <= self.areas[index] <= TARGET_AREA[1]

    def answerable_union(self, members: tuple[int, ...]) -> bool:
        """Whether these objects together can be the target of a [SEG]."""
        parts = [self.areas[i] for i in members]
        return min(parts) >= PART_AREA and TARGET_AREA[0] <= sum(parts) <= 2.5 * TARGET_AREA[1]

    def only(self, members: tuple[int, ...]) -> int | None:
        """The one member, if there is one and it is answerable."""
        return members[0] if len(members) == 1 and self.answerable(members[0]) else None

    def extreme(self, members: tuple[int, ...], which: Extreme) -> int | None:
        """The biggest, leftmost, ... of at least two objects, None where it is not clear.

        Biggest and smallest: by visible area, `SIZE_RATIO` from the next one, and the areas of the boxes agree.
        Leftmost and so on: by the centre, `POSITION_MARGIN` from the next one, and the edges agree.
        """
        if len(members) < 2 or not self.are_visible(members):
            return None
        if which in ("biggest", "smallest"):
            sign = -1.0 if which == "biggest" else 1.0
            order = sorted(members, key=lambda i: sign * self.areas[i])
            first, second = (self.areas[i] for i in order[:2])
            if max(first, second) < SIZE_RATIO * min(first, second):
                return None
            extents = {i: sign * (x1 - x0) * (y1 - y0) for i, (x0, y0, x1, y1) in enumerate(self.boxes) if i in members}
        else:
            edge, sign = _EDGES[which]
            order = sorted(members, key=lambda i: sign * self.centres[i][edge % 2])
            if abs(self.centres[order[0]][edge % 2] - self.centres[order[1]][edge % 2]) < POSITION_MARGIN:
                return None
            extents = {i: sign * self.boxes[i][edge] for i in members}
        best = order[0]
        return best if all(extents[best] <= extents[i] for i in members) else None

    def _offset(self, index: int, anchor: int, relation: Relation) -> tuple[float, float, float]:
        """How far an object is from the anchor, in shares of the shorter side: in all, along the direction, across."""
        short = min(self.scene.height, self.scene.width)
        dx = (self.centres[index][0] - self.centres[anchor][0]) * self.scene.width / short
        dy = (self.centres[index][1] - self.centres[anchor][1]) * self.scene.height / short
        ux, uy = _STEPS_XY.get(relation, (0.0, 0.0))
        return float(np.hypot(dx, dy)), dx * ux + dy * uy, abs(dx * uy) + abs(dy * ux)

    def related(self, members: tuple[int, ...], relation: Relation, anchor: int) -> int | None:
        """The member that lies, say, to the left of the anchor: the nearest one on that side.

        With d the offset from anchor to member, a = d . u along the direction u and c = |d| across it: a member lies
        clearly on that side if a >= `POSITION_MARGIN` and c <= 0.8 a, perhaps if a > 0 and c <= 2 a. The answer is
        the nearest clear one; None if there is none, or if another that lies there perhaps is less than
        `NEARNESS_RATIO` times as far. "next to" is the nearest of all objects in the scene, if it is a member.
        """
        others = tuple(i for i in (self.everything.members if relation == "next to" else members) if i != anchor)
        if not self.are_visible((*others, anchor)):
            return None
        near: list[tuple[float, bool, int]] = []
        for i in others:
            distance, along, across = self._offset(i, anchor, relation)
            if relation == "next to":
                near.append((distance, True, i))
            elif along > 0 and across <= 2 * along:
                near.append((distance, along >= POSITION_MARGIN and across <= 0.8 * along, i))
        near.sort()
        if not near or not near[0][1] or (len(near) > 1 and near[1][0] < NEARNESS_RATIO * near[0][0]):
            return None
        return near[0][2] if near[0][2] in members else None

    def none_related(self, members: tuple[int, ...], relation: Relation, anchor: int) -> bool:
        """Whether no member can be said to lie on that side: all are level with the anchor or beyond it."""
        if relation == "next to" or not self.are_visible((*members, anchor)):
            return False
        return all(self._offset(i, anchor, relation)[1] <= 0.02 for i in members if i != anchor)

    def largest(self, members: tuple[int, ...]) -> int | None:
        """The largest of these objects, None if all are hidden."""
        visible = (i for i in members if self.areas[i] >= VISIBLE_AREA)
        return max(visible, key=lambda i: self.areas[i], default=None)
