"""How a square grid of tokens lies on an image: cells to pixels, and pixels to cells, one axis at a time.

Pixel i of an axis reaches from i to i + 1, its centre lies at i + 0.5; n and m count the cells of an axis. `sasp.py` is
written on top, without a rounding of its own. Alignment "reference" follows the public code that the released READ
weights were trained with; "exact" is ours.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Alignment = Literal["reference", "exact"]
"""How the grid is placed: with the rounding of the released weights, or without any, at a given `Box`."""

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in image pixels."""

REFERENCE_SIDE = 336
"""The released weights were trained with a full map that passes through this size, whatever the vision tower."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError where a value is none of the words of a Literal."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}.")


class GridAxis(NamedTuple):
    """How the token grid lies along one side of the image, in pixels: it covers [low, high) of its `length`."""

    length: int
    low: float
    high: float
    short: int | None  # the image's shorter side, which rounds the "reference" alignment; None for "exact"


Axes = tuple[GridAxis, GridAxis]
"""The y and the x axis."""


def axes(image_hw: tuple[int, int], alignment: Alignment, box: Box | None) -> Axes:
    """The y and the x axis of a grid on an image; without a box it covers the centred square of side min(H, W)."""
    check_choice("alignment", alignment, Alignment)
    height, width = image_hw
    if height < 1 or width < 1:
        raise ValueError(f"image_hw must be at least 1 x 1 pixel, got {height} x {width}")
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    centre = (left, top, left + short, top + short)
    if alignment == "reference":
        if box is not None and any(abs(a - b) > 1e-3 for a, b in zip(box, centre, strict=True)):
            raise ValueError(
                f'alignment "reference" knows only the centre crop {centre}, got box {box}: use alignment "exact"'
            )
        return GridAxis(height, top, top + short, short), GridAxis(width, left, left + short, short)
    x0, y0, x1, y1 = centre if box is None else box
    if not (math.inf > x1 > x0 > -math.inf and math.inf > y1 > y0 > -math.inf):
        raise ValueError(f"box must be finite (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {box}")
    return GridAxis(height, y0, y1, None), GridAxis(width, x0, x1, None)


def _reference_padding(length: int, short: int, cells: int) -> int:
    """Cells padded (cropped, if negative) at both ends of an axis, rounded as the released weights were trained."""
    return (int(length * (cells / short)) - cells) // 2


def cell_pixels(axis: GridAxis, cells: int) -> tuple[Int[Tensor, " m"], Bool[Tensor, " m"]]:
    """The pixel that holds the centre of each of m cells, and which centres lie in the image; on the host.

    "exact": pixel = floor(low + (i + 0.5) (high - low) / m). "reference": with padding p = `_reference_padding`,
    pixel = floor((i + p + 0.5) float32(length / (m + 2 p))); cropped cells (p < 0) are not inside.
    """
    if axis.short is None:
        centre = axis.low + (torch.arange(cells, dtype=torch.float64) + 0.5) * ((axis.high - axis.low) / cells)
        inside = (centre >= 0) & (centre < axis.length)
        return centre.floor().clamp(0, axis.length - 1).long(), inside
    padding = _reference_padding(axis.length, axis.short, cells)
    total = cells + 2 * padding
    position = torch.arange(padding, padding + cells)
    inside = (position >= 0) & (position < total)
    # float32 decides the pixel where a centre falls on a whole number.
    centre = (position.to(torch.float32) + 0.5) * (axis.length / max(total, 1))
    return centre.long().clamp(0, axis.length - 1), inside


def cells_inside(yx: Axes, cells: int, device: torch.device) -> Bool[Tensor, "m m"]:
    """Cells of an m x m grid whose centres lie in the image: those that may be selected."""
    return (cell_pixels(yx[0], cells)[1][:, None] & cell_pixels(yx[1], cells)[1]).to(device)


def _hat(position: Float[Tensor, "*q"], cells: int) -> Float[Tensor, "*q n"]:
    """Weights of linear interpolation between cells at a position in units of cells, constant beyond the ends."""
    index = torch.arange(cells, device=position.device, dtype=position.dtype)
    return (1 - (position.clamp(0, cells - 1)[..., None] - index).abs()).clamp(min=0)


def pixel_weights(axis: GridAxis, pixels: Float[Tensor, "*q"], cells: int) -> Float[Tensor, "*q n"]:
    """Rows (..., n) of the matrix A of linear interpolation along one axis: how much each of n cells weighs.

    "exact": a[i, j] = max(0, 1 - |u_i - j|), u_i = (i + 0.5 - low) n / (high - low) - 0.5 cut to [0, n - 1], and
    0 for pixels whose centre the grid does not cover. "reference": the product of two such matrices, n -> 336 and,
    zero-padded, 336 -> length.
    """
    if axis.short is None:
        centre = pixels + 0.5
        weights = _hat((centre - axis.low) * (cells / (axis.high - axis.low)) - 0.5, cells)
        return weights * ((centre >= axis.low) & (centre < axis.high))[..., None]
    # As one step: each pixel blends two of the 336 rows.
    padding = _reference_padding(axis.length, axis.short, REFERENCE_SIDE)
    total = REFERENCE_SIDE + 2 * padding
    position = ((pixels + 0.5) * (total / axis.length) - 0.5).clamp(0, total - 1)
    before = position.floor()
    blend = (position - before)[..., None]

    def of_row(row: Tensor) -> Tensor:
        row = row - padding
        weights = _hat((row + 0.5) * (cells / REFERENCE_SIDE) - 0.5, cells)
        return weights * ((row >= 0) & (row < REFERENCE_SIDE))[..., None]

    return (1 - blend) * of_row(before) + blend * of_row(before + 1)


def cell_coverage(
    masks: Shaped[np.ndarray, "T H W"], side: int, box: Box | None = None, dtype: type = np.float32
) -> Float[np.ndarray, "T n n"]:
    """The share of each cell of a side x side grid that masks of 0 and 1 cover.

    c = (A_y M A_x^T) / (area of a cell); A_y (n, H) and A_x (n, W) hold how much of each pixel lies in each row and
    column of cells. The grid covers `box`, by default the whole image.
    """
    height, width = masks.shape[1:]
    if box is None:  # the same average, by OpenCV: stages draw many masks
        cells = [cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in masks]
        return np.array(cells, dtype).reshape(-1, side, side)
    x0, y0, x1, y1 = box
    cover = (_shared(height, side, y0, y1) @ masks.astype(np.float64) @ _shared(width, side, x0, x1).T).astype(dtype)
    return np.asarray(cover / ((y1 - y0) * (x1 - x0) / side**2))


def _shared(length: int, cells: int, low: float, high: float) -> Float[np.ndarray, "n L"]:
    """How much of each of L pixels of an axis lies in each of n cells of [low, high)."""
    edges = np.linspace(low, high, cells + 1)[:, None]
    pixels = np.arange(length)
    return (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(min=0)
