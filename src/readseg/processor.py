"""Images and conversations to tensors, and ids back to text: everything around the model that is not the model.

Speaks PIL images (RGB, upright), text and token ids. The view of an image is `geometry.Frame`'s, the layout of a
conversation `conversation.py`'s; normalisation and ids are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from readseg import conversation
from readseg.config import ReadConfig
from readseg.conversation import Piece, Turn
from readseg.errors import ReadsegError
from readseg.families import BOS, EOS, IMAGE, PAD, SEG, TINY
from readseg.geometry import Frame

# CLIP's and SAM's statistics of RGB values, for values in 0..1 and in 0..255.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class ReadProcessor:
    """What a `ReadModel` needs around it: its tokenizer, and the sizes and words of its config.

    Args:
        tokenizer: with "[SEG]" as one token.
        config: the model's.

    Raises:
        ReadsegError: the tokenizer and the config disagree about [SEG].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ReadConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        if (seg := self._special(SEG)) != config.seg_token_id:
            raise ReadsegError(f"the tokenizer's {SEG} is {seg}, the config's {config.seg_token_id}.")

    # -- images ------------------------------------------------------------------------------------------------

    def frame(self, image: Image.Image) -> Frame:
        """The frames of an image, as this model sees it."""
        config = self.config
        return Frame(image.height, image.width, config.lmm_size, config.mask_size, config.view)

    def lmm_pixels(self, image: Image.Image) -> Tensor:
        """What the language model sees: (3, s, s) float32, (value / 255 - mean) / std of CLIP."""
        pixels = _to_tensor(self.frame(image).lmm_view(image)) / 255
        return _normalised(pixels, CLIP_MEAN, CLIP_STD)

    def mask_pixels(self, image: Image.Image) -> Tensor:
        """What the mask model sees: (3, S, S) float32, (value - mean) / std of SAM, then 0 right and below."""
        pixels = _normalised(_to_tensor(self.frame(image).mask_view(image)), SAM_MEAN, SAM_STD)
        square = pixels.new_zeros(3, self.config.mask_size, self.config.mask_size)
        square[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return square

    # -- text --------------------------------------------------------------------------------------------------

    def prefix_ids(self) -> list[int]:
        """The ids before the first question, with N image tokens: the same for every question on an image."""
        return self._ids(conversation.prefix(self.config.conversation))

    def query_ids(self, turns: Sequence[Turn]) -> list[int]:
        """The ids that follow the prefix, up to where the answer to the last question begins.

        Raises:
            ReadsegError: an empty question, or an earlier turn without an answer (`conversation.dialogue`).
        """
        *history, last = turns
        return self._ids(conversation.dialogue([*history, Turn(last.question)]))

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Prefix and query: what the answer to the last question is generated from. Raises what `query_ids` does."""
        return self.prefix_ids() + self.query_ids(turns)

    def encode(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """A whole conversation for training or teacher forcing.

        Returns:
            input_ids, and labels: the same ids in answers (with their end token), -100 elsewhere.

        Raises:
            ReadsegError: what `conversation.dialogue` raises.
        """
        pieces = conversation.prefix(self.config.conversation) + conversation.dialogue(turns)
        ids: list[int] = []
        labels: list[int] = []
        for piece in pieces:
            new = self._ids([piece])
            ids += new
            labels += new if piece.learned else [-100] * len(new)
        return ids, labels

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids: " [SEG]" for each [SEG], no other special token."""
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == self.config.seg_token_id:
                parts.append([])
            else:
                parts[-1].append(token)
        texts = [
            self.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False) for part in parts
        ]
        return f" {SEG}".join(texts).strip()

    def _ids(self, pieces: Iterable[Piece]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if piece.text == IMAGE and piece.special:
                ids += [self.config.image_token_id] * self.config.num_image_tokens
            elif piece.special:
                ids.append(self._special(piece.text))
            else:
                # Without the option, a user who writes "</s>" or "[SEG]" would write the token.
                ids += self.tokenizer.encode(piece.text, add_special_tokens=False, split_special_tokens=True)
        return ids

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
        """From a folder or a hub id that holds a tokenizer and a `config.json`."""
        config = ReadConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=config, **kwargs)
        return cls(tokenizer, config)


def build_tiny_tokenizer(texts: Iterable[str], vocab_size: int = 1400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the embedded model, learned from `texts` (questions and answers).

    Its first ids are the special tokens of the tiny family, then the 256 bytes: any text can be written. The same
    texts in the same order give the same tokenizer. `vocab_size` is a limit; few texts give fewer tokens.
    """
    corpus = [conversation.USER, conversation.ASSISTANT]
    for text in texts:
        words = conversation.plain(text).replace(SEG, "")
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


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


AutoProcessor.register(ReadConfig, ReadProcessor, exist_ok=True)
