"""A small study for the page's tests, with all that its numbers are made of at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from readseg.analysis.map_metrics import search_thresholds
from readseg.analysis.page_data import PageCase, PageMap, PageView
from readseg.analysis.studies.map_records import PointPrompt
from readseg.core.masks import intersection_and_union
from readseg.core.stats import mask_ious

HW = (12, 20)
MAPS = ("lmm", "sam")
KINDS, SECTIONS = ("name", "reasoning", "size"), ("val", "test")


@dataclass(frozen=True)
class Known:
    """A case with the maps (H, W) and the target (H, W) behind it."""

    case: PageCase
    maps: dict[str, np.ndarray]
    target: np.ndarray

    def counts(self, name: str, t: float) -> tuple[int, int]:
        """Intersection and union of the mask at a threshold, pixel by pixel."""
        return intersection_and_union(self.maps[name] >= t, self.target)

    def all_counts(self, name: str) -> list[tuple[int, int]]:
        """The same at t = 0, 0.01, ..., 1."""
        masks = self.maps[name] >= np.linspace(0, 1, 101)[:, None, None].round(2)
        on, off = self.target == 1, self.target == 0
        inter, more = ((masks & part).sum(axis=(1, 2)).tolist() for part in (on, off))
        return [(i, int(on.sum()) + m) for i, m in zip(inter, more, strict=True)]


def study(count: int, model: str = "A", seed: int = 0, pictures: int = 30) -> list[Known]:
    """Units of all kinds: numbers that are missing, ties, an empty target, flags; the first ones have a picture."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        target = (rng.random(HW) < 0.3).astype(np.uint8)
        target[rng.random(HW) < 0.1] = 255
        if k == 3:
            target[:] = 0
        grids = {name: rng.integers(0, 256, HW, dtype=np.uint8) for name in MAPS}
        if k == 3:  # above some threshold neither map nor target has a pixel
            grids = {name: grid // 2 for name, grid in grids.items()}
        maps = {name: np.maximum(grid / 255, 0.4 * (target == 1)).astype(np.float64) for name, grid in grids.items()}
        tied = round(float(rng.random()), 1)
        case = PageCase(
            key=f"image-{k // 3}/{k % 3}",
            question=f"{'Where is' if k % 2 else 'where is'} thing {rng.integers(40)}?",
            answer="" if k % 11 == 5 else f"It is the {('cat', 'dog', 'Owl')[k % 3]} [SEG].",
            model=model,
            kind=KINDS[k % 3],
            section=SECTIONS[k % 7 == 0],
            numbers={
                "own": None if k % 9 == 4 else tied,
                "exact": float(rng.random()) if k % 5 else math.nan,
                "count": float(rng.integers(0, 50)),
            },
            maps={
                name: PageMap(search_thresholds(maps[name], target), [(grids[name], (0.0, 0.0, HW[1], HW[0]))])
                for name in MAPS
            },
            flags=[*(["misaligned"] if k % 4 == 1 else []), *(["no [SEG]"] if k % 10 == 1 else [])],
            view=view(rng, target) if k < pictures else None,
        )
        found.append(Known(case, maps, target))
    return found


def view(rng: np.random.Generator, target: np.ndarray) -> PageView:
    """A picture of noise."""
    picture = Image.fromarray(rng.integers(0, 256, (*target.shape, 3), dtype=np.uint8))
    return PageView(
        picture, target, rng.random(target.shape) < 0.2, [PointPrompt(3.0, 4.0, 1), PointPrompt(9.0, 2.0, 0)]
    )


def scores(units: list[Known], name: str, t: float) -> tuple[str, str]:
    """gIoU and cIoU of the masks at a threshold, as the page writes them."""
    inter, union = zip(*(one.counts(name, t) for one in units), strict=True)
    return f"{mask_ious(inter, union).mean():.3f}", f"{sum(inter) / sum(union):.3f}"
