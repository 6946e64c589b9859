"""What the data sets call the classes of scenes: their own tables of names, as far as a miniature needs them."""

from __future__ import annotations

from collections.abc import Mapping

from readseg.scenes.classes import CLASSES

COCO_STUFF: Mapping[str, int] = {
    "bicycle": 1, "car": 2, "bus": 5, "sailboat": 8,
    "penguin": 15, "owl": 15, "duck": 15, "parrot": 15,
    "cat": 16, "dog": 17, "cow": 20, "elephant": 21,
    "hat": 25, "umbrella": 27,
    "banana": 51, "apple": 52, "broccoli": 55, "carrot": 56, "pizza": 58, "doughnut": 59, "cake": 60,
    "chair": 61, "couch": 62, "bed": 64, "television": 71, "laptop": 72, "phone": 76, "book": 83, "scissors": 86,
    "sunflower": 118, "tulip": 118, "cactus": 141, "tree": 168,
}  # fmt: skip
"""Pixel value in COCO-Stuff's label maps of each class that has one there, by our name.

A sailboat is its boat, an owl its bird, a tulip its flower, a cactus its plant-other. A class is left out where only
some of what its label names would carry it: grapes are fruit, but an apple there is an apple.
"""

UNLABELLED = 255
"""COCO-Stuff's pixel value of what has no label."""

_ADE_SYNONYMS = {
    "bicycle": "bicycle, bike, wheel, cycle",
    "couch": "couch, sofa, lounge",
    "television": "television, television receiver, tv, tv set",
    "trousers": "trousers, pants",
    "phone": "phone, mobile phone, cell phone",
}
# No scene shows any of these, by this or another name: to say that there is none is true.
_ADE_OTHERS = (
    "building, edifice", "windowpane, window", "sidewalk, pavement", "person, individual, someone", "door, double door",
    "mountain, mount", "curtain, drape, drapery, mantle, pall", "house", "mirror", "fence, fencing", "rock, stone",
    "wardrobe, closet, press", "lamp", "bathtub, bathing tub, bath, tub", "railing, rail", "signboard, sign",
    "chest of drawers, chest, bureau, dresser", "sink", "skyscraper", "fireplace, hearth, open fireplace",
    "refrigerator, icebox", "grandstand, covered stand", "stairs, steps", "runway", "screen door",
    "bridge, span", "bookcase", "blind", "bench", "countertop", "stove, kitchen stove, range",
    "kitchen island", "swivel chair", "arcade machine", "towel", "truck, motortruck", "tower", "chandelier, pendant",
    "awning, sunshade, sunblind", "streetlight, street lamp", "booth, cubicle, stall, kiosk",
    "airplane, aeroplane, plane", "escalator, moving staircase, moving stairway", "ottoman, pouf, pouffe",
    "bottle", "fountain", "washer, automatic washer, washing machine", "waterfall, falls",
    "tent, collapsible shelter", "cradle", "oven", "microwave, microwave oven", "dishwasher, dish washer",
    "traffic light, traffic signal",
)  # fmt: skip
BACKDROP = "backdrop"
"""What is behind the things of a scene, in the data sets whose names are the miniature's own."""
ADE20K: tuple[str, ...] = (*(_ADE_SYNONYMS.get(name, name) for name in CLASSES), BACKDROP, *_ADE_OTHERS)[:150]
"""The miniature's own 150 names, in the order of their pixel values 1 to 150: `CLASSES`, the backdrop, others."""

_LVIS = {
    "car": "car_(automobile)",
    "bus": "bus_(vehicle)",
    "tractor": "tractor_(farm_equipment)",
    "drum": "drum_(musical_instrument)",
    "crab": "crab_(animal)",
    "octopus": "octopus_(animal)",
    "laptop": "laptop_computer",
    "phone": "cellular_telephone",
    "television": "television_set",
    "couch": "sofa",
    "corn": "edible_corn",
    "ice cream": "icecream",
}


def lvis_name(name: str) -> str:
    """A class as LVIS and PACO write it.

    >>> lvis_name("car"), lvis_name("palm tree")
    ('car_(automobile)', 'palm_tree')
    """
    return _LVIS.get(name, name.replace(" ", "_"))
