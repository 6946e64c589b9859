"""Files and folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden place beside `path` to write a file or a folder to; it takes the place of `path` at the end.

    A file is replaced in one step; an old folder is removed just before. If the block fails, `path` stays as it was and
    what was written is removed.

    >>> with whole(Path("answer.txt")) as place:  # doctest: +SKIP
    ...     place.write_text("42")
    """
    place = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(place)
    try:
        yield place
        if place.is_dir():
            _remove(path)
        place.replace(path)
    finally:
        _remove(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
