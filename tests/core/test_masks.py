"""Run lengths, polygons, intersection and union."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from readseg.core import masks

few = settings(max_examples=40, deadline=None, derandomize=True)
some_mask = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


@few
@given(some_mask)
def test_rle_round_trip_and_agreement_with_coco(mask: np.ndarray) -> None:
    rle = masks.encode_rle(mask)
    assert isinstance(rle["counts"], str)
    for counts in (rle["counts"], rle["counts"].encode()):
        assert np.array_equal(masks.decode_rle({**rle, "counts": counts}), mask)
    assert np.array_equal(coco.decode(rle).astype(bool), mask)
    flat = mask.flatten(order="F")  # plain counts, the other form: runs of 0 and 1 in turn, by columns
    runs, value = [0], False
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    assert np.array_equal(masks.decode_rle({"size": list(mask.shape), "counts": runs}), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "4"},
        {"size": [2, 2], "counts": "01"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "0999"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "4\u00e9"},
        {"size": [2, 2], "counts": [1, 1]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [-2, -2], "counts": [4]},
        {"size": [2, 2], "counts": [None]},
        {"size": [2, float("inf")], "counts": [4]},
        {"size": [2, 2], "counts": 4},
        None,
    ],
)
def test_broken_rle_is_an_error(rle: Any) -> None:
    with pytest.raises(ValueError, match=r"counts|run lengths"):
        masks.decode_rle(rle)


def test_union() -> None:
    left, right = np.eye(3, dtype=bool), np.eye(3, dtype=bool)[::-1]
    assert masks.union([left, right]).sum() == 5
    assert masks.union([], (4, 5)).shape == (4, 5)
    with pytest.raises(ValueError, match="one size"):
        masks.union([left, np.eye(4)])


class TestPolygons:
    def test_a_square_has_its_border(self) -> None:
        mask = masks.polygons_to_mask([[(2, 3), (6, 3), (6, 8), (2, 8)]], (12, 10))
        expected = np.zeros((12, 10), bool)
        expected[3:9, 2:7] = True
        assert np.array_equal(mask, expected)

    def test_points_are_truncated(self) -> None:
        whole = masks.polygons_to_mask([[(2, 3), (6, 3), (6, 8)]], (12, 10))
        assert np.array_equal(masks.polygons_to_mask([[(2.9, 3.9), (6.99, 3.2), (6.5, 8.7)]], (12, 10)), whole)

    def test_overlap_is_a_union_whatever_the_form(self) -> None:
        first, second = [1, 1, 7, 1, 7, 7, 1, 7], [4, 4, 9, 4, 9, 9, 4, 9]
        both = masks.polygons_to_mask([first, second], (12, 12))
        assert both.dtype == bool
        alone = [masks.polygons_to_mask([part], (12, 12)) for part in (first, second)]
        assert np.array_equal(both, masks.union(alone))
        pairs = np.array(first, dtype=np.float32).reshape(-1, 2)
        assert np.array_equal(masks.polygons_to_mask([pairs], (12, 12)), alone[0])

    def test_degenerate_and_outside(self) -> None:
        assert not masks.polygons_to_mask([], (5, 5)).any()
        assert not masks.polygons_to_mask([[]], (5, 5)).any()
        assert masks.polygons_to_mask([[(2, 2)]], (5, 5)).sum() == 1
        assert masks.polygons_to_mask([[(0, 2), (4, 2)]], (5, 5)).sum() == 5
        assert masks.polygons_to_mask([[(-100, -100), (100, -100), (100, 100), (-100, 100)]], (5, 5)).all()

    @pytest.mark.parametrize("polygon", [[1, 2, 3], [(1, 2, 3)], [(1, float("nan")), (2, 3)], "abc", [[1], [2, 3]]])
    def test_broken_ones_are_errors(self, polygon: Any) -> None:
        with pytest.raises(ValueError, match="polygon"):
            masks.polygons_to_mask([polygon], (5, 5))


class TestIntersectionAndUnion:
    @few
    @given(st.data())
    def test_counts(self, data: st.DataObject) -> None:
        shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))
        pred = data.draw(arrays.arrays(bool, shape))
        target = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 255])))
        before = pred.copy(), target.copy()
        pairs = [(bool(p), t == 1) for p, t in zip(pred.flat, target.flat, strict=True) if t != 255]
        expected = sum(p and t for p, t in pairs), sum(p or t for p, t in pairs)
        assert masks.intersection_and_union(pred, target) == expected
        assert masks.iou(pred, target) == (expected[0] / expected[1] if expected[1] else 1.0)
        assert np.array_equal(pred, before[0])
        assert np.array_equal(target, before[1])

    def test_input_is_checked(self) -> None:
        mask = np.eye(3, dtype=np.uint8)
        for pred, target, message in (
            (mask, mask[:2], "one shape"),
            (3 * mask, mask, "mask must hold 0 and 1 only"),
            (mask, 5 * mask, "target must hold 0, 1 and 255 only"),
            (mask, np.full((3, 3), np.nan), "target"),
        ):
            with pytest.raises(ValueError, match=message):
                masks.intersection_and_union(pred, target)


def test_an_endless_run_length_is_an_error_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="no run length"):
        masks.decode_rle({"size": [2, 2], "counts": "o" * 1_000_000})
    assert time.perf_counter() - start < 1


def test_the_union_of_very_many_masks_takes_the_memory_of_two() -> None:
    tracemalloc.start()
    found = masks.union((np.ones((500, 500), bool) for _ in range(200)), (500, 500))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.all() and most < 2_000_000
