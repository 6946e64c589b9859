"""Points from the true mask: what they reach in the original SAM is what a perfect map would give it.

Frame: pixels of the image, H x W. The grid of image tokens has n x n cells, N = n * n.

Source: section 3.2, points as the prompt of the original SAM, with the truth in place of the similarity map.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Shaped

from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points
from readseg.core.token_grid import Box, cell_coverage
from readseg.model.mask_prompts import select_points


def true_coverage(target: Shaped[np.ndarray, "H W"], side: int, box: Box) -> Float[np.ndarray, "n n"]:
    """The share of each cell of a grid that a target covers (1 in {0, 1, 255}), of the cell's part inside the image.

    To six digits: cells that are covered alike are equal. A cell that lies outside the image has 0.

    >>> true_coverage(np.array([[1, 0, 0, 1], [1, 0, 255, 1]]), 2, (0.0, 0.0, 4.0, 2.0)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    covered, inside = cell_coverage(np.stack([target == 1, np.ones(target.shape, bool)]), side, box, np.float64)
    return np.divide(covered, inside, out=np.zeros_like(covered), where=inside > 0).round(6).astype(np.float32)


def true_points(target: Shaped[np.ndarray, "H W"], frame: ImageFrame, side: int, settings: PointConfig) -> Points:
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
