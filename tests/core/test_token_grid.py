"""The layout of a grid on an image, one axis at a time; `test_sasp.py` holds whole maps against plain resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.core.frames import ImageFrame
from readseg.core.token_grid import axes, cell_coverage, cell_pixels, cells_inside, pixel_weights

few = settings(max_examples=40, deadline=None, derandomize=True)


def test_a_cell_for_each_pixel_is_the_identity() -> None:
    for axis in axes((7, 7), "exact", None):
        torch.testing.assert_close(pixel_weights(axis, torch.arange(7.0), 7), torch.eye(7))
        pixels, inside = cell_pixels(axis, 7)
        assert pixels.tolist() == list(range(7))
        assert inside.all()


@few
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9), st.sampled_from([None, (-4.0, 2.5, 30.0, 9.0)]))
def test_weights_sum_to_one_where_the_grid_lies(
    height: int, width: int, cells: int, box: tuple[float, float, float, float] | None
) -> None:
    for axis in axes((height, width), "exact", box):
        centres = torch.arange(axis.length, dtype=torch.float64) + 0.5
        covered = (centres >= axis.low) & (centres < axis.high)
        weights = pixel_weights(axis, centres - 0.5, cells)
        assert weights.shape == (axis.length, cells)
        torch.testing.assert_close(weights.sum(1), covered.double())


@few
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 24), st.sampled_from(["exact", "reference"]))
def test_cells_inside_name_pixels_of_the_image(height: int, width: int, cells: int, alignment: str) -> None:
    axis_y, axis_x = axes((height, width), alignment, None)  # type: ignore[arg-type]
    inside = cells_inside((axis_y, axis_x), cells, torch.device("cpu"))
    for axis, own in ((axis_y, inside.any(1)), (axis_x, inside.any(0))):
        pixels, valid = cell_pixels(axis, cells)
        assert torch.equal(own, valid & inside.any())
        assert ((pixels >= 0) & (pixels < axis.length)).all()


def test_a_box_beyond_the_image_has_cells_outside() -> None:
    axis_y, axis_x = axes((4, 8), "exact", (0, -2, 8, 6))
    assert cell_pixels(axis_y, 4)[1].tolist() == [False, True, True, False]
    assert cells_inside((axis_y, axis_x), 4, torch.device("cpu")).sum() == 8


def test_wrong_boxes_are_errors() -> None:
    with pytest.raises(ValueError, match="centre crop"):
        axes((4, 8), "reference", (0, 0, 8, 4))
    with pytest.raises(ValueError, match="x0 < x1"):
        axes((4, 8), "exact", (3, 0, 3, 4))


def test_coverage_of_the_whole_image_is_the_mean_of_each_cell() -> None:
    masks = np.random.default_rng(0).random((3, 32, 48)) < 0.4
    expected = masks.reshape(3, 4, 8, 4, 12).mean((2, 4))
    for box in (None, (0.0, 0.0, 48.0, 32.0)):
        np.testing.assert_allclose(cell_coverage(masks, 4, box), expected, atol=1e-6)
        assert cell_coverage(masks[:0], 4, box).shape == (0, 4, 4)


@pytest.mark.parametrize("view", ["stretch", "crop", "letterbox"])
def test_coverage_is_the_share_of_each_cell(view: str) -> None:
    """Against counting the mask's pixels of a finely divided image, cell by cell."""
    frame = ImageFrame(60, 100, lmm_size=32, mask_size=64, view=view)  # type: ignore[arg-type]
    mask = np.zeros(frame.hw, bool)
    mask[10:33, 28:71] = True
    x0, y0, x1, y1 = frame.lmm_box
    times = 50  # samples a cell and axis
    at = (np.arange(4 * times) + 0.5) / (4 * times)
    xs, ys = np.floor(x0 + at * (x1 - x0)).astype(int), np.floor(y0 + at * (y1 - y0)).astype(int)
    inside = ((xs >= 0) & (xs < 100))[None] & ((ys >= 0) & (ys < 60))[:, None]
    seen = mask[np.clip(ys, 0, 59)][:, np.clip(xs, 0, 99)] & inside
    expected = seen.reshape(4, times, 4, times).mean((1, 3))
    np.testing.assert_allclose(cell_coverage(mask[None], 4, frame.lmm_box)[0], expected, atol=0.03)
