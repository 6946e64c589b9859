"""Part B: prompt encoder with text, mask decoder, coordinates and post-processing, on stock SAM classes.

Every size is read from the folder's tensors and records. A folder may hold fewer tensors of a case (tests/golden
does): what is there is compared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import SamConfig, SamModel

from parity.released_cases import stored
from readseg.checkpoints.key_mapping import sam_to_stock
from readseg.core.frames import ImageFrame
from readseg.model.mask_prompts import decode_prompts, embed_prompts

TOLERANCE = 1e-3
PREFIX = "model.visual_model."


@dataclass(frozen=True)
class PartB:
    """The records, tensors and the stock model that holds the weights of one folder."""

    index: dict[str, Any]
    tensors: dict[str, Tensor]
    sam: SamModel

    @property
    def mask_size(self) -> int:
        return self.sam.prompt_encoder.input_image_size

    def get(self, name: str) -> Tensor | None:
        value = self.tensors.get(name)
        return value.float() if value is not None and value.is_floating_point() else value

    def stored(self, name: str) -> tuple[Tensor, tuple[Any, ...]] | None:
        found = stored(self.tensors, name)
        return None if found is None else (found[0].float(), found[1])


@pytest.fixture(scope="module")
def part(reference: Path) -> PartB:
    folder = reference / "B_prompt"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    state = {}
    with safe_open(reference / index["weights"].split(",")[0], "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            if key.startswith(PREFIX):
                state[key.removeprefix(PREFIX)] = file.get_tensor(key).float()
    return PartB(
        index,
        load_file(folder / "vectors.safetensors"),
        stock_model(sam_to_stock(state), frame_size(index)),
    )


def frame_size(index: dict[str, Any]) -> int:
    """Side of the mask frame: the longest side that an image is resized to."""
    return max(side for record in index["apply_coords"] for side in record["new_hw"])


def stock_model(weights: dict[str, Tensor], mask_size: int) -> SamModel:
    """`SamModel` with the prompt encoder and the decoder of these weights; their sizes tell its own."""
    width = weights["prompt_encoder.no_mask_embed.weight"].shape[1]
    sizes = {"hidden_size": width, "image_size": mask_size, "patch_size": 16}
    layers = [re.match(r"mask_decoder\.transformer\.layers\.(\d+)\.", key) for key in weights]
    decoder = {
        "hidden_size": width,
        "mlp_dim": len(weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
        "iou_head_hidden_dim": len(weights["mask_decoder.iou_prediction_head.proj_in.weight"]),
        "num_hidden_layers": 1 + max(int(match[1]) for match in layers if match),
    }
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 0,
        "output_channels": width,
        "image_size": mask_size,
        "num_pos_feats": width // 2,
    }
    sam = SamModel(SamConfig(vision_config=encoder, prompt_encoder_config=sizes, mask_decoder_config=decoder)).eval()
    own = {key: value for key, value in weights.items() if not key.startswith("vision_encoder")}
    missing, unexpected = sam.load_state_dict(own, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} <= {"vision_encoder"}
    return sam


def close(ours: Tensor, stored: tuple[Tensor, tuple[Any, ...]], what: str) -> None:
    theirs, kept = stored
    torch.testing.assert_close(ours[kept], theirs, atol=TOLERANCE, rtol=0, msg=lambda text: f"{what}: {text}")


def sparse_of(part: PartB, case: dict[str, Any]) -> Tensor:
    """Our prompt tokens of a case. Points that are no list of points stand for no prompt at all."""
    points, labels = part.get(f"{case['key']}.points"), part.get(f"{case['key']}.labels")
    if points is not None and points.ndim != 3:
        points = labels = None
    return embed_prompts(part.sam, points, labels, part.get(f"{case['key']}.boxes"), part.get(f"{case['key']}.text"))


@torch.no_grad()
def test_sparse_prompts(part: PartB) -> None:
    compared = 0
    for case in part.index["cases"]:
        what = f"{case['key']} {case['name']}"
        if case["status"] != "ok":
            with pytest.raises(RuntimeError):
                sparse_of(part, case)
            continue
        ours, stored = sparse_of(part, case), part.stored(f"{case['key']}.sparse")
        if stored is None:
            continue
        if ours.shape[0] == 0:
            assert stored[0].shape[0] == 0, what
        else:
            close(ours, stored, what)
        compared += 1
    assert compared, "the folder holds no case with sparse prompts"


@torch.no_grad()
def test_masks_and_their_scores(part: PartB) -> None:
    embeddings = part.get("image_embeddings")
    assert embeddings is not None
    compared = 0
    for case in part.index["cases"]:
        logits, iou = part.stored(f"{case['key']}.low_res"), part.stored(f"{case['key']}.iou")
        if logits is None or iou is None:
            continue
        ours = decode_prompts(part.sam, embeddings, sparse_of(part, case), multimask=case["multimask"])
        close(ours[0], logits, f"{case['key']} {case['name']}: logits")
        close(ours[1], iou, f"{case['key']} {case['name']}: predicted IoU")
        compared += 1
    assert compared, "the folder holds no case with logits"


@torch.no_grad()
def test_positions_of_the_image_grid(part: PartB) -> None:
    stored = part.stored("dense_pe")
    assert stored is not None
    close(part.sam.get_image_wide_positional_embeddings(), stored, "dense positional embedding")


def test_points_to_the_mask_frame(part: PartB) -> None:
    assert part.index["apply_coords"]
    for record in part.index["apply_coords"]:
        frame = ImageFrame(*record["hw"], lmm_size=1, mask_size=part.mask_size)
        assert frame.mask_hw == tuple(record["new_hw"]), record
        name = f"apply_coords.{record['i']}"
        torch.testing.assert_close(
            frame.to_mask_frame(part.tensors[f"{name}.in"]), part.tensors[f"{name}.out"], atol=TOLERANCE, rtol=0
        )


class GivenFrame(ImageFrame):
    """A frame whose resized size comes from a record: some of those cannot come from a resize of their image."""

    mask_hw: tuple[int, int] = (0, 0)  # type: ignore[assignment]


def test_logits_to_the_image(part: PartB) -> None:
    compared = 0
    for record in part.index["postprocess"]:
        logits = part.get(f"post.{record['i']}.in") if "i" in record else None
        if logits is None:
            continue
        frame = GivenFrame(*record["original_size"], lmm_size=1, mask_size=part.mask_size)
        object.__setattr__(frame, "mask_hw", tuple(record["input_size"]))
        ours = frame.masks_to_image(logits[:, 0])[:, None]
        close(ours, (part.tensors[f"post.{record['i']}.out"], (...,)), f"post {record['i']}")
        compared += 1
    assert compared, "the folder holds no case of post-processing"
