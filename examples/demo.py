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
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from readseg import Segmenter
from readseg.core.masks import iou, load_png
from readseg.viz.overlays import explanation

HERE = Path(__file__).resolve().parent
BAR = 0.7


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
            truth = load_png(examples.parent / example["expected"])
            overlap = iou(result.mask, truth)
            good = overlap >= BAR
            expected, note = f"IoU >= {BAR}", f"IoU {overlap:.2f}"
        missed += not good
        assert result.image is not None
        picture = out / f"{number}_{Path(example['image']).stem}.png"
        explanation(
            result.image,
            result.masks,
            result.similarity,
            result.points_xy,
            result.point_labels,
            query=result.query,
            answer=result.answer,
            truth=truth,
            note=note,
        ).save(picture)
        mark = Text(note, style="green" if good else "bold red")
        table.add_row(Text(result.query), Text(result.answer), expected, mark, Text(picture.name))
    console = Console()
    console.print(table)
    verdict = f"{missed} of {table.row_count} miss the bar" if missed else "all as expected"
    console.print(
        f"{verdict}; {time.perf_counter() - start:.1f} s. Look at the pictures in {out.name}/.", highlight=False
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
