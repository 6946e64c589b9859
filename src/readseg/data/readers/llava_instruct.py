"""LLaVA-Instruct: conversations about images of COCO, in words, without masks.

Records of ROOT/llava_dataset/llava_instruct_150k.json are {"id", "image", "conversations": [{"from": "human", "value"},
{"from": "gpt", ..}, ..]}, the images are in ROOT/coco/train2017.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from readseg.data.files import FileName, Record, Text, parse, read_json_at, scan_json
from readseg.data.types import Entry, SplitReader
from readseg.errors import ReadsegError

_IMAGE = "<image>"


class _Turn(Record):
    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: Text


class _Conversation(Record):
    id: Any = ""
    image: FileName
    conversations: list[_Turn]


class LlavaInstruct(SplitReader):
    """Conversations of one round or several, in the order of the file. Of each is kept where it lies."""

    NAME = "vqa"
    SPLITS = ("llava_instruct_150k",)
    FILES = (
        ("llava_dataset/{split}.json", "LLaVA-Instruct's {split}.json"),
        ("coco/train2017", "the train2017 images of COCO (*.jpg)"),
    )

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self._path, self._images = self.paths
        self.records = []
        for key, _, start, end in scan_json(self._path):
            if key is not None:
                raise ReadsegError(f"{self._path} must be a list of conversations, it is an object with {key!r}")
            self.records.append((start, end))
        if not self.records:
            raise ReadsegError(f"{self._path} holds no conversation")

    def __getitem__(self, index: int) -> Entry:
        number = index % len(self)
        where = f"{self._path}: record {number}"
        record = parse(_Conversation, read_json_at(self._path, *self.records[index]), where)
        where += f" (id {str(record.id)[:60]!r})"
        turns = record.conversations
        if not turns or len(turns) % 2:
            raise ReadsegError(f"{where} must have questions and answers by turns, it has {len(turns)} turns")
        words = [_without_image(turn.value) for turn in turns]
        for place, turn in enumerate(turns):
            if turn.speaker != (expected := ("human", "gpt")[place % 2]):
                raise ReadsegError(f'{where}: turn {place} must be "from" {expected}, it is {turn.speaker!r}')
            if not words[place]:
                raise ReadsegError(f"{where}: turn {place} is empty")
        # Ids alone are not unique: one image has up to three conversations.
        name = f"{record.id}#{number}"
        return Entry(name, self._images / record.image, dialogue=tuple(zip(words[::2], words[1::2], strict=True)))


def _without_image(text: str) -> str:
    """A text without "<image>", which says where the picture stood for LLaVA."""
    while _IMAGE in text:  # once is not enough: what is left may spell it again
        text = re.sub(f" *{_IMAGE} *", lambda match: "" if match[0] == _IMAGE else " ", text)
    return text.strip()


DATA_SETS = (LlavaInstruct.data_set("vqa", "llava_instruct"),)
