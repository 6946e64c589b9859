"""LLaVA-Instruct: conversations about images of COCO, in words, without masks.

Indexing takes twice the file's size in memory (0.3 GB) for as long as it lasts; `records.py` says how.
"""

from __future__ import annotations

import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from readseg.data.entries import Entry, half_a_character
from readseg.data.json_records import elements, inside, is_there, read_between, require
from readseg.errors import ReadsegError

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
    if half_a_character(value):
        raise ReadsegError(f"{where} holds half of a character (a lone surrogate), which no tokenizer takes")
    while _IMAGE in value:  # once is not enough: what is left may spell it again
        value = _PLACE.sub(lambda found: "" if found[0] == _IMAGE else " ", value)
    value = value.strip()
    if not value:
        raise ReadsegError(f"{where} is empty")
    return value
