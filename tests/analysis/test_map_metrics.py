"""Numbers of maps against loops over pixels, pairs and thresholds, and by hand; and targets as people draw them."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from readseg.analysis.map_metrics import (
    ThresholdCurve,
    consistency,
    joined_target,
    localisation,
    read_ground_truth,
    search_thresholds,
    spearman,
)
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


def counts_of(curve: ThresholdCurve) -> tuple[list[int], list[int]]:
    return curve.intersections.tolist(), curve.unions.tolist()


def ious_of(value_map: np.ndarray, target: np.ndarray) -> list[float]:
    return [i / u if u else 1.0 for i, u in zip(*by_pixels(value_map, target), strict=True)]


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
few = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def maps_and_target(draw: st.DrawFn) -> Drawn:
    """Two maps of many ties, with values on thresholds and right beside them, and a target."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = shape[0] * shape[1]

    def array(values: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)

    def value_map() -> np.ndarray:
        value = st.one_of(st.integers(0, 8).map(lambda k: k / 8), st.sampled_from(HUNDREDTHS), st.floats(0, 1))
        on, step = array(value).astype(dtype), array(st.sampled_from([-1, 0, 0, 1]))
        return np.where(step < 0, np.nextafter(on, dtype(0)), np.where(step > 0, np.nextafter(on, dtype(1)), on))

    return value_map(), value_map(), array(st.sampled_from([0, 1, 255])).astype(np.uint8)


@few
@given(maps_and_target())
def test_equals_a_loop_over_pixels(drawn: Drawn) -> None:
    value_map, _, target = drawn
    curve, ious = search_thresholds(value_map, target), ious_of(value_map, target)
    assert counts_of(curve) == by_pixels(value_map, target)
    assert curve.ious.tolist() == ious
    assert curve.best == ious.index(max(ious))
    assert curve.threshold == HUNDREDTHS[curve.best]
    assert curve.best_iou == max(ious)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_threshold_and_its_neighbours(dtype: Any) -> None:
    on = np.array(HUNDREDTHS, dtype=dtype)
    values = np.stack([np.nextafter(on, dtype(0)), on, np.nextafter(on, dtype(1))])
    for k in range(101):
        target = np.zeros(values.shape, np.uint8)
        target[1, k] = 1
        curve = search_thresholds(values, target)
        assert counts_of(curve) == by_masks(values, target)
        assert curve.intersections.tolist() == [1] * (k + 1) + [0] * (100 - k)  # it reaches its own threshold


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "hundredths", "bytes"])
def test_equals_a_mask_for_each_threshold_on_an_image(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:240, :320]
    value_map = {
        "noise": rng.random((240, 320)),
        "smooth": np.exp(-((x - 150) ** 2 + (y - 100) ** 2) / 5e3),
        "hundredths": rng.integers(0, 101, (240, 320)) / 100,
        "bytes": rng.integers(0, 256, (240, 320)) / 255,
    }[kind].astype(dtype)
    target = ((x - 160) ** 2 + (y - 105) ** 2 < 2250).astype(np.uint8)
    target[rng.random((240, 320)) < 0.1] = 255
    assert counts_of(search_thresholds(value_map, target)) == by_masks(value_map, target)


def test_the_lowest_of_equal_thresholds() -> None:
    curve = search_thresholds(np.array([[0.305, 0.7]], np.float32), np.array([[0, 1]]))
    assert (curve.threshold, curve.best_iou) == (0.31, 1.0), "up to 0.7 all are as good"
    curve = search_thresholds(np.array([[0.2, 0.6]]), np.full((1, 2), 255, np.uint8))
    assert not curve.unions.any() and (curve.threshold, curve.best_iou) == (0.0, 1.0), "nothing counts"


def test_any_memory_layout_and_target_dtype() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 20, 30), dtype=np.float32)
    target = rng.choice([0, 1, 255], (20, 30)).astype(np.uint8)
    first.setflags(write=False)
    target.setflags(write=False)
    expected = counts_of(search_thresholds(first, target))
    for change in (np.asfortranarray, lambda a: a.T, lambda a: a[::-1, ::-1], lambda a: np.repeat(a, 2, 1)[:, ::2]):
        other, its_target = change(first), change(target)
        assert counts_of(search_thresholds(other, its_target)) == expected
        assert localisation(other, its_target) == localisation(first, target)
        assert consistency(other, change(second), its_target) == consistency(first, second, target)
    assert counts_of(search_thresholds(first, target.astype(np.int64))) == expected
    assert counts_of(search_thresholds(first.astype(">f4"), target)) == expected
    truth = target == 1
    assert counts_of(search_thresholds(first, truth)) == counts_of(search_thresholds(first, truth.astype(np.uint8)))


def test_a_little_above_one_is_rounding() -> None:
    value_map = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0.5]], np.float32)
    assert counts_of(search_thresholds(value_map, np.array([[1, 0]]))) == by_masks(value_map, np.array([[1, 0]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.01, -0.1])
def test_a_map_of_other_values_is_refused(value: float) -> None:
    with pytest.raises(AssertionError, match=r"values in \[0, 1\]"):
        search_thresholds(np.array([[0.1, value]]), np.array([[0, 255]]))


# -- a map and the truth, two maps -------------------------------------------------------------------------------------


def pixels(value_map: np.ndarray, target: np.ndarray) -> tuple[list[Fraction], list[Fraction]]:
    """Values on the target and off it, as exact numbers."""
    pairs = [(Fraction(float(v)), int(t)) for v, t in zip(value_map.flat, target.flat, strict=True)]
    return [v for v, t in pairs if t == 1], [v for v, t in pairs if t == 0]


def same(found: float, expected: Fraction | float) -> bool:
    expected = float(expected)
    return math.isnan(found) if math.isnan(expected) else math.isclose(found, expected, abs_tol=1e-12)


@few
@given(maps_and_target())
def test_localisation_equals_loops(drawn: Drawn) -> None:
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
        assert found.auc == float(won / (len(on) * len(off)))  # to the last bit
        swapped = np.where(target == 255, 255, 1 - target)
        assert same(localisation(value_map, swapped).auc, 1 - found.auc)


def ranks(values: list[Fraction]) -> list[Fraction]:
    """1 + the number of smaller values + half the number of other equal ones."""
    return [1 + sum(b < a for b in values) + Fraction(values.count(a) - 1, 2) for a in values]


@few
@given(maps_and_target())
def test_spearman_equals_loops(drawn: Drawn) -> None:
    first, second, target = drawn
    counted = target != 255
    r, s = (ranks([Fraction(float(v)) for v in m[counted]]) for m in (first, second))
    mean = Fraction(len(r) + 1, 2)
    joint = sum(((a - mean) * (b - mean) for a, b in zip(r, s, strict=True)), Fraction(0))
    spread = sum(((a - mean) ** 2 for a in r), Fraction(0)) * sum(((b - mean) ** 2 for b in s), Fraction(0))
    assert same(spearman(first, second, counted), float(joint) / math.sqrt(spread) if spread else math.nan)


@few
@given(maps_and_target())
def test_consistency_equals_loops(drawn: Drawn) -> None:
    first, second, target = drawn
    masks = []
    for value_map in (first, second):
        ious = ious_of(value_map, target)
        masks.append(value_map >= value_map.dtype.type(ious.index(max(ious)) / 100))
    chosen = [{i for i in np.flatnonzero(m) if target.flat[i] != 255} for m in masks]
    both, either = chosen[0] & chosen[1], chosen[0] | chosen[1]
    found = consistency(first, second, target)
    assert found.iou == (len(both) / len(either) if either else 1.0)
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


def test_numbers_of_any_size() -> None:
    target = np.array([[1, 0, 0]])
    assert localisation(np.array([[1e308, 1e308, 1e308]]), target).mass_inside == pytest.approx(1 / 3, abs=1e-15)
    assert localisation(np.array([[5e-324, 0.0, 5e-324]]), target).mass_inside == 0.5
    assert localisation(np.array([[60000, 60000, 0]], np.float16), target).mass_inside == 0.5


def test_large_maps_of_many_pairs() -> None:
    """More pairs than 32 bits can count: a map that tells the two halves apart but for a tenth."""
    value_map = np.tile(np.arange(1000) / 1000, (400, 1))
    target = np.zeros((400, 1000), np.uint8)
    target[:, 500:] = 1
    target[:, 450:500] = 1
    target[:, 500:550] = 0
    # 50 columns on the target lie below 50 columns off it; all other pairs are won.
    assert localisation(value_map, target).auc == 1 - 50 * 50 / (500 * 500)


# -- targets that a user draws -----------------------------------------------------------------------------------------

HW = (4, 6)


def write(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def grey(*values: int) -> np.ndarray:
    """An image with these values in its first row, 0 elsewhere."""
    image = np.zeros(HW, np.uint8)
    image[0, : len(values)] = values
    return image


@pytest.mark.parametrize(
    ("values", "target", "numbers"),
    [
        ((255, 0, 255), (1, 0, 1), (255, 2)),
        ((255, 1, 1, 255), (255, 1, 1, 255), (1, 2)),
        ((), (), (255, 0)),
    ],
    ids=["255 is the object where there is no 1", "255 is not counted beside a 1", "only 0 expects nothing"],
)
def test_values_of_a_file(
    tmp_path: Path, values: tuple[int, ...], target: tuple[int, ...], numbers: tuple[int, int]
) -> None:
    truth = read_ground_truth(write(tmp_path / "t.png", grey(*values)), HW)
    np.testing.assert_array_equal(truth.target, grey(*target))
    assert (truth.object_value, truth.wanted) == numbers
    assert truth.source == str(tmp_path / "t.png")


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "LA"])
def test_kinds_of_files_that_hold_the_same(tmp_path: Path, mode: str) -> None:
    truth = read_ground_truth(write(tmp_path / "t.png", grey(255, 0, 255), mode), HW)
    np.testing.assert_array_equal(truth.target, grey(1, 0, 1))


def test_values_of_a_palette_are_its_indices_and_sixteen_bits_are_read_as_they_are(tmp_path: Path) -> None:
    image = Image.fromarray(grey(1, 255), "P")
    image.putpalette([k % 256 for k in range(100, 868)])
    image.save(tmp_path / "p.png")
    for path in (tmp_path / "p.png", write(tmp_path / "t.png", grey(1, 255).astype(np.uint16))):
        np.testing.assert_array_equal(read_ground_truth(path, HW).target, grey(1, 255))
    with pytest.raises(ReadsegError, match="holds the values 257, 65535:"):
        read_ground_truth(write(tmp_path / "t.png", grey(1, 255).astype(np.uint16) * 257), HW)


def test_turned_upright_like_the_image(tmp_path: Path) -> None:
    image = Image.fromarray(grey(255, 255).T.copy())
    exif = Image.Exif()
    exif[0x0112] = 5  # transposed
    image.save(tmp_path / "t.png", exif=exif)
    np.testing.assert_array_equal(read_ground_truth(tmp_path / "t.png", HW).target, grey(1, 1))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((6, 4), np.uint8), r"t\.tiff: the truth has 4 x 6 pixels \(width x height\), the image 6 x 4"),
        (grey(128, 255, 2), "holds the values 2, 128: expected 0 and 255"),
        (np.arange(2, 26, dtype=np.uint8).reshape(HW) % 25, "holds the values 2, 3, 4, 5, 6 and 18 more"),
        (grey(1).astype(np.float32) / 2, r"holds the values 0\.5"),
        (np.stack([grey(255), grey(), grey()], axis=2), "has colours"),
        (np.zeros((*HW, 4), np.uint8), "is transparent"),
    ],
)
def test_wrong_sizes_values_colours_and_transparency_are_told(tmp_path: Path, values: np.ndarray, said: str) -> None:
    with pytest.raises(ReadsegError, match=said):
        read_ground_truth(write(tmp_path / "t.tiff", values), HW)


def test_wrong_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="no such image file"):
        read_ground_truth(tmp_path / "none.png", HW)
    (tmp_path / "t.png").write_text("no image")
    with pytest.raises(ReadsegError, match="is not an image"):
        read_ground_truth(tmp_path / "t.png", HW)
    noise = np.random.default_rng(0).integers(0, 2, (200, 200)).astype(np.uint8) * 255
    content = write(tmp_path / "u.png", noise).read_bytes()
    (tmp_path / "u.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadsegError, match=r"u\.png is damaged or truncated"):
        read_ground_truth(tmp_path / "u.png", HW)


def test_joined_is_the_union_and_what_any_leaves_out(tmp_path: Path) -> None:
    truths = [
        read_ground_truth(write(tmp_path / f"{k}.png", grey(*values)), HW)
        for k, values in enumerate(((1, 0, 255), (0, 0, 1, 1)))
    ]
    np.testing.assert_array_equal(joined_target(truths), grey(1, 0, 255, 1))
