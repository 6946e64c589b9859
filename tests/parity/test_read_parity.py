"""Part C: the whole READ model, loaded from its released layout: what it computes of given text, against the reference.

Where the reference crashes or takes the size of another image, its `.corrected` files hold the right values; what the
reference itself gave is compared wherever the README does not call it wrong.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from parity.released_cases import (
    LOGITS,
    PAD,
    POINTS,
    Case,
    Released,
    close,
    mask_logits,
    part_with,
    read_json,
    recorded_hidden,
    same_masks,
    stored,
    stored_form,
    values,
)
from readseg.core import sasp
from readseg.errors import ReadsegError
from readseg.model.mask_prompts import decode_prompts, embed_prompts

MARGINS = 1e-5


# -- teacher forcing ---------------------------------------------------------------------------------------------------


def test_features_of_images(cases: list[Case]) -> None:
    compared = {"clip_projected": 0, "image_embeddings": 0}
    for case in cases:
        views = [case.read.view(name) for name in case.images]
        ours = {
            "clip_projected": torch.cat([view.features for view in views]),
            "image_embeddings": torch.cat([view.embeddings for view in views]),
        }
        for name in compared:
            for theirs, kept, what in values(case, name):
                close(ours[name][kept], theirs, what)
                compared[name] += 1
    assert all(compared.values()), compared


def test_hidden_states(cases: list[Case]) -> None:
    compared = 0
    for case in cases:
        # What stands at pads is nobody's: their positions differ, and no token attends to them.
        real = case.rows["attention_mask"].bool()
        for theirs, kept, what in values(case, "hidden_last"):
            close(case.ran[1][kept][real[kept]], theirs[real[kept]], what)
            compared += 1
    assert compared


def test_rows_and_images_of_each_seg(cases: list[Case]) -> None:
    for case in cases:
        output = case.output
        segs = (case.tensors["input_ids"] == case.read.model.config.seg_token_id).sum(1)
        assert output.seg_rows.tolist() == torch.arange(len(segs)).repeat_interleave(segs).tolist(), case.name
        images = output.seg_images.tolist()
        if case.fixed_record:
            assert output.seg_rows.tolist() == case.fixed_record["row_of_seg"]
            assert [list(case.frames[image].hw) for image in images] == case.fixed_record["size_of_seg"]
        if case.record.get("sim_shape") and case.fixed is None:
            assert not case.wrong, f"{case.name}: another image's size, and no corrected values"


def test_similarity_and_points(cases: list[Case]) -> None:
    compared = 0
    for case in cases:
        output = case.output
        assert output.points is not None and len(output.points) == len(output.scores)
        for k, points in enumerate(output.points):
            for theirs, _, what in values(case, f"similarity.{k}"):
                close(output.scores[k], theirs, what)
            for name, ours, atol in (("points", points.xy, POINTS), ("labels", points.labels, 0)):
                found = list(values(case, f"{name}.{k}"))
                assert found, f"{case.name} {name}.{k}"
                for theirs, _, what in found:
                    if k in case.wrong and ".corrected" not in what:
                        continue  # made with the size of another image
                    close(ours, theirs, what, atol=atol)
                    compared += 1
    assert compared


@torch.no_grad()
def test_prompts_and_what_the_decoder_makes_of_them(cases: list[Case]) -> None:
    compared = {"text_embeds": 0, "sparse": 0, "coords1024": 0, "labels": 0, "iou": 0, "low_res": 0}
    for case in cases:
        model, output = case.read.model, case.output
        for i, frame in enumerate(case.frames):
            segs = (output.seg_images == i).nonzero().flatten().tolist()
            texts = model.seg_projection(output.h_seg[segs])
            for theirs, _, what in values(case, f"pred_embeddings.{i}"):
                close(texts, theirs, what)
            for theirs, _, what in values(case, f"prompt.{i}.text_embeds"):
                close(texts[:, None], theirs, what)
                compared["text_embeds"] += len(segs)
            if not segs or i in case.wrong_images:
                continue
            points = [output.points[k] for k in segs]
            xy_mask = torch.stack([frame.to_mask_frame(found.xy) for found in points])
            labels = torch.stack([found.labels for found in points])
            sparse = embed_prompts(model.sam, xy_mask, labels, tokens=texts[:, None])
            ours = {"prompt.{}.coords1024": xy_mask, "prompt.{}.labels": labels, "prompt.{}.sparse": sparse}
            if stored(case.tensors, f"decoder.{i}.iou") is not None:
                _, iou = decode_prompts(model.sam, case.read.view(case.images[i]).embeddings, sparse)
                ours |= {"decoder.{}.iou": iou, "decoder.{}.low_res": output.low_res_logits[segs][:, None]}
            for name, value in ours.items():
                # A point is moved to the decoder's frame together with its rounding.
                atol = POINTS * max(frame.mask_hw) / max(frame.hw) if "coords" in name else LOGITS
                for theirs, kept, what in values(case, name.format(i)):
                    close(value[kept], theirs, what, atol=0 if "labels" in name else atol)
                    compared[name.rpartition(".")[2]] += len(segs)
    assert all(compared.values()), compared


def test_masks(cases: list[Case]) -> None:
    logits_compared = binary_compared = 0
    for case in cases:
        ours = mask_logits(case.output, case.frames, len(case.frames))
        for i, logits in enumerate(ours):
            names = [f"pred_masks.{i}"] + ["pred_masks"] * (len(ours) == 1)
            found = [one for name in names for one in values(case, name)]
            for theirs, kept, what in found:
                if i in case.wrong_images and ".corrected" not in what:
                    continue
                if not len(logits):
                    assert len(theirs) == 0, what  # the reference's frame of no mask has another size
                    continue
                close(logits[kept], theirs, what)
                same_masks(logits[kept] > 0, theirs > 0, what)
                logits_compared += len(theirs)
            for name in names:
                for theirs, _, what in values(case, f"{name}_binary"):
                    same_masks(logits > 0, theirs, what)
                    binary_compared += len(theirs)
        fractions = case.record.get("pred_frac_pos")
        if fractions:
            positive = [(mask > 0).float().mean().item() for masks in ours for mask in masks]
            assert positive == pytest.approx(fractions, abs=1e-3), case.name
    assert logits_compared
    assert binary_compared or not any("pred_masks_binary" in case.tensors for case in cases)


@torch.no_grad()
def test_logits_are_returned_at_all_positions(cases: list[Case]) -> None:
    case = min(cases, key=lambda case: case.rows["input_ids"].numel())
    model, rows = case.read.model, case.rows | {"labels": None}
    rows["image_features"] = case.read.seen(case.images)["image_features"]
    assert model(**rows).logits is None
    logits, hidden = model(**rows, return_logits=True).logits, case.ran[1]
    assert logits.shape[:2] == hidden.shape[:2]
    some = slice(None, None, 16)
    close(logits[:, some], model.lmm.lm_head(hidden[:, some]), case.name, atol=1e-4)


def test_the_order_of_rows_does_not_matter(cases: list[Case]) -> None:
    """The reference counts rows and images along the batch; ours says of each row which image it asks about."""
    several = [case for case in cases if len(case.images) > 1 and len(case.output.scores) > 2]
    case = max(several, key=lambda case: len(case.output.seg_rows.unique()) != len(case.tensors["input_ids"]))
    order = torch.arange(len(case.tensors["input_ids"])).flip(0)
    rows = {name: value[order] for name, value in case.rows.items() if name != "labels"}
    with torch.no_grad():
        output = case.read.model(**rows, **case.read.seen(case.images))
    back = torch.argsort(order[output.seg_rows], stable=True)
    assert torch.equal(output.seg_images[back], case.output.seg_images)
    close(output.low_res_logits[back], case.output.low_res_logits, "mask logits", atol=1e-4)


def test_whole_pictures_give_what_encoded_ones_give(cases: list[Case]) -> None:
    case = min(cases, key=lambda case: (len(case.images), len(case.tensors["input_ids"])))
    processor = case.read.processor
    pictures = [case.read.pictures[name] for name in case.images]
    with torch.no_grad():
        output = case.read.model(
            **{name: value for name, value in case.rows.items() if name != "labels"},
            pixel_values=torch.stack([processor.lmm_pixels(picture) for picture in pictures]),
            mask_pixel_values=torch.stack([processor.mask_pixels(picture) for picture in pictures]),
            frames=case.frames,
        )
    close(output.low_res_logits, case.output.low_res_logits, case.name, atol=1e-4)


def test_rows_that_crash_the_reference_have_a_mask_for_each_seg(index: dict[str, Any], read: Released) -> None:
    """Cases of which only the error is stored: the sizes of their input are, and each [SEG] has a target."""
    crashing = {name: record for name, record in index.items() if "C2_" in name and record["status"] == "error"}
    assert crashing
    for name, record in crashing.items():
        rows = [stored_form(read.processor, text)[0] for text in record["conversations"]]
        longest = max(len(row) for row in rows)
        assert [len(rows), longest] == record["shapes"]["input_ids"], name
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        if len(record["images"]) > 1:
            continue  # which row belongs to which image is not stored
        with torch.no_grad():
            output = read.model(**read.rows({"input_ids": ids, "attention_masks": mask}), **read.seen(record["images"]))
        logits = mask_logits(output, read.seen(record["images"])["frames"], 1)[0]
        assert list(logits.shape) == record["masks"][0], name
        assert logits.isfinite().all(), name


# -- single facts ------------------------------------------------------------------------------------------------------


def test_decision_margins(folder: Path, cases: list[Case]) -> None:
    """How far our similarity is from another choice of points: as far as the reference's."""
    facts = read_json(part_with(folder, "extra2.json") / "extra2.json")["decision_margins"]
    compared, smallest = 0, math.inf
    for case in cases:
        points = case.read.model.config.points
        for k, scores in enumerate(case.output.scores):
            said = facts["per_case"].get(f"{case.name}.{k}")
            if said is None:
                continue
            side = math.isqrt(len(scores))
            grid = F.interpolate(
                scores.view(1, 1, side, side), (side // points.downsample,) * 2, mode="bilinear", align_corners=False
            )
            found = sasp.normalise(grid[0])[0].flatten()
            margin = torch.stack([(found - points.t_pos).abs(), (found - points.t_neg).abs()]).min().item()
            positive, negative = (found >= points.t_pos).sum().item(), (found <= points.t_neg).sum().item()
            assert (positive, negative) == (said["n_pos"], said["n_neg"]), f"{case.name}.{k}"
            assert margin == pytest.approx(said["threshold"], abs=MARGINS), f"{case.name}.{k}"
            if positive + negative > points.num_points:
                ranked = (
                    found[found >= points.t_pos].sort(descending=True).values
                    if positive > points.num_points
                    else found[found <= points.t_neg].sort().values
                )
                last = points.num_points - (0 if positive > points.num_points else positive)
                cut = (ranked[last] - ranked[last - 1]).abs().item()
                assert cut == pytest.approx(float(said["cut"]), abs=MARGINS), f"{case.name}.{k}"
            else:
                assert float(said["cut"]) == math.inf, f"{case.name}.{k}"
            compared, smallest = compared + 1, min(smallest, margin)
    assert compared
    assert smallest >= facts["min_threshold_margin"] - MARGINS


def test_left_padding(folder: Path, cases: list[Case]) -> None:
    """With the mask at the pads; the reference's own hides the first image tokens in their place."""
    pads = len(read_json(part_with(folder, "extra.json") / "extra.json")["left_pad_positions"])
    case = next(case for case in cases if case.name.startswith("C1_"))
    rows = {
        "input_ids": F.pad(case.rows["input_ids"], (pads, 0), value=PAD),
        "attention_mask": F.pad(case.rows["attention_mask"], (pads, 0), value=0),
        "row_images": case.rows["row_images"],
    }
    with torch.no_grad(), recorded_hidden(case.read.model) as hidden:
        output = case.read.model(**rows, **case.read.seen(case.images))
    real = case.rows["attention_mask"].bool()
    close(hidden[0][:, pads:][real], case.ran[1][real], "hidden states", atol=1e-4)
    close(output.low_res_logits, case.output.low_res_logits, "mask logits", atol=1e-4)


def test_where_the_state_of_seg_stands(folder: Path, read: Released) -> None:
    fact = read_json(part_with(folder, "extra.json") / "extra.json")["seg_hidden_position"]
    count = read.model.config.num_image_tokens
    assert fact["expanded_position_of_that_token"] == fact["token_index_in_input_ids"] + count - 1
    assert fact["position_used_by_seg_token_mask"] == fact["token_index_in_input_ids"] + count - 2


def test_a_row_without_an_image_is_an_error_that_names_it(cases: list[Case]) -> None:
    case = next(case for case in cases if len(case.tensors["input_ids"]) > 1)
    ids = case.rows["input_ids"].clone()
    ids[1] = ids[1].masked_fill(ids[1] == case.read.model.config.image_token_id, PAD)
    with pytest.raises(ReadsegError, match="row 1"):
        case.read.model(
            ids,
            image_features=case.read.seen(case.images)["image_features"],
            row_images=case.rows["row_images"],
        )
