"""Records of a study of maps, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from readseg.analysis.studies.map_records import Grid, MapRecord, MapScores, PointPrompt
from readseg.core.masks import Counts, encode_rle

HW = (4, 6)


def scores(
    intersection: int,
    union: int,
    *,
    pointing: float = 1.0,
    mass: float = 0.5,
    auc: float = 0.75,
    threshold: float = 0.3,
) -> MapScores:
    return MapScores(Counts(intersection, union), threshold, pointing, mass, auc)


def grid(seed: int = 0) -> Grid:
    levels = np.random.default_rng(seed).integers(0, 256, (2, 3), dtype=np.uint8)
    return Grid((2, 3), (0.0, -1.0, 6.0, 5.0), -2.5, 4.0, levels.tobytes())


def measured(**changes: Any) -> MapRecord:
    """A mask of 6 of 24 pixels, found but for one, whose maps know all of it; `changes` are fields."""
    target = np.zeros(HW, bool)
    target[:2, :3] = True
    mask = target.copy()
    mask[0, 0] = False
    curve = (tuple(range(101))[::-1], tuple(range(101, 202)))
    values: dict[str, Any] = {
        "key": "page/0",
        "unit": 0,
        "image": "page",
        "place": "page.jpg",
        "section": "val",
        "kind": "name",
        "tags": ("short",),
        "size": HW,
        "question": "the cup",
        "answer": "the cup [SEG].",
        "expected": None,
        "given": False,
        "segs": 1,
        "places": (0,),
        "words": "the cup",
        "words_right": True,
        "misaligned": False,
        "wanted": 6,
        "counted": 24,
        "maps": {
            "lmm": MapScores(Counts(5, 8), 0.4, 1.0, 0.6, 0.9, *curve),
            "sam": MapScores(Counts(4, 8), 0.6, 0.0, 0.4, 0.7, *curve),
            "before": scores(3, 9),
            "words": scores(2, 10),
        },
        "prompts": {name: Counts(5, 6) for name in ("own", "both", "seg", "points", "words_points", "words_projected")},
        "consistency": 0.5,
        "spearman": -0.25,
        "target": encode_rle(target),
        "ignored": None,
        "mask": encode_rle(mask),
        "points": (PointPrompt(1.0, 0.5, 1), PointPrompt(5.0, 3.0, 0)),
        "grids": {"lmm": (grid(),), "sam": (grid(1),)},
    }
    return MapRecord(**(values | changes))
