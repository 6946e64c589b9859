"""Files of a checkpoint: fetched from the hub, read lazily and safely, written in shards.

The files are torch's pickles (.bin, .pth, .pt) and safetensors, each one file or several with an index. No file is
trusted: whatever it holds, no code of it runs.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.core.io import read_json
from readseg.errors import ReadsegError, first_five

_INDEX, _SAFE = ".index.json", ".safetensors"
_ENDINGS = (_SAFE, ".bin", ".pth", ".pt")
# Of several checkpoints in a folder, the first of these is read.
_STANDARD = (f"model{_SAFE}{_INDEX}", f"model{_SAFE}", f"pytorch_model.bin{_INDEX}", "pytorch_model.bin")
_SHARD = re.compile(r".*-\d+-of-0*([2-9]|[1-9]\d+)\.\w+")
# Under one of these names trainers put the state dict into what they save, beside nothing but numbers, texts and None.
_WRAPPERS = ("module", "state_dict", "model")
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64, *_INTEGERS}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Subfolders, and what lies beside weights under a weights file's ending.
_NOT_NEEDED = ["*/*", "*optimizer*", "*scheduler*", "*training_args*", "*global_step*"]
_MADV_PAGEOUT = 21  # of Linux; Python's mmap does not name it
HUB_TIMEOUT_S = 4.0


def fetch(name: str | Path) -> Path:
    """The folder `name`, else that of a hub repository "owner/model" in the cache, as safetensors if it has them."""
    with suppress(OSError, RuntimeError, ValueError):  # no path at all: too long, "~nobody", a zero byte
        path = Path(name).expanduser()
        if path.is_dir() and str(name):
            return path.resolve()
        if path.is_file():
            raise ReadsegError(f"{path} is a file; expected a folder with a model: name the one that it lies in.")
    repository = str(name)
    if not _HUB_ID.fullmatch(repository):
        raise ReadsegError(f"{repository!r}: no such folder, nor a name of a hub repository ('owner/model').")
    no_answer: Exception | None = None  # then what was fetched before is used
    try:
        try:
            # `snapshot_download` sets no time limit for this question: a silent hub would hold it up for ever.
            HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        except (RepositoryNotFoundError, HFValidationError):
            raise
        except Exception as error:  # no network, a proxy, a broken server: the ways to be cut off are many
            no_answer = error
        for ending, other in ((_SAFE, ".bin"), (".bin", _SAFE)):
            folder = snapshot_download(
                repository,
                allow_patterns=["*.json", "tokenizer.model", f"*{ending}"],
                # An index of the other kind would send a reader to files that are not fetched.
                ignore_patterns=[*_NOT_NEEDED, f"*{other}{_INDEX}"],
                local_files_only=no_answer is not None,
            )
            if any(Path(folder).glob(f"*{ending}")):
                return Path(folder)
    except GatedRepoError as error:
        terms = f"accept its terms at https://huggingface.co/{repository}, then `hf auth login`"
        raise ReadsegError(f"{repository} is gated: {terms}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        problem = "is no folder, nor a repository of the hub, or a private one: check the name, or `hf auth login`"
        raise ReadsegError(f"{repository} {problem}.") from error
    except Exception as error:  # the network, the disk, the server: all can fail in the middle
        problem = f"was not fetched as a whole ({one_line(error)}): try again, finished files are kept"
        if no_answer is not None:
            problem = (
                f"is no folder, the hub gave no answer ({one_line(no_answer).removesuffix('.')}), and the cache holds "
                "no whole copy: fetch it with a connection, or name a folder"
            )
        raise ReadsegError(f"{repository} {problem}.") from error
    raise ReadsegError(f"{repository} holds no weights: expected *{_SAFE} or *.bin in its top folder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, of an index with its shards, or of a folder; views of the files, which must not change."""
    try:
        file = _weights_file(path) if path.is_dir() else path
        return _read_shards(file) if file.name.endswith(_INDEX) else _read_file(file)
    except OSError as error:
        raise ReadsegError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error


def _weights_file(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir())
    weights = [name for name in _STANDARD if name in names][:1] or [name for name in names if name.endswith(_ENDINGS)]
    if not weights:
        raise ReadsegError(
            f"{folder} holds no weights: expected {', '.join(_STANDARD)} or one file of {', '.join(_ENDINGS)}."
        )
    if len(weights) > 1 or _SHARD.fullmatch(weights[0]):
        listed = first_five(map(repr, weights))
        raise ReadsegError(f"{folder} holds {listed} and no index: name one file of weights, or fetch what is missing.")
    return folder / weights[0]


def _read_shards(index: Path) -> dict[str, Tensor]:
    _check_no_pointer(index)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ReadsegError(f"{index}: expected 'weight_map', from names of tensors to names of files.")
    for key, name in weight_map.items():
        # By its name, not by where it leads: the hub's cache links its files to another folder.
        if not isinstance(name, str) or name in {"", ".", ".."} or set(name) & set("/\\\0"):
            raise ReadsegError(f"{index}: {key!r} is said to lie in {name!r}; expected the name of a file beside it.")
    shards = sorted(set(weight_map.values()))
    if missing := [repr(shard) for shard in shards if not (index.parent / shard).is_file()]:
        raise ReadsegError(
            f"{index.parent} lacks {first_five(missing)}, which {index.name} lists: fetch the missing files."
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        state = _read_file(index.parent / shard)
        if wrong := state.keys() ^ {key for key, name in weight_map.items() if name == shard}:
            raise ReadsegError(
                f"{index.parent / shard} and {index.name} do not agree whether it holds "
                f"{first_five(map(repr, wrong))}: the index belongs to another checkpoint; fetch it again."
            )
        tensors |= state
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.name.endswith(_ENDINGS):
        raise ReadsegError(f"{path}: expected a folder or a file of weights, of {', '.join(_ENDINGS)}.")
    _check_no_pointer(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch says about a format is for those who write it
            if path.suffix == _SAFE:
                state: Any = load_file(path)
            else:  # what torch wrote before 1.6 cannot be mapped
                state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # a damaged or hostile file fails with whatever it stumbles on
        message = str(error)
        if isinstance(error, pickle.UnpicklingError) and (name := re.search(r"GLOBAL (\S+)", message)):
            raise ReadsegError(
                f"{path} holds more than tensors ({name[1]!r}), or is damaged; it was not read, as that could run "
                "code of the file: use a checkpoint of tensors only, best as safetensors."
            ) from error
        # Torch's own advice, to load the file unsafely, must not reach a user.
        cause = "" if "weights_only" in message else f" ({one_line(error).split('. ')[0]})"
        raise ReadsegError(f"{path} is truncated, damaged or of another format{cause}: fetch it again.") from error
    if isinstance(state, dict):
        wrapped = [key for key in _WRAPPERS if isinstance(state.get(key), dict)]
        others = [value for key, value in state.items() if key not in wrapped]
        if len(wrapped) == 1 and all(isinstance(value, int | float | str | None) for value in others):
            state = state[wrapped[0]]
    if not isinstance(state, dict) or not state:
        what = "an empty dict" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ReadsegError(f"{path}: expected tensors by name, got {what}.")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ReadsegError(f"{path}: expected tensors by name, got {key!r}: a {type(value).__name__}.")
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.dtype not in _DTYPES:
            kind = f"{value.dtype}, {value.layout}, on {value.device}{', nested' if value.is_nested else ''}"
            expected = "expected a dense tensor of floating point numbers, integers or bool: convert it"
            raise ReadsegError(f"{path}: {key!r} is of a kind that is not supported ({kind}); {expected}.")
    return {key: value.detach() for key, value in state.items()}


def _check_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise ReadsegError(f"{path} is a pointer of git-lfs, not the file: run `git lfs pull` in its folder.")


def key_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What keeps weights from being those that a model expects, by names of weights; "" where nothing does."""
    kinds = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of a wrong shape": {
            f"{name} is {tuple(state[name].shape)} and not {tuple(expected[name].shape)}"
            for name in state.keys() & expected.keys()
            if state[name].shape != expected[name].shape
        },
        "no floating point numbers": {
            f"{name} is {str(value.dtype).removeprefix('torch.')}"
            for name, value in state.items()
            if not value.is_floating_point()
        },
    }
    return "; ".join(f"{kind}: {first_five(names)}" for kind, names in kinds.items() if names)


def release_pages(tensor: Tensor) -> None:
    """Gives back the pages of a memory-mapped tensor: a model in another type than its files must not take both."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_PAGEOUT)


def write_weights(state: Mapping[str, Tensor], folder: Path, *, safe: bool, shard_bytes: int = 5_000_000_000) -> None:
    """Writes one file, or shards and an index, as safetensors if `safe`, else as torch's pickles.

    No more than one shard's values are held at a time: `state` may make them when asked.
    """
    stem, ending = ("model", _SAFE) if safe else ("pytorch_model", ".bin")
    plan = split_state_dict_into_shards_factory(
        {key: state[key].nbytes for key in state},
        get_storage_size=int,
        filename_pattern=f"{stem}{{suffix}}{ending}",
        max_shard_size=shard_bytes,
    )
    for name, keys in plan.filename_to_tensors.items():
        tensors: dict[str, Tensor] = {}
        taken: set[int] = set()
        for key in keys:
            tensor = state[key].detach().cpu().contiguous()
            memory = tensor.untyped_storage()
            if memory.nbytes() != tensor.nbytes or memory.data_ptr() in taken:
                tensor = tensor.clone()  # a view, or memory that two names share
            taken.add(tensor.untyped_storage().data_ptr())
            tensors[key] = tensor
        _write_file(tensors, folder / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{stem}{ending}{_INDEX}").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        if path.suffix == _SAFE:
            save_file(tensors, path, metadata={"format": "pt"})
            path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets the owner alone read what it wrote
        else:
            with path.open("wb") as file:  # to an open file: given a name, torch writes that into the file
                torch.save(tensors, file)
    except (RuntimeError, SafetensorError) as error:  # a full disk, or a file that was shortened while it was read
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # torch's own clean-up fails after it, and hides it
        raise ReadsegError(f"{path} cannot be written: {one_line(error)}.") from error


# -- config.json and errors --------------------------------------------------------------------------------------------


def read_config_json(folder: Path) -> dict[str, Any]:
    """config.json of a folder, as data."""
    if not (folder / "config.json").is_file():
        raise ReadsegError(f"{folder} holds no model: expected config.json, weights and a tokenizer in it.")
    return read_json(folder / "config.json")


@contextmanager
def reraise_as_readseg_error(source: str | Path) -> Iterator[None]:
    """Whatever the libraries say of settings that make no sense, as an error that names their file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # as of a layer without any weight
            yield
    except Exception as error:  # they share no base class
        raise ReadsegError(f"{source}: {one_line(error).removeprefix('config.json: ')}") from error


def one_line(error: Exception) -> str:
    """What an error says on its first line, and on its second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
