"""The threshold search against a loop over pixels and thresholds, at every threshold and beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.analysis.thresholds import (
    THRESHOLDS,
    ThresholdCurve,
    best_mask,
    best_scores,
    mask_at,
    search_thresholds,
)
from readseg.core import stats
from readseg.errors import ReadsegError

DTYPES = (np.float16, np.float32, np.float64)
HUNDREDTHS = [k / 100 for k in range(101)]


def by_pixels(value_map: np.ndarray, target: np.ndarray) -> tuple[list[int], list[int]]:
    """I and U for t = 0, 0.01, ..., 1, pixel by pixel."""
    kind = value_map.dtype.type
    pixels = [(kind(v), int(t)) for v, t in zip(value_map.flat, target.flat, strict=True) if t != 255]
    inter, union = [], []
    for k in range(101):
        threshold = kind(k / 100)
        inter.append(sum(1 for v, t in pixels if v >= threshold and t == 1))
        union.append(sum(1 for v, t in pixels if v >= threshold or t == 1))
    return inter, union


def by_masks(value_map: np.ndarray, target: np.ndarray) -> tuple[list[int], list[int]]:
    """The same for large maps: a mask for each threshold."""
    counted, wanted = target != 255, target == 1
    found = [value_map >= t for t in HUNDREDTHS]  # Python floats, so in the map's dtype
    return [int((m & wanted).sum()) for m in found], [int(((m | wanted) & counted).sum()) for m in found]


def counts(curve: ThresholdCurve) -> tuple[list[int], list[int]]:
    return curve.intersections.tolist(), curve.unions.tolist()


def test_thresholds_are_the_floats_next_to_the_hundredths() -> None:
    assert THRESHOLDS.tolist() == HUNDREDTHS
    assert not THRESHOLDS.flags.writeable


@st.composite
def maps_and_targets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = shape[0] * shape[1]
    value = st.one_of(st.sampled_from(HUNDREDTHS), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
    values = np.array(draw(st.lists(value, min_size=size, max_size=size)), dtype=dtype).reshape(shape)
    steps = np.array(draw(st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=size, max_size=size))).reshape(shape)
    # The float below or above, so that values lie on thresholds and right beside them.
    moved = np.where(
        steps < 0, np.nextafter(values, dtype(0)), np.where(steps > 0, np.nextafter(values, dtype(1)), values)
    )
    target = draw(st.lists(st.sampled_from([0, 1, 255]), min_size=size, max_size=size))
    return moved, np.array(target, dtype=np.uint8).reshape(shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(maps_and_targets())
def test_equals_a_loop_over_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    value_map, target = pair
    curve = search_thresholds(value_map, target)
    inter, union = by_pixels(value_map, target)
    assert counts(curve) == (inter, union)
    ious = [i / u if u else 1.0 for i, u in zip(inter, union, strict=True)]
    assert curve.ious.tolist() == ious
    assert curve.best == ious.index(max(ious))
    assert curve.threshold == HUNDREDTHS[curve.best]
    assert curve.best_iou == max(ious)
    assert np.array_equal(best_mask(value_map, target), mask_at(value_map, curve.threshold))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_threshold_and_its_neighbours(dtype: Any) -> None:
    on = np.array(HUNDREDTHS, dtype=dtype)
    values = np.stack([np.nextafter(on, dtype(0)), on, np.nextafter(on, dtype(1))])
    for k in range(101):
        target = np.zeros(values.shape, np.uint8)
        target[1, k] = 1
        curve = search_thresholds(values, target)
        assert counts(curve) == by_masks(values, target)
        assert curve.intersections.tolist() == [1] * (k + 1) + [0] * (100 - k)  # it reaches its own threshold
        # The mask is that of the counts, whichever kind of number names the threshold.
        assert np.array_equal(mask_at(values, THRESHOLDS[k]), values >= dtype(k / 100))
        assert mask_at(values, k / 100)[1, k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "hundredths", "bytes"])
def test_equals_a_mask_for_each_threshold_on_an_image(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:480, :640]
    value_map = {
        "noise": rng.random((480, 640)),
        "smooth": np.exp(-((x - 300) ** 2 + (y - 200) ** 2) / 2e4),
        "hundredths": rng.integers(0, 101, (480, 640)) / 100,
        "bytes": rng.integers(0, 256, (480, 640)) / 255,
    }[kind].astype(dtype)
    target = ((x - 320) ** 2 + (y - 210) ** 2 < 9000).astype(np.uint8)
    target[rng.random((480, 640)) < 0.1] = 255
    assert counts(search_thresholds(value_map, target)) == by_masks(value_map, target)


def test_pixels_of_255_change_nothing() -> None:
    rng = np.random.default_rng(1)
    value_map, target = rng.random((30, 40)), (rng.random((30, 40)) < 0.3).astype(np.uint8)
    alone = counts(search_thresholds(value_map[:, :25], target[:, :25]))
    target[:, 25:] = 255
    assert counts(search_thresholds(value_map, target)) == alone
    value_map[:, 25:] = 1 - value_map[:, 25:]
    assert counts(search_thresholds(value_map, target)) == alone


def test_the_lowest_of_equal_thresholds() -> None:
    curve = search_thresholds(np.array([[0.305, 0.7]], np.float32), np.array([[0, 1]]))
    assert curve.best_iou == 1.0
    assert curve.threshold == 0.31  # up to 0.7 all are as good


@pytest.mark.parametrize(("value", "reached"), [(0.0, 1), (0.29, 30), (0.5, 51), (0.995, 100), (1.0, 101)])
def test_constant_maps(value: float, reached: int) -> None:
    curve = search_thresholds(np.full((3, 4), value), np.array([[1, 0, 0, 255]] * 3, np.uint8))
    assert curve.intersections.tolist() == [3] * reached + [0] * (101 - reached)
    assert curve.unions.tolist() == [9] * reached + [3] * (101 - reached)
    assert (curve.threshold, curve.best_iou) == (0.0, 1 / 3)


def test_an_empty_target_is_met_by_an_empty_mask() -> None:
    curve = search_thresholds(np.array([[0.2, 0.6]]), np.zeros((1, 2), np.uint8))
    assert (curve.threshold, curve.best_iou) == (0.61, 1.0)
    assert not best_mask(np.array([[0.2, 0.6]]), np.zeros((1, 2), np.uint8)).any()
    never = search_thresholds(np.array([[0.2, 1.0]]), np.zeros((1, 2), np.uint8))
    assert (never.threshold, never.best_iou) == (0.0, 0.0)  # a map that reaches 1 has no empty mask


def test_nothing_counts() -> None:
    curve = search_thresholds(np.array([[0.2, 0.6]]), np.full((1, 2), 255, np.uint8))
    assert not curve.unions.any()
    assert (curve.threshold, curve.best_iou) == (0.0, 1.0)


def test_any_memory_layout_and_target_dtype() -> None:
    rng = np.random.default_rng(2)
    value_map, target = rng.random((20, 30), dtype=np.float32), rng.choice([0, 1, 255], (20, 30)).astype(np.uint8)
    value_map.setflags(write=False)
    target.setflags(write=False)
    expected = counts(search_thresholds(value_map, target))
    for change in (np.asfortranarray, lambda a: a.T, lambda a: a[::-1, ::-1], lambda a: np.repeat(a, 2, 1)[:, ::2]):
        assert counts(search_thresholds(change(value_map), change(target))) == expected
    assert counts(search_thresholds(value_map, target.astype(np.int64))) == expected
    assert counts(search_thresholds(value_map.astype(">f4"), target)) == expected
    truth = target == 1
    assert counts(search_thresholds(value_map, truth)) == counts(search_thresholds(value_map, truth.astype(np.uint8)))


def test_a_little_above_one_is_rounding() -> None:
    value_map = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0.5]], np.float32)
    assert counts(search_thresholds(value_map, np.array([[1, 0]]))) == by_masks(value_map, np.array([[1, 0]]))


@pytest.mark.parametrize(
    ("value_map", "target", "said"),
    [
        (np.array([[0.1, np.nan]]), np.array([[0, 1]]), "finite values, got 1 others"),
        (np.array([[0.1, np.nan]]), np.array([[0, 255]]), "finite"),
        (np.array([[0.1, np.inf]]), np.array([[0, 1]]), "finite"),
        (np.array([[0.1, 1.01]]), np.array([[0, 1]]), "from 0 to 1, got 0.1 to 1.01"),
        (np.array([[-0.1, 1.0]]), np.array([[0, 1]]), "got -0.1 to 1"),
        (np.array([[0, 1]]), np.array([[0, 1]]), "float16, float32 or float64, got int64"),
        (np.array([0.1, 0.2]), np.array([0, 1]), r"two axes \(H, W\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "a pixel"),
        (np.array([[0.1, 0.2]]), np.array([[0], [1]]), r"shape \(1, 2\), got \(2, 1\)"),
        (np.array([[0.1, 0.2]]), np.array([[0, 254]]), "0, 1 and 255 only, got 254"),
        (np.array([[0.1, 0.2]]), np.array([[0, 0.5]]), "got 0.5"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_was_expected(
    value_map: np.ndarray, target: np.ndarray, said: str
) -> None:
    with pytest.raises(ReadsegError, match=said):
        search_thresholds(value_map, target)


def test_scores_over_images() -> None:
    rng = np.random.default_rng(3)
    maps = [rng.random((12, 17)) for _ in range(6)]
    targets = [(rng.random((12, 17)) < share).astype(np.uint8) for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)]
    inter, union = [], []
    for value_map, target in zip(maps, targets, strict=True):
        pairs = list(zip(*by_pixels(value_map, target), strict=True))
        best = max(range(101), key=lambda k: (pairs[k][0] / pairs[k][1] if pairs[k][1] else 1.0, -k))
        inter.append(pairs[best][0])
        union.append(pairs[best][1])
    scores = best_scores([search_thresholds(m, t) for m, t in zip(maps, targets, strict=True)])
    assert scores.giou.value == pytest.approx(stats.mask_ious(inter, union).mean(), abs=1e-12)
    assert scores.ciou.value == sum(inter) / sum(union)
    assert scores.giou.count == scores.ciou.count == 6
    assert scores.giou.low < scores.giou.value < scores.giou.high


def test_intervals_draw_whole_groups() -> None:
    curves = [search_thresholds(np.array([[0.2, 0.8]]), np.array([[t, 1 - t]])) for t in (0, 1)]
    together = best_scores(curves, groups=["a", "a"])
    assert together.giou.low == together.giou.high == together.giou.value == pytest.approx(0.75, abs=1e-5)
    apart = best_scores(curves, groups=["a", "b"])
    assert apart.giou.low < apart.giou.high
    assert math.isnan(best_scores([]).giou.value)
