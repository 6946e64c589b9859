"""Pictures show what they are given: where masks, maps and points lie, also at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from readseg.viz import overlays


def grey(width: int = 120, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def square(height: int = 80, width: int = 120) -> np.ndarray:
    mask = np.zeros((1, height, width), bool)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


def test_overlay_tints_the_mask_and_nothing_else() -> None:
    picture = np.asarray(overlays.overlay(grey(), square()))
    assert picture.shape == (320, 480, 3)  # four times: small images are enlarged
    inside, outside = picture[30 * 4, 45 * 4], picture[70 * 4, 100 * 4]
    np.testing.assert_array_equal(outside, [128, 128, 128])
    np.testing.assert_allclose(inside, (np.array([128] * 3) + overlays.MASK_COLOURS[0]) / 2, atol=1)


def test_the_outline_stands_on_the_border() -> None:
    picture = np.asarray(overlays.overlay(grey(), square())).astype(int)
    np.testing.assert_array_equal(picture[30 * 4, 30 * 4], overlays.MASK_COLOURS[0])
    np.testing.assert_array_equal(picture[30 * 4, 30 * 4 - 2], [255, 255, 255])
    np.testing.assert_array_equal(picture[30 * 4, 30 * 4 - 5], [128, 128, 128])


def test_points_are_drawn_at_pixel_centres_in_their_colours() -> None:
    xy = np.array([[10.0, 20.0], [100.0, 70.0], [60.0, 5.0]])
    labels = np.array([1, 0, -1])
    picture = np.asarray(overlays.overlay(grey(), square()[:0], points=[(xy, labels)]))
    for (x, y), label in zip(xy, labels, strict=True):
        np.testing.assert_array_equal(picture[int((y + 0.5) * 4), int((x + 0.5) * 4)], overlays.POINT_COLOURS[label])
    assert picture.shape[0] > 320  # the legend


def test_several_masks_carry_numbers() -> None:
    masks = np.concatenate([square(), np.roll(square(), (30, 50), (1, 2))])
    picture = np.asarray(overlays.overlay(grey(), masks))
    plain = np.asarray(overlays.overlay(grey(), masks[:1]))
    assert (picture[120, 180] != plain[120, 180]).any() or (picture != plain)[80:160, 120:240].any()
    colours = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert set(overlays.MASK_COLOURS[:2]) <= colours


def test_heat_map_is_brightest_where_similarity_is_highest() -> None:
    similarity = np.zeros((80, 120), np.float32)
    similarity[40:60, 80:100] = 7.0
    picture = np.asarray(overlays.heat_map(grey(), similarity)).astype(int)
    assert picture[50 * 4, 90 * 4].sum() > picture[10 * 4, 10 * 4].sum() + 100


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf])
def test_flat_and_broken_maps_are_drawn_as_lowest(value: float) -> None:
    picture = np.asarray(overlays.heat_map(grey(), np.full((80, 120), value, np.float32)))[:320]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (1700, 90)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    width, height = size
    image, masks = grey(width, height), np.ones((2, height, width), bool)
    points = [(np.zeros((1, 2)), np.ones(1, int))]
    drawn = overlays.overlay(image, masks, points=points)
    heat = overlays.heat_map(image, np.zeros((height, width), np.float32), caption="a caption", points=points)
    for picture in (drawn, heat):
        assert 320 <= max(picture.size) <= 1800


@pytest.mark.parametrize(
    "text", ["word " * 3000, "x" * 5000, "naïve Größe, чай, 猫, 🐈", "line\nbreaks\tand\x00zero", "   "]
)
def test_captions_wrap_whatever_they_say(text: str) -> None:
    bare = overlays.overlay(grey(), square())
    picture = overlays.overlay(grey(), square(), caption=text)
    assert picture.width == bare.width
    assert bare.height <= picture.height < bare.height + 200
    if text.strip():
        assert (np.asarray(picture)[bare.height :] < 100).any()


def test_wrapped_lines_fit_and_keep_every_word() -> None:
    font = overlays._font(14)
    text = "the quick brown fox jumps over the lazy dog and a-word-that-is-longer-than-any-line-could-ever-be"
    lines = overlays._wrap(text, 150, font, 50)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_contact_sheet_layout() -> None:
    tiles = [Image.new("RGB", (30, 60), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    sheet = np.asarray(overlays.contact_sheet(tiles, columns=2, tile=100))
    assert sheet.shape == (200, 200, 3)
    assert sheet[50, 50].tolist() == [255, 0, 0]
    assert sheet[50, 150].tolist() == [0, 255, 0]
    assert sheet[150, 50].tolist() == [0, 0, 255]
    assert sheet[150, 150].tolist() == [255, 255, 255]
    assert overlays.contact_sheet(tiles, ["a", "b", "c"], columns=2, tile=100).height > 200


def test_mismatches_are_named() -> None:
    with pytest.raises(ValueError, match="image's size"):
        overlays.overlay(grey(), square(10, 10))
    for draw in (overlays.heat_map, lambda image, values: overlays.panel(image, side=100, value_map=values)):
        with pytest.raises(ValueError, match="must be"):
            draw(grey(), np.zeros((10, 10)))


def test_a_panel_shows_map_mask_and_points_at_their_places() -> None:
    similarity = np.zeros((80, 120), np.float32)
    similarity[60:, :30] = 1.0
    ignored = np.zeros((80, 120), bool)
    ignored[:10, 100:] = True
    points = [(np.array([[100.0, 70.0]]), np.array([1]))]
    panel = overlays.panel(grey(), side=240, value_map=similarity, mask=square()[0], ignored=ignored, points=points)
    assert panel.size == (240, 160)
    pixels = np.asarray(panel).astype(int)
    low, high = pixels[2 * 55, 2 * 60], pixels[2 * 70, 2 * 10]
    assert high.sum() > low.sum() + 100
    np.testing.assert_allclose(pixels[2 * 30, 2 * 45], (low + overlays.MASK_COLOURS[0]) / 2, atol=2)
    np.testing.assert_allclose(pixels[2 * 5, 2 * 110], (150, 150, 150), atol=2)
    np.testing.assert_allclose(pixels[2 * 70 + 1, 2 * 100 + 1], overlays.POINT_COLOURS[1], atol=2)


def test_points_of_a_panel_keep_their_size() -> None:
    for scale in (1, 10):
        points = [(np.array([[60.0, 40.0]]) * scale, np.array([0]))]
        panel = np.asarray(overlays.panel(grey(120 * scale, 80 * scale), side=240, points=points)).astype(int)
        marked = (np.abs(panel - 128).max(axis=2) > 20).sum()
        assert 40 < marked < 200
