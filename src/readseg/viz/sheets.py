"""Owns the sheets of answers: image, truth, and what every system drew, a row for each question (Figures 7 and 8).

Input is in image pixels: masks (S, H, W). A sheet is at least 1200 pixels wide, its words can be read at three quarters
of that; no meaning rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from readseg.core.masks import union
from readseg.errors import ReadsegError
from readseg.viz.overlays import overlay, stack, text_block

WIDTH, NARROWEST = 1200, 280
"""Pixels of a sheet, and of a column: with more columns than fit the sheet is wider."""

_LETTERS, _LARGEST, _GAP = 19, 24, 6
_WHITE, _LINE, _NOTHING = (255, 255, 255), (190, 190, 190), (225, 225, 225)
_TALLEST = 0.75  # height of a picture, of its column's width: rows of tall ones would not fit on a screen
_FADED = 0.45  # what is left of the ink outside of a mask


@dataclass(frozen=True, eq=False)
class Shown:
    """Masks with the words beneath them.

    masks: (S, H, W) bool; S may be 0.
    caption: such as the answer and how it went.
    """

    masks: np.ndarray
    caption: str


@dataclass(frozen=True, eq=False)
class Line:
    """One question of a sheet.

    Attributes:
        question: above the pictures.
        picture: RGB, what it is about; None where it is not to be had.
        size: (H, W) of it.
        truth: the masks that are expected.
        answers: what every system drew, in the order of the columns.
        ignored: (H, W) bool, pixels that do not count, grey in the truth; None where all do.
    """

    question: str
    picture: Image.Image | None
    size: tuple[int, int]
    truth: Shown
    answers: Sequence[Shown]
    ignored: np.ndarray | None = None


def answer_sheet(lines: Sequence[Line], systems: Sequence[str], *, title: str, note: str = "") -> Image.Image:
    """A sheet: the columns image, truth, and one for each system; a row for each question.

    Where a mask is, the rest of the picture is faded: a tint alone does not show on a picture of that colour.

    Args:
        lines: at least one.
        systems: the columns' titles.
        title: above.
        note: beneath.

    Raises:
        ReadsegError: no lines, or a line with another number of answers than there are systems.
    """
    if not lines:
        raise ReadsegError("a sheet of answers needs at least one question")
    wrong = [line.question for line in lines if len(line.answers) != len(systems)]
    if wrong:
        raise ReadsegError(
            f"a sheet of answers by {len(systems)} systems needs one each; it lacks some of {wrong[0]!r}"
        )
    titles = ["image", "truth", *systems]
    width = max(WIDTH // len(titles), NARROWEST)
    whole = width * len(titles)
    letters = min(_LARGEST, round(_LETTERS * whole / WIDTH))
    blocks = [
        text_block(title, whole, letters + 5, lines=2),
        _beside([text_block(name, width, letters, lines=2) or _blank(width) for name in titles], width),
    ]
    for line in lines:
        rule = Image.new("RGB", (whole, 2), _LINE)
        blocks += [rule, text_block(line.question, whole, letters + 2, lines=3), _row(line, width, letters)]
    blocks.append(text_block(note, whole, letters - 2, lines=4))
    return stack([block for block in blocks if block is not None])


def _row(line: Line, width: int, letters: int) -> Image.Image:
    height, wide = line.size
    bare = line.picture if line.picture is not None else Image.new("RGB", (wide, height), _NOTHING)
    first = Shown(np.zeros((0, height, wide), bool), "" if line.picture is not None else "the image is not there")
    known = bare
    if line.ignored is not None:
        pixels = np.array(bare.convert("RGB"))
        pixels[line.ignored] = _LINE
        known = Image.fromarray(pixels)
    cells = [_cell(bare, first, width, letters), _cell(known, line.truth, width, letters)]
    cells += [_cell(bare, shown, width, letters) for shown in line.answers]
    return _beside(cells, width)


def _cell(picture: Image.Image, shown: Shown, width: int, letters: int) -> Image.Image:
    """A picture with its masks, fitted into a column, its caption beneath."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    if shown.masks.any():
        outside = ~union(shown.masks, (picture.height, picture.width))
        pixels = np.where(outside[..., None], 255 - _FADED * (255 - pixels), pixels)
    drawn = overlay(Image.fromarray(pixels.astype(np.uint8)), shown.masks)
    side = width - 2 * _GAP
    scale = min(side / drawn.width, _TALLEST * side / drawn.height)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    fitted = drawn.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (width, fitted.height + 2 * _GAP), _WHITE)
    cell.paste(fitted, ((width - fitted.width) // 2, _GAP))
    words = text_block(shown.caption, width, letters, lines=6)
    return cell if words is None else stack([cell, words])


def _beside(cells: Sequence[Image.Image], width: int) -> Image.Image:
    """Cells of one width side by side, their heads in one line."""
    row = Image.new("RGB", (width * len(cells), max(cell.height for cell in cells)), _WHITE)
    for place, cell in enumerate(cells):
        row.paste(cell, (place * width, 0))
    return row


def _blank(width: int) -> Image.Image:
    return Image.new("RGB", (width, 1), _WHITE)
