"""Points from the true mask: shares of cells counted on a finer raster, points written out."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from readseg.analysis.oracle import true_coverage, true_points
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig

SETTINGS = PointConfig(num_points=30, downsample=1, alignment="exact")


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random rectangles of 1, and one of 255."""
    rng = np.random.default_rng(seed)
    target = np.zeros((height, width), np.uint8)
    for value in (1, 1, 1, 255):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, size + 1, 2)) for size in (height, width))
        target[top:bottom, left:right] = value
    return target


@pytest.mark.parametrize(("height", "width", "side"), [(40, 60, 4), (37, 53, 5), (9, 70, 14), (5, 3, 8)])
def test_of_a_grid_over_the_whole_image(height: int, width: int, side: int) -> None:
    """Each pixel becomes side x side fine ones: then every cell holds a whole number of them."""
    target = blobs(height, width)
    fine = np.kron(target == 1, np.ones((side, side))).reshape(side, height, side, width)
    found = true_coverage(target, side, (0, 0, width, height))
    np.testing.assert_allclose(found, fine.mean(axis=(1, 3)), atol=1e-6)
    if min(height, width) >= side:  # what the stages are trained with, and the map loss
        area = cv2.resize((target == 1).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(found, area, atol=1e-5)


@pytest.mark.parametrize("box", [(10, 0, 50, 40), (0, -10, 60, 50), (-30, -30, 90, 70)])
def test_of_a_grid_over_a_part_or_beyond(box: tuple[int, int, int, int]) -> None:
    """A centre crop, a letterbox, and more: pixels of each cell one by one, those outside of the image in none."""
    target = blobs(40, 60, 1)
    found = true_coverage(target, 4, box)
    x_edges, y_edges = np.linspace(box[0], box[2], 5), np.linspace(box[1], box[3], 5)
    y, x = np.mgrid[:160, :240] / 4 + 0.125  # centres of quarter pixels: no edge cuts one
    fine = np.kron(target == 1, np.ones((4, 4), bool))
    for row, (top, bottom) in enumerate(pairwise(y_edges)):
        for column, (left, right) in enumerate(pairwise(x_edges)):
            inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
            expected = fine[inside].mean() if inside.any() else 0
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_cells_that_are_covered_alike_are_equal() -> None:
    found = true_coverage(np.ones((97, 331), np.uint8), 14, (0, 0, 331, 97))
    assert found.dtype == np.float32 and (found == 1).all()


def test_the_best_covered_cell_is_positive_however_little_of_it_is() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[22, 31] = 1  # one of the 150 pixels of the cell in row 2, column 2
    points = true_points(target, ImageFrame(40, 60, 32, 32, "stretch"), 4, SETTINGS)
    assert points.xy[0].tolist() == [37, 25] and points.labels.tolist() == [1] + [0] * 15
    middles = [[column * 15 + 7, row * 10 + 5] for row in range(4) for column in range(4) if (row, column) != (2, 2)]
    assert points.xy[1:].tolist() == middles, "equal cells in raster order"


def test_between_the_thresholds_is_neither() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:10, :15] = target[:5, 15:30] = 1  # all of one cell, half of the next
    points = true_points(target, ImageFrame(40, 60, 32, 32, "stretch"), 4, SETTINGS)
    assert points.labels.tolist() == [1] + [0] * 14 + [-1]
    assert points.xy[[0, -1]].tolist() == [[7, 5], [22, 5]]


def test_settings_of_points_are_the_model_s() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:20, :30] = 1
    frame = ImageFrame(40, 60, 32, 32, "stretch")
    points = true_points(target, frame, 4, PointConfig(num_points=3, downsample=2, alignment="exact", dtoc=True))
    assert points.xy.tolist() == [[15, 10], [45, 10], [15, 30]] and points.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("value", [0, 1, 255])
def test_nothing_and_everything_give_no_points(value: int) -> None:
    target = np.full((40, 60), value, np.uint8)
    assert len(true_points(target, ImageFrame(40, 60, 32, 32, "stretch"), 4, SETTINGS).xy) == 0


def test_a_target_outside_of_what_the_model_sees_gives_none() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:, :8] = 1  # the centre crop begins at 10
    assert len(true_points(target, ImageFrame(40, 60, 32, 32, "crop"), 4, SETTINGS).xy) == 0
    assert len(true_points(target, ImageFrame(40, 60, 32, 32, "letterbox"), 4, SETTINGS).xy) > 0
