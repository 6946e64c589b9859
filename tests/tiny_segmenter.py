"""The small model, wide enough that it has learned five answers by heart: all code paths, in seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from readseg.core.types import Turn
from readseg.inference.segmenter import Segmenter
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import build_tiny_tokenizer
from small import picture, small_config

ANSWERS = {
    "the cat": "it is the cat [SEG].",
    "something that tells the time": "it is the watch [SEG].",
    "all the birds and the tree": "they are [SEG] and [SEG].",
    "the unicorn": "there is no unicorn.",
    "how many animals are there?": "two.",
}
LONGEST_CONTEXT = 400


@cache
def _trained(view: str) -> tuple[ReadModel, ReadProcessor]:
    """The small model, trained on `ANSWERS`, whatever the image."""
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer([*ANSWERS, *ANSWERS.values()], vocab_size=400)
    config = small_config(tokenizer, width=64, context=LONGEST_CONTEXT, view=view)
    model, processor = ReadModel(config), ReadProcessor(tokenizer, config)
    rows = [processor.encode([Turn(question, answer)]) for question, answer in ANSWERS.items()]
    longest = max(len(row) for row, _ in rows)
    input_ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
    pixels = torch.stack([processor.lmm_pixels(picture(seed=seed)) for seed in range(len(rows))])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids, pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    return model, processor


def build(folder: Path, *, view: str = "stretch") -> Path:
    """A folder of the trained model."""
    for part in _trained(view):
        part.save_pretrained(folder)
    return folder


def load(folder: Path) -> Segmenter:
    """The saved model on the CPU."""
    return Segmenter.from_pretrained(folder, device="cpu")
