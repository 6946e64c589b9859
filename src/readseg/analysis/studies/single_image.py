"""One image and one question, looked at in every way: the numbers behind the figure of `readseg analyse IMAGE`.

Of each [SEG] of each model's answer: the similarity maps at every place of the model, the masks of every kind of
prompt, how well each of them finds the truth where one is given, and how far they agree where none is. Frame: pixels of
the image, H x W. S counts the [SEG] of an answer, N and h * w the cells of a map, P points.

    found = examine_image(segmenter, load_image("desk.png"), "the cup", plain=plain_sam(segmenter))
    found.segs[0].maps["sam"].similarity.map, found.segs[0].masks["points"].mask

Source: section 3.2, appendices A.1 and B, figures 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from transformers import SamModel

from readseg.analysis.looks import EXTREMES, Prompted, maps_of, prompted, words_of
from readseg.analysis.map_metrics import consistency, spearman
from readseg.analysis.similarity_maps import Reading, SimilarityMap, layer_maps, read_reply, similarity_of, token_map
from readseg.analysis.studies.examine import scores_of
from readseg.analysis.studies.measures import Counts, MapScores, iou_of
from readseg.analysis.truth import Truth, joined
from readseg.core.masks import IGNORED, encode_rle, intersection_and_union, iou, union
from readseg.core.sasp import PointConfig
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.viz.tables import plain as as_json

FORMAT = "readseg.analysis.image/1"


@dataclass(frozen=True, eq=False)
class MapFound:
    """A similarity map and what it knows of the truth.

    Attributes:
        similarity: the map.
        scores: None without a truth, without a pixel on the object, or where the map is constant.
    """

    similarity: SimilarityMap
    scores: MapScores | None


@dataclass(frozen=True, eq=False)
class MaskFound:
    """The mask of one kind of prompt.

    Attributes:
        mask: (H, W) bool.
        points_xy: (P, 2), the points in its prompt, pixel indices (x, y).
        labels: (P,) 1 positive, 0 negative, -1 neutral.
        counts: with the truth; None without one.
    """

    mask: Bool[np.ndarray, "H W"] = field(repr=False)
    points_xy: Float[np.ndarray, "P 2"] = field(repr=False)
    labels: Int[np.ndarray, " P"] = field(repr=False)
    counts: Counts | None


@dataclass(frozen=True, eq=False)
class SegFound:
    """All that is found of one [SEG].

    Attributes:
        words: the answer's own words for it (`own_words`), "" where it has none.
        said: of a given answer, whether the model itself would have said [SEG] here; None of its own answer.
        maps: by the names of `measures.MAPS`: "lmm", "sam", "before", and "words" where there are words.
        layers: the maps of all layers 0 ... K, where they were asked for.
        masks: by the names of `measures.PROMPTS`: "own", "both", "seg", "points", and with the original SAM
            "plain_points" and "plain_extremes".
        agreement: IoU of the masks of any two different prompts.
        spearman: rank correlation of the maps "lmm" and "sam"; NaN where one is constant.
        consistency: IoU of their masks, each at its best threshold for the truth; NaN where one is constant, without a
            truth, or without a pixel on the object.
    """

    words: str
    said: bool | None
    maps: Mapping[str, MapFound]
    layers: tuple[MapFound, ...] = field(repr=False)
    masks: Mapping[str, MaskFound]
    agreement: Mapping[tuple[str, str], float]
    spearman: float
    consistency: float


@dataclass(frozen=True, eq=False)
class Nearest:
    """Where an answer without [SEG] came nearest to saying it: a state, and no answer.

    Attributes:
        place: which token of the answer stands there.
        token: its text.
        probability: of [SEG] in its place.
        rank: of [SEG] among all tokens there, 1 for the likeliest.
        look: the map of that state at the last layer: s = h . h_img^T.
    """

    place: int
    token: str
    probability: float
    rank: int
    look: MapFound


@dataclass(frozen=True, eq=False)
class ModelFound:
    """What one model answers, and all that is found of it.

    Attributes:
        name: as the figure calls it.
        source: folder or hub id; None for the embedded one.
        settings: how it was loaded, JSON values.
        question: as the model was asked.
        answer: its words with its [SEG].
        given: whether it was given its answer.
        finished: False where the answer was cut off at the limit of its length.
        present: as in `Segmentation`: None where no object was asked for.
        prompt: what prompts the model's own masks.
        points: how points are chosen.
        extremes: how many highest and how many lowest cells make "plain_extremes".
        original_sam: whether there is one.
        segs: one for each [SEG].
        together: by prompt, counts of the union of the masks of all [SEG] with that of all truths; empty without one.
        nearest: of an answer without [SEG]; None where it has no word either.
    """

    name: str
    source: str | None
    settings: Mapping[str, Any]
    question: str
    answer: str
    given: bool
    finished: bool
    present: bool | None
    prompt: Prompt
    points: PointConfig
    extremes: int
    original_sam: bool
    segs: tuple[SegFound, ...]
    together: Mapping[str, Counts]
    nearest: Nearest | None


@dataclass(frozen=True, eq=False)
class ImageFound:
    """What several models make of one question about one image.

    Attributes:
        source: the image's file.
        image: RGB, upright.
        query: what was asked.
        truths: what is expected: one mask for all [SEG], or the k-th for the k-th; none where that is not known.
        models: in order.
    """

    source: str
    image: Image.Image = field(repr=False)
    query: str
    truths: tuple[Truth, ...]
    models: tuple[ModelFound, ...]

    @property
    def wanted(self) -> bool:
        """Whether there is something to find."""
        return any(truth.wanted for truth in self.truths)

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON values, masks as RLE (`masks.encode_rle`), NaN as null. Maps are told by their scores."""
        found: dict[str, Any] = as_json(
            {
                "format": FORMAT,
                "image": self.source,
                "size": [self.image.height, self.image.width],
                "query": self.query,
                "truths": [_truth_json(truth) for truth in self.truths],
                "models": [_model_json(model) for model in self.models],
            }
        )
        return found


@torch.inference_mode()
def examine_image(
    segmenter: Segmenter,
    image: Image.Image,
    query: str,
    *,
    truths: Sequence[Truth] = (),
    plain: SamModel | None = None,
    answer: str | None = None,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
    extremes: int = EXTREMES,
    layers: bool = False,
    name: str = "",
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelFound:
    """Asks a model one question about one image, and finds all numbers of its answer.

    Args:
        segmenter: the model.
        image: RGB, upright.
        query: as in `Segmenter.segment`.
        truths: what is expected: one mask, which every [SEG] is held against, or the k-th for the k-th [SEG].
        plain: the original SAM beside the model (`plain_sam`), prompted with points alone.
        answer: to give to the model; by default it answers by itself.
        prompt: of the model's own masks; by default its own.
        points: how points are chosen; by default the model's way.
        extremes: k of the prompt "plain_extremes": so many highest and so many lowest cells.
        layers: whether the maps of all layers are made too.
        name: as the figure calls the model.
        source: where the model is from.
        settings: how it was loaded.

    Raises:
        ReadsegError: what `Segmenter.segment` raises.
    """
    encoded = segmenter.encode(image)
    reply = segmenter.reply(encoded, [query], force=answer if answer is not None else False)[0]
    reading = read_reply(segmenter, encoded, reply, prompt=prompt, points=points)
    drawn = prompted(segmenter, encoded, reply, reading, plain, extremes)
    deep = [layer_maps(reading, layer) for layer in range(reading.num_layers + 1)] if layers else []
    segs = tuple(
        _seg_found(
            reading,
            k,
            maps,
            [found[k] for found in deep],
            {kind: one_each[k] for kind, one_each in drawn.items()},
            target_of(truths, k),
        )
        for k, maps in enumerate(_maps(segmenter, encoded, reply, reading))
    )
    result = reading.result
    together = {}
    target = joined(truths) if truths else None
    if target is not None:
        for kind, one_each in (drawn if segs else {"own": []}).items():
            whole = union([one.mask for one in one_each], encoded.frame.hw)
            together[kind] = Counts(*intersection_and_union(whole, target))
    return ModelFound(
        name=name,
        source=source,
        settings=settings or {},
        question=reply.question,
        answer=result.answer,
        given=reply.is_forced,
        finished=result.finished,
        present=result.present,
        prompt=reading.prompt,
        points=reading.points,
        extremes=extremes,
        original_sam=plain is not None,
        segs=segs,
        together=together,
        nearest=None if segs else _nearest(segmenter, reply, reading, target),
    )


def target_of(truths: Sequence[Truth], k: int) -> UInt8[np.ndarray, "H W"] | None:
    """The target (H, W) that the k-th [SEG] is held against, from 0; None where there is none for it."""
    if len(truths) == 1:
        return truths[0].target
    return truths[k].target if k < len(truths) else None


def _maps(
    segmenter: Segmenter, encoded: EncodedImage, reply: ModelAnswer, reading: Reading
) -> Iterator[dict[str, SimilarityMap]]:
    """Of each [SEG] the maps by name, without those that it does not have."""
    found = maps_of(segmenter, encoded, reply, reading, words_of(reading))
    for k in range(len(reading.seg_places)):
        yield {name: one for name, maps in found.items() if (one := maps[k]) is not None}


def _map_found(one: SimilarityMap, target: UInt8[np.ndarray, "H W"] | None) -> MapFound:
    """A map with what it knows of the truth, where there is something to find."""
    return MapFound(one, None if target is None or not (target == 1).any() else scores_of(one.map, target))


def _nearest(
    segmenter: Segmenter, reply: ModelAnswer, reading: Reading, target: UInt8[np.ndarray, "H W"] | None
) -> Nearest | None:
    if not reply.answer.ids:
        return None
    seg = segmenter.model.config.seg_token_id
    logits = segmenter.model.lmm.lm_head(reply.answer.states).float()
    chances = logits.log_softmax(-1)[:, seg]
    place = int(chances.argmax())
    token = segmenter.processor.decode(reply.answer.ids[place : place + 1])
    scores = similarity_of(reading.h_answer[-1, place, None], reading.h_img[-1])[0]
    look = token_map(reading, "lmm", reading.num_layers, token, scores)
    return Nearest(
        place=place,
        token=token,
        probability=float(chances[place].exp()),
        rank=1 + int((logits[place] > logits[place, seg]).sum()),
        look=_map_found(look, target),
    )


# -- one [SEG] ---------------------------------------------------------------------------------------------------------


def _seg_found(
    reading: Reading,
    k: int,
    named: Mapping[str, SimilarityMap],
    deep: Sequence[SimilarityMap],
    own: Mapping[str, Prompted],
    target: UInt8[np.ndarray, "H W"] | None,
) -> SegFound:
    """The k-th [SEG] of its maps by name, its maps of all layers, and what each prompt makes of it."""
    lmm, sam = named["lmm"].map, named["sam"].map
    alike, ranks = math.nan, math.nan
    if lmm is not None and sam is not None:
        if target is None or not (target == 1).any():
            ranks = spearman(lmm, sam, None if target is None else target != IGNORED)
        else:
            both = consistency(lmm, sam, target)
            alike, ranks = both.iou, both.spearman
    said = reading.result.said
    different = [kind for kind in own if kind != reading.prompt]
    return SegFound(
        words=named["words"].of if "words" in named else "",
        said=None if said is None else said[k],
        maps={name: _map_found(one, target) for name, one in named.items()},
        layers=tuple(_map_found(one, target) for one in deep),
        masks={
            kind: MaskFound(
                mask,
                points.xy.cpu().numpy(),
                points.labels.cpu().numpy(),
                None if target is None else Counts(*intersection_and_union(mask, target)),
            )
            for kind, (mask, points) in own.items()
        },
        agreement={(a, b): iou(own[a].mask, own[b].mask) for a, b in combinations(different, 2)},
        spearman=ranks,
        consistency=alike,
    )


# -- JSON --------------------------------------------------------------------------------------------------------------


def _truth_json(truth: Truth) -> dict[str, Any]:
    ignored = truth.target == IGNORED
    return {
        "file": truth.source,
        "object_value": truth.object_value,
        "wanted": truth.wanted,
        "counted": truth.counted,
        "mask": encode_rle(truth.target == 1),
        "ignored": encode_rle(ignored) if ignored.any() else None,
    }


def _model_json(model: ModelFound) -> dict[str, Any]:
    nearest = model.nearest
    return {
        "name": model.name,
        "source": model.source,
        "settings": model.settings,
        "question": model.question,
        "answer": model.answer,
        "given": model.given,
        "finished": model.finished,
        "present": model.present,
        "prompt": model.prompt,
        "points": model.points.to_dict(),
        "extremes": model.extremes,
        "original_sam": model.original_sam,
        "segs": [_seg_json(seg) for seg in model.segs],
        "together": {kind: _counts_json(counts) for kind, counts in model.together.items()},
        "nearest": None
        if nearest is None
        else {
            "place": nearest.place,
            "token": nearest.token,
            "probability": nearest.probability,
            "rank": nearest.rank,
            "map": _map_json(nearest.look),
        },
    }


def _seg_json(seg: SegFound) -> dict[str, Any]:
    return {
        "words": seg.words,
        "said": seg.said,
        "maps": {name: _map_json(one) for name, one in seg.maps.items()},
        "layers": [_map_json(one) for one in seg.layers],
        "spearman": seg.spearman,
        "consistency": seg.consistency,
        "masks": {
            kind: {
                "share": float(one.mask.mean()),
                "truth": None if one.counts is None else _counts_json(one.counts),
                "points": [
                    [_short(x), _short(y), int(label)] for (x, y), label in zip(one.points_xy, one.labels, strict=True)
                ],
                "mask": encode_rle(one.mask),
            }
            for kind, one in seg.masks.items()
        },
        "agreement": [{"prompts": list(pair), "iou": value} for pair, value in seg.agreement.items()],
    }


def _map_json(found: MapFound) -> dict[str, Any]:
    one, scores = found.similarity, found.scores
    return {
        "layer": one.layer,
        "of": one.of,
        "grid": list(one.grid_hw),
        "constant": one.map is None,
        "truth": None
        if scores is None
        else {
            **_counts_json(scores.counts),
            "threshold": scores.threshold,
            "pointing": scores.pointing,
            "mass_inside": scores.mass_inside,
            "auc": scores.auc,
        },
        "scores": [_short(score) for score in one.scores],
    }


def _counts_json(counts: Counts) -> dict[str, Any]:
    return {"iou": iou_of(counts), "intersection": counts.intersection, "union": counts.union}


def _short(value: np.floating) -> float:
    """The shortest number that reads back as this float32."""
    return float(str(np.float32(value)))
