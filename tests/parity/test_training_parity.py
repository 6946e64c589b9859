"""Part C: losses, text logits and norms of gradients of the READ model, against the reference's.

Where the reference crashes or takes the size of another image, its `.corrected` files hold the right values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parity.released_cases import (
    IGNORED,
    LOSSES,
    Case,
    Released,
    close,
    part_with,
    read_json,
    values,
)
from readseg.checkpoints import key_mapping
from readseg.model import losses

# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses(cases: list[Case]) -> None:
    compared = 0
    for case in cases:
        # The reference's own mask losses are wrong where its points or sizes are; its text loss is not.
        said = (case.fixed_record or case.record).get("losses")
        if said is None:
            continue
        output, config = case.output, case.read.model.config
        bce, dice = config.bce_loss_weight * output.bce_loss, config.dice_loss_weight * output.dice_loss
        ours = {
            "loss": output.loss,
            "ce_loss": config.text_loss_weight * output.text_loss,
            "mask_bce_loss": bce,
            "mask_dice_loss": dice,
            "mask_loss": bce + dice,
        }
        for name, value in ours.items():
            assert value.item() == pytest.approx(said[name], rel=LOSSES), f"{case.name} {name}"
            compared += 1
        if case.record.get("losses"):
            assert ours["ce_loss"].item() == pytest.approx(case.record["losses"]["ce_loss"], rel=LOSSES), case.name
    assert compared


def test_without_any_seg_the_mask_losses_are_0(cases: list[Case]) -> None:
    """The reference says it too, with targets of 0 masks in the size of the mask model's frame: no target counts."""
    empty = [case for case in cases if "labels" in case.rows and not case.targets]
    assert empty
    for case in empty:
        output = case.output
        assert (output.bce_loss.item(), output.dice_loss.item()) == (0, 0), case.name
        assert output.loss.item() == output.text_loss.item(), case.name
        assert output.points == [] and len(output.low_res_logits) == 0, case.name


@torch.no_grad()
def test_text_logits(cases: list[Case]) -> None:
    """The reference's are its hidden states times its lm_head: compared where a token is learned."""
    compared = 0
    for case in cases:
        if "labels" not in case.rows:
            continue
        head, learned = case.read.model.lmm.lm_head, case.rows["labels"][:, 1:] != IGNORED
        for theirs, kept, what in values(case, "hidden_last"):
            ours, rows = case.ran[1][kept], learned[kept]
            close(head(ours[:, :-1][rows]), head(theirs[:, :-1][rows]), f"{what}: text logits")
            compared += 1
    assert compared


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(read: Released) -> Iterator[dict[str, Tensor]]:
    """All weights under their released names; frozen, and without gradients afterwards."""
    named = key_mapping.to_released(dict(read.model.named_parameters()), "visual_model")
    assert all(isinstance(weight, torch.nn.Parameter) for weight in named.values())
    before = {name: weight.requires_grad for name, weight in named.items()}
    for weight in named.values():
        weight.requires_grad_(False)
    yield named
    for name, weight in named.items():
        weight.requires_grad_(before[name])
        weight.grad = None


def norm_of(weight: Tensor) -> float:
    return 0.0 if weight.grad is None else weight.grad.norm().item()


def test_gradients(cases: list[Case], weights: dict[str, Tensor]) -> None:
    compared = 0
    for case in cases:
        norms = case.record.get("grad_norms")
        if not norms:
            continue
        assert norms.keys() <= weights.keys()
        for name, weight in weights.items():
            weight.requires_grad_(name in norms)
            weight.grad = None
        case.read.model(**case.rows | case.read.seen(case.images), masks=case.targets).loss.backward()
        for name, norm in norms.items():
            # Keys have no gradient through a bias (a softmax does not see it): what is left is rounding.
            assert norm_of(weights[name]) == pytest.approx(norm, rel=LOSSES, abs=1e-7), f"{case.name} {name}"
            compared += 1
        for name in case.record.get("no_grad_params", []):
            assert name not in weights or weights[name].grad is None, name
    assert compared


def test_gradient_of_the_mask_losses_through_points(
    folder: Path, cases: list[Case], weights: dict[str, Tensor]
) -> None:
    """Attached, the gradient goes through the points to the similarity; detached, through the projected [SEG] alone."""
    facts = read_json(part_with(folder, "extra.json") / "extra.json")
    attached, detached = (facts[f"mask_loss_grad_norms_points_{kind}"] for kind in ("attached", "detached"))
    said = facts["losses_reproduced_from_saved_inputs"]
    case = next(case for case in cases if case.record.get("losses") == said)
    model, config, processor = case.read.model, case.read.model.config, case.read.processor
    for name in attached:
        weights[name].requires_grad_()
    seen = case.read.seen(case.images)
    pictures = torch.stack([processor.lmm_pixels(case.read.pictures[name]) for name in case.images])
    seen["image_features"] = model.encode_image(pictures)
    output = model(**case.rows | seen, masks=case.targets)
    assert all(points.xy.requires_grad for points in output.points) == facts["points_require_grad"]

    def compare(bce: Tensor, dice: Tensor, norms: dict[str, float], what: str) -> None:
        for weight in weights.values():
            weight.grad = None
        (config.bce_loss_weight * bce + config.dice_loss_weight * dice).backward(retain_graph=True)
        for name, norm in norms.items():
            assert norm_of(weights[name]) == pytest.approx(norm, rel=LOSSES), f"{what}: {name}"

    compare(output.bce_loss, output.dice_loss, attached, "attached")
    _, low_res = model.decode_masks(
        output.h_seg, output.scores.detach(), output.seg_images, seen["mask_embeddings"], case.frames
    )
    logits = [
        case.frames[image].masks_to_image(row[None])[0]
        for row, image in zip(low_res, output.seg_images.tolist(), strict=True)
    ]
    compare(*losses.mask_losses(logits, case.targets), detached, "detached")
    # The two differ by more than the tolerance: neither can stand for the other.
    assert any(abs(attached[name] / detached[name] - 1) > 2 * LOSSES for name in attached)
