"""The report as files: JSON, Markdown, and one HTML page with the worst and the best cases to look at.

The page is one file that opens without a server: its style is inside, its pictures are small JPEGs inside.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.core.masks import decode_rle, union
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import SCENES, UNSEEN, UNTRAINED
from readseg.evaluation.predictions import Outcome, Prediction, Result, Rle
from readseg.evaluation.report import SCORES, label, number, ordered, side_by_side, to_json
from readseg.evaluation.scenes import SceneSet, scene_case
from readseg.evaluation.unseen import unseen_benchmark
from readseg.viz.html import data_uri, render_page
from readseg.viz.overlays import overlay
from readseg.viz.tables import Table, to_markdown

FILES = ("report.json", "report.md", "report.html")
_MANY, _CASES, _FEW_CASES = 4, 12, 4  # of more results than these, fewer cases are shown
_DRAWN, _SIDE, _QUALITY = 480, 360, 80  # pixels that are painted on, and of a picture in the page
_FADED = 0.4  # what is left of the ink outside of a mask

Verdict = Literal["mask", "refused", "invented", "refused rightly"]


def write_report(folder: Path, results: Sequence[Result], tables: Sequence[Table], *, data: Path | None = None) -> None:
    """Writes `FILES` of some results and their tables, each in one step; pictures are those below `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [result for result in ordered(results) if result.settings["benchmark"] == SCENES]
    parts = [to_markdown(table, bullet="") for table in tables]
    if len(scenes) > 1 and len({tuple(o.key for o in result.outcomes) for result in scenes}) == 1:
        parts.append(side_by_side(scenes))
    texts = (
        json.dumps(to_json(results, tables), indent=1),
        "\n".join(parts),
        to_html(results, tables, data),
    )
    for name, text in zip(FILES, texts, strict=True):
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8", errors="replace")


def find_picture(result: Result, prediction: Prediction, data: Path | None = None) -> Image.Image | None:
    """The image of a prediction: a file below the folder of all data (by default where it was), or drawn again.

    None where it is not there, or not of the right size.
    """
    name, benchmark = prediction.image, result.settings["benchmark"]
    try:
        if benchmark == SCENES:
            first, questions = result.settings["first_seed"], result.settings["questions"]
            which = SceneSet(questions=questions, first_seed=first)
            picture = load_image(scene_case(int(name.rpartition("-")[2]) - first, which).picture.image)
        elif benchmark == UNSEEN:
            unseen = unseen_benchmark()
            picture = load_image(unseen[unseen.names.index(name)].image)
        else:
            path, root = PurePosixPath(name), data if data is not None else result.about.get("data")
            if root is None or path.is_absolute() or ".." in path.parts:
                return None
            picture = load_image(Path(root) / path)
    except (ReadsegError, TypeError, ValueError):
        return None
    return picture if (picture.height, picture.width) == prediction.size else None


def worst_and_best(result: Result, count: int) -> tuple[list[Outcome], list[Outcome]]:
    """Up to `count` questions each, of different images as far as there are as many, none in both lists.

    The worst: up to a third each of things claimed that are not there and of things refused that are, the largest
    first; else the lowest IoU. The best: the highest IoU, and up to a quarter false premises that were refused. Where
    all premises are false there are no others, and both lists are filled with these.
    """
    groups: dict[Verdict, list[Outcome]] = defaultdict(list)
    asking = [outcome for outcome in result.outcomes if outcome.present is not None]
    for outcome in sorted(asking, key=lambda outcome: (outcome.iou, -sum(outcome.unions))):
        groups[verdict_of(outcome)].append(outcome)
    true = bool(groups["mask"] or groups["refused"])
    worst = select(groups["invented"], count // 3 if true else count)
    worst += select(groups["refused"], count // 3, worst)
    worst += select(groups["mask"], count - len(worst), worst)
    best = select(groups["refused rightly"], count // 4 if true else count)
    shown = {outcome.key for outcome in worst}
    rest = [outcome for outcome in reversed(groups["mask"]) if outcome.key not in shown]
    return worst, [*select(rest, count - len(best), best), *best]


def verdict_of(outcome: Outcome) -> Verdict:
    """How a question that asks for an object went."""
    if outcome.present:
        return "mask" if outcome.said else "refused"
    return "invented" if outcome.said else "refused rightly"


def select(outcomes: Sequence[Outcome], count: int, beside: Sequence[Outcome] = ()) -> list[Outcome]:
    """The first ones, those of images that are not shown yet before all others; in the given order."""
    images = {outcome.image for outcome in beside}
    is_repeated = []
    for outcome in outcomes:
        is_repeated.append(outcome.image in images)
        images.add(outcome.image)
    fresh_first = sorted(range(len(outcomes)), key=is_repeated.__getitem__)
    return [outcomes[k] for k in sorted(fresh_first[: max(0, count)])]


# -- HTML --------------------------------------------------------------------------------------------------------------


def to_html(results: Sequence[Result], tables: Sequence[Table], data: Path | None = None) -> str:
    """The page: all tables, then for each result of a model its worst and best cases."""
    models = [result for result in ordered(results) if "weights" in result.settings] or list(results)
    several = len({label(result) for result in models}) > 1
    count = _FEW_CASES if len(models) > _MANY else _CASES
    galleries = []
    for result in models:
        name = f"{result.settings['benchmark']}{f': {label(result)}' if several else ''}"
        galleries.append({"name": name, **_gallery(result, count, data)})
    return render_page(
        "evaluation.html",
        title=f"Evaluation of {', '.join(sorted({str(result.settings.get('model')) for result in models}))}",
        tables=tables,
        galleries=galleries,
        are_open=len(models) <= _MANY,
        scores=SCORES,
        number=number,
    )


def _gallery(result: Result, count: int, data: Path | None) -> dict[str, Any]:
    worst, best = worst_and_best(result, count)
    pictures = {outcome.key: find_picture(result, outcome, data) for outcome in (*worst, *best)}
    # How many true premises lie in each tenth of IoU: a mean hides whether all are fair or half of them lost.
    ious = [outcome.iou for outcome in result.outcomes if outcome.present]
    return {
        "histogram": np.histogram(ious, bins=10, range=(0, 1))[0].tolist() if ious else [],
        "lost": sum(picture is None for picture in pictures.values()),
        "data": result.about.get("data"),
        "cases": {
            heading: [_card(outcome, pictures[outcome.key]) for outcome in outcomes]
            for heading, outcomes in (("Worst cases", worst), ("Best cases", best))
        },
    }


def _card(outcome: Outcome, picture: Image.Image | None) -> dict[str, Any]:
    verdict, untrained = verdict_of(outcome), UNTRAINED in outcome.tags and not outcome.present
    shown = {"answer": outcome.masks, "truth": outcome.targets}
    if untrained:  # the thing is there, without a mask
        del shown["truth"]
    why = "it was never learned" if untrained else "it is not there"
    badges: Mapping[Verdict, str] = {
        "mask": f"IoU {outcome.iou:.2f}",
        "refused": "refused, but it is there",
        "invented": f"claimed, but {why}",
        "refused rightly": f"refused: {why}",
    }
    return {
        "prediction": outcome,
        "badge": badges[verdict],
        "bad": verdict in ("refused", "invented") or (verdict == "mask" and outcome.iou < 0.5),
        "pictures": [] if picture is None else [_picture(title, picture, rles) for title, rles in shown.items()],
    }


def _picture(title: str, picture: Image.Image, rles: Sequence[Rle]) -> dict[str, Any]:
    """An image with masks as a small JPEG."""
    masks = [decode_rle(rle) for rle in rles]
    small = picture.copy()
    small.thumbnail((_DRAWN, _DRAWN))  # before anything is painted: photographs are large
    boxed = [Image.fromarray(mask.astype(np.uint8) * 255).resize(small.size, Image.Resampling.BOX) for mask in masks]
    drawn = masked(small, [np.asarray(mask) > 127 for mask in boxed], _FADED)
    drawn.thumbnail((_SIDE, _SIDE))
    source = data_uri(drawn.convert("RGB"), "JPEG", quality=_QUALITY)
    return {"title": title, "source": source, "empty": not any(mask.any() for mask in masks)}


def masked(picture: Image.Image, masks: Sequence[np.ndarray], rest: float) -> Image.Image:
    """A picture with its masks (H, W) bool; outside of them only the `rest` of its ink is left.

    A tint alone does not show on a picture of that colour.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    where = union(masks, (picture.height, picture.width))
    if where.any():
        pixels = np.where(where[..., None], pixels, 255 - rest * (255 - pixels))
    stacked = np.stack(masks) if masks else np.zeros((0, *where.shape), bool)
    return overlay(Image.fromarray(pixels.astype(np.uint8)), stacked)
