"""The tables of an ablation: `analysis.ablation` in numbers with intervals, one kind of comparison in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from readseg.analysis.studies.ablation import PROMPTED, TRAINED, Ablated, Ablation, Variant, cells, describe
from readseg.evaluation.predictions import Outcome, Prediction, Result
from readseg.evaluation.report import PROTOCOLS, difference, summarise
from readseg.viz.tables import Cell, Row, Table

VARIED = {
    "points": "thresholds and number of points (Table 8)",
    "prompt": "what prompts the mask decoder",
    "alignment": "where the token grid lies",
}
"""What each ablation varies, for titles."""

_SCORES = {"giou": "gIoU", "ciou": "cIoU"}


def prompted_table(what: Ablation, ablated: Ablated) -> Table:
    """One trained model, prompted in different ways: a row for each variant, and how far it is from the model's own."""
    own = ablated.own
    rows = []
    for variant in ablated.variants:
        found: dict[str, Cell] = {"kind": PROMPTED}
        if what == "points":
            found["points"] = _points(ablated, variant)
        if not variant.impossible:
            found |= _scored(ablated.results[variant.key], None if variant.own else own)
        rows.append(Row(f"{variant.name}{' (own)' if variant.own else ''}", found, group=ablated.model))
    columns = {"kind": "kind", **({"points": "points"} if what == "points" else {}), **_SCORES}
    columns |= {"giou_gap": "gIoU - own", "ciou_gap": "cIoU - own"}
    notes = [
        f"kind {PROMPTED}: one trained model, prompted in different ways, and not what a model trained so would reach",
        f"(own): as the model was saved, {_words(ablated, next(v for v in ablated.variants if v.own))}; all that a row "
        "does not name is as in it, or as asked for",
        "differences are paired: both scores of a bootstrap draw are over the same images",
        *_of_what(what, ablated),
        *_of_benchmark(own),
        "all rows say the same words, so that only empty masks change what is answered and refused: "
        + _of_answers([ablated.results[v.key] for v in ablated.variants if not v.impossible]),
    ]
    title = f"{own.settings['benchmark']}: {VARIED[what]}; one trained model, prompted in different ways"
    return Table(title, "prompt", columns, rows, notes)


def trained_table(models: Sequence[Ablated]) -> Table:
    """Models trained in different ways, each with its own configuration, beside the first one."""
    first = models[0].own
    rows = []
    for place, ablated in enumerate(models):
        own = next(v for v in ablated.variants if v.own)
        scored = _scored(ablated.own, first if place else None)
        rows.append(Row(ablated.model, {"kind": TRAINED, "setting": _words(ablated, own), **scored}))
    columns = {"kind": "kind", "setting": "own setting", **_SCORES}
    columns |= {"giou_gap": "gIoU - first", "ciou_gap": "cIoU - first"}
    notes = [
        f"kind {TRAINED}: models trained in different ways, each prompted as it was saved; all that their training "
        "differed in, data and steps and seeds too, is in a difference",
        "differences are paired: both scores of a bootstrap draw are over the same images",
        *_of_benchmark(first),
        *(f"{ablated.model}: {_of_answers([ablated.own])}" for ablated in models),
        *_of_equal_weights(models),
    ]
    return Table(f"{first.settings['benchmark']}: models trained in different ways", "model", columns, rows, notes)


def _scored(result: Result, beside: Result | None) -> dict[str, Cell]:
    """Both scores over true premises, and how far they lie above those of another result."""
    scores = summarise(result.outcomes)
    found: dict[str, Cell] = {"giou": scores["giou"], "ciou": scores["ciou"]}
    if beside is not None:
        found["giou_gap"], found["ciou_gap"] = difference(result.outcomes, beside.outcomes)
    return found


def _points(ablated: Ablated, variant: Variant) -> str:
    """How many points a [SEG] can get: no more than there are cells."""
    if variant.prompt == "seg":
        return "0"
    wanted, there = variant.points.num_points, cells(ablated.config, variant.points)
    return str(wanted) if wanted <= there else f"{there} of {wanted}"


def _words(ablated: Ablated, variant: Variant) -> str:
    return describe(ablated.config, variant.prompt, variant.points)


def _of_what(what: Ablation, ablated: Ablated) -> list[str]:
    """What a reader must know of what was varied."""
    notes = []
    varied = [v for v in ablated.variants if v.prompt != "seg" and not v.impossible]
    if ablated.config.prompt == "seg":
        notes.append("this model was trained without points: rows with points are prompts that it never saw")
    if what == "points":
        there = cells(ablated.config, varied[-1].points)
        side, down = math.isqrt(there), varied[-1].points.downsample
        tokens = math.isqrt(ablated.config.num_image_tokens)
        notes.append(
            f"points come from {side} x {side} = {there} cells ({tokens} x {tokens} image tokens, downsample {down}), "
            "fewer where a cell lies outside of the image: |P| beyond that is cut to what exists"
        )
    if what == "prompt":
        moved = [_masks_that_differ(ablated, f"{prompt}-discrete", f"{prompt}-dtoc") for prompt in ("points", "both")]
        notes.append(
            "DtoC is a path for gradients in training: with bandwidth 1 it moves a point by hundredths of a pixel, so "
            "that discrete and DtoC rows of a trained model differ by next to nothing; the paper compares models that "
            "were TRAINED with and without it: name such models with several --model"
        )
        notes.append(
            f"masks that differ in any pixel between discrete and DtoC: points only {moved[0]}, [SEG] and points "
            f"{moved[1]}"
        )
    notes += [f"{v.name} is not possible: {v.impossible.rstrip('.')}" for v in ablated.variants if v.impossible]
    return notes


def _of_equal_weights(models: Sequence[Ablated]) -> list[str]:
    """Whose training was the same, whatever this table's title says."""
    notes = []
    for place, ablated in enumerate(models):
        weights = ablated.own.settings.get("weights")
        same = [other.model for other in models[:place] if weights and other.own.settings.get("weights") == weights]
        if same:
            notes.append(f"{ablated.model} has the weights of {same[0]}: they differ in their configuration only")
    return notes


def _masks_that_differ(ablated: Ablated, one: str, other: str) -> str:
    pairs = [
        pair
        for a, b in zip(ablated.results[one].predictions, ablated.results[other].predictions, strict=True)
        for pair in zip(a.masks, b.masks, strict=True)
    ]
    return f"{sum(dict(a) != dict(b) for a, b in pairs)} of {len(pairs)}"


def _of_benchmark(result: Result) -> list[str]:
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


def _of_answers(results: Sequence[Result]) -> str:
    """What was said, and what comes of empty masks."""
    first = results[0]
    true = [p for p, o in zip(first.predictions, first.outcomes, strict=True) if o.present]
    told = [f"{sum(not p.masks for p in true)} of {len(true)} true premises were answered without [SEG] (IoU 0)"]
    empty = [sum(_is_empty(*pair) for pair in zip(r.predictions, r.outcomes, strict=True)) for r in results]
    told.append(f"answered with [SEG] but with an empty mask: {_range(empty)} true premises")
    false = [outcome for outcome in first.outcomes if outcome.present is False]
    if false:
        refused = [sum(o.present is False and not o.said for o in r.outcomes) for r in results]
        told.append(f"{_range(refused)} of {len(false)} false premises refused")
    return "; ".join(told)


def _is_empty(prediction: Prediction, outcome: Outcome) -> bool:
    return bool(outcome.present and not outcome.said and prediction.masks)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
