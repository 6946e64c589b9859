"""Maps of the analysis against the reference: a given answer's scores, and the maps of both frames."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from answers import read_answer
from parity.released_cases import LOGITS, Case, close, part_with, turns_of, values
from readseg.analysis.answer_states import AnswerStates
from readseg.analysis.similarity_maps import layer_maps, lmm_frame_map, mask_frame_map
from readseg.core.frames import ImageFrame
from readseg.core.sasp import full_map
from readseg.core.token_grid import REFERENCE_SIDE
from readseg.inference.segmenter import Segmenter

MAP_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def readings(cases: list[Case]) -> list[tuple[Case, list[AnswerStates]]]:
    """Each case of one image: its conversations, every one read by itself."""
    found = []
    for case in cases:
        if not case.name.startswith("C1_") or case.own is None or case.fixed is not None:
            continue
        segmenter = Segmenter(case.read.model, case.read.processor)
        picture = case.read.pictures[case.images[0]]
        rows = []
        for text in case.conversations:
            turns, _ = turns_of(text, case.read.processor.config.conversation)
            # asks=False: the question as it stands, whatever its form.
            rows.append(read_answer(segmenter, picture, turns[-1].question, answer=turns[-1].answer, asks=False))
        found.append((case, rows))
    assert found
    return found


@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_scores_of_each_seg(readings: list[tuple[Case, list[AnswerStates]]]) -> None:
    compared = 0
    for case, rows in readings:
        maps = [one for row in rows for one in layer_maps(row)]
        last = [one for row in rows for one in layer_maps(row, row.num_layers)]
        for place, (ours, same) in enumerate(zip(maps, last, strict=True)):
            for theirs, _, what in values(case, f"similarity.{place}"):
                close(torch.from_numpy(ours.scores), theirs, what)
                close(torch.from_numpy(same.scores), theirs, what)
                whole = full_map(theirs[None], case.frames[0].hw, alignment="reference")[0]
                close(torch.from_numpy(ours.map), whole, f"map of {what}")
                compared += 1
        assert not list(values(case, f"similarity.{len(maps)}")), f"{case.name}: a [SEG] was not read"
    assert compared


@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_states_and_patches(readings: list[tuple[Case, list[AnswerStates]]]) -> None:
    compared = 0
    for case, rows in readings:
        for theirs, kept, what in values(case, "clip_projected"):
            close(rows[0].encoded.patches[None][kept], theirs, what)
        for theirs, kept, what in values(case, "hidden_last"):
            places = case.rows["input_ids"] == case.read.model.config.image_token_id
            assert len(rows) == len(places)
            for row, states in zip(torch.arange(len(rows))[kept].tolist(), theirs, strict=True):
                close(rows[row].h_img[-1], states[places[row]], what, atol=LOGITS)
                compared += 1
    assert compared


def test_maps_of_both_frames(reference: Path) -> None:
    """`get_similarity_map`: the language model's frame, and the mask model's, cropped to the image's part."""
    folder = part_with(reference / "A_sasp", "index.json", "get_similarity_map.safetensors")
    tensors = load_file(folder / "get_similarity_map.safetensors")
    compared = {"llava": 0, "sam": 0}
    for case in json.loads((folder / "index.json").read_text(encoding="utf-8"))["get_similarity_map"]:
        if "key" not in case:  # a constant map, NaN in the reference
            continue
        kind, size = re.fullmatch(r"(llava|sam)(\d+)", case["variant"]).groups()
        scores, theirs = tensors[f"{case['key']}.sm"], tensors[f"{case['key']}.out"]
        image_hw = tuple(case["shape"])
        for batch in range(scores.shape[0]):
            for text in range(scores.shape[2]):
                row = scores[batch, :, text]
                if kind == "llava":
                    assert int(size) == REFERENCE_SIDE
                    ours = lmm_frame_map(row, image_hw, "reference")
                else:
                    side = math.isqrt(len(row))
                    frame = ImageFrame(*image_hw, lmm_size=REFERENCE_SIDE, mask_size=int(size))
                    ours = mask_frame_map(row, (side, side), frame)
                assert ours is not None
                close(torch.from_numpy(ours), theirs[batch, :, :, text], case["key"], atol=MAP_TOLERANCE)
                compared[kind] += 1
    assert all(compared.values()), compared
