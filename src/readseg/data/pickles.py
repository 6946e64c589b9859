"""Pickles from outside, read so that nothing in them runs: containers, numbers and text come out, or an error.

A pickle is a program that may call anything that can be imported. Here it finds only makers of plain values.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from readseg.data.json_records import content
from readseg.errors import ReadsegError

MAX_BYTES = 1 << 30
"""Larger files are not read: the largest of the field's has some 30 MB."""

_DTYPE = re.compile(r"[<>=|]?[biufSU]\d{1,4}")


class _Maker:
    """A function that a pickle may call. A pickle may also set attributes of what it finds: this has none to set."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> object:
        return self._make(*args)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it sets the attribute {name!r} of a function")


class _Dtype:
    """The kind of a numpy number, as a pickle tells it: a code such as "i8", then a state with the byte order."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds numpy values of the kind {str(code)[:40]!r}")
        self.code = code

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it holds a numpy kind that is damaged")
        self.code = f"{order}{self.code.lstrip('<>=|')}"


class _Unpickler(pickle.Unpickler):
    """Looks every global up in a table of `_Maker`s, Python 2's names among them; nothing is imported."""

    def __init__(self, stream: io.BytesIO, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        makers: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): lambda *pairs: dict(*pairs),
            ("_codecs", "encode"): _bytes_of,
            ("numpy", "dtype"): _Dtype,
        }
        for module in ("builtins", "__builtin__"):
            makers |= {(module, "set"): set, (module, "frozenset"): frozenset, (module, "bytes"): lambda: b""}
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            makers[module, "scalar"] = lambda kind, data: _number(kind, data, encoding)
        self._makers = {name: _Maker(make) for name, make in makers.items()}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._makers:
            raise _NotPlainError(f"{module}.{name}")
        return self._makers[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _NotPlainError(Exception):
    """A global that is none of the plain ones."""


def read_pickle(path: Path) -> Any:
    """What a pickle of lists, tuples, dicts, sets, numbers and text holds; any protocol, also Python 2's.

    Byte strings of Python 2 become text: UTF-8, or Latin-1 where one of the file's is no UTF-8. numpy's numbers become
    Python's, ordered dicts plain ones.

    Raises:
        ReadsegError: no such file, too large, damaged, or it names a global that is none of these: nothing of that
            is imported or called.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ReadsegError(f"{path} is too large to be annotations: {size} bytes, the limit is {MAX_BYTES}")
    except OSError as error:
        raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error
    encoded = content(path)
    try:
        try:
            return _Unpickler(io.BytesIO(encoded), "utf-8").load()
        except UnicodeDecodeError:
            return _Unpickler(io.BytesIO(encoded), "latin-1").load()
    except _NotPlainError as error:
        raise ReadsegError(
            f"{path} is refused, nothing of it was run: it asks for {error}, expected only lists, dicts, numbers and "
            "text; get the file from its original source"
        ) from error
    except Exception as error:  # damaged data raises almost anything: EOFError, KeyError, TypeError, MemoryError, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ReadsegError(f"{path} is damaged or no pickle of plain values: {reason}") from error


def _bytes_of(text: object, encoding: object = "latin1") -> bytes:
    """How Python 3 writes bytes in the old protocols. Any other codec could be one that inflates its input."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes with {str(encoding)[:40]!r}")
    return text.encode("latin-1")


def _number(kind: object, data: object, encoding: str) -> Any:
    if isinstance(data, str):
        data = data.encode(encoding)  # Python 2's bytes, which were read as text
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("it holds a numpy value that is damaged")
    dtype = np.dtype(kind.code)
    if not dtype.itemsize or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("it holds a numpy value that is damaged")
    return np.frombuffer(data, dtype)[0].item()
