"""Adapters: what training changed of a model, written small and read back onto the weights that it started from.

    adapter_config.json, adapter_model.safetensors   LoRA as peft writes it, and the weights that were trained whole
    base.json                                        where training started, and how to tell that it is the same
    config.json, tokenizer files                     of the trained model

Speaks names and tensors of a state dict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from readseg.checkpoints import lora
from readseg.checkpoints.base_models import start_from
from readseg.checkpoints.checkpoint import EMBEDDED, Checkpoint, check_weights, lora_alpha_of, read_checkpoint
from readseg.checkpoints.files import fetch, read_config_json, read_weights, reraise_as_readseg_error
from readseg.core.io import atomic_write, read_json
from readseg.errors import ReadsegError
from readseg.model.config import ReadConfig
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import MODEL_FILE, LegacyTokenizer

WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
EMBEDDED_NAME = "embedded"
_PEFT = "base_model.model."
_SAMPLED = 64  # values of each tensor that tell one model from another


@dataclass(frozen=True)
class Base:
    """Where training starts."""

    model: str  # folder or hub id of a model or an adapter, "embedded" for the package's; with `sam` of a LLaVA-1.5
    sam: str | None = None  # folder, hub id or .pth file of a SAM, which joins two base models
    family: str | None = None  # what released weights are taken for
    vision_tower: str | None = None  # folder or hub id of the CLIP tower, if not where config.json says
    seed: int = 0  # of the fresh projection between base models


def open_base(base: Base) -> Checkpoint:
    """The model that training starts from."""
    tower = base.vision_tower
    if base.sam is not None:
        return start_from(base.model, base.sam, family=base.family or "read", vision_tower=tower, seed=base.seed)
    if base.model == EMBEDDED_NAME:
        return read_checkpoint(EMBEDDED)
    folder = fetch(base.model)
    if is_adapter(folder):
        return read_adapter(folder)
    # A model in this package's layout says all of it by itself, and holds its tower.
    ours = read_config_json(folder).get("model_type") == ReadConfig.model_type
    return read_checkpoint(folder, family=None if ours else base.family, vision_tower=tower)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / BASE).is_file()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Tells models apart by names, shapes and a few values of each tensor (rounded to bfloat16): 16 hex digits."""
    sha = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        values = weight.detach().flatten()[:_SAMPLED].to("cpu", torch.bfloat16).contiguous()
        sha.update(f"{name} {tuple(weight.shape)}".encode())
        sha.update(values.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def save_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    processor: ReadProcessor,
    settings: Any,
    base: Base,
    base_fingerprint: str,
) -> None:
    """Writes the trained tensors, named as in a `ReadModel` with peft's layers; `settings` is a LoraConfig, or None."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        _PEFT + name.replace(".default.weight", ".weight"): value.detach().to("cpu").contiguous().clone()
        for name, value in state.items()
    }
    facts = dataclasses.asdict(base) | {"fingerprint": base_fingerprint, "tensors": len(tensors)}
    for name in ("model", "sam", "vision_tower"):  # files and folders have to be found from elsewhere; hub ids stay
        if facts[name] not in (None, EMBEDDED_NAME) and (path := Path(facts[name]).expanduser()).exists():
            facts[name] = str(path.resolve())
    with atomic_write(folder) as place:
        place.mkdir()
        try:
            save_file(tensors, place / WEIGHTS)
        except SafetensorError as error:
            raise ReadsegError(f"{folder / WEIGHTS} cannot be written: {error}") from error
        if settings is not None:
            settings.base_model_name_or_path = facts["model"]
            settings.save_pretrained(str(place))
        (place / BASE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        processor.config.save_pretrained(place)
        processor.save_pretrained(place)


def read_adapter(
    name: str | Path, *, base: str | None = None, sam: str | None = None, vision_tower: str | None = None
) -> Checkpoint:
    """The trained model: the weights that training started from, with what it changed merged into them.

    `base`, `sam` and `vision_tower` say where these are now, if they are not where they were then.
    """
    folder = fetch(name)
    if not is_adapter(folder):
        raise ReadsegError(f"{folder} is no adapter: expected {BASE} and {WEIGHTS} in it.")
    facts = read_json(folder / BASE)
    known = {field.name for field in dataclasses.fields(Base)}
    if known | {"fingerprint", "tensors"} != facts.keys() or not isinstance(facts["model"], str):
        raise ReadsegError(f"{folder / BASE} is damaged: expected {', '.join(sorted(known))}, fingerprint, tensors.")
    moved = {"model": base, "sam": sam, "vision_tower": vision_tower}
    start = Base(**{key: facts[key] for key in known} | {key: path for key, path in moved.items() if path})
    try:
        checkpoint = open_base(start)
    except ReadsegError as error:
        raise ReadsegError(
            f"{folder}: this adapter belongs to {start.model}, which cannot be read ({error}); say where it is now: "
            "readseg merge ADAPTER OUT --base MODEL (--sam, --vision-tower where it has them)"
        ) from error
    if fingerprint(checkpoint.weights) != facts["fingerprint"]:
        raise ReadsegError(f"{folder}: this adapter was trained on other weights than those of {start.model}.")
    with reraise_as_readseg_error(folder / "config.json"):
        config = ReadConfig.from_pretrained(folder)
    tokenizer = LegacyTokenizer.from_folder(folder) if (folder / MODEL_FILE).is_file() else None
    weights = _merge(folder, checkpoint.weights, facts["tensors"])
    check_weights(weights, config, folder)
    notes = (*checkpoint.notes, f"adapter on {start.model}")
    return Checkpoint(config, tokenizer, weights, folder, notes, checkpoint.unused)


def _merge(folder: Path, weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The base's weights with what was trained in their place, in the types of the base."""
    path = folder / WEIGHTS
    trained = lora.strip_wrapper_prefixes(read_weights(path))
    if len(trained) != count:
        raise ReadsegError(f"{path} holds {len(trained)} tensors, {BASE} says {count}: it is not whole.")
    state = {**weights, **trained}
    for key, value in trained.items():
        if key not in weights:  # a part of LoRA
            continue
        if value.shape != weights[key].shape:
            raise ReadsegError(f"{path}: {key} is {tuple(value.shape)}, the base's is {tuple(weights[key].shape)}.")
        state[key] = value.to(weights[key].dtype)
    return lora.merge_lora(state, lora_alpha_of(folder)) if lora.has_lora(state) else state
