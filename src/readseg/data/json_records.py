"""Files of many records on disk: whether they are there, and how a long JSON is read without keeping it.

Once through, to learn where each record lies, which takes twice its size in memory for that long; then one record at a
time, when it is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from readseg.errors import ReadsegError

_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"


def require(needs: list[tuple[Path, str]]) -> None:
    """Checks that files and folders are there.

    Raises:
        ReadsegError: names the first one that is missing, and what belongs there.
    """
    for path, what in needs:
        if not path.exists():
            raise ReadsegError(f"{path} is missing: put {what} there")


def is_there(needs: list[tuple[Path, str]]) -> bool:
    """Whether all files and folders are there."""
    return all(path.exists() for path, _ in needs)


def content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ReadsegError: it cannot be read; or it is a pipe or a device, where reading may never end.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ReadsegError(f"{path} is a pipe or a device: expected a file")
        return path.read_bytes()
    except OSError as error:
        raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error


def inside(name: Any, where: str) -> str:
    """A file name of an annotation, which must stay inside the folder that it is relative to.

    Raises:
        ReadsegError: it is no text, empty, absolute, leads out of its folder, or is longer than a file's name can be.
    """
    good = isinstance(name, str) and bool(name.strip()) and name.isprintable() and "\\" not in name
    if not good or PurePosixPath(name).is_absolute() or not all(map(_can_be_a_name, PurePosixPath(name).parts)):
        raise ReadsegError(f"{where} must name a file inside its folder, got {str(name)[:60]!r}")
    return str(name)


def _can_be_a_name(part: str) -> bool:
    return part != ".." and len(part.encode("utf-8")) <= 255


def elements(path: Path) -> Iterator[tuple[str | None, Any, int, int]]:
    """The elements of the arrays of a JSON file, one after the other.

    Args:
        path: UTF-8; one array, or one object. Whatever the object holds beside arrays is passed over.

    Yields:
        (key of the array in its object, or None, the element, its first byte in the file, the byte behind it).

    Raises:
        ReadsegError: the file cannot be read, or is no whole JSON array or object.
    """
    scanner = _Scanner(path)
    if scanner.peek() == "[":
        for found in scanner.array():
            yield None, *found
    else:
        scanner.take("{")
        more = scanner.peek() != "}"
        if not more:
            scanner.take("}")
        while more:
            key = scanner.value()
            if not isinstance(key, str):
                raise scanner.broken("the key of an object must be text")
            scanner.take(":")
            if scanner.peek() == "[":
                for found in scanner.array():
                    yield key, *found
            else:
                scanner.value()
            more = scanner.take(",}") == ","
    if scanner.peek():
        raise scanner.broken("there is more behind its end")


def read_between(path: Path, start: int, end: int) -> Any:
    """The element of a JSON file that lies where `elements` found it.

    Raises:
        ReadsegError: the file cannot be read, or is no longer the one that was read before.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return json.loads(stream.read(end - start).decode("utf-8"))
    except OSError as error:
        raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{path} was changed since it was opened: start again") from error


class _Scanner:
    """Goes through a JSON file, value by value; counts bytes as it goes, since characters may take several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        encoded = content(path)
        self._byte = len(_BOM) if encoded.startswith(_BOM) else 0
        try:
            self._text = encoded.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ReadsegError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
        self._at = self._counted = 0
        self._decode = json.JSONDecoder().raw_decode

    def broken(self, why: str) -> ReadsegError:
        return ReadsegError(f"{self._path} is no whole JSON file: {why} (character {self._at} of {len(self._text)})")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._text[self._at : self._at + 1]

    def take(self, allowed: str) -> str:
        character = self.peek()
        if not character or character not in allowed:
            raise self.broken(f"expected {' or '.join(allowed)}, got {character or 'its end'}")
        self._at += 1
        return character

    def value(self) -> Any:
        self.peek()
        try:
            value, self._at = self._decode(self._text, self._at)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            self._at = getattr(error, "pos", self._at)
            raise self.broken(getattr(error, "msg", str(error))) from error
        return value

    def array(self) -> Iterator[tuple[Any, int, int]]:
        self.take("[")
        more = self.peek() != "]"
        if not more:
            self.take("]")
        while more:
            self.peek()
            start = self._bytes()
            value = self.value()
            yield value, start, self._bytes()
            more = self.take(",]") == ","

    def _bytes(self) -> int:
        """How many bytes of the file lie before this place."""
        self._byte += len(self._text[self._counted : self._at].encode("utf-8"))
        self._counted = self._at
        return self._byte
