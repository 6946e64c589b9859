"""Scenes are functions of their seed, respect the held-out pairs, and their masks are what was drawn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from readseg.core.masks import iou
from readseg.scenes.classes import CLASSES, HELD_OUT_PAIRS
from readseg.scenes.render import (
    BACKGROUNDS,
    GLYPH_SIDE,
    SIZES_HW,
    TINT_RGB,
    Scene,
    SceneObject,
    glyph,
    make_scene,
    render,
    tinted_glyph,
)

SEEDS = range(3_000_000, 3_000_150)


def pairs_of(scene: Scene) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in combinations({thing.name for thing in scene.objects}, 2)}


def test_same_seed_same_scene_same_pixels() -> None:
    first, again = make_scene(5), make_scene(5)
    assert first == again
    assert np.array_equal(render(first).image, render(again).image)
    assert make_scene(6) != first


def test_counts_sizes_tints_and_relatives() -> None:
    scenes = [make_scene(seed) for seed in SEEDS]
    assert {(scene.height, scene.width) for scene in scenes} == set(SIZES_HW)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    counts = [len(scene.objects) for scene in scenes]
    assert max(counts) == 8
    assert np.mean(np.asarray(counts) >= 4) > 0.98
    for scene in scenes:
        assert len({thing.tint is None for thing in scene.objects}) == 1
        assert all(CLASSES[thing.name].trained for thing in scene.objects)
    assert 0.3 < np.mean([scene.objects[0].tint is not None for scene in scenes]) < 0.6
    groups = [[CLASSES[thing.name].group for thing in scene.objects] for scene in scenes]
    assert np.mean([group.count(name) > 1 for group in groups for name in group]) > 0.6, "most have a relative"
    assert not any(pairs_of(scene) & HELD_OUT_PAIRS for scene in scenes)


def test_pairs_that_training_never_sees() -> None:
    found = [bool(pairs_of(make_scene(seed, pairs="held_out")) & HELD_OUT_PAIRS) for seed in SEEDS]
    assert np.mean(found) > 0.9, "a thing may find no place; else the pair is there"


def test_untrained_classes() -> None:
    names = {thing.name for seed in SEEDS for thing in make_scene(seed, trained=False).objects}
    assert len(names) > 20
    assert not any(CLASSES[name].trained for name in names)


def test_masks_are_disjoint_and_where_the_things_are() -> None:
    areas = []
    for seed in range(25):
        scene = make_scene(seed)
        drawn = render(scene)
        assert drawn.image.shape == (scene.height, scene.width, 3)
        assert drawn.masks.shape == (len(scene.objects), scene.height, scene.width)
        assert drawn.masks.sum(0).max() <= 1
        np.testing.assert_allclose(drawn.areas, drawn.masks.mean((1, 2)))
        areas += drawn.areas.tolist()
        for thing, (x0, y0, x1, y1), area in zip(scene.objects, drawn.boxes, drawn.areas, strict=True):
            if area > 0:
                assert x0 < x1 <= 1 and y0 < y1 <= 1
                assert abs((x0 + x1) / 2 - thing.x) < 0.2 and abs((y0 + y1) / 2 - thing.y) < 0.2
    assert np.mean((np.asarray(areas) >= 0.01) & (np.asarray(areas) <= 0.15)) > 0.9


def test_front_covers_back_and_masks_follow_geometry() -> None:
    back = SceneObject("apple", None, 0.5, 0.5, 0.5)
    small = SceneObject("apple", None, 0.5, 0.5, 0.2)
    masks = render(Scene(0, 200, 300, (back, small), "plain")).masks
    alone = render(Scene(0, 200, 300, (back,), "plain")).masks[0]
    assert not masks[0, 100, 150]
    assert masks[1, 100, 150]
    assert np.array_equal(masks[0] | masks[1], alone)
    rows, columns = np.nonzero(alone)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(100, abs=2)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(150, abs=2)
    assert max(np.ptp(rows), np.ptp(columns)) == pytest.approx(100, abs=6)


def test_mirror_and_rotation() -> None:
    keys = (SceneObject("key", None, 0.5, 0.5, 0.6, *more) for more in ((), (0.0, True), (90.0,)))
    plain, mirrored, turned = (render(Scene(0, 200, 200, (key,), "plain")).masks[0] for key in keys)
    assert min(iou(plain[:, ::-1], mirrored), iou(np.rot90(plain), turned)) > 0.85
    assert iou(plain, mirrored) < 0.6


def test_a_thing_beyond_the_border_is_cut() -> None:
    things = SceneObject("apple", None, 0.0, 0.5, 0.5), SceneObject("apple", None, 3.0, 3.0, 0.2)
    drawn = render(Scene(0, 100, 100, things, "plain"))
    assert drawn.areas[0] > 0 and drawn.areas[1] == 0
    assert drawn.boxes[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("tint", TINT_RGB)
def test_tints_paint_in_their_colour_and_keep_the_shape(tint: str) -> None:
    plain, painted = glyph("apple"), tinted_glyph("apple", tint)
    assert np.array_equal(plain[..., 3], painted[..., 3])
    inside = painted[GLYPH_SIDE // 2, GLYPH_SIDE // 2, :3] * 255
    distances = {name: np.abs(inside - np.asarray(rgb)).sum() for name, rgb in TINT_RGB.items()}
    assert min(distances, key=distances.get) == tint
