"""The study "answers" of `readseg analyse`: a sheet of answers with masks or refusals (Figures 7 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from readseg.analysis.studies.systems import Answered
    from readseg.cli.jobs import Job
    from readseg.evaluation.predictions import Rle
    from readseg.viz.sheets import Line

NAME = "answers"


def run(
    job: Job,
    predictions: Sequence[Path] = (),
    count: int = 8,
    pick: Literal["mixed", "worst", "best", "random"] = "mixed",
    seed: int = 0,
) -> None:
    """Ask every model, read the predictions, and put the answers to some questions on one sheet.

    Args:
        job: the models and the benchmark; the first model decides what is worst and best.
        predictions: files, or folders that hold some, of other systems.
        count: rows of the sheet.
        pick: which questions, see `analysis.answers.pick`.
        seed: of "random".

    Raises:
        ReadsegError: predictions that do not fit the benchmark, no question that can be shown, or an unknown pick.
    """
    from readseg.analysis.studies import answers
    from readseg.analysis.studies.systems import aligned
    from readseg.cli.jobs import finish
    from readseg.cli.study_knowledge import ask
    from readseg.viz.sheets import answer_sheet

    systems = aligned(ask(job, predictions))
    keys = answers.pick(systems[0].result, count, pick, seed)
    how = {
        "random": f"{len(keys)} questions drawn by lot (seed {seed})",
        "mixed": f"{len(keys)} questions: the worst answers of {systems[0].name}, then its best ones",
        "worst": f"the {len(keys)} worst answers of {systems[0].name}",
        "best": f"the {len(keys)} best answers of {systems[0].name}",
    }[pick]
    table = answers.answers_table(systems, keys, how)
    sheet = answer_sheet(
        [_line(systems, key, job.data) for key in keys],
        [system.name for system in systems],
        title=table.title,
        note=f"{how}. {table.notes[0]}.",
    )
    finish(job, NAME, [table], {"": sheet})


def _line(systems: Sequence[Answered], key: str, data: Path | None) -> Line:
    """One question with the truth and all answers, its image found again."""
    import numpy as np

    from readseg.analysis.studies.answers import judge
    from readseg.core.masks import decode_rle
    from readseg.evaluation.webpage import find_picture
    from readseg.viz.sheets import Line, Shown

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
        shown.append(Shown(stacked(prediction.masks), f"{judged}: {words}" if words else judged))
    ignored = None if asked.ignored is None else decode_rle(dict(asked.ignored))
    return Line(
        question=asked.question,
        picture=next((picture for picture in pictures if picture is not None), None),
        size=asked.size,
        truth=Shown(stacked(asked.targets), "" if asked.present else "it is not there"),
        answers=shown,
        ignored=ignored,
    )
