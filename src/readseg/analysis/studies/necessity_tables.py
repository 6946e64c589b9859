"""The numbers of `analysis.necessity`, from its records alone: who decides how well, and what that does to the masks.

A decision is a share in [0, 1] for each question: 1 to draw a mask, 0 to refuse; in between where thresholds that were
chosen on different halves of the images disagree (`stats.cross_fitted`). M questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from readseg.analysis.studies.necessity import SCORES, WORD, Considered
from readseg.core.stats import Estimate, Roc, auc, bootstrap_sums, bootstrap_weights, cross_fitted, mask_ious, roc
from readseg.evaluation.report import PROTOCOLS
from readseg.viz.tables import Cell, Row, Table

SAID = "said"
"""The decision itself: the answer holds [SEG]."""
LENGTHS = ("short", "long")
"""Tags by which ReasonSeg's questions are grouped."""

_ALWAYS, _NEVER, _TRUTH = "always", "never", "truth"
_NAMES = {
    SAID: "[SEG] in the answer",
    _ALWAYS: "a mask for every question",
    _NEVER: "no mask at all",
    _TRUTH: "the truth itself (a bound)",
}


@dataclass(frozen=True)
class Decided:
    """All questions of one model with what each rule decides.

    Attributes:
        records: M questions, in order.
        present: (M,) whether the object is there.
        scores: (M,) by name of `SCORES`; -inf where there is none.
        rules: (M,) shares by name: `SAID`, and each name of `SCORES` whose threshold could be chosen on other images.
    """

    records: Sequence[Considered]
    present: Bool[np.ndarray, " M"]
    scores: Mapping[str, Float[np.ndarray, " M"]]
    rules: Mapping[str, Float[np.ndarray, " M"]]

    @property
    def images(self) -> list[str]:
        """The image of each question."""
        return [record.image for record in self.records]


def decide(records: Sequence[Considered]) -> Decided:
    """Arrays of the records (M,), and the decisions of all rules.

    Args:
        records: M questions.
    """
    present = np.array([record.present for record in records], dtype=bool)
    values = {name: [record.scores[name] for record in records] for name in SCORES}
    scores = {name: np.array([-math.inf if v is None else v for v in own]) for name, own in values.items()}
    rules = {SAID: np.array([float(record.said) for record in records])}
    for name, own in scores.items():
        taken = cross_fitted(own, present, [record.image for record in records])
        if taken is not None:
            rules[name] = taken
    return Decided(records, present, scores, rules)


def curves(decided: Decided) -> dict[str, Roc]:
    """The ROC curve of each score, by name of `SCORES`; none where only true or only false premises are there."""
    if not decided.present.any() or decided.present.all():
        return {}
    return {name: roc(scores, decided.present) for name, scores in decided.scores.items()}


def operating_point(decided: Decided) -> tuple[Estimate, Estimate]:
    """False positive rate and true positive rate of the decision itself."""
    return _rate(decided, SAID, False), _rate(decided, SAID, True)


def necessity_tables(records: Sequence[Considered], model: str, benchmark: str, images: str = "") -> list[Table]:
    """The tables of the study: decisions, their masks, and both by parts of the benchmark where it has some.

    Args:
        records: of one model.
        model: its name.
        benchmark: its name.
        images: what the notes say of how many images there are.
    """
    decided = decide(records)
    tables = [_decisions(decided, model, benchmark, images), _masks(decided, model, benchmark, images)]
    parts = _parts(decided)
    if parts:
        tables += [_auc_by_part(decided, parts, model, benchmark), _balanced_by_part(decided, parts, model, benchmark)]
    return tables


def balanced_accuracy(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """(share of true premises with a mask + share of false ones without) / 2.

    Args:
        decided: by whom.
        rule: whose decisions.
        beside: the rule whose balanced accuracy is taken off: a paired difference.
    """
    terms = [_hits(decided, decided.rules[name]) for name in (rule, *([] if beside is None else [beside]))]

    def score(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        found = [(sums[:, k] / sums[:, k + 1] + sums[:, k + 2] / sums[:, k + 3]) / 2 for k in range(0, len(sums[0]), 4)]
        return found[0] if beside is None else found[0] - found[1]

    return bootstrap_sums(np.concatenate(terms, axis=1), score, groups=decided.images)


def giou_all(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """The gIoU over all questions if this rule decides: a mask for a false premise counts 0, a refusal 1.

    Args:
        decided: by whom.
        rule: whose decisions: of `Decided.rules`, or "always", "never", "truth".
        beside: the rule whose gIoU is taken off: a paired difference.
    """
    terms = [_ious(decided, name) for name in (rule, *([] if beside is None else [beside]))]

    def score(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        found = [sums[:, k] / sums[:, k + 1] for k in range(0, len(sums[0]), 2)]
        return found[0] if beside is None else found[0] - found[1]

    return bootstrap_sums(np.concatenate(terms, axis=1), score, groups=decided.images)


def area(decided: Decided, name: str, beside: str | None = None) -> Estimate:
    """Area under the ROC curve of a score.

    Args:
        decided: by whom.
        name: of `SCORES`.
        beside: the score whose area is taken off: a paired difference.
    """

    def score(weights: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        own = auc(decided.scores[name], decided.present, weights)
        return own if beside is None else own - auc(decided.scores[beside], decided.present, weights)

    return bootstrap_weights(score, groups=decided.images)


def _decisions(decided: Decided, model: str, benchmark: str, images: str) -> Table:
    rows = [Row(_NAMES[SAID], _decision_cells(decided, SAID), group=WORD)]
    for name, kind in SCORES.items():
        cells: dict[str, Cell] = {"auc": area(decided, name)}
        if name != "p_seg":
            cells["auc_less"] = area(decided, name, "p_seg")
        rows.append(Row(kind.name, {**cells, **_decision_cells(decided, name)}, group=kind.group))
    columns = {
        "auc": "AUC",
        "auc_less": "AUC - that of P([SEG])",
        "true_positive": "true premises with a mask",
        "false_positive": "false premises with a mask",
        "balanced": "balanced accuracy",
        "balanced_less": "- that of [SEG]",
    }
    notes = [
        "the state that came closest to saying [SEG] speaks for an answer: of an answer that holds [SEG] the one that "
        "said it, of any other what a mask would be made of, had [SEG] been said there",
        "rates are of the answer itself where [SEG] decides, else of thresholds that were chosen on one half of the "
        "images, for the best balanced accuracy there, and applied to the other half; the halves were drawn 20 times",
        "a threshold may also decide that what lies below it is there: an AUC below 0.5 can so go with a balanced "
        "accuracy above it",
        "the state of a refusal predicts another word than [SEG]: its map and its mask know of the decision already",
        "differences are paired: both scores of a bootstrap draw are over the same images",
        "READ trains no part of a model for the IoU that SAM predicts",
        *_counted(decided, images),
    ]
    if len(decided.rules) == 1:
        notes.insert(2, "no thresholds: there are too few images to choose them on one half of them")
    else:
        notes.insert(2, "intervals take the thresholds that were chosen as they are: choosing them anew is not in them")
    return Table(f"{benchmark}: who decides whether to segment? {model}", "decided by", columns, rows, notes)


def _masks(decided: Decided, model: str, benchmark: str, images: str) -> Table:
    def row(rule: str, name: str, group: str) -> Row:
        cells: dict[str, Cell] = {"giou_all": giou_all(decided, rule), "giou": _giou(decided, rule)}
        if rule != SAID:
            cells["giou_all_less"] = giou_all(decided, rule, SAID)
        return Row(name, cells, group)

    rows = [row(SAID, _NAMES[SAID], WORD)]
    rows += [row(name, kind.name, kind.group) for name, kind in SCORES.items() if name in decided.rules]
    rows += [row(name, _NAMES[name], "no decision, or a perfect one") for name in (_ALWAYS, _NEVER, _TRUTH)]
    columns = {"giou_all": "gIoU, all", "giou_all_less": "- that of [SEG]", "giou": "gIoU, true premises"}
    notes = [
        "gIoU, all: over true and false premises; of the latter a refusal counts 1 and a mask 0",
        "where a rule wants a mask and the answer holds no [SEG], it is the mask of the state that came closest to "
        "saying it",
        "the truth itself is a bound: no decision reaches more with these masks",
        *_counted(decided, images),
    ]
    if len(decided.rules) > 1:
        notes.insert(
            2, "thresholds were chosen on other images, for the best balanced accuracy, as in the table of decisions"
        )
    return Table(f"{benchmark}: the masks that come of it, {model}", "decided by", columns, rows, notes)


def _auc_by_part(decided: Decided, parts: Sequence[_Part], model: str, benchmark: str) -> Table:
    rows = [
        Row(part.name, {"n": part.told, **{name: area(part.decided, name) for name in SCORES}}, part.group)
        for part in parts
    ]
    columns = {"n": "true/false", **{name: kind.short for name, kind in SCORES.items()}}
    return Table(f"{benchmark}: AUC by part, {model}", "questions", columns, rows, _part_notes(decided, parts))


def _balanced_by_part(decided: Decided, parts: Sequence[_Part], model: str, benchmark: str) -> Table:
    rows = [
        Row(
            part.name,
            {"n": part.told, **{rule: balanced_accuracy(part.decided, rule) for rule in decided.rules}},
            part.group,
        )
        for part in parts
    ]
    names = {SAID: "[SEG]", **{name: kind.short for name, kind in SCORES.items()}}
    columns = {"n": "true/false", **{rule: names[rule] for rule in decided.rules}}
    notes = _part_notes(decided, parts)
    if len(decided.rules) > 1:
        notes.insert(0, "one threshold for all parts, chosen on other images")
    return Table(f"{benchmark}: balanced accuracy by part, {model}", "questions", columns, rows, notes)


@dataclass(frozen=True)
class _Part:
    """Some of the questions, with their decisions."""

    group: str
    name: str
    decided: Decided

    @property
    def told(self) -> str:
        true = int(self.decided.present.sum())
        return f"{true}/{len(self.decided.present) - true}"


def _parts(decided: Decided) -> list[_Part]:
    """The kinds, sections and lengths that hold true and false premises; none of a grouping with only one of them."""
    groupings: dict[str, tuple[list[str], Callable[[Considered, str], bool]]] = {
        "kind of question": (sorted({r.kind for r in decided.records}), lambda r, name: r.kind == name),
        "section": (list(dict.fromkeys(r.section for r in decided.records)), lambda r, name: r.section == name),
        "length": (list(LENGTHS), lambda r, name: name in r.tags),
    }
    parts = []
    for group, (names, belongs) in groupings.items():
        found = []
        for name in names:
            own = np.array([belongs(record, name) for record in decided.records], dtype=bool)
            if name and decided.present[own].any() and not decided.present[own].all():
                found.append(_Part(group, name, _some(decided, own)))
        parts += found if len(found) > 1 else []
    return parts


def _some(decided: Decided, own: Bool[np.ndarray, " M"]) -> Decided:
    return Decided(
        [record for record, there in zip(decided.records, own, strict=True) if there],
        decided.present[own],
        {name: values[own] for name, values in decided.scores.items()},
        {name: shares[own] for name, shares in decided.rules.items()},
    )


def _decision_cells(decided: Decided, rule: str) -> dict[str, Cell]:
    if rule not in decided.rules:
        return {}
    cells: dict[str, Cell] = {
        "true_positive": _rate(decided, rule, True),
        "false_positive": _rate(decided, rule, False),
        "balanced": balanced_accuracy(decided, rule),
    }
    if rule != SAID:
        cells["balanced_less"] = balanced_accuracy(decided, rule, SAID)
    return cells


def _rate(decided: Decided, rule: str, present: bool) -> Estimate:
    """Share of the true, or of the false premises that get a mask."""
    own = decided.present == present
    terms = np.stack([decided.rules[rule] * own, own.astype(np.float64)], axis=1)
    return bootstrap_sums(terms, lambda sums: sums[:, 0] / sums[:, 1], groups=decided.images, count=int(own.sum()))


def _hits(decided: Decided, shares: Float[np.ndarray, " M"]) -> Float[np.ndarray, "M 4"]:
    true = decided.present.astype(np.float64)
    return np.stack([shares * true, true, (1 - shares) * (1 - true), 1 - true], axis=1)


def _shares(decided: Decided, rule: str) -> Float[np.ndarray, " M"]:
    fixed = {_ALWAYS: 1.0, _NEVER: 0.0}
    if rule == _TRUTH:
        return decided.present.astype(np.float64)
    return decided.rules[rule] if rule not in fixed else np.full(len(decided.records), fixed[rule])


def _ious(decided: Decided, rule: str) -> Float[np.ndarray, "M 2"]:
    """Sum of the IoU of all masks of each question, and how many they are, if this rule decides."""
    shares = _shares(decided, rule)[:, None]
    return shares * _sums(decided, True) + (1 - shares) * _sums(decided, False)


def _sums(decided: Decided, drawn: bool) -> Float[np.ndarray, "M 2"]:
    counts = [record.drawn if drawn else record.refused for record in decided.records]
    found = [(mask_ious([i for i, _ in own], [u for _, u in own]).sum(), len(own)) for own in counts]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _giou(decided: Decided, rule: str) -> Estimate:
    """Over the masks of true premises."""
    terms = _ious(decided, rule) * decided.present[:, None]
    return bootstrap_sums(
        terms, lambda sums: sums[:, 0] / sums[:, 1], groups=decided.images, count=int(decided.present.sum())
    )


def _counted(decided: Decided, images: str) -> list[str]:
    """What the numbers are over, and what had to be left at the lowest score."""
    true = int(decided.present.sum())
    notes = [
        PROTOCOLS["generated"],
        f"{len(decided.records)} questions, {true} with a true and {len(decided.records) - true} with a false premise, "
        f"about {images or f'{len(set(decided.images))} images'}; intervals of 95% draw whole images",
    ]
    without = {kind.name: sum(r.scores[name] is None for r in decided.records) for name, kind in SCORES.items()}
    told = ", ".join(f"{name} of {count}" for name, count in without.items() if count)
    if told:
        notes.append(f"no finite score (an empty answer, or nothing to prompt with), counted as the lowest: {told}")
    cut = sum(not record.finished for record in decided.records)
    if cut:
        notes.append(f"answers that were cut off: {cut}")
    return notes


def _part_notes(decided: Decided, parts: Sequence[_Part]) -> list[str]:
    shown: dict[str, int] = {}
    for part in parts:
        shown[part.group] = shown.get(part.group, 0) + len(part.decided.records)
    lost = [f"{len(decided.records) - count} by {group}" for group, count in shown.items()]
    left_out = [told for told in lost if not told.startswith("0 ")]
    notes = ["intervals of 95% draw whole images"]
    if left_out:
        notes.append(f"parts with only true or only false premises are left out (questions: {', '.join(left_out)})")
    return notes
