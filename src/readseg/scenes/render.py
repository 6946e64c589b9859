"""Scenes: which things lie where (a `Scene`, drawn by lot from a seed), and their pixels (`render`).

Frame: a thing's centre is in 0..1 of the image's width and height, its size is a share of the image's shorter side.
Everything is a function of the seed: the same seed gives the same scene and the same pixels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, TINTS
from readseg.scenes.glyphs import SIDE, tinted_glyph

SIZES_HW = ((320, 320), (256, 320), (320, 256), (240, 320), (320, 240))
"""Image sizes (height, width) that scenes are drawn in."""
BACKGROUNDS = ("plain", "gradient", "clouds", "stripes", "checks", "dots")
"""Names of the background textures."""
Pairs = Literal["seen", "held_out"]


@dataclass(frozen=True)
class Thing:
    """One drawn object.

    Attributes:
        name: class name.
        tint: tint name, or None for the glyph's own colours.
        x, y: centre, in 0..1 of the image's width and height.
        size: side of the glyph's square as a share of the image's shorter side.
        angle: rotation in degrees, counter-clockwise.
        mirror: whether left and right are swapped.
    """

    name: str
    tint: str | None
    x: float
    y: float
    size: float
    angle: float = 0.0
    mirror: bool = False


@dataclass(frozen=True)
class Scene:
    """A layout: its seed, image size in pixels, things from back to front, and the background texture."""

    seed: int
    height: int
    width: int
    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True)
class Rendered:
    """The pixels of a scene.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        masks: bool (T, H, W), the visible pixels of each thing.
        areas: float (T,), visible share of the image.
        boxes: float (T, 4), x0, y0, x1, y1 of the visible pixels in 0..1 of width and height; zeros where hidden.
    """

    image: np.ndarray
    masks: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def make_scene(
    seed: int,
    *,
    pairs: Pairs = "seen",
    trained: bool = True,
    count: tuple[int, int] = (4, 8),
    tinted: float = 0.45,
) -> Scene:
    """Draw a scene by lot: two or three groups, things of those groups, places that overlap little.

    Args:
        seed: any non-negative integer; the scene is a function of it and of the other arguments.
        pairs: "seen" never puts two classes of ``HELD_OUT_PAIRS`` together, "held_out" puts at least one such pair.
        trained: draw from the classes that models are trained on, or from those never trained.
        count: fewest and most things.
        tinted: probability that every thing is painted in a tint (else each keeps its own colours).

    Returns:
        A scene of ``count`` things; a little fewer where the last ones found no place.
    """
    rng = np.random.default_rng([seed, 20260])
    height, width = SIZES_HW[rng.integers(len(SIZES_HW))]
    names = _draw_names(rng, int(rng.integers(count[0], count[1] + 1)), pairs, trained)
    is_tinted = rng.random() < tinted
    things: list[Thing] = []
    boxes: list[tuple[float, float, float]] = []
    short = min(height, width)
    largest = 0.5 if len(names) <= 8 else 0.36
    for name in names:
        size = float(np.exp(rng.uniform(np.log(0.2), np.log(largest))))
        place = _find_place(rng, size, boxes, width / short, height / short)
        if place is None:
            continue
        cx, cy, size = place
        boxes.append(place)
        tint = str(rng.choice(TINTS)) if is_tinted else None
        angle = float(rng.uniform(-25, 25))
        things.append(Thing(name, tint, cx * short / width, cy * short / height, size, angle, bool(rng.random() < 0.5)))
    return Scene(seed, height, width, tuple(things), str(rng.choice(BACKGROUNDS)))


def _draw_names(rng: np.random.Generator, count: int, pairs: Pairs, trained: bool) -> list[str]:
    """Class names of a scene: mostly of two or three groups, so that most things have a relative beside them."""
    members = {g: [c.name for c in CLASSES.values() if c.group == g and c.trained == trained] for g in GROUPS}
    members = {g: names for g, names in members.items() if names}
    names: list[str] = []
    if pairs == "held_out":
        chosen = sorted(tuple(sorted(pair)) for pair in HELD_OUT_PAIRS)[rng.integers(len(HELD_OUT_PAIRS))]
        names.extend(chosen)
        groups = sorted({CLASSES[name].group for name in chosen})
    else:
        groups = [str(g) for g in rng.choice(sorted(members), size=int(rng.integers(2, 4)), replace=False)]
    for _ in range(20 * count):
        if len(names) >= count:
            break
        if names and rng.random() < 0.12:
            candidate = names[rng.integers(len(names))]
        else:
            group = groups[rng.integers(len(groups))]
            candidate = members[group][rng.integers(len(members[group]))]
            if candidate in names:
                continue
        if pairs == "seen" and any(frozenset((candidate, other)) in HELD_OUT_PAIRS for other in names):
            continue
        names.append(candidate)
    order = rng.permutation(len(names))
    return [names[i] for i in order]


def _find_place(
    rng: np.random.Generator, size: float, taken: list[tuple[float, float, float]], width: float, height: float
) -> tuple[float, float, float] | None:
    """A centre where a square of this side covers at most a quarter of any other; all in shares of the shorter side."""
    for attempt in range(60):
        if attempt % 15 == 14:
            size *= 0.85
        half = 0.46 * size
        x, y = rng.uniform(half, width - half), rng.uniform(half, height - half)
        for other_x, other_y, other in taken:
            side = (size + other) / 2
            shared = max(0.0, side - abs(x - other_x)) * max(0.0, side - abs(y - other_y))
            if shared > 0.22 * min(size, other) ** 2:
                break
        else:
            return float(x), float(y), float(size)
    return None


def render(scene: Scene) -> Rendered:
    """Paint a scene: background, then the things from back to front.

    A pixel belongs to the front-most thing whose opacity there is above one half.

    Returns:
        The image and the visible mask of each thing, see :class:`Rendered`.
    """
    height, width, short = scene.height, scene.width, min(scene.height, scene.width)
    canvas = _background(scene)
    owner = np.full((height, width), -1, np.int16)
    for index, thing in enumerate(scene.things):
        side = thing.size * short
        reach = int(np.ceil(side * 0.75)) + 2
        cx, cy = thing.x * width, thing.y * height
        x0, y0 = max(0, int(cx) - reach), max(0, int(cy) - reach)
        x1, y1 = min(width, int(cx) + reach), min(height, int(cy) + reach)
        if x1 <= x0 or y1 <= y0:
            continue
        matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), thing.angle, side / SIDE)
        matrix[:, 2] += np.asarray((cx - SIDE / 2 - x0, cy - SIDE / 2 - y0))
        picture = tinted_glyph(thing.name, thing.tint)
        if thing.mirror:
            picture = picture[:, ::-1]
        if side < SIDE / 2:
            small = max(2, round(side) * 2)
            picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
            matrix[:, :2] = matrix[:, :2] * (SIDE / small)
        picture = np.ascontiguousarray(picture)
        patch = cv2.warpAffine(picture, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        alpha = patch[..., 3:]
        region = canvas[y0:y1, x0:x1]
        region *= 1.0 - alpha
        region += patch[..., :3]
        owner[y0:y1, x0:x1][alpha[..., 0] > 0.5] = index
    masks = owner[None] == np.arange(len(scene.things))[:, None, None]
    boxes = np.zeros((len(scene.things), 4))
    for index, mask in enumerate(masks):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(rows):
            boxes[index] = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    image = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Rendered(image, masks, masks.mean(axis=(1, 2)), boxes)


def _background(scene: Scene) -> np.ndarray:
    """A muted texture, float32 (H, W, 3) in 0..1, a function of the scene's seed."""
    rng = np.random.default_rng([scene.seed, 7])
    height, width = scene.height, scene.width
    first, second = rng.uniform(0.45, 0.95, (2, 3)).astype(np.float32)
    second = first + 0.4 * (second - first)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(24, 64)
    along = np.cos(angle) * xs + np.sin(angle) * ys
    across = -np.sin(angle) * xs + np.cos(angle) * ys
    if scene.background == "plain":
        share = np.zeros((height, width), np.float32)
    elif scene.background == "gradient":
        share = (along - along.min()) / (np.ptp(along) + 1e-6)
    elif scene.background == "stripes":
        share = (np.sin(along * (2 * np.pi / period)) > 0).astype(np.float32)
    elif scene.background == "checks":
        share = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)
    elif scene.background == "dots":
        share = ((along % period - period / 2) ** 2 + (across % period - period / 2) ** 2 < (period / 5) ** 2).astype(
            np.float32
        )
    else:
        coarse = rng.random((6, 8)).astype(np.float32)
        share = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    grain = rng.normal(0, 0.012, (height // 2, width // 2)).astype(np.float32)
    canvas = first + share[..., None] * (second - first)
    canvas += cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.clip(canvas, 0, 1)
