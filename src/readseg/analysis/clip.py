"""The map that needs no language model: CLIP's own text and patches, and how a CLIP with both its towers is read.

Maps are in the image frame (H, W); a grid of scores is row-major. N counts CLIP's patches.

Source: paper section 3.2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import CLIPModel

from readseg.analysis.similarity_maps import SimilarityMap, lmm_frame_map
from readseg.checkpoints.files import fetch, read_config_json
from readseg.checkpoints.load import quiet_libraries
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.images import load_image
from readseg.core.token_grid import Alignment
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import full_precision
from readseg.model.processing import CLIP_MEAN, CLIP_STD, load_tokenizer

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_clip(source: str | Path, device: torch.device) -> tuple[CLIPModel, Any]:
    """A CLIPModel in float32 and its tokenizer.

    Args:
        source: a folder, or a hub id such as "openai/clip-vit-large-patch14-336".
        device: where it computes.

    Raises:
        ReadsegError: there is no such model, it is not a CLIP with a text encoder, weights or the tokenizer are missing
            or of a wrong shape, or a file is damaged.
    """
    folder = fetch(source)
    kind = read_config_json(folder).get("model_type")
    if kind != "clip":
        raise ReadsegError(
            f"{folder} is a model of type {kind!r}: expected a CLIP with a text encoder, such as "
            "openai/clip-vit-large-patch14-336; the vision tower alone knows no text."
        )
    if not any(all((folder / file).is_file() for file in files) for files in _TOKENIZERS):  # transformers makes one up
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
    """CLIP's own map of a text, without a language model: the cosine of the text's embedding and each patch's.

        s_i = cos(W_t t, W_v norm(v_i)),   norm and W_v what CLIP applies to its class token

    Args:
        clip_model: any `CLIPModel` of transformers.
        input_ids: (1, L), the text's ids with CLIP's end token.
        attention_mask: (1, L), or None where nothing is padded.
        pixel_values: (1, 3, s, s), normalised as CLIP's images are.

    Returns:
        (N,) float32 in [-1, 1], row-major.

    Raises:
        ReadsegError: the model is no CLIPModel: a vision tower alone, such as the one inside a READ model, knows no
            text; or there is more than one text or image.
    """
    if not isinstance(clip_model, CLIPModel):
        raise ReadsegError(
            f"the CLIP baseline is not available: it needs a transformers CLIPModel, with its text encoder and "
            f"projections, and got {type(clip_model).__name__}; the vision tower inside a model of this family "
            f"(the embedded one too) comes without a text encoder: load the CLIPModel that it was taken from."
        )
    if len(input_ids) != 1 or len(pixel_values) != 1:
        raise ReadsegError(f"expected one text and one image; got {len(input_ids)} and {len(pixel_values)}.")
    device = clip_model.device
    vision = clip_model.vision_model
    with torch.inference_mode(), full_precision(device):
        mask = None if attention_mask is None else attention_mask.to(device)
        said = clip_model.text_model(input_ids=input_ids.to(device), attention_mask=mask).pooler_output
        seen = vision(pixel_values=pixel_values.to(device, clip_model.dtype)).last_hidden_state[0, 1:]
        text = nn.functional.normalize(clip_model.text_projection(said).float(), dim=-1)
        patches = nn.functional.normalize(clip_model.visual_projection(vision.post_layernorm(seen)).float(), dim=-1)
        return sasp.similarity(text, patches)[0]


def clip_map(
    segmenter: Segmenter,
    image: Any,
    text: str,
    clip_model: CLIPModel,
    tokenizer: Any,
    *,
    alignment: Alignment | None = None,
) -> SimilarityMap:
    """`clip_scores` of a text on an image, seen as the segmenter's own language model sees it, at CLIP's resolution.

    Args:
        segmenter: whose view (crop, letterbox, stretch) of an image is taken.
        image: whatever `load_image` takes.
        text: a word or a phrase, such as "a photo of a cat".
        clip_model: any `CLIPModel` of transformers.
        tokenizer: CLIP's tokenizer or processor, called as `tokenizer(text=..., return_tensors="pt")`.
        alignment: how the grid lies on the image (`sasp.full_map`); by default as in the model's own points.

    Returns:
        One map with N scores, N of `clip_model`.

    Raises:
        ReadsegError: what `clip_scores` raises.
    """
    picture = load_image(image)
    own = segmenter.processor.frame(picture)
    # Asked before anything else is taken from it: what is no CLIPModel has no such configuration.
    size = clip_model.config.vision_config.image_size if isinstance(clip_model, CLIPModel) else own.lmm_size
    frame = ImageFrame(own.height, own.width, size, own.mask_size, own.view)
    values = torch.from_numpy(np.array(frame.lmm_view(picture))).permute(2, 0, 1).float() / 255
    pixels = (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    words = tokenizer(text=text, return_tensors="pt", truncation=True)
    scores = clip_scores(clip_model, words["input_ids"], words["attention_mask"], pixels[None])
    alignment = alignment or segmenter.model.config.points.alignment
    box = frame.lmm_box if alignment == "exact" else None
    side = math.isqrt(len(scores))
    return SimilarityMap(
        "clip", None, text, scores.cpu().numpy(), (side, side), lmm_frame_map(scores, frame.hw, alignment, box)
    )
