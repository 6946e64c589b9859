"""Reads a CLIP with both of its towers, for the map that needs no language model (`maps.clip_map`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPModel

from readseg.descriptions import read_settings
from readseg.errors import ReadsegError
from readseg.loading import quiet_libraries
from readseg.weight_files import fetch

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_clip(source: str | Path, device: torch.device) -> tuple[CLIPModel, Any]:
    """A CLIPModel in float32 and its tokenizer.

    Args:
        source: a folder, or a hub id such as "openai/clip-vit-large-patch14-336".
        device: where it computes.

    Raises:
        ReadsegError: there is no such model, it is not a CLIP with a text encoder, weights or the tokenizer are missing
            or of a wrong shape, or a file is damaged.
    """
    folder = fetch(source)
    kind = read_settings(folder).get("model_type")
    if kind != "clip":
        raise ReadsegError(
            f"{folder} is a model of type {kind!r}: expected a CLIP with a text encoder, such as "
            "openai/clip-vit-large-patch14-336; the vision tower alone knows no text."
        )
    if not any(all((folder / file).is_file() for file in files) for files in _TOKENIZERS):  # transformers makes one up
        raise ReadsegError(f"{folder}: the tokenizer of this CLIP is missing: expected tokenizer.json in it.")
    try:
        with quiet_libraries():
            model, info = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries' own share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReadsegError(f"{folder}: this CLIP cannot be read: {reason}") from error
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise ReadsegError(f"{folder}: weights of this CLIP are missing or of a wrong shape: {', '.join(lost)}.")
    return model.eval().to(device), tokenizer
