"""What points are worth: Table 8, and the ablation of [SEG], discrete points and DtoC.

Two kinds of comparison, never mixed in one table; a column says which:

    prompted  one trained model, prompted in different ways: what its mask decoder makes of prompts other than its own
    trained   models trained in different ways, each with its own configuration
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from readseg.analysis.study import StudyOutput
from readseg.core.io import read_yaml
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

_TEXTS = read_yaml(Path(__file__).with_suffix(".yaml"))
PROMPTED, TRAINED = "prompted", "trained"
"""The two kinds of comparison, as their column names them."""

RATIOS = ((0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
"""(t_pos, t_neg) of Table 8."""

NUMBERS = (10, 30, 60)
"""|P| of Table 8: the most points of one [SEG]."""

_SCORES = {"giou": "gIoU", "ciou": "cIoU"}


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
    """A model to `evaluation.run`, with the answers of `Segmenter.segment`; words about the last image are kept.

    What a model says depends on no prompt of its mask decoder: an image is encoded and its questions are answered once
    for all variants, and only masks are made anew.
    """

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


def variants(
    what: Ablation,
    config: ReadConfig,
    *,
    ratios: Sequence[tuple[float, float]] = (),
    numbers: Sequence[int] = (),
    **changes: Any,
) -> tuple[Variant, ...]:
    """The ways to prompt a model: the variants of WHAT, its own setting marked, or first where it is none of them.

    points: every (t_pos, t_neg) with every number of points, Table 8's where left out. prompt: [SEG] and points, each
    alone and both together, with discrete points and with continuous ones (DtoC). alignment: the token grid exactly, or
    rounded as in READ's training. `changes` of the model's settings of points are what all variants share, and so are a
    ratio and a number where these are not varied.
    """
    if what != "points":
        for t_pos, t_neg in ratios[:1]:
            changes |= {"t_pos": t_pos, "t_neg": t_neg, "threshold": "range"}
        changes["num_points"] = numbers[0] if numbers else None
    base = changed_points(config, changes)
    with_points: Prompt = "both" if config.prompt == "seg" else config.prompt
    made = []
    if what == "points":
        for (t_pos, t_neg), number in dict.fromkeys(product(ratios or RATIOS, numbers or NUMBERS)):
            points = dataclasses.replace(base, threshold="range", t_pos=t_pos, t_neg=t_neg, num_points=number)
            name = f"{t_pos:g}/{t_neg:g}, {number} points"
            made.append(Variant(name, f"{t_pos}-{t_neg}-{number}", with_points, points))
    elif what == "prompt":
        made.append(Variant("[SEG] only", "seg", "seg", base))
        prompts: Mapping[Prompt, str] = {"points": "points only", "both": "[SEG] and points"}
        for (prompt, name), how in product(prompts.items(), ("discrete", "DtoC")):
            points = dataclasses.replace(base, dtoc=how == "DtoC")
            made.append(Variant(f"{name}, {how}", f"{prompt}-{how.lower()}", prompt, points))
    else:
        for alignment in ("exact", "reference"):
            points, reason = dataclasses.replace(base, alignment=alignment), ""
            try:
                config.check_points(points)
            except ValueError as error:  # the rounding is one of the centre crop: no other view can have it
                reason = str(error)
            made.append(Variant(alignment, alignment, with_points, points, impossible=reason))
    return _with_own(config, made)


def changed_points(config: ReadConfig, changes: Mapping[str, Any]) -> PointConfig:
    """A model's settings of points with some of them changed; None leaves one as it is."""
    try:
        points = dataclasses.replace(config.points, **{k: value for k, value in changes.items() if value is not None})
        config.check_points(points)
    except ValueError as error:
        raise ReadsegError(str(error)) from error
    return points


def _with_own(config: ReadConfig, made: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants with the model's own setting marked, or put before them where it is none of them."""

    def effective(prompt: Prompt, points: PointConfig) -> tuple[Prompt, PointConfig | None]:
        if points.threshold == "std":  # takes its thresholds from the map
            points = dataclasses.replace(points, t_pos=1.0, t_neg=0.0)
        return prompt, None if prompt == "seg" else points

    own = effective(config.prompt, config.points)
    for k, variant in enumerate(made):
        if effective(variant.prompt, variant.points) == own and not variant.impossible:
            return (*made[:k], dataclasses.replace(variant, own=True), *made[k + 1 :])
    name = describe(config, config.prompt, config.points)
    return (Variant(name, "own", config.prompt, config.points, own=True), *made)


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
        _TEXTS["prompted_kind"],
        _TEXTS["own"].format(words=words),
        _TEXTS["paired"],
        *_notes_on_variants(what, ablation),
        *_notes_on_benchmark(own),
        _TEXTS["same_words"].format(counts=_answer_counts(list(ablation.results.values()))),
    ]
    title = f"{own.settings['benchmark']}: {_TEXTS['varied'][what]}; {_TEXTS['prompted']}"
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
            same_weights.append(_TEXTS["same_weights"].format(model=ablation.model, other=same[0]))
    columns = {"kind": "kind", "setting": "own setting", **_SCORES}
    columns |= {"giou_gap": "gIoU - first", "ciou_gap": "cIoU - first"}
    notes = [
        _TEXTS["trained_kind"],
        _TEXTS["paired"],
        *_notes_on_benchmark(first),
        *(f"{ablation.model}: {_answer_counts([ablation.own])}" for ablation in models),
        *same_weights,
    ]
    return Table(f"{first.settings['benchmark']}: {_TEXTS['trained']}", "model", columns, rows, notes)


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
        notes.append(_TEXTS["pointless"])
    if what == "points":
        number, down = cells(config, possible[-1].points), possible[-1].points.downsample
        side, tokens = math.isqrt(number), math.isqrt(config.num_image_tokens)
        notes.append(_TEXTS["cells"].format(side=side, number=number, tokens=tokens, down=down))
    if what == "prompt":
        moved = {prompt: _masks_that_differ(ablation.results, prompt) for prompt in ("points", "both")}
        notes += [_TEXTS["dtoc"], _TEXTS["moved"].format(**moved)]
    notes += [f"{v.name} is not possible: {v.impossible.rstrip('.')}" for v in ablation.variants if v.impossible]
    return notes


def _masks_that_differ(results: Mapping[str, Result], prompt: str) -> str:
    """How many masks DtoC changes."""
    answers = zip(results[f"{prompt}-discrete"].outcomes, results[f"{prompt}-dtoc"].outcomes, strict=True)
    pairs = [masks for a, b in answers for masks in zip(a.masks, b.masks, strict=True)]
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
    note = f"{_TEXTS['prompted']}; bands and whiskers: 95% intervals over images"
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
    note = f"{_TEXTS[table.rows[0].cells['kind']]}; whiskers: 95% intervals over images"
    return bar_chart(bars, title=title, x_label="score over true premises", note=note)
