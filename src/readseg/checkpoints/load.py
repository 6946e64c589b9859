"""From a name to a model that computes: what a user says about device, precision and files, in one call."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from readseg.checkpoints.adapters import is_adapter, read_adapter
from readseg.checkpoints.checkpoint import EMBEDDED, Checkpoint, build, read_checkpoint
from readseg.checkpoints.files import fetch, one_line
from readseg.errors import ReadsegError
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor


def load_model(
    name: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    bits: int | None = None,
    **reading: Any,
) -> tuple[ReadModel, ReadProcessor, tuple[str, ...]]:
    """A model, its processor, and the notes of `read_checkpoint(name, **reading)`; without name the embedded one."""
    # A map says where by itself; without either, a GPU if there is one.
    on_device = None if device_map is not None and device is None else resolve_device(device)
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and precision not in (torch.float32, torch.bfloat16, torch.float16):
        raise ReadsegError(f"dtype must be float32, bfloat16 or float16; got {dtype!r}")
    if name is None and not (EMBEDDED / "config.json").is_file():
        raise ReadsegError(
            f"the embedded model is missing ({EMBEDDED}): reinstall readseg, or name a model's folder or hub id"
        )
    source = EMBEDDED if name is None else name
    try:
        # A progress bar is for people who wait: not for the embedded model, nor where nobody watches.
        with quiet_libraries(bar=name is not None and sys.stderr.isatty()):
            checkpoint = read_model(source, **reading)
            model, processor = build(checkpoint, dtype=precision, device=on_device, device_map=device_map, bits=bits)
    except ReadsegError:
        raise
    except Exception as error:  # the libraries' own share no base class
        raise ReadsegError(f"cannot load a model from {source}: {one_line(error)}") from error
    return model, processor, checkpoint.notes


def read_model(name: str | Path, **reading: Any) -> Checkpoint:
    """The files of a model in any layout, or of an adapter with the weights that it belongs to."""
    folder = fetch(name)
    if not is_adapter(folder):
        return read_checkpoint(folder, **reading)
    if options := [option for option, value in reading.items() if value is not None]:
        raise ReadsegError(f"{', '.join(options)}: for released weights only; {folder} is an adapter.")
    return read_adapter(folder)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of this name, a GPU without one if there is one, else the CPU; an error if it cannot be used here."""
    try:
        resolved = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=resolved).tolist()  # "meta" makes tensors, but without values
    except (RuntimeError, AssertionError) as error:
        raise ReadsegError(f'device {str(device)!r} cannot be used here: try "cpu" or, with a GPU, "cuda"') from error
    return resolved


@contextmanager
def quiet_libraries(*, bar: bool = False) -> Iterator[None]:
    """What libraries log while they load would stand before the one line that says what is wrong."""
    loggers = [getLogger(name) for name in ("transformers", "huggingface_hub", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    had_bar = logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(CRITICAL)
    if not bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bar:
            logging.enable_progress_bar()


def digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 (16 hexadecimal digits) of all parameters and buffers of some modules."""
    sha = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
