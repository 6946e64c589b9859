"""The study "layers" of `readseg analyse`: at which layer does the map find the object? A curve, and the maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from readseg.cli.study_maps import PointOptions
from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from PIL import Image

    from readseg.analysis.studies.layers import Sweep
    from readseg.cli.jobs import Job, Model
    from readseg.viz.charts import Curve
    from readseg.viz.tables import Table

NAME = "layers"

SAMPLES = 3
"""Questions whose maps are drawn."""
MOST_LAYERS = 7
"""Layers that are drawn of each, evenly spread; all of them where there are no more."""

_COLUMNS, _TILE = 4, 300  # pictures side by side, and their width in pixels

_SCORES = {"giou": "gIoU at the best threshold", "pointing": "pointing", "auc": "AUC"}


def run(job: Job, points: PointOptions | None = None) -> None:
    """Ask every model; write records, the table, the curve, and the maps of some questions layer by layer.

    Args:
        job: the models and the benchmark.
        points: gives each model its settings of points, whose alignment lays maps on the image.

    Raises:
        ReadsegError: a question, an image or a record cannot be read.
    """
    from readseg.analysis.studies.layers import layer_table
    from readseg.cli.jobs import finish, model_folder

    sweeps, pictures = [], {}
    for model in job.models:
        found = _look(job, model, points)
        sweeps.append(found)
        drawn = _picture(job, model, found, points)
        if drawn is not None:
            pictures["maps" if len(job.models) == 1 else f"maps-{model_folder(job, model).name}"] = drawn
    table = layer_table(sweeps)
    finish(job, NAME, [table], {"": _chart(job, sweeps, table), **pictures})


def _look(job: Job, model: Model, points: PointOptions | None) -> Sweep:
    """What the layers' maps know of every expected mask, from disk where it was measured before."""
    from dataclasses import asdict

    from readseg.analysis.cases import cases_of
    from readseg.analysis.studies.layers import Layered, Sweep, sweep
    from readseg.cli.jobs import model_folder
    from readseg.evaluation.run import RECORDS, run_study

    segmenter, folder = model.segmenter, model_folder(job, model)
    prompt, chosen = (None, None) if points is None else points(segmenter)

    def look(page: Any) -> list[dict[str, Any]]:
        cases = cases_of(segmenter, job.benchmark, page)
        found = (sweep(segmenter, case, prompt=prompt, points=chosen) for case in cases)
        return [record.to_json() for records in found for record in records]

    settings = {**model.settings, "points": asdict(chosen or segmenter.model.config.points)}
    study = run_study(
        job.benchmark, look, dict[str, Any], name=NAME, settings=settings, folder=folder, limit=job.limit, progress=True
    )
    try:
        records = [Layered.from_json(record) for record in study.records]
    except ReadsegError as error:
        raise ReadsegError(f"{folder / RECORDS}: {error}") from error
    return Sweep(model.name, records, str(study.settings["protocol"]), study.about, job.benchmark.name)


def _chart(job: Job, sweeps: Sequence[Sweep], table: Table) -> Image.Image:
    """One model: its three scores over the layers. Several: the gIoU of each."""
    from readseg.viz.charts import line_chart

    single = len(sweeps) == 1
    scores = _SCORES if single else {"giou": _SCORES["giou"]}
    curves = []
    for one in sweeps:
        rows = [row for row in table.rows if row.group == ("" if single else one.name) and "layer" in row.name]
        for column, heading in scores.items():
            curves.append(_curve(heading if single else one.name, [row.cells[column] for row in rows]))
    name = f"{sweeps[0].name} on {job.benchmark.name}" if single else job.benchmark.name
    return line_chart(
        curves,
        title=f"At which layer does the map of [SEG] find the object? {name}",
        x_label="layer of the language model (0: embeddings; the last one after the final norm)",
        y_label="score over masks" if single else _SCORES["giou"],
        y_limits=(0.0, 1.0),
        note=f"{len(sweeps[0].records)} masks; bands: 95% intervals over images. Best thresholds know the truth.",
    )


def _curve(name: str, cells: Sequence[Any]) -> Curve:
    from readseg.viz.charts import Curve

    return Curve(
        name,
        list(range(len(cells))),
        [cell.value for cell in cells],
        [cell.low for cell in cells],
        [cell.high for cell in cells],
    )


def _picture(job: Job, model: Model, found: Sweep, points: PointOptions | None) -> Image.Image | None:
    """Some questions, a row for each: image with the truth, then the map of each layer with its IoU."""
    import warnings

    import numpy as np

    from readseg.analysis.cases import cases_of
    from readseg.analysis.similarity_maps import read_reply
    from readseg.analysis.studies.layers import samples, spread, unit_maps
    from readseg.analysis.studies.measures import iou_of
    from readseg.core.masks import IGNORED
    from readseg.viz.overlays import contact_sheet, panel, scale_legend, stack

    segmenter = model.segmenter
    prompt, chosen = (None, None) if points is None else points(segmenter)
    layers = spread(found.layers, MOST_LAYERS)
    numbers = {name: number for number, name in enumerate(job.benchmark.names)}
    sheets = []
    for record in samples(found, SAMPLES):
        page = job.benchmark[numbers[record.image]]
        with warnings.catch_warnings():  # the study has said once what the model does not see
            warnings.simplefilter("ignore")
            cases = cases_of(segmenter, job.benchmark, page)
        case = next(case for case in cases if case.query.key == record.key)
        reading = read_reply(segmenter, case.encoded, case.reply, prompt=prompt, points=chosen)
        image, target = case.encoded.image, case.units[record.unit].target
        panels = [panel(image, side=_TILE, mask=target == 1, ignored=target == IGNORED)]
        captions = [f"{case.query.text} - {reading.result.answer} (outlined: the truth)"]
        for layer in layers:
            scores = record.layers[layer]
            one = unit_maps(reading, case.units, layer)[record.unit]
            drawn = np.zeros(target.shape, np.float32) if one is None else one
            panels.append(panel(image, side=_TILE, value_map=drawn))
            last = " (last)" if layer == found.layers[-1] else ""
            told = "no map" if scores is None else f"IoU {iou_of(scores.counts):.2f} at t = {scores.threshold:.2f}"
            captions.append(f"layer {layer}{last}: {told}")
        sheets.append(contact_sheet(panels, captions, columns=_COLUMNS, tile=_TILE))
    return stack([*sheets, scale_legend(2 * _TILE, 20)]) if sheets else None
