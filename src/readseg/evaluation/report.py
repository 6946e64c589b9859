"""Tables of scores, for the terminal, as JSON and as Markdown: which rows and columns a benchmark's field reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from readseg.core.stats import Estimate, bootstrap_sums, estimate, mask_ious, ratio_difference
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import DRAWN, FIRST_TEST_SEED, SCENES, UNSEEN, UNTRAINED
from readseg.evaluation.predictions import Outcome, Result
from readseg.evaluation.unseen import EMPTY, EMPTY_KINDS, remarks

THRESHOLDS = (0.5, 0.7, 0.9)

COLUMNS: Mapping[str, str] = {
    "giou": "gIoU",
    "ciou": "cIoU",
    "precision_50": "P@0.5",
    "precision_70": "P@0.7",
    "precision_90": "P@0.9",
    "answered": "answered",
    "refused": "refused",
    "see": "See",
    "see_balanced": "See, balanced",
    "giou_all": "gIoU, all",
    "ciou_all": "cIoU, all",
    "words": "words right",
}
"""Heading of each score of `Summary`, in the order of the tables."""

_SCENES = ("giou", "ciou", "answered", "refused", "see_balanced", "words")
_FIT = 6  # scores that fit into a terminal of 80 columns

_MASKS = {name: COLUMNS[name] for name in ("precision_50", "precision_70", "precision_90")}
_PREMISES = {name: COLUMNS[name] for name in ("answered", "refused", "see", "see_balanced")}
_REASONING = {"giou": "gIoU", "ciou": "cIoU", **_MASKS}
_REFERRING = {"ciou": "cIoU", "giou": "gIoU", **_MASKS}


@dataclass(frozen=True)
class Field:
    """Data sets that are reported together, and the columns that their field reports, the first ones first.

    title: of the table.
    datasets: whose benchmarks are its rows.
    forced: heading of each score under the protocol "forced".
    generated: under "generated".
    """

    title: str
    datasets: tuple[str, ...]
    forced: Mapping[str, str]
    generated: Mapping[str, str]


FIELDS = (
    Field("ReasonSeg", ("reasonseg",), _REASONING, {"giou": "gIoU", "ciou": "cIoU", **_PREMISES, **_MASKS}),
    Field(
        "Referring expressions",
        ("refclef", "refcoco", "refcoco+", "refcocog"),
        _REFERRING,
        {"ciou": "cIoU", "giou": "gIoU", "answered": "answered", **_MASKS},
    ),
    Field(
        "FP-RefCOCO: false premises",
        ("fprefcoco", "fprefcoco+", "fprefcocog"),
        _REFERRING,
        {"see": "See", "ciou_all": "cIoU, all", "ciou": "cIoU, true", "giou": "gIoU, true", **_PREMISES},
    ),
    Field(
        "R-RefCOCO: false premises",
        ("R-refcoco", "R-refcoco+", "R-refcocog"),
        _REFERRING,
        {"giou": "gIoU, true", "refused": "refused", "giou_all": "gIoU, all", "ciou_all": "cIoU, all", **_PREMISES},
    ),
    Field(
        "gRefCOCO: several targets, or none",
        ("grefcoco",),
        _REFERRING,
        {"giou_all": "gIoU", "ciou_all": "cIoU", "refused": "N-acc", "answered": "T-acc", **_MASKS},
    ),
)
"""The tables of the field's data sets, in their order."""

PROTOCOLS: Mapping[str, str] = {
    "forced": "teacher-forced: the answer with [SEG] is given to the model, its mask is scored",
    "generated": "generated: the model answers by itself",
}
"""What each protocol of `benchmarks` is, for a note under a table."""


@dataclass(frozen=True)
class Summary:
    """All scores of a group of questions.

    Attributes:
        name: of the group.
        questions: how many.
        giou, ciou, precision_50, precision_70, precision_90: over the masks of true premises.
        answered: share of true premises answered with a mask.
        refused: share of false premises refused (refusal recall).
        see: See accuracy, over both.
        see_balanced: mean of `answered` and `refused`; its interval is that of a stratified mean.
        giou_all: gRefCOCO's gIoU, over true and false premises: of the latter 1 if nothing is claimed, else 0.
        ciou_all: FP-RefCOCO's and gRefCOCO's cIoU, over both, an empty target for false premises.
        words: share of the questions without segmentation whose answer is word for word the expected one.
    """

    name: str
    questions: int
    giou: Estimate
    ciou: Estimate
    precision_50: Estimate
    precision_70: Estimate
    precision_90: Estimate
    answered: Estimate
    refused: Estimate
    see: Estimate
    see_balanced: Estimate
    giou_all: Estimate
    ciou_all: Estimate
    words: Estimate

    def scores(self) -> dict[str, Estimate]:
        """The estimates by attribute name, in the order of `COLUMNS`."""
        return {column: getattr(self, column) for column in COLUMNS}


def summarise(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Scores of a group of outcomes; intervals draw whole images (see `stats.estimate`)."""
    true = [o for o in outcomes if o.present is True]
    false = [o for o in outcomes if o.present is False]
    plain = [o for o in outcomes if o.present is None]
    images = [o.image for o in true for _ in o.unions]
    inter, union = [i for o in true for i in o.intersections], [u for o in true for u in o.unions]
    ious = mask_ious(inter, union)
    asked = [*true, *false]
    all_images = [o.image for o in asked for _ in o.unions]
    all_inter, all_union = [i for o in asked for i in o.intersections], [u for o in asked for u in o.unions]
    precision = {f"precision_{round(100 * t)}": estimate((ious >= t).astype(float), groups=images) for t in THRESHOLDS}
    answered, refused = _share(true, lambda o: o.said), _share(false, lambda o: not o.said)
    return Summary(
        name=name,
        questions=len(outcomes),
        giou=estimate(ious, groups=images),
        ciou=estimate(inter, union, groups=images),
        **precision,
        answered=answered,
        refused=refused,
        see=_share(asked, lambda o: o.said == o.present),
        see_balanced=_balanced(answered, refused),
        giou_all=estimate(mask_ious(all_inter, all_union), groups=all_images),
        ciou_all=estimate(all_inter, all_union, groups=all_images),
        words=_share(plain, lambda o: o.right_words),
    )


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[Estimate, Estimate]:
    """How far the gIoU and the cIoU of `one` lie above those of `other`, over the same questions; true premises only.

    Paired: both scores of a draw are over the same images, so that what makes an image hard for both does not widen
    the interval. Where both say the same words, the first is the mean of the differences of single masks.

        gIoU: sum_m IoU_m / M - sum_m IoU'_m / M'      cIoU: sum I / sum U - sum I' / sum U'
    """
    if [outcome.key for outcome in one] != [outcome.key for outcome in other]:
        raise ReadsegError("difference: expected outcomes of the same questions in the same order")
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.present]
    images, count = [a.image for a, _ in pairs], sum(len(a.unions) for a, _ in pairs)
    ious = [[number for o in pair for number in (_sum_of_ious(o), len(o.unions))] for pair in pairs]
    areas = [[sum(counts) for o in pair for counts in (o.intersections, o.unions)] for pair in pairs]
    giou, ciou = (
        bootstrap_sums(np.array(terms, float).reshape(-1, 4), ratio_difference, groups=images, count=count)
        for terms in (ious, areas)
    )
    return giou, ciou


def _sum_of_ious(outcome: Outcome) -> float:
    return float(mask_ious(outcome.intersections, outcome.unions).sum())


def breakdown(outcomes: Sequence[Outcome]) -> list[Summary]:
    """The questions on new scenes, together and by kind, then each section that holds something more out.

    Of the section "pairs" only the questions about a held-out pair count.
    """
    new = [o for o in outcomes if o.section == "scenes"]
    rows = [summarise("new scenes", new)]
    rows += [summarise(f"  {kind}", [o for o in new if o.kind == kind]) for kind in sorted({o.kind for o in new})]
    rows += [
        summarise("  with a distractor", [o for o in new if "distractor" in o.tags]),
        summarise("new phrasings", [o for o in outcomes if o.section == "phrasings"]),
        summarise("new descriptions", [o for o in outcomes if o.section == "descriptions"]),
        summarise("new pairs", [o for o in outcomes if o.section == "pairs" and "pair" in o.tags]),
    ]
    return [row for row in rows if row.questions]


@dataclass(frozen=True)
class Sheet:
    """A table of scores.

    Attributes:
        title: what it is about.
        columns: the heading of each score of `Summary` that it shows, in their order.
        rows: what it shows.
        notes: how the scores were made, and what they leave out.
    """

    title: str
    columns: Mapping[str, str]
    rows: tuple[Summary, ...]
    notes: tuple[str, ...] = ()


def sheets(results: Sequence[Result]) -> list[Sheet]:
    """All tables of some results: the field's data sets, a table for each protocol, then what is drawn.

    Raises:
        ReadsegError: a result of an unknown benchmark or protocol.
    """
    results = ordered(results)
    found = []
    known = [*DRAWN, *(name for field in FIELDS for name in field.datasets)]
    for result in results:
        if _dataset(result) not in known or result.settings["protocol"] not in PROTOCOLS:
            told = f"benchmark {result.settings['benchmark']!r}, protocol {result.settings['protocol']!r}"
            raise ReadsegError(f"{told}: expected one of {', '.join(known)} and one of {', '.join(PROTOCOLS)}")
    for field in FIELDS:
        for protocol in PROTOCOLS:
            own = [r for r in results if _dataset(r) in field.datasets and r.settings["protocol"] == protocol]
            if own:
                found.append(_field_sheet(field, protocol, own))
    scenes = [result for result in results if _dataset(result) == SCENES]
    models = [result for result in scenes if "weights" in result.settings and not result.settings.get("prompt")]
    for result in models or scenes:
        rows = tuple(breakdown(result.outcomes))
        found.append(_sheet(f"Scenes: {label(result)}", rows, _notes("generated", [result])))
    if len(scenes) > 1:
        beside = tuple(summarise(label(r), [o for o in r.outcomes if o.section == "scenes"]) for r in scenes)
        found.append(_sheet("Scenes, new ones: side by side", beside, _notes("generated", scenes)))
    found += [_unseen_sheet(result) for result in results if _dataset(result) == UNSEEN]
    return found


def ordered(results: Sequence[Result]) -> list[Result]:
    """Results as the tables have them, whatever order they were made in: by data set and split, models first."""
    datasets = [*(name for field in FIELDS for name in field.datasets), *DRAWN]

    def place(result: Result) -> tuple[int, bool, str, bool, str]:
        name = str(result.settings["benchmark"])
        dataset = datasets.index(_dataset(result)) if _dataset(result) in datasets else len(datasets)
        return dataset, not name.endswith("/val"), name, "weights" not in result.settings, label(result)

    return sorted(results, key=place)


def label(result: Result) -> str:
    """What answered, in words: the model, and what prompted its mask decoder where that is not its own choice."""
    prompts = {"both": ", points and [SEG]", "points": ", points only", "seg": ", [SEG] only"}
    return _printable(str(result.settings.get("model"))) + prompts.get(str(result.settings.get("prompt")), "")


def to_json(results: Sequence[Result], tables: Sequence[Sheet]) -> dict[str, Any]:
    """The report as JSON values: how each result was made; for each table of `sheets` its rows with all scores."""
    return {
        "results": [
            {"settings": dict(r.settings), "about": dict(r.about), "questions": len(r.outcomes)}
            for r in ordered(results)
        ],
        "tables": [
            {
                "title": sheet.title,
                "notes": list(sheet.notes),
                "columns": dict(sheet.columns),
                "rows": [_plain(row) for row in sheet.rows],
            }
            for sheet in tables
        ],
    }


def to_table(sheet: Sheet) -> Table:
    """A table for the terminal: the first columns, as many as fit."""
    table = Table(title=Text(sheet.title), title_justify="left", box=SIMPLE_HEAD, padding=0)
    columns = list(sheet.columns.items())[:_FIT]
    table.add_column("questions about")
    for heading in ("n", *(heading for _, heading in columns)):
        table.add_column(heading, justify="right")
    for row in sheet.rows:
        cells = [number(row.scores()[column]) for column, _ in columns]
        table.add_row(Text(row.name), str(row.questions), *cells)
    return table


def to_markdown(sheet: Sheet) -> str:
    """A Markdown table with its notes; each score is followed by its 95% interval."""
    lines = [
        f"**{_cell(sheet.title)}**",
        "",
        "| " + " | ".join(["questions about", "n", *map(_cell, sheet.columns.values())]) + " |",
        "|---|" + "---:|" * (1 + len(sheet.columns)),
    ]
    for row in sheet.rows:
        cells = [str(row.scores()[column]) for column in sheet.columns]
        lines.append("| " + " | ".join([_cell(row.name), str(row.questions), *cells]) + " |")
    return "\n".join([*lines, "", *(f"{_cell(note)}." for note in sheet.notes)]).rstrip() + "\n"


def side_by_side(results: Sequence[Result], column: str = "giou") -> str:
    """A Markdown table of one score of scenes: a row for each group of `breakdown`, a column for each system.

    Groups without that score are left out.
    """
    tables = [breakdown(result.outcomes) for result in results]
    names = [_cell(label(result)) for result in results]
    lines = [
        f"| {COLUMNS[column]} of questions about | n | {' | '.join(names)} |",
        "|---|" + "---:|" * (1 + len(names)),
    ]
    for rows in zip(*tables, strict=True):
        scores = [row.scores()[column] for row in rows]
        if scores[0].count:
            cells = [rows[0].name, str(scores[0].count), *(number(score) for score in scores)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(score: Estimate) -> str:
    """A score with three digits, "-" where there is none."""
    return "-" if math.isnan(score.value) else f"{score.value:.3f}"


def _field_sheet(field: Field, protocol: str, results: Sequence[Result]) -> Sheet:
    several = len({label(result) for result in results}) > 1
    rows = []
    for result in results:
        name = _printable(str(result.settings["benchmark"]))
        rows.append(summarise(f"{name}: {label(result)}" if several else name, result.outcomes))
        if name == "reasonseg/test":
            for length in ("short", "long"):
                rows.append(summarise(f"  {length} queries", [o for o in result.outcomes if length in o.tags]))
    columns = field.forced if protocol == "forced" else field.generated
    title = field.title if several else f"{field.title}: {label(results[0])}"
    return _sheet(title, [row for row in rows if row.questions], _notes(protocol, results), columns)


def _unseen_sheet(result: Result) -> Sheet:
    """The share refused of each section of `unseen`, and of each kind of question about empty backgrounds."""
    untrained, empty = ([o for o in result.outcomes if o.section == section] for section in (UNTRAINED, EMPTY))
    rows = [summarise("classes never trained", untrained), summarise("empty backgrounds", empty)]
    rows += [summarise(f"  {kind}", [o for o in empty if o.kind == kind]) for kind in EMPTY_KINDS]
    # There is no target, so no score of masks; and what counts both premises would only repeat the share refused.
    columns = {"refused": COLUMNS["refused"]}
    notes = [*_notes("generated", [result]), *remarks(result)]
    return _sheet(f"Never seen: {label(result)}", [row for row in rows if row.questions], notes, columns)


def _sheet(
    title: str, rows: Sequence[Summary], notes: Sequence[str], columns: Mapping[str, str] | None = None
) -> Sheet:
    """A sheet of the columns that hold a number."""
    shown = columns if columns is not None else {**{name: COLUMNS[name] for name in _SCENES}, **COLUMNS}
    used = {c: heading for c, heading in shown.items() if any(not math.isnan(r.scores()[c].value) for r in rows)}
    return Sheet(title, used, tuple(rows), tuple(notes))


def _notes(protocol: str, results: Sequence[Result]) -> list[str]:
    """How scores were made, and which questions and images they leave out."""
    notes = [PROTOCOLS[protocol]]
    left_out = sum(_count(result, "left_out") for result in results)
    if left_out:
        notes.append(f"false premises are left out, {left_out} of them: they have no truth when the answer is given")
    samples, unfinished = {}, {}
    seeds = {r.settings.get("first_seed") for r in results if _dataset(r) == SCENES} - {FIRST_TEST_SEED}
    if seeds:
        notes.append(f"scenes from seed {', '.join(sorted(map(str, seeds)))} on: not the fixed test set")
    for result in results:
        name, wanted, of = _printable(str(result.settings["benchmark"])), _count(result, "images"), _count(result, "of")
        there = len({outcome.key.rpartition("/")[0] for outcome in result.outcomes})
        if wanted < of:
            samples[name] = f"{name} {wanted} of {of}"
        if there < wanted:
            unfinished[name] = f"{name} {there} of {wanted}"
    if samples:
        notes.append(f"samples, not whole benchmarks (images): {', '.join(samples.values())}")
    if unfinished:
        notes.append(f"not finished (images): {', '.join(unfinished.values())}")
    return notes


def _count(result: Result, name: str) -> int:
    value = result.about.get(name)
    return value if isinstance(value, int) else 0


def _dataset(result: Result) -> str:
    return str(result.settings.get("benchmark", "")).split("/")[0]


def _printable(text: str) -> str:
    """Text without what would steer a terminal: a file of predictions may come from anywhere."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cell(text: str) -> str:
    """Text that does not break out of a Markdown table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def _share(outcomes: Sequence[Outcome], right: Callable[[Outcome], bool | None]) -> Estimate:
    return estimate([float(bool(right(o))) for o in outcomes], groups=[o.image for o in outcomes])


def _balanced(answered: Estimate, refused: Estimate) -> Estimate:
    """(a + r) / 2; its half width is that of two independent shares, sqrt(wa^2 + wr^2) / 2 on each side."""
    value = (answered.value + refused.value) / 2
    below = math.hypot(answered.value - answered.low, refused.value - refused.low) / 2
    above = math.hypot(answered.high - answered.value, refused.high - refused.value) / 2
    return Estimate(value, value - below, value + above, answered.count + refused.count)


def _plain(row: Summary) -> dict[str, Any]:
    """A summary as JSON values: NaN, which JSON lacks, becomes null."""
    record: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Estimate):
            numbers = asdict(value).items()
            value = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in numbers}
        record[field.name] = value
    return record
