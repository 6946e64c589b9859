"""The CLIP tower of released weights, which they name and do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from readseg.checkpoints.config_json import blaming, read_settings
from readseg.checkpoints.files import fetch, read_weights
from readseg.checkpoints.key_mapping import TOWER, without_computed
from readseg.errors import ReadsegError

# A whole CLIP has a text side too; these are the tower's own parts.
_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")


@dataclass(frozen=True)
class Tower:
    """A vision tower.

    config: of its CLIP.
    weights: under the names of `ReadModel`; empty where they were not asked for.
    name: the folder or hub id it goes by.
    """

    config: CLIPVisionConfig
    weights: dict[str, Tensor]
    name: str

    @property
    def image_tokens(self) -> int:
        """N, how many tokens one image becomes."""
        return (self.config.image_size // self.config.patch_size) ** 2


def read_tower(
    settings: Mapping[str, Any], folder: Path, given: str | Path | None = None, *, with_weights: bool = True
) -> Tower:
    """The tower of a checkpoint.

    Looked for as `given` says, else as config.json does, and then first beside the checkpoint's folder: under the name
    itself, and under its last part, since a name may be a path on its authors' machine.

    Args:
        settings: config.json of the weights.
        folder: where they lie.
        given: folder or hub id that replaces what config.json says.
        with_weights: whether to read them too.

    Raises:
        ReadsegError: no tower is named, or it cannot be loaded.
    """
    said = given or settings.get("mm_vision_tower") or settings.get("vision_tower")
    if not isinstance(said, (str, Path)):
        raise ReadsegError(f"{folder / 'config.json'} names no mm_vision_tower; name one: --vision-tower.")
    beside = [folder.parent / said, folder.parent / Path(said).name] if given is None else []
    try:
        place = fetch(next((place for place in beside if place.is_dir()), said))
        with blaming(place / "config.json"):
            if (kind := read_settings(place).get("model_type")) not in ("clip", "clip_vision_model"):
                raise ReadsegError(f"{place} is a model of type {kind!r} and no CLIP.")
            config = CLIPVisionConfig.from_pretrained(place)
            with torch.device("meta"):
                CLIPVisionModel(config)
            if config.image_size // config.patch_size < 1:
                raise ReadsegError(f"image_size {config.image_size} holds no patch of {config.patch_size} pixels.")
        state = without_computed(read_weights(place)) if with_weights else {}
    except ReadsegError as error:
        raise ReadsegError(f"the vision tower {said} cannot be loaded: {error} Name one: --vision-tower.") from error
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    own = tuple(prefix + part for part in _PARTS)
    weights = {TOWER + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(own)}
    return Tower(config, weights, str(said))
