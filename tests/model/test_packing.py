"""Packed questions have the states, losses and gradients of questions in rows of their own."""

from __future__ import annotations

import pytest
import torch

from readseg.core.types import Turn
from readseg.model.packing import STEP, Layout, pack
from small import picture, small_model, small_processor

QUESTIONS = [
    [Turn("where is the red cup?", "it is the red cup [SEG]."), Turn("saw", "there is no saw."), Turn("a", "b")],
    [Turn("cup and saw", "the cup [SEG] and the saw [SEG].")],
]


def segments(processor: object, turns: list[Turn]) -> list[tuple[list[int], list[int]]]:
    start = len(processor.prefix_ids())
    return [tuple(part[start:] for part in processor.encode([turn])) for turn in turns]


def test_packed_equals_single_rows() -> None:
    model, processor = small_model(map_loss_weight=1.0), small_processor()
    images = [picture(30, 40, seed=1), picture(36, 24, seed=2)]
    frames = [processor.frame(image) for image in images]
    pixels = torch.stack([processor.lmm_pixels(image) for image in images])
    mask_pixels = torch.stack([processor.mask_pixels(image) for image in images])
    masks = [torch.randint(0, 2, frames[i].hw, dtype=torch.uint8) for i in (0, 1, 1)]
    coverage = torch.rand(3, 16)
    rows = [segments(processor, turns) for turns in QUESTIONS]
    pad = model.config.lmm_config.text_config.pad_token_id

    def run(questions: list, row_images: list[int], in_slots: bool) -> tuple[object, dict[str, torch.Tensor]]:
        model.zero_grad()
        rows = pack(processor.prefix_ids(), questions, pad)
        # A row of one question needs no slots: what follows it is padding, which no earlier token sees.
        output = model(
            input_ids=rows.input_ids, labels=rows.labels, position_ids=rows.position_ids, pixel_values=pixels,
            mask_pixel_values=mask_pixels, frames=frames, row_images=torch.tensor(row_images), masks=masks,
            coverage=coverage, layout=rows.layout if in_slots else None,
        )  # fmt: skip
        output.loss.backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    in_slots, packed_grads = run(rows, [0, 1], True)
    single, single_grads = run([[question] for row in rows for question in row], [0, 0, 0, 1], False)
    torch.testing.assert_close(in_slots.h_seg, single.h_seg, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_slots.low_res_logits, single.low_res_logits, atol=1e-5, rtol=1e-5)
    for name in ("loss", "text_loss", "bce_loss", "dice_loss", "map_loss"):
        assert getattr(in_slots, name).item() == pytest.approx(getattr(single, name).item(), rel=1e-5), name
    assert packed_grads.keys() == single_grads.keys()
    for name, gradient in packed_grads.items():
        torch.testing.assert_close(gradient, single_grads[name], atol=1e-5, rtol=1e-5, msg=name)


def test_layout() -> None:
    found = pack([7, 8], [[([1, 2, 5, 5, 5], [-100, 2, 5, 5, 5]), ([3], [3])], [([4], [4])]], pad_token_id=0)
    assert found.layout == Layout(2, (8, 4)) and STEP == 4
    assert found.input_ids.tolist() == [[7, 8, 1, 2, 5, 5, 5, 0, 0, 0, 3, 0, 0, 0], [7, 8, 4] + [0] * 11]
    assert found.labels[0].tolist() == [-100, -100, -100, 2, 5, 5, 5, -100, -100, -100, 3, -100, -100, -100]
    assert found.position_ids[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]


def test_rows_without_questions() -> None:
    assert pack([7], [[]], pad_token_id=0).input_ids.tolist() == [[7]]
