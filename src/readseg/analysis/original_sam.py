"""The original SAM beside a model: the mask decoder as it was before any question, with the model's own encoders.

Training changes the mask decoder and leaves SAM's image encoder and prompt encoder as they are. So one image embedding
serves both: only the decoder's weights are read. ImageFrame: pixels of the image, H x W.

Source: section 3.2, points as the prompt of the original SAM; also points of the truth in place of the similarity map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import SamModel

from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER, read_sam
from readseg.checkpoints.files import key_mismatches, read_weights
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points
from readseg.core.token_grid import Box, cell_coverage
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import select_points

_DECODER, _PROMPTS = "mask_decoder.", "prompt_encoder."
_ROUNDED = 1 / 128  # of a weight: what two types may differ by


def load_original_sam(segmenter: Segmenter, source: str | Path | None = None) -> SamModel | None:
    """The segmenter's SAM with the original mask decoder; everything else is shared with it, not copied.

    `source` is the SAM that the model was trained from (folder, hub id or file `sam_vit_*.pth`), or a model's folder
    that holds the decoder as `ORIGINAL_SAM_DECODER`, or that file. By default that file beside the segmenter's own
    weights, which the embedded model and every run of `readseg train tiny` have; None where it is not there.
    """
    sam = segmenter.model.sam
    if source is None:
        folder = segmenter.model.config.name_or_path
        place = Path(folder) / ORIGINAL_SAM_DECODER if folder else None
        if place is None or not place.is_file():
            return None
    else:
        path = Path(source).expanduser()
        place = path / ORIGINAL_SAM_DECODER if (path / ORIGINAL_SAM_DECODER).is_file() else path
    weights = read_weights(place) if place.is_file() else {}
    if not weights or not all(name.startswith(_DECODER) for name in weights):
        place, weights = Path(place), read_sam(source or place)[1]
        _check_prompt_encoder(sam, weights, place)
    return _with_decoder(sam, weights, place)


def _with_decoder(sam: SamModel, weights: Mapping[str, Tensor], place: Path) -> SamModel:
    """A SAM of shared parts and its own mask decoder."""
    decoder = {name.removeprefix(_DECODER): w for name, w in weights.items() if name.startswith(_DECODER)}
    with torch.device("meta"):
        original = SamModel(sam.config)
    if problems := key_mismatches(decoder, original.mask_decoder.state_dict()):
        raise ReadsegError(f"{place}: this is no mask decoder of the model's SAM; {problems}.")
    like = sam.mask_decoder.iou_token.weight
    # Copies: weights that are mapped into memory stay with their file.
    original.mask_decoder.load_state_dict(
        {name: weight.to(like.device, like.dtype, copy=True) for name, weight in decoder.items()}, assign=True
    )
    for shared in ("vision_encoder", "prompt_encoder", "shared_image_embedding"):
        setattr(original, shared, getattr(sam, shared))
    original.mask_decoder.requires_grad_(requires_grad=False)
    return original.eval()


def _check_prompt_encoder(sam: SamModel, weights: Mapping[str, Tensor], place: Path) -> None:
    """SAMs of all sizes have decoders of one shape: the prompt encoder's weights tell whose it is."""
    for name, own in sam.prompt_encoder.state_dict().items():
        other, like = weights.get(_PROMPTS + name), own.float().cpu()
        room = _ROUNDED * float(like.abs().max())
        if other is None or other.shape != own.shape or not other.float().cpu().allclose(like, _ROUNDED, room):
            raise ReadsegError(
                f"{place} is another SAM than the model was trained from: {_PROMPTS}{name} differs; give that one."
            )


# -- points of the truth -----------------------------------------------------------------------------------------------


def ground_truth_points(
    target: Shaped[np.ndarray, "H W"], frame: ImageFrame, side: int, settings: PointConfig
) -> Points:
    """The points that SasP chooses where the similarity map is the true coverage of its n x n cells; without DtoC.

    A map is normalised to its own range, so the cell that is covered most is a positive point however little of it is.
    A target that covers all cells alike, none or every one, gives no points.
    """
    coverage = torch.from_numpy(true_coverage(target, side, frame.lmm_box)).view(1, -1)
    (points,) = select_points(coverage, [0], [frame], replace(settings, dtoc=False))
    return points


def true_coverage(target: Shaped[np.ndarray, "H W"], side: int, box: Box) -> Float[np.ndarray, "n n"]:
    """The share of each cell of a grid that a target covers (1 in {0, 1, 255}), of the cell's part inside the image.

    To six digits: cells that are covered alike are equal. A cell that lies outside the image has 0.

    >>> true_coverage(np.array([[1, 0, 0, 1], [1, 0, 255, 1]]), 2, (0.0, 0.0, 4.0, 2.0)).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    covered, inside = cell_coverage(np.stack([target == 1, np.ones(target.shape, bool)]), side, box, np.float64)
    return np.divide(covered, inside, out=np.zeros_like(covered), where=inside > 0).round(6).astype(np.float32)
