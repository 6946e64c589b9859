"""The numbers of one image as tables: what each map knows of the truth, and how the masks of all prompts compare."""

from __future__ import annotations

import math
from collections.abc import Iterator

from readseg.analysis.studies.measures import MAPS, PROMPTS, iou_of
from readseg.analysis.studies.single_image import ImageFound, MapFound, ModelFound, SegFound
from readseg.viz.tables import Cell, Row, Table

_SHORT = {
    "own": "own",
    "both": "both",
    "seg": "[SEG]",
    "points": "points",
    "plain_points": "SAM",
    "plain_extremes": "extremes",
}
_COLUMNS = {"iou": "IoU", "threshold": "threshold", "pointing": "pointing", "mass": "mass inside", "auc": "AUC"}
_BOUND = (
    "Each map is taken at the threshold that suits the truth best: a bound, no score of a mask that a user would see"
)


def tables_of(found: ImageFound) -> list[Table]:
    """The tables of one image: masks always, maps where there is something to find; none for answers without [SEG]."""
    if not any(model.segs for model in found.models):
        return []
    tables = [_masks(found)]
    if found.wanted:
        tables.insert(0, _maps(found))
        if any(seg.layers for model in found.models for seg in model.segs):
            tables.append(_layers(found))
    return tables


def _segs(found: ImageFound) -> Iterator[tuple[str, ModelFound, SegFound]]:
    """Every [SEG] with its model and the name of its group of rows."""
    for model in found.models:
        for place, seg in enumerate(model.segs, start=1):
            yield model.name if len(model.segs) == 1 else f"{model.name}, [SEG] {place}", model, seg


def _maps(found: ImageFound) -> Table:
    rows = [Row(MAPS[name], _map_cells(one), group) for group, _, seg in _segs(found) for name, one in seg.maps.items()]
    return Table("Where the maps look", "map", _COLUMNS, rows, [_BOUND, *_notes(found)])


def _layers(found: ImageFound) -> Table:
    rows = [
        Row(f"layer {layer}", _map_cells(one), group)
        for group, _, seg in _segs(found)
        for layer, one in enumerate(seg.layers)
    ]
    return Table("The map at each layer of the language model", "layer", _COLUMNS, rows, [_BOUND])


def _map_cells(one: MapFound) -> dict[str, Cell]:
    scores = one.scores
    if scores is None:
        return {}
    return {
        "iou": iou_of(scores.counts),
        "threshold": scores.threshold,
        "pointing": scores.pointing,
        "mass": scores.mass_inside,
        "auc": scores.auc,
    }


def _masks(found: ImageFound) -> Table:
    rows = []
    notes = []
    for group, model, seg in _segs(found):
        for kind, one in seg.masks.items():
            if kind == model.prompt:
                continue  # the same mask as its own
            cells: dict[str, Cell] = {"share": float(one.mask.mean())}
            if one.counts is not None:
                cells["iou"] = iou_of(one.counts)
            for (first, second), value in seg.agreement.items():
                if kind in (first, second):
                    cells[second if kind == first else first] = value
            rows.append(Row(f"own: {PROMPTS[model.prompt]}" if kind == "own" else PROMPTS[kind], cells, group))
        if not math.isnan(seg.spearman):
            told = "rank correlation of the maps of the language model and of the mask decoder"
            notes.append(f"{group}: {told} {seg.spearman:.3f}")
    columns = {"share": "of the image"} | ({"iou": "IoU"} if found.truths else {})
    columns |= {kind: _SHORT[kind] for kind in _SHORT if any(kind in row.cells for row in rows)}
    return Table(
        title="The masks of each prompt: how much of the image, IoU with the truth, and with each other's masks",
        first="prompt",
        columns=columns,
        rows=rows,
        notes=[*notes, *_notes(found)],
    )


def _notes(found: ImageFound) -> list[str]:
    if len(found.truths) > 1:
        return ["The k-th [SEG] is held against the k-th truth"]
    if found.truths and any(len(model.segs) > 1 for model in found.models):
        return ["The truth is one mask: each [SEG] is held against all of it"]
    return []
