"""The original SAM beside a model: the mask decoder as it was before any question, with the model's own encoders.

Training changes the mask decoder and leaves SAM's image encoder and prompt encoder as they are. So one image embedding
serves both: only the decoder's weights are read.

Source: section 3.2, points as the prompt of the original SAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER, read_sam
from readseg.checkpoints.files import key_mismatches, read_weights
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter

_DECODER, _PROMPTS = "mask_decoder.", "prompt_encoder."
_ROUNDED = 1 / 128  # of a weight: what two types may differ by


def plain_sam(segmenter: Segmenter, source: str | Path | None = None) -> SamModel | None:
    """The segmenter's SAM with the original mask decoder; everything else is shared with it, not copied.

    Args:
        segmenter: the model.
        source: folder or hub id of the SAM that the model was trained from, or its file `sam_vit_*.pth`; or a model's
            folder that holds the decoder as `ORIGINAL_SAM_DECODER`, or that file itself. By default that file beside
            the segmenter's own weights, which the embedded model and every run of `readseg train tiny` have.

    Returns:
        None where no source is given and no such file is there.

    Raises:
        ReadsegError: the source cannot be read, or it is not the SAM that the model was trained from: the decoder has
            other shapes, or the prompt encoder other weights.
    """
    sam = segmenter.model.sam
    if source is None:
        own = segmenter.model.config.name_or_path
        place = Path(own) / ORIGINAL_SAM_DECODER if own else None
        if place is None or not place.is_file():
            return None
    else:
        given = Path(source).expanduser()
        place = given / ORIGINAL_SAM_DECODER if (given / ORIGINAL_SAM_DECODER).is_file() else given
    weights = read_weights(place) if place.is_file() else {}
    if not weights or not all(name.startswith(_DECODER) for name in weights):
        place, weights = Path(place), read_sam(source or place)[1]
        _check_prompts(sam, weights, place)
    return _with_decoder(sam, weights, place)


def _with_decoder(sam: SamModel, weights: Mapping[str, Tensor], place: Path) -> SamModel:
    """A SAM of shared parts and its own mask decoder."""
    decoder = {name.removeprefix(_DECODER): w for name, w in weights.items() if name.startswith(_DECODER)}
    with torch.device("meta"):
        plain = SamModel(sam.config)
    if problems := key_mismatches(decoder, plain.mask_decoder.state_dict()):
        raise ReadsegError(f"{place}: this is no mask decoder of the model's SAM; {problems}.")
    like = sam.mask_decoder.iou_token.weight
    # Copies: weights that are mapped into memory stay with their file.
    plain.mask_decoder.load_state_dict(
        {name: weight.to(like.device, like.dtype, copy=True) for name, weight in decoder.items()}, assign=True
    )
    plain.vision_encoder = sam.vision_encoder
    plain.prompt_encoder = sam.prompt_encoder
    plain.shared_image_embedding = sam.shared_image_embedding
    plain.mask_decoder.requires_grad_(requires_grad=False)
    return plain.eval()


def _check_prompts(sam: SamModel, weights: Mapping[str, Tensor], place: Path) -> None:
    """SAMs of all sizes have decoders of one shape: the prompt encoder's weights tell whose it is."""
    for name, own in sam.prompt_encoder.state_dict().items():
        other = weights.get(_PROMPTS + name)
        if other is None or other.shape != own.shape or not _close(other, own):
            raise ReadsegError(
                f"{place} is another SAM than the model was trained from: {_PROMPTS}{name} differs; give that one."
            )


def _close(one: Tensor, other: Tensor) -> bool:
    one, other = one.float().cpu(), other.float().cpu()
    return bool(torch.allclose(one, other, rtol=_ROUNDED, atol=_ROUNDED * float(other.abs().max())))
