"""Charts: words are there and do not cover each other, intervals stand at their places, colour tells nothing alone."""

from __future__ import annotations

import itertools
import math

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from readseg.core.stats import Estimate
from readseg.viz import charts
from readseg.viz.charts import Bar, Curve, bar_chart, line_chart

WORDS = {"title": "How far a map reaches", "x_label": "layer", "y_label": "IoU"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The library's figures behind the pictures, for what pixels do not tell: words and places."""
    figures: list[Figure] = []
    draw = FigureCanvasAgg.draw

    def recorded(canvas: FigureCanvasAgg) -> None:
        figures.append(canvas.figure)
        draw(canvas)

    monkeypatch.setattr(FigureCanvasAgg, "draw", recorded)
    return figures


def texts_of(figure: Figure) -> list[Text]:
    """All that are drawn; the library keeps labels of places beyond an axis' ends without drawing them."""
    hidden: set[int] = set()
    for axis in (one for axes in figure.findobj(Axes) for one in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {id(tick.label1) for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


def words_of(figure: Figure) -> list[str]:
    return [" ".join(text.get_text().split()) for text in texts_of(figure)]


def colour_at(picture: Image.Image, figure: Figure, x: float, y: float) -> np.ndarray:
    """The colour of the picture at a place of the axes' own coordinates."""
    across, up = figure.findobj(Axes)[0].transData.transform((x, y))
    return np.array(picture.getpixel((int(across), picture.height - 1 - int(up))), float)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def assert_readable(figure: Figure, size: tuple[int, int]) -> None:
    """All words lie within the picture, are large enough, and none covers another."""
    texts = texts_of(figure)
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= size[0] and box.y1 <= size[1], text.get_text()
        assert text.get_fontsize() >= 12, text.get_text()  # 17 pixels of 1200
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, f"{one.get_text()!r} covers {other.get_text()!r}"


def test_a_line_chart_says_what_it_shows(drawn: list[Figure]) -> None:
    note = "300 images; each map at its own best threshold, which looks at the truth. " * 4
    curves = [Curve(f"{name}, 612 questions", [0, 1, 2], [0.1, 0.5, 0.4]) for name in ("map", "SAM", "before", "words")]
    picture = line_chart([*curves, Curve("the points", [1], [0.3], mark=True)], **WORDS, note=note, diagonal=True)
    words = words_of(drawn[0])
    assert {"How far a map reaches", "layer", "IoU", *(curve.name for curve in curves), "the points"} <= set(words)
    assert " ".join(note.split()) in words
    assert picture.mode == "RGB" and picture.width == 1200 and 700 <= picture.height <= 900
    assert_readable(drawn[0], picture.size)


def test_a_bar_chart_says_what_it_shows(drawn: list[Figure]) -> None:
    long = "only the points that the similarity gives, without the embedding"
    bars = [
        Bar("both", Estimate(0.61, 0.55, 0.66, 9), "one model"),
        Bar(long, Estimate(0.5, 0.45, 0.56, 9), "one model"),
        Bar("none", Estimate(math.nan, math.nan, math.nan, 0), "another model"),
        Bar("given", Estimate(0.7, 0.6, 0.8, 9)),
    ]
    picture = bar_chart(bars, title="Prompts", x_label="gIoU", note="20 images")
    words = words_of(drawn[0])
    assert {"one model", "both", "another model", "given"} <= set(words)
    scores = {"0.610 [0.550, 0.660]", "0.500 [0.450, 0.560]", "no value", "0.700 [0.600, 0.800]"}
    assert {*scores, "Prompts", "gIoU", "20 images"} <= set(words)
    assert any(word.startswith("only the points that the") and word.endswith("…") for word in words)
    assert_readable(drawn[0], picture.size)


def test_names_of_anything_are_shown_as_they_are(drawn: list[Figure]) -> None:
    names = ["_hidden", "$x_1", r"\alpha $\frac$", "a\x1b[31mb\nc", "猫 \ud800", "%s {0}"]
    line_chart([Curve(name, [0, 1], [0, 1]) for name in names], title="$", x_label="$$", y_label="_")
    bar_chart([Bar(name, Estimate(0.5, 0.4, 0.6, 1), name) for name in names], title="$", x_label="$$")
    for figure in drawn:
        assert {"_hidden", "$x_1", r"\alpha $\frac$", "a [31mb c", "猫", "%s {0}", "$", "$$"} <= set(words_of(figure))


def test_bands_and_whiskers_lie_where_the_interval_is(drawn: list[Figure]) -> None:
    curve = Curve("", [0, 1], [Estimate(0.5, 0.32, 0.68, 1)] * 2)
    points = Curve("", [0.26], [Estimate(0.85, 0.75, 0.95, 1)], mark=True)
    picture = line_chart([curve, points], **WORDS, share=True)
    white = np.full(3, 255.0)
    band = 0.15 * rgb(charts.COLOURS[0]) + 0.85 * white
    for y, expected in ((0.35, band), (0.65, band), (0.3, white), (0.7, white)):
        np.testing.assert_allclose(colour_at(picture, drawn[0], 0.55, y), expected, atol=2)
    for y, there in ((0.77, True), (0.93, True), (0.73, False), (0.97, False)):
        found = colour_at(picture, drawn[0], 0.26, y)
        assert (np.abs(found - rgb(charts.COLOURS[1])).max() < 60) == there
    assert np.abs(colour_at(picture, drawn[0], 0.55, 0.5) - rgb(charts.COLOURS[0])).max() < 60


def test_a_diagonal_has_one_scale_on_both_axes(drawn: list[Figure]) -> None:
    names = ["mean probability within mask (0.755)", "the word"]
    curves = [Curve(name, [0, 0.1, 1], [0, 0.8, 1]) for name in names]
    picture = line_chart(curves, **WORDS, note="all of it " * 30, diagonal=True)
    axes = drawn[0].findobj(Axes)[0]
    (left, low), (right, high) = axes.transData.transform([(0, 0), (1, 1)])
    assert right - left == pytest.approx(high - low, rel=1e-6) and right - left > 400
    assert_readable(drawn[0], picture.size)


def test_a_single_point_is_seen_on_a_curve_of_its_own_colour(drawn: list[Figure]) -> None:
    curve, others = Curve("", [0, 1], [0.5, 0.5]), [Curve("", [], [])] * (len(charts.COLOURS) - 1)
    picture = line_chart([curve, *others, Curve("", [0.5], [0.5], mark=True)], **WORDS, share=True)
    across, up = (int(value) for value in drawn[0].findobj(Axes)[0].transData.transform((0.5, 0.5)))
    near = np.asarray(picture)[picture.height - 21 - up : picture.height + 19 - up, across - 20 : across + 20]
    black = np.argwhere(near.max(axis=2) < 60)
    assert (np.ptp(black, axis=0) >= 16).all(), "an outline, larger than the marks of curves"
    assert np.abs(near[20, 20] - rgb(charts.COLOURS[0])).max() < 60


def test_a_bar_ends_at_its_value_and_its_whisker_at_its_interval(drawn: list[Figure]) -> None:
    picture = bar_chart([Bar("a", Estimate(0.5, 0.35, 0.65, 1))], title="t", x_label="x")
    white, ink = np.full(3, 255.0), np.full(3, 30.0)
    assert np.abs(colour_at(picture, drawn[0], 0.48, 0.22) - white).max() > 60
    np.testing.assert_allclose(colour_at(picture, drawn[0], 0.52, 0.22), white, atol=2)
    for x, there in ((0.37, True), (0.63, True), (0.33, False), (0.67, False)):
        assert (np.abs(colour_at(picture, drawn[0], x, 0.0) - ink).max() < 60) == there


def test_a_value_that_is_none_leaves_a_gap(drawn: list[Figure]) -> None:
    scores = [Estimate(value, 0.4, 0.6, 1) for value in (0.5, 0.5, math.inf, 0.5, 0.5)]
    picture = line_chart([Curve("a", range(5), scores)], **WORDS, share=True)
    line = rgb(charts.COLOURS[0])
    assert np.abs(colour_at(picture, drawn[0], 0.55, 0.5) - line).max() < 60
    assert np.abs(colour_at(picture, drawn[0], 1.55, 0.5) - line).max() > 60
    assert "a" in words_of(drawn[0])


def test_nothing_to_show_is_said(drawn: list[Figure]) -> None:
    line_chart([], **WORDS)
    line_chart([Curve("a", [], []), Curve("b", [1, 2], [math.nan] * 2)], **WORDS)
    bar_chart([], title="t", x_label="x")
    assert all("no values" in words_of(figure) for figure in drawn)
    assert {"a (no values)", "b (no values)"} <= set(words_of(drawn[1]))


def test_the_same_numbers_give_the_same_picture_whatever_the_users_settings() -> None:
    score = Estimate(0.5, 0.4, 0.6, 1)

    def both() -> list[bytes]:
        return [
            line_chart([Curve("a", [0, 1], [score, score])], **WORDS, note="n").tobytes(),
            bar_chart([Bar("a", score)], title="t", x_label="x").tobytes(),
        ]

    first = both()
    assert both() == first
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "figure.facecolor": "black", "savefig.dpi": 20}):
        assert both() == first
    assert dict(matplotlib.rcParams) == before


def test_many_curves_differ_without_their_colour(drawn: list[Figure]) -> None:
    looks = [(str(charts.LINES[k % len(charts.LINES)]), charts.MARKS[k % len(charts.MARKS)]) for k in range(20)]
    assert len(set(looks)) == 20
    line_chart([Curve(f"{k}", [0, 1, 2], [0.2, 0.8, k / 20]) for k in range(20)], **WORDS)
    lines = [line for line in drawn[0].findobj(Axes)[0].get_lines() if len(line.get_xdata()) == 3]
    assert len({(str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}) == len(lines) == 20


# Machado et al. 2009, severity 1, on linear RGB.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("matrix", [np.eye(3), np.array(PROTAN), np.array(DEUTAN)], ids=["all", "protan", "deutan"])
def test_colours_differ_for_the_colour_blind(matrix: np.ndarray) -> None:
    linear = (np.array([rgb(colour) for colour in charts.COLOURS]) / 255) ** 2.2
    seen = ((linear @ matrix.T).clip(0, 1) ** (1 / 2.2)).astype(np.float32)
    lab = cv2.cvtColor(seen[None], cv2.COLOR_RGB2LAB)[0]
    for one, other in itertools.combinations(lab, 2):
        assert np.linalg.norm(one - other) > 10  # 2.3 is just noticeable
