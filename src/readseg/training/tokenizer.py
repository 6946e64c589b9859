"""The tokenizer of a model that is trained from nothing, learned from the texts of its questions and answers."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from readseg.core.types import SEG
from readseg.model import prompt_format
from readseg.model.families import BOS, EOS, PAD, TINY


def build_tiny_tokenizer(texts: Iterable[str], vocab_size: int = 1400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the embedded model, learned from `texts` (questions and answers).

    Its first ids are the special tokens of the tiny family, then the 256 bytes: any text can be written. The same
    texts in the same order give the same tokenizer. `vocab_size` is a limit; few texts give fewer tokens.
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
