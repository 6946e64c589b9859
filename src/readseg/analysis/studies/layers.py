"""The layer sweep: at which layer of the language model does the map of [SEG] find the object?

    s^k = h_seg^k . h_img^k^T,    k = 0 ... K

Layer 0 are the embeddings, layer k < K is what block k leaves, not normed, layer K is after the final norm and makes
the points (`maps.layer_maps`). Frame: pixels of the image.

Source: section 3.2, appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from readseg.analysis.cases import Case, Unit
from readseg.analysis.similarity_maps import Reading, layer_maps, read_reply
from readseg.analysis.studies.examine import map_of, scores_of
from readseg.analysis.studies.maps import (
    MAP_COLUMNS,
    MAP_RULES,
    WHOLE,
    WHOLE_NOTE,
    area_cells,
    coverage,
    map_cells,
    titled,
)
from readseg.analysis.studies.measures import MapScores
from readseg.core.masks import IGNORED
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.tables import Row, Table, plain, printable


@dataclass(frozen=True)
class Layered:
    """What the maps of all layers know of one expected mask.

    Attributes:
        key: of the question, unique within the benchmark.
        unit: which of the question's expected masks, from 0.
        image: name of the page: what scores are grouped by.
        segs: how many [SEG] speak of this mask.
        wanted: pixels on the target.
        counted: pixels that count, on the target or not.
        layers: of layers 0 ... K; None where there is no such map: no [SEG], or constant scores.
    """

    key: str
    unit: int
    image: str
    segs: int
    wanted: int
    counted: int
    layers: tuple[MapScores | None, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, NaN as null."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    @classmethod
    def from_json(cls, record: Any) -> Layered:
        """Reads back what `to_json` wrote.

        Raises:
            ReadsegError: it is not what a study of layers records.
        """
        try:
            numbers = {name: record[name] for name in ("unit", "segs", "wanted", "counted")}
            texts = {name: record[name] for name in ("key", "image")}
            if not all(type(value) is int and value >= 0 for value in numbers.values()):
                raise ValueError
            if not all(isinstance(value, str) for value in texts.values()):
                raise ValueError
            layers = [None if value is None else MapScores.from_json(value) for value in record["layers"]]
            return cls(**texts, **numbers, layers=tuple(layers))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ReadsegError(
                f"expected what a study of layers measures, got {record!r:.60}: the record is damaged or of another "
                "version"
            ) from error


@dataclass(frozen=True)
class Sweep:
    """What a study of layers found for one model.

    Attributes:
        name: the model's.
        records: one for each expected mask, in the benchmark's order.
        protocol: of `benchmarks.Protocol`.
        about: of the study: how many images of how many.
        benchmark: its name, for the title.
    """

    name: str
    records: Sequence[Layered] = field(repr=False)
    protocol: str
    about: Mapping[str, Any] = field(default_factory=dict)
    benchmark: str = ""

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

    Args:
        segmenter: the model.
        case: of `cases.cases_of`.
        prompt: of the mask decoder, which plays no part here.
        points: whose alignment lays the map on the image.

    Raises:
        ReadsegError: as `maps.read_reply`, or a target is not of the image's size.
    """
    if not case.units:
        return []
    reading = read_reply(segmenter, case.encoded, case.reply, prompt=prompt, points=points)
    found: list[list[MapScores | None]] = [[] for _ in case.units]
    for layer in range(reading.num_layers + 1):  # one after the other: maps of all layers would fill the memory
        for scores, unit, one in zip(found, case.units, unit_maps(reading, case.units, layer), strict=True):
            scores.append(scores_of(one, unit.target))
    return [
        Layered(
            key=case.query.key,
            unit=number,
            image=case.page.name,
            segs=len(unit.places),
            wanted=int(np.count_nonzero(unit.target == 1)),
            counted=int(np.count_nonzero(unit.target != IGNORED)),
            layers=tuple(found[number]),
        )
        for number, unit in enumerate(case.units)
    ]


def unit_maps(reading: Reading, units: Sequence[Unit], layer: int) -> list[np.ndarray | None]:
    """The map (H, W) of one layer for each expected mask; None where there is none.

    Raises:
        ReadsegError: there is no such layer.
    """
    maps = layer_maps(reading, layer)
    return [map_of([maps[place] for place in unit.places]) for unit in units]


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
    notes += [WHOLE_NOTE, *coverage([(one.name, one.records, one.about, one.protocol) for one in sweeps])]
    title = titled("The maps of all layers", [(one.benchmark, one.name) for one in sweeps])
    return Table(title, "layer", MAP_COLUMNS, rows, notes)
