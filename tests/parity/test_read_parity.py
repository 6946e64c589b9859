"""Part C: the whole READ model, loaded from its released layout, against what the reference computed.

Where the reference crashes or takes the size of another image, its `.corrected` files hold the right values; what the
reference itself gave is compared wherever the README does not call it wrong.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from parity.released_cases import (
    IGNORED,
    IMAGE_PLACE,
    LOGITS,
    LOSSES,
    PAD,
    POINTS,
    Released,
    close,
    mask_logits,
    part_or_skip,
    processor_alone,
    read_json,
    recorded_hidden,
    released,
    same_masks,
    stored,
    stored_form,
)
from readseg import layouts, lora, losses, sasp
from readseg.checkpoints import build, read_checkpoint
from readseg.errors import ReadsegError
from readseg.geometry import Frame
from readseg.model import Answer, ReadOutput
from readseg.prompting import decode_prompts, embed_prompts

TEACHER_FORCED = ("C1_", "C2_")
MARGINS = 1e-5
# Mean and standard deviation of CLIP's pixels in 0..1 and of SAM's in 0..255, as both were published.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass
class Case:
    """A teacher-forced case, what the reference gave (`own`), what is right where that is wrong (`fixed`), and ours.

    tensors: the inputs, `own`'s or `fixed`'s.
    """

    name: str
    record: dict[str, Any]
    fixed_record: dict[str, Any]
    own: dict[str, Tensor] | None
    fixed: dict[str, Tensor] | None
    read: Released

    @property
    def tensors(self) -> dict[str, Tensor]:
        tensors = self.own if self.own is not None else self.fixed
        assert tensors is not None
        return tensors

    @property
    def images(self) -> list[str]:
        record = self.fixed_record if "images" in self.fixed_record else self.record
        return record["images"] if "images" in record else [record["image"]]

    @property
    def conversations(self) -> list[str]:
        record = self.fixed_record if "conversations" in self.fixed_record else self.record
        return record["conversations"]

    @cached_property
    def frames(self) -> list[Frame]:
        return [self.read.view(name).frame for name in self.images]

    @cached_property
    def rows(self) -> dict[str, Any]:
        return self.read.rows(self.tensors)

    @property
    def targets(self) -> list[Tensor]:
        """Ground truth of each [SEG]. An image without one has none, whatever its size is said to be."""
        found = [self.tensors[f"masks.{place}"] for place in range(len(self.images))]
        return [mask for masks in found for mask in masks]

    @cached_property
    def ran(self) -> tuple[ReadOutput, Tensor]:
        """Our output and last hidden states."""
        arguments = self.rows | self.read.seen(self.images)
        if f"masks.{len(self.images) - 1}" in self.tensors:
            arguments["masks"] = self.targets
        with torch.no_grad(), recorded_hidden(self.read.model) as hidden:
            output = self.read.model(**arguments)
        return output, hidden[0]

    @property
    def output(self) -> ReadOutput:
        return self.ran[0]

    @cached_property
    def wrong(self) -> set[int]:
        """The [SEG] whose points the reference made with another image's size."""
        sizes = self.record.get("sim_shape") or []
        images = self.output.seg_images.tolist()
        return {k for k, size in enumerate(sizes) if tuple(size) != self.frames[images[k]].hw}

    @property
    def wrong_images(self) -> set[int]:
        return {self.output.seg_images[k].item() for k in self.wrong}


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return part_or_skip(reference / "C_read", "index.json", "ckpt/config.json", "images.safetensors")


@pytest.fixture(scope="module")
def index(folder: Path) -> dict[str, Any]:
    return read_json(folder / "index.json")


@pytest.fixture(scope="module")
def read(folder: Path) -> Released:
    return released(folder / "ckpt", folder / "images.safetensors")


@pytest.fixture(scope="module")
def cases(folder: Path, index: dict[str, Any], read: Released) -> list[Case]:
    """All teacher-forced cases that have values."""
    place = folder / "corrected.json"
    corrected = read_json(place) if place.is_file() else {}
    names = [name for name in {**index, **corrected} if name.startswith(TEACHER_FORCED)]
    found = []
    for name in names:
        own, fixed = (folder / f"{name}{kind}.safetensors" for kind in ("", ".corrected"))
        if own.is_file() or fixed.is_file():
            found.append(
                Case(
                    name,
                    index.get(name, {}),
                    corrected.get(name, {}),
                    load_file(own) if own.is_file() else None,
                    load_file(fixed) if fixed.is_file() else None,
                    read,
                )
            )
    assert found, f"{folder} holds no teacher-forced case"
    files = {path.name.split(".safetensors")[0] for path in folder.glob("C[12]_*.safetensors")}
    assert files == {f"{case.name}" for case in found if case.own is not None} | {
        f"{case.name}.corrected" for case in found if case.fixed is not None
    }, "a file belongs to no case"
    return found


def values(case: Case, name: str) -> Iterator[tuple[Tensor, tuple[Any, ...], str]]:
    """What is stored under a name, in the case's own file and in the corrected one."""
    for tensors, kind in ((case.own, ""), (case.fixed, ".corrected")):
        if tensors is not None and (found := stored(tensors, name)) is not None:
            yield *found, f"{case.name}{kind} {name}"


# -- what the models see -----------------------------------------------------------------------------------------------


def test_images_are_seen_as_the_reference_saw_them(reference: Path) -> None:
    """No weights are needed: this runs in every clone."""
    folder = part_or_skip(reference / "C_read", "index.json", "images.safetensors")
    tensors, sizes = load_file(folder / "images.safetensors"), read_json(folder / "index.json")["images"]["sizes"]
    names = [name.removesuffix(".orig_rgb_u8") for name in tensors if name.endswith(".orig_rgb_u8")]
    assert names
    padded = 0
    for name in names:
        size, cropped = sizes[name], tensors[f"{name}.clip_cropped_rgb_u8"]
        processor = processor_alone(folder / "ckpt", "read", len(cropped), max(size["sam_input_hw"]))
        picture = Image.fromarray(tensors[f"{name}.orig_rgb_u8"].numpy())
        frame = processor.frame(picture)
        assert (list(frame.hw), list(frame.mask_hw)) == (size["original_hw"], size["sam_input_hw"])

        assert torch.equal(pixels_of(frame.lmm_view(picture)), cropped), name
        resized = pixels_of(frame.mask_view(picture))
        found = stored(tensors, f"{name}.sam_resized_rgb_u8")
        assert found is not None
        assert torch.equal(resized[found[1]], found[0]), name
        assert resized.long().sum() == size["sam_resized_u8_sum"], name

        mean, std = torch.tensor(CLIP[0]), torch.tensor(CLIP[1])
        seen = processor.lmm_pixels(picture)
        close(seen, ((cropped / 255 - mean) / std).permute(2, 0, 1), f"{name}: pixels of the tower", atol=2e-6)
        assert seen.double().sum().item() == pytest.approx(size["images_clip_sum"], rel=1e-5), name

        square, (height, width) = processor.mask_pixels(picture), frame.mask_hw
        mean, std = torch.tensor(SAM[0]), torch.tensor(SAM[1])
        close(square[:, :height, :width], ((resized - mean) / std).permute(2, 0, 1), f"{name}: SAM", atol=2e-6)
        outside = torch.cat([square[:, height:].flatten(), square[:, :, width:].flatten()])
        assert not outside.any(), name
        padded += len(outside)
    assert padded, "every image is a square: nothing was padded"


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


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


# -- teacher forcing ---------------------------------------------------------------------------------------------------


def test_hidden_states(cases: list[Case]) -> None:
    compared = 0
    for case in cases:
        # What stands at pads is nobody's: their positions differ, and no token attends to them.
        real = case.rows["attention_mask"].bool()
        for theirs, _, what in values(case, "hidden_last"):
            close(case.ran[1][real], theirs[real], what)
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
    if not empty:
        pytest.skip("no case without a mask is stored")
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
        for theirs, _, what in values(case, "hidden_last"):
            close(head(case.ran[1][:, :-1][learned]), head(theirs[:, :-1][learned]), f"{what}: text logits")
            compared += 1
    if not compared:
        pytest.skip("no training case with hidden states is stored")


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
    if not several:
        pytest.skip("no case with several images is stored")
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
    if not crashing:
        pytest.skip("no case is an error")
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


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(read: Released) -> Iterator[dict[str, Tensor]]:
    """All weights under their released names; frozen, and without gradients afterwards."""
    named = layouts.to_released(dict(read.model.named_parameters()), "visual_model")
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
    if not compared:
        pytest.skip("no norms of gradients are stored")


def test_gradient_of_the_mask_losses_through_points(
    folder: Path, cases: list[Case], weights: dict[str, Tensor]
) -> None:
    """Attached, the gradient goes through the points to the similarity; detached, through the projected [SEG] alone."""
    facts = read_json(part_or_skip(folder, "extra.json") / "extra.json")
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


# -- single facts ------------------------------------------------------------------------------------------------------


def test_decision_margins(folder: Path, cases: list[Case]) -> None:
    """How far our similarity is from another choice of points: as far as the reference's."""
    facts = read_json(part_or_skip(folder, "extra2.json") / "extra2.json")["decision_margins"]
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
    pads = len(read_json(part_or_skip(folder, "extra.json") / "extra.json")["left_pad_positions"])
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
    fact = read_json(part_or_skip(folder, "extra.json") / "extra.json")["seg_hidden_position"]
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


# -- generation --------------------------------------------------------------------------------------------------------


@dataclass
class Generated:
    """A stored generation and ours. `prompt` is without pads, `stored_answer` with its end token."""

    name: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    prompt: list[int]
    stored_answer: list[int]
    answer: Answer
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
    if not found:
        pytest.skip(f"{folder} holds no generation")
    # All questions on an image as one batch, shorter and longer ones together.
    answers: dict[str, tuple[Answer, Tensor]] = {}
    for image in {record["image"] for _, record, *_ in found}:
        group = [one for one in found if one[1]["image"] == image]
        answers |= dict(zip([one[0] for one in group], asked(read, image, [one[3] for one in group]), strict=True))
    return [Generated(*one, *answers[one[0]]) for one in found]


def asked(read: Released, image: str, prompts: list[list[int]]) -> list[tuple[Answer, Tensor]]:
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
            close(low_res[:, None], one.tensors["decoder.0.low_res"], f"{one.name} low_res")
        compared += 1
    assert compared


def test_left_pads_change_no_answer(generations: list[Generated], read: Released) -> None:
    """The same question behind pads: the reference's states and mask differ, ours are those without pads."""
    padded = [one for one in generations if one.record["left_pads"]]
    if not padded:
        pytest.skip("no generation with left pads is stored")
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
        close(output.low_res_logits[:, None], same.tensors["decoder.0.low_res"], f"{one.name} as {same.name}: low_res")
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
    facts = read_json(part_or_skip(folder, "extra.json") / "extra.json")
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


# -- files -------------------------------------------------------------------------------------------------------------


def same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name]), name


def test_sharded_files_hold_the_same_weights(folder: Path) -> None:
    part_or_skip(folder, "ckpt_sharded")
    whole, sharded = read_checkpoint(folder / "ckpt"), read_checkpoint(folder / "ckpt_sharded")
    same_weights(sharded.weights, whole.weights)


def test_names_of_the_weights(folder: Path, read: Released) -> None:
    said = read_json(part_or_skip(folder, "state_dict_keys.json") / "state_dict_keys.json")
    ours = layouts.to_released(read.model.state_dict(), "visual_model")
    theirs = layouts.without_computed(
        {name: torch.empty(size) for name, (size, _) in said["with_vision_tower"].items()}
    )
    assert {name: list(value.shape) for name, value in ours.items()} == {
        name: list(value.shape) for name, value in theirs.items()
    }
    own = {name for name in ours if not name.startswith(layouts.TOWER_RELEASED)}
    assert own <= said["without_vision_tower"].keys()


@pytest.fixture(scope="module")
def run_weights(reference: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Un-merged weights as a training run leaves them, and the merged ones under the checkpoint's names."""
    tensors = load_file(part_or_skip(reference / "C_read", "lora_merge.safetensors") / "lora_merge.safetensors")
    pre, merged = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("pre.", "merged.")
    )
    assert pre and merged
    return pre, merged


def test_lora_is_merged_exactly(run_weights: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    pre, merged = run_weights
    assert lora.has_lora(pre)
    same_weights(lora.merge_lora(lora.unwrapped(pre)), merged)
    changed = {name for name in merged if not torch.equal(merged[name], lora.unwrapped(pre)[name])}
    assert changed, "the LoRA weights change nothing"


@pytest.mark.parametrize("with_tower", [False, True])
def test_weights_of_a_training_run_load_merged(
    folder: Path,
    run_weights: tuple[dict[str, Tensor], dict[str, Tensor]],
    read: Released,
    tmp_path: Path,
    with_tower: bool,
) -> None:
    pre, merged = run_weights
    keys = read_json(part_or_skip(folder, "premerge_keys.json") / "premerge_keys.json")
    prefix = "base_model.model."
    state = {f"{prefix}{name}": value for name, value in load_file(folder / "ckpt" / "model.safetensors").items()} | pre
    tower = {
        f"{prefix}{layouts.TOWER_RELEASED}{name}": value
        for name, value in read.model.lmm.model.vision_tower.state_dict().items()
    }
    target = tmp_path / "run"
    target.mkdir()
    for place in (folder / "ckpt").iterdir():
        if "model.safetensors" not in place.name:
            shutil.copy(place, target / place.name)
    if with_tower:
        state |= {name: value.bfloat16() for name, value in tower.items()}
        computed = {name: torch.zeros(size) for name, (size, _) in keys.items() if name not in state}
        state |= computed
        assert {name: list(value.shape) for name, value in state.items()} == {n: s for n, (s, _) in keys.items()}
        assert not layouts.without_computed({n.removeprefix(prefix): v for n, v in computed.items()})
    torch.save(state, target / "pytorch_model.bin")
    settings = json.loads((target / "config.json").read_text(encoding="utf-8"))
    vision_tower = folder / settings["mm_vision_tower"]
    loaded = read_checkpoint(target, vision_tower=vision_tower)
    assert any("LoRA" in note for note in loaded.notes)

    plain = read_checkpoint(folder / "ckpt")
    own = layouts.to_released(loaded.weights, "visual_model")
    for name, weight in layouts.to_released(plain.weights, "visual_model").items():
        if name in merged:
            assert torch.equal(own[name], merged[name]) and own[name].dtype == merged[name].dtype, name
        elif not name.startswith(layouts.TOWER_RELEASED):
            assert torch.equal(own[name], weight), name
    assert own.keys() == layouts.to_released(plain.weights, "visual_model").keys()
