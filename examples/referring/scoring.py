"""Scores on the fixed set of drawn scenes, as `readseg evaluate scenes` makes them for the embedded model.

    OUT/sam, OUT/features/predictions.jsonl   in the package's format: `readseg score OUT` reads them
    OUT/presence.jsonl                        {"key": ..., "presence": the probability that it is there}: for ROC curves
    OUT/comparison.md                         gIoU, cIoU and refusals by kind of question, beside other predictions

The model has one [SEG], and so one mask, also where two things are asked for ("several"). Scenes compare the k-th mask
with the k-th target: the second target is then missed by construction. The comparison is therefore made in a way that
favours nobody, the union of all masks of an answer against the union of all targets, for all systems alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from answering import HEADS, Head, Reference, load, scene_system
from PIL import Image

from readseg.analysis.studies.knowledge import SystemResult, aligned, left_out, read_systems
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.predictions import Result, result_of
from readseg.evaluation.report import SCORES, breakdown, label
from readseg.evaluation.run import Answer, System, run_systems
from readseg.evaluation.scenes import SceneSet, scene_benchmark

_COMPARED = ("giou", "ciou", "answered", "refused")


def evaluate_referring(
    folder: Path, out: Path, count: int, head: Head | None = None, beside: Sequence[Path] = ()
) -> tuple[list[Result], str]:
    """Asks the model all questions of the first ``count`` scenes, with one head or with both.

    Args:
        folder: of the model.
        out: gets the predictions, how sure the model was, and the comparison.
        count: number of scenes.
        head: one head only.
        beside: predictions of other models about the same scenes, or folders that hold some.

    Returns:
        Results as scenes are scored, and the comparison as Markdown.

    Raises:
        ReadsegError: there is no such model, predictions of another one in `out`, a file cannot be read, or `beside` is
            not about these scenes.
    """
    benchmark = scene_benchmark(SceneSet(scenes=count))
    others = read_systems(beside, benchmark)
    referring = load(folder)
    _end_half_line(out / "presence.jsonl")
    results: list[Result] = []
    for name in HEADS if head is None else (head,):
        system = _noting(scene_system(referring, name, "referring"), out / "presence.jsonl")
        results += run_systems([system], benchmark, folder=out / name, progress=True).values()
    keys = [outcome.key for outcome in results[0].outcomes]
    _tidy(out / "presence.jsonl", keys)
    asked = [*(SystemResult(label(result), result, str(out)) for result in results), *others]
    systems = aligned(asked)
    text = "\n".join([compare(systems), *(f"- {note}.\n" for note in left_out(asked, systems))])
    with atomic_write(out / "comparison.md") as place:
        place.write_text(text, encoding="utf-8")
    return results, text


def compare(systems: Sequence[SystemResult]) -> str:
    """Markdown tables of systems side by side, by kind of question: each answer's masks as one, all targets as one.

    Scores are followed by their 95% intervals, which draw whole images.

    Args:
        systems: of `aligned`: all about the same questions.
    """
    found = [system.result for system in systems]
    tables = [breakdown(result_of({**r.settings, "match": "union"}, r.about, r.outcomes).outcomes) for r in found]
    names = [system.name for system in systems]
    parts = []
    for column in _COMPARED:
        lines = [
            f"| {SCORES[column].heading} of questions about | n | {' | '.join(names)} |",
            f"|---|{'---:|' * (1 + len(names))}",
        ]
        for rows in zip(*tables, strict=True):
            scores = [row.cells[column] for row in rows]
            if scores[0].count:
                lines.append(f"| {rows[0].name} | {scores[0].count} | {' | '.join(map(str, scores))} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _noting(system: System, path: Path) -> System:
    """The system, which also writes down how sure it is that each thing is there."""

    def answer(page: ImageQuestions, image: Image.Image) -> Sequence[Answer]:
        answers = system.answer(page, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            for query, said in zip(page.questions, answers, strict=True):
                if isinstance(said, Reference):
                    stream.write(json.dumps({"key": query.key, "presence": said.presence}) + "\n")
        return answers

    return replace(system, answer=answer)


def _end_half_line(path: Path) -> None:
    """What a kill left of a line must not swallow the line that is written next."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")


def _tidy(path: Path, keys: Sequence[str]) -> None:
    """Each question once, in the benchmark's order; both heads, and a run that goes on, write it again."""
    found = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            found[str(record["key"])] = {"key": record["key"], "presence": float(record["presence"])}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # the last line before a kill
            continue
    if lost := [key for key in keys if key not in found]:
        raise ReadsegError(
            f"{path}: damaged: it does not say how sure the model is of {len(lost)} questions that were asked before, "
            f"such as {lost[0]}; give another folder"
        )
    with atomic_write(path) as place:
        place.write_text("".join(json.dumps(found[key]) + "\n" for key in keys), encoding="utf-8")
