"""What is measured of one expected mask: every map and every prompt of section 3.2, once, as a record.

Tables, the list of misaligned cases and the HTML page are made of records alone, without model or data. One image is
measured by the same `measure_target`. Frame: pixels of the image, H x W. Counts are pixels that the target counts; its
pixels of 255 are in none of them. T = 101 thresholds. Source: section 3.2, appendices A.1, B and C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import Base64Bytes, BeforeValidator, Field, FiniteFloat, NonNegativeInt, PlainSerializer

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, Spec, collect_states
from readseg.analysis.cases import Case, TargetMask
from readseg.analysis.map_metrics import (
    Consistency,
    consistency,
    localisation,
    search_thresholds,
    spearman,
)
from readseg.analysis.prompts import PROMPTS, PromptMask
from readseg.analysis.similarity_maps import MAPS, SimilarityMap
from readseg.core import sasp
from readseg.core.masks import IGNORED, Counts, encode_rle, intersection_and_union, union
from readseg.core.token_grid import axes, cells_inside
from readseg.evaluation.predictions import Rle, same_words, words_of
from readseg.inference.segmenter import Segmenter

RECORD = 2
"""What a record holds. It counts up when that changes: no study is made of records of two kinds."""

MISSED = 0.1
"""A case is misaligned where the words are right and the IoU of the model's own mask is below this."""

_ARTICLES = ("the", "a", "an")

Map = Float[np.ndarray, "H W"]


# -- the record --------------------------------------------------------------------------------------------------------


# JSON has no NaN: null stands for it.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
MapName = Annotated[str, Field(pattern=f"^({'|'.join(MAPS)})$")]
PromptName = Annotated[str, Field(pattern=f"^({'|'.join(PROMPTS)})$")]


class PointPrompt(NamedTuple):
    """A point prompt: x and y in image pixels, label 1, 0 or -1."""

    x: FiniteFloat
    y: FiniteFloat
    label: Annotated[int, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class MapScores:
    """What one map knows of its target (`map_metrics.localisation`; NaN without a pixel on the target)."""

    counts: Counts  # at the best threshold for this target (appendix A.1)
    threshold: Number
    pointing: Number
    mass_inside: Number
    auc: Number
    intersections: tuple[NonNegativeInt, ...] = field(default=(), repr=False)  # (T,), empty where they are not kept
    unions: tuple[NonNegativeInt, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Grid:
    """A map before it lies on the image: enough to draw it, not to measure it.

    Pixel (x, y) of the image shows the grid, interpolated between the centres of its cells and constant beyond the
    outermost, at column (x + 0.5 - x0) w / (x1 - x0) - 0.5 and row (y + 0.5 - y0) h / (y1 - y0) - 0.5; 0 outside of
    the box. Where the model rounds (alignment "reference") that is the map to within a pixel.
    """

    hw: tuple[NonNegativeInt, NonNegativeInt]
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # (x0, y0, x1, y1) in image pixels, or beyond
    low: Number  # the least score, which is 0 on the map
    high: Number  # the greatest one, which is 1
    levels: Base64Bytes = field(repr=False)  # h * w bytes in raster order: round(255 v) of the value v on the map


@dataclass(frozen=True)
class MapRecord:
    """One expected mask of one question, and all that is measured of it.

    Maps and prompts are None where there is none of this mask (no [SEG], no words, a constant map), and have no entry
    where they were not asked for or are not available.
    """

    key: str  # of the question, unique within the benchmark
    unit: NonNegativeInt  # which of the question's expected masks, from 0
    image: str  # name of the page: what scores are grouped by
    place: str  # the image's file relative to the folder of all data, or the name of a scene
    section: str
    kind: str
    tags: tuple[str, ...]  # sorted
    size: tuple[NonNegativeInt, NonNegativeInt]  # (H, W)
    question: str  # in the data set's words
    answer: str  # the model's words with its [SEG]
    expected: str | None  # the answer, where the data set has one
    given: bool  # whether the model was given its answer
    segs: NonNegativeInt  # how many [SEG] the answer holds
    places: tuple[NonNegativeInt, ...]  # which of them speak of this mask, from 0
    words: str  # the answer's own words for it
    words_right: bool | None  # whether it names what was asked for; None where that cannot be told
    misaligned: bool  # the words are right and the model's own mask misses the target
    wanted: NonNegativeInt  # pixels on the target
    counted: NonNegativeInt  # pixels that count, on it or not
    maps: Mapping[MapName, MapScores | None] = field(repr=False)
    prompts: Mapping[PromptName, Counts | None] = field(repr=False)
    consistency: Number  # IoU of the masks of the maps "lmm" and "sam" at their best thresholds; NaN without both
    spearman: Number  # rank correlation of the two
    target: Rle = field(repr=False)
    ignored: Rle | None = field(repr=False)  # the pixels that do not count; None where all do
    mask: Rle = field(repr=False)  # the model's own
    points: tuple[PointPrompt, ...] = field(repr=False)  # of the model's own prompt, of all `places`
    # Of the maps that keep them, one for each of `places` that has a map; the map shows their maximum.
    grids: Mapping[MapName, tuple[Grid, ...]] = field(repr=False)

    @property
    def area(self) -> float:
        """Share of the pixels that lie on the target; NaN where none does."""
        return self.wanted / self.counted if self.wanted else math.nan

    @property
    def own_iou(self) -> float:
        """IoU of the model's own mask, 1 where nothing is expected and nothing drawn."""
        return self.prompt_counts("own").iou

    def map_counts(self, name: str) -> Counts:
        """Counts of a map's mask at its best threshold; where there is no map those of an empty mask."""
        scores = self.maps[name]
        return Counts(0, self.wanted) if scores is None else scores.counts

    def prompt_counts(self, name: str) -> Counts:
        """Counts of a prompt's mask; where there is none those of an empty mask."""
        return self.prompts[name] or Counts(0, self.wanted)


@dataclass(frozen=True)
class LayerRecord:
    """What the maps of all layers know of one expected mask."""

    key: str
    unit: NonNegativeInt
    image: str
    segs: NonNegativeInt
    wanted: NonNegativeInt
    counted: NonNegativeInt
    layers: tuple[MapScores | None, ...] = field(repr=False)


# -- one target of an answer -------------------------------------------------------------------------------------------


class MapResult(NamedTuple):
    """The maps of a target's [SEG], their pixelwise maximum, and what it knows of the target."""

    maps: tuple[SimilarityMap, ...]  # none where there is no such map at all
    map: Map | None  # (H, W); None where all of them are constant
    scores: MapScores | None  # None without a map, or without a target to hold it against


@dataclass(frozen=True, eq=False)
class TargetResult:
    """All that is measured of one target of an answer, by the names of the available `MAPS` and `PROMPTS`."""

    words: str  # the answer's own for it
    maps: Mapping[str, MapResult]
    masks: Mapping[str, PromptMask | None]  # None where no [SEG] speaks of the target
    spearman: float  # of the maps "lmm" and "sam"; NaN where one is missing
    consistency: float  # of their masks at their best thresholds; NaN also where maps are held against no target


def compute_all(states: AnswerStates, specs: Mapping[str, Spec]) -> dict[str, Sequence[Any]]:
    """What is available of `MAPS` or `PROMPTS`, by name: first those of each [SEG], then those of each target."""
    available = [
        name for name, spec in specs.items() if not spec.requires or getattr(states.options, spec.requires) is not None
    ]
    return {name: specs[name].compute(states) for name in sorted(available, key=lambda name: specs[name].per_target)}


def measure_target(
    states: AnswerStates,
    maps: Mapping[str, Sequence[SimilarityMap | None]],
    masks: Mapping[str, Sequence[PromptMask | None]],
    seg_indices: Sequence[int],
    target: Shaped[np.ndarray, "H W"] | None,
    *,
    number: int = 0,
    judge_maps: bool = True,
) -> TargetResult:
    """Measures the maps and the masks of `compute_all` of some [SEG], which speak of the answer's target `number`.

    Several [SEG] have the union of their masks and the pixelwise maximum of their maps. Without a target, or where
    `judge_maps` is False, maps are held against each other only.
    """
    judged = target if judge_maps else None

    def own(spec: Spec, results: Sequence[Any]) -> list[Any]:
        of_target = [results[number]] if spec.per_target else [results[seg] for seg in seg_indices]
        return [one for one in of_target if one is not None]

    map_results = {
        name: measure_maps(own(MAPS[name], results), judged, curves=MAPS[name].keeps_curve)
        for name, results in maps.items()
    }
    lmm, sam = map_results["lmm"].map, map_results["sam"].map
    agreement = Consistency(math.nan, math.nan)
    if lmm is not None and sam is not None and judged is not None:
        agreement = consistency(lmm, sam, judged)
    elif lmm is not None and sam is not None:
        agreement = Consistency(math.nan, spearman(lmm, sam, None if target is None else target != IGNORED))
    phrases = [phrase.text for seg in seg_indices if (phrase := states.phrases[seg]) is not None]
    return TargetResult(
        words=", ".join(dict.fromkeys(phrases)),
        maps=map_results,
        masks={name: _measured_mask(own(PROMPTS[name], results), target) for name, results in masks.items()},
        spearman=agreement.spearman,
        consistency=agreement.iou,
    )


def measure_maps(
    maps: Sequence[SimilarityMap], target: Shaped[np.ndarray, "H W"] | None, *, curves: bool = False
) -> MapResult:
    """The pixelwise maximum of maps, and what it knows of a target; `curves` keeps its counts at all thresholds."""
    values = [one.map for one in maps if one.map is not None]
    value_map = np.maximum.reduce(values) if values else None
    if value_map is None or target is None:
        return MapResult(tuple(maps), value_map, None)
    curve, place = search_thresholds(value_map, target), localisation(value_map, target)
    intersections, unions = curve.intersections.tolist(), curve.unions.tolist()
    counts = Counts(intersections[curve.best], unions[curve.best])
    kept = (tuple(intersections), tuple(unions)) if curves else ()
    scores = MapScores(counts, curve.threshold, place.pointing, place.mass_inside, place.auc, *kept)
    return MapResult(tuple(maps), value_map, scores)


def _measured_mask(masks: Sequence[PromptMask], target: Shaped[np.ndarray, "H W"] | None) -> PromptMask | None:
    if not masks:
        return None
    mask = union([one.mask for one in masks])
    points_xy, labels = (np.concatenate([getattr(one, name) for one in masks]) for name in ("points_xy", "labels"))
    return PromptMask(mask, points_xy, labels, None if target is None else intersection_and_union(mask, target))


# -- a case of a benchmark ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def examine(segmenter: Segmenter, case: Case, options: ExamineOptions | None = None) -> list[MapRecord]:
    """Everything of section 3.2 about one question: a record of each mask that it expects; of a false premise none."""
    if not case.targets:
        return []
    name = case.query.text if case.query.sentence is False else ""
    states = collect_states(segmenter, case.encoded, case.reply, options, case.targets, name)
    maps, masks = compute_all(states, MAPS), compute_all(states, PROMPTS)
    return [
        _record(case, number, states, measure_target(states, maps, masks, one.seg_indices, one.target, number=number))
        for number, one in enumerate(case.targets)
    ]


def _record(case: Case, number: int, states: AnswerStates, result: TargetResult) -> MapRecord:
    query, page, expected, hw = case.query, case.page, case.targets[number], states.frame.hw
    wanted, ignored = int(np.count_nonzero(expected.target == 1)), expected.target == IGNORED
    right = words_right(case, expected, states.result.answer)
    own = result.masks["own"]
    prompts = {name: None if one is None else one.counts for name, one in result.masks.items()}
    points = [] if own is None else zip(own.points_xy, own.labels, strict=True)
    return MapRecord(
        key=query.key,
        unit=number,
        image=page.name,
        place=page.image_id,
        section=page.section,
        kind=query.kind,
        tags=tuple(sorted(query.tags)),
        size=hw,
        question=query.text,
        answer=states.result.answer,
        expected=query.expected,
        given=case.reply.is_forced,
        segs=len(states.seg_positions),
        places=expected.seg_indices,
        words=result.words,
        words_right=right,
        misaligned=right is True and (prompts["own"] or Counts(0, wanted)).iou < MISSED,
        wanted=wanted,
        counted=int(np.count_nonzero(~ignored)),
        maps={name: one.scores for name, one in result.maps.items()},
        prompts=prompts,
        consistency=result.consistency,
        spearman=result.spearman,
        target=encode_rle(expected.target == 1),
        ignored=encode_rle(ignored) if ignored.any() else None,
        mask=encode_rle(np.zeros(hw, bool) if own is None else own.mask),
        points=tuple(PointPrompt(round(float(x), 2), round(float(y), 2), int(label)) for (x, y), label in points),
        grids={
            name: tuple(_grid(states, MAPS[name], one) for one in maps.maps if one.map is not None)
            for name, maps in result.maps.items()
            if MAPS[name].keeps_curve
        },
    )


def words_right(case: Case, expected: TargetMask, answer: str) -> bool | None:
    """Whether an answer is the expected one, or else holds the name that was asked for and a [SEG] for this mask.

    None where that cannot be told: the answer was given to the model, or a whole sentence was asked.
    """
    if case.reply.is_forced:
        return None
    if case.query.expected is not None:
        return same_words(answer, case.query.expected)
    if case.query.sentence is not False:
        return None
    return bool(expected.seg_indices) and contains_name(answer, case.query.text)


def contains_name(answer: str, name: str) -> bool:
    """Whether an answer holds a name: its words, without an article, in their order; in any case.

    >>> contains_name("Sure, the red cup is [SEG].", "a red cup"), contains_name("the red hat [SEG].", "red cup")
    (True, False)
    """
    wanted = words_of(name)
    while len(wanted) > 1 and wanted[0] in _ARTICLES:
        wanted = wanted[1:]
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(words_of(answer))} "


def _grid(states: AnswerStates, spec: Spec, one: SimilarityMap) -> Grid:
    """A map's grid; cells beyond the image take no part in the range of a map that lies exactly on it."""
    frame, inside = states.frame, None
    box = frame.lmm_box
    if spec.in_mask_frame:
        height, width = frame.mask_hw
        box = (0.0, 0.0, frame.width * frame.mask_size / width, frame.height * frame.mask_size / height)
    elif states.points.alignment == "exact":
        inside = cells_inside(axes(frame.hw, "exact", frame.lmm_box), one.grid_hw[0], torch.device("cpu"))
    values = sasp.normalise(torch.from_numpy(one.scores).view(1, *one.grid_hw), inside)[0][0].numpy()
    within = one.scores if inside is None else one.scores[inside.flatten().numpy()]
    levels = np.rint(values * 255).astype(np.uint8).tobytes()
    return Grid(one.grid_hw, box, float(within.min()), float(within.max()), levels)
