"""The study "necessity" of `readseg analyse`: is [SEG] needed to decide whether to segment?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from readseg.analysis.studies.necessity import Considered
    from readseg.cli.jobs import Job, Model
    from readseg.evaluation.run import StudyResult
    from readseg.viz.tables import Table

NAME = "necessity"


def run(job: Job) -> None:
    """Ask every model; write tables, the ROC curves as numbers, and a chart for each model.

    Raises:
        ReadsegError: there is nothing to decide (`necessity.check_premises`), known before a model is asked; or a
            question, an image or a record cannot be read.
    """
    import json

    from readseg.analysis.studies.necessity import check_premises
    from readseg.cli.jobs import finish, model_folder
    from readseg.core.io import atomic_write

    check_premises(job.benchmark, job.limit)
    tables: list[Table] = []
    pictures: dict[str, Image.Image] = {}
    points: dict[str, Any] = {}
    for model in job.models:
        study, records = _look(job, model)
        own, points[model.name], chart = _told(job, model, study, records)
        tables += own
        pictures["" if len(job.models) == 1 else model_folder(job, model).name] = chart
    with atomic_write(job.out / "roc.json") as place:
        place.write_text(json.dumps(points, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    finish(job, NAME, tables, pictures)


def _look(job: Job, model: Model) -> tuple[StudyResult[dict[str, Any]], list[Considered]]:
    """What is recorded of every question, from disk where it was asked before."""
    from readseg.analysis.studies.necessity import Considered, consider
    from readseg.cli.jobs import model_folder
    from readseg.errors import ReadsegError
    from readseg.evaluation.run import RECORDS, run_study

    folder = model_folder(job, model)
    study = run_study(
        job.benchmark,
        lambda page: [one.to_json() for one in consider(model.segmenter, job.benchmark, page)],
        dict[str, Any],
        name=NAME,
        settings=model.settings,
        folder=folder,
        limit=job.limit,
        progress=True,
    )
    try:
        return study, [Considered.from_json(record) for record in study.records]
    except ReadsegError as error:
        raise ReadsegError(f"{folder / RECORDS}: {error}") from error


def _told(
    job: Job, model: Model, study: StudyResult[dict[str, Any]], records: list[Considered]
) -> tuple[list[Table], dict[str, Any], Image.Image]:
    """Tables, ROC curves as JSON values, and the chart of one model."""
    from readseg.analysis.studies.necessity import SCORES
    from readseg.analysis.studies.necessity_tables import curves, decide, necessity_tables, operating_point
    from readseg.core.stats import auc
    from readseg.viz.charts import Curve, line_chart

    benchmark = job.benchmark.name
    images = f"{study.about['images']} of {study.about['of']} images"
    tables = necessity_tables(records, model.name, benchmark, images)
    decided = decide(records)
    found = curves(decided)
    false_positive, true_positive = operating_point(decided)
    drawn = [
        Curve(
            f"{SCORES[name].name} ({auc(decided.scores[name], decided.present)[0]:.3f})",
            curve.false_positive.tolist(),
            curve.true_positive.tolist(),
        )
        for name, curve in found.items()
    ]
    said = Curve(
        "[SEG] in the answer",
        [false_positive.value],
        [true_positive.value],
        [true_positive.low],
        [true_positive.high],
        mark=True,
    )
    chart = line_chart(
        [said, *drawn],
        title=f"{benchmark}: who decides whether to segment? {model.name}",
        x_label="false premises with a mask",
        y_label="true premises with a mask",
        x_limits=(0.0, 1.0),
        y_limits=(0.0, 1.0),
        note=f"{len(records)} questions about {images}; in brackets the area under the curve. Thresholds of a curve "
        "are not chosen: it shows what each of them would decide.",
        diagonal=True,
    )
    values = {
        name: {
            "false_positive": curve.false_positive.tolist(),
            "true_positive": curve.true_positive.tolist(),
        }
        for name, curve in found.items()
    }
    values["said"] = {"false_positive": [false_positive.value], "true_positive": [true_positive.value]}
    return tables, values, chart
