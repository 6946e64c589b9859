"""Similarity maps as numbers with names: where [SEG] or a word looks, at every place of a model.

Owns which states are compared: those of any layer of the language model, the image before it, the mask decoder's
tokens (`clip.py`: CLIP's text and patches). `sasp.py` makes the map and `geometry.py` puts it on the image. Maps are in
the image frame (H, W); a grid of scores is row-major. N counts image tokens, D is the language model's width, K its
number of layers, T counts the answer's tokens, S its [SEG].

    reading = read_answer(segmenter, "desk.png", "something that tells the time")
    lmm_maps(reading)[0].map, layer_maps(reading, 12)[0].map, sam_maps(segmenter, reading)[0].map

Source: paper section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import SamModel

from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig
from readseg.core.token_grid import Alignment, Box
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.model.families import SEG
from readseg.model.mask_prompts import full_precision

MapName = Literal["lmm", "layer", "before", "sam", "clip", "words"]

_NO_TEXT = "\ufffd"


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """One similarity map: plain dot products ("clip": cosines), and the map that they make on the image.

    Attributes:
        name: what was compared: "lmm", "layer", "before", "sam", "clip" or "words".
        layer: of the language model, 0 (embeddings) ... K (last, after the final norm); None where it has none.
        of: whose map it is: "[SEG]", a phrase of the answer, or the text given to CLIP.
        scores: (h * w,) float32, row-major.
        grid_hw: (h, w), sides of the grid of scores.
        map: (H, W) float32 in [0, 1], image frame; None where the scores are constant or no numbers.
    """

    name: MapName
    layer: int | None
    of: str
    scores: np.ndarray = field(repr=False)
    grid_hw: tuple[int, int]
    map: np.ndarray | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Reading:
    """An answer and the states behind it: what all maps of the language model are made of.

    Attributes:
        result: the answer, its masks and points, as `Segmenter.segment` gives them.
        frame: of the image.
        patches: (N, D), projected CLIP patches: what enters the language model.
        mask_embeddings: (1, C, h, w), of the mask model.
        h_img: (K + 1, N, D), states of the image tokens at all layers. Layer 0 are the embeddings, layer k < K what
            block k leaves, not normed; layer K is after the final norm, as everywhere in this package.
        h_answer: (K + 1, T, D), in the same layers the states that predict each token of the answer.
        spans: for each token of the answer its first and last character (exclusive) in `result.answer`.
        seg_places: of the answer's tokens, which are [SEG].
        points: settings that the result was made with.
        prompt: of the mask decoder, that the result was made with.
    """

    result: Segmentation
    frame: ImageFrame
    patches: Float[Tensor, "N D"] = field(repr=False)
    mask_embeddings: Float[Tensor, "1 C h w"] = field(repr=False)
    h_img: Float[Tensor, "layers N D"] = field(repr=False)
    h_answer: Float[Tensor, "layers T D"] = field(repr=False)
    spans: tuple[tuple[int, int], ...] = field(repr=False)
    seg_places: tuple[int, ...]
    points: PointConfig
    prompt: Prompt

    @property
    def num_layers(self) -> int:
        """K, the number of layers of the language model."""
        return len(self.h_img) - 1

    @property
    def h_seg(self) -> Float[Tensor, "S D"]:
        """(S, D), the states of the last layer that predict each [SEG]."""
        return self.h_answer[-1][list(self.seg_places)]


@torch.inference_mode()
def read_answer(
    segmenter: Segmenter,
    image: Any,
    query: str,
    *,
    answer: bool | str = False,
    asks: bool | None = None,
    sentence: bool | None = None,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
    max_new_tokens: int = 64,
) -> Reading:
    """Asks one question about one image, and keeps the states of all layers.

    Args:
        segmenter: the model.
        image: whatever `load_image` takes.
        query: as in `Segmenter.segment`.
        answer: `force` of `Segmenter.segment`: a text is the answer to read, True the family's own; by default the
            model answers by itself.
        asks: as in `Segmenter.segment`.
        sentence: as in `Segmenter.segment`.
        prompt: as in `Segmenter.segment`.
        points: as in `Segmenter.segment`.
        max_new_tokens: where an answer is cut off.

    Raises:
        ReadsegError: what `Segmenter.segment` raises.
    """
    encoded = segmenter.encode(image)
    replies = segmenter.reply(
        encoded, [query], asks=asks, max_new_tokens=max_new_tokens, force=answer, sentence=sentence
    )
    return read_reply(segmenter, encoded, replies[0], prompt=prompt, points=points)


@torch.inference_mode()
def read_reply(
    segmenter: Segmenter,
    encoded: EncodedImage,
    reply: ModelAnswer,
    *,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
) -> Reading:
    """`read_answer` for who has encoded the image and has the reply already.

    Args:
        segmenter: the model.
        encoded: of `Segmenter.encode`.
        reply: of `Segmenter.reply`, about that image.
        prompt: as in `Segmenter.segment`.
        points: as in `Segmenter.segment`.

    Raises:
        ReadsegError: what `Segmenter.decode` raises.
    """
    model, processor = segmenter.model, segmenter.processor
    result = segmenter.decode(encoded, [reply], prompt=prompt, points=points)[0]
    asked = processor.prompt_ids([Turn(reply.question)])
    ids = torch.tensor([[*asked, *result.answer_ids]], device=model.device)
    hidden = _hidden_states(segmenter, ids, encoded.patches[None])
    return Reading(
        result=result,
        frame=encoded.frame,
        patches=encoded.patches,
        mask_embeddings=encoded.mask_embeddings,
        h_img=hidden[:, ids[0] == model.config.image_token_id],
        # The state one place before a token predicts it.
        h_answer=hidden[:, len(asked) - 1 : -1],
        spans=_spans(segmenter, result.answer_ids),
        seg_places=tuple(i for i, token in enumerate(result.answer_ids) if token == model.config.seg_token_id),
        points=points or model.config.points,
        prompt=prompt or model.config.prompt,
    )


def lmm_maps(reading: Reading) -> list[SimilarityMap]:
    """The map of each [SEG] at the last layer: s = h_seg . h_img^T after the final norm, as the model makes points of.

    Returns:
        S maps with N scores each: `Segmentation.scores` and `Segmentation.similarity` under their name.
    """
    return _seg_maps(reading, "lmm", reading.num_layers)


def layer_maps(reading: Reading, layer: int) -> list[SimilarityMap]:
    """The map of each [SEG] at one layer k: s = h_seg^k . h_img^k^T, both states of that layer.

    At layer 0 h_img are the projected patches and h_seg is the embedding of the token before [SEG]. Layers 0 ... K - 1
    are not normed: they are what the blocks add to. Layer K is after the final norm, and its map is that of `lmm_maps`.

    Args:
        reading: of an answer.
        layer: 0 ... K.

    Returns:
        S maps with N scores each.

    Raises:
        ReadsegError: there is no such layer.
    """
    return _seg_maps(reading, "layer", _checked_layer(reading, layer))


def before_maps(reading: Reading) -> list[SimilarityMap]:
    """The map of each [SEG] before the language model: s = h_seg . v^T, v the projected CLIP patches (N, D).

    h_seg is of the last layer, after the final norm: what [SEG] became is held against what the image was.

    Returns:
        S maps with N scores each.
    """
    scores = similarity_of(reading.h_seg, reading.patches)
    return [token_map(reading, "before", None, SEG, row) for row in scores]


def word_map(reading: Reading, phrase: str, layer: int | None = None) -> SimilarityMap:
    """The map of the answer's own words instead of [SEG]: s = h . h_img^T.

    h is the mean of the states that predict the tokens of the phrase. The phrase "[SEG]" gives the map of the first
    [SEG].

    Args:
        reading: of an answer.
        phrase: whole words of the answer, in any case; where they stand more than once the first place counts.
        layer: 0 ... K, by default the last; see `layer_maps`.

    Returns:
        One map with N scores.

    Raises:
        ReadsegError: the phrase is not in the answer, or there is no such layer.
    """
    layer = reading.num_layers if layer is None else _checked_layer(reading, layer)
    places = word_places(reading, phrase)
    states = reading.h_answer[layer, places].float().mean(dim=0, keepdim=True)
    return token_map(reading, "words", layer, phrase, similarity_of(states, reading.h_img[layer])[0])


def word_places(reading: Reading, phrase: str) -> list[int]:
    """Which tokens of the answer make up a phrase of it: indices into the T of `Reading.h_answer`.

    Args:
        reading: of an answer.
        phrase: whole words of the answer, in any case; where they stand more than once the first place counts.

    Raises:
        ReadsegError: the phrase is not in the answer.
    """
    answer, words = reading.result.answer, phrase.strip()
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) if words else None
    places = []
    if found is not None:
        places = [i for i, (first, end) in enumerate(reading.spans) if first < found.end() and found.start() < end]
    if not places:
        raise ReadsegError(f"the phrase {phrase!r} is not in the answer {answer!r}: give whole words of it.")
    return places


def sam_token_index(sam: SamModel, num_points: int) -> int:
    """The place of the projected [SEG] among the tokens that the mask decoder puts out.

        iou token ++ mask tokens ++ points ++ SAM's padding point (only with points) ++ [SEG]

    Args:
        sam: the mask model.
        num_points: how many points, of any label, stand in the prompt.
    """
    num_masks: int = sam.mask_decoder.num_mask_tokens
    return 1 + num_masks + (num_points + 1 if num_points else 0)


@torch.inference_mode()
def sam_maps(segmenter: Segmenter, reading: Reading) -> list[SimilarityMap]:
    """The map of each [SEG] inside the mask decoder: s = t_seg . k^T, prompted as `reading.result` was.

    t_seg (C,) is the decoder's final token of [SEG], k (h * w, C) are its final image tokens: both as the decoder's
    transformer leaves them, before masks are made. The grid is normalised, then resized to the mask model's square,
    cut to the image's part of it and resized to the image; tokens of the padding take part in the min-max.

    Args:
        segmenter: the one that the reading is from.
        reading: of an answer.

    Returns:
        S maps with h * w scores each.

    Raises:
        ReadsegError: the prompt is "points", so that no [SEG] enters the decoder.
    """
    if reading.prompt == "points":
        raise ReadsegError('with prompt "points" no [SEG] enters the mask decoder: expected "both" or "seg".')
    model = segmenter.model
    embeddings = reading.mask_embeddings
    grid_hw = (embeddings.shape[-2], embeddings.shape[-1])
    maps = []
    for h_seg in reading.h_seg:
        scores = similarity_of(h_seg[None], reading.h_img[-1])
        with _outputs_of(model.sam.mask_decoder.transformer) as outputs:
            found, _ = model.decode_masks(
                h_seg[None],
                scores,
                torch.zeros(1, dtype=torch.long, device=scores.device),
                embeddings,
                [reading.frame],
                points=reading.points,
                prompt=reading.prompt,
            )
        tokens, image_tokens = (part[0, 0] for part in outputs[0])
        place = sam_token_index(model.sam, len(found[0].labels))
        similar = similarity_of(tokens[place][None], image_tokens)[0]
        maps.append(
            SimilarityMap("sam", None, SEG, _numbers(similar), grid_hw, mask_frame_map(similar, grid_hw, reading.frame))
        )
    return maps


def lmm_frame_map(
    scores: Float[Tensor, " N"], image_hw: tuple[int, int], alignment: Alignment = "exact", box: Box | None = None
) -> np.ndarray | None:
    """Scores of the language model's tokens as a map of the image: `sasp.full_map` of one row.

    Args:
        scores: (N,), row-major n x n.
        image_hw: (H, W) in pixels.
        alignment: see `sasp.full_map`.
        box: see `sasp.full_map`.

    Returns:
        (H, W) float32 in [0, 1], 0 where the model does not see; None where the scores are constant or no numbers.

    Raises:
        ValueError: what `sasp.full_map` raises.
    """
    with full_precision(scores.device):
        if not sasp.normalise(scores[None].float())[1].item():
            return None
        return _numbers(sasp.full_map(scores[None].float(), image_hw, alignment=alignment, box=box)[0])


def mask_frame_map(scores: Float[Tensor, " _"], grid_hw: tuple[int, int], frame: ImageFrame) -> np.ndarray | None:
    """Scores of the mask model's image tokens as a map of the image.

    Min-max over the whole grid, bilinear to the mask model's square, cropped to the image's part of it, bilinear to
    the image (`ImageFrame.masks_to_image`).

    Args:
        scores: (h * w,), row-major.
        grid_hw: (h, w).
        frame: of the image.

    Returns:
        (H, W) float32 in [0, 1]; None where the scores are constant or no numbers.
    """
    with full_precision(scores.device):
        grid, usable = sasp.normalise(scores.float().view(1, *grid_hw))
        return _numbers(frame.masks_to_image(grid)[0]) if usable.item() else None


def _hidden_states(
    segmenter: Segmenter, ids: Int[Tensor, "1 L"], patches: Float[Tensor, "1 N D"]
) -> Float[Tensor, "layers L D"]:
    """States of one row at all layers, from the embeddings to the last layer after the final norm."""
    lmm = segmenter.model.lmm
    places = ids == segmenter.model.config.image_token_id
    embeddings = lmm.get_input_embeddings()(ids.masked_fill(places, 0))
    embeddings = embeddings.masked_scatter(places[..., None], patches.to(embeddings.dtype))
    output = lmm.model.language_model(inputs_embeds=embeddings, use_cache=False, output_hidden_states=True)
    return torch.stack([states[0].to(ids.device) for states in output.hidden_states])


def _spans(segmenter: Segmenter, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where each token's text stands in the decoded answer; tokens that share a character share its place."""
    texts = [segmenter.processor.decode(ids[:count]) for count in range(len(ids) + 1)]
    # A character of several bytes may be cut between tokens: it decodes to one sign that stands for no text.
    whole = [len(text.rstrip(_NO_TEXT)) for text in texts]
    ends = [length + text.endswith(_NO_TEXT) for text, length in zip(texts, whole, strict=True)]
    return tuple(zip(whole[:-1], ends[1:], strict=True))


def _checked_layer(reading: Reading, layer: int) -> int:
    if not 0 <= layer <= reading.num_layers:
        raise ReadsegError(f"layer must be 0 (embeddings) to {reading.num_layers} (last); got {layer}.")
    return layer


def _seg_maps(reading: Reading, name: MapName, layer: int) -> list[SimilarityMap]:
    scores = similarity_of(reading.h_answer[layer][list(reading.seg_places)], reading.h_img[layer])
    return [token_map(reading, name, layer, SEG, row) for row in scores]


def token_map(
    reading: Reading, name: MapName, layer: int | None, of: str, scores: Float[Tensor, " N"]
) -> SimilarityMap:
    """Scores of the image tokens with their map, aligned as the reading's own.

    Args:
        reading: of an answer.
        name: of the map.
        layer: of the states, None where it is none of the language model's.
        of: what is held against the image.
        scores: (N,).
    """
    side = math.isqrt(len(scores))
    box = reading.frame.lmm_box if reading.points.alignment == "exact" else None
    found = lmm_frame_map(scores, reading.frame.hw, reading.points.alignment, box)
    return SimilarityMap(name, layer, of, _numbers(scores), (side, side), found)


def similarity_of(states: Float[Tensor, "S D"], image: Float[Tensor, "N D"]) -> Float[Tensor, "S N"]:
    """Dot products (S, N) in float32, also under autocast and for states of a lower type: s = h . h_img^T."""
    with torch.inference_mode(), full_precision(states.device):
        return sasp.similarity(states.float(), image.to(states.device).float())


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what a module returns at each call within the context."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
