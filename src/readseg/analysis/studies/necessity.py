"""Is [SEG] needed to decide whether to segment? The decision against thresholds on the map and the mask (appendix E).

A model that says [SEG] decides in words that the object is there. Could a threshold decide instead? For every question
that asks for an object, of true and of false premises, one state h speaks for the answer: the one that came closest to
saying [SEG].

    P_t = softmax(lm_head(h_t))[SEG] at place t of the answer,    h = h_t with the highest P_t; of an answer that
                                                                   holds [SEG], among the states that said it

Where the answer holds [SEG], h is what its mask is made of; where it holds none, h is what a mask would be made of, had
[SEG] been said there. Map and mask of h are scored, a record for each question (`Considered`), and all numbers are made
of these records (`analysis.necessity_tables`). Protocol "generated" only: an answer that is given decides nothing.

Source: appendix E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from readseg.analysis.cases import Case, cases_of
from readseg.core.token_grid import axes, cells_inside
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, chosen
from readseg.evaluation.predictions import score
from readseg.evaluation.run import FixedAnswer, answered, unanswered
from readseg.inference.segmenter import Segmenter

WORD, MAP, MASK = "the word", "a threshold on the map", "a threshold on the mask"


@dataclass(frozen=True)
class Kind:
    """A number that could decide.

    group: what it is read from.
    name: in tables and charts.
    short: where many stand side by side.
    """

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
class Considered:
    """One question, what was decided and what could have decided, as the study keeps it.

    Attributes:
        key: of the question.
        image: that it is about.
        section: part of the benchmark.
        kind: of question.
        tags: of the question.
        present: whether the object is there.
        said: whether the answer holds [SEG].
        finished: False where the answer was cut off.
        scores: by name of `SCORES`; None where there is none: an answer without any token, a prompt without any point,
            or what is no finite number.
        drawn: intersection and union of each mask if a mask is given: the answer's, or that of h where it has none.
        refused: likewise if none is given. Both are counted as evaluation counts them (`outcomes.score`).
    """

    key: str
    image: str
    section: str
    kind: str
    tags: tuple[str, ...]
    present: bool
    said: bool
    finished: bool
    scores: Mapping[str, float | None]
    drawn: tuple[tuple[int, int], ...]
    refused: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Considered:
        """Reads back what `to_json` gave.

        Raises:
            ReadsegError: a field is missing or is not what it should be.
        """
        try:
            drawn, refused = (
                tuple((int(inter), int(union)) for inter, union in record[name]) for name in ("drawn", "refused")
            )
            found = cls(
                **{name: record[name] for name in ("key", "image", "section", "kind", "present", "said", "finished")},
                tags=tuple(record["tags"]),
                scores={name: None if (value := record["scores"][name]) is None else float(value) for name in SCORES},
                drawn=drawn,
                refused=refused,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ReadsegError(f"expected the record of a question of this study, got {dict(record)!r:.80}") from error
        texts = (found.key, found.image, found.section, found.kind, *found.tags)
        decisions = (found.present, found.said, found.finished)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, bool) for one in decisions):
            raise ReadsegError(f"expected texts, and true or false, in a question's record, got {dict(record)!r:.80}")
        return found


def check_premises(benchmark: Benchmark, limit: int | None = None) -> None:
    """Makes sure, before any model is asked, that there is something to decide.

    Args:
        benchmark: that is to be asked.
        limit: how many images of it.

    Raises:
        ReadsegError: the answers are given, or only true or only false premises are there.
    """
    if benchmark.protocol != "generated":
        raise ReadsegError(
            f"benchmark {benchmark.name}: under the protocol {benchmark.protocol!r} the answer with [SEG] is given to "
            "the model, which then decides nothing; use --protocol generated"
        )
    there: set[bool] = set()
    numbers = chosen(benchmark, limit)
    for number in numbers:
        there |= {query.present for query in benchmark[number].questions if query.present is not None}
        if len(there) == 2:
            return
    missing = "true" if there == {False} else "false" if there == {True} else "true or false"
    raise ReadsegError(
        f"benchmark {benchmark.name}: no {missing} premises are among its {len(numbers)} images, so there is nothing "
        "to decide; scenes, fprefcoco, R-refcoco, grefcoco, and reasonseg with false premises, have both"
    )


@torch.inference_mode()
def consider(segmenter: Segmenter, benchmark: Benchmark, page: ImageQuestions) -> list[Considered]:
    """Asks a model all questions of a page that ask for an object, and scores what could decide about a mask.

    Args:
        segmenter: the model.
        benchmark: under whose protocol and match.
        page: of the benchmark.

    Raises:
        ReadsegError: the protocol is not "generated"; or what `cases_of` raises.
    """
    if benchmark.protocol != "generated":
        raise ReadsegError(f"benchmark {benchmark.name}: expected the protocol 'generated', got 'forced'")
    asking = [case for case in cases_of(segmenter, benchmark, page) if case.query.present is not None]
    return [_considered(segmenter, benchmark, case) for case in asking]


def seg_probabilities(segmenter: Segmenter, states: Float[torch.Tensor, "T D"]) -> Float[np.ndarray, " T"]:
    """P_t of this module's head: (T, D) -> (T,), how probable [SEG] is at each place of an answer.

    The softmax is taken in float64: in float32 all that is nearly certain would be equal.
    """
    with torch.inference_mode():
        logits = segmenter.model.lmm.lm_head(states).float().cpu().double()
        return logits.softmax(dim=-1)[:, segmenter.model.config.seg_token_id].numpy()


def place_of(probabilities: Float[np.ndarray, " T"], ids: Sequence[int], seg: int) -> int | None:
    """The place whose state speaks for an answer: of the [SEG] that it holds, or else of all places.

    Args:
        probabilities: (T,), of [SEG] at each place.
        ids: T tokens.
        seg: which of them is [SEG].

    Returns:
        The first one with the highest probability; None for an answer without any token.

    >>> place_of(np.array([0.1, 0.3, 0.2]), [7, 8, 9], seg=5), place_of(np.array([0.1, 0.3, 0.2]), [5, 8, 5], seg=5)
    (1, 2)
    """
    places = [place for place, token in enumerate(ids) if token == seg] or list(range(len(ids)))
    return max(places, key=lambda place: float(np.nan_to_num(probabilities[place], nan=-1.0)), default=None)


def map_scores(similarity: Float[np.ndarray, " N"], width: int, bias: float = 0.0) -> dict[str, float]:
    """What a similarity map says, before it is brought to [0, 1]: there its peak is always 1.

        peak = max_i s_i / sqrt(D) + b        peak_z = (max_i s_i - mean_i s_i) / std_i s_i, 0 for a constant map

    Args:
        similarity: (N,) scores of the image tokens that lie in the image.
        width: D, of the states.
        bias: b of the loss on the map (`ReadModel.map_bias`), for a model that was trained with one.

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

    Args:
        logits: (H, W), at the image's size.

    Returns:
        The three; mask_mean is 0 where the mask is empty: it claims nothing.

    >>> mask_scores(np.log(np.array([[3.0, 1 / 3], [1.0, 0.25]])))
    {'mask_highest': 0.75, 'mask_mean': 0.75, 'mask_area': 0.25}
    """
    values = logits.astype(np.float64)
    inside = values > 0
    with np.errstate(over="ignore"):  # exp(-x) of a very low logit is infinite, and its probability 0
        mean = float((1 / (1 + np.exp(-values[inside]))).mean()) if inside.any() else 0.0
        highest = float(1 / (1 + np.exp(-values.max())))
    return {"mask_highest": highest, "mask_mean": mean, "mask_area": float(inside.mean())}


def _considered(segmenter: Segmenter, benchmark: Benchmark, case: Case) -> Considered:
    answer, seg = case.reply.answer, segmenter.model.config.seg_token_id
    probabilities = seg_probabilities(segmenter, answer.states)
    place = place_of(probabilities, answer.ids, seg)
    found: dict[str, float] = {}
    masks = np.zeros((0, *case.encoded.frame.hw), bool)
    if place is not None:
        scores, mask = _of_state(segmenter, case, answer.states[place])
        # Of all places: another one may have come as close as the [SEG] that was said.
        found = {"p_seg": float(probabilities.max()), **scores}
        several = answer.ids.count(seg) > 1
        masks = segmenter.decode(case.encoded, [case.reply])[0].masks if several else mask[None]
    question = unanswered(case.page, case.query, case.encoded.image)
    drawn, refused = (
        score(answered(question, FixedAnswer("", bool(len(some)), some)), benchmark.match)
        for some in (masks, masks[:0])
    )
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    return Considered(
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


def _of_state(
    segmenter: Segmenter, case: Case, state: Float[torch.Tensor, " D"]
) -> tuple[dict[str, float], np.ndarray]:
    """The scores of the map and the mask of one state, prompted as the model is, and the mask (H, W) bool."""
    model, frame = segmenter.model, case.encoded.frame
    h_seg = state[None]
    similarity = model.similarity(h_seg, case.encoded.h_img)
    box = frame.lmm_box if model.config.points.alignment == "exact" else None
    side = math.isqrt(similarity.shape[1])
    inside = cells_inside(*axes(frame.hw, model.config.points.alignment, box), side, similarity.device).flatten()
    if not inside.any():  # an image so narrow that no cell's centre lies in it
        inside = torch.ones_like(inside)
    bias = float(model.map_bias) if model.config.map_loss_weight else 0.0
    found = map_scores(similarity[0, inside].float().cpu().numpy(), len(state), bias)

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
    found |= mask_scores(logits)
    found |= {"mask_iou": estimates[0]} if estimates else {}
    return found, logits > 0
