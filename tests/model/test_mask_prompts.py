from __future__ import annotations

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped

from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points
from readseg.model.mask_prompts import NO_MASK_LOGIT, decode_prompts, embed_prompts, masks_from_prompts, select_points
from small import small_model

FRAMES = [ImageFrame(30, 40, 32, 32, "stretch"), ImageFrame(50, 20, 32, 32, "stretch")]
SETTINGS = PointConfig(num_points=6, downsample=1, alignment="exact")


def test_shapes_are_those_that_the_signatures_tell() -> None:
    check, sam = jaxtyped(typechecker=beartype), small_model().sam
    points = check(select_points)(torch.randn(3, 16), [0, 1, 1], FRAMES, SETTINGS)
    embeddings = torch.randn(2, 16, 4, 4)
    logits = check(masks_from_prompts)(sam, points, torch.randn(3, 16), [0, 1, 1], embeddings, FRAMES)
    assert logits.shape == (3, 16, 16)
    xy, labels, boxes = torch.rand(2, 3, 2) * 32, torch.ones(2, 3, dtype=torch.long), torch.rand(2, 4) * 32
    sparse = check(embed_prompts)(sam, xy, labels, boxes, torch.randn(2, 1, 16))
    assert sparse.shape == (2, 3 + 2 + 1, 16)
    masks, iou = check(decode_prompts)(sam, embeddings, sparse, multimask=True)
    assert (masks.shape, iou.shape) == ((2, 3, 16, 16), (2, 3))


def test_points_come_before_the_padding_point_and_our_token_last() -> None:
    sam, token = small_model().sam, torch.randn(1, 1, 16)
    xy, labels = torch.tensor([[[3.0, 4.0], [20.0, 9.0]]]), torch.tensor([[1, -1]])
    sparse = embed_prompts(sam, xy, labels, tokens=token)
    alone = embed_prompts(sam, xy[:, :1], labels[:, :1])
    assert sparse.shape == (1, 4, 16)
    torch.testing.assert_close(sparse[:, 0], alone[:, 0])
    nothing = sam.prompt_encoder.not_a_point_embed.weight
    assert torch.equal(sparse[0, 1:3], nothing.expand(2, -1))
    assert torch.equal(sparse[:, 3:], token)


def test_each_image_gets_points_in_its_own_size() -> None:
    scores = torch.randn(1, 16)
    (on_first,) = select_points(scores, [0], FRAMES, SETTINGS)
    first, second = select_points(scores.expand(2, -1), [0, 1], FRAMES, SETTINGS)
    assert torch.equal(first.xy, on_first.xy)
    assert torch.equal(first.labels, second.labels)
    scale = torch.tensor([20 / 40, 50 / 30])
    torch.testing.assert_close(first.xy * scale, second.xy, atol=1.5, rtol=0)


def test_order_of_rows_is_kept_whatever_their_number_of_points() -> None:
    sam, embeddings = small_model().sam, torch.randn(2, 16, 4, 4)
    rows = [Points(torch.rand(n, 2) * 20, torch.ones(n, dtype=torch.long)) for n in (2, 0, 5, 2, 1)]
    images = [1, 0, 0, 0, 1]
    together = masks_from_prompts(sam, rows, None, images, embeddings, FRAMES)
    for row, (points, image) in enumerate(zip(rows, images, strict=True)):
        alone = masks_from_prompts(sam, [points], None, [image], embeddings, FRAMES)
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
    assert (together[1] == NO_MASK_LOGIT).all()


@pytest.mark.parametrize("multimask", [False, True])
def test_nothing_to_decode_gives_nothing(multimask: bool) -> None:
    sam, embeddings = small_model().sam, torch.randn(1, 16, 4, 4)
    masks, iou = decode_prompts(sam, embeddings, torch.zeros(0, 2, 16), multimask=multimask)
    assert masks.shape == (0, 3 if multimask else 1, 16, 16)
    assert iou.shape == masks.shape[:2]
    assert masks_from_prompts(sam, [], None, [], embeddings, FRAMES).shape == (0, 16, 16)
    assert select_points(torch.zeros(0, 16), [], FRAMES, SETTINGS) == []
