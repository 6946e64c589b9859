"""Mask losses against their formulas, ignored pixels, empty batches, and the auxiliary loss of the map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from readseg.model.losses import bce_loss, dice_loss, map_loss, mask_losses


def plain_bce(logits: Tensor, target: Tensor) -> float:
    kept = target != 255
    p, t = logits[kept].double().sigmoid(), target[kept].double()
    return float(-(t * p.log() + (1 - t) * (1 - p).log()).mean())


def plain_dice(logits: Tensor, target: Tensor) -> float:
    kept = target != 255
    p, t = logits[kept].double().sigmoid(), target[kept].double()
    return float(1 - (2 * (p * t).sum() / 1000 + 1e-6) / (p.sum() / 1000 + t.sum() / 1000 + 1e-6))


def some_masks() -> tuple[list[Tensor], list[Tensor]]:
    logits = [torch.randn(7, 9), 3 * torch.randn(20, 4), torch.randn(1, 1)]
    targets = [torch.randint(0, 2, mask.shape, dtype=torch.uint8) for mask in logits]
    targets[0][2:4] = 255
    return logits, targets


def test_single_masks_follow_the_formulas() -> None:
    for logit, target in zip(*some_masks(), strict=True):
        assert bce_loss(logit, target).item() == pytest.approx(plain_bce(logit, target), rel=1e-5)
        assert dice_loss(logit, target).item() == pytest.approx(plain_dice(logit, target), rel=1e-4, abs=1e-6)


def test_a_batch_is_the_sum_over_masks_by_their_number() -> None:
    logits, targets = some_masks()
    losses = mask_losses(logits, targets)
    pairs = list(zip(logits, targets, strict=True))
    assert losses.bce.item() == pytest.approx(sum(plain_bce(*pair) for pair in pairs) / 3, rel=1e-5)
    assert losses.dice.item() == pytest.approx(sum(plain_dice(*pair) for pair in pairs) / 3, rel=1e-4)


def test_ignored_pixels_have_no_part_and_no_gradient() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    target = torch.randint(0, 2, (4, 6))
    target[:, 3:] = 255
    losses = mask_losses([logits], [target])
    alone = mask_losses([logits[:, :3]], [target[:, :3]])
    torch.testing.assert_close(torch.stack(losses), torch.stack(alone))
    (losses.bce + losses.dice).backward()
    assert logits.grad is not None
    assert logits.grad[:, :3].all()
    assert not logits.grad[:, 3:].any()


def test_nothing_to_learn_from() -> None:
    ignored = mask_losses([torch.randn(3, 3)], [torch.full((3, 3), 255, dtype=torch.uint8)])
    assert ignored.bce.item() == 0
    assert ignored.dice.item() == pytest.approx(0, abs=1e-6)
    assert mask_losses([], []) == (0, 0)


def test_gradients() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 1, 255, 1]] * 3)
    assert torch.autograd.gradcheck(lambda mask: tuple(mask_losses([mask], [target])), (logits,))


def test_extreme_logits_and_low_precision_stay_finite() -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    losses = mask_losses([logits], [torch.tensor([[1, 0, 1]])])
    (losses.bce + losses.dice).backward()
    assert torch.stack(losses).isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    half = mask_losses([torch.randn(64, 64).bfloat16()], [torch.ones(64, 64)])
    assert half.bce.dtype == torch.float32


def test_map_loss() -> None:
    scores, coverage = torch.randn(3, 16, dtype=torch.float64), torch.rand(3, 16, dtype=torch.float64)
    p = (scores / math.sqrt(8) - 0.5).sigmoid()
    plain = -(coverage * p.log() + (1 - coverage) * (1 - p).log()).mean()
    torch.testing.assert_close(map_loss(scores, coverage, torch.tensor(-0.5), 8), plain)


def test_map_loss_of_no_seg() -> None:
    scores = torch.zeros(0, 16, requires_grad=True)
    loss = map_loss(scores, torch.zeros(0, 16), 0.0, width=8)
    loss.backward()
    assert loss.item() == 0


def test_errors() -> None:
    for loss in (bce_loss, dice_loss):
        with pytest.raises(ValueError, match="size"):
            loss(torch.zeros(2, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="shorter"):
        mask_losses([torch.zeros(2, 2)], [])
    with pytest.raises(ValueError, match="size"):
        map_loss(torch.zeros(1, 4), torch.zeros(1, 9), 0.0, 8)
