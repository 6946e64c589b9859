"""The layout of a grid on an image, one axis at a time; `test_sasp.py` holds whole maps against plain resizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.core.token_grid import axes, cell_pixels, cells_inside, pixel_weights

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
    inside = cells_inside(axis_y, axis_x, cells, torch.device("cpu"))
    for axis, own in ((axis_y, inside.any(1)), (axis_x, inside.any(0))):
        pixels, valid = cell_pixels(axis, cells)
        assert torch.equal(own, valid & inside.any())
        assert ((pixels >= 0) & (pixels < axis.length)).all()


def test_a_box_beyond_the_image_has_cells_outside() -> None:
    axis_y, axis_x = axes((4, 8), "exact", (0, -2, 8, 6))
    assert cell_pixels(axis_y, 4)[1].tolist() == [False, True, True, False]
    assert cells_inside(axis_y, axis_x, 4, torch.device("cpu")).sum() == 8


def test_wrong_boxes_are_errors() -> None:
    with pytest.raises(ValueError, match="centre crop"):
        axes((4, 8), "reference", (0, 0, 8, 4))
    with pytest.raises(ValueError, match="x0 < x1"):
        axes((4, 8), "exact", (3, 0, 3, 4))
