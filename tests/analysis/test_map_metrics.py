"""Agreement of maps, and of a map with the truth, against loops over pixels and pairs, and by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readseg.analysis.map_metrics import auc, consistency, localisation, mass_inside, pointing, spearman
from readseg.errors import ReadsegError

few = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def maps_and_target(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two maps with many ties, and a target."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = shape[0] * shape[1]
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))

    def array(values: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)

    value = st.one_of(st.integers(0, 8).map(lambda k: k / 8), st.floats(0, 1, width=16))
    return array(value).astype(dtype), array(value).astype(dtype), array(st.sampled_from([0, 1, 255]))


def pixels(value_map: np.ndarray, target: np.ndarray) -> tuple[list[Fraction], list[Fraction]]:
    """Values on the target and off it, as exact numbers."""
    pairs = [(Fraction(float(v)), int(t)) for v, t in zip(value_map.flat, target.flat, strict=True)]
    return [v for v, t in pairs if t == 1], [v for v, t in pairs if t == 0]


def same(found: float, expected: Fraction | float) -> bool:
    expected = float(expected)
    return math.isnan(found) if math.isnan(expected) else math.isclose(found, expected, abs_tol=1e-12)


@few
@given(maps_and_target())
def test_localisation_equals_loops(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    value_map, _, target = drawn
    on, off = pixels(value_map, target)
    every = on + off
    nothing = not on
    maxima = [v for v in every if v == max(every)]
    half = Fraction(1, 2)
    won = sum((Fraction(a > b) + half * (a == b) for a in on for b in off), Fraction(0))
    found = localisation(value_map, target)
    assert same(found.pointing, math.nan if nothing else Fraction(on.count(max(every)), len(maxima)))
    assert same(found.mass_inside, math.nan if nothing or not sum(every) else sum(on) / sum(every))
    assert same(found.auc, math.nan if nothing or not off else won / (len(on) * len(off)))
    assert same(found.area, math.nan if nothing else Fraction(len(on), len(every)))
    if on and off:
        assert auc(value_map, target) == float(won / (len(on) * len(off)))  # to the last bit
        swapped = np.where(target == 255, 255, 1 - target)
        assert same(auc(value_map, swapped), 1 - found.auc)


def ranks(values: list[Fraction]) -> list[Fraction]:
    """1 + the number of smaller values + half the number of other equal ones."""
    return [1 + sum(b < a for b in values) + Fraction(values.count(a) - 1, 2) for a in values]


@few
@given(maps_and_target())
def test_spearman_equals_loops(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    first, second, target = drawn
    counted = target != 255
    r, s = (ranks([Fraction(float(v)) for v in m[counted]]) for m in (first, second))
    mean = Fraction(len(r) + 1, 2)
    joint = sum(((a - mean) * (b - mean) for a, b in zip(r, s, strict=True)), Fraction(0))
    spread = sum(((a - mean) ** 2 for a in r), Fraction(0)) * sum(((b - mean) ** 2 for b in s), Fraction(0))
    assert same(spearman(first, second, counted), float(joint) / math.sqrt(spread) if spread else math.nan)


@few
@given(maps_and_target())
def test_consistency_equals_loops(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    first, second, target = drawn
    masks, thresholds, ious = [], [], []
    for value_map in (first, second):
        scored = []
        for k in range(101):
            mask = value_map >= value_map.dtype.type(k / 100)
            inter, union = (mask & (target == 1)).sum(), ((mask | (target == 1)) & (target != 255)).sum()
            scored.append(inter / union if union else 1.0)
        k = scored.index(max(scored))
        masks.append(value_map >= value_map.dtype.type(k / 100))
        thresholds.append(k / 100)
        ious.append(max(scored))
    chosen = [{i for i in np.flatnonzero(m) if target.flat[i] != 255} for m in masks]
    both, either = chosen[0] & chosen[1], chosen[0] | chosen[1]
    found = consistency(first, second, target)
    assert found.iou == (len(both) / len(either) if either else 1.0)
    assert found.thresholds == tuple(thresholds)
    assert found.best_ious == tuple(ious)
    assert same(found.spearman, spearman(first, second, target != 255))
    back = consistency(second, first, target)
    assert back.iou == found.iou
    assert same(back.spearman, found.spearman)


def test_spearman_of_known_rows() -> None:
    # The classic example of hours and marks: sum d^2 = 194 over 10 ranks, rho = 1 - 6 * 194 / 990.
    iq = np.array([[106, 100, 86, 101, 99, 103, 97, 113, 112, 110]], np.float64)
    hours = np.array([[7, 27, 2, 50, 28, 29, 20, 12, 6, 17]], np.float64)
    assert spearman(iq, hours) == pytest.approx(1 - 6 * 194 / 990, abs=1e-15)
    ties = np.array([[1.0, 2.0, 2.0, 3.0]])
    assert spearman(ties, np.array([[1.0, 3.0, 2.0, 4.0]])) == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-15)


def test_spearman_sees_order_alone() -> None:
    a = np.random.default_rng(0).normal(size=(30, 40))
    assert spearman(a, np.exp(a)) == 1.0
    assert spearman(a, -(a**3)) == -1.0
    assert abs(spearman(a, np.random.default_rng(1).normal(size=a.shape))) < 0.1
    assert math.isnan(spearman(a, np.full_like(a, 0.3)))
    assert math.isnan(spearman(a, a, np.zeros(a.shape, bool)))


def test_a_map_that_is_right_wrong_or_empty() -> None:
    target = np.zeros((6, 8), np.uint8)
    target[2:4, 3:6] = 1
    right = localisation(target.astype(np.float32), target)
    assert (right.pointing, right.mass_inside, right.auc, right.area) == (1.0, 1.0, 1.0, 6 / 48)
    wrong = localisation(1.0 - target, target)
    assert (wrong.pointing, wrong.mass_inside, wrong.auc) == (0.0, 0.0, 0.0)
    flat = localisation(np.full(target.shape, 0.4), target)
    assert flat.pointing == flat.area
    assert flat.mass_inside == pytest.approx(flat.area, abs=1e-15)
    assert flat.auc == 0.5
    dark = localisation(np.zeros(target.shape), target)
    assert (dark.pointing, dark.auc) == (flat.area, 0.5)
    assert math.isnan(dark.mass_inside)


def test_without_a_truth_there_is_no_number() -> None:
    value_map = np.array([[0.1, 0.7]])
    for target in (np.array([[0, 0]]), np.array([[0, 255]]), np.array([[255, 255]])):
        found = localisation(value_map, target)
        assert all(math.isnan(v) for v in (found.pointing, found.mass_inside, found.auc, found.area))
    everything = localisation(value_map, np.array([[1, 1]]))
    assert (everything.pointing, everything.mass_inside, everything.area) == (1.0, 1.0, 1.0)
    assert math.isnan(everything.auc)


def test_pixels_of_255_change_nothing() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 10, 12))
    target = (rng.random((10, 12)) < 0.3).astype(np.uint8)
    alone = localisation(first[:, :9], target[:, :9]), consistency(first[:, :9], second[:, :9], target[:, :9])
    target[:, 9:] = 255
    first[:, 9:] = 1.0  # the highest of all: it must not win the pointing game
    found = localisation(first, target)
    assert found.pointing == alone[0].pointing
    assert (found.auc, found.area) == (alone[0].auc, alone[0].area)
    assert found.mass_inside == pytest.approx(alone[0].mass_inside, abs=1e-15)
    both = consistency(first, second, target)
    assert (both.iou, both.thresholds, both.best_ious) == (alone[1].iou, alone[1].thresholds, alone[1].best_ious)
    assert both.spearman == pytest.approx(alone[1].spearman, abs=1e-15)


def test_equal_pixels_far_apart_share_the_pointing() -> None:
    assert pointing(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), np.array([[1, 1, 0], [0, 0, 0]])) == 1 / 3


def test_numbers_of_any_size() -> None:
    target = np.array([[1, 0, 0]])
    assert mass_inside(np.array([[1e308, 1e308, 1e308]]), target) == pytest.approx(1 / 3, abs=1e-15)
    assert mass_inside(np.array([[5e-324, 0.0, 5e-324]]), target) == 0.5
    assert mass_inside(np.array([[60000, 60000, 0]], np.float16), target) == 0.5
    assert pointing(np.array([[-3.0, -7.0, -9.0]]), target) == auc(np.array([[-3.0, -7.0, -9.0]]), target) == 1.0


def test_any_memory_layout() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.random((2, 9, 7), dtype=np.float32)
    target = rng.choice([0, 1, 255], (9, 7)).astype(np.uint8)
    for change in (np.asfortranarray, lambda a: np.repeat(a, 3, 0)[::3]):
        assert localisation(change(first), change(target)) == localisation(first, target)
        assert consistency(change(first), second, change(target)) == consistency(first, second, target)


def test_large_maps_of_many_pairs() -> None:
    """More pairs than 32 bits can count: a map that tells the two halves apart but for a tenth."""
    value_map = np.tile(np.arange(1000) / 1000, (400, 1))
    target = np.zeros((400, 1000), np.uint8)
    target[:, 500:] = 1
    target[:, 450:500] = 1
    target[:, 500:550] = 0
    # 50 columns on the target lie below 50 columns off it; all other pairs are won.
    assert auc(value_map, target) == 1 - 50 * 50 / (500 * 500)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pointing(np.array([[np.nan, 1.0]]), np.array([[0, 1]])), "finite"),
        (lambda: mass_inside(np.array([[-0.1, 1.0]]), np.array([[0, 1]])), "from 0 to inf, got -0.1"),
        (lambda: auc(np.array([[0.1, 1.0]]), np.array([[0, 2]])), "0, 1 and 255 only, got 2"),
        (lambda: spearman(np.zeros((2, 2)), np.zeros((2, 3))), r"one shape, got \(2, 2\) and \(2, 3\)"),
        (lambda: spearman(np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 2))), "booleans of shape .* got float64"),
        (lambda: spearman(np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 3), bool)), r"bool of shape \(2, 3\)"),
        (lambda: consistency(np.zeros((2, 2)), np.zeros((2, 3)), np.ones((2, 2))), "target: expected the map's shape"),
        (lambda: consistency(np.zeros((2, 2)), np.full((2, 2), 7.0), np.ones((2, 2))), "from 0 to 1"),
    ],
)
def test_wrong_input_is_an_error(call: object, said: str) -> None:
    with pytest.raises(ReadsegError, match=said):
        call()  # type: ignore[operator]
