"""Similarity maps: where [SEG], or a word of the answer, looks at every place of a model; and CLIP's own map of a text.

Owns the registry `MAPS`: a map is one entry of it. Maps are in the image frame (H, W); a grid of scores is row-major.
N counts image tokens, D is the language model's width, S counts the answer's [SEG]. Source: section 3.2, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from readseg.analysis.answer_states import TEXTS, AnswerStates, Spec, dot_products, phrase_tokens
from readseg.checkpoints.files import fetch, one_line, read_config_json
from readseg.checkpoints.load import quiet_libraries
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.token_grid import Alignment, Box
from readseg.errors import ReadsegError
from readseg.model.config import Prompt
from readseg.model.families import SEG
from readseg.model.mask_prompts import full_precision
from readseg.model.processing import CLIP_MEAN, CLIP_STD, load_tokenizer, normalise_pixels


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
    """The map of each [SEG] at one layer k = 0 ... K, by default the last: s = h_seg^k . h_img^k^T.

    The last layer, after the final norm, is what the model makes points of. At layer 0 h_img are the projected patches
    and h_seg is the embedding of the token before [SEG]; layers 0 ... K - 1 are not normed.
    """
    layer = _known_layer(states, layer)
    rows = dot_products(states.h_answer[layer][list(states.seg_positions)], states.h_img[layer])
    return [_image_token_map(states, layer, SEG, row) for row in rows]


def phrase_map(states: AnswerStates, phrase: str, layer: int | None = None) -> SimilarityMap:
    """The map of whole words of the answer instead of [SEG]: s = h . h_img^T, h the mean of the states that predict it.

    The phrase is in any case; where it stands more than once the first place counts. "[SEG]" is the first [SEG].
    ReadsegError where it is not in the answer, or there is no such layer (see `layer_maps`).
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
    transformer leaves them, before masks are made.
    """
    model, embeddings = states.segmenter.model, states.encoded.mask_embeddings
    grid_hw = (embeddings.shape[-2], embeddings.shape[-1])
    maps = []
    for h_seg in states.h_seg:
        scores = dot_products(h_seg[None], states.h_img[-1])
        image = torch.zeros(1, dtype=torch.long, device=scores.device)
        # Prompted with points alone a decoder has no [SEG] token to look at: it gets one for this.
        prompt: Prompt = "both" if states.prompt == "points" else states.prompt
        outputs: list[Any] = []
        with model.sam.mask_decoder.transformer.register_forward_hook(lambda *call, to=outputs: to.append(call[-1])):
            model.decode_masks(
                h_seg[None], scores, image, embeddings, [states.frame], points=states.points, prompt=prompt
            )
        tokens, image_tokens = (part[0, 0] for part in outputs[0])
        # iou token ++ mask tokens ++ points ++ SAM's padding point (only with points) ++ [SEG]
        similar = dot_products(tokens[-1:], image_tokens)[0]
        maps.append(
            SimilarityMap(None, SEG, _numbers(similar), grid_hw, mask_frame_map(similar, grid_hw, states.frame))
        )
    return maps


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
    """Scores of the mask model's image tokens (row-major) as a map of the image, as `lmm_frame_map`.

    Min-max over the whole grid, tokens of the padding too, then `ImageFrame.masks_to_image`.
    """
    with full_precision(scores.device):
        grid, usable = sasp.normalise(scores.float().view(1, *grid_hw))
        return _numbers(frame.masks_to_image(grid)[0]) if usable.item() else None


def _image_token_map(
    states: AnswerStates, layer: int | None, of: str, scores: Float[Tensor, " N"], frame: ImageFrame | None = None
) -> SimilarityMap:
    """Scores of the image tokens with their map, aligned as the model's points are."""
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
    files = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:  # transformers would make one up
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
        raise ReadsegError(f"{folder}: this CLIP cannot be read: {one_line(error)}") from error
    if lost := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ReadsegError(f"{folder}: weights of this CLIP are missing or of a wrong shape: {', '.join(lost)}.")
    return model.eval().to(device), tokenizer


def clip_map(states: AnswerStates, text: str) -> SimilarityMap:
    """The cosine of a text's embedding and each patch's, of the image as the model's own language model sees it.

    s_i = cos(W_t t, W_v norm(v_i)),   norm and W_v what CLIP applies to its class token; at CLIP's resolution
    """
    assert states.options.clip is not None
    clip, tokenizer = states.options.clip
    frame = replace(states.frame, lmm_size=clip.config.vision_config.image_size)
    pixels = normalise_pixels(frame.lmm_view(states.encoded.image), 255, CLIP_MEAN, CLIP_STD)[None]
    words = tokenizer(text=text, return_tensors="pt", truncation=True)
    ids, mask = (words[name].to(clip.device) for name in ("input_ids", "attention_mask"))
    with torch.inference_mode(), full_precision(clip.device):
        said = clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
        seen = clip.vision_model(pixel_values=pixels.to(clip.device, clip.dtype)).last_hidden_state[0, 1:]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(seen))
        said, patches = (nn.functional.normalize(one.float(), dim=-1) for one in (clip.text_projection(said), patches))
        scores = sasp.similarity(said, patches)[0]
    return _image_token_map(states, None, text, scores, frame)


def _clip_maps(states: AnswerStates) -> list[SimilarityMap]:
    """Of each target the map of the name that was asked for; where it was asked in other words, of the answer's own."""
    maps = []
    for target in states.targets:
        phrases = (states.phrases[seg] for seg in target.seg_indices)
        own = next((phrase.text for phrase in phrases if phrase is not None), states.reply.query)
        maps.append(clip_map(states, states.name or own))
    return maps


_TEXTS = TEXTS["maps"]
MAPS: Mapping[str, Spec] = {
    "lmm": Spec(compute=layer_maps, keeps_curve=True, **_TEXTS["lmm"]),
    "sam": Spec(compute=_sam_maps, keeps_curve=True, in_mask_frame=True, **_TEXTS["sam"]),
    "before": Spec(compute=_before_maps, **_TEXTS["before"]),
    "words": Spec(compute=_phrase_maps, **_TEXTS["words"]),
    "clip": Spec(compute=_clip_maps, per_target=True, requires="clip", **_TEXTS["clip"]),
}
"""Every map, in the order of the tables."""
