"""Part C: answers that READ generates, their hidden states and their masks, against the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from parity.released_cases import (
    IMAGE_PLACE,
    PAD,
    POINTS,
    Released,
    close,
    mask_logits,
    part_with,
    read_json,
    recorded_hidden,
    same_masks,
    stored,
)
from readseg.checkpoints.checkpoint import build, read_checkpoint
from readseg.model.generation import Generation


@dataclass
class Generated:
    """A stored generation and ours. `prompt` is without pads, `stored_answer` with its end token."""

    name: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    prompt: list[int]
    stored_answer: list[int]
    answer: Generation
    h_img: Tensor


@pytest.fixture(scope="module")
def generations(folder: Path, index: dict[str, Any], read: Released) -> list[Generated]:
    found = []
    for name, record in index.items():
        if not name.startswith("C3_") or not (folder / f"{name}.safetensors").is_file():
            continue
        tensors = load_file(folder / f"{name}.safetensors")
        ids = tensors["input_ids"][0].tolist()
        pads = record["left_pads"]
        assert ids[:pads] == [PAD] * pads
        wanted = tensors["output_ids"][0, len(ids) :].tolist() if "output_ids" in tensors else record["want"]
        found.append((name, record, tensors, ids[pads:], wanted))
    assert found
    # All questions on an image as one batch, shorter and longer ones together.
    answers: dict[str, tuple[Generation, Tensor]] = {}
    for image in {record["image"] for _, record, *_ in found}:
        group = [one for one in found if one[1]["image"] == image]
        answers |= dict(zip([one[0] for one in group], asked(read, image, [one[3] for one in group]), strict=True))
    return [Generated(*one, *answers[one[0]]) for one in found]


def asked(read: Released, image: str, prompts: list[list[int]]) -> list[tuple[Generation, Tensor]]:
    """Answers to prompts on one image, and its h_img."""
    count = read.model.config.num_image_tokens
    start = prompts[0].index(IMAGE_PLACE)
    prefix = prompts[0][:start] + [read.model.config.image_token_id] * count
    assert all(prompt[:start] == prompts[0][:start] for prompt in prompts)
    view = read.view(image)
    cache, h_img = read.model.prefill(prefix, view.features)
    queries = [prompt[start + 1 :] for prompt in prompts]
    return [(answer, h_img) for answer in read.model.generate_answers(prefix, cache, queries)]


@torch.no_grad()
def masks_of(read: Released, one: Generated) -> tuple[Tensor, Tensor, Any]:
    """Scores, mask logits at image size and points of a generated answer."""
    places = [k for k, token in enumerate(one.answer.ids) if token == read.model.config.seg_token_id]
    h_seg, view = one.answer.states[places], read.view(one.record["image"])
    scores = read.model.similarity(h_seg, one.h_img)
    images = torch.zeros(len(places), dtype=torch.long)
    points, low_res = read.model.decode_masks(h_seg, scores, images, view.embeddings, [view.frame])
    return scores, low_res, points


def test_generated_ids(generations: list[Generated], read: Released) -> None:
    eos = read.model.config.lmm_config.text_config.eos_token_id
    for one in generations:
        ended = one.answer.ids + [eos] * one.answer.finished
        assert ended == one.stored_answer, one.name


def test_generated_text(generations: list[Generated], read: Released) -> None:
    """Words and tokens as the reference's, the space before a full stop as people write it."""
    compared = 0
    for one in generations:
        for text in one.record.get("text") or []:
            assert read.processor.decode(one.answer.ids) == text.replace(" .", ".").removesuffix("</s>"), one.name
            compared += 1
    assert compared


def test_states_of_generated_tokens(generations: list[Generated], read: Released) -> None:
    """`states[i]` predicted `ids[i]`. With left pads the reference's mask is wrong: they stand beside no value."""
    count, compared = read.model.config.num_image_tokens, 0
    for one in generations:
        hidden = one.tensors.get("hidden_last")
        if hidden is None or one.record["left_pads"]:
            continue
        start = len(one.prompt) + count - 2
        close(one.answer.states, hidden[0, start : start + len(one.answer.ids)], one.name)
        assert one.record["steps"][0][1] == start + 1, one.name
        image = one.prompt.index(IMAGE_PLACE)
        close(one.h_img, hidden[0, image : image + count], f"{one.name}: image tokens")
        compared += 1
    assert compared


@torch.no_grad()
def test_masks_of_generated_answers(generations: list[Generated], read: Released) -> None:
    compared = 0
    for one in generations:
        frame = read.view(one.record["image"]).frame
        scores, low_res, points = masks_of(read, one)
        logits = frame.masks_to_image(low_res)
        assert len(logits) == one.stored_answer.count(read.model.config.seg_token_id), one.name
        if one.record["status"] != "ok":
            assert len(logits) > 1, one.name  # this is what the reference cannot do
            assert logits.isfinite().all() and not torch.equal(logits[0], logits[1]), one.name
            continue
        union = (logits > 0).any(0)
        assert [bool(union.any())] == one.record["object_presence"], one.name
        if one.record["left_pads"]:
            continue
        assert list(union.shape) == one.record["mask_shape"], one.name
        same_masks(union[None], one.tensors["pred_mask"][None], one.name)
        assert union.sum().item() == pytest.approx(one.record["mask_sum"], rel=1e-3), one.name
        for k, found in enumerate(points):
            close(scores[k], one.tensors[f"similarity.{k}"], f"{one.name} similarity")
            close(found.xy, one.tensors[f"points.{k}"], f"{one.name} points", atol=POINTS)
            assert found.labels.tolist() == one.tensors[f"labels.{k}"].tolist(), one.name
        if len(logits):
            texts = read.model.seg_projection(one.answer.states[one.answer.ids.index(read.model.config.seg_token_id)])
            close(texts, one.tensors["prompt.0.text_embeds"][0, 0], f"{one.name} projected [SEG]")
            theirs, kept = stored(one.tensors, "decoder.0.low_res")
            close(low_res[:, None][kept], theirs, f"{one.name} low_res")
        compared += 1
    assert compared


def test_left_pads_change_no_answer(generations: list[Generated], read: Released) -> None:
    """The same question behind pads: the reference's states and mask differ, ours are those without pads."""
    padded = [one for one in generations if one.record["left_pads"]]
    count, compared = read.model.config.num_image_tokens, 0
    for one in padded:
        same = next(
            (o for o in generations if (o.prompt, o.record["image"], o.record["left_pads"]) == (*key_of(one), 0)), None
        )
        if same is None:
            continue
        assert one.answer.ids == same.answer.ids
        ids = one.tensors["output_ids"]
        pads = one.record["left_pads"]
        mask = torch.ones_like(ids)
        mask[:, :pads] = 0
        rows = read.rows({"input_ids": ids, "attention_masks": mask})
        seen = read.seen([one.record["image"]])
        with torch.no_grad(), recorded_hidden(read.model) as hidden:
            output = read.model(**rows, **seen)
        theirs = same.tensors["hidden_last"]
        assert ids.shape[1] + count - 1 - pads == theirs.shape[1] + 1
        close(hidden[0][:, pads:-1], theirs, f"{one.name} as {same.name}: hidden states")
        theirs, kept = stored(same.tensors, "decoder.0.low_res")
        close(output.low_res_logits[:, None][kept], theirs, f"{one.name} as {same.name}: low_res")
        close(output.points[0].xy, same.tensors["points.0"], f"{one.name} as {same.name}: points", atol=POINTS)
        logits = mask_logits(output, seen["frames"], 1)[0]
        same_masks((logits > 0).any(0)[None], same.tensors["pred_mask"][None], f"{one.name} as {same.name}")
        compared += 1
    assert compared


def key_of(one: Generated) -> tuple[list[int], str]:
    return one.prompt, one.record["image"]


def test_an_answer_is_the_same_alone_and_teacher_forced(generations: list[Generated], read: Released) -> None:
    for one in generations:
        (alone, _), *_ = asked(read, one.record["image"], [one.prompt])
        assert alone.ids == one.answer.ids, one.name
        close(alone.states, one.answer.states, one.name, atol=1e-4)
        ids = torch.tensor([one.prompt + one.answer.ids])
        seen = read.seen([one.record["image"]])
        with torch.no_grad():
            output = read.model(**read.rows({"input_ids": ids}), **seen)
        _, low_res, _ = masks_of(read, one)
        close(low_res, output.low_res_logits, one.name, atol=1e-4)


def test_bfloat16_gives_the_same_ids(folder: Path, generations: list[Generated], read: Released) -> None:
    facts = read_json(part_with(folder, "extra.json") / "extra.json")
    model, processor = build(read_checkpoint(folder / "ckpt"), dtype=torch.bfloat16)
    low = Released(folder / "ckpt", model.eval(), processor, read.pictures, dict(read.views))
    compared = 0
    for one in generations:
        fact = facts.get(f"bf16_evaluate_{one.name.rpartition('_')[2]}")
        if fact is None or not fact["same_ids"]:
            continue
        (answer, _), *_ = asked(low, one.record["image"], [one.prompt])
        assert answer.ids == one.answer.ids, one.name
        compared += 1
    assert compared
