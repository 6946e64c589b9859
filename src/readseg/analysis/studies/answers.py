"""Answers to look at, of several systems side by side (Figures 7 and 8): which questions, and how each of them went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import typer
from PIL import Image

from readseg.analysis.studies.knowledge import SystemOptions, SystemResult, aligned, ask
from readseg.analysis.study import Study, StudyContext, StudyOutput
from readseg.core.masks import decode_rle
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Outcome, Result, Rle
from readseg.evaluation.report import PROTOCOLS
from readseg.evaluation.webpage import find_picture, masked, select, worst_and_best
from readseg.viz.overlays import beside, captioned, stack, text_block
from readseg.viz.tables import Cell, Row, Table

Selection = Literal["mixed", "worst", "best", "random"]
WIDTH, NARROWEST = 1200, 280
"""Pixels of a sheet, and of a column: with more columns than fit the sheet is wider."""

_LETTERS, _LARGEST, _GAP = 19, 24, 6
_WHITE, _LINE, _NOTHING = (255, 255, 255), (190, 190, 190), (225, 225, 225)
_TALLEST = 0.75  # height of a picture, of its column's width: rows of tall ones would not fit on a screen
_FADED = 0.45  # what is left of the ink outside of a mask


class AnswerVerdict(NamedTuple):
    """How one answer went."""

    words: str  # "IoU 0.83", "refused, but it is there", ...
    iou: float  # mean over its masks; NaN where no mask was given, or none is right


def select_examples(result: Result, count: int, how: Selection = "mixed", seed: int = 0) -> list[str]:
    """Keys of questions to look at, about different images as far as there are as many."""
    asking = [outcome for outcome in result.outcomes if outcome.present is not None]
    if not asking:
        raise ReadsegError(f"benchmark {result.settings['benchmark']}: none of its questions asks for an object")
    if how == "random":
        drawn = [asking[number] for number in np.random.default_rng(seed).permutation(len(asking))]
        keys = {outcome.key for outcome in select(drawn, count)}
        return [outcome.key for outcome in asking if outcome.key in keys]
    worst, best = worst_and_best(result, count if how != "mixed" else math.ceil(count / 2))
    return [outcome.key for outcome in {"worst": worst, "best": best, "mixed": [*worst, *best]}[how][:count]]


def judge(outcome: Outcome) -> AnswerVerdict:
    """How an answer to a question that asks for an object went."""
    if not outcome.said:
        refusal = "an empty mask" if outcome.masks else "refused"
        return AnswerVerdict(f"{refusal}, but it is there" if outcome.present else f"{refusal}, rightly", math.nan)
    if not outcome.present:
        return AnswerVerdict("a mask, but it is not there", math.nan)
    several = f", mean of {len(outcome.unions)}" if len(outcome.unions) > 1 else ""
    return AnswerVerdict(f"IoU {outcome.iou:.2f}{several}", outcome.iou)


def answers_table(systems: Sequence[SystemResult], keys: Sequence[str], how: str) -> Table:
    """A row for each question with what every system said, how that went, and its IoU."""
    columns = {"key": "key", "truth": "truth"}
    for system in systems:
        prefix = f"{system.name}: " if len(systems) > 1 else ""
        headings = {"answer": "answer", "went": "how it went", "iou": "IoU"}
        columns |= {f"{system.name}: {part}": f"{prefix}{heading}" for part, heading in headings.items()}
    rows = []
    for key in keys:
        answers = _answers_to(systems, key)
        question = answers[0]
        cells: dict[str, Cell] = {"key": key, "truth": "it is there" if question.present else "it is not there"}
        for system, outcome in zip(systems, answers, strict=True):
            words, iou = judge(outcome)
            values: dict[str, Cell] = {"answer": outcome.answer, "went": words, "iou": iou}
            cells |= {f"{system.name}: {part}": value for part, value in values.items()}
        rows.append(Row(question.question, cells))
    settings = systems[0].result.settings
    notes = [PROTOCOLS[settings["protocol"]], how, "examples to look at, not a score"]
    return Table(f"{settings['benchmark']}: answers", "question", columns, rows, notes)


def _answers_to(systems: Sequence[SystemResult], key: str) -> list[Outcome]:
    """What each of some aligned systems answered to a question."""
    return [next(outcome for outcome in system.result.outcomes if outcome.key == key) for system in systems]


# -- the sheet ---------------------------------------------------------------------------------------------------------


SheetRow = tuple[Image.Image | None, Sequence[Outcome]]
"""An image, None where it is not to be had, and the answers of all systems to one question about it."""


def answer_sheet(rows: Sequence[SheetRow], systems: Sequence[str], *, title: str, note: str = "") -> Image.Image:
    """A sheet: the columns image, truth, and one for each system; a row for each question."""
    titles = ["image", "truth", *systems]
    width = max(WIDTH // len(titles), NARROWEST)
    whole = width * len(titles)
    letters = min(_LARGEST, round(_LETTERS * whole / WIDTH))
    heads = [text_block(name, width, letters, lines=2) or Image.new("RGB", (width, 1), _WHITE) for name in titles]
    blocks = [text_block(title, whole, letters + 5, lines=2), beside(heads, len(titles))]

    def cell(picture: Image.Image, rles: Sequence[Rle], caption: str) -> Image.Image:
        """A picture with its masks, fitted into a column, its caption beneath."""
        drawn = masked(picture, [decode_rle(rle) for rle in rles], _FADED)
        side = width - 2 * _GAP
        scale = min(side / drawn.width, _TALLEST * side / drawn.height)
        size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
        fitted = drawn.resize(size, Image.Resampling.LANCZOS)
        return captioned(fitted, caption, width, letters, _GAP, lines=6)

    for picture, answers in rows:
        question = answers[0]
        rule = Image.new("RGB", (whole, 2), _LINE)
        blocks += [rule, text_block(question.question, whole, letters + 2, lines=3)]
        shown = picture or Image.new("RGB", question.size[::-1], _NOTHING)
        counted = np.array(shown.convert("RGB"))
        if question.ignored is not None:  # in the truth, what does not count is grey
            counted[decode_rle(question.ignored)] = _LINE
        cells = [
            cell(shown, (), "" if picture else "the image is not there"),
            cell(Image.fromarray(counted), question.targets, "" if question.present else "it is not there"),
        ]
        for outcome in answers:
            words = f"{outcome.answer}{'' if outcome.finished else ' (cut off)'}".strip()
            verdict = judge(outcome).words
            cells.append(cell(shown, outcome.masks, f"{verdict}: {words}" if words else verdict))
        blocks.append(beside(cells, len(cells)))
    blocks.append(text_block(note, whole, letters - 2, lines=4))
    return stack(blocks)


@dataclass(frozen=True)
class SheetOptions(SystemOptions):
    """Which answers stand on the sheet."""

    rows: Annotated[int, typer.Option(min=1, help="Questions on the sheet.")] = 8
    pick: Annotated[Selection, typer.Option(help="Which questions.")] = "mixed"
    seed: Annotated[int, typer.Option(min=0, help="Of --pick random.")] = 0


def run(context: StudyContext, options: SheetOptions) -> StudyOutput:
    """The answers to some questions on one sheet; the first model decides what is worst and best."""
    systems = aligned(ask(context, options.predictions or ()))
    keys = select_examples(systems[0].result, options.rows, options.pick, options.seed)
    how = {
        "random": f"{len(keys)} questions drawn by lot (seed {options.seed})",
        "mixed": f"{len(keys)} questions: the worst answers of {systems[0].name}, then its best ones",
        "worst": f"the {len(keys)} worst answers of {systems[0].name}",
        "best": f"the {len(keys)} best answers of {systems[0].name}",
    }[options.pick]
    table = answers_table(systems, keys, how)
    rows: list[SheetRow] = []
    for answers in (_answers_to(systems, key) for key in keys):
        found = (find_picture(system.result, own, context.data) for system, own in zip(systems, answers, strict=True))
        rows.append((next((picture for picture in found if picture is not None), None), answers))
    names, note = [system.name for system in systems], f"{how}. {table.notes[0]}."
    return StudyOutput([table], {"": answer_sheet(rows, names, title=table.title, note=note)})


STUDY = Study("answers", SheetOptions, run)
