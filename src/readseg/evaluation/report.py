"""Scores of outcomes, and the tables of a report: which rows and columns a benchmark's field reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table as RichTable

from readseg.core.io import read_yaml
from readseg.core.stats import Estimate, bootstrap_sums, estimate, mask_ious, ratio_difference
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import DRAWN, FIRST_TEST_SEED, SCENES, UNSEEN, UNTRAINED
from readseg.evaluation.predictions import Outcome, Result
from readseg.evaluation.unseen import EMPTY, EMPTY_KINDS, names_what_is_not_there, names_what_was_asked
from readseg.viz import tables
from readseg.viz.tables import Row, Table, escape_cell, plain, printable

# -- scores ------------------------------------------------------------------------------------------------------------


def _over_masks(terms: Callable[[list[int], list[int]], list[Any]], outcomes: Sequence[Outcome]) -> Estimate:
    """A mean, or a ratio of sums, over masks: of what `terms` makes of their intersections and unions."""
    pairs = [(o, k) for o in outcomes for k in range(len(o.unions))]
    counts = terms([o.intersections[k] for o, k in pairs], [o.unions[k] for o, k in pairs])
    return estimate(*counts, groups=[o.image for o, _ in pairs])


_giou = partial(_over_masks, lambda i, u: [mask_ious(i, u)])
_ciou = partial(_over_masks, lambda i, u: [i, u])


def _precision(threshold: float) -> Callable[[Sequence[Outcome]], Estimate]:
    return partial(_over_masks, lambda i, u: [(mask_ious(i, u) >= threshold).astype(float)])


def _share(is_right: Callable[[Outcome], bool], outcomes: Sequence[Outcome]) -> Estimate:
    return estimate([float(is_right(o)) for o in outcomes], groups=[o.image for o in outcomes])


def _balanced(outcomes: Sequence[Outcome]) -> Estimate:
    """(a + r) / 2; its half width is that of two independent shares, sqrt(wa^2 + wr^2) / 2 on each side."""
    a, r = (_share(lambda o: o.said == o.present, [o for o in outcomes if o.present is p]) for p in (True, False))
    value = (a.value + r.value) / 2
    below = math.hypot(a.value - a.low, r.value - r.low) / 2
    above = math.hypot(a.high - a.value, r.high - r.value) / 2
    return Estimate(value, value - below, value + above, a.count + r.count)


@dataclass(frozen=True)
class Score:
    """A score: its heading, how outcomes give it, which questions it is over, and what it is."""

    heading: str
    estimate: Callable[[Sequence[Outcome]], Estimate]
    over: tuple[bool | None, ...]  # true premises, false ones, questions that are answered in words
    note: str


_TRUE, _FALSE, _BOTH, _WORDS = (True,), (False,), (True, False), (None,)
_CIOU_ALL = "FP-RefCOCO's and gRefCOCO's cIoU, over both, an empty target for false premises"
_GIOU_ALL = "gRefCOCO's gIoU, over true and false premises: of the latter 1 if nothing is claimed, else 0"

SCORES: Mapping[str, Score] = {
    "giou": Score("gIoU", _giou, _TRUE, "mean IoU of the masks of true premises"),
    "ciou": Score("cIoU", _ciou, _TRUE, "intersections over unions, summed over the masks of true premises"),
    "precision_50": Score("P@0.5", _precision(0.5), _TRUE, "share of masks with an IoU of at least 0.5"),
    "precision_70": Score("P@0.7", _precision(0.7), _TRUE, "share of masks with an IoU of at least 0.7"),
    "precision_90": Score("P@0.9", _precision(0.9), _TRUE, "share of masks with an IoU of at least 0.9"),
    "answered": Score("answered", partial(_share, lambda o: o.said), _TRUE, "true premises answered with a mask"),
    "refused": Score("refused", partial(_share, lambda o: not o.said), _FALSE, "false premises refused"),
    "see": Score("See", partial(_share, lambda o: o.said == o.present), _BOTH, "See accuracy, over both premises"),
    "see_balanced": Score("See, balanced", _balanced, _BOTH, "mean of answered and refused"),
    "giou_all": Score("gIoU, all", _giou, _BOTH, _GIOU_ALL),
    "ciou_all": Score("cIoU, all", _ciou, _BOTH, _CIOU_ALL),
    "words": Score("words right", partial(_share, lambda o: o.right_words), _WORDS, "answers in words as expected"),
}
"""All scores, in the order of the tables; intervals draw whole images. A new score is a new entry."""


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """All scores of a group of outcomes, by the names of `SCORES`."""
    by_premise = {present: [o for o in outcomes if o.present is present] for present in (True, False, None)}
    return {
        name: score.estimate([o for present in score.over for o in by_premise[present]])
        for name, score in SCORES.items()
    }


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[Estimate, Estimate]:
    """How far the gIoU and the cIoU of `one` lie above those of `other`, over the same questions; true premises only.

    Paired: both scores of a draw are over the same images, so that what makes an image hard for both does not widen
    the interval. Where both say the same words, the first is the mean of the differences of single masks.

        gIoU: sum_m IoU_m / M - sum_m IoU'_m / M'      cIoU: sum I / sum U - sum I' / sum U'
    """
    if [outcome.key for outcome in one] != [outcome.key for outcome in other]:
        raise ReadsegError("difference: expected outcomes of the same questions in the same order")
    counted = [outcome.present is True for outcome in one]
    sides = [list(compress(side, counted)) for side in (one, other)]
    images, count = [o.image for o in sides[0]], sum(len(o.unions) for o in sides[0])
    areas = [np.array([(sum(o.intersections), sum(o.unions)) for o in side], float).reshape(-1, 2) for side in sides]
    giou, ciou = (
        bootstrap_sums(np.concatenate(terms, axis=1), ratio_difference, groups=images, count=count)
        for terms in (list(map(iou_sums, sides)), areas)
    )
    return giou, ciou


def iou_sums(outcomes: Sequence[Outcome]) -> Float[np.ndarray, "M 2"]:
    """Sum of the IoU of the masks of each question, and how many they are."""
    sums = [(mask_ious(o.intersections, o.unions).sum(), len(o.unions)) for o in outcomes]
    return np.array(sums, float).reshape(-1, 2)


# -- tables ------------------------------------------------------------------------------------------------------------


_SCENES = ("giou", "ciou", "answered", "refused", "see_balanced", "words", *SCORES)
_FIT = 7  # columns that fit into a terminal of 80

REPORTS: Sequence[Mapping[str, Any]] = read_yaml(Path(__file__).with_name("reports.yaml"))
"""The tables of the field's data sets, in their order."""
_DATASETS = [name for report in REPORTS for name in report["datasets"]]

PROTOCOLS: Mapping[str, str] = {  # for a note under a table
    "forced": "teacher-forced: the answer with [SEG] is given to the model, its mask is scored",
    "generated": "generated: the model answers by itself",
}


def score_row(name: str, outcomes: Sequence[Outcome]) -> Row:
    """A row of a table: how many questions, and all scores of them."""
    return Row(name, {"questions": len(outcomes), **summarise(outcomes)})


def breakdown(outcomes: Sequence[Outcome]) -> list[Row]:
    """The questions on new scenes, together and by kind, then each section that holds something more out.

    Of the section "pairs" only the questions about a held-out pair count.
    """
    new = [o for o in outcomes if o.section == "scenes"]
    groups = {"new scenes": new}
    groups |= {f"  {kind}": [o for o in new if o.kind == kind] for kind in sorted({o.kind for o in new})}
    groups |= {
        "  with a distractor": [o for o in new if "distractor" in o.tags],
        "new phrasings": [o for o in outcomes if o.section == "phrasings"],
        "new descriptions": [o for o in outcomes if o.section == "descriptions"],
        "new pairs": [o for o in outcomes if o.section == "pairs" and "pair" in o.tags],
    }
    return [score_row(name, group) for name, group in groups.items() if group]


def score_tables(results: Sequence[Result]) -> list[Table]:
    """All tables of some results: the field's data sets, a table for each protocol, then what is drawn."""
    results = ordered(results)
    known = [*DRAWN, *_DATASETS]
    for result in results:
        if _dataset(result) not in known or result.settings["protocol"] not in PROTOCOLS:
            name = f"benchmark {result.settings['benchmark']!r}, protocol {result.settings['protocol']!r}"
            raise ReadsegError(f"{name}: expected one of {', '.join(known)} and one of {', '.join(PROTOCOLS)}")
    shown = []
    for report in REPORTS:
        for protocol in PROTOCOLS:
            own = [r for r in results if _dataset(r) in report["datasets"] and r.settings["protocol"] == protocol]
            if own:
                shown.append(_field_table(report, protocol, own))
    scenes = [result for result in results if _dataset(result) == SCENES]
    models = [result for result in scenes if "weights" in result.settings and not result.settings.get("prompt")]
    for result in models or scenes:
        rows = breakdown(result.outcomes)
        shown.append(_table(f"Scenes: {label(result)}", rows, _notes("generated", [result]), _SCENES))
    if len(scenes) > 1:
        rows = [score_row(label(r), [o for o in r.outcomes if o.section == "scenes"]) for r in scenes]
        shown.append(_table("Scenes, new ones: side by side", rows, _notes("generated", scenes), _SCENES))
    shown += [_unseen_table(result) for result in results if _dataset(result) == UNSEEN]
    return shown


def ordered(results: Sequence[Result]) -> list[Result]:
    """Results as the tables have them, whatever order they were made in: by data set and split, models first."""
    datasets = [*_DATASETS, *DRAWN]

    def position(result: Result) -> tuple[int, bool, str, bool, str]:
        name = str(result.settings["benchmark"])
        dataset = datasets.index(_dataset(result)) if _dataset(result) in datasets else len(datasets)
        return dataset, not name.endswith("/val"), name, "weights" not in result.settings, label(result)

    return sorted(results, key=position)


def label(result: Result) -> str:
    """What answered, in words: the model, and what prompted its mask decoder where that is not its own choice."""
    prompts = {"both": ", points and [SEG]", "points": ", points only", "seg": ", [SEG] only"}
    return printable(str(result.settings.get("model"))) + prompts.get(str(result.settings.get("prompt")), "")


def to_json(results: Sequence[Result], shown: Sequence[Table]) -> dict[str, Any]:
    """The report as JSON values: how each result was made; for each of `score_tables` its rows with all scores."""
    return {
        "results": [
            {"settings": dict(r.settings), "about": dict(r.about), "questions": len(r.outcomes)}
            for r in ordered(results)
        ],
        "tables": [
            {
                "title": table.title,
                "notes": list(table.notes),
                "columns": {name: heading for name, heading in table.columns.items() if name in SCORES},
                "rows": [{"name": row.name, **plain(row.cells)} for row in table.rows],
            }
            for table in shown
        ],
    }


def to_rich(table: Table) -> RichTable:
    """For the terminal: the first columns, as many as fit."""
    return tables.to_rich(replace(table, columns=dict(list(table.columns.items())[:_FIT])), padding=0)


def side_by_side(results: Sequence[Result]) -> str:
    """A Markdown table of the gIoU on scenes: a row for each group of `breakdown` that has it, a column a system."""
    names = [escape_cell(label(result)) for result in results]
    lines = [
        f"| {SCORES['giou'].heading} of questions about | n | {' | '.join(names)} |",
        "|---|" + "---:|" * (1 + len(names)),
    ]
    for rows in zip(*(breakdown(result.outcomes) for result in results), strict=True):
        scores = [estimate for row in rows if isinstance(estimate := row.cells["giou"], Estimate)]
        if scores[0].count:
            cells = [rows[0].name, str(scores[0].count), *(number(one) for one in scores)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(score: Estimate) -> str:
    """A score with three digits, "-" where there is none."""
    return "-" if math.isnan(score.value) else f"{score.value:.3f}"


def _field_table(report: Mapping[str, Any], protocol: str, results: Sequence[Result]) -> Table:
    several = len({label(result) for result in results}) > 1
    rows = []
    for result in results:
        name = printable(str(result.settings["benchmark"]))
        rows.append(score_row(f"{name}: {label(result)}" if several else name, result.outcomes))
        if name == "reasonseg/test":
            for length in ("short", "long"):
                rows.append(score_row(f"  {length} queries", [o for o in result.outcomes if length in o.tags]))
    title = report["title"] if several else f"{report['title']}: {label(results[0])}"
    headings = report.get("headings", {}) if protocol == "generated" else {}
    return _table(title, rows, _notes(protocol, results), report[protocol], **headings)


def _unseen_table(result: Result) -> Table:
    """The share refused of each section of `unseen`, and of each kind of question about empty backgrounds."""
    untrained, empty = ([o for o in result.outcomes if o.section == section] for section in (UNTRAINED, EMPTY))
    rows = [score_row("classes never trained", untrained), score_row("empty backgrounds", empty)]
    rows += [score_row(f"  {kind}", [o for o in empty if o.kind == kind]) for kind in EMPTY_KINDS]
    notes = [*_notes("generated", [result]), *_remarks(result.outcomes)]
    # There is no target, so no score of masks; and what counts both premises would only repeat the share refused.
    return _table(f"Never seen: {label(result)}", rows, notes, ["refused"])


def _remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """What the share refused hides: how many refusals are of the thing that was asked for, and how many invent one.

    A model that takes a word it never read for another one, and does not see that other thing, refuses too. And a
    refusal may go on: "the cow is not here, but there is a dog." No class of training is in this set, so it invents.
    """
    remarks = []
    if asked := [o for o in outcomes if o.section == UNTRAINED]:
        by_name = _share(lambda o: not o.said and names_what_was_asked(o.question, o.answer), asked)
        remarks.append(
            f"classes never trained that are refused by their name: {by_name} of the questions; the other refusals "
            "name something else, or nothing"
        )
    if refused := [o for o in outcomes if not o.said]:
        invented = _share(lambda o: names_what_is_not_there(o.answer), refused)
        remarks.append(f"refusals that go on to name a thing that is not there: {invented}")
    if outcomes:
        remarks.append("whoever refuses everything has 1 here; beside it belongs the share answered on scenes")
    return remarks


def _table(title: str, rows: Sequence[Row], notes: Sequence[str], scores: Sequence[str], **headings: str) -> Table:
    """A table of the rows that have questions, and the scores that have a number; `headings` other than the usual."""

    def has_number(name: str) -> bool:
        cells = [row.cells[name] for row in rows]
        return any(isinstance(score, Estimate) and not math.isnan(score.value) for score in cells)

    columns = {name: headings.get(name, SCORES[name].heading) for name in scores if has_number(name)}
    rows = [row for row in rows if row.cells["questions"]]
    return Table(title, "questions about", {"questions": "n", **columns}, rows, notes)


def _notes(protocol: str, results: Sequence[Result]) -> list[str]:
    """How scores were made, and which questions and images they leave out."""
    notes = [PROTOCOLS[protocol]]
    left_out = sum(_count(result, "left_out") for result in results)
    if left_out:
        notes.append(f"false premises are left out, {left_out} of them: they have no truth when the answer is given")
    seeds = {r.settings.get("first_seed") for r in results if _dataset(r) == SCENES} - {FIRST_TEST_SEED}
    if seeds:
        notes.append(f"scenes from seed {', '.join(sorted(map(str, seeds)))} on: not the fixed test set")
    samples: dict[str, str] = {}
    unfinished: dict[str, str] = {}
    for result in results:
        name, wanted, of = printable(str(result.settings["benchmark"])), _count(result, "images"), _count(result, "of")
        there = len({outcome.key.rpartition("/")[0] for outcome in result.outcomes})
        if wanted < of:
            samples[name] = f"{name} {wanted} of {of}"
        if there < wanted:
            unfinished[name] = f"{name} {there} of {wanted}"
    for what, counts in (("samples, not whole benchmarks", samples), ("not finished", unfinished)):
        if counts:
            notes.append(f"{what} (images): {', '.join(counts.values())}")
    return notes


def _count(result: Result, name: str) -> int:
    value = result.about.get(name)
    return value if isinstance(value, int) else 0


def _dataset(result: Result) -> str:
    return str(result.settings.get("benchmark", "")).split("/")[0]
