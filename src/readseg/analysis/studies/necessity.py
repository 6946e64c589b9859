"""Is [SEG] needed to decide whether to segment? The decision against thresholds on the map and the mask (appendix E).

For every question that asks for an object one state h speaks for the answer: the one that came closest to saying [SEG].

    P_t = softmax(lm_head(h_t))[SEG] at place t of the answer,    h = h_t with the highest P_t; of an answer that
                                                                   holds [SEG], among the states that said it

Where the answer holds [SEG], h is what its mask is made of; else what a mask would be made of, had [SEG] been said
there. Map and mask of h are scored. Protocol "generated" only: an answer that is given decides nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import FiniteFloat

from readseg.analysis.cases import Case, cases_of
from readseg.analysis.study import NoOptions, Study, StudyContext, StudyOutput
from readseg.core.io import atomic_write, read_yaml
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

_TEXTS = read_yaml(Path(__file__).with_suffix(".yaml"))
SAID, ALWAYS, NEVER, TRUTH = "said", "always", "never", "truth"
"""What decides without a score: the answer holds [SEG], a mask for every question, none at all, the truth itself."""


class Kind(NamedTuple):
    """What could decide: what it is read from, its name, and a short one where many stand side by side."""

    group: str
    name: str
    short: str = ""


SCORES: Mapping[str, Kind] = {name: Kind(**kind) for name, kind in _TEXTS["scores"].items()}
"""What is asked for a decision, in the order of the tables; `map_scores` and `mask_scores` say what each is."""
_OTHERS: Mapping[str, Kind] = {name: Kind(**kind) for name, kind in _TEXTS["others"].items()}
_RULES: Mapping[str, Kind] = {SAID: _OTHERS[SAID], **SCORES, **_OTHERS}


@dataclass(frozen=True)
class DecisionRecord:
    """One question, what was decided and what could have decided, as the study keeps it."""

    key: str
    image: str
    section: str
    kind: str
    tags: tuple[str, ...]
    present: bool
    said: bool  # whether the answer holds [SEG]
    finished: bool
    # None where there is none: an answer without any token, a prompt without any point, or what is no finite number.
    scores: Mapping[str, FiniteFloat | None]
    # Intersection and union of each mask, counted as evaluation counts them: if a mask is given, the answer's, or that
    # of h where it has none; and if none is given.
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
    return [_record(segmenter, benchmark, case) for case in cases_of(segmenter, benchmark, questions)]


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
    """
    places = [place for place, token in enumerate(ids) if token == seg] or list(range(len(ids)))
    return max(places, key=lambda place: float(np.nan_to_num(probabilities[place], nan=-1.0)), default=None)


def map_scores(similarity: Float[np.ndarray, " N"], width: int, bias: float = 0.0) -> dict[str, float]:
    """What a similarity map says, before it is brought to [0, 1]: there its peak is always 1.

        peak = max_i s_i / sqrt(D) + b        peak_z = (max_i s_i - mean_i s_i) / std_i s_i, 0 for a constant map

    s (N,) are the scores of the image tokens that lie in the image, D is `width`, b the bias of the loss on the map.
    """
    values = similarity.astype(np.float64)
    highest, deviation = float(values.max()), float(values.std())
    z = (highest - float(values.mean())) / deviation if deviation > 0 else 0.0 if deviation == 0 else math.nan
    return {"peak": highest / math.sqrt(width) + bias, "peak_z": z}


def mask_scores(logits: Float[np.ndarray, "H W"]) -> dict[str, float]:
    """What a mask says of itself: p = sigmoid(logits), and the mask is p > 1/2.

        mask_highest = max p        mask_mean = mean of p within the mask        mask_area = share of p > 1/2

    mask_mean is 0 where the mask is empty: it claims nothing.
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


# -- rules and their scores --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decided:
    """All questions of one model with what each rule decides."""

    records: Sequence[DecisionRecord]
    present: Bool[np.ndarray, " M"]
    scores: Mapping[str, Float[np.ndarray, " M"]]  # -inf where there is none
    rules: Mapping[str, Float[np.ndarray, " M"]]  # shares; of scores only where their thresholds could be chosen

    @property
    def images(self) -> list[str]:
        """The image of each question."""
        return [record.image for record in self.records]


def decide(records: Sequence[DecisionRecord], rules: Mapping[str, Float[np.ndarray, " M"]] | None = None) -> Decided:
    """Arrays of the records (M,), and the decisions of all rules, made here where they are not given."""
    present = np.array([record.present for record in records], dtype=bool)
    values = {name: [record.scores[name] for record in records] for name in SCORES}
    scores = {name: np.array([-math.inf if v is None else v for v in own]) for name, own in values.items()}
    if rules is None:
        images, every = [record.image for record in records], np.ones(len(records))
        said = np.array([float(record.said) for record in records])
        fitted = {name: cross_fitted(own, present, images) for name, own in scores.items()}
        rules = {SAID: said, **{name: shares for name, shares in fitted.items() if shares is not None}}
        rules |= {ALWAYS: every, NEVER: 0 * every, TRUTH: present.astype(np.float64)}
    return Decided(records, present, scores, rules)


def curves(decided: Decided) -> dict[str, Roc]:
    """The ROC curve of each score, by name of `SCORES`; none where only true or only false premises are there."""
    if not decided.present.any() or decided.present.all():
        return {}
    return {name: roc(scores, decided.present) for name, scores in decided.scores.items()}


def area(decided: Decided, name: str, beside: str | None = None) -> Estimate:
    """Area under the ROC curve of a score; less that of the score `beside`, paired."""

    def score(weights: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        own = auc(decided.scores[name], decided.present, weights)
        return own if beside is None else own - auc(decided.scores[beside], decided.present, weights)

    return bootstrap_weights(score, groups=decided.images)


def rate(decided: Decided, rule: str, present: bool) -> Estimate:
    """Share of the true, or of the false premises that get a mask."""
    own = (decided.present == present).astype(np.float64)
    return _mean_of_ratios(decided, np.stack([decided.rules[rule] * own, own], axis=1), count=int(own.sum()))


def balanced_accuracy(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """(share of true premises with a mask + share of false ones without) / 2; less that of `beside`, paired."""
    true, rules = decided.present.astype(np.float64), [decided.rules[name] for name in (rule, beside) if name]
    hits = [np.stack([shares * true, true, (1 - shares) * (1 - true), 1 - true], axis=1) for shares in rules]
    return _mean_of_ratios(decided, *hits)


def giou_all(decided: Decided, rule: str, beside: str | None = None) -> Estimate:
    """The gIoU over all questions if a rule decides: a mask for a false premise counts 0, a refusal 1; or paired."""
    return _mean_of_ratios(decided, *(_ious(decided, name) for name in (rule, beside) if name))


def _giou(decided: Decided, rule: str) -> Estimate:
    """Over the masks of true premises."""
    return _mean_of_ratios(decided, _ious(decided, rule) * decided.present[:, None], count=int(decided.present.sum()))


def _ious(decided: Decided, rule: str) -> Float[np.ndarray, "M 2"]:
    """Sum of the IoU of all masks of each question, and how many they are, if this rule decides."""
    shares = decided.rules[rule][:, None]
    records = decided.records
    return shares * _sums([r.drawn for r in records]) + (1 - shares) * _sums([r.refused for r in records])


def _sums(counts: Sequence[tuple[tuple[int, int], ...]]) -> Float[np.ndarray, "M 2"]:
    sums = [(mask_ious([i for i, _ in own], [u for _, u in own]).sum(), len(own)) for own in counts]
    return np.array(sums, dtype=np.float64).reshape(-1, 2)


def _mean_of_ratios(decided: Decided, *terms: Float[np.ndarray, "M K"], count: int | None = None) -> Estimate:
    """The mean of ratios of sums, s0 / s1 and s2 / s3 and so on; less that of the second terms where there are some."""

    def score(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        return reduce(np.subtract, [(s[:, ::2] / s[:, 1::2]).mean(axis=1) for s in np.split(sums, len(terms), axis=1)])

    return bootstrap_sums(np.concatenate(terms, axis=1), score, groups=decided.images, count=count)


# -- tables ------------------------------------------------------------------------------------------------------------


def necessity_tables(records: Sequence[DecisionRecord], model: str, benchmark: str, images: str = "") -> list[Table]:
    """The tables of the study: decisions, their masks, and both by parts of the benchmark where it has some."""
    decided = decide(records)
    counted = _counted(decided, images)
    return [
        _decisions(decided, f"{benchmark}: who decides whether to segment? {model}", counted),
        _masks(decided, f"{benchmark}: the masks that come of it, {model}", counted),
        *_by_part(decided, model, benchmark),
    ]


def _decisions(decided: Decided, title: str, counted: Sequence[str]) -> Table:
    rows = []
    for name in (SAID, *SCORES):
        cells: dict[str, Cell] = {}
        if name in SCORES:
            cells["auc"] = area(decided, name)
        if name in SCORES and name != "p_seg":
            cells["auc_less"] = area(decided, name, "p_seg")
        if name in decided.rules:
            cells["true_positive"], cells["false_positive"] = rate(decided, name, True), rate(decided, name, False)
            cells["balanced"] = balanced_accuracy(decided, name)
            if name != SAID:
                cells["balanced_less"] = balanced_accuracy(decided, name, SAID)
        rows.append(Row(_RULES[name].name, cells, _RULES[name].group))
    texts = _TEXTS["decisions"]
    return Table(title, "decided by", texts["columns"], rows, [*_notes(decided, texts["notes"]), *counted])


def _masks(decided: Decided, title: str, counted: Sequence[str]) -> Table:
    rows = []
    for name, kind in _RULES.items():
        if name in decided.rules:
            cells: dict[str, Cell] = {"giou_all": giou_all(decided, name), "giou": _giou(decided, name)}
            if name != SAID:
                cells["giou_all_less"] = giou_all(decided, name, SAID)
            rows.append(Row(kind.name, cells, kind.group))
    texts = _TEXTS["masks"]
    return Table(title, "decided by", texts["columns"], rows, [*_notes(decided, texts["notes"]), *counted])


def _notes(decided: Decided, notes: Sequence[str | Mapping[str, str]]) -> list[str]:
    """Notes of a table as they are, and those of thresholds by whether some could be chosen."""
    case = "thresholds" if SCORES.keys() & decided.rules.keys() else "no thresholds"
    texts = [note if isinstance(note, str) else note.get(case, "") for note in notes]
    return [text for text in texts if text]


def _by_part(decided: Decided, model: str, benchmark: str) -> list[Table]:
    """AUC and balanced accuracy of the parts; none where a benchmark has no parts."""
    parts = _parts(decided)
    if not parts:
        return []
    rules, questions = [name for name in (SAID, *SCORES) if name in decided.rules], len(decided.records)
    notes = ["intervals of 95% draw whole images"]
    shown = {group: sum(len(part.records) for other, _, part in parts if other == group) for group, _, _ in parts}
    if lost := [f"{questions - count} by {group}" for group, count in shown.items() if count != questions]:
        notes.append(f"parts with only true or only false premises are left out (questions: {', '.join(lost)})")
    tables = []
    for title, number, names in (("AUC", area, list(SCORES)), ("balanced accuracy", balanced_accuracy, rules)):
        rows = []
        for group, part_name, part in parts:
            true = int(part.present.sum())
            cells: dict[str, Cell] = {"n": f"{true}/{len(part.present) - true}"}
            rows.append(Row(part_name, cells | {name: number(part, name) for name in names}, group))
        columns = {"n": "true/false", **{name: _RULES[name].short for name in names}}
        fitted = number is balanced_accuracy and len(rules) > 1
        more = ["one threshold for all parts, chosen on other images"] if fitted else []
        tables.append(Table(f"{benchmark}: {title} by part, {model}", "questions", columns, rows, [*more, *notes]))
    return tables


def _parts(decided: Decided) -> list[tuple[str, str, Decided]]:
    """Group and name of the kinds, sections and lengths that hold true and false premises, where several do."""
    records = decided.records
    groups = {
        "kind of question": {name: [r.kind == name for r in records] for name in sorted({r.kind for r in records})},
        "section": {name: [r.section == name for r in records] for name in dict.fromkeys(r.section for r in records)},
        "length": {name: [name in r.tags for r in records] for name in ("short", "long")},  # ReasonSeg's tags
    }
    parts = []
    for group, members in groups.items():
        both = []
        for name, belongs in members.items():
            own = np.array(belongs, dtype=bool)
            if name and 0 < decided.present[own].sum() < own.sum():
                shares = {rule: values[own] for rule, values in decided.rules.items()}
                both.append((group, name, decide(list(compress(records, belongs)), shares)))
        parts += both if len(both) > 1 else []
    return parts


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
    images = f"{context.about['images']} of {context.about['of']} images"
    tables: list[Table] = []
    pictures: dict[str, Image.Image] = {}
    points: dict[str, Any] = {}
    for model in context.models:
        records = context.measure(
            model, partial(measure, model.segmenter, context.benchmark), DecisionRecord, "necessity", model.settings
        )
        own = necessity_tables(records, model.name, context.benchmark.name, images)
        points[model.name], chart = _roc_chart(records, own[0].title, images)
        pictures["" if len(context.models) == 1 else context.folder_of(model).name] = chart
        tables += own
    with atomic_write(context.out / "roc.json") as place:
        place.write_text(json.dumps(points, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return StudyOutput(tables, pictures)


def _roc_chart(records: Sequence[DecisionRecord], title: str, images: str) -> tuple[dict[str, Any], Image.Image]:
    """The ROC curves as JSON values and as a chart, with the decision itself as a point."""
    decided = decide(records)
    false_positive, true_positive = rate(decided, SAID, False), rate(decided, SAID, True)
    own = {"false_positive": [false_positive.value], "true_positive": [true_positive.value]}
    values = {
        name: {axis: rates.tolist() for axis, rates in curve._asdict().items()}
        for name, curve in curves(decided).items()
    }
    charted = [Curve(_RULES[SAID].name, own["false_positive"], [true_positive], mark=True)]
    for name, curve in values.items():
        label = f"{SCORES[name].name} ({auc(decided.scores[name], decided.present)[0]:.3f})"
        charted.append(Curve(label, curve["false_positive"], curve["true_positive"]))
    chart = line_chart(
        charted,
        title=title,
        x_label="false premises with a mask",
        y_label="true premises with a mask",
        note=f"{len(records)} questions about {images}; in brackets the area under the curve. Thresholds of a curve "
        "are not chosen: it shows what each of them would decide.",
        diagonal=True,
    )
    return {**values, SAID: own}, chart


STUDY = Study("necessity", NoOptions, run)
