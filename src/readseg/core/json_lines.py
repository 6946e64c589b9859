"""Files of JSON lines that survive a kill: a head that says what decided the lines, then one line for each thing done.

A line is written in one piece, so that after a kill only the last one can be incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from readseg.errors import ReadsegError


def to_line(record: Mapping[str, Any]) -> bytes:
    r"""A record as its line, UTF-8 with the line's end.

    >>> to_line({"a": 1})
    b'{"a": 1}\n'
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def complete_lines(path: Path, expected: str) -> tuple[list[bytes], int]:
    """All complete lines of a file without their ends, and their length in bytes; a half last line is left out.

    Args:
        path: the file.
        expected: what it should be, for the error.

    Raises:
        ReadsegError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadsegError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error
    complete, _, _ = content.rpartition(b"\n")
    return complete.split(b"\n"), len(complete) + 1


def from_line(line: bytes, path: Path, number: int) -> Any:
    """The JSON value of a line.

    Args:
        line: without its end.
        path: the file, for the error.
        number: of the line, from 1, for the error.

    Raises:
        ReadsegError: it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{path}, line {number}: expected JSON; the file is damaged or of another kind") from error


def check_settings(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ReadsegError, naming each of them, where settings of a file are not those of now."""
    changed = [name for name in sorted(there.keys() | now.keys()) if there.get(name) != now.get(name)]
    if changed:
        detail = ", ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in changed)
        raise ReadsegError(f"{path} was made with other settings ({detail}); give another folder or delete it")
