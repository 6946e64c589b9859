"""What the data sets call the classes of scenes, as far as a miniature needs their tables of names: see names.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from readseg.core.io import read_yaml
from readseg.scenes.classes import CLASSES

_TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))
COCO_STUFF: Mapping[str, int] = _TABLE["coco_stuff"]
"""Pixel value in COCO-Stuff's label maps of each class that has one there, by our name."""
UNLABELLED = 255
"""COCO-Stuff's pixel value of what has no label."""
BACKDROP = "backdrop"
"""What is behind the objects of a scene, in the data sets whose names are the miniature's own."""
ADE20K: tuple[str, ...] = (
    *(_TABLE["ade20k_synonyms"].get(name, name) for name in CLASSES),
    BACKDROP,
    *_TABLE["ade20k_absent"],
)[:150]
"""The miniature's own 150 names, in the order of their pixel values 1 to 150: `CLASSES`, the backdrop, others."""


def lvis_name(name: str) -> str:
    """A class as LVIS and PACO write it.

    >>> lvis_name("car"), lvis_name("palm tree")
    ('car_(automobile)', 'palm_tree')
    """
    return str(_TABLE["lvis"].get(name, name.replace(" ", "_")))
