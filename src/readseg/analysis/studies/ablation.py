"""What points are worth: a model's masks under several prompts, and models that were trained in different ways.

Two kinds of comparison, never mixed in one table; a column says which:

    PROMPTED  one trained model, prompted in different ways: what its mask decoder makes of prompts other than its own
    TRAINED   models trained in different ways, each with its own configuration

What a model says depends on no prompt of its mask decoder. So an image is encoded and its questions are answered once
for all variants (`SharedReplies`), and only masks are made anew. Each variant is a system of `evaluation.run`: its
predictions lie on disk, a killed run goes on, and whoever has them can score them again.

Source: the paper's Table 8 (thresholds and numbers of points) and its ablation of [SEG], discrete points and DtoC.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from readseg.analysis.study import StudyOutput
from readseg.core.sasp import PointConfig
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark
from readseg.evaluation.predictions import Result
from readseg.evaluation.report import PROTOCOLS, difference, summarise
from readseg.evaluation.run import model_system, run_systems
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import DECODE_BATCH, Segmenter
from readseg.model.config import Prompt, ReadConfig
from readseg.viz.charts import Bar, Curve, bar_chart, line_chart
from readseg.viz.tables import Cell, Row, Table

Ablation = Literal["points", "prompt", "alignment"]
"""What is varied: thresholds and numbers of points, what prompts the mask decoder, or where the token grid lies."""

VARIED: Mapping[Ablation, str] = {
    "points": "thresholds and number of points (Table 8)",
    "prompt": "what prompts the mask decoder",
    "alignment": "where the token grid lies",
}
"""In titles."""

PROMPTED, TRAINED = "prompted", "trained"
"""The two kinds of comparison, as their column names them."""

RATIOS = ((0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
"""(t_pos, t_neg) of Table 8."""

NUMBERS = (10, 30, 60)
"""|P| of Table 8: the most points of one [SEG]."""

_SCORES = {"giou": "gIoU", "ciou": "cIoU"}
_PAIRED = "differences are paired: both scores of a bootstrap draw are over the same images"


@dataclass(frozen=True)
class Variant:
    """One way to prompt a model; `own` is that of the model as it was saved, `impossible` says why it cannot be."""

    name: str
    key: str
    prompt: Prompt
    points: PointConfig
    own: bool = False
    impossible: str = ""


@dataclass(frozen=True)
class AblationResult:
    """A model's answers under each variant that is possible, by its key."""

    model: str
    config: ReadConfig
    variants: tuple[Variant, ...]
    results: Mapping[str, Result]

    @property
    def own_variant(self) -> Variant:
        """As the model was saved."""
        return next(variant for variant in self.variants if variant.own)

    @property
    def own(self) -> Result:
        """Prompted as the model was saved."""
        return self.results[self.own_variant.key]


class SharedReplies:
    """A model to `evaluation.run`, with the answers of `Segmenter.segment`; words about the last image are kept."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._encoded: EncodedImage | None = None
        self._replies: dict[tuple[Any, ...], list[ModelAnswer]] = {}

    def segment(
        self,
        image: Image.Image,
        query: Sequence[str],
        *,
        prompt: Prompt | None,
        points: PointConfig | None,
        **asking: Any,
    ) -> list[Segmentation]:
        """Other prompts and points change masks, not words; `asking` are options of `Segmenter.reply`."""
        encoded = self._segmenter.encode(image)
        if encoded is not self._encoded:  # the segmenter gives the same object for the same pixels
            self._encoded, self._replies = encoded, {}
        key = (*query, *asking.items())
        if key not in self._replies:
            self._replies[key] = self._segmenter.reply(encoded, query, **asking)
        batches = [self._replies[key][k : k + DECODE_BATCH] for k in range(0, len(query), DECODE_BATCH)]
        return [s for batch in batches for s in self._segmenter.decode(encoded, batch, prompt=prompt, points=points)]


def ablate(
    segmenter: Segmenter, benchmark: Benchmark, variants: Sequence[Variant], *, name: str,
    settings: Mapping[str, Any] | None = None, folder: Path | None = None, limit: int | None = None,
    progress: bool = False,
) -> AblationResult:  # fmt: skip
    """Asks a model the questions of a benchmark once, and makes the masks of each variant."""
    shared = SharedReplies(segmenter)
    systems = []
    for variant in sorted(variants, key=lambda variant: not variant.own):
        if not variant.impossible:
            system = model_system(shared, benchmark, settings=settings, prompt=variant.prompt, points=variant.points)
            systems.append(dataclasses.replace(system, name=variant.key))
    results = run_systems(systems, benchmark, folder=folder, limit=limit, progress=progress)
    return AblationResult(name, segmenter.model.config, tuple(variants), results)


# -- variants ----------------------------------------------------------------------------------------------------------


def changed_points(config: ReadConfig, **changes: float | str | None) -> PointConfig:
    """A model's settings of points with some of them changed; None leaves one as it is."""
    known: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    try:
        points = dataclasses.replace(config.points, **known)
        config.check_points(points)
    except ValueError as error:
        raise ReadsegError(str(error)) from error
    return points


def point_variants(
    config: ReadConfig,
    points: PointConfig | None = None,
    *,
    ratios: Sequence[tuple[float, float]] = RATIOS,
    numbers: Sequence[int] = NUMBERS,
) -> tuple[Variant, ...]:
    """Table 8: every (t_pos, t_neg) with every number of points; the model's own setting first if not among them."""
    base = dataclasses.replace(points or config.points, threshold="range")
    variants = []
    for t_pos, t_neg in dict.fromkeys(ratios):
        for number in dict.fromkeys(numbers):
            changed = dataclasses.replace(base, t_pos=t_pos, t_neg=t_neg, num_points=number)
            name = f"{t_pos:g}/{t_neg:g}, {number} points"
            variants.append(Variant(name, f"{t_pos}-{t_neg}-{number}", _with_points(config), changed))
    return _with_own(config, variants)


def prompt_variants(config: ReadConfig, points: PointConfig | None = None) -> tuple[Variant, ...]:
    """[SEG] and points, each alone and both together, with discrete points and with continuous ones (DtoC)."""
    base = points or config.points
    discrete, moved = dataclasses.replace(base, dtoc=False), dataclasses.replace(base, dtoc=True)
    variants = [
        Variant("[SEG] only", "seg", "seg", base),
        Variant("points only, discrete", "points-discrete", "points", discrete),
        Variant("points only, DtoC", "points-dtoc", "points", moved),
        Variant("[SEG] and points, discrete", "both-discrete", "both", discrete),
        Variant("[SEG] and points, DtoC", "both-dtoc", "both", moved),
    ]
    return _with_own(config, variants)


def alignment_variants(config: ReadConfig, points: PointConfig | None = None) -> tuple[Variant, ...]:
    """Where the token grid lies on the image: exactly, or rounded as in READ's training.

    The rounding is one of the centre crop: a model with another view cannot be prompted so, and its variant says why.
    """
    variants = []
    for alignment in ("exact", "reference"):
        changed = dataclasses.replace(points or config.points, alignment=alignment)
        reason = ""
        try:
            config.check_points(changed)
        except ValueError as error:
            reason = str(error)
        variants.append(Variant(alignment, alignment, _with_points(config), changed, impossible=reason))
    return _with_own(config, variants)


def _with_points(config: ReadConfig) -> Prompt:
    """The model's own prompt; with points beside [SEG] where it has none."""
    return "both" if config.prompt == "seg" else config.prompt


def _with_own(config: ReadConfig, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants with the model's own setting marked, or put before them where it is none of them."""

    def effective(prompt: Prompt, points: PointConfig) -> tuple[Prompt, PointConfig | None]:
        if points.threshold == "std":  # takes its thresholds from the map
            points = dataclasses.replace(points, t_pos=1.0, t_neg=0.0)
        return prompt, None if prompt == "seg" else points

    own = effective(config.prompt, config.points)
    for k, variant in enumerate(variants):
        if effective(variant.prompt, variant.points) == own and not variant.impossible:
            return (*variants[:k], dataclasses.replace(variant, own=True), *variants[k + 1 :])
    name = describe(config, config.prompt, config.points)
    return (Variant(name, "own", config.prompt, config.points, own=True), *variants)


def cells(config: ReadConfig, points: PointConfig) -> int:
    """How many cells of the token grid a point can come from: (n // downsample)^2, fewer where some lie outside."""
    return (math.isqrt(config.num_image_tokens) // points.downsample) ** 2


def describe(config: ReadConfig, prompt: Prompt, points: PointConfig) -> str:
    """What prompts the mask decoder, in words."""
    if prompt == "seg":
        return "[SEG] only"
    rule = f"{points.t_pos:g}/{points.t_neg:g}" if points.threshold == "range" else "mean +/- std/2"
    side = math.isqrt(cells(config, points))
    return (
        f"{'points only' if prompt == 'points' else '[SEG] and points'}: {rule}, {points.num_points} points of "
        f"{side} x {side} cells, {'DtoC' if points.dtoc else 'discrete'}, {points.alignment}"
    )


# -- tables ------------------------------------------------------------------------------------------------------------


def ablation_output(what: Ablation, models: Sequence[AblationResult]) -> StudyOutput:
    """A table and a picture of each model, and of all of them where there are several."""
    tables = [prompted_table(what, ablation) for ablation in models]
    pictures = [_picture(what, *pair) for pair in zip(models, tables, strict=True)]
    if len(models) > 1:
        tables.append(trained_table(models))
        pictures.append(_bars(tables[-1], tables[-1].title))
    # A picture has the number of its table.
    return StudyOutput(
        tables, {"" if len(pictures) == 1 else str(k): picture for k, picture in enumerate(pictures, start=1)}
    )


def prompted_table(what: Ablation, ablation: AblationResult) -> Table:
    """One trained model, prompted in different ways: a row for each variant, and how far it is from the model's own."""
    own, config = ablation.own, ablation.config
    rows = []
    for variant in ablation.variants:
        row: dict[str, Cell] = {"kind": PROMPTED}
        if what == "points":
            number, limit = variant.points.num_points, cells(config, variant.points)
            row["points"] = (
                "0" if variant.prompt == "seg" else f"{limit} of {number}" if number > limit else f"{number}"
            )
        if not variant.impossible:
            row |= _scored(ablation.results[variant.key], None if variant.own else own)
        rows.append(Row(f"{variant.name}{' (own)' if variant.own else ''}", row, group=ablation.model))
    columns = {"kind": "kind", **({"points": "points"} if what == "points" else {}), **_SCORES}
    columns |= {"giou_gap": "gIoU - own", "ciou_gap": "cIoU - own"}
    words = describe(config, ablation.own_variant.prompt, ablation.own_variant.points)
    notes = [
        f"kind {PROMPTED}: one trained model, prompted in different ways, and not what a model trained so would reach",
        f"(own): as the model was saved, {words}; all that a row does not name is as in it, or as asked for",
        _PAIRED,
        *_notes_on_variants(what, ablation),
        *_notes_on_benchmark(own),
        "all rows say the same words, so that only empty masks change what is answered and refused: "
        + _answer_counts([ablation.results[v.key] for v in ablation.variants if not v.impossible]),
    ]
    title = f"{own.settings['benchmark']}: {VARIED[what]}; one trained model, prompted in different ways"
    return Table(title, "prompt", columns, rows, notes)


def trained_table(models: Sequence[AblationResult]) -> Table:
    """Models trained in different ways, each with its own configuration, beside the first one."""
    first = models[0].own
    rows, same_weights = [], []
    for k, ablation in enumerate(models):
        setting = describe(ablation.config, ablation.own_variant.prompt, ablation.own_variant.points)
        row = {"kind": TRAINED, "setting": setting, **_scored(ablation.own, first if k else None)}
        rows.append(Row(ablation.model, row))
        weights = ablation.own.settings.get("weights")
        same = [other.model for other in models[:k] if weights and other.own.settings.get("weights") == weights]
        if same:  # whose training was the same, whatever this table's title says
            same_weights.append(
                f"{ablation.model} has the weights of {same[0]}: they differ in their configuration only"
            )
    columns = {"kind": "kind", "setting": "own setting", **_SCORES}
    columns |= {"giou_gap": "gIoU - first", "ciou_gap": "cIoU - first"}
    notes = [
        f"kind {TRAINED}: models trained in different ways, each prompted as it was saved; all that their training "
        "differed in, data and steps and seeds too, is in a difference",
        _PAIRED,
        *_notes_on_benchmark(first),
        *(f"{ablation.model}: {_answer_counts([ablation.own])}" for ablation in models),
        *same_weights,
    ]
    return Table(f"{first.settings['benchmark']}: models trained in different ways", "model", columns, rows, notes)


def _scored(result: Result, beside: Result | None) -> dict[str, Cell]:
    """Both scores over true premises, and how far they lie above those of another result."""
    summary = summarise(result.outcomes)
    row: dict[str, Cell] = {"giou": summary["giou"], "ciou": summary["ciou"]}
    if beside is not None:
        row["giou_gap"], row["ciou_gap"] = difference(result.outcomes, beside.outcomes)
    return row


def _notes_on_variants(what: Ablation, ablation: AblationResult) -> list[str]:
    """What a reader must know of what was varied."""
    notes = []
    config, possible = ablation.config, [v for v in ablation.variants if v.prompt != "seg" and not v.impossible]
    if config.prompt == "seg":
        notes.append("this model was trained without points: rows with points are prompts that it never saw")
    if what == "points":
        number, down = cells(config, possible[-1].points), possible[-1].points.downsample
        side, tokens = math.isqrt(number), math.isqrt(config.num_image_tokens)
        notes.append(
            f"points come from {side} x {side} = {number} cells ({tokens} x {tokens} image tokens, downsample {down}), "
            "fewer where a cell lies outside of the image: |P| beyond that is cut to what exists"
        )
    if what == "prompt":
        moved = [_masks_that_differ(ablation, f"{prompt}-discrete", f"{prompt}-dtoc") for prompt in ("points", "both")]
        notes.append(
            "DtoC is a path for gradients in training: with bandwidth 1 it moves a point by hundredths of a pixel, so "
            "that discrete and DtoC rows of a trained model differ by next to nothing; the paper compares models that "
            "were TRAINED with and without it: name such models with several --model"
        )
        notes.append(
            f"masks that differ in any pixel between discrete and DtoC: points only {moved[0]}, [SEG] and points "
            f"{moved[1]}"
        )
    notes += [f"{v.name} is not possible: {v.impossible.rstrip('.')}" for v in ablation.variants if v.impossible]
    return notes


def _masks_that_differ(ablation: AblationResult, first: str, second: str) -> str:
    pairs = [
        masks
        for a, b in zip(ablation.results[first].outcomes, ablation.results[second].outcomes, strict=True)
        for masks in zip(a.masks, b.masks, strict=True)
    ]
    return f"{sum(a != b for a, b in pairs)} of {len(pairs)}"


def _notes_on_benchmark(result: Result) -> list[str]:
    """How answers were made, and over what the scores are."""
    true = [outcome for outcome in result.outcomes if outcome.present]
    masks, images = sum(len(outcome.unions) for outcome in true), len({outcome.image for outcome in true})
    notes = [
        PROTOCOLS[result.settings["protocol"]],
        f"gIoU and cIoU: over {masks} masks of {len(true)} true premises about {images} images; intervals of 95% draw "
        "whole images",
    ]
    sections = dict.fromkeys(outcome.section for outcome in true)
    if len(sections) > 1:
        notes.append(f"all sections of the benchmark together: {', '.join(sections)}")
    about = result.about
    if about.get("left_out"):
        notes.append(
            f"false premises are left out, {about['left_out']} of them: they have no truth under this protocol"
        )
    if about["images"] < about["of"]:
        notes.append(f"a sample: {about['images']} of {about['of']} images")
    return notes


def _answer_counts(results: Sequence[Result]) -> str:
    """What was said, and what comes of empty masks."""

    def span(counts: Sequence[int]) -> str:
        low, high = min(counts), max(counts)
        return str(low) if low == high else f"{low} to {high}"

    first = results[0]
    true = [o for o in first.outcomes if o.present]
    empty = [sum(bool(o.present and not o.said and o.masks) for o in result.outcomes) for result in results]
    counts = [
        f"{sum(not o.masks for o in true)} of {len(true)} true premises were answered without [SEG] (IoU 0)",
        f"answered with [SEG] but with an empty mask: {span(empty)} true premises",
    ]
    if false := sum(outcome.present is False for outcome in first.outcomes):
        refused = [sum(o.present is False and not o.said for o in result.outcomes) for result in results]
        counts.append(f"{span(refused)} of {false} false premises refused")
    return "; ".join(counts)


# -- pictures ----------------------------------------------------------------------------------------------------------


def _picture(what: Ablation, ablation: AblationResult, table: Table) -> Image.Image:
    """Table 8 as a curve for each ratio over |P|; else a bar for each row."""
    title = f"{ablation.model} on {table.title.partition(';')[0]}"
    grid = [variant for variant in ablation.variants if variant.key != "own"]
    several = what == "points" and len({variant.points.num_points for variant in grid}) > 1
    return _curves(ablation, grid, title) if several else _bars(table, title)


def _curves(ablation: AblationResult, grid: Sequence[Variant], title: str) -> Image.Image:
    curves = []
    for t_pos, t_neg in dict.fromkeys((v.points.t_pos, v.points.t_neg) for v in grid):
        variants = [v for v in grid if (v.points.t_pos, v.points.t_neg) == (t_pos, t_neg)]
        variants.sort(key=lambda variant: variant.points.num_points)
        scores = [summarise(ablation.results[v.key].outcomes)["giou"] for v in variants]
        numbers = [v.points.num_points for v in variants]
        curves.append(Curve(f"t_pos/t_neg = {t_pos:g}/{t_neg:g}", numbers, scores))
    own, score = ablation.own_variant, summarise(ablation.own.outcomes)["giou"]
    name, x = ("its own: [SEG] only", 0) if own.prompt == "seg" else ("its own setting", own.points.num_points)
    # On a curve it has that curve's interval.
    curves.append(Curve(name, [x], [score if own.key == "own" else score.value], mark=True))
    note = "one trained model, prompted in different ways; bands and whiskers: 95% intervals over images"
    most = min(cells(ablation.config, v.points) for v in grid)
    if any(v.points.num_points > most for v in grid):
        note += f"; beyond {most} points, all cells that there are, |P| changes nothing"
    return line_chart(curves, title=title, x_label="|P|, the most points of a [SEG]", y_label="gIoU", note=note)


def _bars(table: Table, title: str) -> Image.Image:
    bars = []
    for column, heading in _SCORES.items():
        for row in table.rows:
            score = row.cells.get(column)
            if not isinstance(score, Estimate):  # what is impossible is shown as such
                score = Estimate(math.nan, math.nan, math.nan, 0)
            bars.append(Bar(row.name, score, heading))
    prompted = table.rows[0].cells["kind"] == PROMPTED
    kind = "one trained model, prompted in different ways" if prompted else "models trained in different ways"
    note = f"{kind}; whiskers: 95% intervals over images"
    return bar_chart(bars, title=title, x_label="score over true premises", note=note)
