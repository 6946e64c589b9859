"""What frozen encoders say of an image, computed once and kept on disk.

A file is named by what it was computed from: a digest of the encoders' weights, and of the image's pixels or of the
seeds that it was drawn from. Other weights or other images never find it. It is written beside its place and moved
there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.core.io import atomic_write

_ENDING = ".safetensors"


def image_digest(image: Image.Image) -> str:
    """Of an image's size and pixels: 32 hexadecimal digits."""
    blake = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    blake.update(image.tobytes())
    return blake.hexdigest()


def look_up(folder: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors under a key; None where there are none, or their file is damaged (it is removed)."""
    path = folder / f"{key}{_ENDING}"
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None


def keep(folder: Path, key: str, tensors: dict[str, Tensor]) -> int:
    """Writes tensors under a key; returns the size of their file in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}{_ENDING}"
    with atomic_write(path) as place:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place)
    return path.stat().st_size


def cached(folder: Path, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors under a key, from disk if they are there, else computed and kept in bfloat16.

    Both ways give the same rounded values, so a run does not depend on what was cached before.

    Args:
        folder: where the files are; made if absent.
        key: name of the entry.
        compute: called where the entry is absent or its file is damaged.
    """
    found = look_up(folder, key)
    if found is None:
        found = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in compute().items()}
        keep(folder, key, found)
    return found
