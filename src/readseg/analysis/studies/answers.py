"""Answers to look at, of several systems side by side (Figures 7 and 8): which questions, and how each of them went.

Speaks predictions and outcomes; `sheets` draws what is picked here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import typer

from readseg.analysis.studies.knowledge import SystemOptions, ask
from readseg.analysis.studies.systems import Answered, aligned
from readseg.analysis.study import Study, StudyContext, StudyOutput
from readseg.core.masks import decode_rle
from readseg.core.stats import mask_ious
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Outcome, Prediction, Result, Rle
from readseg.evaluation.report import PROTOCOLS
from readseg.evaluation.webpage import find_picture, worst_and_best
from readseg.viz.sheets import MaskPanel, SheetRow, answer_sheet
from readseg.viz.tables import Cell, Row, Table

Pick = Literal["mixed", "worst", "best", "random"]


class Judged(NamedTuple):
    """How one answer went.

    words: for a reader: "IoU 0.83", "refused, but it is there", ...
    iou: mean over its masks; NaN where no mask was given, or none is right.
    """

    words: str
    iou: float


def pick(result: Result, count: int, how: Pick = "mixed", seed: int = 0) -> list[str]:
    """Questions to look at, about different images as far as there are as many."""
    if how not in get_args(Pick):
        raise ReadsegError(f"pick: expected one of {', '.join(get_args(Pick))}, got {how!r}")
    if count < 1:
        raise ReadsegError(f"count: expected at least 1 question to show, got {count}")
    asking = [outcome for outcome in result.outcomes if outcome.present is not None]
    if not asking:
        raise ReadsegError(f"benchmark {result.settings['benchmark']}: none of its questions asks for an object")
    if how == "random":
        return _by_lot(asking, count, seed)
    worst, best = worst_and_best(result, count if how != "mixed" else math.ceil(count / 2))
    examples = {"worst": worst, "best": best, "mixed": [*worst, *best]}[how][:count]
    return [example.prediction.key for example in examples]


def judge(prediction: Prediction, outcome: Outcome) -> Judged:
    """How an answer to a question that asks for an object went."""
    if not outcome.said:
        empty = "an empty mask" if prediction.masks else "refused"
        return Judged(f"{empty}, but it is there" if outcome.present else f"{empty}, rightly", math.nan)
    if not outcome.present:
        return Judged("a mask, but it is not there", math.nan)
    iou = float(mask_ious(outcome.intersections, outcome.unions).mean())
    several = f", mean of {len(outcome.unions)}" if len(outcome.unions) > 1 else ""
    return Judged(f"IoU {iou:.2f}{several}", iou)


def answers_table(systems: Sequence[Answered], keys: Sequence[str], how: str) -> Table:
    """A row for each question with what every system said, how that went, and its IoU."""
    found = [dict(zip((o.key for o in s.result.outcomes), _pairs(s.result), strict=True)) for s in systems]
    columns = {"key": "key", "truth": "truth"}
    for system in systems:
        names = ("answer", "how it went", "IoU") if len(systems) == 1 else _names(system.name)
        columns |= dict(zip((f"{system.name}: {part}" for part in ("answer", "went", "iou")), names, strict=True))
    rows = []
    for key in keys:
        asked = found[0][key][0]
        cells: dict[str, Cell] = {"key": key, "truth": "it is there" if asked.present else "it is not there"}
        for system, own in zip(systems, found, strict=True):
            prediction, outcome = own[key]
            words, iou = judge(prediction, outcome)
            cells |= {
                f"{system.name}: answer": prediction.answer,
                f"{system.name}: went": words,
                f"{system.name}: iou": iou,
            }
        rows.append(Row(asked.question, cells))
    settings = systems[0].result.settings
    notes = [PROTOCOLS[settings["protocol"]], how, "examples to look at, not a score"]
    return Table(f"{settings['benchmark']}: answers", "question", columns, rows, notes)


def _names(system: str) -> tuple[str, str, str]:
    return f"{system}: answer", f"{system}: how it went", f"{system}: IoU"


def _pairs(result: Result) -> list[tuple[Prediction, Outcome]]:
    return list(zip(result.predictions, result.outcomes, strict=True))


def _by_lot(asking: Sequence[Outcome], count: int, seed: int) -> list[str]:
    """Questions by lot, those of images that are not drawn yet before all others, in the benchmark's order."""
    order = np.random.default_rng(seed).permutation(len(asking)).tolist()
    images: set[str] = set()
    fresh: list[int] = []
    others: list[int] = []
    for place in order:
        (others if asking[place].image in images else fresh).append(place)
        images.add(asking[place].image)
    return [asking[place].key for place in sorted([*fresh, *others][:count])]


@dataclass(frozen=True)
class SheetOptions(SystemOptions):
    """Which answers stand on the sheet."""

    rows: Annotated[int, typer.Option(min=1, help="Questions on the sheet.")] = 8
    pick: Annotated[Pick, typer.Option(help="Which questions.")] = "mixed"
    seed: Annotated[int, typer.Option(min=0, help="Of --pick random.")] = 0


def run(context: StudyContext, options: SheetOptions) -> StudyOutput:
    """The answers to some questions on one sheet; the first model decides what is worst and best."""
    systems = aligned(ask(context, options.predictions or ()))
    keys = pick(systems[0].result, options.rows, options.pick, options.seed)
    how = {
        "random": f"{len(keys)} questions drawn by lot (seed {options.seed})",
        "mixed": f"{len(keys)} questions: the worst answers of {systems[0].name}, then its best ones",
        "worst": f"the {len(keys)} worst answers of {systems[0].name}",
        "best": f"the {len(keys)} best answers of {systems[0].name}",
    }[options.pick]
    table = answers_table(systems, keys, how)
    sheet = answer_sheet(
        [_line(systems, key, context.data) for key in keys],
        [system.name for system in systems],
        title=table.title,
        note=f"{how}. {table.notes[0]}.",
    )
    return StudyOutput([table], {"": sheet})


def _line(systems: Sequence[Answered], key: str, data: Path | None) -> SheetRow:
    """One question with the truth and all answers, its image found again."""
    places = [next(k for k, p in enumerate(s.result.predictions) if p.key == key) for s in systems]
    asked = systems[0].result.predictions[places[0]]

    def stacked(rles: Sequence[Rle]) -> np.ndarray:
        masks = [decode_rle(dict(rle)) for rle in rles]
        return np.stack(masks) if masks else np.zeros((0, *asked.size), bool)

    pictures = (find_picture(s.result, s.result.predictions[k], data) for s, k in zip(systems, places, strict=True))
    shown = []
    for system, place in zip(systems, places, strict=True):
        prediction, outcome = system.result.predictions[place], system.result.outcomes[place]
        cut = " (cut off)" if not prediction.finished else ""
        words = f"{prediction.answer}{cut}".strip()
        judged = judge(prediction, outcome).words
        shown.append(MaskPanel(stacked(prediction.masks), f"{judged}: {words}" if words else judged))
    ignored = None if asked.ignored is None else decode_rle(dict(asked.ignored))
    return SheetRow(
        question=asked.question,
        picture=next((picture for picture in pictures if picture is not None), None),
        size=asked.size,
        truth=MaskPanel(stacked(asked.targets), "" if asked.present else "it is not there"),
        answers=shown,
        ignored=ignored,
    )


STUDY = Study("answers", SheetOptions, run)
