"""Outputs of frozen encoders for an image, computed once and kept on disk.

A file is named by what it was computed from: a digest of the encoders' weights, and of the image's pixels or of the
seeds that it was drawn from. Other weights or other images never get it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.core.io import atomic_write


def image_digest(image: Image.Image) -> str:
    """Of an image's size and pixels: 32 hexadecimal digits."""
    blake = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    blake.update(image.tobytes())
    return blake.hexdigest()


class FeatureCache:
    """Tensors by key in the files of a folder; `limit` is how many bytes this process may still add."""

    def __init__(self, folder: Path, limit: float = math.inf) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key; None where there are none, or their file is damaged (it is removed)."""
        path = self._path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except SafetensorError:
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keeps tensors where the limit allows it; a disk that is full ends caching, not training."""
        if self.limit <= 0:
            return
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
            self.limit -= path.stat().st_size
        except (OSError, SafetensorError) as error:
            self.limit = 0.0
            warnings.warn(f"{self.folder}: nothing more is cached: {error}", UserWarning, stacklevel=2)

    def get_or_compute(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a key in bfloat16: rounded whether they were there or not, so no run depends on that."""
        tensors = self.get(key)
        if tensors is None:
            computed = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in compute().items()}
            tensors = {name: tensor.contiguous() for name, tensor in computed.items()}  # as from disk
            self.put(key, tensors)
        return tensors

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
