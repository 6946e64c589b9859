"""The tokenizer that the released weights were trained with: LLaMA's SentencePiece model, in its legacy behaviour.

Speaks text and token ids. Text between two tokens is encoded by itself and begins with SentencePiece's dummy space;
the added tokens strip the text around them. The automatic tokenizers of later libraries give other ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from readseg.core.io import atomic_write
from readseg.errors import ReadsegError

_MOST_IDS = 1 << 31
MODEL_FILE, ADDED_FILE = "tokenizer.model", "added_tokens.json"


class LegacyTokenizer:
    """LLaMA's tokenizer with added tokens, under the names of transformers' tokenizers that `ReadProcessor` calls.

    model: the content of `tokenizer.model`;  added: id of each added token, behind the model's own.
    """

    unk_token_id = 0

    def __init__(self, model: bytes, added: Mapping[str, int]) -> None:
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ReadsegError(f"{MODEL_FILE} is no SentencePiece model: fetch it again.") from error
        self._model = model
        # Some versions of the libraries list the model's own tokens too.
        added = {token: index for token, index in added.items() if index != self._own_id(token)}
        ids = list(added.values())
        base = self._pieces.vocab_size()
        if not all(type(i) is int and base <= i < _MOST_IDS for i in ids) or len(set(ids)) != len(ids):
            raise ReadsegError(f"{ADDED_FILE}: each added token needs an id of its own, {base} or more; got {added}.")
        self.added = dict(sorted(added.items(), key=lambda item: item[1]))

    def __len__(self) -> int:
        """The least number of rows that the table of embeddings must have."""
        return max([self._pieces.vocab_size() - 1, *self.added.values()]) + 1

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of a stretch of plain text. No token is recognised in it: "[SEG]" is five characters here."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids; added tokens, <s> and </s> are left out."""
        base = self._pieces.vocab_size()
        return self._pieces.DecodeIds([int(i) for i in ids if i < base])

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of one token, `unk_token_id` where there is none of this name."""
        return self.added.get(token, self._pieces.PieceToId(token))

    def _own_id(self, token: str) -> int | None:
        index = self._pieces.PieceToId(token)
        return index if self._pieces.IdToPiece(index) == token else None

    def with_added(self, tokens: Sequence[str]) -> LegacyTokenizer:
        """The same tokenizer with these added tokens and no others, their ids counted on from the model's last."""
        base = self._pieces.vocab_size()
        return LegacyTokenizer(self._model, {token: base + place for place, token in enumerate(tokens)})

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.model and added_tokens.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / MODEL_FILE) as place:
            place.write_bytes(self._model)
        with atomic_write(folder / ADDED_FILE) as place:
            place.write_text(json.dumps(self.added, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path) -> LegacyTokenizer:
        """From `tokenizer.model` and, where there are added tokens, `added_tokens.json`."""
        model, added = folder / MODEL_FILE, folder / ADDED_FILE
        if not model.is_file():
            raise ReadsegError(f"{folder} holds no tokenizer: expected {MODEL_FILE} in it.")
        try:
            tokens = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise ReadsegError(f"{added} is no JSON: {error}.") from error
        if not isinstance(tokens, dict):
            raise ReadsegError(f"{added} must map tokens to ids; got {type(tokens).__name__}.")
        try:
            return cls(model.read_bytes(), tokens)
        except ReadsegError as error:
            raise ReadsegError(f"{folder}: {error}") from error
