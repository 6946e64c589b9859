"""World knowledge: how much a system loses when a thing is described instead of named, and who loses less (appendix E).

The same questions are put to several systems, with a language model or without one, and gIoU is compared over true
premises, where a refusal counts as an empty mask:

    difference = gIoU(A) - gIoU(B) over the same questions        drop = gIoU(naming) - gIoU(reasoning) of one system
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from jaxtyping import Float

from readseg.analysis.study import Study, StudyContext, StudyOutput, distinct
from readseg.core.stats import Estimate, bootstrap_sums, ratio_difference
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import SCENES, Benchmark
from readseg.evaluation.predictions import Outcome, Prediction, Result, prediction_files, read_result
from readseg.evaluation.report import PROTOCOLS, difference, iou_sums, label, summarise
from readseg.evaluation.run import model_system, run_systems
from readseg.viz.charts import Bar, bar_chart
from readseg.viz.tables import Row, Table

NAMING, SEEN, UNSEEN = "naming", "reasoning, seen descriptions", "reasoning, unseen descriptions"
SHORT, LONG, ALL = "short queries", "long queries", "all queries"

BelongsTo = Callable[[Outcome], bool]

_SCENES: Mapping[str, BelongsTo] = {
    NAMING: lambda outcome: outcome.section == "scenes" and outcome.kind == "category",
    SEEN: lambda outcome: outcome.section == "scenes" and outcome.kind == "reasoning",
    UNSEEN: lambda outcome: outcome.section == "descriptions" and outcome.kind == "reasoning",
}
_LENGTHS: Mapping[str, BelongsTo] = {
    SHORT: lambda outcome: "short" in outcome.tags,
    LONG: lambda outcome: "long" in outcome.tags,
    ALL: lambda outcome: True,
}
_COMPARED = ((NAMING, SEEN), (SEEN, UNSEEN), (NAMING, UNSEEN), (SHORT, LONG))


# What is asked and what is true: all that no model decides.
_TRUTH = [f.name for f in fields(Prediction) if f.name not in ("answer", "claimed", "masks", "finished")]


# -- systems -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SystemResult:
    """A system's answers to a benchmark, scored: a model's, or those in a file of predictions, whatever wrote it."""

    name: str  # as tables call it
    result: Result
    source: str  # what errors call it: the file, or the model's folder


def read_systems(paths: Sequence[Path], benchmark: Benchmark) -> list[SystemResult]:
    """The predictions for a benchmark in files, or in all files predictions.jsonl below folders."""
    expected = {"protocol": benchmark.protocol, "match": benchmark.match, **benchmark.settings}
    fitting: dict[Path, Result] = {}
    for path in paths:
        results = {file.resolve(): read_result(file) for file in prediction_files(path)}
        own = {file: result for file, result in results.items() if result.settings["benchmark"] == benchmark.name}
        if not own:
            others = ", ".join(sorted({str(result.settings["benchmark"]) for result in results.values()}))
            raise ReadsegError(f"{path}: expected predictions for {benchmark.name}, got those for {others}")
        for file, name in product(own, expected):
            if (value := own[file].settings.get(name)) != expected[name]:
                raise ReadsegError(
                    f"{file}: {name}: expected {expected[name]!r}, as this benchmark is asked now, got {value!r}: "
                    "scores of both do not belong in one table"
                )
        fitting |= own
    names = [label(result) for result in fitting.values()]
    return [
        SystemResult(name if names.count(name) == 1 else f"{name} ({file.parent.name})", result, str(file))
        for (file, result), name in zip(fitting.items(), names, strict=True)
    ]


def aligned(systems: Sequence[SystemResult]) -> list[SystemResult]:
    """The same systems with the questions that all of them answered, in the order of the first; names differ."""
    answers = [{outcome.key: outcome for outcome in system.result.outcomes} for system in systems]
    shared = [key for key in answers[0] if all(key in own for own in answers)]
    if not shared:
        raise ReadsegError(
            f"no question was answered by all of {', '.join(system.source for system in systems)}: expected answers to "
            "the same benchmark, the same images of it"
        )
    for key, system, own in ((key, *pair) for key in shared for pair in zip(systems, answers, strict=True)):
        if other := next((name for name in _TRUTH if getattr(own[key], name) != getattr(answers[0][key], name)), None):
            raise ReadsegError(
                f"{system.source}, {key!r}: its {other} is not that of {systems[0].source}: the two were asked about "
                "different data"
            )
    names = distinct([system.name for system in systems], "{} ({})")
    return [
        replace(system, name=name, result=replace(system.result, outcomes=tuple(own[key] for key in shared)))
        for system, name, own in zip(systems, names, answers, strict=True)
    ]


def left_out(before: Sequence[SystemResult], after: Sequence[SystemResult]) -> list[str]:
    """A note on what `aligned` left out; none where all systems answered the same questions."""
    lost = [(b.name, len(a.result.outcomes) - len(b.result.outcomes)) for a, b in zip(before, after, strict=True)]
    counts = ", ".join(f"{count} of {name}" for name, count in lost if count)
    return [f"answers to questions that not all systems were asked are left out: {counts}"] if counts else []


def ask(context: StudyContext, predictions: Sequence[Path]) -> list[SystemResult]:
    """All systems of a study: its models, asked and scored as `readseg evaluate` does, and the predictions."""
    others = read_systems(predictions, context.benchmark)  # one that does not fit is known before a model is asked
    asked = []
    for model in context.models:
        folder = context.folder_of(model)
        (result,) = run_systems(
            [model_system(model.segmenter, context.benchmark, settings=model.settings)],
            context.benchmark, folder=folder, limit=context.limit, progress=True,
        ).values()  # fmt: skip
        asked.append(SystemResult(model.name, result, str(folder)))
    return [*asked, *others]


# -- scores and tables -------------------------------------------------------------------------------------------------


def parts_of(benchmark: str, outcomes: Sequence[Outcome]) -> dict[str, BelongsTo]:
    """The parts whose questions are compared, each with what belongs to it, where a true premise does."""
    all_parts = _SCENES if benchmark == SCENES else _LENGTHS
    parts = {name: asks for name, asks in all_parts.items() if any(asks(o) and o.present for o in outcomes)}
    if not parts:
        raise ReadsegError(
            f"benchmark {benchmark}: no question that names or describes a thing which is there; ask about more images"
        )
    return parts


def knowledge_tables(
    benchmark: str, protocol: str, systems: Sequence[SystemResult], notes: Sequence[str]
) -> list[Table]:
    """The tables of the study: scores, paired differences between systems, and each system's own drop."""
    outcomes = {system.name: system.result.outcomes for system in systems}
    pairs = {f"{a} - {b}": (outcomes[a], outcomes[b]) for a, b in combinations(outcomes, 2)}
    parts = parts_of(benchmark, systems[0].result.outcomes)
    counted = [PROTOCOLS[protocol], _count_note(parts, systems[0].result.outcomes)]

    def table(title: str, first: str, columns: Mapping[str, str], rows: Sequence[Row], *heads: str) -> Table:
        return Table(f"{benchmark}: {title}", first, columns, rows, [*heads, *counted])

    rows = []
    for (part, asks), (name, own) in product(parts.items(), outcomes.items()):
        summary = summarise([o for o in own if asks(o)])
        rows.append(Row(name, {column: summary[column] for column in ("giou", "answered", "refused")}, group=part))
    columns = {"giou": "gIoU", "answered": "answered"}
    heads = ["gIoU: over true premises, where a refusal counts as an empty mask; answered: share of them with a mask"]
    if any(o.present is False and asks(o) for o in systems[0].result.outcomes for asks in parts.values()):
        columns["refused"] = "refused"
        heads.append("refused: share of false premises without a mask")
    scores = table("who can name, and who can reason", "questions, system", columns, rows, *heads)
    tables = [replace(scores, notes=[*scores.notes, *notes])]
    if pairs:
        rows = []
        for part, asks in parts.items():
            shown = {name: [[o for o in own if asks(o)] for own in pair] for name, pair in pairs.items()}
            rows.append(Row(part, {name: difference(*pair)[0] for name, pair in shown.items()}))
        paired = "differences are paired: both scores of a bootstrap draw are over the same images"
        columns = dict(zip(pairs, pairs, strict=True))
        tables.append(table("gIoU of one system less that of another", "questions", columns, rows, paired))
    if drops := {f"{a} to {b}": (parts[a], parts[b]) for a, b in _COMPARED if a in parts and b in parts}:

        def falls(name: str, group: str, *systems: Sequence[Outcome]) -> Row:
            return Row(name, {column: drop(systems, *asks) for column, asks in drops.items()}, group)

        rows = [falls(name, "system", own) for name, own in outcomes.items()]
        rows += [falls(name, "one falls more than another by", *pair) for name, pair in pairs.items()]
        positive = "a drop is positive where gIoU falls; the questions of the parts differ in more than in their words"
        columns = dict(zip(drops, drops, strict=True))
        tables.append(table("how far gIoU falls from one part to another", "system", columns, rows, positive))
    return tables


def drop(systems: Sequence[Sequence[Outcome]], first: BelongsTo, second: BelongsTo) -> Estimate:
    """How far a system's gIoU falls from one part to another; less how far that of a second system falls, paired."""
    questions = systems[0]
    belongs = [np.array([[bool(o.present) and asks(o)] for o in questions], bool) for asks in (first, second)]
    terms = [iou_sums(own) * counts for own in systems for counts in belongs]

    def score(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        return reduce(np.subtract, map(ratio_difference, np.split(sums, len(systems), axis=1)))

    count = int(np.logical_or(*belongs).sum())
    return bootstrap_sums(np.concatenate(terms, axis=1), score, groups=[o.image for o in questions], count=count)


def _count_note(parts: Mapping[str, BelongsTo], outcomes: Sequence[Outcome]) -> str:
    counts = []
    for name, asks in parts.items():
        own = [o for o in outcomes if asks(o) and o.present is not None]
        images, true = len({o.image for o in own}), sum(bool(o.present) for o in own)
        counts.append(f"{name} {true} true and {len(own) - true} false premises about {images} images")
    return f"questions: {'; '.join(counts)}; intervals of 95% draw whole images"


# -- the study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemOptions:
    """Other systems beside the models."""

    predictions: Annotated[
        list[Path] | None, typer.Option(help="Predictions of other systems, beside the models: files or folders.")
    ] = None


def run(context: StudyContext, options: SystemOptions) -> StudyOutput:
    """Compare the models, and the predictions, on the questions that all answered."""
    answers = ask(context, options.predictions or ())
    systems = aligned(answers)
    benchmark, notes = context.benchmark, [*_notes(context, systems), *left_out(answers, systems)]
    tables = knowledge_tables(benchmark.name, benchmark.protocol, systems, notes)
    bars = [
        Bar(row.name, score, row.group) for row in tables[0].rows if isinstance(score := row.cells["giou"], Estimate)
    ]
    note = next((note[0].upper() + note[1:] for note in tables[0].notes if note.startswith("questions: ")), "")
    chart = bar_chart(bars, title=tables[0].title, x_label="gIoU over true premises", note=note)
    return StudyOutput(tables, {"": chart})


def _notes(context: StudyContext, systems: Sequence[SystemResult]) -> list[str]:
    """What the numbers cannot show."""
    notes = []
    if any(model.source is None for model in context.models):
        notes.append(
            "the embedded language model has read nothing but the text of scenes, so it cannot show world knowledge"
        )
    if context.benchmark.name == SCENES:
        notes.append(
            "unseen descriptions are those that training on scenes holds out: of a system trained on scenes alone they "
            "test whether it composes words that it knows, of one that has read more also what it knows of the world"
        )
    if len(systems) == 1:
        notes.append("one system: nothing is compared; name others with --model or --predictions")
    return notes


STUDY = Study("knowledge", SystemOptions, run)
