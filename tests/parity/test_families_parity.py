"""Part E: LISA, SESAME, GSVA and GLaMM, loaded from their released layouts; and for READ too, a batch is its rows.

The families of part E prompt with the projected [SEG] alone.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from parity.released_cases import (
    LOSSES,
    PAD,
    Released,
    close,
    encoded,
    mask_logits,
    part_with,
    read_json,
    recorded_hidden,
    released,
    same_masks,
    stored,
)
from readseg.core.sasp import PointConfig
from readseg.model.families import FAMILIES, REJ, RELEASED, SEG
from readseg.model.modeling import ReadOutput
from readseg.model.processing import ReadProcessor

# As the folders of part E are named; a folder of another reference may hold fewer.
OTHERS = ("LISA", "SESAME", "GSVA", "GLaMM")


class Reference:
    """One family's folder, its checkpoint and its values."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.name = folder.name
        self.index: dict[str, Any] = read_json(folder / "index.json")
        self.tensors = load_file(folder / "vectors.safetensors")
        self.released = released(folder / "ckpt", images)
        self._ran: tuple[ReadOutput, Tensor] | None = None

    @property
    def images(self) -> list[str]:
        """Of training, in order; inference is on the first."""
        return list(self.index["original"])

    @property
    def frames(self) -> list[Any]:
        return self.released.seen(self.images)["frames"]

    @property
    def rows(self) -> dict[str, Any]:
        return self.released.rows({k: v for k, v in self.tensors.items() if not k.startswith("train.")})

    @property
    def ran(self) -> tuple[ReadOutput, Tensor]:
        """Inference on the first image: our output with logits at [SEG] and [REJ], and the last hidden states."""
        if self._ran is None:
            with torch.no_grad(), recorded_hidden(self.released.model) as hidden:
                output = self.released.model(**self.rows, **self.released.seen(self.images[:1]))
            self._ran = output, hidden[0]
        return self._ran


@pytest.fixture(scope="module", params=OTHERS)
def family(request: pytest.FixtureRequest, reference: Path) -> Reference:
    folder = part_with(reference / "E_other" / request.param, "index.json", "ckpt/config.json", "vectors.safetensors")
    return Reference(folder, part_with(reference / "C_read", "images.safetensors") / "images.safetensors")


def test_every_family_of_the_reference_is_compared(reference: Path) -> None:
    part_with(reference, "E_other")
    assert {place.name for place in (reference / "E_other").iterdir() if place.is_dir()} <= set(OTHERS)
    assert {name.lower() for name in OTHERS} <= set(RELEASED)


def test_what_the_checkpoint_is(family: Reference) -> None:
    loaded, index = family.released, family.index
    config, tokenizer = loaded.model.config, loaded.processor.tokenizer
    assert config.family == family.name.lower()
    assert config.prompt == "seg"
    assert tokenizer.added == index["added_tokens"]
    assert config.seg_token_id == index["seg_token_idx"] == index["added_tokens"][SEG]
    assert config.rej_token_id == index["added_tokens"].get(REJ)
    assert config.num_image_tokens == index["image_tokens"]
    weights = sum(not name.startswith("map_bias") for name, _ in loaded.model.named_parameters())
    assert weights >= index["n_keys"] * 0.9  # computed buffers are among the keys, CLIP is not
    for name, frame in zip(family.images, family.frames, strict=True):
        assert list(frame.hw) == index["original"][name]
        assert list(frame.mask_hw) == index["sam_input"][name]


def test_the_tower_sees_what_the_reference_saw(family: Reference, reference: Path) -> None:
    """A family that stores no crop of its own has part C's."""
    parts = family.tensors, load_file(reference / "C_read" / "images.safetensors")
    for name, frame in zip(family.images, family.frames, strict=True):
        ours = torch.from_numpy(np.array(frame.lmm_view(family.released.pictures[name])))
        theirs, kept = next(filter(None, (stored(part, f"{name}.clip_cropped_rgb_u8") for part in parts)))
        assert torch.equal(ours[kept], theirs), name


def test_hidden_states(family: Reference) -> None:
    theirs, kept = stored(family.tensors, "hidden_last")
    # Where the reference runs row by row, it keeps the states of the last one.
    last = slice(-len(theirs), None)
    ours, real = family.ran[1][last][kept], family.rows["attention_mask"][last][kept].bool()
    assert real.any()
    close(ours[real], theirs[real], f"{family.name}: hidden states")


def test_masks(family: Reference) -> None:
    output = family.ran[0]
    ours = mask_logits(output, family.frames[:1], 1)[0]
    names = [name for name in family.tensors if name.startswith("pred_masks.")]
    parts = [stored(family.tensors, f"pred_masks.{place}") for place in range(len(names))]
    theirs = [part for part, _ in parts]
    assert [[len(part), *ours.shape[1:]] for part in theirs] == family.index["inference"]["n_pred_masks"]
    if len(theirs) > 1:  # one entry for each row
        rows = torch.bincount(output.seg_rows, minlength=len(theirs)).tolist()
        assert rows == [len(part) for part in theirs]
    ours = ours[parts[0][1]]
    close(ours, torch.cat(theirs), f"{family.name}: mask logits")
    same_masks(ours > 0, torch.cat(theirs) > 0, family.name)
    assert all(len(points.xy) == 0 for points in output.points), "no points: the projected [SEG] is the only prompt"


def test_training(family: Reference) -> None:
    loaded, tensors, said = family.released, family.tensors, family.index["train"]
    targets = [tensors[f"train.masks.{place}"] for place in range(len(family.images))]
    assert [len(masks) for masks in targets] == said["n_masks"]
    rows = loaded.rows(tensors, "train.")
    assert rows["row_images"].bincount().cumsum(0).tolist() == family.index["rows_per_image"][1:]
    with torch.no_grad():
        output = loaded.model(**rows, **loaded.seen(family.images), masks=[mask for masks in targets for mask in masks])
    config = loaded.model.config
    if config.rej_token_id is not None:
        # A target for each [REJ] too, where the prediction is zeros.
        rejected = (tensors["train.input_ids"] == config.rej_token_id).sum().item()
        assert sum(said["n_masks"]) == len(output.scores) + rejected
    bce, dice = config.bce_loss_weight * output.bce_loss, config.dice_loss_weight * output.dice_loss
    ours = {
        "loss": output.loss,
        "ce_loss": config.text_loss_weight * output.text_loss,
        "mask_bce_loss": bce,
        "mask_dice_loss": dice,
        "mask_loss": bce + dice,
    }
    # Without all rows of the text head, as in tests/golden, the losses that need them are left out.
    assert ours.keys() == said["losses"].keys() | set(said.get("left_out", []))
    assert said["losses"]
    for name, theirs in said["losses"].items():
        assert ours[name].item() == pytest.approx(theirs, rel=LOSSES), f"{family.name} {name}"


@torch.no_grad()
def test_rejections_follow_from_the_text_logits(family: Reference) -> None:
    """`output_ids` repeat the given answer, [SEG] and [REJ] kept where they are the most likely token, else swapped."""
    config = family.released.model.config
    if config.rej_token_id is None:
        assert "output_ids.0" not in family.tensors
        return
    logits = family.released.model(**family.rows, **_text_only(family), return_logits=True).logits
    seg, rej = config.seg_token_id, config.rej_token_id
    compared = 0
    for row, ids in enumerate(family.rows["input_ids"]):
        said = ids.clone()
        for place in ((ids == seg) | (ids == rej)).nonzero().flatten().tolist():
            likely = logits[row, place - 1].argmax()
            if likely != ids[place]:
                said[place] = rej if ids[place] == seg else seg
            compared += 1
        said[ids == config.image_token_id] = 0
        assert said.tolist() == family.tensors[f"output_ids.{row}"].tolist(), f"row {row}"
    assert compared


def _text_only(family: Reference) -> dict[str, Any]:
    return {"image_features": family.released.seen(family.images[:1])["image_features"]}


# -- a batch gives what its rows give ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=("READ", *OTHERS))
def any_family(request: pytest.FixtureRequest, reference: Path) -> tuple[Released, list[str]]:
    """A checkpoint, and conversations of different lengths that its family was asked."""
    images = part_with(reference / "C_read", "images.safetensors") / "images.safetensors"
    if request.param == "READ":
        folder = part_with(reference / "C_read", "index.json", "ckpt/config.json")
        records = read_json(folder / "index.json").values()
        texts = list(dict.fromkeys(text for record in records for text in record.get("conversations", [])))
    else:
        folder = part_with(reference / "E_other" / request.param, "index.json", "ckpt/config.json")
        texts = read_json(folder / "index.json")["prompts"]
    loaded = released(folder / "ckpt", images)
    # Of each length one, the shortest and the longest among them; one with two [SEG] if there is one.
    by_length = {len(encoded(loaded.processor, text)[0]): text for text in texts}
    chosen = [by_length[length] for length in sorted(by_length)]
    several = next((text for text in texts if text.count(SEG) > 1), chosen[0])
    return loaded, list(dict.fromkeys([chosen[-1], chosen[0], several, *chosen[1:]]))[:3]


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as ids and mask (R, L)."""
    longest = max(len(row) for row in rows)
    ends = [(longest - len(row), 0) if side == "left" else (0, longest - len(row)) for row in rows]
    ids = [F.pad(torch.tensor(row), end, value=PAD) for row, end in zip(rows, ends, strict=True)]
    mask = [F.pad(torch.ones(len(row), dtype=torch.long), end) for row, end in zip(rows, ends, strict=True)]
    return torch.stack(ids), torch.stack(mask)


@pytest.fixture(scope="module")
def singles(any_family: tuple[Released, list[str]]) -> dict[str, Any]:
    """Each row by itself, on its image, with points beside [SEG] of which rows have different numbers.

    The images are seen whole: cells of the padding around them hold no point, and each image has other padding.
    """
    loaded, texts = any_family
    model, processor = loaded.model, loaded.processor
    config = deepcopy(processor.config)
    side = math.isqrt(config.num_image_tokens)
    config.points = PointConfig(num_points=side**2, downsample=max(1, side // 12), alignment="exact")
    config.view = "letterbox"
    whole = ReadProcessor(processor.tokenizer, config)
    names = images_of_two_shapes(loaded)
    pictures = [loaded.pictures[name] for name in names]
    with torch.no_grad():
        features = model.encode_image(torch.stack([whole.lmm_pixels(picture) for picture in pictures]))
    # The mask model sees what it always sees: its embeddings are at hand.
    seen = loaded.seen(names) | {"image_features": features, "frames": [whole.frame(picture) for picture in pictures]}
    rows = [encoded(processor, text)[0] for text in texts]
    assert len({len(row) for row in rows}) > 1, "all rows have the same length"
    images = [place % len(names) for place in range(len(rows))]
    settings = {"points": config.points, "prompt": "both", "return_logits": True}
    with torch.no_grad():
        outputs = [
            model(torch.tensor([row]), **{name: values[image : image + 1] for name, values in seen.items()}, **settings)
            for row, image in zip(rows, images, strict=True)
        ]
    counts = {len(found.xy) for output in outputs for found in output.points}
    assert len(counts) > 1, "all rows have the same number of points"
    return {"rows": rows, "images": images, "outputs": outputs, "seen": seen, "settings": settings}


def images_of_two_shapes(loaded: Released) -> list[str]:
    """The smallest image, and the smallest one of clearly other proportions."""
    names = sorted(loaded.pictures, key=lambda name: math.prod(loaded.pictures[name].size))
    shapes = {name: loaded.pictures[name].width / loaded.pictures[name].height for name in names}
    other = next(name for name in names if abs(math.log(shapes[name] / shapes[names[0]])) > 0.1)
    return [names[0], other]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_is_its_rows(any_family: tuple[Released, list[str]], singles: dict[str, Any], side: str) -> None:
    model = any_family[0].model
    ids, mask = padded(singles["rows"], side)
    assert (mask == 0).any()
    seen, images = singles["seen"], torch.tensor(singles["images"])
    output = model(ids, mask, row_images=images, **seen, **singles["settings"])
    first = 0
    for row, alone in enumerate(singles["outputs"]):
        close(output.logits[row][mask[row].bool()], alone.logits[0], f"{side}: text logits of row {row}", atol=1e-4)
        segs = slice(first, first + len(alone.scores))
        first = segs.stop
        frame = seen["frames"][images[row]]
        assert [len(p.xy) for p in output.points[segs]] == [len(p.xy) for p in alone.points]
        low_res = output.low_res_logits[segs]
        close(low_res, alone.low_res_logits, f"{side}: mask logits of row {row}", atol=1e-4)
        masks = [frame.masks_to_image(logits) > 0 for logits in (low_res, alone.low_res_logits)]
        assert torch.equal(*masks), f"{side}: masks of row {row}"
    assert first == len(output.scores) > len(singles["rows"]) - 1


@torch.no_grad()
def test_a_row_without_points(any_family: tuple[Released, list[str]], singles: dict[str, Any]) -> None:
    """A map without a range gives no points: that row is prompted with [SEG] alone, and no other row changes."""
    model, seen = any_family[0].model, singles["seen"]
    place = max(range(len(singles["outputs"])), key=lambda place: len(singles["outputs"][place].scores))
    output = singles["outputs"][place]
    scores = torch.cat([torch.zeros_like(output.scores[:1]), output.scores])
    h_seg = torch.cat([output.h_seg[:1], output.h_seg])
    images = torch.full((len(scores),), singles["images"][place])
    views = seen["mask_embeddings"], seen["frames"]
    settings = {name: singles["settings"][name] for name in ("points", "prompt")}
    points, low_res = model.decode_masks(h_seg, scores, images, *views, **settings)
    assert [len(found.xy) for found in points] == [0, *(len(found.xy) for found in output.points)]
    _, seg_only = model.decode_masks(h_seg[:1], scores[:1], images[:1], *views, prompt="seg")
    close(low_res[:1], seg_only, "the row without points", atol=1e-4)
    close(low_res[1:], output.low_res_logits, "the other rows", atol=1e-4)
    assert (low_res[0] - low_res[1]).abs().max() > 1e-3, "points make no difference"


def test_the_table_of_families_names_the_checkpoints(any_family: tuple[Released, list[str]]) -> None:
    config = any_family[0].model.config
    family = FAMILIES[config.family]
    assert set(family.added_tokens) == set(any_family[0].processor.tokenizer.added)
    assert config.conversation == family.conversation
