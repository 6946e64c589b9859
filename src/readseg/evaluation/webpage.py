"""The report as files: JSON, Markdown, and one HTML page with the worst and the best cases to look at.

The page is one file that opens without a server: its style is inside, its pictures are small JPEGs inside. All text of
data sets and models is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.core.masks import decode_rle, union
from readseg.core.stats import Estimate, mask_ious
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import SCENES, UNSEEN, UNTRAINED
from readseg.evaluation.predictions import Outcome, Prediction, Result, Rle
from readseg.evaluation.report import Sheet, label, number, ordered, side_by_side, to_json, to_markdown
from readseg.viz.overlays import overlay

FILES = ("report.json", "report.md", "report.html")
_MANY, _CASES, _FEW_CASES = 4, 12, 4  # of more results than these, fewer cases are shown, folded away
_DRAWN, _SIDE, _QUALITY = 480, 360, 80  # pixels that are painted on, and of a picture in the page
_FADED = 0.4  # what is left of the ink outside of a mask
_STYLE = Path(__file__).with_name("report.css")

Verdict = Literal["mask", "refused", "invented", "refused rightly"]
Finder = Callable[[Result, Prediction], Image.Image | None]


@dataclass(frozen=True, eq=False)
class Example:
    """A question to look at.

    verdict: a mask of something that is there, something there refused, something absent claimed or refused.
    iou: mean over its masks.
    """

    prediction: Prediction
    verdict: Verdict
    iou: float


def write_report(folder: Path, results: Sequence[Result], tables: Sequence[Sheet], *, data: Path | None = None) -> None:
    """Writes the files of `FILES`, each in one step.

    Args:
        folder: made if it does not exist.
        results: of any benchmarks.
        tables: their `report.sheets`.
        data: the folder of all data, where the page's pictures are; by default where each result says it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [result for result in ordered(results) if result.settings["benchmark"] == SCENES]
    parts = [to_markdown(sheet) for sheet in tables]
    if len(scenes) > 1 and len({tuple(o.key for o in result.outcomes) for result in scenes}) == 1:
        parts.append(side_by_side(scenes))
    texts = (
        json.dumps(to_json(results, tables), indent=1),
        "\n".join(parts),
        to_html(results, tables, lambda result, prediction: find_picture(result, prediction, data)),
    )
    for name, text in zip(FILES, texts, strict=True):
        with atomic_write(folder / name) as place:
            place.write_text(text, encoding="utf-8", errors="replace")


def find_picture(result: Result, prediction: Prediction, data: Path | None = None) -> Image.Image | None:
    """What a question is about: a file below the folder of all data, or a scene that is drawn again.

    Args:
        result: that the prediction belongs to.
        prediction: whose image is wanted.
        data: the folder of all data; by default the one that the result was made with.

    Returns:
        The image; None where it is not there or not of the right size.
    """
    asked = prediction
    try:
        if result.settings["benchmark"] == SCENES:
            picture = _scene(result, asked.image)
        elif result.settings["benchmark"] == UNSEEN:
            picture = _unseen(asked.image)
        else:
            place = PurePosixPath(asked.image)
            root = data if data is not None else result.about.get("data")
            if root is None or place.is_absolute() or ".." in place.parts:
                return None
            picture = load_image(Path(root) / place)
    except (ReadsegError, TypeError, ValueError):
        return None
    return picture if (picture.height, picture.width) == asked.size else None


def _scene(result: Result, name: str) -> Image.Image:
    from readseg.evaluation.scenes import SceneSet, scene_case  # needs the extra "scenes"

    first, questions = result.settings["first_seed"], result.settings["questions"]
    number = int(name.rpartition("-")[2]) - first
    return load_image(scene_case(number, SceneSet(number + 1, questions, first)).picture.image)


def _unseen(name: str) -> Image.Image:
    from readseg.evaluation.unseen import unseen_benchmark  # needs the extra "scenes"

    benchmark = unseen_benchmark()
    return load_image(benchmark[benchmark.names.index(name)].image)


def worst_and_best(result: Result, count: int) -> tuple[list[Example], list[Example]]:
    """Questions to look at, each of another image as far as there are as many, none in both lists.

    The worst: up to a third each of things claimed that are not there and of things refused that are, the largest
    first; else the lowest IoU. The best: the highest IoU, and up to a quarter false premises that were refused. Where
    all premises are false there are no others, and both lists are filled with these.

    Args:
        result: whose questions.
        count: the most of each list.
    """
    found: dict[Verdict, list[tuple[Outcome, Example]]] = {v: [] for v in _VERDICTS}
    for prediction, outcome in zip(result.predictions, result.outcomes, strict=True):
        if outcome.present is not None:
            example = Example(
                prediction, _verdict(outcome), float(mask_ious(outcome.intersections, outcome.unions).mean())
            )
            found[example.verdict].append((outcome, example))
    for pairs in found.values():
        pairs.sort(key=lambda pair: (pair[1].iou, -sum(pair[0].unions)))
    true = bool(found["mask"] or found["refused"])
    worst = _picked(found["invented"], count // 3 if true else count, ())
    worst += _picked(found["refused"], count // 3, worst)
    worst += _picked(found["mask"], count - len(worst), worst)
    best = _picked(found["refused rightly"], count // 4 if true else count, ())
    shown = {id(example) for example in worst}
    rest = [pair for pair in reversed(found["mask"]) if id(pair[1]) not in shown]
    best = [*_picked(rest, count - len(best), best), *best]
    return worst, best


_VERDICTS: Mapping[Verdict, str] = {
    "mask": "",
    "refused": "refused, but it is there",
    "invented": "claimed, but it is not there",
    "refused rightly": "refused: it is not there",
}
_UNTRAINED: Mapping[str, str] = {
    "invented": "claimed, but it was never learned",
    "refused rightly": "refused: it was never learned",
}


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.present:
        return "mask" if outcome.said else "refused"
    return "invented" if outcome.said else "refused rightly"


def _picked(pairs: Sequence[tuple[Outcome, Example]], count: int, beside: Sequence[Example]) -> list[Example]:
    """The first ones, those of images that are not shown yet before all others; in the given order."""
    images = {example.prediction.image for example in beside}
    fresh: list[int] = []
    others: list[int] = []
    for place, (_, example) in enumerate(pairs):
        (others if example.prediction.image in images else fresh).append(place)
        images.add(example.prediction.image)
    return [pairs[place][1] for place in sorted([*fresh, *others][: max(0, count)])]


# -- HTML --------------------------------------------------------------------------------------------------------------


def to_html(results: Sequence[Result], tables: Sequence[Sheet], find: Finder) -> str:
    """The page: all tables, then for each result of a model its worst and best cases.

    Args:
        results: of any benchmarks.
        tables: their `report.sheets`.
        find: the image of a prediction, or None.
    """
    models = [result for result in ordered(results) if "weights" in result.settings] or list(results)
    title = f"Evaluation of {', '.join(sorted({str(result.settings.get('model')) for result in models}))}"
    several = len({label(result) for result in models}) > 1
    names = [f"{r.settings['benchmark']}{f': {label(r)}' if several else ''}" for r in models]
    links = "".join(f'<a href="#r{place}">{escape(name)}</a>' for place, name in enumerate(names))
    many = len(models) > _MANY
    body = [
        f"<header><h1>{escape(title)}</h1><nav>{links}</nav></header>",
        *(_table(sheet) for sheet in tables),
        "<h2>Cases to look at</h2>",
    ]
    for place, (name, result) in enumerate(zip(names, models, strict=True)):
        cases = _cases(result, _FEW_CASES if many else _CASES, find)
        state = "" if many else " open"
        body.append(f"<details id='r{place}'{state}><summary>{escape(name)}</summary>{cases}</details>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("n", *sheet.columns.values()))
    rows = []
    for row in sheet.rows:
        level = ' class="part"' if row.name.startswith(" ") else ""
        cells = "".join(f"<td>{_score(row.scores()[column])}</td>" for column in sheet.columns)
        rows.append(f"<tr{level}><th>{escape(row.name.strip())}</th><td>{row.questions}</td>{cells}</tr>")
    notes = "".join(f"<p>{escape(note)}</p>" for note in sheet.notes)
    return (
        f"<section><h2>{escape(sheet.title)}</h2><div class='wide'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><div class='notes'>{notes}</div></section>"
    )


def _score(score: Estimate) -> str:
    if not score.count:
        return "-"
    return f"{number(score)}<small>{score.low:.3f} to {score.high:.3f}</small>"


def _cases(result: Result, count: int, find: Finder) -> str:
    worst, best = worst_and_best(result, count)
    blocks, lost = [], 0
    for title, examples in (("Worst cases", worst), ("Best cases", best)):
        cards = []
        for example in examples:
            picture = find(result, example.prediction)
            lost += picture is None
            cards.append(_card(example, picture))
        if cards:
            blocks.append(f"<h3>{title}</h3><div class='cards'>{''.join(cards)}</div>")
    note = ""
    if lost:
        where = result.about.get("data")
        told = f" below {where}" if where else ""
        note = (
            f"<p class='notes'>{lost} pictures are not shown: the images are not{escape(told)}. "
            "Name the folder of all data with --data.</p>"
        )
    return f"{_histogram(result)}{note}{''.join(blocks) or '<p>Nothing to show.</p>'}"


def _histogram(result: Result) -> str:
    """How many true premises lie in each tenth of IoU: a mean hides whether all are fair or half of them lost."""
    ious = [mask_ious(o.intersections, o.unions).mean() for o in result.outcomes if o.present]
    if not ious:
        return ""
    counts, _ = np.histogram(ious, bins=10, range=(0, 1))
    bars = "".join(
        f"<i style='--h:{count / counts.max():.3f}' title='IoU {k / 10:.1f} to {(k + 1) / 10:.1f}: {count}'>"
        f"<b>{count or ''}</b></i>"
        for k, count in enumerate(counts)
    )
    return f"<figure class='bars'><div>{bars}</div><figcaption>true premises by IoU, 0 to 1</figcaption></figure>"


def _card(example: Example, picture: Image.Image | None) -> str:
    asked = said = example.prediction
    untrained = UNTRAINED in asked.tags and not asked.present
    verdict = (_UNTRAINED if untrained else _VERDICTS)[example.verdict]
    bad = example.verdict in ("refused", "invented") or (example.verdict == "mask" and example.iou < 0.5)
    badge = verdict or f"IoU {example.iou:.2f}"
    pictures = ""
    if picture is not None:
        pictures = _figure("answer", picture, said.masks)
        if not untrained:  # the thing is there, without a mask
            pictures += _figure("truth", picture, asked.targets)
    cut = " <em>(cut off)</em>" if not said.finished else ""
    kind = "bad" if bad else "good"
    return (
        f"<article><div class='pair'>{pictures}</div><span class='badge {kind}'>{escape(badge)}</span>"
        f"<p class='question'>{escape(asked.question)}</p><p class='answer'>{escape(said.answer)}{cut}</p>"
        f"<p class='place'>{escape(asked.image)}</p></article>"
    )


def _figure(title: str, picture: Image.Image, rles: Sequence[Rle]) -> str:
    masks = [decode_rle(dict(rle)) for rle in rles]
    caption = title if any(mask.any() for mask in masks) else f"{title}: no mask"
    return f"<figure><img alt='{title}' src='{_drawn(picture, masks)}'><figcaption>{caption}</figcaption></figure>"


def _drawn(picture: Image.Image, masks: Sequence[np.ndarray]) -> str:
    """An image with masks, each bool (H, W), as the address of a small JPEG that holds it."""
    small = picture.copy()
    small.thumbnail((_DRAWN, _DRAWN))  # before anything is painted: photographs are large
    boxed = [Image.fromarray(mask.astype(np.uint8) * 255).resize(small.size, Image.Resampling.BOX) for mask in masks]
    stacked = np.stack([np.asarray(mask) > 127 for mask in boxed]) if boxed else np.zeros((0, *small.size[::-1]), bool)
    if stacked.any():  # the rest is faded: a tint alone does not show on a picture of that colour
        pixels = np.asarray(small, np.float32)
        faded = np.where(union(stacked)[..., None], pixels, 255 - _FADED * (255 - pixels))
        small = Image.fromarray(faded.astype(np.uint8))
    drawn = overlay(small, stacked)
    drawn.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    drawn.convert("RGB").save(file, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
