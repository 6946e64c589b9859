"""The study of layers: at which layer of the language model does the map of [SEG] find the object? (3.2, appendix B)

    s^k = h_seg^k . h_img^k^T,    k = 0 ... K

Layer 0 are the embeddings, layer k < K is what block k leaves, not normed, layer K is after the final norm and makes
the points (`similarity_maps.layer_maps`). Frame: pixels of the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from PIL import Image

from readseg.analysis.answer_states import ExamineOptions, collect_states
from readseg.analysis.cases import Case, cases_of
from readseg.analysis.page import spread
from readseg.analysis.similarity_maps import layer_maps
from readseg.analysis.studies.map_records import LayerRecord, MapScores, measure_maps
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
from readseg.core.stats import Estimate
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.inference.segmenter import Segmenter
from readseg.viz.charts import Curve, line_chart
from readseg.viz.overlays import contact_sheet, panel, scale_legend, stack
from readseg.viz.tables import Row, Table, printable

EXAMPLES = 3
"""Questions whose maps are drawn."""
MOST_LAYERS = 7
"""Layers that are drawn of each, evenly spread; all of them where there are no more."""

_COLUMNS, _TILE = 4, 300  # pictures side by side, and their width in pixels
_SCORES = {"giou": "gIoU at the best threshold", "pointing": "pointing", "auc": "AUC"}


LayerStudy = ModelStudy[LayerRecord]


def layers_of(study: LayerStudy) -> list[int]:
    """0 ... K; none where there is no record."""
    return list(range(len(study.records[0].layers))) if study.records else []


@torch.inference_mode()
def measure_layers(segmenter: Segmenter, case: Case, options: ExamineOptions | None = None) -> list[LayerRecord]:
    """The maps of all layers of one question, measured against each mask that it expects.

    A mask of several [SEG] ("union") has the pixelwise maximum of their maps.
    """
    if not case.targets:
        return []
    states = collect_states(segmenter, case.encoded, case.reply, options or ExamineOptions())
    scores: list[list[MapScores | None]] = [[] for _ in case.targets]
    for layer in range(states.num_layers + 1):  # one after the other: maps of all layers would fill the memory
        maps = layer_maps(states, layer)
        for of_target, target in zip(scores, case.targets, strict=True):
            of_target.append(measure_maps([maps[seg] for seg in target.seg_indices], target.target).scores)
    return [
        LayerRecord(
            key=case.query.key,
            unit=number,
            image=case.page.name,
            segs=len(target.seg_indices),
            wanted=int(np.count_nonzero(target.target == 1)),
            counted=int(np.count_nonzero(target.target != IGNORED)),
            layers=tuple(scores[number]),
        )
        for number, target in enumerate(case.targets)
    ]


def examples(study: LayerStudy, count: int) -> list[LayerRecord]:
    """Some records to look at: the first one with a [SEG] of each image, evenly spread over these.

    Nothing is picked by how well a map does.
    """
    first: dict[str, LayerRecord] = {}
    for record in study.records:
        if record.segs:
            first.setdefault(record.image, record)
    records = list(first.values())
    return [records[k * len(records) // count] for k in range(count)] if len(records) > count else records


def layer_table(studies: Sequence[LayerStudy]) -> Table:
    """What the map of each layer knows; with several models a group of rows for each."""
    rows = []
    notes = [*MAP_RULES, "layer 0: the embeddings; the last layer is after the final norm, the others are not normed"]
    for study in studies:
        group = study.name if len(studies) > 1 else ""
        for layer in layers_of(study):
            cells = map_cells(study.records, [record.layers[layer] for record in study.records])
            rows.append(Row(_layer_name(study, layer), cells, group))
        rows.append(Row(WHOLE, area_cells(study.records), group))
        if without := sum(not record.segs for record in study.records):
            prefix = f"{printable(study.name)}: " if group else ""
            notes.append(f"{prefix}{without} of {len(study.records)} masks: the answer holds no [SEG] for them")
    title = titled("The maps of all layers", studies)
    return Table(title, "layer", MAP_COLUMNS, rows, [*notes, WHOLE_NOTE, *coverage(studies)])


def run(context: StudyContext, options: NoOptions) -> StudyOutput:
    """Records, the table, the curve, and the maps of some questions layer by layer."""
    studies, pictures = [], {}
    for model in context.models:
        examine = ExamineOptions(*context.points(model.segmenter))
        settings = {**model.settings, "points": asdict(examine.points or model.segmenter.model.config.points)}
        benchmark = context.benchmark
        records = context.measure(
            model, partial(_measure_page, model.segmenter, benchmark, examine), LayerRecord, "layers", settings
        )
        studies.append(LayerStudy(model.name, records, benchmark.protocol, context.about, benchmark.name))
        drawn = _picture(context, model, examine, studies[-1])
        if drawn is not None:
            pictures["maps" if len(context.models) == 1 else f"maps-{context.folder_of(model).name}"] = drawn
    table = layer_table(studies)
    return StudyOutput([table], {"": _chart(context, studies, table), **pictures})


def _measure_page(
    segmenter: Segmenter, benchmark: Benchmark, options: ExamineOptions, page: ImageQuestions
) -> list[LayerRecord]:
    cases = cases_of(segmenter, benchmark, page)
    return [record for case in cases for record in measure_layers(segmenter, case, options)]


def _chart(context: StudyContext, studies: Sequence[LayerStudy], table: Table) -> Image.Image:
    """One model: its three scores over the layers. Several: the gIoU of each."""
    single = len(studies) == 1
    curves = []
    for study in studies:
        rows = [row for row in table.rows if row.group == ("" if single else study.name) and "layer" in row.name]
        for column, heading in _SCORES.items() if single else [("giou", study.name)]:
            scores = [score for row in rows if isinstance(score := row.cells[column], Estimate)]
            curves.append(Curve(heading, range(len(rows)), scores))
    name = f"{studies[0].name} on {context.benchmark.name}" if single else context.benchmark.name
    return line_chart(
        curves,
        title=f"At which layer does the map of [SEG] find the object? {name}",
        x_label="layer of the language model (0: embeddings; the last one after the final norm)",
        y_label="score over masks" if single else _SCORES["giou"],
        share=True,
        note=f"{len(studies[0].records)} masks; bands: 95% intervals over images. Best thresholds know the truth.",
    )


def _picture(
    context: StudyContext, model: StudyModel, examine: ExamineOptions, study: LayerStudy
) -> Image.Image | None:
    """Some questions, a row for each: image with the truth, then the map of each layer with its IoU."""
    sheets = []
    for record in examples(study, EXAMPLES):
        page = context.benchmark[context.benchmark.names.index(record.image)]
        with warnings.catch_warnings():  # the study has said once what the model does not see
            warnings.simplefilter("ignore")
            cases = cases_of(model.segmenter, context.benchmark, page)
        case = next(case for case in cases if case.query.key == record.key)
        states = collect_states(model.segmenter, case.encoded, case.reply, examine)
        image, target = case.encoded.image, case.targets[record.unit].target
        panels = [panel(image, side=_TILE, mask=target == 1, ignored=target == IGNORED)]
        captions = [f"{case.query.text} - {states.result.answer} (outlined: the truth)"]
        for layer in spread(layers_of(study), MOST_LAYERS):
            maps = layer_maps(states, layer)
            value_map = measure_maps([maps[seg] for seg in case.targets[record.unit].seg_indices], None).map
            drawn = np.zeros(target.shape, np.float32) if value_map is None else value_map
            panels.append(panel(image, side=_TILE, value_map=drawn))
            scores = record.layers[layer]
            iou = "no map" if scores is None else f"IoU {scores.counts.iou:.2f} at t = {scores.threshold:.2f}"
            captions.append(f"{_layer_name(study, layer)}: {iou}")
        sheets.append(contact_sheet(panels, captions, columns=_COLUMNS, tile=_TILE))
    return stack([*sheets, scale_legend(2 * _TILE, 20)]) if sheets else None


def _layer_name(study: LayerStudy, layer: int) -> str:
    return f"layer {layer}{' (last)' if layer == layers_of(study)[-1] else ''}"


STUDY = Study("layers", NoOptions, run, takes_points=True)
