"""SasP against formulas written out plainly, its rules, gradients, dtypes and hostile input."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from readseg.core import sasp
from readseg.core.sasp import (
    PointConfig,
    discrete_to_continuous,
    discrete_to_continuous_on_map,
    full_map,
    normalise,
    points_from_scores,
    sample_features,
    select_cells,
    select_extremes,
    select_points,
    similarity,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ALIGNMENTS = ["reference", "exact"]
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(params=ALIGNMENTS)
def alignment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config(**values: Any) -> PointConfig:
    """Settings of points, in `exact` alignment where not said otherwise."""
    return PointConfig(**{"alignment": "exact", **values})


def smooth_scores(rows: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random scores (rows, side * side) that vary slowly, as those of a language model do."""
    coarse = torch.randn(rows, 1, max(2, side // 3), max(2, side // 3), dtype=torch.float64)
    fine = nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return fine.flatten(1).to(dtype)


def resized(maps: Tensor, hw: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(maps[:, None], hw, mode="bilinear", align_corners=False)[:, 0]


def plain_reference_map(scores: Tensor, hw: tuple[int, int]) -> Tensor:
    """Full map of `reference` alignment as a chain of whole-image resizes."""
    side = math.isqrt(scores.shape[1])
    square = resized(normalise(scores.unflatten(1, (side, side)))[0], (336, 336))
    pad_y, pad_x = ((int(length * (336 / min(hw))) - 336) // 2 for length in hw)
    return resized(nn.functional.pad(square, (pad_x, pad_x, pad_y, pad_y)), hw)


def plain_dtoc(point: Tensor, full: Tensor, bandwidth: float) -> Tensor:
    """p' as the sum over all pixels of the image, in float64."""
    height, width = full.shape
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    distance = ((x - point[0]) ** 2 + (y - point[1]) ** 2) / bandwidth**2
    weight = torch.exp(-distance) * full.double().flatten().softmax(0).view(height, width)
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "values",
    [
        {"num_points": 0},
        {"t_pos": 0.2, "t_neg": 0.8},
        {"t_pos": 0.5, "t_neg": 0.5},
        {"t_pos": 1.2},
        {"t_neg": float("nan")},
        {"downsample": 0},
        {"bandwidth": 0.0},
        {"bandwidth": float("inf")},
        {"alignment": "rough"},
        {"threshold": "mean"},
    ],
)
def test_settings_that_make_no_sense_are_errors(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        PointConfig(**values)  # type: ignore[arg-type]


def test_similarity_takes_one_set_of_image_tokens_or_one_for_each_row() -> None:
    h_seg, h_img = torch.randn(3, 8), torch.randn(3, 25, 8)
    each = similarity(h_seg, h_img)
    for row in range(3):
        torch.testing.assert_close(similarity(h_seg, h_img[row])[row], each[row])
        assert each[row, 7].item() == pytest.approx(float((h_seg[row] * h_img[row, 7]).sum()), rel=1e-5)
    assert similarity(h_seg[:0], h_img[0]).shape == (0, 25)


class TestNormalise:
    def test_range_and_flags(self) -> None:
        maps = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
        unit, usable = normalise(maps)
        assert usable.tolist() == [True, False, False, False]
        assert unit.tolist() == [[0.0, 0.5, 1.0], [0.0] * 3, [0.0] * 3, [0.0] * 3]

    def test_dtype_is_kept_and_a_range_beyond_it_is_no_range(self) -> None:
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            largest = torch.finfo(dtype).max
            unit, usable = normalise(torch.tensor([[-largest, largest], [0.0, 1.0]], dtype=dtype))
            assert unit.dtype == dtype and usable.tolist() == [False, True]

    def test_cells_outside_do_not_set_the_range(self) -> None:
        unit, usable = normalise(torch.tensor([[100.0, 2.0, 4.0, -7.0]]), torch.tensor([False, True, True, False]))
        assert usable.item()
        assert unit.tolist() == [[1.0, 0.0, 1.0, 0.0]]


class TestFullMap:
    @few
    @given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(0, 1000))
    def test_whole_maps_equal_plain_resizes(self, height: int, width: int, side: int, seed: int) -> None:
        hw, generator = (height, width), torch.Generator().manual_seed(seed)
        scores = torch.randn(2, side * side, generator=generator, dtype=torch.float64)
        exact = full_map(scores, hw, box=(0, 0, width, height))
        torch.testing.assert_close(exact, resized(normalise(scores)[0].unflatten(1, (side, side)), hw))
        reference = full_map(scores.float(), hw, alignment="reference")
        torch.testing.assert_close(reference, plain_reference_map(scores.float(), hw), atol=2e-4, rtol=0)

    def test_exact_is_the_centred_square_by_default_and_a_box_may_reach_beyond_the_image(self) -> None:
        scores = smooth_scores(1, 6, torch.float64)
        ours = full_map(scores, (20, 36))
        square = resized(normalise(scores)[0].unflatten(1, (6, 6)), (20, 20))
        torch.testing.assert_close(ours[:, :, 8:28], square)
        assert not ours[:, :, :8].any() and not ours[:, :, 28:].any()
        ours = full_map(scores, (20, 36), box=(0, -8, 36, 28))
        cells = normalise(scores.view(1, 6, 6), torch.tensor([False, *[True] * 4, False])[:, None].expand(6, 6))[0]
        torch.testing.assert_close(ours, resized(cells, (36, 36))[:, 8:28])

    def test_reference_alignment_accepts_the_box_of_the_centre_crop(self) -> None:
        scores = smooth_scores(1, 8)
        with_box = full_map(scores, (10, 20), alignment="reference", box=(5, 0, 15, 10))
        assert torch.equal(with_box, full_map(scores, (10, 20), alignment="reference"))


class TestSelection:
    values = torch.tensor([[0.9, 0.1, 0.5, 0.8, 1.0, 0.2, 0.0, 0.3, 0.9]]).view(1, 3, 3)
    everywhere = torch.ones(3, 3, dtype=torch.bool)

    def test_order_and_labels(self) -> None:
        cells, labels, valid = select_cells(self.values, self.everywhere, config())
        assert cells.tolist() == [[4, 0, 8, 3, 6, 1, 5, 2, 7]] and valid.all()
        assert labels.tolist() == [[1, 1, 1, 1, 0, 0, 0, -1, -1]]
        assert select_cells(self.values, self.everywhere, config(num_points=5))[0].tolist() == [[4, 0, 8, 3, 6]]

    def test_cells_outside_are_never_selected(self) -> None:
        inside = self.everywhere.clone()
        inside[1] = False
        cells, labels, valid = select_cells(self.values, inside, config())
        assert cells[valid].tolist() == [0, 8, 6, 1, 2, 7] and labels[valid].tolist() == [1, 1, 0, 0, -1, -1]
        assert valid.tolist() == [[True] * 6 + [False] * 3]

    def test_std_rule_takes_cells_inside_only(self) -> None:
        mean, std, flat = self.values.mean(), self.values.std(correction=0), self.values.flatten()
        own = config(threshold="std")
        cells, labels, _ = select_cells(self.values, self.everywhere, own)
        assert set(cells[labels == 1].tolist()) == set(torch.where(flat >= mean + std / 2)[0].tolist())
        assert set(cells[labels == 0].tolist()) == set(torch.where(flat <= mean - std / 2)[0].tolist())
        inside = torch.tensor([True, True, False])[:, None].expand(3, 3)
        cells, labels, valid = select_cells(self.values, inside, own)
        alone = select_cells(self.values[:, :2], inside[:2], own)
        assert torch.equal(cells[valid], alone[0][0]) and torch.equal(labels[valid], alone[1][0])

    def test_ties_keep_raster_order(self) -> None:
        values = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).view(1, 3, 3)
        assert select_cells(values, self.everywhere, config())[0].tolist() == [[0, 2, 4, 6, 8, 1, 3, 5, 7]]

    @few
    @given(
        *(st.integers(1, 60), st.integers(1, 60), st.integers(2, 8), st.integers(1, 70)),
        *(st.sampled_from(ALIGNMENTS), st.sampled_from(["range", "std"])),
    )
    def test_points_lie_in_the_image_and_are_packed(
        self, height: int, width: int, side: int, num_points: int, alignment: Any, threshold: Any
    ) -> None:
        scores = torch.randn(3, side * side, generator=torch.Generator().manual_seed(side))
        scores[1] = 2.5
        own = config(num_points=num_points, alignment=alignment, threshold=threshold)
        points = points_from_scores(scores, (height, width), own)
        assert points.xy.shape == (3, min(num_points, (side // 2) ** 2), 2)
        assert (points.xy >= 0).all() and (points.xy <= torch.tensor([width - 1, height - 1]) + 1e-4).all()
        counts = points.valid.sum(dim=1, keepdim=True)
        assert torch.equal(points.valid, torch.arange(points.valid.shape[1]) < counts) and counts[1] == 0
        assert not points.xy[~points.valid].any() and (points.labels[~points.valid] == -1).all()

    def test_exact_points_are_the_cells_centres(self) -> None:
        scores = torch.zeros(1, 16)
        scores[0, 4 * 2 + 1] = 1
        points = select_points(scores, (40, 100), config(num_points=1, downsample=1))
        assert points.xy.tolist() == [[[30 + 15, 25]]]  # the square begins at x = 30, cells are 10 pixels wide

    def test_extremes(self) -> None:
        scores = torch.tensor([[0.9, 0.1, 0.5, 0.8, 1.0, 0.2, 0.0, 0.3, 0.4]])
        points = select_extremes(scores, (3, 3), count=2)
        assert points.xy.tolist() == [[[1, 1], [0, 0], [0, 2], [1, 0]]]
        assert points.labels.tolist() == [[1, 1, 0, 0]]
        assert select_extremes(scores, (3, 3), count=9).labels.tolist() == [[1] * 4 + [0] * 4]
        inside = select_extremes(scores, (3, 3), count=9, box=(0, 0, 3, 4))  # the last row of cells lies below
        assert inside.labels.tolist() == [[1] * 3 + [0] * 3]
        assert not select_extremes(torch.ones(1, 9), (3, 3), count=2).valid.any()


class TestDiscreteToContinuous:
    @pytest.mark.parametrize("bandwidth", [0.5, 1.0, 3.0])
    @pytest.mark.parametrize("hw", [(31, 47), (60, 25), (1, 1), (1, 40)])
    def test_window_equals_the_sum_over_the_image(self, hw: tuple[int, int], bandwidth: float, alignment: Any) -> None:
        scores = smooth_scores(2, 8, torch.float64)
        own = config(downsample=1, alignment=alignment, bandwidth=bandwidth)
        points = select_points(scores, hw, own)
        moved = discrete_to_continuous(points, scores, hw, own)
        maps = full_map(scores, hw, alignment=alignment)
        for row in range(2):
            for column in torch.where(points.valid[row])[0]:
                plain = plain_dtoc(points.xy[row, column], maps[row], bandwidth)
                torch.testing.assert_close(moved[row, column], plain, atol=1e-6, rtol=0)

    def test_points_move_uphill_and_further_with_a_wider_window(self) -> None:
        slope = torch.arange(12.0).repeat(12, 1).flatten()[None]
        points = select_points(slope, (60, 60), config(num_points=100))
        shifts = []
        for bandwidth in (1.0, 4.0):
            moved = discrete_to_continuous(points, slope, (60, 60), config(bandwidth=bandwidth))
            inner = points.valid & (points.xy > 20).all(-1) & (points.xy < 40).all(-1)
            shift = (moved - points.xy)[inner]
            assert len(shift) and (shift[:, 0] > 0).all() and shift[:, 1].abs().max() < 1e-4
            shifts.append(shift[:, 0].mean())
        assert shifts[1] > 10 * shifts[0]

    def test_on_a_given_map_equals_the_one_from_scores(self) -> None:
        scores = smooth_scores(2, 8)
        points = select_points(scores, (50, 40), config(num_points=10))
        ours = discrete_to_continuous(points, scores, (50, 40), config())
        on_map = discrete_to_continuous_on_map(points.xy, full_map(scores, (50, 40)))
        torch.testing.assert_close(torch.where(points.valid[..., None], on_map, 0), ours, atol=1e-5, rtol=0)

    def test_a_window_with_nan_leaves_its_point(self) -> None:
        maps = torch.rand(1, 20, 20)
        maps[0, 3, 3] = math.nan
        points = torch.tensor([[[4.0, 4.0], [15.0, 15.0]]])
        moved = discrete_to_continuous_on_map(points, maps)
        assert torch.equal(moved[0, 0], points[0, 0])
        assert moved[0, 1].isfinite().all() and not torch.equal(moved[0, 1], points[0, 1])

    def test_cost_does_not_depend_on_the_image(self) -> None:
        scores = smooth_scores(1, 8)

        class Largest(TorchDispatchMode):
            numel = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for tensor in result if isinstance(result, tuple | list) else [result]:
                    if isinstance(tensor, Tensor):
                        self.numel = max(self.numel, tensor.numel())
                return result

        for alignment in ALIGNMENTS:
            sizes = []
            for hw in [(64, 96), (6400, 9600)]:
                with Largest() as largest:
                    points_from_scores(scores, hw, config(num_points=4, alignment=alignment))
                sizes.append(largest.numel)
            assert sizes[0] == sizes[1]


class TestGradients:
    @pytest.mark.parametrize("bandwidth", [1.0, 2.5])
    @pytest.mark.parametrize("box", [None, (0.0, 0.0, 30.0, 23.0), (0.0, -3.5, 30.0, 26.5)])
    def test_gradcheck(self, box: sasp.Box | None, bandwidth: float) -> None:
        scores = torch.randn(2, 25, dtype=torch.float64, requires_grad=True)
        hw = (23, 30)
        own = config(num_points=6, bandwidth=bandwidth)
        points = select_points(scores, hw, own, box=box)
        assert points.valid.any()
        assert torch.autograd.gradcheck(lambda s: discrete_to_continuous(points, s, hw, own, box=box), (scores,))

    def test_gradcheck_on_a_map_and_of_features(self) -> None:
        maps = torch.rand(1, 9, 8, dtype=torch.float64, requires_grad=True)
        points = torch.tensor([[[3.0, 4.0], [0.0, 8.0]]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda m: discrete_to_continuous_on_map(points.detach(), m), (maps,))
        inner = torch.rand(1, 4, 2, dtype=torch.float64) * 5 + 1.3
        assert torch.autograd.gradcheck(
            lambda f, p: sample_features(f, p, (9, 8)), (maps.detach().requires_grad_(), inner.requires_grad_())
        )

    def test_bad_rows_have_no_gradient_and_leave_the_others(self, alignment: Any) -> None:
        good = smooth_scores(1, 8)
        bad = torch.zeros(4, 64)
        bad[1, 3], bad[2, 3], bad[3, 3] = math.nan, math.inf, -math.inf
        scores = torch.cat([good, bad]).requires_grad_()
        points = points_from_scores(scores, (40, 50), config(alignment=alignment))
        assert points.valid.any(dim=1).tolist() == [True, False, False, False, False]
        points.xy.square().sum().backward()
        assert scores.grad is not None and scores.grad.isfinite().all()
        assert scores.grad[0].any() and not scores.grad[1:].any()

    def test_discrete_points_have_none(self) -> None:
        scores = smooth_scores(1, 8).requires_grad_()
        for dtoc in (False, True):
            assert points_from_scores(scores, (40, 50), config(dtoc=dtoc)).xy.requires_grad == dtoc


class TestAnyDeviceAndDtype:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_low_precision_scores_give_the_points_of_their_values(
        self, dtype: torch.dtype, alignment: Any, device: str
    ) -> None:
        scores = smooth_scores(2, 8, dtype).to(device)
        points = points_from_scores(scores, (48, 60), config(alignment=alignment))
        wide = points_from_scores(scores.double(), (48, 60), config(alignment=alignment))
        assert points.xy.dtype == torch.promote_types(dtype, torch.float32) and points.xy.device.type == device
        assert torch.equal(points.labels, wide.labels)
        torch.testing.assert_close(points.xy.double(), wide.xy, atol=2e-2, rtol=0)

    def test_nothing_waits_for_a_value(self, alignment: Any) -> None:
        """On the meta device there are no values: anything that asks for one fails."""
        scores = torch.zeros(3, 64, device="meta")
        points = points_from_scores(scores, (48, 60), config(alignment=alignment, num_points=5))
        assert points.xy.shape == (3, 5, 2)
        assert points_from_scores(scores, (48, 60), config(alignment=alignment, threshold="std")).xy.shape == (3, 16, 2)
        assert select_extremes(scores, (48, 60), count=3, alignment=alignment).xy.shape == (3, 6, 2)
        assert full_map(scores, (48, 60), alignment=alignment).shape == (3, 48, 60)

    def test_many_rows_equal_single_ones(self, alignment: Any) -> None:
        scores = smooth_scores(7, 8)
        together = points_from_scores(scores, (48, 60), config(alignment=alignment))
        for row in range(7):
            alone = points_from_scores(scores[row : row + 1], (48, 60), config(alignment=alignment))
            assert torch.equal(together.labels[row], alone.labels[0])
            torch.testing.assert_close(together.xy[row], alone.xy[0], atol=1e-5, rtol=0)

    def test_no_seg(self, alignment: Any) -> None:
        points = points_from_scores(torch.zeros(0, 64), (48, 60), config(alignment=alignment, num_points=5))
        assert [tuple(tensor.shape) for tensor in points] == [(0, 5, 2), (0, 5), (0, 5)]
        assert full_map(torch.zeros(0, 64), (48, 60), alignment=alignment).shape == (0, 48, 60)

    @pytest.mark.parametrize("hw", [(1, 1), (1, 4000), (4000, 1), (2, 3)])
    def test_tiny_and_extreme_images(self, hw: tuple[int, int], alignment: Any) -> None:
        points = points_from_scores(smooth_scores(2, 8), hw, config(alignment=alignment))
        assert points.valid.any() and points.xy.isfinite().all()
        assert (points.xy <= torch.tensor([hw[1] - 1, hw[0] - 1]) + 1e-3).all()

    def test_declared_shapes_hold(self) -> None:
        """Every public function once, its annotations checked at run time."""
        check = jaxtyped(typechecker=beartype)
        checked = {
            name: check(f) for name, f in vars(sasp).items() if inspect.isfunction(f) and f.__module__ == sasp.__name__
        }
        scores = checked["similarity"](torch.randn(2, 5), torch.randn(16, 5))
        hw = (12, 17)
        points = checked["points_from_scores"](scores, hw, config())
        checked["select_points"](scores, hw, config())
        checked["select_extremes"](scores, hw, count=2)
        checked["discrete_to_continuous"](points, scores, hw, config())
        maps = checked["full_map"](scores, hw)
        checked["normalise"](maps)
        checked["select_cells"](maps, torch.ones(hw, dtype=torch.bool), config())
        checked["discrete_to_continuous_on_map"](points.xy, maps)
        checked["sample_features"](maps, points.xy, hw)
        assert all(name in inspect.getsource(type(self)) for name in checked if not name.startswith("_"))


def test_linear_features_are_read_at_the_point() -> None:
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    features = torch.stack([x / 8, y / 6])  # position as a share of the image
    points = torch.tensor([[[20.0, 10.0], [40.0, 30.0]]])
    sampled = sample_features(features, points, (60, 80))
    torch.testing.assert_close(sampled, (points + 0.5) / torch.tensor([80.0, 60.0]))
    assert sample_features(torch.rand(3, 4, 4).bfloat16(), torch.zeros(2, 5, 2), (9, 9)).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select_points(torch.zeros(1, 15), (4, 4), config()), "square number"),
        (lambda: select_points(torch.zeros(1, 0), (4, 4), config()), "square number"),
        (lambda: select_points(torch.zeros(1, 16), (0, 4), config()), "at least 1"),
        (lambda: select_points(torch.zeros(1, 16), (4, 4), config(downsample=5)), "downsample"),
        (lambda: full_map(torch.zeros(1, 16), (4, 4), alignment="rough"), "alignment must be one of reference, exact"),
        (lambda: full_map(torch.zeros(1, 16), (4, 4), box=(3, 0, 1, 4)), "box"),
        (lambda: full_map(torch.zeros(1, 16), (4, 8), alignment="reference", box=(0, 0, 8, 4)), "centre crop"),
    ],
)
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
