"""Files of the cut reference, packed small and laid out again bit for bit.

Weights do not compress as they lie. Here each word is turned left by one bit, so that its exponent fills the highest
byte, and all first bytes are stored before all second ones: exponents repeat, and what does not is beside them.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

PACKED = ".xz"
COPIES = "copies.json"
SHARDS = "pytorch_model.bin.index.json"
WORD_BYTES = {"BOOL": 1, "U8": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


def pack(content: bytes, suffix: str) -> bytes:
    """A file's content, compressed; of tensors (".safetensors") their planes."""
    return lzma.compress(_planes(content) if suffix == ".safetensors" else content, preset=9)


def unpack(packed: bytes, suffix: str) -> bytes:
    content = lzma.decompress(packed)
    return _words(content) if suffix == ".safetensors" else content


def lay_out(golden: Path, target: Path) -> Path:
    """The cut reference as a folder of the reference's own format."""
    shutil.copytree(golden, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__", COPIES))
    for path in sorted(target.rglob(f"*{PACKED}")):
        whole = path.with_suffix("")
        whole.write_bytes(unpack(path.read_bytes(), whole.suffix))
        path.unlink()
    for name, source in json.loads((golden / COPIES).read_text(encoding="utf-8")).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target / source, target / name)
    for index in target.rglob(SHARDS):
        _write_shards(index)
    return target


def _write_shards(index: Path) -> None:
    """The shards that an index names, from the whole file of the folder beside it."""
    weights = load_file(index.parents[1] / "ckpt" / "model.safetensors")
    shards: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        shards[shard][name] = weights[name]
    for shard, part in shards.items():
        torch.save(part, index.parent / shard)


def _spans(content: bytes) -> tuple[int, dict[int, list[tuple[int, int]]]]:
    """Where the tensors of a safetensors file begin, and the spans of those with words of 1, 2, 4 and 8 bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    spans: dict[int, list[tuple[int, int]]] = {size: [] for size in (1, 2, 4, 8)}
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            spans[WORD_BYTES[tensor["dtype"]]].append((start + first, start + last))
    return start, spans


def _planes(content: bytes) -> bytes:
    start, spans = _spans(content)
    parts = [content[:start]]
    for size, places in spans.items():
        words = np.frombuffer(b"".join(content[first:last] for first, last in places), f"<u{size}")
        turned = (words << 1) | (words >> (8 * size - 1))
        parts.append(turned.view(np.uint8).reshape(-1, size).T.tobytes())
    return b"".join(parts)


def _words(content: bytes) -> bytes:
    start, spans = _spans(content)
    whole, at = bytearray(content), start
    for size, places in spans.items():
        count = sum(last - first for first, last in places)
        planes = np.frombuffer(content, np.uint8, count, at).reshape(size, -1)
        turned = np.ascontiguousarray(planes.T).view(f"<u{size}").ravel()
        words = ((turned >> 1) | (turned << (8 * size - 1))).tobytes()
        at, done = at + count, 0
        for first, last in places:
            whole[first:last] = words[done : done + last - first]
            done += last - first
    return bytes(whole)
