"""Sheets of answers: image, truth, and what every system drew, a row for each question (Figures 7 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from readseg.core.masks import union
from readseg.viz.overlays import beside, captioned, overlay, stack, text_block

WIDTH, NARROWEST = 1200, 280
"""Pixels of a sheet, and of a column: with more columns than fit the sheet is wider."""

_LETTERS, _LARGEST, _GAP = 19, 24, 6
_WHITE, _LINE, _NOTHING = (255, 255, 255), (190, 190, 190), (225, 225, 225)
_TALLEST = 0.75  # height of a picture, of its column's width: rows of tall ones would not fit on a screen
_FADED = 0.45  # what is left of the ink outside of a mask


@dataclass(frozen=True, eq=False)
class MaskPanel:
    """Masks (S, H, W) bool, S may be 0, with the words beneath them, such as the answer and how it went."""

    masks: np.ndarray
    caption: str


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One question of a sheet, with the answers of all systems in the order of the columns."""

    question: str
    picture: Image.Image | None
    """RGB, what it is about; None where it is not to be had."""
    size: tuple[int, int]
    """(H, W) of the picture."""
    truth: MaskPanel
    answers: Sequence[MaskPanel]
    ignored: np.ndarray | None = None
    """(H, W) bool, pixels that do not count, grey in the truth; None where all do."""


def answer_sheet(rows: Sequence[SheetRow], systems: Sequence[str], *, title: str, note: str = "") -> Image.Image:
    """A sheet: the columns image, truth, and one for each system; a row for each question.

    Where a mask is, the rest of the picture is faded: a tint alone does not show on a picture of that colour.
    """
    titles = ["image", "truth", *systems]
    width = max(WIDTH // len(titles), NARROWEST)
    whole = width * len(titles)
    letters = min(_LARGEST, round(_LETTERS * whole / WIDTH))
    heads = [text_block(name, width, letters, lines=2) or Image.new("RGB", (width, 1), _WHITE) for name in titles]
    blocks = [text_block(title, whole, letters + 5, lines=2), beside(heads, len(titles))]
    for row in rows:
        rule = Image.new("RGB", (whole, 2), _LINE)
        blocks += [rule, text_block(row.question, whole, letters + 2, lines=3)]
        height, wide = row.size
        picture = row.picture or Image.new("RGB", (wide, height), _NOTHING)
        bare = MaskPanel(np.zeros((0, height, wide), bool), "" if row.picture else "the image is not there")
        known = np.array(picture.convert("RGB"))
        if row.ignored is not None:
            known[row.ignored] = _LINE
        cells = [_cell(picture, bare, width, letters), _cell(Image.fromarray(known), row.truth, width, letters)]
        cells += [_cell(picture, answer, width, letters) for answer in row.answers]
        blocks.append(beside(cells, len(cells)))
    blocks.append(text_block(note, whole, letters - 2, lines=4))
    return stack(blocks)


def _cell(picture: Image.Image, panel: MaskPanel, width: int, letters: int) -> Image.Image:
    """A picture with its masks, fitted into a column, its caption beneath."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    if panel.masks.any():
        outside = ~union(panel.masks, (picture.height, picture.width))
        pixels = np.where(outside[..., None], 255 - _FADED * (255 - pixels), pixels)
    drawn = overlay(Image.fromarray(pixels.astype(np.uint8)), panel.masks)
    side = width - 2 * _GAP
    scale = min(side / drawn.width, _TALLEST * side / drawn.height)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    fitted = drawn.resize(size, Image.Resampling.LANCZOS)
    return captioned(fitted, panel.caption, width, letters, _GAP, lines=6)
