"""Images and conversations to tensors, and ids back to text: everything around the model that is not the model.

Speaks PIL images (RGB, upright), text and token ids. The view of an image is that of `core.frames`, the layout of a
conversation that of `prompt_format.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase

from readseg.core.frames import ImageFrame
from readseg.core.types import IGNORE_INDEX, Turn
from readseg.errors import ReadsegError
from readseg.model import prompt_format
from readseg.model.config import ReadConfig
from readseg.model.families import IMAGE, PHRASE, PHRASE_END, REJ, SEG
from readseg.model.prompt_format import Piece
from readseg.model.tokenizer import MODEL_FILE, LegacyTokenizer

# CLIP's and SAM's statistics of RGB values, for values in 0..1 and in 0..255.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

_CLOSING = frozenset(".,;:!?)'")  # no space stands before these


class ReadProcessor:
    """What a `ReadModel` needs around it: its tokenizer, and the sizes and words of its config.

    A conversation is a list of `core.types.Turn`. One that is empty, has an empty question, or an earlier turn without
    an answer is a ReadsegError; so are a tokenizer and a config that disagree about [SEG].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | LegacyTokenizer, config: ReadConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        if (seg := self._special(SEG)) != config.seg_token_id:
            raise ReadsegError(f"the tokenizer's {SEG} is {seg}, the config's {config.seg_token_id}.")
        self._answer_ids = {self._special(token): token for token in config.conversation.answer_tokens}

    # -- images ------------------------------------------------------------------------------------------------

    def frame(self, image: Image.Image) -> ImageFrame:
        """The frames of an image, as this model sees it."""
        config = self.config
        return ImageFrame(image.height, image.width, config.lmm_size, config.mask_size, config.view)

    def lmm_pixels(self, image: Image.Image) -> Tensor:
        """What the language model sees: (3, s, s) float32, (value / 255 - mean) / std of CLIP."""
        return normalise_pixels(self.frame(image).lmm_view(image), 255, CLIP_MEAN, CLIP_STD)

    def mask_pixels(self, image: Image.Image) -> Tensor:
        """What the mask model sees: (3, S, S) float32, (value - mean) / std of SAM, then 0 right and below."""
        pixels = normalise_pixels(self.frame(image).mask_view(image), 1, SAM_MEAN, SAM_STD)
        square = pixels.new_zeros(3, self.config.mask_size, self.config.mask_size)
        square[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return square

    # -- text --------------------------------------------------------------------------------------------------

    def prefix_ids(self) -> list[int]:
        """The ids before the first question, with N image tokens: the same for every question on an image."""
        pieces = prompt_format.prefix(self.config.conversation)
        if isinstance(self.tokenizer, LegacyTokenizer):
            # Text between the image and the question is encoded as one with the question.
            while not pieces[-1].special:
                pieces.pop()
        return [token for token, _ in self._tokens(pieces)]

    def query_ids(self, turns: Sequence[Turn]) -> list[int]:
        """The ids that follow the prefix, up to where the answer to the last question begins."""
        return self.prompt_ids(turns)[len(self.prefix_ids()) :]

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Prefix and query: what the answer to the last question is generated from."""
        *history, last = turns
        return [token for token, _ in self._tokens(self._pieces([*history, Turn(last.question)]))]

    def answer_ids(self, turns: Sequence[Turn]) -> list[int]:
        """The ids of the last turn's answer, as they follow `prompt_ids`, without the end token."""
        return self.encode(turns)[0][len(self.prompt_ids(turns)) : -1]

    def encode(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """A whole conversation as `input_ids`, and `labels`: the same ids in answers and their ends, -100 elsewhere."""
        tokens = self._tokens(self._pieces(turns))
        return [token for token, _ in tokens], [token if learned else IGNORE_INDEX for token, learned in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids: " [SEG]" for each [SEG] (and its like in other families), no other special token."""
        legacy = isinstance(self.tokenizer, LegacyTokenizer)
        text = ""
        for is_token, group in groupby(ids, key=lambda token: token in self._answer_ids):
            if is_token:
                text += "".join(f" {self._answer_ids[token]}" for token in group)
                continue
            part = self.tokenizer.decode(list(group), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            # The legacy tokenizer drops the space behind a token: it is put back before words.
            text += f" {part}" if legacy and part and part[0] not in _CLOSING else part
        return text.strip()

    def targets(self, ids: Sequence[int]) -> list[tuple[str, str]]:
        """The objects that an answer speaks of, in reading order: its token, [SEG] or [REJ], and its words, if any."""
        targets = []
        start = 0
        for index, token in enumerate(ids):
            if (name := self._answer_ids.get(token)) in (SEG, REJ):
                targets.append((str(name), self._phrase(ids[start:index])))
                start = index + 1
        return targets

    def _phrase(self, ids: Sequence[int]) -> str:
        # Between <p> and </p> where the family writes so; else between two tokens, where it names several objects, in
        # "Sure,a fox:[SEG], a heron:[REJ]." Other families do not say.
        conversation = self.config.conversation
        if PHRASE in conversation.answer_tokens:
            names = [self._answer_ids.get(token) for token in ids]
            ends = [index for index, name in enumerate(names) if name == PHRASE_END]
            starts = [index for index, name in enumerate(names) if name == PHRASE and ends and index < ends[-1]]
            return self.decode(ids[starts[-1] + 1 : ends[-1]]) if starts else ""
        if not conversation.names_question:
            return ""
        return re.sub(r"^(Sure)?[\s,]*|[\s:]*$", "", self.decode(ids))

    def _pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        conversation = self.config.conversation
        return prompt_format.prefix(conversation) + prompt_format.dialogue(turns, conversation.answer_tokens)

    def _tokens(self, pieces: Sequence[Piece]) -> list[tuple[int, bool]]:
        """Each id of a conversation, and whether the model learns to say it."""
        tokens: list[tuple[int, bool]] = []
        for run in self._runs(pieces):
            first, text = run[0], "".join(piece.text for piece in run)
            if first.special:
                if first.ids is not None:
                    ids = list(first.ids)
                elif first.text == IMAGE:
                    ids = [self.config.image_token_id] * self.config.num_image_tokens
                else:
                    ids = [self._special(first.text)]
                tokens += [(token, first.learned) for token in ids]
                continue
            ids = self._encode_text(text)
            # A run is prompt, then answer; a space divides them, so the prompt alone gives the same first ids.
            prompt = "".join(piece.text for piece in run if not piece.learned)
            prompt_length = len(ids) if prompt == text else len(self._encode_text(prompt))
            tokens += [(token, index >= prompt_length) for index, token in enumerate(ids)]
        return tokens

    def _runs(self, pieces: Sequence[Piece]) -> list[list[Piece]]:
        """What is encoded together: a special token by itself, and text as the tokenizer was used in training."""
        # The legacy tokenizer's way: all text between two tokens is one run, added tokens take away the space around.
        if not isinstance(self.tokenizer, LegacyTokenizer):
            return [[piece] for piece in pieces]
        runs: list[list[Piece]] = []
        for is_special, group in groupby(pieces, key=lambda piece: piece.special):
            run = list(group)
            runs += [[piece] for piece in run] if is_special else [run]
        added = self.tokenizer.added
        for index, run in enumerate(runs):
            if run[0].special:
                continue
            if index and runs[index - 1][0].text in added:
                run[0] = run[0]._replace(text=run[0].text.lstrip())
            if index + 1 < len(runs) and runs[index + 1][0].text in added:
                run[-1] = run[-1]._replace(text=run[-1].text.rstrip())
        return runs

    def _encode_text(self, text: str) -> list[int]:
        # Without the option, a user who writes "</s>" or "[SEG]" would write the token.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) if text else []

    def _special(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or index == self.tokenizer.unk_token_id:
            raise ReadsegError(f"the tokenizer does not know {token}; it is not one of a model of this kind.")
        return int(index)

    # -- files -------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes the tokenizer and the config; a model saved into the same folder writes the same config."""
        self.tokenizer.save_pretrained(save_directory)
        if not (Path(save_directory) / "config.json").exists():
            self.config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ReadProcessor:
        """From a folder or a hub id with a tokenizer and a `config.json`; `tokenizer.model` from folders only."""
        config = ReadConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if (folder / MODEL_FILE).is_file() and not (folder / "tokenizer.json").is_file():
            return cls(LegacyTokenizer.from_folder(folder), config)
        return cls(load_tokenizer(pretrained_model_name_or_path, config=config, **kwargs), config)


def load_tokenizer(name: str | Path, **kwargs: Any) -> Any:
    """The fast tokenizer of a folder or a hub id; no code that comes with it is run."""
    try:
        # None, the default, asks on the terminal, and a pipe can answer "yes".
        return AutoTokenizer.from_pretrained(name, **{**kwargs, "trust_remote_code": False})
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ReadsegError(
            f"{name}: the tokenizer needs code of its own (auto_map in tokenizer_config.json), and code from a model's "
            "folder is never run. Expected a tokenizer.json that transformers reads by itself."
        ) from error


def normalise_pixels(image: Image.Image, scale: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, H, W) float32, (value / scale - mean) / std."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / scale
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


AutoProcessor.register(ReadConfig, ReadProcessor, exist_ok=True)
