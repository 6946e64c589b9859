"""What frozen encoders say of an image, computed once and kept on disk.

A file holds one group of images. It is named by a digest of the encoders' weights and of the images' seeds, so that
other weights or other images never find it; it is written beside its place and moved there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from readseg.files import whole


def digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 (16 hexadecimal digits) of all parameters and buffers of some modules."""
    sha = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def cached(folder: Path, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors under a key, from disk if they are there, else computed and kept in bfloat16.

    Both ways give the same rounded values, so a run does not depend on what was cached before.

    Args:
        folder: where the files are; made if absent.
        key: name of the entry.
        compute: called where the entry is absent or its file is damaged.
    """
    path = folder / f"{key}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in compute().items()}
    with whole(path) as place:
        save_file(tensors, place)
    return tensors
