"""Charts: curves and bars with their intervals, as PIL images 1200 pixels wide.

The same numbers give the same bytes, whatever the user's own settings are. Colours are those of Okabe and Ito; curves
differ in their line and their mark as well, bars carry their names, so that they can be told apart without colour.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from readseg.core.stats import Estimate
from readseg.viz.overlays import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Curve k has the k-th colour, line and mark, each by turns."""

_WIDTH, _HEIGHT, _DPI = 12.0, 7.0, 100
_SIZE, _SMALL = 15, 12  # of letters, in points
# Lighter than the curves, so that whiskers show on them.
_BARS = ("#6AACD2", "#E89A60", "#66C6AB", "#E0AFCA", "#F0C566", "#B3B3B3")
_INK, _GREY, _GRID = "#1E1E1E", "#555555", "#DDDDDD"
_MOST_MARKS = 15
_LONGEST_NAME = 60
# The library's own settings, with ours, whatever a user's matplotlibrc says; a backend is none of a picture's business.
_SETTINGS: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")},
    "font.family": "DejaVu Sans",
    "font.size": _SIZE,
    "text.parse_math": False,  # names hold "$" and "\\" as they are
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
}


@dataclass(frozen=True)
class Curve:
    """A curve of scores, with a band where they are estimates; with `mark` single points that no line joins.

    A score that is not finite leaves a gap. An empty name leaves the curve out of the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | Estimate]
    mark: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar with its interval; neighbours of one `group` stand together under its name, "" for none."""

    name: str
    score: Estimate
    group: str = ""


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
    share: bool = False,
    diagonal: bool = False,
) -> Image.Image:
    """Curves with their intervals as bands, single points with theirs as whiskers, a legend and a note beneath.

    The y axis of a `share` goes from 0 to 1; with `diagonal`, in an ROC, both do, and the line y = x is guessing.
    """
    longest = max((len(one_line(curve.name, _LONGEST_NAME)) for curve in curves), default=0)
    columns = 1 if diagonal else max(1, min(4, int(_WIDTH * _DPI / (13 * longest + 120))))
    rows = 1 if diagonal else math.ceil(sum(bool(curve.name) for curve in curves) / columns)
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(_HEIGHT + 0.3 * max(0, rows - 1), note, title, x_label, y_label)
        if diagonal:
            axes.set_aspect("equal", anchor="W")
            axes.set_xlim(-0.02, 1.02)
            axes.axline((0, 0), slope=1, color=_GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        handles, names = [], []
        for index, curve in enumerate(curves):
            handle = _draw_curve(axes, curve, index)
            if curve.name:
                handles.append(handle)
                names.append(one_line(curve.name, _LONGEST_NAME) + ("" if _has_values(curve) else " (no values)"))
        if not any(map(_has_values, curves)):
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=_GREY)
        axes.grid(color=_GRID, linewidth=0.8)
        if share or diagonal:
            axes.set_ylim(-0.02, 1.02)  # marks on the edge are seen whole
        if handles:
            place: Any = axes.get_figure()
            legend = place.legend(
                handles, [f"curve {k}" for k in range(len(names))], ncols=columns, frameon=False, handlelength=3.5,
                loc="outside right center" if diagonal else "outside lower center",
            )  # fmt: skip
            for text, name in zip(legend.get_texts(), names, strict=True):
                text.set_text(name)  # now, as the library would leave out a label that begins with "_"
        return _picture(figure)


def bar_chart(bars: Sequence[Bar], *, title: str, x_label: str, note: str = "") -> Image.Image:
    """Horizontal bars from 0, at most 1 long, whiskers for their intervals, and the numbers at the right."""
    # One row each, a group's name first.
    rows: list[tuple[str, Bar | None, str]] = []
    for index, (group, members) in enumerate(groupby(bars, key=lambda bar: bar.group)):
        colour = _BARS[index % len(_BARS)]
        rows += [(group, None, colour)] if group else []
        rows += [(bar.name, bar, colour) for bar in members]
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(2.2 + 0.5 * max(len(rows), 1), note, title, x_label)
        for row, (_, bar, colour) in enumerate(rows):
            if bar is None:
                continue
            text = "no value"
            value, low, high = bar.score.value, bar.score.low, bar.score.high
            if math.isfinite(value):
                axes.barh(row, value, height=0.62, color=colour)
                axes.hlines(row, low, high, color=_INK, linewidth=2)
                axes.vlines([low, high], row - 0.14, row + 0.14, color=_INK, linewidth=2)
                text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            # Beside the axes, where nothing hides it.
            axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=_SMALL)
        if not rows:
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [textwrap.fill(one_line(name, _LONGEST_NAME), 32) for name, _, _ in rows])
        for label, (_, bar, _) in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if bar is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        return _picture(figure)


def _draw_curve(axes: Axes, curve: Curve, index: int) -> Any:
    """Draws it; what stands for it in the legend."""
    x, y = _finite(curve.x), _finite(curve.y)
    colour, mark = COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)]
    line = "none" if curve.mark else LINES[index % len(LINES)]
    (handle,) = axes.plot(
        x, y, color=colour, linestyle=line, linewidth=2.2, marker=mark, markersize=15 if curve.mark else 7,
        markeredgecolor="black" if curve.mark else "white", markeredgewidth=2 if curve.mark else 0.8,
        zorder=4 if curve.mark else 3,  # a point on a curve of its own colour is seen
        markevery=1 if curve.mark else max(1, math.ceil(len(x) / _MOST_MARKS)),
    )  # fmt: skip
    estimates = [score for score in curve.y if isinstance(score, Estimate)]
    if estimates:
        low, high = (_finite([getattr(score, end) for score in estimates]) for end in ("low", "high"))
        if curve.mark:
            axes.vlines(x, low, high, color=colour, linewidth=2, zorder=3.5)
        else:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
    return handle


def _figure(height: float, note: str, title: str, x_label: str, y_label: str = "") -> tuple[Figure, Axes]:
    """An empty figure with its words, and room for its note."""
    lines = textwrap.wrap(one_line(note, 1000), 135)
    room = 0.24 * len(lines) + 0.1 if lines else 0.0
    figure = Figure(figsize=(_WIDTH, height + room), dpi=_DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.1, h_pad=0.1)
    place: Any = figure
    if lines:
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, room])
        place, foot = parts
        foot.text(0.01, 0.9, "\n".join(lines), fontsize=_SMALL, color=_GREY, va="top")
    axes = place.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    heading = textwrap.fill(one_line(title, 200), 80)
    axes.set_title(heading, loc="left", fontsize=_SIZE + 2, fontweight="bold", pad=14)
    axes.set_xlabel(one_line(x_label, 100))
    axes.set_ylabel(one_line(y_label, 60))
    return figure, axes


def _has_values(curve: Curve) -> bool:
    return bool(np.isfinite(_finite(curve.x) + _finite(curve.y)).any())


def _finite(scores: Sequence[float | Estimate]) -> np.ndarray:
    """(K,) float64 with NaN for all that is not finite: infinite values would stretch the axes."""
    numbers = np.array([score.value if isinstance(score, Estimate) else score for score in scores], np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes: no reason for a warning to who reads a table.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
