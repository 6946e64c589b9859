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

from readseg.evaluation.benchmarks import Page
from readseg.evaluation.outcomes import Result, read_result, result_of
from readseg.evaluation.report import COLUMNS, breakdown, label
from readseg.evaluation.run import Answers, System, run
from readseg.evaluation.scenes import SceneSet, scene_benchmark
from readseg.files import whole

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
        beside: predictions of other models about the same questions.

    Returns:
        Results as scenes are scored, and the comparison as Markdown.

    Raises:
        ReadsegError: there is no such model, predictions of another one in `out`, or a file cannot be read.
    """
    others = [read_result(path) for path in beside]
    referring = load(folder)
    benchmark = scene_benchmark(SceneSet(scenes=count))
    results: list[Result] = []
    for name in HEADS if head is None else (head,):
        system = _noting(scene_system(referring, name, "referring"), out / "presence.jsonl")
        results += run([system], benchmark, folder=out / name, progress=True).values()
    keys = [outcome.key for outcome in results[0].outcomes]
    _tidy(out / "presence.jsonl", keys)
    text = compare([*results, *(_of_questions(other, keys) for other in others)])
    with whole(out / "comparison.md") as place:
        place.write_text(text, encoding="utf-8")
    return results, text


def compare(results: Sequence[Result]) -> str:
    """Markdown tables of systems side by side, by kind of question: each answer's masks as one, all targets as one.

    Scores are followed by their 95% intervals, which draw whole images.
    """
    tables = [breakdown(result_of({**r.settings, "match": "union"}, r.about, r.predictions).outcomes) for r in results]
    names = [label(result) for result in results]
    parts = []
    for column in _COMPARED:
        lines = [
            f"| {COLUMNS[column]} of questions about | n | {' | '.join(names)} |",
            f"|---|{'---:|' * (1 + len(names))}",
        ]
        for rows in zip(*tables, strict=True):
            scores = [row.scores()[column] for row in rows]
            if scores[0].count:
                lines.append(f"| {rows[0].name} | {scores[0].count} | {' | '.join(map(str, scores))} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _of_questions(result: Result, keys: Sequence[str]) -> Result:
    """Another model's result on these questions only."""
    wanted = set(keys)
    kept = [p for p in result.predictions if p.key in wanted]
    return result_of(result.settings, result.about, kept)


def _noting(system: System, path: Path) -> System:
    """The system, which also writes down how sure it is that each thing is there."""

    def answer(page: Page, image: Image.Image) -> Sequence[Answers]:
        answers = system.answer(page, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            for query, said in zip(page.queries, answers, strict=True):
                if isinstance(said, Reference):
                    stream.write(json.dumps({"key": query.key, "presence": said.presence}) + "\n")
        return answers

    return replace(system, answer=answer)


def _tidy(path: Path, keys: Sequence[str]) -> None:
    """Each question once, in the benchmark's order; both heads, and a run that goes on, write it again."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the last line before a kill
            continue
        found[record["key"]] = record
    with whole(path) as place:
        lines = [json.dumps(found[key]) + "\n" for key in keys if key in found]
        place.write_text("".join(lines), encoding="utf-8")
