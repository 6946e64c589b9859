"""What the classes of ADE20K and COCO-Stuff are called, and which classes are surely not in an image. Words only.

A pixel has one label, though it may deserve two. A picture labelled "building" shows windows, one labelled "person"
shows clothes, and what one annotator calls water another one calls a lake. To say that there is none takes more than a
label that does not occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from readseg.core.io import read_yaml

_TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))
ADE20K: tuple[str, ...] = tuple(_TABLE["ade20k"])
COCO_STUFF: tuple[str, ...] = tuple(_TABLE["coco_stuff"])
_FAMILIES = tuple(frozenset[str](family) for family in _TABLE["families"])
_DOUBTFUL = frozenset[str](_TABLE["doubtful"])
_WORD = re.compile(r"[a-z]{3,}")


def surely_absent(names: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    """The names of which no picture with the labels `present` shows anything, in their order.

    Left out are those that are there, that share a word with one that is ("table", "dining table"), that are of one
    family with it ("lake", "water"; "clothes", "person"), and those that labels never settle ("metal").

    >>> surely_absent(("wall", "lake", "clock", "metal"), ("wall", "sea"))
    ('clock',)
    """
    labels = frozenset(present)
    words = frozenset[str]().union(*map(_words, labels))
    doubtful = _DOUBTFUL.union(labels, *map(_relatives, labels))
    return tuple(name for name in names if name not in doubtful and not words & _words(name))


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in _WORD.findall(name))


@cache
def _relatives(name: str) -> frozenset[str]:
    return frozenset[str]().union(*(family for family in _FAMILIES if name in family))
