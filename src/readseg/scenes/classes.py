"""What scenes are made of: classes, their groups, tints, and the pairs of classes that training never sees together.

Owns the words for things (articles, plurals, descriptions); knows no pixels. The table itself is classes.yaml.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from readseg.core.io import read_yaml

TINT_RGB = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (50, 160, 60),
    "blue": (45, 100, 220),
    "purple": (130, 60, 180),
    "pink": (250, 150, 200),
    "brown": (125, 80, 45),
}
"""The paint of each tint, as RGB in 0..255."""
TINTS = tuple(TINT_RGB)  # names of the colours that the objects of a tinted scene are drawn in

_HELD_OUT_SHARE = 0.08
_WIDE_GROUPS = {
    "animal": ("four-legged animal", "bird", "sea creature", "insect"),
    "food item": ("fruit", "vegetable", "snack"),
}


@dataclass(frozen=True, slots=True)
class Class:
    """One kind of object: as in "the {name}", "all {plural}", "a {counted}"; `is_plural`: "there are no {name}".

    glyph: OpenMoji code point in hexadecimal. trained: whether models are trained on scenes that hold it. descriptions:
    what it is or is for, without its name, as asked in training (empty if not trained) and as kept for tests.
    """

    name: str
    glyph: str
    group: str
    trained: bool
    plural: str
    counted: str
    is_plural: bool
    descriptions: tuple[str, ...]
    held_out_descriptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A super-category: its name, its words ("the {singular}", "all {plural}"), its classes' names."""

    name: str
    singular: str
    plural: str
    classes: tuple[str, ...]


def article(noun: str) -> str:
    """The noun with its indefinite article: "an owl", "a cow"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _group(name: str, classes: tuple[str, ...]) -> Group:
    if name in ("clothing", "furniture"):
        return Group(name, f"piece of {name}", f"pieces of {name}", classes)
    return Group(name, name, f"{name}s", classes)


CLASSES: Mapping[str, Class] = {
    name: Class(
        *(name, row["glyph"], row["group"], row["trained"]),
        plural=row.get("plural", f"{name}s"),
        counted=row.get("counted", name),
        is_plural=row.get("number") == "plural",
        descriptions=tuple(row.get("seen", ())),
        held_out_descriptions=tuple(row["unseen"]),
    )
    for name, row in read_yaml(Path(__file__).with_suffix(".yaml")).items()
}
"""Every class by its name, in the order of classes.yaml."""
GROUPS: Mapping[str, Group] = {
    group: _group(group, tuple(c.name for c in CLASSES.values() if c.group == group))
    for group in dict.fromkeys(c.group for c in CLASSES.values())
}
"""The 15 groups by name: every class is in exactly one."""
WIDE_GROUPS: Mapping[str, Group] = {
    name: _group(name, tuple(c for group in groups for c in GROUPS[group].classes))
    for name, groups in _WIDE_GROUPS.items()
}
"""Groups of groups, for questions such as "the biggest animal"."""
WIDE_GROUP_OF: Mapping[str, str] = {group: name for name, groups in _WIDE_GROUPS.items() for group in groups}
"""The group of groups that holds a group, where there is one."""
TRAINED: tuple[str, ...] = tuple(c.name for c in CLASSES.values() if c.trained)
"""Names of the classes that models are trained on."""
HELD_OUT_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in combinations(sorted(TRAINED), 2)
    if zlib.crc32("|".join(pair).encode()) % 1000 < 1000 * _HELD_OUT_SHARE
)
"""About 8% of the pairs of trained classes, which no training scene holds both of.

Chosen by CRC-32 of "a|b", so the same on every machine.
"""
