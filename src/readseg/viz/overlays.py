"""Overlays, heat maps, panels and contact sheets: PIL images for eyes, small ones enlarged, large ones reduced.

Input is in image pixels: masks (S, H, W) bool, maps (H, W), points (x, y) where (0, 0) is the first pixel's centre.
Colours are those of Okabe and Ito, which the colour-blind tell apart; no meaning rests on colour alone (points differ
in shape, masks carry numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Points = tuple[np.ndarray, np.ndarray]
"""Of one [SEG]: (P, 2) image pixels (x, y), and (P,) labels 1, 0 and -1."""

MASK_COLOURS: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167))
"""Orange, sky blue, bluish green, yellow, reddish purple: mask k has colour k modulo 5."""
POINT_COLOURS: dict[int, Colour] = {1: (0, 114, 178), 0: (213, 94, 0), -1: (120, 120, 120)}
"""Blue discs are positive points, vermilion crosses negative ones, grey squares neutral ones."""

_POINT_NAMES = {1: "positive", 0: "negative", -1: "neutral"}
_WHITE: Colour = (255, 255, 255)
_INK: Colour = (30, 30, 30)
_IGNORED: Colour = (150, 150, 150)
_SHORTEST_LONG_SIDE, _LONGEST_SIDE, _NARROWEST = 480, 1600, 320
_MARGIN = 4
_LONGEST_TEXT = 600


def overlay(image: Image.Image, masks: np.ndarray, *, points: Sequence[Points] = (), caption: str = "") -> Image.Image:
    """The image with each mask tinted and outlined, the points of each [SEG], and a caption beneath."""
    if masks.shape[1:] != (image.height, image.width):
        raise ValueError(f"masks {masks.shape} must be (S, {image.height}, {image.width}), the image's size.")
    scale = _display_scale(image.size)
    picture = np.array(_resized(image, scale))
    small = [_resized_mask(mask, picture.shape[:2]) for mask in masks]
    for index, mask in enumerate(small):
        _tint(picture, mask, MASK_COLOURS[index % len(MASK_COLOURS)])
    for index, mask in enumerate(small):
        _outline(picture, mask, MASK_COLOURS[index % len(MASK_COLOURS)])
    drawn = Image.fromarray(picture)
    counts = _draw_points(drawn, points, scale)
    size = max(14, max(drawn.size) // 40)
    pen, rim = ImageDraw.Draw(drawn), max(2, size // 8)
    for number, mask in enumerate(small if len(small) > 1 else (), start=1):
        if mask.any():  # the number stands on the pixel that lies deepest inside
            depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = (int(index) for index in np.unravel_index(int(depth.argmax()), depth.shape))
            pen.text((x, y), str(number), _INK, _font(size), anchor="mm", stroke_width=rim, stroke_fill=_WHITE)
    return _with_text(drawn, caption, counts)


def heat_map(
    image: Image.Image, similarity: np.ndarray, *, points: Sequence[Points] = (), caption: str = ""
) -> Image.Image:
    """The similarity map of one [SEG] over the greyed image, between its own minimum (dark) and maximum (yellow)."""
    scale = _display_scale(image.size)
    drawn = _with_map(_resized(image, scale), similarity, image.size)
    return _with_text(drawn, caption, _draw_points(drawn, points, scale), bar=True)


def panel(
    image: Image.Image,
    *,
    side: int,
    value_map: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
    points: Sequence[Points] = (),
    colour: Colour = MASK_COLOURS[0],
) -> Image.Image:
    """One small picture of a figure with many: the image, a map over it, a mask and points, its longest side given.

    Outlines and points keep their size whatever the image's. Pixels that do not count (`ignored`) are grey.
    """
    scale = 2 * side / max(image.size)  # drawn twice as large: made smaller, slanted lines are smooth
    drawn = _resized(image, scale)
    if value_map is not None:
        drawn = _with_map(drawn, value_map, image.size)
    picture = np.array(drawn)
    if ignored is not None:
        picture[_resized_mask(ignored, picture.shape[:2])] = _IGNORED
    if mask is not None:
        small = _resized_mask(mask, picture.shape[:2])
        _tint(picture, small, colour)
        _outline(picture, small, colour)
    drawn = Image.fromarray(picture)
    _draw_points(drawn, points, scale, radius=max(6, side // 26))
    return drawn.resize((max(1, drawn.width // 2), max(1, drawn.height // 2)), Image.Resampling.BOX)


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str] = (), *, columns: int = 4, tile: int = 320
) -> Image.Image:
    """Pictures in a grid, row by row, each fitted into `tile` pixels a side, with its caption beneath; at least one."""
    columns = min(columns, len(pictures))
    cells = []
    for picture, caption in zip(pictures, captions or [""] * len(pictures), strict=True):
        fitted = _resized(picture, (tile - 2 * _MARGIN) / max(picture.size))
        cells.append(captioned(fitted, caption, tile, max(13, tile // 25), _MARGIN, lines=4))
    return stack([beside(cells[start : start + columns], columns) for start in range(0, len(cells), columns)])


def captioned(picture: Image.Image, text: str, width: int, size: int, margin: int, *, lines: int) -> Image.Image:
    """A picture in the middle of a width, with a margin above and below, and its caption beneath."""
    cell = Image.new("RGB", (width, picture.height + 2 * margin), _WHITE)
    cell.paste(picture, ((width - picture.width) // 2, margin))
    return stack([cell, text_block(text, width, size, lines=lines)])


def stack(blocks: Sequence[Image.Image | None]) -> Image.Image:
    """Pictures one under the other, each in the middle of the widest one's width; at least one, None is left out."""
    shown = [block for block in blocks if block is not None]
    width = max(block.width for block in shown)
    stacked = Image.new("RGB", (width, sum(block.height for block in shown)), _WHITE)
    top = 0
    for block in shown:
        stacked.paste(block, ((width - block.width) // 2, top))
        top += block.height
    return stacked


def beside(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one width side by side, their heads in one line, with room for so many columns."""
    width = cells[0].width
    row = Image.new("RGB", (width * columns, max(cell.height for cell in cells)), _WHITE)
    for column, cell in enumerate(cells):
        row.paste(cell, (column * width, 0))
    return row


def points_legend(counts: Mapping[int, int | None], width: int, size: int) -> Image.Image:
    """What the marks of points mean; `counts`: how many there are of each label, None leaves the number out."""
    font, radius = _font(size), size / 3
    places, x, row = [], 0.5 * size, 0
    for label in (label for label in (1, 0, -1) if label in counts):
        name = _POINT_NAMES[label] if counts[label] is None else f"{counts[label]} {_POINT_NAMES[label]}"
        wide = 2.5 * size + font.getlength(name)
        if x + wide > width and x > size:
            x, row = 0.5 * size, row + 1
        places.append((label, name, x, (row + 0.75) * 1.5 * size))
        x += wide
    block = Image.new("RGB", (width, round((row + 1.4) * 1.5 * size)), _WHITE)
    pen = ImageDraw.Draw(block)
    for label, name, left, middle in places:
        _draw_marker(pen, label, left + radius, middle, radius)
        pen.text((left + 1.2 * size, middle), name, fill=_INK, font=font, anchor="lm")
    return block


def scale_legend(width: int, size: int) -> Image.Image:
    """A bar of the heat map's colours between the words "low" and "high similarity"."""
    font = _font(size)
    block = Image.new("RGB", (width, 2 * size), _WHITE)
    pen = ImageDraw.Draw(block)
    low, high, gap = "low", "high similarity", 0.5 * size
    left, right = round(2 * gap + font.getlength(low)), round(width - 2 * gap - font.getlength(high))
    pen.text((gap, size), low, fill=_INK, font=font, anchor="lm")
    pen.text((width - gap, size), high, fill=_INK, font=font, anchor="rm")
    ramp = np.linspace(0, 255, max(right - left, 2)).astype(np.uint8)
    block.paste(Image.fromarray(_colour_scale(np.repeat(ramp[None], size, axis=0))), (left, size // 2))
    return block


def text_block(text: str, width: int, size: int, *, lines: int) -> Image.Image | None:
    """Words wrapped to a width in pixels, at most so many lines; None for empty text."""
    wrapped = _wrap(text, width - size, _font(size), lines)
    if not wrapped:
        return None
    height = round(1.35 * size)
    block = Image.new("RGB", (width, len(wrapped) * height + size // 2), _WHITE)
    pen = ImageDraw.Draw(block)
    for row, line in enumerate(wrapped):
        pen.text((size // 2, size // 4 + row * height), line, fill=_INK, font=_font(size))
    return block


def one_line(text: str, longest: int) -> str:
    """Text that can be drawn: control characters and lone surrogates as blanks, no longer than can be read."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _display_scale(size: tuple[int, int]) -> float:
    longest = max(size)
    return min(max(longest, _SHORTEST_LONG_SIDE), _LONGEST_SIDE) / longest


def _resized(image: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR if scale < 4 else Image.Resampling.NEAREST)


def _resized_mask(mask: np.ndarray, hw: tuple[int, ...]) -> np.ndarray:
    # INTER_LINEAR where it grows keeps the outline smooth; INTER_AREA where it shrinks keeps thin parts.
    method = cv2.INTER_AREA if hw[0] < mask.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.uint8) * 255, (hw[1], hw[0]), interpolation=method).reshape(hw) > 127


def _tint(picture: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    picture[mask] = (0.5 * picture[mask] + 0.5 * np.array(colour, np.float32)).astype(np.uint8)


def _outline(picture: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(picture.shape[:2]) / 400))
    cv2.drawContours(picture, contours, -1, _WHITE, 4 * width)  # a white rim shows on any background
    cv2.drawContours(picture, contours, -1, colour, 2 * width)


def _with_map(picture: Image.Image, values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A map of an image of size (W, H) over its picture, which becomes grey; what is not finite shows as lowest."""
    if values.shape != size[::-1]:
        raise ValueError(f"map {values.shape} must be {size[::-1]}, the image's size.")
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    unit = np.zeros(values.shape, np.float32)
    if high > low:
        unit = np.where(finite, (values.astype(np.float32) - low) / (high - low), 0).clip(0, 1)
    levels = np.rint(unit * 255).astype(np.uint8)
    levels = cv2.resize(levels, picture.size, interpolation=cv2.INTER_LINEAR).reshape(picture.height, picture.width)
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(_colour_scale(levels)), 0.65)


def _colour_scale(levels: np.ndarray) -> np.ndarray:
    """(h, w) uint8 to (h, w, 3) uint8 RGB of the viridis scale, which also reads in grey."""
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def _draw_points(
    drawn: Image.Image, points: Sequence[Points], scale: float, radius: int | None = None
) -> dict[int, int]:
    """Draw all points, positive ones last and so on top; returns how many there are of each label."""
    pen = ImageDraw.Draw(drawn)
    radius = radius or max(4, max(drawn.size) // 120)
    counts: dict[int, int] = {}
    for label in (-1, 0, 1):
        for points_xy, labels in points:
            for x, y in np.asarray(points_xy, np.float64)[np.asarray(labels) == label]:
                _draw_marker(pen, label, (x + 0.5) * scale, (y + 0.5) * scale, radius)
                counts[label] = counts.get(label, 0) + 1
    return counts


def _draw_marker(pen: ImageDraw.ImageDraw, label: int, x: float, y: float, radius: float) -> None:
    colour = POINT_COLOURS[label]
    box = (x - radius, y - radius, x + radius, y + radius)
    rim = max(1, round(radius / 4))
    if label == 0:
        for line_colour, width in ((_WHITE, 4 * rim), (colour, 2 * rim)):
            for stroke in (box, (box[0], box[3], box[2], box[1])):
                pen.line(stroke, fill=line_colour, width=width)
    else:
        (pen.ellipse if label == 1 else pen.rectangle)(box, fill=colour, outline=_WHITE, width=rim)


def _with_text(drawn: Image.Image, caption: str, counts: dict[int, int], *, bar: bool = False) -> Image.Image:
    """The picture with its legend, the colour scale and the caption stacked beneath."""
    width = max(drawn.width, _NARROWEST)
    size = max(14, width // 45)
    scale = scale_legend(width, size) if bar else None
    legend = points_legend(counts, width, size) if counts else None
    return stack([drawn, scale, legend, text_block(caption, width, size, lines=6)])


def _wrap(text: str, width: float, font: Font, lines: int) -> list[str]:
    wrapped = [""]
    for word in one_line(text, _LONGEST_TEXT).split():
        candidate = f"{wrapped[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            wrapped[-1] = candidate
            continue
        wrapped.append("")
        for letter in word:  # a word longer than a line is broken anywhere
            if wrapped[-1] and font.getlength(wrapped[-1] + letter) > width:
                wrapped.append("")
            wrapped[-1] += letter
    wrapped = [line for line in wrapped if line]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1].rstrip() + "…"]
    return wrapped


@lru_cache(maxsize=32)
def _font(size: int) -> Font:
    """DejaVu Sans, which matplotlib ships and which knows many scripts; else Pillow's own."""
    spec = find_spec("matplotlib")  # finds the files without the cost of an import
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
