"""World knowledge: how much a system loses when a thing is described instead of named, and who loses less (appendix E).

A question that names a thing needs its look; one that describes what it is for needs, in the paper's words, the world
knowledge of a language model. The same questions are put to several systems, with a language model or without one, and
gIoU is compared over true premises, where a refusal counts as an empty mask:

    difference = gIoU(A) - gIoU(B) over the same questions        drop = gIoU(naming) - gIoU(reasoning) of one system

All intervals are bootstrapped by whole images. Speaks outcomes; no model and no image.

Source: appendix E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from jaxtyping import Float

from readseg.analysis.studies.systems import Answered, aligned, left_out, read_systems
from readseg.analysis.study import Study, StudyContext, StudyOutput
from readseg.core.stats import Estimate, bootstrap_sums, mask_ious, ratio_difference
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import SCENES
from readseg.evaluation.predictions import Outcome
from readseg.evaluation.report import PROTOCOLS, difference, summarise
from readseg.evaluation.run import model_system, run_systems
from readseg.viz.charts import Bar, bar_chart
from readseg.viz.tables import Cell, Row, Table

NAMING, SEEN, UNSEEN = "naming", "reasoning, seen descriptions", "reasoning, unseen descriptions"
SHORT, LONG, ALL = "short queries", "long queries", "all queries"

Asks = Callable[[Outcome], bool]

_SCENES: Mapping[str, Asks] = {
    NAMING: lambda outcome: outcome.section == "scenes" and outcome.kind == "category",
    SEEN: lambda outcome: outcome.section == "scenes" and outcome.kind == "reasoning",
    UNSEEN: lambda outcome: outcome.section == "descriptions" and outcome.kind == "reasoning",
}
_LENGTHS: Mapping[str, Asks] = {
    SHORT: lambda outcome: "short" in outcome.tags,
    LONG: lambda outcome: "long" in outcome.tags,
    ALL: lambda outcome: True,
}


def parts_of(benchmark: str, outcomes: Sequence[Outcome]) -> dict[str, Asks]:
    """The parts whose questions are compared, each with what belongs to it, where a true premise does."""
    wanted = _SCENES if benchmark == SCENES else _LENGTHS
    found = {name: asks for name, asks in wanted.items() if any(asks(o) and o.present for o in outcomes)}
    if not found:
        raise ReadsegError(
            f"benchmark {benchmark}: no question that names or describes a thing which is there; ask about more images"
        )
    return found


def knowledge_tables(benchmark: str, protocol: str, systems: Sequence[Answered], notes: Sequence[str]) -> list[Table]:
    """The tables of the study: scores, paired differences between systems, and each system's own drop."""
    parts = parts_of(benchmark, systems[0].result.outcomes)
    counted = [PROTOCOLS[protocol], *_counted(parts, systems[0].result.outcomes)]
    tables = [_scores(benchmark, parts, systems, [*counted, *notes])]
    if len(systems) > 1:
        tables.append(_differences(benchmark, parts, systems, counted))
    if _drops(parts):
        tables.append(_drop_table(benchmark, parts, systems, counted))
    return tables


def drop(outcomes: Sequence[Outcome], first: Asks, second: Asks) -> Estimate:
    """How far a system's gIoU falls from the questions of one part to those of another."""
    terms = np.concatenate([_terms(outcomes, first), _terms(outcomes, second)], axis=1)
    count = sum(bool(o.present) and (first(o) or second(o)) for o in outcomes)
    return bootstrap_sums(terms, ratio_difference, groups=_images(outcomes), count=count)


def drop_difference(one: Sequence[Outcome], other: Sequence[Outcome], first: Asks, second: Asks) -> Estimate:
    """How much more one system's gIoU falls than another's (`drop`); paired."""
    parts = [_terms(outcomes, asks) for outcomes in (one, other) for asks in (first, second)]

    def score(s: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        ratios = [s[:, k] / s[:, k + 1] for k in range(0, 8, 2)]
        return (ratios[0] - ratios[1]) - (ratios[2] - ratios[3])

    count = sum(bool(o.present) and (first(o) or second(o)) for o in one)
    return bootstrap_sums(np.concatenate(parts, axis=1), score, groups=_images(one), count=count)


def _scores(benchmark: str, parts: Mapping[str, Asks], systems: Sequence[Answered], notes: Sequence[str]) -> Table:
    rows = []
    for part, asks in parts.items():
        for system in systems:
            summary = summarise([o for o in system.result.outcomes if asks(o)])
            cells: dict[str, Cell] = {name: summary[name] for name in ("giou", "answered", "refused")}
            rows.append(Row(system.name, cells, group=part))
    columns = {"giou": "gIoU", "answered": "answered", "refused": "refused"}
    if not any(o.present is False and asks(o) for o in systems[0].result.outcomes for asks in parts.values()):
        del columns["refused"]
    told = [
        "gIoU: over true premises, where a refusal counts as an empty mask; answered: share of them with a mask",
        *(["refused: share of false premises without a mask"] if "refused" in columns else []),
        *notes,
    ]
    return Table(f"{benchmark}: who can name, and who can reason", "questions, system", columns, rows, told)


def _differences(benchmark: str, parts: Mapping[str, Asks], systems: Sequence[Answered], notes: Sequence[str]) -> Table:
    pairs = {f"{a.name} - {b.name}": (a.result.outcomes, b.result.outcomes) for a, b in combinations(systems, 2)}
    rows = []
    for part, asks in parts.items():
        cells = {
            name: difference([o for o in one if asks(o)], [o for o in other if asks(o)])[0]
            for name, (one, other) in pairs.items()
        }
        rows.append(Row(part, cells))
    told = ["differences are paired: both scores of a bootstrap draw are over the same images", *notes]
    return Table(
        f"{benchmark}: gIoU of one system less that of another", "questions", {name: name for name in pairs}, rows, told
    )


def _drop_table(benchmark: str, parts: Mapping[str, Asks], systems: Sequence[Answered], notes: Sequence[str]) -> Table:
    drops = _drops(parts)
    columns = {f"{first} to {second}": f"{first} to {second}" for first, second in drops}
    rows = [
        Row(
            system.name,
            {f"{a} to {b}": drop(system.result.outcomes, parts[a], parts[b]) for a, b in drops},
            group="system",
        )
        for system in systems
    ]
    rows += [
        Row(
            f"{one.name} - {other.name}",
            {
                f"{a} to {b}": drop_difference(one.result.outcomes, other.result.outcomes, parts[a], parts[b])
                for a, b in drops
            },
            group="one falls more than another by",
        )
        for one, other in combinations(systems, 2)
    ]
    told = [
        "a drop is positive where gIoU falls; the questions of the parts differ in more than in their words",
        *notes,
    ]
    return Table(f"{benchmark}: how far gIoU falls from one part to another", "system", columns, rows, told)


def _drops(parts: Mapping[str, Asks]) -> list[tuple[str, str]]:
    """The parts that are compared with each other."""
    wanted = [(NAMING, SEEN), (SEEN, UNSEEN), (NAMING, UNSEEN), (SHORT, LONG)]
    return [(first, second) for first, second in wanted if first in parts and second in parts]


def _terms(outcomes: Sequence[Outcome], asks: Asks) -> Float[np.ndarray, "M 2"]:
    """Sum of IoU and number of masks of each true premise that belongs to a part, 0 and 0 of all else."""
    found = [
        (mask_ious(o.intersections, o.unions).sum(), len(o.unions)) if o.present and asks(o) else (0.0, 0.0)
        for o in outcomes
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _images(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.image for outcome in outcomes]


def _true(outcomes: Sequence[Outcome]) -> int:
    return sum(bool(outcome.present) for outcome in outcomes)


def _counted(parts: Mapping[str, Asks], outcomes: Sequence[Outcome]) -> list[str]:
    told = []
    for name, asks in parts.items():
        own = [o for o in outcomes if asks(o) and o.present is not None]
        images, true = len({o.image for o in own}), _true(own)
        told.append(f"{name} {true} true and {len(own) - true} false premises about {images} images")
    return [f"questions: {'; '.join(told)}; intervals of 95% draw whole images"]


@dataclass(frozen=True)
class SystemOptions:
    """Other systems beside the models."""

    predictions: Annotated[
        list[Path] | None, typer.Option(help="Predictions of other systems, beside the models: files or folders.")
    ] = None


def run(context: StudyContext, options: SystemOptions) -> StudyOutput:
    """Compare the models, and the predictions, on the questions that all answered."""
    found = ask(context, options.predictions or ())
    systems = aligned(found)
    tables = knowledge_tables(
        context.benchmark.name,
        context.benchmark.protocol,
        systems,
        [*_notes(context, systems), *left_out(found, systems)],
    )
    bars = [
        Bar(row.name, score.value, score.low, score.high, row.group)
        for row in tables[0].rows
        if isinstance(score := row.cells["giou"], Estimate)
    ]
    chart = bar_chart(
        bars,
        title=tables[0].title,
        x_label="gIoU over true premises",
        note=_questions(tables[0]),
    )
    return StudyOutput(tables, {"": chart})


def ask(context: StudyContext, predictions: Sequence[Path]) -> list[Answered]:
    """All systems of a study: its models, asked and scored as `readseg evaluate` does, and the predictions.

    What a model said is kept in the study's folder, and not asked again. Predictions that do not fit the benchmark are
    an error before a model is asked.
    """
    others = read_systems(predictions, context.benchmark)
    found = []
    for model in context.models:
        system = model_system(model.segmenter, context.benchmark, settings=model.settings)
        folder = context.folder_of(model)
        results = run_systems([system], context.benchmark, folder=folder, limit=context.limit, progress=True)
        found.append(Answered(model.name, results[system.name], str(folder)))
    return [*found, *others]


def _notes(context: StudyContext, systems: Sequence[Answered]) -> list[str]:
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


def _questions(table: Table) -> str:
    return next((note[0].upper() + note[1:] for note in table.notes if note.startswith("questions: ")), "")


STUDY = Study("knowledge", SystemOptions, run)
