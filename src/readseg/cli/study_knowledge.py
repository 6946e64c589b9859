"""The study "knowledge" of `readseg analyse`: things named and things described, several systems side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from readseg.analysis.studies.systems import Answered
    from readseg.cli.jobs import Job
    from readseg.viz.tables import Table

NAME = "knowledge"


def run(job: Job, predictions: Sequence[Path] = ()) -> None:
    """Ask every model, read the predictions, and compare the systems on the questions that all answered.

    Args:
        job: the models and the benchmark.
        predictions: files, or folders that hold some, of other systems.

    Raises:
        ReadsegError: predictions that do not fit the benchmark, or no question that can be compared.
    """
    from readseg.analysis.studies.knowledge import knowledge_tables
    from readseg.analysis.studies.systems import aligned, left_out
    from readseg.cli.jobs import finish
    from readseg.core.stats import Estimate
    from readseg.viz.charts import Bar, bar_chart

    found = ask(job, predictions)
    systems = aligned(found)
    tables = knowledge_tables(
        job.benchmark.name, job.benchmark.protocol, systems, [*_notes(job, systems), *left_out(found, systems)]
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
    finish(job, NAME, tables, {"": chart})


def ask(job: Job, predictions: Sequence[Path]) -> list[Answered]:
    """All systems of a study: its models, asked and scored as `readseg evaluate` does, and the predictions.

    What a model said is kept in the job's folder, and not asked again.

    Args:
        job: the models and the benchmark.
        predictions: files, or folders that hold some.

    Raises:
        ReadsegError: predictions that do not fit the benchmark; known before a model is asked.
    """
    from readseg.analysis.studies.systems import Answered, read_systems
    from readseg.cli.jobs import model_folder
    from readseg.evaluation.run import model_system, run_systems

    others = read_systems(predictions, job.benchmark)
    found = []
    for model in job.models:
        system = model_system(model.segmenter, job.benchmark, settings=model.settings)
        folder = model_folder(job, model)
        results = run_systems([system], job.benchmark, folder=folder, limit=job.limit, progress=True)
        found.append(Answered(model.name, results[system.name], str(folder)))
    return [*found, *others]


def _notes(job: Job, systems: Sequence[Answered]) -> list[str]:
    """What the numbers cannot show."""
    from readseg.evaluation.benchmarks import SCENES

    notes = []
    if any(model.source is None for model in job.models):
        notes.append(
            "the embedded language model has read nothing but the text of scenes, so it cannot show world knowledge"
        )
    if job.benchmark.name == SCENES:
        notes.append(
            "unseen descriptions are those that training on scenes holds out: of a system trained on scenes alone they "
            "test whether it composes words that it knows, of one that has read more also what it knows of the world"
        )
    if len(systems) == 1:
        notes.append("one system: nothing is compared; name others with --model or --predictions")
    return notes


def _questions(table: Table) -> str:
    return next((note[0].upper() + note[1:] for note in table.notes if note.startswith("questions: ")), "")
