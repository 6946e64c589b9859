"""The layer sweep: at which layer of the language model does the map of [SEG] find the object?

    s^k = h_seg^k . h_img^k^T,    k = 0 ... K

Layer 0 are the embeddings, layer k < K is what block k leaves, not normed, layer K is after the final norm and makes
the points (`similarity_maps.layer_maps`). Frame: pixels of the image.

Source: section 3.2, appendix B.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import NonNegativeInt

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, collect_states
from readseg.analysis.cases import Case, TargetMask, cases_of
from readseg.analysis.similarity_maps import layer_maps
from readseg.analysis.studies.map_records import MapScores, iou_of, maximum_of, measure_maps
from readseg.analysis.studies.maps import (
    MAP_COLUMNS,
    MAP_RULES,
    WHOLE,
    WHOLE_NOTE,
    ModelStudy,
    area_cells,
    coverage,
    map_cells,
    titled,
)
from readseg.analysis.study import NoOptions, Study, StudyContext, StudyModel, StudyOutput
from readseg.core.masks import IGNORED
from readseg.core.sasp import PointConfig
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.run import run_study
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.charts import Curve, line_chart
from readseg.viz.overlays import contact_sheet, panel, scale_legend, stack
from readseg.viz.tables import Row, Table, printable


@dataclass(frozen=True)
class Layered:
    """What the maps of all layers know of one expected mask."""

    key: str
    unit: NonNegativeInt
    image: str
    segs: NonNegativeInt
    wanted: NonNegativeInt
    counted: NonNegativeInt
    layers: tuple[MapScores | None, ...] = field(repr=False)


class Sweep(ModelStudy[Layered]):
    """What a study of layers measured of one model."""

    @property
    def layers(self) -> list[int]:
        """0 ... K; none where there is no record."""
        return list(range(len(self.records[0].layers))) if self.records else []


@torch.inference_mode()
def sweep(
    segmenter: Segmenter, case: Case, *, prompt: Prompt | None = None, points: PointConfig | None = None
) -> list[Layered]:
    """The maps of all layers of one question, measured against each mask that it expects.

    A mask of several [SEG] ("union") has the pixelwise maximum of their maps.
    """
    if not case.targets:
        return []
    states = collect_states(segmenter, case.encoded, case.reply, ExamineOptions(prompt, points))
    found: list[list[MapScores | None]] = [[] for _ in case.targets]
    for layer in range(states.num_layers + 1):  # one after the other: maps of all layers would fill the memory
        maps = layer_maps(states, layer)
        for scores, unit in zip(found, case.targets, strict=True):
            scores.append(measure_maps([maps[seg] for seg in unit.seg_indices], unit.target).scores)
    return [
        Layered(
            key=case.query.key,
            unit=number,
            image=case.page.name,
            segs=len(unit.seg_indices),
            wanted=int(np.count_nonzero(unit.target == 1)),
            counted=int(np.count_nonzero(unit.target != IGNORED)),
            layers=tuple(found[number]),
        )
        for number, unit in enumerate(case.targets)
    ]


def unit_maps(states: AnswerStates, targets: Sequence[TargetMask], layer: int) -> list[np.ndarray | None]:
    """The map (H, W) of one layer for each expected mask; None where there is none."""
    maps = layer_maps(states, layer)
    return [maximum_of([maps[seg] for seg in target.seg_indices]) for target in targets]


def spread(layers: Sequence[int], most: int) -> list[int]:
    """At most so many layers, the first and the last among them, evenly spread.

    >>> spread(range(33), 5)
    [0, 8, 16, 24, 32]
    """
    if len(layers) <= most:
        return list(layers)
    return [layers[round(k * (len(layers) - 1) / (most - 1))] for k in range(most)]


def samples(found: Sweep, count: int) -> list[Layered]:
    """Some records to look at: the first one with a [SEG] of each image, evenly spread over these.

    Nothing is picked by how well a map does.
    """
    first: dict[str, Layered] = {}
    for record in found.records:
        if record.segs:
            first.setdefault(record.image, record)
    there = list(first.values())
    return [there[k * len(there) // count] for k in range(count)] if len(there) > count else there


def layer_table(sweeps: Sequence[Sweep]) -> Table:
    """What the map of each layer knows; with several models a group of rows for each."""
    rows = []
    notes = [*MAP_RULES, "layer 0: the embeddings; the last layer is after the final norm, the others are not normed"]
    for one in sweeps:
        group = one.name if len(sweeps) > 1 else ""
        for layer in one.layers:
            last = " (last)" if layer == one.layers[-1] else ""
            cells = map_cells(one.records, [record.layers[layer] for record in one.records])
            rows.append(Row(f"layer {layer}{last}", cells, group))
        rows.append(Row(WHOLE, area_cells(one.records), group))
        prefix = f"{printable(one.name)}: " if group else ""
        without = sum(not record.segs for record in one.records)
        if without:
            notes.append(f"{prefix}{without} of {len(one.records)} masks: the answer holds no [SEG] for them")
    notes += [WHOLE_NOTE, *coverage(sweeps)]
    title = titled("The maps of all layers", sweeps)
    return Table(title, "layer", MAP_COLUMNS, rows, notes)


SAMPLES = 3
"""Questions whose maps are drawn."""
MOST_LAYERS = 7
"""Layers that are drawn of each, evenly spread; all of them where there are no more."""

_COLUMNS, _TILE = 4, 300  # pictures side by side, and their width in pixels

_SCORES = {"giou": "gIoU at the best threshold", "pointing": "pointing", "auc": "AUC"}


def run(context: StudyContext, options: NoOptions) -> StudyOutput:
    """Records, the table, the curve, and the maps of some questions layer by layer."""
    sweeps, pictures = [], {}
    for model in context.models:
        found = _look(context, model)
        sweeps.append(found)
        drawn = _picture(context, model, found)
        if drawn is not None:
            pictures["maps" if len(context.models) == 1 else f"maps-{context.folder_of(model).name}"] = drawn
    table = layer_table(sweeps)
    return StudyOutput([table], {"": _chart(context, sweeps, table), **pictures})


def _look(context: StudyContext, model: StudyModel) -> Sweep:
    """What the layers' maps know of every expected mask, from disk where it was measured before."""
    segmenter, folder = model.segmenter, context.folder_of(model)
    prompt, chosen = context.points(segmenter)

    def measure(page: ImageQuestions) -> list[Layered]:
        cases = cases_of(segmenter, context.benchmark, page)
        return [record for case in cases for record in sweep(segmenter, case, prompt=prompt, points=chosen)]

    settings = {**model.settings, "points": asdict(chosen or segmenter.model.config.points)}
    study = run_study(
        context.benchmark,
        measure,
        Layered,
        name="layers",
        settings=settings,
        folder=folder,
        limit=context.limit,
        progress=True,
    )
    return Sweep(model.name, study.records, str(study.settings["protocol"]), study.about, context.benchmark.name)


def _chart(context: StudyContext, sweeps: Sequence[Sweep], table: Table) -> Image.Image:
    """One model: its three scores over the layers. Several: the gIoU of each."""
    single = len(sweeps) == 1
    scores = _SCORES if single else {"giou": _SCORES["giou"]}
    curves = []
    for one in sweeps:
        rows = [row for row in table.rows if row.group == ("" if single else one.name) and "layer" in row.name]
        for column, heading in scores.items():
            curves.append(_curve(heading if single else one.name, [row.cells[column] for row in rows]))
    name = f"{sweeps[0].name} on {context.benchmark.name}" if single else context.benchmark.name
    return line_chart(
        curves,
        title=f"At which layer does the map of [SEG] find the object? {name}",
        x_label="layer of the language model (0: embeddings; the last one after the final norm)",
        y_label="score over masks" if single else _SCORES["giou"],
        y_limits=(0.0, 1.0),
        note=f"{len(sweeps[0].records)} masks; bands: 95% intervals over images. Best thresholds know the truth.",
    )


def _curve(name: str, cells: Sequence[Any]) -> Curve:

    return Curve(
        name,
        list(range(len(cells))),
        [cell.value for cell in cells],
        [cell.low for cell in cells],
        [cell.high for cell in cells],
    )


def _picture(context: StudyContext, model: StudyModel, found: Sweep) -> Image.Image | None:
    """Some questions, a row for each: image with the truth, then the map of each layer with its IoU."""
    segmenter = model.segmenter
    prompt, chosen = context.points(segmenter)
    layers = spread(found.layers, MOST_LAYERS)
    numbers = {name: number for number, name in enumerate(context.benchmark.names)}
    sheets = []
    for record in samples(found, SAMPLES):
        page = context.benchmark[numbers[record.image]]
        with warnings.catch_warnings():  # the study has said once what the model does not see
            warnings.simplefilter("ignore")
            cases = cases_of(segmenter, context.benchmark, page)
        case = next(case for case in cases if case.query.key == record.key)
        states = collect_states(segmenter, case.encoded, case.reply, ExamineOptions(prompt, chosen))
        image, target = case.encoded.image, case.targets[record.unit].target
        panels = [panel(image, side=_TILE, mask=target == 1, ignored=target == IGNORED)]
        captions = [f"{case.query.text} - {states.result.answer} (outlined: the truth)"]
        for layer in layers:
            scores = record.layers[layer]
            one = unit_maps(states, case.targets, layer)[record.unit]
            drawn = np.zeros(target.shape, np.float32) if one is None else one
            panels.append(panel(image, side=_TILE, value_map=drawn))
            last = " (last)" if layer == found.layers[-1] else ""
            told = "no map" if scores is None else f"IoU {iou_of(scores.counts):.2f} at t = {scores.threshold:.2f}"
            captions.append(f"layer {layer}{last}: {told}")
        sheets.append(contact_sheet(panels, captions, columns=_COLUMNS, tile=_TILE))
    return stack([*sheets, scale_legend(2 * _TILE, 20)]) if sheets else None


STUDY = Study("layers", NoOptions, run, takes_points=True)
