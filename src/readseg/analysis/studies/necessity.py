"""Is [SEG] needed to decide whether to segment? The decision against thresholds on the map and the mask (appendix E).

A model that says [SEG] decides in words that the object is there. Could a threshold decide instead? For every question
that asks for an object, of true and of false premises, one state h speaks for the answer: the one that came closest to
saying [SEG].

    P_t = softmax(lm_head(h_t))[SEG] at place t of the answer,    h = h_t with the highest P_t; of an answer that
                                                                   holds [SEG], among the states that said it

Where the answer holds [SEG], h is what its mask is made of; where it holds none, h is what a mask would be made of, had
[SEG] been said there. Map and mask of h are scored, a record for each question (`DecisionRecord`), and all tables are
made of these records. Protocol "generated" only: an answer that is given decides nothing.

Source: appendix E.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import FiniteFloat

from readseg.analysis.cases import Case, cases_of
from readseg.analysis.study import NoOptions, Study, StudyContext, StudyOutput
from readseg.core.io import atomic_write
from readseg.core.stats import Estimate, Roc, auc, bootstrap_sums, bootstrap_weights, cross_fitted, mask_ious, roc
from readseg.core.token_grid import axes, cells_inside
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, chosen
from readseg.evaluation.predictions import score
from readseg.evaluation.report import PROTOCOLS
from readseg.evaluation.run import FixedAnswer, answered, unanswered
from readseg.inference.segmenter import Segmenter
from readseg.viz.charts import Curve, line_chart
from readseg.viz.tables import Cell, Row, Table

WORD, MAP, MASK = "the word", "a threshold on the map", "a threshold on the mask"


class Kind(NamedTuple):
    """A number that could decide: what it is read from, its name, and a short one where many stand side by side."""

    group: str
    name: str
    short: str


SCORES: Mapping[str, Kind] = {
    "p_seg": Kind(WORD, "P([SEG])", "P([SEG])"),
    "peak": Kind(MAP, "highest similarity", "similarity"),
    "peak_z": Kind(MAP, "z-score of the map's peak", "z-score"),
    "mask_highest": Kind(MASK, "highest probability of mask", "highest p"),
    "mask_mean": Kind(MASK, "mean probability within mask", "mean p"),
    "mask_area": Kind(MASK, "area of the mask", "area"),
    "mask_iou": Kind(MASK, "IoU that SAM predicts", "IoU"),
}
"""What is asked for a decision, in the order of the tables; `map_scores` and `mask_scores` say what each is."""


@dataclass(frozen=True)
class DecisionRecord:
    """One question, what was decided and what could have decided, as the study keeps it.

    `scores` has None where there is none: an answer without any token, a prompt without any point, or what is no finite
    number. `drawn` are intersection and union of each mask if a mask is given, the answer's, or that of h where it has
    none; `refused` those if none is given. Both are counted as evaluation counts them (`predictions.score`).
    """

    key: str
    image: str
    section: str
    kind: str
    tags: tuple[str, ...]
    present: bool
    said: bool  # whether the answer holds [SEG]
    finished: bool
    scores: Mapping[str, FiniteFloat | None]
    drawn: tuple[tuple[int, int], ...]
    refused: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.scores.keys() != SCORES.keys():
            raise ValueError(f"expected the scores {', '.join(SCORES)}, got {', '.join(self.scores)}")


def check_premises(benchmark: Benchmark, limit: int | None = None) -> None:
    """An error, before any model is asked, where the answers are given, or true or false premises are missing."""
    if benchmark.protocol != "generated":
        raise ReadsegError(
            f"benchmark {benchmark.name}: under the protocol {benchmark.protocol!r} the answer with [SEG] is given to "
            "the model, which then decides nothing; use --protocol generated"
        )
    premises: set[bool] = set()
    numbers = chosen(benchmark, limit)
    for number in numbers:
        premises |= {query.present for query in benchmark[number].questions if query.present is not None}
        if len(premises) == 2:
            return
    missing = "true" if premises == {False} else "false" if premises == {True} else "true or false"
    raise ReadsegError(
        f"benchmark {benchmark.name}: no {missing} premises are among its {len(numbers)} images, so there is nothing "
        "to decide; scenes, fprefcoco, R-refcoco, grefcoco, and reasonseg with false premises, have both"
    )


@torch.inference_mode()
def measure(segmenter: Segmenter, benchmark: Benchmark, questions: ImageQuestions) -> list[DecisionRecord]:
    """The records of all questions about an image that ask for an object."""
    asking = [case for case in cases_of(segmenter, benchmark, questions) if case.query.present is not None]
    return [_record(segmenter, benchmark, case) for case in asking]


def seg_probabilities(segmenter: Segmenter, states: Float[torch.Tensor, "T D"]) -> Float[np.ndarray, " T"]:
    """P_t of this module's head: (T, D) -> (T,), how probable [SEG] is at each place of an answer.

    The softmax is taken in float64: in float32 all that is nearly certain would be equal.
    """
    with torch.inference_mode():
        logits = segmenter.model.lmm.lm_head(states).float().cpu().double()
        return logits.softmax(dim=-1)[:, segmenter.model.config.seg_token_id].numpy()


def place_of(probabilities: Float[np.ndarray, " T"], ids: Sequence[int], seg: int) -> int | None:
    """The place whose state speaks for an answer: of the [SEG] that it holds, else of all places, the most probable.

    The first one of equals; None for an answer without any token. `ids` (T,) are the answer's tokens.

    >>> place_of(np.array([0.1, 0.3, 0.2]), [7, 8, 9], seg=5), place_of(np.array([0.1, 0.3, 0.2]), [5, 8, 5], seg=5)
    (1, 2)
    """
    places = [place for place, token in enumerate(ids) if token == seg] or list(range(len(ids)))
    return max(places, key=lambda place: float(np.nan_to_num(probabilities[place], nan=-1.0)), default=None)


def map_scores(similarity: Float[np.ndarray, " N"], width: int, bias: float = 0.0) -> dict[str, float]:
    """What a similarity map says, before it is brought to [0, 1]: there its peak is always 1.

        peak = max_i s_i / sqrt(D) + b        peak_z = (max_i s_i - mean_i s_i) / std_i s_i, 0 for a constant map

    s (N,) are the scores of the image tokens that lie in the image, D is `width`, b the bias of the loss on the map.

    >>> map_scores(np.array([0.0, 0.0, 4.0, 4.0]), width=4)
    {'peak': 2.0, 'peak_z': 1.0}
    """
    values = similarity.astype(np.float64)
    highest, deviation = float(values.max()), float(values.std())
    z = (highest - float(values.mean())) / deviation if deviation > 0 else 0.0 if deviation == 0 else math.nan
    return {"peak": highest / math.sqrt(width) + bias, "peak_z": z}


def mask_scores(logits: Float[np.ndarray, "H W"]) -> dict[str, float]:
    """What a mask says of itself: p = sigmoid(logits), and the mask is p > 1/2.

        mask_highest = max p        mask_mean = mean of p within the mask        mask_area = share of p > 1/2

    mask_mean is 0 where the mask is empty: it claims nothing.

    >>> mask_scores(np.log(np.array([[3.0, 1 / 3], [1.0, 0.25]])))
    {'mask_highest': 0.75, 'mask_mean': 0.75, 'mask_area': 0.25}
    """
    values = logits.astype(np.float64)
    inside = values > 0
    with np.errstate(over="ignore"):  # exp(-x) of a very low logit is infinite, and its probability 0
        mean = float((1 / (1 + np.exp(-values[inside]))).mean()) if inside.any() else 0.0
        highest = float(1 / (1 + np.exp(-values.max())))
    return {"mask_highest": highest, "mask_mean": mean, "mask_area": float(inside.mean())}


def _record(segmenter: Segmenter, benchmark: Benchmark, case: Case) -> DecisionRecord:
    answer, seg = case.reply.answer, segmenter.model.config.seg_token_id
    probabilities = seg_probabilities(segmenter, answer.states)
    place = place_of(probabilities, answer.ids, seg)
    scores: dict[str, float] = {}
    masks = np.zeros((0, *case.encoded.frame.hw), bool)
    if place is not None:
        scores, mask = _score_state(segmenter, case, answer.states[place])
        # Of all places: another one may have come as close as the [SEG] that was said.
        scores["p_seg"] = float(probabilities.max())
        several = answer.ids.count(seg) > 1
        masks = segmenter.decode(case.encoded, [case.reply])[0].masks if several else mask[None]
    question = unanswered(case.page, case.query, case.encoded.image)
    drawn, refused = (
        score(answered(question, FixedAnswer("", bool(len(given)), given)), benchmark.match)
        for given in (masks, masks[:0])
    )
    finite = {name: value for name, value in scores.items() if math.isfinite(value)}
    return DecisionRecord(
        key=case.query.key,
        image=case.page.image_id,
        section=case.page.section,
        kind=case.query.kind,
        tags=tuple(sorted(case.query.tags)),
        present=bool(case.query.present),
        said=seg in answer.ids,
        finished=answer.finished,
        scores={name: finite.get(name) for name in SCORES},
        drawn=tuple(zip(drawn.intersections, drawn.unions, strict=True)),
        refused=tuple(zip(refused.intersections, refused.unions, strict=True)),
    )


def _score_state(
    segmenter: Segmenter, case: Case, state: Float[torch.Tensor, " D"]
) -> tuple[dict[str, float], np.ndarray]:
    """The scores of the map and the mask of one state, prompted as the model is, and the mask (H, W) bool."""
    model, frame = segmenter.model, case.encoded.frame
    h_seg = state[None]
    similarity = model.similarity(h_seg, case.encoded.h_img)
    box = frame.lmm_box if model.config.points.alignment == "exact" else None
    side = math.isqrt(similarity.shape[1])
    inside = cells_inside(axes(frame.hw, model.config.points.alignment, box), side, similarity.device).flatten()
    if not inside.any():  # an image so narrow that no cell's centre lies in it
        inside = torch.ones_like(inside)
    bias = float(model.map_bias) if model.config.map_loss_weight else 0.0
    scores = map_scores(similarity[0, inside].float().cpu().numpy(), len(state), bias)

    estimates: list[float] = []  # none where nothing prompts the decoder
    handle = model.sam.mask_decoder.register_forward_hook(
        lambda _module, _args, output: estimates.append(float(output[1].flatten()[0]))
    )
    try:
        first = torch.zeros(1, dtype=torch.long, device=h_seg.device)
        _, low_res = model.decode_masks(h_seg, similarity, first, case.encoded.mask_embeddings, [frame])
    finally:
        handle.remove()
    logits = frame.masks_to_image(low_res)[0].float().cpu().numpy()
    return scores | mask_scores(logits) | ({"mask_iou": estimates[0]} if estimates else {}), logits > 0


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
    """All questions of one model with what each rule decides."""

    records: Sequence[DecisionRecord]
    present: Bool[np.ndarray, " M"]
    scores: Mapping[str, Float[np.ndarray, " M"]]  # -inf where there is none
    rules: Mapping[str, Float[np.ndarray, " M"]]  # shares, of `SAID` and of the scores whose threshold could be chosen

    @property
    def images(self) -> list[str]:
        """The image of each question."""
        return [record.image for record in self.records]


def decide(records: Sequence[DecisionRecord]) -> Decided:
    """Arrays of the records (M,), and the decisions of all rules."""
    present = np.array([record.present for record in records], dtype=bool)
    values = {name: [record.scores[name] for record in records] for name in SCORES}
    scores = {name: np.array([-math.inf if v is None else v for v in own]) for name, own in values.items()}
    rules = {SAID: np.array([float(record.said) for record in records])}
    for name, own in scores.items():
        if (shares := cross_fitted(own, present, [record.image for record in records])) is not None:
            rules[name] = shares
    return Decided(records, present, scores, rules)


def curves(decided: Decided) -> dict[str, Roc]:
    """The ROC curve of each score, by name of `SCORES`; none where only true or only false premises are there."""
    if not decided.present.any() or decided.present.all():
        return {}
    return {name: roc(scores, decided.present) for name, scores in decided.scores.items()}


def operating_point(decided: Decided) -> tuple[Estimate, Estimate]:
    """False positive rate and true positive rate of the decision itself."""
    return _rate(decided, SAID, False), _rate(decided, SAID, True)


def necessity_tables(records: Sequence[DecisionRecord], model: str, benchmark: str, images: str = "") -> list[Table]:
    """The tables of the study: decisions, their masks, and both by parts of the benchmark where it has some."""
    decided = decide(records)
    return [
        _decisions(decided, model, benchmark, images),
        _masks(decided, model, benchmark, images),
        *_by_part(decided, model, benchmark),
    ]


def balanced_accuracy(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """(share of true premises with a mask + share of false ones without) / 2; less that of `beside`, paired."""

    def score(sums: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, " R"]:
        return (sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3]) / 2

    return _paired(decided, [_hits(decided, decided.rules[name]) for name in (rule, beside) if name], score)


def giou_all(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """The gIoU over all questions if a rule decides: a mask for a false premise counts 0, a refusal 1; paired likewise.

    Rules are those of `Decided.rules`, and "always", "never", "truth".
    """
    return _paired(decided, [_ious(decided, name) for name in (rule, beside) if name], _ratio)


def area(decided: Decided, name: str, beside: str | None = None) -> Estimate:
    """Area under the ROC curve of a score; less that of the score `beside`, paired."""

    def score(weights: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        own = auc(decided.scores[name], decided.present, weights)
        return own if beside is None else own - auc(decided.scores[beside], decided.present, weights)

    return bootstrap_weights(score, groups=decided.images)


def _ratio(sums: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " R"]:
    return sums[:, 0] / sums[:, 1]


def _paired(
    decided: Decided,
    terms: Sequence[Float[np.ndarray, "M K"]],
    score: Callable[[Float[np.ndarray, "R K"]], Float[np.ndarray, " R"]],
) -> Estimate:
    """A score of the first terms, less that of the second where there are some."""

    def difference(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        own, *others = np.split(sums, len(terms), axis=1)
        return score(own) - score(others[0]) if others else score(own)

    return bootstrap_sums(np.concatenate(terms, axis=1), difference, groups=decided.images)


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


def _by_part(decided: Decided, model: str, benchmark: str) -> list[Table]:
    """AUC and balanced accuracy of the parts; none where a benchmark has no parts."""
    parts = _parts(decided)
    if not parts:
        return []
    shown: dict[str, int] = {}
    for group, _, part in parts:
        shown[group] = shown.get(group, 0) + len(part.records)
    questions = len(decided.records)
    notes = ["intervals of 95% draw whole images"]
    if lost := [f"{questions - count} by {group}" for group, count in shown.items() if count != questions]:
        notes.append(f"parts with only true or only false premises are left out (questions: {', '.join(lost)})")
    chosen_notes = ["one threshold for all parts, chosen on other images"] if len(decided.rules) > 1 else []
    short = {SAID: "[SEG]", **{name: kind.short for name, kind in SCORES.items()}}

    def table(title: str, score: Callable[[Decided, str], Estimate], names: Iterable[str], more: list[str]) -> Table:
        rows = []
        for group, part_name, part in parts:
            true = int(part.present.sum())
            counts = f"{true}/{len(part.present) - true}"
            rows.append(Row(part_name, {"n": counts, **{name: score(part, name) for name in names}}, group))
        columns = {"n": "true/false", **{name: short[name] for name in names}}
        return Table(f"{benchmark}: {title} by part, {model}", "questions", columns, rows, [*more, *notes])

    return [
        table("AUC", area, SCORES, []),
        table("balanced accuracy", balanced_accuracy, decided.rules, chosen_notes),
    ]


def _parts(decided: Decided) -> list[tuple[str, str, Decided]]:
    """Group and name of the kinds, sections and lengths that hold true and false premises, where several do."""
    groupings: dict[str, tuple[Iterable[str], Callable[[DecisionRecord, str], bool]]] = {
        "kind of question": (sorted({r.kind for r in decided.records}), lambda r, name: r.kind == name),
        "section": (dict.fromkeys(r.section for r in decided.records), lambda r, name: r.section == name),
        "length": (LENGTHS, lambda r, name: name in r.tags),
    }
    parts = []
    for group, (names, belongs) in groupings.items():
        both = []
        for name in names:
            own = np.array([belongs(record, name) for record in decided.records], dtype=bool)
            if name and decided.present[own].any() and not decided.present[own].all():
                both.append((group, name, _subset(decided, own)))
        parts += both if len(both) > 1 else []
    return parts


def _subset(decided: Decided, own: Bool[np.ndarray, " M"]) -> Decided:
    return Decided(
        [decided.records[k] for k in np.flatnonzero(own).tolist()],
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
    return bootstrap_sums(terms, _ratio, groups=decided.images, count=int(own.sum()))


def _hits(decided: Decided, shares: Float[np.ndarray, " M"]) -> Float[np.ndarray, "M 4"]:
    true = decided.present.astype(np.float64)
    return np.stack([shares * true, true, (1 - shares) * (1 - true), 1 - true], axis=1)


def _ious(decided: Decided, rule: str) -> Float[np.ndarray, "M 2"]:
    """Sum of the IoU of all masks of each question, and how many they are, if this rule decides."""
    true, every = decided.present.astype(np.float64), np.ones(len(decided.present))
    shares = {**decided.rules, _ALWAYS: every, _NEVER: 0 * every, _TRUTH: true}[rule][:, None]
    return shares * _sums(decided, True) + (1 - shares) * _sums(decided, False)


def _sums(decided: Decided, drawn: bool) -> Float[np.ndarray, "M 2"]:
    counts = [record.drawn if drawn else record.refused for record in decided.records]
    sums = [(mask_ious([i for i, _ in own], [u for _, u in own]).sum(), len(own)) for own in counts]
    return np.array(sums, dtype=np.float64).reshape(-1, 2)


def _giou(decided: Decided, rule: str) -> Estimate:
    """Over the masks of true premises."""
    terms = _ious(decided, rule) * decided.present[:, None]
    return bootstrap_sums(terms, _ratio, groups=decided.images, count=int(decided.present.sum()))


def _counted(decided: Decided, images: str) -> list[str]:
    """What the numbers are over, and what had to be left at the lowest score."""
    true = int(decided.present.sum())
    notes = [
        PROTOCOLS["generated"],
        f"{len(decided.records)} questions, {true} with a true and {len(decided.records) - true} with a false premise, "
        f"about {images or f'{len(set(decided.images))} images'}; intervals of 95% draw whole images",
    ]
    without = {kind.name: sum(r.scores[name] is None for r in decided.records) for name, kind in SCORES.items()}
    if counts := ", ".join(f"{name} of {count}" for name, count in without.items() if count):
        notes.append(f"no finite score (an empty answer, or nothing to prompt with), counted as the lowest: {counts}")
    if cut := sum(not record.finished for record in decided.records):
        notes.append(f"answers that were cut off: {cut}")
    return notes


def run(context: StudyContext, options: NoOptions) -> StudyOutput:
    """The tables of each model, its ROC curves as numbers and as a chart."""
    check_premises(context.benchmark, context.limit)
    tables: list[Table] = []
    pictures: dict[str, Image.Image] = {}
    points: dict[str, Any] = {}
    for model in context.models:
        ask = partial(measure, model.segmenter, context.benchmark)
        records = context.measure(model, ask, DecisionRecord, "necessity", model.settings)
        images = f"{context.about['images']} of {context.about['of']} images"
        tables += necessity_tables(records, model.name, context.benchmark.name, images)
        points[model.name], chart = _roc_chart(records, model.name, context.benchmark.name, images)
        pictures["" if len(context.models) == 1 else context.folder_of(model).name] = chart
    with atomic_write(context.out / "roc.json") as place:
        place.write_text(json.dumps(points, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return StudyOutput(tables, pictures)


def _roc_chart(
    records: Sequence[DecisionRecord], model: str, benchmark: str, images: str
) -> tuple[dict[str, Any], Image.Image]:
    """The ROC curves as JSON values and as a chart, with the decision itself as a point."""
    decided = decide(records)
    false_positive, true_positive = operating_point(decided)
    own = {"false_positive": [false_positive.value], "true_positive": [true_positive.value]}
    values = {
        name: {axis: rates.tolist() for axis, rates in curve._asdict().items()}
        for name, curve in curves(decided).items()
    }
    charted = [Curve(_NAMES[SAID], own["false_positive"], [true_positive], mark=True)]
    for name, curve in values.items():
        label = f"{SCORES[name].name} ({auc(decided.scores[name], decided.present)[0]:.3f})"
        charted.append(Curve(label, curve["false_positive"], curve["true_positive"]))
    chart = line_chart(
        charted,
        title=f"{benchmark}: who decides whether to segment? {model}",
        x_label="false premises with a mask",
        y_label="true premises with a mask",
        x_limits=(0.0, 1.0),
        y_limits=(0.0, 1.0),
        note=f"{len(records)} questions about {images}; in brackets the area under the curve. Thresholds of a curve "
        "are not chosen: it shows what each of them would decide.",
        diagonal=True,
    )
    return {**values, SAID: own}, chart


STUDY = Study("necessity", NoOptions, run)
