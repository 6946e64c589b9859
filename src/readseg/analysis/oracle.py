"""Points from the true mask: what they reach in the original SAM is what a perfect map would give it.

Frame: pixels of the image, H x W. The grid of image tokens has n x n cells, N = n * n.

Source: section 3.2, points as the prompt of the original SAM, with the truth in place of the similarity map.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Shaped

from readseg.core.frames import Frame
from readseg.core.token_grid import Box
from readseg.model.config import PointConfig
from readseg.model.mask_prompts import Points, select_points


def true_coverage(target: Shaped[np.ndarray, "H W"], side: int, box: Box) -> Float[np.ndarray, "n n"]:
    """The share of each cell of a grid that a target covers.

        c = (A_y T A_x^T) / (A_y 1 A_x^T)

    T is 1 on the target; A_y (n, H) and A_x (n, W) hold how much of each pixel lies in each row and column of cells. Of
    a cell that reaches beyond the image only the part inside counts; one that lies outside has 0.

    Args:
        target: (H, W) in {0, 1, 255}; pixels of 255 are not on it.
        side: n.
        box: (x0, y0, x1, y1) in image pixels, the rectangle that the grid covers.

    Returns:
        (n, n) float32 in [0, 1], to six digits: cells that are covered alike are equal.

    >>> import numpy as np
    >>> true_coverage(np.array([[1, 0, 0, 1], [1, 0, 255, 1]]), 2, (0.0, 0.0, 4.0, 2.0)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    height, width = target.shape
    rows, columns = _overlap(height, side, box[1], box[3]), _overlap(width, side, box[0], box[2])
    area = np.outer(rows.sum(axis=1), columns.sum(axis=1))
    covered = rows @ (target == 1) @ columns.T
    return np.divide(covered, area, out=np.zeros_like(covered), where=area > 0).round(6).astype(np.float32)


def true_points(target: Shaped[np.ndarray, "H W"], frame: Frame, side: int, settings: PointConfig) -> Points:
    """The points that SasP chooses where the similarity map is the true coverage of its cells; without DtoC.

    A map is normalised to its own range, so the cell that is covered most is a positive point however little of it is.
    A target that covers all cells alike, none or every one, gives no points.

    Args:
        target: (H, W) in {0, 1, 255}.
        frame: of the image.
        side: n, cells along each side of the grid of image tokens.
        settings: how points are chosen.

    Raises:
        ValueError: what `prompting.select_points` raises.
    """
    cover = torch.from_numpy(true_coverage(target, side, frame.lmm_box)).view(1, -1)
    (points,) = select_points(cover, [0], [frame], replace(settings, dtoc=False))
    return points


def _overlap(length: int, cells: int, low: float, high: float) -> Float[np.ndarray, "n L"]:
    """How much of each of L pixels of an axis lies in each of n cells of [low, high)."""
    edges = np.linspace(low, high, cells + 1)[:, None]
    pixels = np.arange(length)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return shared.clip(min=0)
