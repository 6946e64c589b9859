"""Files of annotations: damage is told with the file, hostile content does nothing, and long files leave memory."""

from __future__ import annotations

import codecs
import io
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from readseg.errors import ReadsegError

MAX_PICKLE_BYTES = 1 << 30  # larger files are not read: the largest of the field's has some 30 MB

_SPACE = re.compile(r"[ \t\n\r]*")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file; a pipe or a device, where reading may never end, is an error."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ReadsegError(f"{path} is a pipe or a device: expected a file")
        if limit is not None and (size := path.stat().st_size) > limit:
            raise ReadsegError(f"{path} is too large to be annotations: {size} bytes, the limit is {limit}")
        return path.read_bytes()
    except OSError as error:
        raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error


# -- records -----------------------------------------------------------------------------------------------------------


class Record(BaseModel):
    """Base of records: types are strict, keys that nobody reads may hold anything."""

    model_config = ConfigDict(strict=True, frozen=True)


def _whole_characters(text: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a character (a lone surrogate), which no tokenizer takes")
    return text


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("expected words")
    return text.strip()


def _file_name(name: str) -> str:
    path = PurePosixPath(name)
    plain = bool(name.strip()) and name.isprintable() and "\\" not in name and not path.is_absolute()
    if not plain or any(part == ".." or len(part.encode("utf-8")) > 255 for part in path.parts):
        raise ValueError("expected the name of a file inside its folder")
    return name


Text = Annotated[str, AfterValidator(_whole_characters)]
"""What a tokenizer can take; JSON may spell half of a character."""
OptionalText = Annotated[Text, BeforeValidator(lambda text: text if isinstance(text, str) else "")]
"""Anything that is no text is none."""
Words = Annotated[Text, AfterValidator(_words)]
"""Not empty, without white space around it."""
FileName = Annotated[str, AfterValidator(_file_name)]
"""Of a file that must stay inside the folder that it is relative to."""

R = TypeVar("R", bound=Record)


def parse(model: type[R], record: Any, where: str) -> R:
    """A record; what is wrong with it is told with `where` it stands, its field, and what was expected."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = '"' + ".".join(map(str, first["loc"])) + '": ' if first["loc"] else ""
        if first["type"] == "missing":
            raise ReadsegError(f"{where}: {field}is missing") from error
        expected = "expected an object" if first["type"] == "model_type" else first["msg"]
        expected = expected.removeprefix("Value error, ").replace("Input should be", "expected")
        raise ReadsegError(f"{where}: {field}{expected}, got {first['input']!r:.60}") from error


# -- JSON --------------------------------------------------------------------------------------------------------------


def read_json(
    path: Path, *, fallback: str = "utf-8", object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The content of a JSON file in UTF-8, or in the encoding `fallback`."""
    encoded = read_bytes(path)
    try:
        try:
            return json.loads(encoded, object_hook=object_hook)
        except UnicodeDecodeError:
            return json.loads(encoded.decode(fallback), object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # no such encoding, no JSON, nested without end
        raise ReadsegError(f"{path} is no JSON: {str(error).splitlines()[0]}") from error


def scan_json(path: Path) -> Iterator[tuple[str | None, Any, int, int]]:
    """The elements of the arrays of a JSON file (UTF-8, one array, or one object of some), one after the other.

    Yields the key of the array in its object, or None; the element; its first byte in the file, and the byte behind it:
    what `read_json_at` reads again. So nothing has to be kept; meanwhile it takes twice the file's size in memory.
    """
    scanner = _Scanner(path)
    for key in (None,) if scanner.peek() == "[" else scanner.keys():
        if scanner.peek() == "[":
            for _ in scanner.items("[", "]"):
                start = scanner.byte()
                yield key, scanner.value(), start, scanner.byte()
        else:
            scanner.value()
    if scanner.peek():
        raise scanner.broken("there is more behind its end")


def read_json_at(path: Path, start: int, end: int) -> Any:
    """The element of a JSON file that lies where `scan_json` found it."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return json.loads(stream.read(end - start))
    except OSError as error:
        raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{path} was changed since it was opened: start again") from error


class _Scanner:
    """Goes through a JSON file, value by value; counts bytes as it goes, since characters may take several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        encoded = read_bytes(path)
        self._bytes = len(codecs.BOM_UTF8) if encoded.startswith(codecs.BOM_UTF8) else 0
        try:
            self._text = encoded.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ReadsegError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
        self._position = self._counted = 0
        self._decode = json.JSONDecoder().raw_decode

    def broken(self, why: str) -> ReadsegError:
        """The error that says what is wrong, and where."""
        at = f"character {self._position} of {len(self._text)}"
        return ReadsegError(f"{self._path} is no whole JSON file: {why} ({at})")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        space = _SPACE.match(self._text, self._position)
        self._position = space.end() if space else self._position
        return self._text[self._position : self._position + 1]

    def take(self, allowed: str) -> str:
        """Goes past one of these characters."""
        character = self.peek()
        if not character or character not in allowed:
            raise self.broken(f"expected {' or '.join(allowed)}, got {character or 'its end'}")
        self._position += 1
        return character

    def value(self) -> Any:
        """Goes past a value of any kind."""
        self.peek()
        try:
            value, self._position = self._decode(self._text, self._position)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            self._position = getattr(error, "pos", self._position)
            raise self.broken(getattr(error, "msg", str(error))) from error
        return value

    def items(self, opening: str, closing: str) -> Iterator[str]:
        """Stops at each item between brackets, for the caller to read it."""
        self.take(opening)
        mark = self.take(closing) if self.peek() == closing else ","
        while mark == ",":
            yield self.peek()
            mark = self.take(f",{closing}")

    def keys(self) -> Iterator[str]:
        """Stops behind each key of an object, for the caller to read its value."""
        for _ in self.items("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self.broken("the key of an object must be text")
            self.take(":")
            yield key

    def byte(self) -> int:
        """How many bytes of the file lie before this position."""
        self._bytes += len(self._text[self._counted : self._position].encode("utf-8"))
        self._counted = self._position
        return self._bytes


# -- pickles -----------------------------------------------------------------------------------------------------------


def read_pickle(path: Path) -> Any:
    """What a pickle of lists, tuples, dicts, numbers and text holds; any protocol, also Python 2's.

    Byte strings of Python 2 become text: UTF-8, or Latin-1 where one of the file's is no UTF-8.
    """
    encoded = read_bytes(path, MAX_PICKLE_BYTES)
    try:
        try:
            return _PlainUnpickler(io.BytesIO(encoded), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(encoded), encoding="latin-1").load()
    except ReadsegError as error:
        raise ReadsegError(
            f"{path} is refused, nothing of it was run: it asks for {error}, expected only lists, dicts, numbers and "
            "text; get the file from its original source, or write it as JSON"
        ) from error
    except Exception as error:  # damaged data raises almost anything: EOFError, KeyError, TypeError, MemoryError, ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ReadsegError(f"{path} is damaged or no pickle of plain values: {reason}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Finds nothing. A pickle is a program that calls and changes what it finds; without that it only makes values."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses whatever is asked for."""
        raise ReadsegError(f"{module}.{name}")
