"""LLaVA-Instruct: conversations about images of COCO, in words, without masks.

Also owns how a long JSON file is read without keeping it: once to learn where each record lies, which takes twice its
size in memory (0.3 GB for LLaVA-Instruct) for that long, then one record at a time, when it is asked for.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from readseg.data.entries import Entry
from readseg.errors import ReadsegError

_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"
_IMAGE = "<image>"
_PLACE = re.compile(rf" *{_IMAGE} *")


class LlavaInstruct:
    """Conversations of LLaVA-Instruct, in the order of the file.

    `llava_dataset/{split}.json` is a list of {"id", "image", "conversations": [{"from": human | gpt, "value"}, ..]}, of
    one round or several; images are in `coco/train2017`. "<image>" says where a picture stood for LLaVA and is taken
    out wherever it stands. The file is read once, here; 16 bytes a record are kept.

    Args:
        root: the folder that holds `llava_dataset` and `coco`.
        split: name of the file, without ".json".

    Raises:
        ReadsegError: a file or folder is missing, or the file is no JSON list. A record that is no conversation raises
            when it is read, and the others can be read.
    """

    SPLITS = ("llava_instruct_150k",)

    def __init__(self, root: Path, split: str) -> None:
        require(self.needs(root, split))
        self.name = f"vqa|{split}"
        self._images = root / "coco" / "train2017"
        self._path = root / "llava_dataset" / f"{split}.json"
        places = array("q")
        for key, _, start, end in elements(self._path):
            if key is not None:
                raise ReadsegError(f"{self._path} must be a list of conversations, it is an object with {key!r}")
            places.extend((start, end))
        if not places:
            raise ReadsegError(f"{self._path} holds no conversation")
        self._places = np.array(places, np.int64).reshape(-1, 2)

    @staticmethod
    def needs(root: Path, split: str = "llava_instruct_150k") -> list[tuple[Path, str]]:
        """The files and folders that must be there, and what belongs there."""
        return [
            (root / "llava_dataset" / f"{split}.json", f"LLaVA-Instruct's {split}.json"),
            (root / "coco" / "train2017", "the train2017 images of COCO (*.jpg)"),
        ]

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits that are on disk."""
        return [split for split in cls.SPLITS if is_there(cls.needs(root, split))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Entry:
        """The conversation at `index`.

        Raises:
            ReadsegError: the record has no image, or is no questions and answers by turns.
        """
        start, end = self._places[index]
        number = index % len(self)
        record = read_between(self._path, int(start), int(end))
        where = f"{self._path}: record {number}"
        if not isinstance(record, dict):
            raise ReadsegError(f'{where} must be an object with "image" and "conversations"')
        where += f" (id {str(record.get('id'))[:60]!r})"
        image = self._images / inside(record.get("image"), f'{where}: "image"')
        # Ids alone are not unique: one image has up to three conversations.
        return Entry(f"{record.get('id', '')}#{number}", image, dialogue=_rounds(record.get("conversations"), where))


def _rounds(conversations: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Questions with their answers.

    Raises:
        ReadsegError: they do not take turns, human first, or one of them is empty.
    """
    if not isinstance(conversations, list) or not conversations or len(conversations) % 2:
        count = len(conversations) if isinstance(conversations, list) else "no list of"
        raise ReadsegError(f"{where} must have questions and answers by turns, it has {count} turns")
    said = []
    for number, turn in enumerate(conversations):
        expected = "gpt" if number % 2 else "human"
        speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if speaker != expected:
            raise ReadsegError(f'{where}: turn {number} must be "from" {expected}, it is {str(speaker)[:60]!r}')
        said.append(_words(value, f"{where}: turn {number}"))
    return tuple(zip(said[::2], said[1::2], strict=True))


def _words(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ReadsegError(f'{where} must have a "value" that is text, got {type(value).__name__}')
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ReadsegError(f"{where} holds half of a character (a lone surrogate), which no tokenizer takes")
    while _IMAGE in value:  # once is not enough: what is left may spell it again
        value = _PLACE.sub(lambda found: "" if found[0] == _IMAGE else " ", value)
    value = value.strip()
    if not value:
        raise ReadsegError(f"{where} is empty")
    return value


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


def inside(name: Any, where: str) -> str:
    """A file name of an annotation, which must stay inside the folder that it is relative to.

    Raises:
        ReadsegError: it is no text, empty, absolute, or leads out of its folder.
    """
    good = isinstance(name, str) and bool(name.strip()) and name.isprintable() and "\\" not in name
    if not good or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ReadsegError(f"{where} must name a file inside its folder, got {str(name)[:60]!r}")
    return str(name)


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
        try:
            content = path.read_bytes()
            self._byte = len(_BOM) if content.startswith(_BOM) else 0
            self._text = content.decode("utf-8-sig")
        except OSError as error:
            raise ReadsegError(f"{path} cannot be read: {error.strerror or error}") from error
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
