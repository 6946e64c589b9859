"""Every similarity map and every prompt's mask of one reply, of each [SEG]: what `examine` and `single` measure.

Nothing is known of any truth here. Frame: pixels of the image, H x W. S counts the [SEG] of an answer, N image tokens,
D the language model's width.

Source: section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import SamModel

from readseg.analysis.own_words import OwnWords, own_words
from readseg.analysis.similarity_maps import (
    Reading,
    SimilarityMap,
    before_maps,
    lmm_maps,
    sam_maps,
    similarity_of,
    token_map,
)
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import Points
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.model.mask_prompts import full_precision, masks_from_prompts

EXTREMES = 5
"""k of the prompt "plain_extremes", where it is not given."""

_PROMPTS: tuple[Prompt, ...] = ("both", "seg", "points")

Mask = Bool[np.ndarray, "H W"]


class Prompted(NamedTuple):
    """What one prompt makes of one [SEG].

    mask: (H, W) bool.
    points: in the prompt; none with [SEG] alone.
    """

    mask: Mask
    points: Points


def words_of(reading: Reading) -> list[OwnWords | None]:
    """Of each [SEG] the answer's own words for it (`own_words`)."""
    answer, phrases = reading.result.answer, reading.result.phrases
    return [own_words(answer, reading.spans, reading.seg_places, k, phrase) for k, phrase in enumerate(phrases)]


def word_scores(
    encoded: EncodedImage, reply: ModelAnswer, words: OwnWords
) -> tuple[Float[Tensor, "1 D"], Float[Tensor, "1 N"]]:
    """The mean of the last states that predict some words (1, D), and its similarity to the image tokens (1, N).

    s = h . h_img^T, as `maps.word_map` of these words.

    Args:
        encoded: the image.
        reply: about it.
        words: of that reply.
    """
    states = reply.answer.states[list(words.places)]
    mean = states.float().mean(dim=0, keepdim=True)
    return mean.to(states.dtype), similarity_of(mean, encoded.h_img)


def maps_of(
    segmenter: Segmenter, encoded: EncodedImage, reply: ModelAnswer, reading: Reading, words: Sequence[OwnWords | None]
) -> dict[str, list[SimilarityMap | None]]:
    """The map of each [SEG] at every place, by the names of `measures.MAPS`; CLIP's is not among them.

    Args:
        segmenter: the model.
        encoded: the image.
        reply: about it.
        reading: of that reply.
        words: of each [SEG] (`words_of`); where there are none, there is no map "words".
    """
    # Prompted with points alone a decoder has no [SEG] token to look at: it gets one for this.
    seen = replace(reading, prompt="both") if reading.prompt == "points" else reading

    def of_words(one: OwnWords) -> SimilarityMap:
        return token_map(reading, "words", reading.num_layers, one.text, word_scores(encoded, reply, one)[1][0])

    return {
        "lmm": [*lmm_maps(reading)],
        "sam": [*sam_maps(segmenter, seen)],
        "before": [*before_maps(reading)],
        "words": [None if one is None else of_words(one) for one in words],
    }


def prompted(
    segmenter: Segmenter,
    encoded: EncodedImage,
    reply: ModelAnswer,
    reading: Reading,
    plain: SamModel | None = None,
    extremes: int = EXTREMES,
) -> dict[str, list[Prompted]]:
    """What every prompt makes of each [SEG], by the names of `measures.PROMPTS`; those of words and truth are not here.

    Args:
        segmenter: the model.
        encoded: the image.
        reply: about it.
        reading: of that reply, made with the model's own prompt.
        plain: the original SAM (`plain_sam.plain_sam`); its prompts are left out without it.
        extremes: k of "plain_extremes": so many highest and so many lowest cells.
    """
    found: dict[str, list[Prompted]] = {}
    for prompt in _PROMPTS:
        result = reading.result
        if prompt != reading.prompt:
            result = segmenter.decode(encoded, [reply], prompt=prompt, points=reading.points)[0]
        placed = zip(result.points_xy, result.point_labels, strict=True)
        points = [Points(torch.from_numpy(xy), torch.from_numpy(labels)) for xy, labels in placed]
        found[prompt] = [Prompted(*pair) for pair in zip(result.masks, points, strict=True)]
    found = {"own": found[reading.prompt], **found}
    if plain is not None:
        found["plain_points"] = in_plain_sam(plain, encoded, [one.points for one in found["points"]])
        found["plain_extremes"] = in_plain_sam(plain, encoded, _extremes(reading, extremes))
    return found


def on_image(frame: ImageFrame, low_res: Float[Tensor, "S h w"]) -> list[Mask]:
    """The masks (H, W) of low-resolution logits, one after the other.

    All logits at the image's size together would be many times as large as the masks that stay.
    """
    return [(frame.masks_to_image(one[None])[0] > 0).cpu().numpy() for one in low_res]


def in_plain_sam(plain: SamModel, encoded: EncodedImage, points: Sequence[Points]) -> list[Prompted]:
    """What the original SAM makes of points alone.

    Args:
        plain: of `plain_sam.plain_sam`.
        encoded: the image.
        points: of each mask; where there are none, it is empty.
    """
    if not points:
        return []
    device = encoded.mask_embeddings.device
    placed = [Points(one.xy.to(device), one.labels.to(device)) for one in points]
    low_res = masks_from_prompts(plain, placed, None, [0] * len(placed), encoded.mask_embeddings, [encoded.frame])
    return [Prompted(*pair) for pair in zip(on_image(encoded.frame, low_res), points, strict=True)]


def _extremes(reading: Reading, count: int) -> list[Points]:
    """Of each [SEG] the highest cells as positive and the lowest as negative points."""
    alignment = reading.points.alignment
    box = reading.frame.lmm_box if alignment == "exact" else None
    scores = torch.from_numpy(reading.result.scores)
    with full_precision(scores.device):
        found = sasp.select_extremes(scores, reading.frame.hw, count=count, alignment=alignment, box=box)
    return found._replace(xy=found.xy.float()).rows()
