"""Similarity as Points (SasP), the method of READ: from the similarity of [SEG] to the image tokens to points.

This module owns the similarity map, the choice of points on it and their discrete-to-continuous step (DtoC).
It speaks image pixels: a point (x, y) = (column, row) is the index of a pixel, whose centre lies at
(x + 0.5, y + 0.5). Tokens form a row-major n x n grid; `token_grid.py` knows where it lies on the image. No model and
no image enters here.

Axes: S = [SEG] tokens, N = n * n image tokens, D = width of the hidden states, P = points of one [SEG],
H, W = image height and width, m = n // downsample, K = side of the window of DtoC.

Source: "Reasoning to Attend: Try to Understand How <SEG> Token Works" (CVPR 2025), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from readseg.core.token_grid import Alignment, Axes, Box, axes, cell_pixels, cells_inside, check_choice, pixel_weights

Threshold = Literal["range", "std"]
# exp(-r^2) is below the resolution of float32 beyond r = 5: this many bandwidths make the window of DtoC.
WINDOW_BANDWIDTHS = 5


@dataclass(frozen=True)
class PointConfig:
    """How a similarity map becomes point prompts (Similarity as Points); ValueError for values that make no sense.

    Attributes:
        num_points: the most points that one [SEG] gets, at least 1 (the prompt "seg" of `ReadConfig` takes none).
        t_pos, t_neg: thresholds on the min-max map: v >= t_pos is positive, 0 <= v <= t_neg negative.
        downsample: the token grid of side n is reduced to n // downsample before points are chosen.
        alignment: "reference", the rounding that released READ weights were trained with, or "exact", without any.
        threshold: "range" uses t_pos and t_neg; "std" mean +/- 0.5 std of the map (the paper's text).
        dtoc: whether points are made continuous, so that gradients reach the similarity.
        bandwidth: scale of the kernel of that step, in pixels: exp(-|q - p|^2 / bandwidth^2).
    """

    num_points: int = 30
    t_pos: float = 0.8
    t_neg: float = 0.2
    downsample: int = 2
    alignment: Alignment = "reference"
    threshold: Threshold = "range"
    dtoc: bool = True
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        check_choice("alignment", self.alignment, Alignment)
        check_choice("threshold", self.threshold, Threshold)
        if self.num_points < 1:
            raise ValueError(f'num_points must be 1 or more; got {self.num_points}. The prompt "seg" uses none.')
        if not 0.0 <= self.t_neg < self.t_pos <= 1.0:
            raise ValueError(f"thresholds must obey 0 <= t_neg < t_pos <= 1; got {self.t_neg} and {self.t_pos}.")
        if self.downsample < 1:
            raise ValueError(f"downsample must be 1 or more; got {self.downsample}.")
        if not 0.0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be above 0 and finite; got {self.bandwidth}.")


class Points(NamedTuple):
    """The point prompts of one mask: image pixels (x, y), labels 1 positive, 0 negative, -1 neutral; P may be 0."""

    xy: Float[Tensor, "P 2"]
    labels: Int[Tensor, " P"]


class PointPrompts(NamedTuple):
    """Point prompts of S [SEG] tokens on one image, as in `Points`, packed to the left; `valid` columns hold a point.

    The others are padding, (0, 0) with label -1, and must not reach a mask decoder: there a point of any label changes
    the mask.
    """

    xy: Float[Tensor, "S P 2"]
    labels: Int[Tensor, "S P"]
    valid: Bool[Tensor, "S P"]

    def rows(self) -> list[Points]:
        """The points of each [SEG] without the padding."""
        counts = self.valid.sum(-1).tolist()
        return [Points(self.xy[row, :count], self.labels[row, :count]) for row, count in enumerate(counts)]


def similarity(
    h_seg: Float[Tensor, "S D"], h_img: Float[Tensor, "N D"] | Float[Tensor, "S N D"]
) -> Float[Tensor, "S N"]:
    """Scores of every image token for every [SEG]: the plain dot product s = h_seg . h_img^T.

    The image tokens are one set for all rows, or one for each row.

    >>> similarity(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[3.0, 2.0]]
    """
    if h_img.ndim == 2:
        return h_seg @ h_img.transpose(0, 1)
    return torch.einsum("sd,snd->sn", h_seg, h_img)


def normalise(
    maps: Float[Tensor, "S ..."], inside: Bool[Tensor, ...] | None = None
) -> tuple[Float[Tensor, "S ..."], Bool[Tensor, " S"]]:
    """Min-max of each map to [0, 1], in the map's own dtype, and which maps have one.

    v = (s - min s) / (max s - min s). A map that is constant, or holds NaN or infinity, has no range: it
    comes back as zeros with a False flag, and its gradient is zero. With `inside` only those cells count for min and
    max; the others are cut to [0, 1].

    >>> normalise(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]))
    (tensor([[0.0000, 1.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]]), tensor([ True, False]))
    """
    flat = maps.flatten(1)
    finite = flat.isfinite().all(dim=1, keepdim=True)
    # Zeros instead of NaN before any arithmetic, so that no NaN enters the backward pass either.
    flat = torch.where(finite, flat, 0)
    outside = flat.new_zeros((), dtype=torch.bool) if inside is None else ~inside.flatten()
    low = flat.masked_fill(outside, math.inf).amin(dim=1, keepdim=True)
    extent = flat.masked_fill(outside, -math.inf).amax(dim=1, keepdim=True) - low
    usable = finite & (extent > 0) & extent.isfinite()
    unit = torch.where(usable, flat - torch.where(usable, low, 0), 0) / torch.where(usable, extent, 1)
    return unit.clamp(0, 1).view_as(maps), usable.squeeze(1)


def full_map(
    scores: Float[Tensor, "S N"], image_hw: tuple[int, int], *, alignment: Alignment = "exact", box: Box | None = None
) -> Float[Tensor, "S H W"]:
    """The similarity map g at the size of the image: g = A_y V A_x^T.

    V is the normalised n x n grid; the rows of A_y (H, n) and A_x (W, n) hold the weights of bilinear interpolation.
    Outside the part of the image that the grid covers g is 0, and so is the whole map of scores without a range.

    "exact": the grid covers `box` (x0, y0, x1, y1), image pixels, which may reach outside the image; by default the
    centred square of side min(H, W). "reference": that square, by the rounding that released READ weights were trained
    with, n x n -> 336 x 336 -> zero padding -> (H, W).

    ValueError where N is no square number, the image is empty, or the box does not fit the alignment.
    """
    yx = axes(image_hw, alignment, box)
    grid, _ = _value_grid(scores, yx)
    y, x = (torch.arange(axis.length, device=grid.device, dtype=grid.dtype) for axis in yx)
    side = grid.shape[-1]
    return pixel_weights(yx[0], y, side) @ grid @ pixel_weights(yx[1], x, side).transpose(0, 1)


def select_cells(
    grid: Float[Tensor, "S rows columns"], inside: Bool[Tensor, "rows columns"], config: PointConfig
) -> tuple[Int[Tensor, "S P"], Int[Tensor, "S P"], Bool[Tensor, "S P"]]:
    """Ranks the cells of normalised grids and keeps the first P = min(num_points, rows * columns).

    Order: positive cells, v >= t_pos, from the highest; negative cells, 0 <= v <= t_neg, from the lowest;
    neutral cells in raster order. Equal values keep raster order. Threshold "std" takes mean + 0.5 std and
    mean - 0.5 std of each grid's cells inside (population std) in place of t_pos and t_neg.

    Returns flat cell indices, labels (1, 0, -1) and which of them are real (`inside`), packed to the left.
    """
    values, selectable = grid.flatten(1), inside.flatten()
    high: float | Tensor = config.t_pos
    low: float | Tensor = config.t_neg
    if config.threshold == "std":
        weight = selectable.to(grid.dtype) / selectable.sum().clamp(min=1)
        mean = (values * weight).sum(dim=1, keepdim=True)
        half_std = 0.5 * ((values - mean).square() * weight).sum(dim=1, keepdim=True).sqrt()
        high, low = mean + half_std, mean - half_std
    positive = values >= high
    negative = (values >= 0) & (values <= low)

    rank = torch.where(positive, 0, torch.where(negative, 1, 2)).masked_fill(~selectable, 3)
    within_rank = torch.where(positive, -values, torch.where(negative, values, 0))
    # Two stable sorts, the minor key first, order by (rank, key within the rank, raster).
    by_key = within_rank.argsort(dim=1, stable=True)
    cells = by_key.gather(1, rank.gather(1, by_key).argsort(dim=1, stable=True))[:, : config.num_points]
    chosen = rank.gather(1, cells)
    labels = torch.where(chosen == 0, 1, torch.where(chosen == 1, 0, -1))
    return cells, labels, chosen < 3


def select_points(
    scores: Float[Tensor, "S N"], image_hw: tuple[int, int], config: PointConfig, *, box: Box | None = None
) -> PointPrompts:
    """Discrete points: the pixels under the selected cells of the downsampled map. No gradient.

    The n x n scores are resized (bilinear) to m x m, m = n // downsample, normalised to [0, 1] and ranked by
    `select_cells`; cell (row, col) becomes the pixel that holds the cell's centre. Cells whose centre lies outside the
    image are never selected. A map without a range gives no points; with few cells, fewer than `num_points` come out.

    ValueError where downsample exceeds n, and as for `full_map`, which explains `box`.
    """
    yx = axes(image_hw, config.alignment, box)
    grid, usable = _selection_grid(scores, yx, config.downsample)
    cells, labels, valid = select_cells(grid, cells_inside(yx, grid.shape[-1], grid.device), config)
    return _points_of_cells(cells, labels, valid & usable[:, None], grid, yx)


def select_extremes(
    scores: Float[Tensor, "S N"],
    image_hw: tuple[int, int],
    *,
    count: int,
    alignment: Alignment = "exact",
    box: Box | None = None,
) -> PointPrompts:
    """The `count` highest cells as positive points, then the `count` lowest as negative ones. No gradient.

    This is the choice for points that are the only prompt of an original SAM (the paper's appendix). Where
    the image holds fewer than 2 * count cells, half of the cells are positive and half negative.
    """
    yx = axes(image_hw, alignment, box)
    grid, usable = _selection_grid(scores, yx, downsample=1)
    side = grid.shape[-1]
    # Counted on the host, where the layout is known: the shape of the result does not wait for the device.
    available = math.prod(cell_pixels(axis, side)[1].tolist().count(True) for axis in yx)
    count = min(count, available // 2)
    values, outside = grid.flatten(1), ~cells_inside(yx, side, grid.device).flatten()
    highest = values.masked_fill(outside, -math.inf).argsort(dim=1, descending=True, stable=True)
    lowest = values.masked_fill(outside, math.inf).argsort(dim=1, stable=True)
    cells = torch.cat([highest[:, :count], lowest[:, :count]], dim=1)
    labels = torch.ones_like(cells)
    labels[:, count:] = 0
    return _points_of_cells(cells, labels, usable[:, None].expand(cells.shape), grid, yx)


def discrete_to_continuous(
    points: PointPrompts,
    scores: Float[Tensor, "S N"],
    image_hw: tuple[int, int],
    config: PointConfig,
    *,
    box: Box | None = None,
) -> Float[Tensor, "S P 2"]:
    """DtoC: moves each point to a weighted mean of the pixels around it, so that gradients reach the scores.

        w(q) = exp(-|q - p|^2 / bandwidth^2) * softmax(g)(q),    p' = sum_q w(q) q / sum_q w(q)

    with g of `full_map`. The softmax's denominator cancels and far pixels weigh nothing, so g is evaluated
    only at the pixels of a window of 5 bandwidths around p, cut at the image's border: the cost does not
    depend on the image. With bandwidth 1, the paper's formula, p' is within hundredths of a pixel of p on
    smooth maps: a path for gradients, not a move. A wider one follows the map further.

    The points come from `select_points` with the same other arguments. Returns image pixels, at least float32; 0 where
    not valid. Source: paper section 3.3.
    """
    yx = axes(image_hw, config.alignment, box)
    grid, usable = _value_grid(scores, yx)

    def values_at(columns: Tensor, rows: Tensor) -> Tensor:
        along_y = pixel_weights(yx[0], rows, grid.shape[-1])  # (S, P, K, n)
        along_x = pixel_weights(yx[1], columns, grid.shape[-1])
        return (along_y.flatten(1, 2) @ grid).view_as(along_y) @ along_x.transpose(-1, -2)

    radius = math.ceil(WINDOW_BANDWIDTHS * config.bandwidth)
    moved = _moved(points.xy.to(grid.dtype), image_hw, radius, config.bandwidth, values_at)
    return torch.where((points.valid & usable[:, None])[..., None], moved, 0)


def discrete_to_continuous_on_map(
    points_xy: Float[Tensor, "S P 2"],
    maps: Float[Tensor, "S H W"],
    *,
    bandwidth: float = 1.0,
    radius: int | None = None,
) -> Float[Tensor, "S P 2"]:
    """DtoC (see `discrete_to_continuous`) on any map, one for each row of points: differentiable with respect to it.

    The maps, such as the attention of any model, are not normalised. The window reaches `radius` pixels from its
    point, by default 5 bandwidths, enough for maps of range 1; for a range R take about bandwidth * sqrt(R + 17).
    A point whose window holds NaN or infinity stays where it is.
    """
    height, width = maps.shape[-2:]
    xy = points_xy.to(torch.promote_types(maps.dtype, torch.float32))

    def values_at(columns: Tensor, rows: Tensor) -> Tensor:
        near = rows.clamp(0, height - 1).long()[..., :, None] * width
        near = near + columns.clamp(0, width - 1).long()[..., None, :]
        return maps.flatten(1).gather(1, near.flatten(1)).view(near.shape).to(xy.dtype)

    radius = math.ceil(WINDOW_BANDWIDTHS * bandwidth) if radius is None else radius
    return _moved(xy, (height, width), radius, bandwidth, values_at)


def points_from_scores(
    scores: Float[Tensor, "S N"], image_hw: tuple[int, int], config: PointConfig, *, box: Box | None = None
) -> PointPrompts:
    """SasP in one call: `select_points`, then, with `dtoc`, `discrete_to_continuous`. Their arguments and errors.

    >>> scores = torch.zeros(1, 16)
    >>> scores[0, 5] = 1.0  # second row, second column of a 4 x 4 grid
    >>> config = PointConfig(num_points=1, downsample=1, alignment="exact", dtoc=False)
    >>> points = points_from_scores(scores, (8, 8), config)
    >>> points.xy.tolist(), points.labels.tolist()
    ([[[3.0, 3.0]]], [[1]])
    """
    points = select_points(scores, image_hw, config, box=box)
    if not config.dtoc:
        return points
    return points._replace(xy=discrete_to_continuous(points, scores, image_hw, config, box=box))


def sample_features(
    feature_map: Float[Tensor, "C h w"], points_xy: Float[Tensor, "S P 2"], image_hw: tuple[int, int]
) -> Float[Tensor, "S P C"]:
    """Features of a map that covers the whole image, interpolated at points (like a light RoI pooling).

    Bilinear between cell centres, constant beyond the outermost ones; differentiable in map and points.

    Source: the paper's appendix on models without a language model.
    """
    height, width = image_hw
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    size = torch.tensor([width, height], device=points_xy.device, dtype=dtype)
    position = (points_xy.to(dtype) + 0.5) / size * 2 - 1
    sampled = nn.functional.grid_sample(
        feature_map[None].to(dtype), position[None], padding_mode="border", align_corners=False
    )
    return sampled[0].permute(1, 2, 0).to(feature_map.dtype)


def _square(scores: Float[Tensor, "S N"]) -> Float[Tensor, "S n n"]:
    """Scores on their square grid."""
    side = math.isqrt(scores.shape[1])
    if side == 0 or side * side != scores.shape[1]:
        raise ValueError(f"expected a square number of image tokens, got scores of shape {tuple(scores.shape)}")
    return scores.unflatten(1, (side, side))


def _normalise_on_image(grid: Float[Tensor, "S n n"], yx: Axes) -> tuple[Float[Tensor, "S n n"], Bool[Tensor, " S"]]:
    # With "reference" the padded and the cropped cells count for the range, as in training of released weights.
    return normalise(grid, cells_inside(yx, grid.shape[-1], grid.device) if yx[0].short is None else None)


def _value_grid(scores: Float[Tensor, "S N"], yx: Axes) -> tuple[Float[Tensor, "S n n"], Bool[Tensor, " S"]]:
    """The grid V of `full_map`: normalised in the dtype of the scores, then at least float32."""
    grid, usable = _normalise_on_image(_square(scores), yx)
    return grid.to(torch.promote_types(scores.dtype, torch.float32)), usable


def _selection_grid(
    scores: Float[Tensor, "S N"], yx: Axes, downsample: int
) -> tuple[Float[Tensor, "S m m"], Bool[Tensor, " S"]]:
    """The m x m grid that points are selected on, normalised in float32 (or float64), and which rows have one."""
    grid = _square(scores.detach())
    side = grid.shape[-1]
    if not 1 <= downsample <= side:
        raise ValueError(f"downsample must be 1 to {side} for a grid of {side} x {side} tokens, got {downsample}")
    grid = grid.to(torch.promote_types(grid.dtype, torch.float32) if yx[0].short is None else torch.float32)
    _, has_range = normalise(grid)
    cells = side // downsample
    if downsample > 1 and len(grid):
        grid = nn.functional.interpolate(grid[:, None], (cells, cells), mode="bilinear", align_corners=False)[:, 0]
    elif downsample > 1:
        grid = grid.new_zeros(0, cells, cells)  # interpolation refuses an empty batch
    grid, usable = _normalise_on_image(grid, yx)
    return grid, usable & has_range


def _points_of_cells(
    cells: Int[Tensor, "S P"],
    labels: Int[Tensor, "S P"],
    valid: Bool[Tensor, "S P"],
    grid: Float[Tensor, "S m m"],
    yx: Axes,
) -> PointPrompts:
    """Turns cells into pixels and blanks what is not valid."""
    side = grid.shape[-1]
    pixel_y, pixel_x = (cell_pixels(axis, side)[0].to(grid.device, grid.dtype) for axis in yx)
    row = cells.div(side, rounding_mode="floor")
    xy = torch.stack([pixel_x[cells - row * side], pixel_y[row]], dim=-1)
    return PointPrompts(torch.where(valid[..., None], xy, 0), torch.where(valid, labels, -1), valid)


def _moved(
    xy: Float[Tensor, "S P 2"],
    image_hw: tuple[int, int],
    radius: int,
    bandwidth: float,
    values_at: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "S P 2"]:
    """sum_q w(q) q with w = softmax(g(q) - |q - p|^2 / bandwidth^2) over the pixels q of a window in the image.

    `values_at` gives g (S, P, K, K) at columns (S, P, K) and rows (S, P, K); a point where it is not finite stays.
    """
    height, width = image_hw
    radius = min(radius, max(image_hw))
    offsets = torch.arange(-radius, radius + 1, device=xy.device, dtype=xy.dtype)
    middle = xy.detach().round()
    columns = middle[..., 0].clamp(0, width - 1)[..., None] + offsets
    rows = middle[..., 1].clamp(0, height - 1)[..., None] + offsets
    values = values_at(columns, rows)
    finite = values.isfinite().flatten(2).all(dim=2)[..., None]
    values = torch.where(finite[..., None], values, 0)
    away_x, away_y = columns - xy[..., 0:1], rows - xy[..., 1:2]
    near_x = (-(away_x / bandwidth).square()).masked_fill((columns < 0) | (columns >= width), -math.inf)
    near_y = (-(away_y / bandwidth).square()).masked_fill((rows < 0) | (rows >= height), -math.inf)
    weights = (values + near_y[..., :, None] + near_x[..., None, :]).flatten(2).softmax(dim=2).view_as(values)
    # Mean of the offsets, not of the positions: float32 keeps its resolution on large images.
    shift = torch.stack([(weights.sum(dim=2) * away_x).sum(dim=2), (weights.sum(dim=3) * away_y).sum(dim=2)], dim=2)
    return torch.where(finite, xy + shift, xy)
