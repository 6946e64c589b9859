"""The tokenizer that the released weights were trained with, in its legacy behaviour, and that of the embedded model.

LLaMA's SentencePiece model encodes text between two tokens by itself, beginning with its dummy space; the added tokens
strip the text around them. The automatic tokenizers of later libraries give other ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from readseg.core.io import atomic_write, read_json
from readseg.errors import ReadsegError
from readseg.model import prompt_format
from readseg.model.families import BOS, EOS, PAD, SEG, TINY

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
            raise ReadsegError(f"{folder} holds no tokenizer: expected tokenizer.json or {MODEL_FILE} in it.")
        tokens = read_json(added) if added.is_file() else {}
        try:
            return cls(model.read_bytes(), tokens)
        except ReadsegError as error:
            raise ReadsegError(f"{folder}: {error}") from error


def build_tiny_tokenizer(texts: Iterable[str], vocab_size: int = 1400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the embedded model, learned from `texts` (questions and answers).

    Its first ids are the special tokens of the tiny family, then the 256 bytes. `vocab_size` is a limit.
    """
    corpus = [prompt_format.USER, prompt_format.ASSISTANT]
    for text in texts:
        words = prompt_format.plain(text).replace(SEG, "")
        corpus += [words, f" {words}"]  # a question stands without, an answer with a space before it
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(TINY.added_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[token for token in TINY.added_tokens if token not in (PAD, BOS, EOS)],
        clean_up_tokenization_spaces=False,
    )
