"""Checkpoint files on disk: which tensors they hold, read lazily and safely, written whole.

What a name of a tensor means, prefixes included, is for others to say. The files are torch's pickles (.bin, .pth, .pt)
and safetensors, each one file or several with an index. No file is trusted: whatever it holds, no code of it runs.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import queue
import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.types import Storage

from readseg.core.io import atomic_write
from readseg.errors import ReadsegError

_INDEX = ".index.json"
_SAFE = ".safetensors"
_KINDS = (_SAFE, ".bin", ".pth", ".pt")
# Of several checkpoints in a folder, the first of these is read.
_STANDARD = (f"model{_SAFE}{_INDEX}", f"model{_SAFE}", f"pytorch_model.bin{_INDEX}", "pytorch_model.bin")
_STANDARD_OR_SHARD = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_SHARD = re.compile(r".*-\d+-of-0*([2-9]|[1-9]\d+)\.\w+")
# Under one of these names trainers put the state dict into what they save.
_WRAPPERS = ("module", "state_dict", "model")
_DTYPES = {
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# What lies beside weights under a weights file's ending.
_NO_WEIGHTS = ("optimizer", "scheduler", "training_args", "global_step")
_PAGEOUT = 21  # MADV_PAGEOUT of Linux, which Python's mmap does not name
_PATIENCE_S = 4.0


def read_weights(place: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name: of one file, of an index with its shards, or of a folder.

    Of a folder it takes the first that is there: `model.safetensors.index.json`, `model.safetensors`,
    `pytorch_model.bin.index.json`, `pytorch_model.bin`, else the only file that ends in .safetensors, .bin, .pth or
    .pt. A state dict that a trainer wrapped as "module", "state_dict" or "model", beside nothing but numbers, texts
    and None, is unwrapped.

    The tensors are views of the files, mapped into memory: nothing is copied, and what is never looked at is never
    read. So the files must stay as they are while the tensors are in use (a file that another one replaces is
    fine; one that is overwritten or shortened is not). Writing to a tensor does not change its file. Only files in
    the format that torch wrote before 1.6 cannot be mapped and are copied.

    Raises:
        ReadsegError: a file is missing, unreadable, truncated, damaged or holds more than tensors; an index does not
            fit its shards, or names files outside its folder; there is nothing to read, or no telling which of
            several files to.
    """
    try:
        path = _chosen(place) if place.is_dir() else place
        return _indexed(path) if path.name.endswith(_INDEX) else _single(path)
    except OSError as error:
        raise ReadsegError(f"{error.filename or place} cannot be read: {error.strerror or error}.") from error


def differences(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being those that a model expects, all names told; "" where nothing does.

    Args:
        given: by name, of any shape.
        expected: by name; only shapes count.
    """
    kinds = {
        "missing": expected.keys() - given.keys(),
        "unexpected": given.keys() - expected.keys(),
        "of a wrong shape": {
            f"{name} is {tuple(given[name].shape)} and not {tuple(expected[name].shape)}"
            for name in given.keys() & expected.keys()
            if given[name].shape != expected[name].shape
        },
        "no floating point numbers": {
            f"{name} is {str(value.dtype).removeprefix('torch.')}"
            for name, value in given.items()
            if not value.is_floating_point()
        },
    }
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names)


def let_go(tensor: Tensor) -> None:
    """Tells the system that the pages of a memory-mapped tensor, of any shape, are not needed soon.

    They are read again if they are. Does nothing where the system has no such call. Values never change.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _PAGEOUT)


def write_weights(state: Mapping[str, Tensor], folder: Path, *, safe: bool, shard_bytes: int = 5_000_000_000) -> None:
    """Writes tensors into a folder that is there and holds no weights, as `read_weights` and transformers read them.

    One file if all fit into `shard_bytes`, else shards, filled in the order of `state`, and an index. A tensor larger
    than that gets its own shard. Each value is asked for twice, for its size and to be written, and no more than one
    shard's values are held at a time: `state` may make them when asked. A view, or memory that two names
    share, is written as tensors of their own: exactly their bytes.

    Args:
        state: the tensors, by name; dense, of any device.
        folder: where to; a temporary folder, say, that `core.io.atomic_write` gives.
        safe: safetensors (`model*.safetensors`), else torch's pickles (`pytorch_model*.bin`).
        shard_bytes: the most bytes of tensors in one file.

    Raises:
        ReadsegError: `folder` is no folder or holds weights, a value is no tensor of a kind that `read_weights` takes,
            or there are none.
    """
    if shard_bytes < 1:
        raise ReadsegError(f"shard_bytes: expected at least 1, got {shard_bytes}.")
    if not folder.is_dir():
        raise ReadsegError(f"{folder}: no such folder; make it before weights are written to it.")
    if old := [entry.name for entry in folder.iterdir() if _STANDARD_OR_SHARD.fullmatch(entry.name)]:
        raise ReadsegError(f"{folder} holds weights already ({_some(old)}): remove them or choose an empty folder.")
    stem, kind = ("model", _SAFE) if safe else ("pytorch_model", ".bin")
    shards: list[list[str]] = []
    total = room = 0
    for key in state:
        size = _plain(folder, key, state[key]).nbytes
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(key)
        room -= size
        total += size
    if not shards:
        raise ReadsegError(f"{folder}: there are no tensors to write.")
    if len(shards) == 1:
        _write_file(state, shards[0], folder / f"{stem}{kind}")
        return
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}{kind}" for number in range(1, len(shards) + 1)]
    for name, keys in zip(names, shards, strict=True):
        _write_file(state, keys, folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
    }
    with atomic_write(folder / f"{stem}{kind}{_INDEX}") as place:
        place.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def fetch(name: str | Path) -> Path:
    """The folder of a model: `name` itself if it is one, else that of a hub repository "owner/model" in the cache.

    Of a repository come the files of its top folder that are needed: *.json, tokenizer.model and the weights, as
    safetensors if it has them, else *.bin. Where the hub does not answer within a few seconds, what was fetched before
    is used.

    Raises:
        ReadsegError: no such folder or repository, a file instead of a folder, a gated or private repository, one
            without weights, or the hub cannot be reached and the cache has no whole copy.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir() and str(name):
            return path.resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ReadsegError(f"{str(name)!r} cannot be looked at: {_first_line(error)}.") from error
    if is_file:
        raise ReadsegError(f"{path} is a file; expected a folder with a model: name the one that it lies in.")
    repository = str(name)
    if not _HUB_ID.fullmatch(repository):
        raise ReadsegError(f"{repository!r}: no such folder, nor a name of a hub repository ('owner/model').")
    try:
        try:
            listed = _hub_files(repository)
        except (RepositoryNotFoundError, HFValidationError):
            raise
        except Exception as error:  # no network, a proxy, a broken server: the ways to be cut off are many
            return _cached(repository, _first_line(error))
        return Path(snapshot_download(repository, allow_patterns=_needed(repository, listed)))
    except GatedRepoError as error:
        raise ReadsegError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ReadsegError(
            f"{repository}: no such folder, and the hub has no such repository, or a private one: check the name; "
            "for a private one, `hf auth login`."
        ) from error
    except ReadsegError:
        raise
    except Exception as error:  # the network, the disk, the server: all can fail in the middle
        raise ReadsegError(
            f"{repository} was not fetched as a whole ({_first_line(error)}): try again, finished files are kept."
        ) from error


def _chosen(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir())
    for name in _STANDARD:
        if name in names:
            return folder / name
    found = [name for name in names if name.endswith(_KINDS)]
    if not found:
        raise ReadsegError(f"{folder} holds no weights: expected {', '.join(_STANDARD)} or one file {_endings()}.")
    if len(found) > 1:
        raise ReadsegError(
            f"{folder} holds several files that may be weights, and no index: name one of {_some(found)}."
        )
    if _SHARD.fullmatch(found[0]):
        raise ReadsegError(f"{folder} holds {found[0]}, one of several shards, and no index: fetch the missing files.")
    return folder / found[0]


def _indexed(index: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise ReadsegError(f"{index.parent} lacks {_some(absent)}, which {index.name} lists: fetch the missing files.")
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for shard in shards:
        held = _single(index.parent / shard)
        if twice := held.keys() & homes.keys():
            raise ReadsegError(
                f"{index.parent / shard} and {homes[min(twice)]} both hold {_some(twice)}; expected each tensor once: "
                "fetch the checkpoint again."
            )
        if extra := held.keys() - weight_map.keys():
            raise ReadsegError(
                f"{index.parent / shard} holds {_some(extra)}, which {index.name} does not list: the index belongs to "
                "another checkpoint; fetch it again."
            )
        tensors |= held
        homes |= dict.fromkeys(held, shard)
    if lost := [key for key, shard in weight_map.items() if homes.get(key) != shard]:
        raise ReadsegError(
            f"{index.parent / weight_map[min(lost)]} lacks {_some(lost)}, which {index.name} promises: the index "
            "belongs to another checkpoint; fetch it again."
        )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Names of tensors to names of the files beside the index that hold them."""
    _check_file(index)
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{index} is no JSON ({_first_line(error)}): fetch it again.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ReadsegError(f"{index}: expected 'weight_map', from names of tensors to names of files.")
    for key, name in weight_map.items():
        # By its name, not by where it leads: the hub's cache links its files to another folder.
        if not isinstance(name, str) or name in {"", ".", ".."} or set(name) & set("/\\\0"):
            raise ReadsegError(f"{index}: {key!r} is said to lie in {name!r}; expected the name of a file beside it.")
    return weight_map


def _single(path: Path) -> dict[str, Tensor]:
    if not path.name.endswith(_KINDS):
        raise ReadsegError(f"{path}: expected a folder or a file of weights, {_endings()}.")
    _check_file(path)
    try:
        # What torch has to say about a format is for those who write it.
        with warnings.catch_warnings(action="ignore"):
            content: object = load_file(path) if path.suffix == _SAFE else _unpickled(path)
    except Exception as error:  # a damaged or hostile file fails with whatever it stumbles on
        raise _refused(path, error) from error
    state = _unwrapped(content)
    if not isinstance(state, dict) or not state:
        raise ReadsegError(f"{path}: expected tensors by name, got {_told(state)}.")
    return {key: _plain(path, key, value) for key, value in state.items()}


def _check_file(path: Path) -> None:
    """That `path` is a file that can be read, and not git's stand-in for one."""
    if not path.is_file():
        what = "is no file" if path.exists() else "is not there, or a link to what is not there"
        raise ReadsegError(f"{path} {what}; expected a file of weights or an index.")
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise ReadsegError(f"{path} is a pointer of git-lfs, not the file: run `git lfs pull` in its folder.")


def _unpickled(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
    if not is_zip:
        return torch.load(path, map_location="cpu", mmap=False, weights_only=True)
    places: list[tuple[int, int]] = []

    def noted(storage: Storage, location: str) -> Storage:
        places.append((storage.data_ptr(), storage.nbytes()))
        return storage

    content = torch.load(path, map_location=noted, mmap=True, weights_only=True)
    with zipfile.ZipFile(path) as archive:
        records = [
            (record.header_offset, record.file_size if record.compress_type == zipfile.ZIP_STORED else -1)
            for record in archive.infolist()
            if re.fullmatch(r"[^/]+/data/.+", record.filename)
        ]
    # Torch maps as many bytes as the pickle says, from where a record begins, wherever that record ends.
    if [size for _, size in sorted(places) if size] != [size for _, size in sorted(records) if size]:
        raise ValueError("its records are not as long as its tensors")
    return content


def _refused(path: Path, error: Exception) -> ReadsegError:
    # Torch's own advice, to load the file unsafely, must not reach a user.
    said = str(error)
    if isinstance(error, pickle.UnpicklingError) and (name := re.search(r"GLOBAL (\S+)", said)):
        return ReadsegError(
            f"{path} holds more than tensors ({name[1]!r}), or is damaged; it was not read, as that could run code of "
            "the file: use a checkpoint of tensors only, best as safetensors."
        )
    cause = "" if "weights_only" in said or not said else f" ({_first_line(error).split('. ')[0]})"
    return ReadsegError(f"{path} is truncated, damaged or of another format{cause}: fetch it again.")


def _unwrapped(content: object) -> object:
    if not isinstance(content, dict):
        return content
    wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    others = [value for key, value in content.items() if key not in wrapped]
    if len(wrapped) == 1 and all(isinstance(value, int | float | str | None) for value in others):
        return content[wrapped[0]]
    return content


def _plain(where: Path, key: object, value: object) -> Tensor:
    """`value` as a dense tensor without gradients or other company; its memory stays where it is."""
    if not isinstance(key, str):
        raise ReadsegError(f"{where}: expected names of tensors, got the key {key!r}.")
    if not isinstance(value, Tensor):
        raise ReadsegError(f"{where}: {key!r} is {_told(value)}; expected tensors only.")
    tensor = value.detach()
    odd = tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta
    if odd or type(tensor) is not Tensor or tensor.dtype not in _DTYPES:
        layout = "nested" if tensor.is_nested else tensor.layout
        what = f"{type(tensor).__name__}, {tensor.dtype}, {layout}, on {tensor.device}"
        raise ReadsegError(
            f"{where}: {key!r} is of a kind that is not supported ({what}); expected a dense tensor with data, of "
            "float64, float32, float16, bfloat16, an integer or bool: convert it."
        )
    return tensor


def _write_file(state: Mapping[str, Tensor], keys: list[str], path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key in keys:
        tensor = _plain(path, key, state[key]).cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    with atomic_write(path) as place, _telling(path):
        if path.suffix == _SAFE:
            save_file(tensors, place, metadata={"format": "pt"})
            place.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets the owner alone read what it wrote
        else:
            # To an open file: given a name, torch writes it, temporary as it is, into the file.
            with place.open("wb") as file:
                torch.save(tensors, file)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What the writers raise of a full disk, or of a file that was shortened while it was read, as one line."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # torch's own clean-up fails after it, and hides it
        raise ReadsegError(f"{path} cannot be written: {_first_line(error)}.") from error


def _hub_files(repository: str) -> list[str]:
    """What the hub lists, or an error within a time that no name server or address can stretch."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = HfApi().model_info(repository, timeout=_PATIENCE_S)
            answers.put([file.rfilename for file in found.siblings or []])
        except Exception as error:  # the caller's to judge
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_PATIENCE_S)
    except queue.Empty:
        raise TimeoutError(f"no answer in {_PATIENCE_S:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _needed(repository: str, files: Collection[str]) -> list[str]:
    top = [name for name in files if "/" not in name and not any(word in name.lower() for word in _NO_WEIGHTS)]
    for kind in (_SAFE, ".bin"):
        weights = [name for name in top if name.endswith(kind)]
        if weights:
            # An index of the other kind would send a reader to files that are not fetched.
            texts = [name for name in top if name.endswith(".json") and not name.endswith(_INDEX)]
            index = [name for name in top if name.endswith(kind + _INDEX)]
            return [*texts, *index, *weights, *(name for name in top if name == "tokenizer.model")]
    raise ReadsegError(f"{repository} holds no weights: expected *{_SAFE} or *.bin in its top folder.")


def _cached(repository: str, reason: str) -> Path:
    try:
        try:
            needed = _needed(repository, [file.path for file in get_cached_repo_tree(repository)])
        except CachedRepoTreeNotFoundError:
            needed = None  # another program's copy: what it lacks, if anything, is not known
        return Path(snapshot_download(repository, allow_patterns=needed, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ReadsegError(
            f"{repository}: no such folder, the hub gave no answer ({reason.removesuffix('.')}), and the cache holds "
            "no whole copy: fetch it with a connection, or name a folder."
        ) from error


def _endings() -> str:
    return f"ending in {', '.join(_KINDS[:-1])} or {_KINDS[-1]}"


def _told(value: object) -> str:
    empty = isinstance(value, dict) and not value
    return f"an empty {type(value).__name__}" if empty else f"of type {type(value).__name__}"


def _some(names: Collection[str]) -> str:
    """A list of names that fits a line."""
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
