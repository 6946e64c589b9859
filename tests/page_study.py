"""A small study for the page's tests, with all that its numbers are made of at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from readseg.analysis.map_metrics import search_thresholds
from readseg.analysis.studies.map_records import Grid, MapRecord, MapScores, PointPrompt
from readseg.core.masks import Counts, encode_rle, intersection_and_union
from readseg.core.stats import mask_ious
from records import measured

HW = (12, 20)
MAPS = ("lmm", "sam")
KINDS, SECTIONS = ("name", "reasoning", "size"), ("val", "test")


@dataclass(frozen=True)
class Known:
    """A record with the maps (H, W), the target (H, W) and the picture behind it."""

    record: MapRecord
    maps: dict[str, np.ndarray]
    target: np.ndarray
    picture: Image.Image | None

    def counts(self, name: str, t: float) -> tuple[int, int]:
        """Intersection and union of the mask at a threshold, pixel by pixel."""
        return intersection_and_union(self.maps[name] >= t, self.target)

    def all_counts(self, name: str) -> list[tuple[int, int]]:
        """The same at t = 0, 0.01, ..., 1."""
        masks = self.maps[name] >= np.linspace(0, 1, 101)[:, None, None].round(2)
        on, off = self.target == 1, self.target == 0
        inter, more = ((masks & part).sum(axis=(1, 2)).tolist() for part in (on, off))
        return [(i, int(on.sum()) + m) for i, m in zip(inter, more, strict=True)]


def curve_of(value_map: np.ndarray, target: np.ndarray) -> MapScores:
    """A map's counts at all thresholds; other numbers by heart."""
    curve = search_thresholds(value_map, target)
    counts = Counts(int(curve.intersections[curve.best]), int(curve.unions[curve.best]))
    return MapScores(
        counts, curve.threshold, 1.0, 0.5, 0.75, tuple(curve.intersections.tolist()), tuple(curve.unions.tolist())
    )


def grid_of(levels: np.ndarray, box: tuple[float, float, float, float]) -> Grid:
    """A grid of bytes (h, w)."""
    return Grid((levels.shape[0], levels.shape[1]), box, -1.0, 1.0, levels.astype(np.uint8).tobytes())


def study(count: int, seed: int = 0, pictures: int = 30) -> list[Known]:
    """Units of all kinds: numbers that are missing, ties, an empty target, flags; the first ones have a picture."""
    rng = np.random.default_rng(seed)
    units = []
    for k in range(count):
        target = (rng.random(HW) < 0.3).astype(np.uint8)
        target[rng.random(HW) < 0.1] = 255
        if k == 3:
            target[:] = 0
        levels = {name: rng.integers(0, 256, HW, dtype=np.uint8) for name in MAPS}
        if k == 3:  # above some threshold neither map nor target has a pixel
            levels = {name: grid // 2 for name, grid in levels.items()}
        maps = {name: np.maximum(grid / 255, 0.4 * (target == 1)).astype(np.float64) for name, grid in levels.items()}
        wanted = int((target == 1).sum())
        tied = Counts(min(wanted, int(rng.integers(0, 10))), wanted + 10)
        ignored = target == 255
        changes: dict[str, Any] = {
            "key": f"image-{k // 3}/{k % 3}",
            "question": f"{'Where is' if k % 2 else 'where is'} thing {rng.integers(40)}?",
            "answer": "" if k % 11 == 5 else f"It is the {('cat', 'dog', 'Owl')[k % 3]} [SEG].",
            "kind": KINDS[k % 3],
            "section": SECTIONS[k % 7 == 0],
            "size": HW,
            "wanted": wanted,
            "counted": int((~ignored).sum()),
            "maps": {name: curve_of(maps[name], target) for name in MAPS},
            "prompts": {"own": None if k % 9 == 4 else tied},
            "spearman": float(rng.random()) if k % 5 else math.nan,
            "misaligned": k % 4 == 1,
            "places": () if k % 10 == 1 else (0,),
            "target": encode_rle(target == 1),
            "ignored": encode_rle(ignored) if ignored.any() else None,
            "mask": encode_rle(rng.random(HW) < 0.2),
            "points": (PointPrompt(3.0, 4.0, 1), PointPrompt(9.0, 2.0, 0)),
            "grids": {name: (grid_of(levels[name], (0.0, 0.0, HW[1], HW[0])),) for name in MAPS},
        }
        noise = Image.fromarray(rng.integers(0, 256, (*HW, 3), dtype=np.uint8))
        units.append(Known(measured(**changes), maps, target, noise if k < pictures else None))
    return units


def pictures_of(units: list[Known]) -> dict[int, Image.Image]:
    """By the unit's number."""
    return {k: one.picture for k, one in enumerate(units) if one.picture is not None}


def scores(units: list[Known], name: str, t: float) -> tuple[str, str]:
    """gIoU and cIoU of the masks at a threshold, as the page writes them."""
    inter, union = zip(*(one.counts(name, t) for one in units), strict=True)
    return f"{mask_ious(inter, union).mean():.3f}", f"{sum(inter) / sum(union):.3f}"
