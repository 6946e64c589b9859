"""Tables of scores: for the terminal, as JSON, and as Markdown for a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from readseg.evaluation.benchmarks import Outcome
from readseg.evaluation.metrics import Estimate, estimate, mask_ious

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
    "ciou_all": "cIoU, all",
    "words": "words right",
}
"""Heading of each score of `Summary`, in the order of the tables."""

TERMINAL = ("giou", "ciou", "answered", "refused", "see_balanced", "words")
"""The scores that fit into a terminal of 80 columns."""


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
        ciou_all: FP-RefCOCO's cIoU, over true and false premises, an empty target for the latter.
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
    ciou_all: Estimate
    words: Estimate

    def scores(self) -> dict[str, Estimate]:
        """The estimates by attribute name, in the order of `COLUMNS`."""
        return {column: getattr(self, column) for column in COLUMNS}


def summarise(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Scores of a group of outcomes; intervals draw whole images (see `metrics.estimate`)."""
    true = [o for o in outcomes if o.present is True]
    false = [o for o in outcomes if o.present is False]
    plain = [o for o in outcomes if o.present is None]
    images = [o.image for o in true for _ in o.unions]
    inter, union = [i for o in true for i in o.intersections], [u for o in true for u in o.unions]
    ious = mask_ious(inter, union)
    asked = [*true, *false]
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
        ciou_all=estimate(
            [i for o in asked for i in o.intersections],
            [u for o in asked for u in o.unions],
            groups=[o.image for o in asked for _ in o.unions],
        ),
        words=_share(plain, lambda o: o.right_words),
    )


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


def to_json(systems: Mapping[str, Sequence[Outcome]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report as JSON values: for each system a list of groups, each score with its interval and count."""
    return {
        "settings": dict(settings),
        "systems": {system: [_plain(row) for row in breakdown(outcomes)] for system, outcomes in systems.items()},
    }


def to_table(title: str, rows: Sequence[Summary]) -> Table:
    """A table of the scores of `TERMINAL`; columns without any number are left out."""
    columns = [column for column in _used(rows) if column in TERMINAL]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("questions about", no_wrap=True)
    for heading in ("n", *(COLUMNS[column] for column in columns)):
        table.add_column(heading, justify="right")
    for row in rows:
        # rich takes square brackets for markup.
        name = row.name.replace("[", r"\[")
        table.add_row(name, str(row.questions), *(_number(row.scores()[column]) for column in columns))
    return table


def to_markdown(rows: Sequence[Summary], *, intervals: bool = False) -> str:
    """A Markdown table; with `intervals` each score is followed by its 95% interval."""
    columns = _used(rows)
    lines = [
        "| " + " | ".join(["questions about", "n", *(COLUMNS[column] for column in columns)]) + " |",
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for row in rows:
        cells = [str(row.scores()[c]) if intervals else _number(row.scores()[c]) for c in columns]
        lines.append("| " + " | ".join([row.name, str(row.questions), *cells]) + " |")
    return "\n".join(lines) + "\n"


def compare(systems: Mapping[str, Sequence[Outcome]]) -> list[Summary]:
    """One row for each system, over the new scenes: a model beside its variants and the blind baselines."""
    new = {system: [o for o in outcomes if o.section == "scenes"] for system, outcomes in systems.items()}
    return [summarise(system, outcomes) for system, outcomes in new.items()]


def side_by_side(systems: Mapping[str, Sequence[Outcome]], column: str = "giou") -> str:
    """A Markdown table of one score: a row for each group of `breakdown`, a column for each system.

    Groups without that score are left out.
    """
    tables = [breakdown(outcomes) for outcomes in systems.values()]
    lines = [
        f"| {COLUMNS[column]} of questions about | n | {' | '.join(systems)} |",
        "|---|" + "---:|" * (1 + len(systems)),
    ]
    for rows in zip(*tables, strict=True):
        scores = [row.scores()[column] for row in rows]
        if scores[0].count:
            cells = [rows[0].name, str(scores[0].count), *(_number(score) for score in scores)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(outcomes: Sequence[Outcome], right: Callable[[Outcome], bool | None]) -> Estimate:
    return estimate([float(bool(right(o))) for o in outcomes], groups=[o.image for o in outcomes])


def _balanced(answered: Estimate, refused: Estimate) -> Estimate:
    """(a + r) / 2; its half width is that of two independent shares, sqrt(wa^2 + wr^2) / 2 on each side."""
    value = (answered.value + refused.value) / 2
    below = math.hypot(answered.value - answered.low, refused.value - refused.low) / 2
    above = math.hypot(answered.high - answered.value, refused.high - refused.value) / 2
    return Estimate(value, value - below, value + above, answered.count + refused.count)


def _used(rows: Sequence[Summary]) -> list[str]:
    return [column for column in COLUMNS if any(not math.isnan(row.scores()[column].value) for row in rows)]


def _number(score: Estimate) -> str:
    return "-" if math.isnan(score.value) else f"{score.value:.3f}"


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
