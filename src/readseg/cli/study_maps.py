"""The study "maps" of `readseg analyse`: the tables of section 3.2, the misaligned cases, and a page to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from readseg.analysis.studies.maps import Examined
    from readseg.cli.jobs import Job, Model
    from readseg.core.sasp import PointConfig
    from readseg.evaluation.run import StudyResult
    from readseg.inference.segmenter import Segmenter
    from readseg.model.config import Prompt
    from readseg.viz.tables import Table

NAME = "maps"
MISALIGNED, PAGE = "misaligned.md", "report.html"

PointOptions = Callable[["Segmenter"], "tuple[Prompt | None, PointConfig | None]"]
"""What prompts a model's own masks, and how points are chosen, where options say so (`options.point_options`)."""


def run(
    job: Job,
    points: PointOptions | None = None,
    sam: str | None = None,
    clip: str | None = None,
    extremes: int | None = None,
) -> None:
    """Ask every model; write records, tables, misaligned cases and the page.

    Args:
        job: the models and the benchmark.
        points: gives each model its prompt and its settings of points; by default the model's own.
        sam: where the original SAM is (`plain_sam`); by default beside each model's own weights.
        clip: folder or hub id of a CLIP with a text encoder; without one its map is left out.
        extremes: k of the prompt "plain_extremes".

    Raises:
        ReadsegError: a question, an image, a SAM, a CLIP or a record cannot be read.
    """
    import typer

    from readseg.analysis.studies.maps import misaligned_table, tables
    from readseg.cli.jobs import finish, model_folder
    from readseg.core.io import atomic_write
    from readseg.viz.tables import to_markdown

    examined = []
    written = []
    for model in job.models:
        study = _look(job, model, points, sam, clip, extremes)
        one = _examined(job, model, study)
        examined.append(one)
        folder = model_folder(job, model)
        with atomic_write(folder / MISALIGNED) as place:
            place.write_text(to_markdown(misaligned_table(one)), encoding="utf-8", errors="replace")
        _write_page(job, one, study, folder / PAGE)
        written += [str(folder / name) for name in (MISALIGNED, PAGE)]
    finish(job, NAME, tables(examined), {})
    typer.echo(f"to look at: {', '.join(written)}")


def _examined(job: Job, model: Model, study: StudyResult[dict[str, Any]]) -> Examined:
    """A study's records, read."""
    from readseg.analysis.studies.maps import Examined
    from readseg.analysis.studies.measures import Measured
    from readseg.cli.jobs import model_folder
    from readseg.evaluation.run import RECORDS

    try:
        records = [Measured.from_json(record) for record in study.records]
    except ReadsegError as error:
        raise ReadsegError(f"{model_folder(job, model) / RECORDS}: {error}") from error
    own = study.settings["prompt"] or model.segmenter.model.config.prompt
    protocol, benchmark = str(study.settings["protocol"]), job.benchmark.name
    return Examined(model.name, records, protocol, study.about, own, _missing(study), benchmark)


def _look(
    job: Job, model: Model, points: PointOptions | None, sam: str | None, clip: str | None, extremes: int | None
) -> StudyResult[dict[str, Any]]:
    """What is recorded of every expected mask, from disk where it was measured before."""
    from readseg.analysis.cases import cases_of
    from readseg.analysis.clip import load_clip
    from readseg.analysis.looks import EXTREMES
    from readseg.analysis.original_sam import plain_sam
    from readseg.analysis.studies.examine import Means, examine
    from readseg.analysis.studies.measures import RECORD
    from readseg.checkpoints.load import digest
    from readseg.cli.jobs import model_folder
    from readseg.evaluation.run import run_study

    segmenter = model.segmenter
    prompt, chosen = (None, None) if points is None else points(segmenter)
    plain = plain_sam(segmenter, sam)
    pair = None if clip is None else load_clip(clip, segmenter.model.device)
    means = Means(prompt, chosen, plain, pair, extremes or EXTREMES)
    settings = {
        **model.settings,
        "prompt": prompt,
        "points": asdict(chosen or segmenter.model.config.points),
        "original_sam": None if plain is None else digest([plain.mask_decoder]),
        "clip": None if pair is None else digest([pair[0]]),
        "extremes": means.extremes,
        "record": RECORD,
    }

    def look(page: Any) -> list[dict[str, Any]]:
        found = (examine(segmenter, case, means) for case in cases_of(segmenter, job.benchmark, page))
        return [record.to_json() for records in found for record in records]

    return run_study(
        job.benchmark,
        look,
        dict[str, Any],
        name=NAME,
        settings=settings,
        folder=model_folder(job, model),
        limit=job.limit,
        progress=True,
    )


def _missing(study: StudyResult[dict[str, Any]]) -> dict[str, str]:
    """What was not measured, and why."""
    missing = {}
    if study.settings["clip"] is None:
        missing["clip"] = (
            "it needs a CLIP with a text encoder (--clip); the vision tower inside a model of this family has none"
        )
    if study.settings["original_sam"] is None:
        why = "the original SAM is not beside the model (--sam)"
        missing |= dict.fromkeys(("plain_points", "plain_extremes", "plain_truth"), why)
    return missing


def _write_page(job: Job, examined: Examined, study: StudyResult[dict[str, Any]], path: Path) -> None:
    """The page with all units, and pictures of some."""
    from rich.console import Console
    from rich.progress import track

    from readseg.analysis.page import PageData, page_case, picked, write_page
    from readseg.analysis.studies.maps import tables
    from readseg.core.images import load_image

    records = examined.records
    shown = set(picked([record.own_iou for record in records], [record.misaligned for record in records]))
    numbers = {name: number for number, name in enumerate(job.benchmark.names)}
    cases = []
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for place, record in enumerate(track(records, "pictures", console=console, disable=hidden, transient=True)):
        picture = load_image(job.benchmark[numbers[record.image]].image) if place in shown else None
        cases.append(page_case(record, examined.name, picture))
    facts = {
        "model": examined.name,
        "benchmark": job.benchmark.name,
        "protocol": examined.protocol,
        "images": f"{study.about['images']} of {study.about['of']}",
        "masks": str(len(records)),
    }
    found: list[Table] = tables([examined])
    write_page(path, PageData(f"Maps of {examined.name} on {job.benchmark.name}", facts, found, cases))
