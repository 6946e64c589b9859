"""Answers to look at, of several systems side by side (Figures 7 and 8): which questions, and how each of them went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import typer
from PIL import Image

from readseg.analysis.studies.knowledge import SystemOptions, SystemResult, aligned, ask
from readseg.analysis.study import Study, StudyContext, StudyOutput
from readseg.core.masks import decode_rle, union
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Outcome, Result, Rle
from readseg.evaluation.report import PROTOCOLS
from readseg.evaluation.webpage import find_picture, select, worst_and_best
from readseg.viz.overlays import beside, captioned, overlay, stack, text_block
from readseg.viz.tables import Cell, Row, Table

Selection = Literal["mixed", "worst", "best", "random"]
WIDTH, NARROWEST = 1200, 280
"""Pixels of a sheet, and of a column: with more columns than fit the sheet is wider."""

_LETTERS, _LARGEST, _GAP = 19, 24, 6
_WHITE, _LINE, _NOTHING = (255, 255, 255), (190, 190, 190), (225, 225, 225)
_TALLEST = 0.75  # height of a picture, of its column's width: rows of tall ones would not fit on a screen
_FADED = 0.45  # what is left of the ink outside of a mask


class AnswerVerdict(NamedTuple):
    """How one answer went.

    words: for a reader: "IoU 0.83", "refused, but it is there", ...
    iou: mean over its masks; NaN where no mask was given, or none is right.
    """

    words: str
    iou: float


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


class MaskPanel(NamedTuple):
    """Masks (S, H, W) bool, S may be 0, with the words beneath them, such as the answer and how it went."""

    masks: np.ndarray
    caption: str


class SheetRow(NamedTuple):
    """One question of a sheet, with the answers of all systems in the order of the columns."""

    question: str
    picture: Image.Image | None  # RGB, what it is about; None where it is not to be had
    size: tuple[int, int]  # (H, W) of the picture
    truth: MaskPanel
    answers: Sequence[MaskPanel]
    ignored: np.ndarray | None = None  # (H, W) bool, pixels that do not count, grey in the truth


def answer_sheet(rows: Sequence[SheetRow], systems: Sequence[str], *, title: str, note: str = "") -> Image.Image:
    """A sheet: the columns image, truth, and one for each system; a row for each question.

    Where a mask is, the rest of the picture is faded: a tint alone does not show on a picture of that colour.
    """
    titles = ["image", "truth", *systems]
    width = max(WIDTH // len(titles), NARROWEST)
    whole = width * len(titles)
    letters = min(_LARGEST, round(_LETTERS * whole / WIDTH))
    heads = [text_block(name, width, letters, lines=2) or Image.new("RGB", (width, 1), _WHITE) for name in titles]
    blocks = [text_block(title, whole, letters + 5, lines=2), beside(heads, len(titles))]
    for row in rows:
        rule = Image.new("RGB", (whole, 2), _LINE)
        blocks += [rule, text_block(row.question, whole, letters + 2, lines=3)]
        height, wide = row.size
        picture = row.picture or Image.new("RGB", (wide, height), _NOTHING)
        bare = MaskPanel(np.zeros((0, height, wide), bool), "" if row.picture else "the image is not there")
        known = np.array(picture.convert("RGB"))
        if row.ignored is not None:
            known[row.ignored] = _LINE
        cells = [_cell(picture, bare, width, letters), _cell(Image.fromarray(known), row.truth, width, letters)]
        cells += [_cell(picture, answer, width, letters) for answer in row.answers]
        blocks.append(beside(cells, len(cells)))
    blocks.append(text_block(note, whole, letters - 2, lines=4))
    return stack(blocks)


def _cell(picture: Image.Image, panel: MaskPanel, width: int, letters: int) -> Image.Image:
    """A picture with its masks, fitted into a column, its caption beneath."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    if panel.masks.any():
        outside = ~union(panel.masks, (picture.height, picture.width))
        pixels = np.where(outside[..., None], 255 - _FADED * (255 - pixels), pixels)
    drawn = overlay(Image.fromarray(pixels.astype(np.uint8)), panel.masks)
    side = width - 2 * _GAP
    scale = min(side / drawn.width, _TALLEST * side / drawn.height)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    fitted = drawn.resize(size, Image.Resampling.LANCZOS)
    return captioned(fitted, panel.caption, width, letters, _GAP, lines=6)


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
    rows = [_sheet_row(systems, key, context.data) for key in keys]
    names, note = [system.name for system in systems], f"{how}. {table.notes[0]}."
    return StudyOutput([table], {"": answer_sheet(rows, names, title=table.title, note=note)})


def _sheet_row(systems: Sequence[SystemResult], key: str, data: Path | None) -> SheetRow:
    """One question with the truth and all answers, its image found again."""
    answers = _answers_to(systems, key)
    question = answers[0]

    def stacked(rles: Sequence[Rle]) -> np.ndarray:
        masks = [decode_rle(dict(rle)) for rle in rles]
        return np.stack(masks) if masks else np.zeros((0, *question.size), bool)

    panels = []
    for outcome in answers:
        words = f"{outcome.answer}{'' if outcome.finished else ' (cut off)'}".strip()
        verdict = judge(outcome).words
        panels.append(MaskPanel(stacked(outcome.masks), f"{verdict}: {words}" if words else verdict))
    pictures = (find_picture(system.result, own, data) for system, own in zip(systems, answers, strict=True))
    return SheetRow(
        question=question.question,
        picture=next((picture for picture in pictures if picture is not None), None),
        size=question.size,
        truth=MaskPanel(stacked(question.targets), "" if question.present else "it is not there"),
        answers=panels,
        ignored=None if question.ignored is None else decode_rle(dict(question.ignored)),
    )


STUDY = Study("answers", SheetOptions, run)
