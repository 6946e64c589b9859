"""Which classes are not in an image, given those that are: a pixel has one label, though it may deserve two.

A picture labelled "building" shows windows, one labelled "person" shows clothes, and what one annotator calls water
another one calls a lake. To say that there is none takes more than a label that does not occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache


def _names(table: str) -> frozenset[str]:
    return frozenset(" ".join(name.split()) for name in table.split(","))


# Where one of a family is, none of the others is surely absent: it may be part of it, lie in it, or be its other name.
_FAMILIES = (
    _names(
        """
        building, building-other, house, skyscraper, hovel, tower, booth, grandstand, garage, tunnel, bridge,
        wall, windowpane, window, window-other, window-blind, door, door-stuff, screen door, roof, awning,
        canopy, balcony, bannister, railing, stairs, stairway, step, column, base, stage, platform, pier, light,
        sconce, ceiling, ceiling-other, phone booth, structural-other
        """
    ),
    _names(
        """
        wall, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, fence,
        railing, guard rail, barrier, road barrier, ambiguous barrier, temporary barrier, concrete block,
        bannister, net, cage, pole, base
        """
    ),
    _names(
        """
        person, person group, bicyclist, motorcyclist, other rider, apparel, clothes, cloth, hat, shoe, eye
        glasses, tie, bag, backpack, handbag, textile-other
        """
    ),
    _names(
        """
        tree, palm, plant, plant-other, potted plant, flower, bush, grass, leaves, branch, vegetation, moss,
        field, fruit, vegetable, land, hill, mountain, playingfield, pot, vase, terrain, earth, ground
        """
    ),
    _names(
        """
        earth, ground, ground-other, dirt, dirt track, sand, gravel, mud, land, field, grass, moss, path, road,
        sidewalk, pavement, runway, rock, stone, hill, mountain, terrain, snow, playingfield, platform, floor,
        rug, mat, carpet, curb, curb cut, driveway, parking, parking aisle, pedestrian area, bike lane, service
        lane, rail track, railroad, road median, road shoulder, road side, lane separator, traffic island,
        crosswalk - plain, pothole, manhole, catch basin, step, stairs, stairway, solid-other, leaves
        """
    ),
    _names(
        """
        floor, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, wood, rug, mat, carpet, stage,
        base
        """
    ),
    _names("water, water-other, waterdrops, sea, river, lake, swimming pool, waterfall, fountain, fog, pier, sand"),
    _names("sky, clouds, fog, snow, mountain, hill"),
    _names(
        """
        chair, armchair, swivel chair, seat, sofa, couch, stool, bench, ottoman, furniture-other, cushion,
        pillow, bed, blanket, cradle, buffet, toilet
        """
    ),
    _names(
        """
        table, dining table, coffee table, desk, desk-stuff, counter, countertop, kitchen island, buffet, pool
        table, bar, furniture-other
        """
    ),
    _names(
        """
        cabinet, cupboard, chest of drawers, wardrobe, shelf, bookcase, case, book, buffet, counter, countertop,
        kitchen island, desk, furniture-other, refrigerator, sink, box
        """
    ),
    _names(
        """
        screen, crt screen, monitor, computer, television receiver, tv, laptop, keyboard, mouse, remote, cell
        phone, arcade machine
        """
    ),
    _names(
        """
        poster, painting, signboard, banner, trade name, bulletin board, street sign, stop sign, flag, billboard,
        paper, mirror, mirror-stuff, windowpane, window, screen
        """
    ),
    _names("light, lamp, chandelier, sconce, streetlight, street light, traffic light, ceiling"),
    _names(
        """
        car, truck, bus, van, train, motorcycle, minibike, bicycle, caravan, trailer, other vehicle, vehicle
        group, on rails, wheeled slow, bicyclist, motorcyclist
        """
    ),
    _names("boat, ship, other vehicle, vehicle group"),
    _names(
        """
        food, food-other, fruit, vegetable, salad, sandwich, banana, apple, orange, broccoli, carrot, hot dog,
        pizza, donut, cake, plate, bowl, cup, glass, wine glass, bottle, tray, pot, vase, spoon, fork, knife,
        napkin, dining table, table
        """
    ),
    _names(
        """
        animal, ground animal, animal group, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
        plaything, teddy bear
        """
    ),
    _names("bag, box, basket, barrel, ashcan, trash can, case, suitcase, backpack, handbag, pot, tank, cardboard"),
    _names(
        """
        curtain, blind, window-blind, windowpane, window, towel, cloth, blanket, bed, pillow, cushion, rug,
        carpet, mat, textile-other, apparel, clothes, napkin, net, tent, canopy, awning, umbrella, flag, banner,
        sofa, couch
        """
    ),
    _names(
        """
        stove, oven, microwave, toaster, hood, dishwasher, washer, refrigerator, kitchen island, countertop,
        counter
        """
    ),
    _names("toilet, sink, bathtub, shower, screen door"),
    _names(
        """
        pole, pole group, utility pole, traffic sign frame, traffic light, traffic cone, street light,
        streetlight, column, flag, parking meter, street sign, stop sign, cctv camera, sculpture
        """
    ),
    _names(
        """
        ball, sports ball, plaything, baseball bat, baseball glove, tennis racket, frisbee, skis, snowboard,
        skateboard, surfboard, kite
        """
    ),
    _names("hill, mountain, rock, stone, land, earth"),
)
# Materials, what is nearly everywhere, what labels say of no thing, and the things that COCO gave up labelling.
_DOUBTFUL = _names("""
    cardboard, cloth, clothes, dirt, leaves, light, metal, paper, plastic, stone, straw, wood, branch, base, case, land,
    trade name, apparel, step, dynamic, static, ego vehicle, car mount, ground, street sign, hat, shoe, eye glasses,
    plate, mirror, window, desk, door, blender, hair brush
""")
_WORD = re.compile(r"[a-z]{3,}")


def surely_absent(names: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    """The names of which no picture with the labels `present` shows anything, in their order.

    Left out are those that are there, that share a word with one that is ("table", "dining table"), that are of one
    kind with it ("lake", "water") or part of it ("clothes", "person"), and those that labels never settle ("metal").

    >>> surely_absent(("wall", "lake", "clock", "metal"), ("wall", "sea"))
    ('clock',)
    """
    there = frozenset(present)
    words = frozenset[str]().union(*map(_words, there))
    kin = frozenset[str]().union(*map(_kin, there))
    return tuple(
        name
        for name in names
        if name not in there and name not in kin and name not in _DOUBTFUL and not words & _words(name)
    )


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in _WORD.findall(name))


@cache
def _kin(name: str) -> frozenset[str]:
    return frozenset[str]().union(*(family for family in _FAMILIES if name in family))
