"""Losses of masks and maps: BCE, DICE, their mean over masks of any size, and the auxiliary loss of the map.

Masks are at image size, (H, W), each with its own; targets are 0 or 1, and 255 where a pixel does not count. All is
computed in float32 at least. Source of the mask losses: LISA (arXiv 2308.00692), section 3.2, and READ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from readseg.core.masks import IGNORED

DICE_SCALE = 1000.0
DICE_EPSILON = 1e-6


class MaskLosses(NamedTuple):
    """Both losses of a batch of masks: the means over masks."""

    bce: Float[Tensor, ""]
    dice: Float[Tensor, ""]


def bce_loss(logits: Float[Tensor, "H W"], target: Shaped[Tensor, "H W"]) -> Float[Tensor, ""]:
    """Binary cross entropy of one mask, the mean over the pixels that count; 0 if none does.

    L = mean_q [ -t log sigmoid(l) - (1 - t) log(1 - sigmoid(l)) ]

    >>> bce_loss(torch.zeros(1, 3), torch.tensor([[0, 1, 255]]))
    tensor(0.6931)
    """
    logits, truth, counts = _prepared(logits, target)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (losses * counts).sum() / counts.sum().clamp(min=1)


def dice_loss(logits: Float[Tensor, "H W"], target: Shaped[Tensor, "H W"]) -> Float[Tensor, ""]:
    """DICE loss of one mask over the pixels that count, with p = sigmoid(l).

    L = 1 - (2 sum(p t) / 1000 + 1e-6) / (sum(p) / 1000 + sum(t) / 1000 + 1e-6)

    >>> round(dice_loss(torch.full((2, 2), 50.0), torch.ones(2, 2)).item(), 6)
    0.0
    """
    logits, truth, counts = _prepared(logits, target)
    probability = logits.sigmoid() * counts / DICE_SCALE
    overlap = 2 * (probability * truth).sum()
    total = probability.sum() + (truth * counts).sum() / DICE_SCALE
    return 1 - (overlap + DICE_EPSILON) / (total + DICE_EPSILON)


def mask_losses(logits: Sequence[Float[Tensor, "_ _"]], targets: Sequence[Shaped[Tensor, "_ _"]]) -> MaskLosses:
    """BCE and DICE summed over masks (H, W), whose sizes may differ, divided by their number; 0 without any mask."""
    pairs = list(zip(logits, targets, strict=True))
    if not pairs:
        return MaskLosses(torch.zeros(()), torch.zeros(()))
    bce = torch.stack([bce_loss(logit, target) for logit, target in pairs]).mean()
    dice = torch.stack([dice_loss(logit, target) for logit, target in pairs]).mean()
    return MaskLosses(bce, dice)


def map_loss(
    scores: Float[Tensor, "S N"], coverage: Float[Tensor, "S N"], bias: float | Float[Tensor, ""], width: int
) -> Float[Tensor, ""]:
    """Auxiliary loss that lights up the similarity map: the mean over cells of BCE(s / sqrt(D) + b, coverage).

    Not part of READ (weight 0 is the paper): a model trained from scratch needs it. `coverage` in [0, 1] is the share
    of each token's cell that the mask covers, `bias` b is learned, `width` D is that of the states of the scores.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if scores.numel() == 0:
        return scores.to(dtype).sum()
    return F.binary_cross_entropy_with_logits(scores.to(dtype) / math.sqrt(width) + bias, coverage.to(dtype))


def _prepared(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 at least, the truth as 0 or 1, and 1 where a pixel counts."""
    if logits.shape != target.shape:  # others would broadcast without a word
        raise ValueError(f"expected a target of the logits' size {tuple(logits.shape)}, got {tuple(target.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = (target != IGNORED).to(logits)
    return logits, target.to(logits) * counts, counts
