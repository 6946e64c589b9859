"""Files and folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from readseg.errors import ReadsegError


@contextmanager
def atomic_write(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A hidden place beside `path` to write a file or a folder to; it takes the place of `path` at the end.

    A file is replaced in one step; an old folder is removed just before. If the block fails, `path` stays as it was and
    what was written is removed. With `new` nothing is ever replaced: where something is at `path` by then, that is a
    FileExistsError.

    >>> with atomic_write(Path("answer.txt")) as place:  # doctest: +SKIP
    ...     place.write_text("42")
    """
    if path.name in ("", ".."):
        path = path.resolve()  # "new/.." must not become another folder once "new" is there
    place = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(place)
    try:
        yield place
        if new and (path.exists() or path.is_symlink()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if place.is_dir() and not new:
            _remove(path)
        place.replace(path)
    except OSError as error:
        if error.filename == str(place):  # what a user reads is the name that they gave
            error.filename = str(path)
        raise
    finally:
        _remove(place)


def lock(stream: IO[Any], what: str) -> None:
    """Keeps an open file to this process, as long as it is open: a worker may outlive the launcher that was killed.

    Raises:
        ReadsegError: another process has it; the message begins with `what`.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ReadsegError(f"{what}: another process is writing to it; wait for it or end it") from error
    except OSError:  # a file system without locks
        return


def remove_parts(folder: Path) -> None:
    """Removes what a killed `atomic_write` left half-written in a folder; no other process may be writing there."""
    for place in folder.glob(".*.part"):
        _remove(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_yaml(path: Path) -> Any:
    """A table that belongs to the package: plain values only, read by libyaml where it is there (15 times as fast)."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
