"""What scenes are made of: classes, their groups, tints, and the pairs of classes that training never sees together.

Owns the words for things (articles, plurals, descriptions); knows no pixels. The table itself is classes.yaml.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from readseg.core.io import read_yaml

TINTS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
"""Names of the colours that things of a tinted scene are drawn in."""

_HELD_OUT_SHARE = 0.08


@dataclass(frozen=True, slots=True)
class Class:
    """One kind of thing.

    Attributes:
        name: what it is called, lower case, as in "the {name}".
        glyph: OpenMoji code point in hexadecimal, e.g. "1F404".
        group: name of its group, a key of `GROUPS`.
        trained: whether models are trained on scenes that hold it.
        plural: as in "all {plural}".
        counted: as in "a {counted}": "cow", but "pair of scissors".
        is_plural: whether the name takes a plural verb ("there are no scissors").
        descriptions: what it is or is for, without its name, as asked in training; empty if not trained.
        held_out_descriptions: the same, kept for tests.
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
    """The noun with its indefinite article.

    >>> article("owl"), article("cow")
    ('an owl', 'a cow')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a class, group or other regular noun.

    >>> plural("butterfly"), plural("clothing"), plural("object")
    ('butterflies', 'pieces of clothing', 'objects')
    """
    if noun in CLASSES:
        return CLASSES[noun].plural
    groups = {**GROUPS, **WIDE_GROUPS}
    return groups[noun].plural if noun in groups else f"{noun}s"


def _load() -> Mapping[str, Class]:
    table = read_yaml(Path(__file__).with_suffix(".yaml"))
    classes = {}
    for name, row in table.items():
        classes[name] = Class(
            name=name,
            glyph=str(row["glyph"]),
            group=row["group"],
            trained=bool(row["trained"]),
            plural=row.get("plural", f"{name}s"),
            counted=row.get("counted", name),
            is_plural=row.get("number") == "plural",
            descriptions=tuple(row.get("seen", ())),
            held_out_descriptions=tuple(row.get("unseen", ())),
        )
    return MappingProxyType(classes)


def _group(name: str, classes: tuple[str, ...]) -> Group:
    singular = {"clothing": "piece of clothing", "furniture": "piece of furniture"}.get(name, name)
    plural_ = {"clothing": "pieces of clothing", "furniture": "pieces of furniture"}.get(name, f"{name}s")
    return Group(name, singular, plural_, classes)


CLASSES: Mapping[str, Class] = _load()
"""Every class by its name, in the order of classes.yaml."""

GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        group: _group(group, tuple(c.name for c in CLASSES.values() if c.group == group))
        for group in dict.fromkeys(c.group for c in CLASSES.values())
    }
)
"""The 15 groups by name: every class is in exactly one."""

WIDE_GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        name: _group(name, tuple(c for member in members for c in GROUPS[member].classes))
        for name, members in {
            "animal": ("four-legged animal", "bird", "sea creature", "insect"),
            "food item": ("fruit", "vegetable", "snack"),
        }.items()
    }
)
"""Groups of groups, for questions such as "the biggest animal"."""

TRAINED: tuple[str, ...] = tuple(c.name for c in CLASSES.values() if c.trained)
"""Names of the classes that models are trained on."""


def held_out_pairs() -> frozenset[frozenset[str]]:
    """About 8% of the pairs of trained classes: chosen by CRC-32 of "a|b", so the same on every machine.

    A training scene never holds both classes of such a pair.
    """
    return frozenset(
        frozenset(pair)
        for pair in combinations(sorted(TRAINED), 2)
        if zlib.crc32("|".join(pair).encode()) % 1000 < 1000 * _HELD_OUT_SHARE
    )


HELD_OUT_PAIRS: frozenset[frozenset[str]] = held_out_pairs()
"""The pairs of `held_out_pairs`, computed once."""
