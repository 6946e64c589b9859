"""The demo: asks the embedded model about three stored pictures and holds its answers against the truth.

    make demo

Reads examples/examples.json, a list of {"image", "query", "expected"}: "expected" names the PNG of the true mask,
or is null where nothing is to be found. Writes one figure for each into demo_output/. Ends with 1 if a bar is
missed: IoU of at least 0.7, or a refusal.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from readseg import Segmentation, Segmenter
from readseg.core.masks import iou
from readseg.viz.overlays import contact_sheet, overlay, panel, points_legend, scale_legend, stack, text_block

HERE = Path(__file__).resolve().parent
BAR = 0.7
_TILE = 400  # pixels of a panel


def main(examples: Path = HERE / "examples.json", out: Path = HERE.parent / "demo_output") -> int:
    """Ask, compare, draw; returns the exit code."""
    start = time.perf_counter()
    segmenter = Segmenter.from_pretrained()
    out.mkdir(parents=True, exist_ok=True)
    table = Table("question", "answer", "expected", "result", "picture")
    missed = 0
    for number, example in enumerate(json.loads(examples.read_text(encoding="utf-8")), 1):
        result = segmenter.segment(examples.parent / example["image"], example["query"])
        if example["expected"] is None:
            truth, good = None, result.present is False
            expected, note = "a refusal", "refused" if good else f"{len(result.masks)} masks"
        else:
            truth = np.asarray(Image.open(examples.parent / example["expected"]).convert("L")) > 0
            overlap = iou(result.mask, truth)
            good = overlap >= BAR
            expected, note = f"IoU >= {BAR}", f"IoU {overlap:.2f}"
        missed += not good
        picture = out / f"{number}_{Path(example['image']).stem}.png"
        explanation(result, truth, note).save(picture)
        mark = Text(note, style="green" if good else "bold red")
        table.add_row(Text(result.query), Text(result.answer), expected, mark, Text(picture.name))
    console = Console()
    console.print(table)
    verdict = f"{missed} of {table.row_count} miss the bar" if missed else "all as expected"
    console.print(
        f"{verdict}; {time.perf_counter() - start:.1f} s. Look at the pictures in {out.name}/.", highlight=False
    )
    return 1 if missed else 0


def explanation(result: Segmentation, truth: np.ndarray | None, note: str) -> Image.Image:
    """How an answer came about: question and answer above image | map and points of each [SEG] | masks | truth."""
    assert result.image is not None
    image, many = result.image, len(result.masks) > 1
    panels = {"image" if len(result.masks) else "image, without any mask": panel(image, side=_TILE)}
    for k, similarity in enumerate(result.similarity):
        xy, labels = result.points_xy[k], result.point_labels[k]
        name = f"similarity and points of [SEG] {k + 1}" if many else "similarity and points"
        panels[name] = panel(image, side=_TILE, value_map=similarity, points=[(xy, labels)])
    if len(result.masks):
        panels[f"{len(result.masks)} masks" if many else "mask"] = overlay(image, result.masks)
    if truth is not None:
        panels["truth"] = overlay(image, truth[None])
    sheet = contact_sheet(list(panels.values()), list(panels), columns=min(len(panels), 4), tile=_TILE)
    words = (f"question: {result.query}", f"answer: {result.answer}")
    blocks = [*(text_block(text, sheet.width, 20, lines=4) for text in words), sheet]
    if len(result.masks):
        counts = Counter(int(label) for labels in result.point_labels for label in labels)
        blocks += [scale_legend(_TILE, 14), points_legend(counts, _TILE, 14)]
    return stack([*blocks, text_block(note, sheet.width, 20, lines=2)])


if __name__ == "__main__":
    sys.exit(main())
