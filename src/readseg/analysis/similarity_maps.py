"""Similarity maps: where [SEG], or a word of the answer, looks at every place of a model; and CLIP's own map of a text.

Owns the registry `MAPS`: a map is one entry of it. `core.sasp` makes a map of scores and
`core.frames` puts it on the image. Maps are in the image frame (H, W); a grid of scores is row-major. N counts image
tokens, D is the language model's width, K its number of layers, T counts the answer's tokens, S its [SEG].

    encoded = segmenter.encode("desk.png")
    states = collect_states(segmenter, encoded, segmenter.reply(encoded, ["something that tells the time"])[0])
    MAPS["lmm"].compute(states)[0].map, layer_maps(states, 12)[0].map

Source: paper section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import CLIPModel, SamModel

from readseg.analysis.answer_states import NO_WORDS, AnswerStates, Spec, dot_products, phrase_tokens
from readseg.checkpoints.files import fetch, read_config_json
from readseg.checkpoints.load import quiet_libraries
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.token_grid import Alignment, Box
from readseg.errors import ReadsegError
from readseg.model.config import Prompt
from readseg.model.families import SEG
from readseg.model.mask_prompts import full_precision
from readseg.model.processing import CLIP_MEAN, CLIP_STD, load_tokenizer

_CLIP_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """Dot products ("clip": cosines) with image tokens, and the map that they make on the image."""

    layer: int | None  # of the language model, 0 (embeddings) ... K (last, after the final norm); None of others
    of: str  # "[SEG]", a phrase of the answer, or the text given to CLIP
    scores: np.ndarray = field(repr=False)  # (h * w,) float32, row-major
    grid_hw: tuple[int, int]  # (h, w)
    map: np.ndarray | None = field(repr=False)  # (H, W) float32 in [0, 1]; None of scores that are equal or no numbers


# -- maps of a model ---------------------------------------------------------------------------------------------------


def layer_maps(states: AnswerStates, layer: int | None = None) -> list[SimilarityMap]:
    """The map of each [SEG] at one layer k, by default the last: s = h_seg^k . h_img^k^T, both states of that layer.

    The last layer, after the final norm, is what the model makes points of. At layer 0 h_img are the projected patches
    and h_seg is the embedding of the token before [SEG]; layers 0 ... K - 1 are not normed.

    Args:
        states: of an answer.
        layer: 0 ... K.

    Returns:
        S maps with N scores each.

    Raises:
        ReadsegError: there is no such layer.
    """
    layer = _known_layer(states, layer)
    rows = dot_products(states.h_answer[layer][list(states.seg_positions)], states.h_img[layer])
    return [_image_token_map(states, layer, SEG, row) for row in rows]


def phrase_map(states: AnswerStates, phrase: str, layer: int | None = None) -> SimilarityMap:
    """The map of whole words of the answer instead of [SEG]: s = h . h_img^T, h the mean of the states that predict it.

    Args:
        states: of an answer.
        phrase: in any case; where it stands more than once the first place counts. "[SEG]" is the first [SEG].
        layer: 0 ... K, by default the last; see `layer_maps`.

    Returns:
        One map with N scores.

    Raises:
        ReadsegError: the phrase is not in the answer, or there is no such layer.
    """
    return token_map(states, phrase_tokens(states, phrase), phrase, layer)


def token_map(states: AnswerStates, tokens: Sequence[int], of: str, layer: int | None = None) -> SimilarityMap:
    """The map of the mean of the states that predict some of the answer's tokens."""
    layer = _known_layer(states, layer)
    mean = states.h_answer[layer, list(tokens)].float().mean(dim=0, keepdim=True)
    return _image_token_map(states, layer, of, dot_products(mean, states.h_img[layer])[0])


def _before_maps(states: AnswerStates) -> list[SimilarityMap]:
    """The map of each [SEG] before the language model: s = h_seg . v^T, v the projected CLIP patches (N, D)."""
    return [_image_token_map(states, None, SEG, row) for row in dot_products(states.h_seg, states.encoded.patches)]


def _phrase_maps(states: AnswerStates) -> list[SimilarityMap | None]:
    """Of each [SEG] the map of the answer's own words for it, of the states as they were generated."""
    return [
        None
        if phrase is None
        else _image_token_map(states, states.num_layers, phrase.text, states.phrase_scores(phrase)[1][0])
        for phrase in states.phrases
    ]


@torch.inference_mode()
def _sam_maps(states: AnswerStates) -> list[SimilarityMap]:
    """The map of each [SEG] inside the mask decoder: s = t_seg . k^T, prompted as the model prompts it.

    t_seg (C,) is the decoder's final token of [SEG], k (h * w, C) are its final image tokens: both as the decoder's
    transformer leaves them, before masks are made. Prompted with points alone a decoder has no [SEG] token to look at:
    it gets one for this.
    """
    model, embeddings = states.segmenter.model, states.encoded.mask_embeddings
    grid_hw = (embeddings.shape[-2], embeddings.shape[-1])
    maps = []
    for h_seg in states.h_seg:
        scores = dot_products(h_seg[None], states.h_img[-1])
        image = torch.zeros(1, dtype=torch.long, device=scores.device)
        prompt: Prompt = "both" if states.prompt == "points" else states.prompt
        outputs: list[Any] = []
        hook = model.sam.mask_decoder.transformer.register_forward_hook(lambda *call, to=outputs: to.append(call[-1]))
        try:
            points, _ = model.decode_masks(
                h_seg[None], scores, image, embeddings, [states.frame], points=states.points, prompt=prompt
            )
        finally:
            hook.remove()
        tokens, image_tokens = (part[0, 0] for part in outputs[0])
        seg_token = tokens[sam_token_index(model.sam, len(points[0].labels))]
        similar = dot_products(seg_token[None], image_tokens)[0]
        maps.append(
            SimilarityMap(None, SEG, _numbers(similar), grid_hw, mask_frame_map(similar, grid_hw, states.frame))
        )
    return maps


def sam_token_index(sam: SamModel, num_points: int) -> int:
    """The place of the projected [SEG] among the tokens that the mask decoder puts out, with points of any label.

    iou token ++ mask tokens ++ points ++ SAM's padding point (only with points) ++ [SEG]
    """
    num_masks: int = sam.mask_decoder.num_mask_tokens
    return 1 + num_masks + (num_points + 1 if num_points else 0)


def lmm_frame_map(
    scores: Float[Tensor, " N"], image_hw: tuple[int, int], alignment: Alignment = "exact", box: Box | None = None
) -> np.ndarray | None:
    """Scores of the language model's tokens (row-major n x n) as a map of the image: `sasp.full_map` of one row.

    (H, W) float32 in [0, 1], 0 where the model does not see; None where the scores are constant or no numbers.
    """
    with full_precision(scores.device):
        if not sasp.normalise(scores[None].float())[1].item():
            return None
        return _numbers(sasp.full_map(scores[None].float(), image_hw, alignment=alignment, box=box)[0])


def mask_frame_map(scores: Float[Tensor, " _"], grid_hw: tuple[int, int], frame: ImageFrame) -> np.ndarray | None:
    """Scores of the mask model's image tokens (row-major) as a map of the image, (H, W) float32 in [0, 1].

    Min-max over the whole grid, tokens of the padding too; bilinear to the mask model's square, cropped to the image's
    part of it, bilinear to the image (`ImageFrame.masks_to_image`). None where the scores are constant or no numbers.
    """
    with full_precision(scores.device):
        grid, usable = sasp.normalise(scores.float().view(1, *grid_hw))
        return _numbers(frame.masks_to_image(grid)[0]) if usable.item() else None


def _image_token_map(
    states: AnswerStates, layer: int | None, of: str, scores: Float[Tensor, " N"], frame: ImageFrame | None = None
) -> SimilarityMap:
    """Scores of the image tokens (N,) with their map, aligned as the model's points are."""
    side, alignment, frame = math.isqrt(len(scores)), states.points.alignment, frame or states.frame
    value_map = lmm_frame_map(scores, frame.hw, alignment, frame.lmm_box if alignment == "exact" else None)
    return SimilarityMap(layer, of, _numbers(scores), (side, side), value_map)


def _known_layer(states: AnswerStates, layer: int | None) -> int:
    layer = states.num_layers if layer is None else layer
    if not 0 <= layer <= states.num_layers:
        raise ReadsegError(f"layer must be 0 (embeddings) to {states.num_layers} (last); got {layer}.")
    return layer


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


# -- CLIP --------------------------------------------------------------------------------------------------------------


def load_clip(source: str | Path, device: torch.device) -> tuple[CLIPModel, Any]:
    """A CLIPModel in float32 and its tokenizer, of a folder or a hub id such as "openai/clip-vit-large-patch14-336"."""
    folder = fetch(source)
    kind = read_config_json(folder).get("model_type")
    if kind != "clip":
        raise ReadsegError(
            f"{folder} is a model of type {kind!r}: expected a CLIP with a text encoder, such as "
            "openai/clip-vit-large-patch14-336; the vision tower alone knows no text."
        )
    if not any(all((folder / file).is_file() for file in files) for files in _CLIP_TOKENIZERS):
        # Without its files transformers makes one up.
        raise ReadsegError(f"{folder}: the tokenizer of this CLIP is missing: expected tokenizer.json in it.")
    try:
        with quiet_libraries():
            model, info = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
            tokenizer = load_tokenizer(folder)
    except ReadsegError:
        raise
    except Exception as error:  # the libraries' own share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReadsegError(f"{folder}: this CLIP cannot be read: {reason}") from error
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise ReadsegError(f"{folder}: weights of this CLIP are missing or of a wrong shape: {', '.join(lost)}.")
    return model.eval().to(device), tokenizer


def clip_scores(
    clip_model: CLIPModel,
    input_ids: Int[Tensor, "1 L"],
    attention_mask: Shaped[Tensor, "1 L"] | None,
    pixel_values: Float[Tensor, "1 3 s s"],
) -> Float[Tensor, " N"]:
    """The cosine of a text's embedding and each patch's, (N,) float32 in [-1, 1]; no language model.

    s_i = cos(W_t t, W_v norm(v_i)),   norm and W_v what CLIP applies to its class token
    """
    device, vision = clip_model.device, clip_model.vision_model
    with torch.inference_mode(), full_precision(device):
        mask = None if attention_mask is None else attention_mask.to(device)
        text = clip_model.text_model(input_ids=input_ids.to(device), attention_mask=mask).pooler_output
        seen = vision(pixel_values=pixel_values.to(device, clip_model.dtype)).last_hidden_state[0, 1:]
        text = nn.functional.normalize(clip_model.text_projection(text).float(), dim=-1)
        patches = nn.functional.normalize(clip_model.visual_projection(vision.post_layernorm(seen)).float(), dim=-1)
        return sasp.similarity(text, patches)[0]


def clip_map(states: AnswerStates, text: str) -> SimilarityMap:
    """`clip_scores` of a text on the image as the model's own language model sees it, at CLIP's resolution."""
    assert states.options.clip is not None
    clip_model, tokenizer = states.options.clip
    frame = replace(states.frame, lmm_size=clip_model.config.vision_config.image_size)
    values = torch.from_numpy(np.array(frame.lmm_view(states.encoded.image))).permute(2, 0, 1).float() / 255
    pixels = (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    words = tokenizer(text=text, return_tensors="pt", truncation=True)
    scores = clip_scores(clip_model, words["input_ids"], words["attention_mask"], pixels[None])
    return _image_token_map(states, None, text, scores, frame)


def _clip_maps(states: AnswerStates) -> list[SimilarityMap]:
    """Of each target the map of the name that was asked for; where it was asked in other words, of the answer's own."""
    maps = []
    for target in states.targets:
        phrases = (states.phrases[seg] for seg in target.seg_indices)
        own = next((phrase.text for phrase in phrases if phrase is not None), states.reply.query)
        maps.append(clip_map(states, states.name or own))
    return maps


# -- the registry ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MapSpec(Spec):
    """A kind of map: tables, figures and the page go through the entries of `MAPS`."""

    compute: Callable[[AnswerStates], Sequence[SimilarityMap | None]]  # of each [SEG] or target; None for none
    keeps_curve: bool = False  # its counts at all thresholds and its grid are recorded, for the page
    in_mask_frame: bool = False  # its grid covers the mask model's square, not what the language model sees


MAPS: Mapping[str, MapSpec] = {
    "lmm": MapSpec(
        title="language model, last layer",
        note="h_seg . h_img^T of the last layer after the final norm: the map that the points are made of",
        compute=layer_maps,
        keeps_curve=True,
    ),
    "sam": MapSpec(
        title="mask decoder, at the [SEG] token",
        note="the mask decoder's final token of [SEG] against its final image tokens",
        compute=_sam_maps,
        keeps_curve=True,
        in_mask_frame=True,
    ),
    "before": MapSpec(
        title="before the language model",
        note="h_seg of the last layer against the projected CLIP patches that enter the language model",
        compute=_before_maps,
    ),
    "words": MapSpec(
        title="the answer's own words",
        note="as the first row, with the mean of the states that predict the answer's own words for the object, "
        "instead of the state that predicts [SEG]",
        compute=_phrase_maps,
        absent=NO_WORDS,
    ),
    "clip": MapSpec(
        title="CLIP's text and patches",
        note="cosines of CLIP's text embedding and its patches; no language model",
        compute=_clip_maps,
        per_target=True,
        requires="clip",
    ),
}
"""Every map, in the order of the tables."""
