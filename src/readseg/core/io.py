"""Files that are there whole or not at all, JSON lines that survive a kill, and the processes that share work."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, Self, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from readseg.errors import ReadsegError

R = TypeVar("R")


@contextmanager
def atomic_write(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A hidden path beside `path` to write a file or a folder to; it takes the place of `path` at the end.

    A file is replaced in one step; an old folder is removed just before. If the block fails, `path` stays as it was and
    what was written is removed. With `new` nothing is ever replaced: what is at `path` by then is a FileExistsError.
    """
    if path.name in ("", ".."):
        path = path.resolve()  # "new/.." must not become another folder once "new" is there
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(part)
    try:
        yield part
        if new and (path.exists() or path.is_symlink()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if part.is_dir() and not new:
            _remove(path)
        part.replace(path)
    except OSError as error:
        if error.filename == str(part):  # what a user reads is the name that they gave
            error.filename = str(path)
        raise
    finally:
        _remove(part)


def remove_parts(folder: Path) -> None:
    """Removes what a killed `atomic_write` left half-written in a folder; no other process may be writing there."""
    for part in folder.glob(".*.part"):
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_yaml(path: Path) -> Any:
    """A table that belongs to the package: plain values only, read by libyaml where it is there (15 times as fast)."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ReadsegError(f"{path} must hold settings by name; got {type(content).__name__}.")
    return content


def lock(stream: IO[Any], name: str) -> None:
    """Keeps an open file to this process while it is open: a worker may outlive the launcher that was killed."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ReadsegError(f"{name}: another process is writing to it; wait for it or end it") from error
    except OSError:  # a file system without locks
        return


def processes() -> Any:
    """The processes that a launcher (`accelerate launch`, `torchrun`) started: a `PartialState`, which can wait."""
    import torch  # both take seconds, and most users of this module need neither
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


# -- JSON lines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineFormat(Generic[R]):
    """A kind of file of JSON lines: its "format", the type of a record, and the field of a record that names it."""

    name: str
    record: type[R]
    key: str = "key"

    @cached_property
    def adapter(self) -> TypeAdapter[R]:
        """Reads and writes the JSON of a record."""
        return TypeAdapter(self.record)

    def to_line(self, record: R) -> bytes:
        """A record as its line, UTF-8."""
        return _to_line(self.adapter.dump_python(record, mode="json", by_alias=True))


class JsonLines(NamedTuple, Generic[R]):
    """What a file of JSON lines holds: its header, its records by their keys, and the bytes of all complete lines."""

    header: dict[str, Any]
    records: dict[str, R]
    length: int


def read_lines(path: Path, line_format: LineFormat[R], header: Mapping[str, Any] | None = None) -> JsonLines[R]:
    """Reads a file of JSON lines without changing it; a half last line is left out.

    Raises a ReadsegError that names file, line and field where it is not of this format, or not of this header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadsegError(f"{path}: cannot be read ({error.strerror}); expected a {line_format.name} file") from error
    complete, _, _ = content.rpartition(b"\n")  # after a kill only the last line can be incomplete
    first, *lines = complete.split(b"\n")
    there = parse(TypeAdapter(dict[str, Any]), first, f"{path}, line 1")
    if there.get("format") != line_format.name:
        expected = f"expected a header with format {line_format.name!r}, got {there.get('format')!r:.60}"
        raise ReadsegError(f"{path}, line 1: {expected}: the file is of another kind or of another version")
    for name in {"settings", "about"} | (header or {}).keys():
        kind = str if name not in ("settings", "about") else dict
        if not isinstance(there.get(name), kind):
            raise ReadsegError(f"{path}, line 1: {name}: expected {kind.__name__}, got {there.get(name)!r:.40}")
    if header is not None:
        check_settings(path, _deciding(there), _deciding(header))
    records: dict[str, R] = {}
    for number, line in enumerate(lines, start=2):
        record = parse(line_format.adapter, line, f"{path}, line {number}")
        key = getattr(record, line_format.key)
        if key in records:
            raise ReadsegError(f"{path}, line {number}: {line_format.key} {key!r} occurs twice; the file is damaged")
        records[key] = record
    return JsonLines(there, records, len(complete) + 1)


def write_lines(path: Path, line_format: LineFormat[R], header: Mapping[str, Any], records: Iterable[R] = ()) -> None:
    """Writes a file of JSON lines in one step: a file without a complete header never exists."""
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(_to_line({"format": line_format.name, **header}))
        file.writelines(map(line_format.to_line, records))


class JsonlStore(Generic[R]):
    """An open file of JSON lines that survives a kill at any moment: its records by key, and a way to add to them.

        {"format": ..., "settings": {...}, "about": {...}}
        {"key": "scene-7/2", ...}

    The header says what decides the records, `about` only describes: a file is never added to with another header. A
    line is written in one piece; a half last line is cut off when the file is opened again. One process at a time.
    Without a path all is kept in memory only.
    """

    def __init__(self, path: Path | None, line_format: LineFormat[R], header: Mapping[str, Any]) -> None:
        self.path, self._format = path, line_format
        self.records: dict[str, R] = {}
        self._file: io.FileIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_lines(path, line_format, header)
        # Unbuffered: a line reaches the system in one call, and a killed process loses none that it finished.
        self._file = path.open("ab", buffering=0)
        try:
            lock(self._file, str(path))
            lines = read_lines(path, line_format, header)
            os.truncate(path, lines.length)
        except BaseException:
            self._file.close()
            raise
        self.records = lines.records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Makes sure that everything is on the disk, and closes the file."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def add(self, record: R) -> None:
        """Writes one record at once."""
        key = getattr(record, self._format.key)
        if key in self.records:
            raise ReadsegError(f"{self.path}: a record of {key!r} is there already")
        if self._file is not None:
            self._file.write(self._format.to_line(record))
        self.records[key] = record


def check_settings(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ReadsegError, naming each of them, where settings of a file are not those of now."""
    changed = [name for name in sorted(there.keys() | now.keys()) if there.get(name) != now.get(name)]
    if changed:
        detail = ", ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in changed)
        raise ReadsegError(f"{path} was made with other settings ({detail}); give another folder or delete it")


def _to_line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def parse(adapter: TypeAdapter[R], line: bytes, where: str) -> R:
    """The value of a line, strictly of its type; the error begins with `where` and names the field."""
    try:
        return adapter.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        told = f"{field}: {message}, got {first['input']!r:.60}" if field else message
        raise ReadsegError(f"{where}: {told}; the file is damaged or of another kind") from error


def _deciding(header: Mapping[str, Any]) -> dict[str, Any]:
    """What of a header decides the records, as JSON values."""
    others = {name: value for name, value in header.items() if name not in ("format", "settings", "about")}
    return {**others, **json.loads(json.dumps(dict(header["settings"])))}
