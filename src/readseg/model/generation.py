"""Answers behind one prefix: image and what stands before the question are computed once, questions as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer

from readseg.errors import ReadsegError

Ids = Sequence[int]


class Generation(NamedTuple):
    """One answer, generated or given."""

    ids: list[int]  # without the end token
    states: Float[Tensor, "T D"]  # `states[i]` is the hidden state that predicted `ids[i]`
    finished: bool  # False where `max_new_tokens` cut the answer off
    predicted_ids: list[int]  # what the model would have said at each place of a given answer; else `ids`


def batch_behind(
    lmm: LlavaForConditionalGeneration, prefix_ids: Ids, cache: DynamicCache, texts: Sequence[Ids], room: int
) -> tuple[Int[Tensor, "Q L"], Int[Tensor, "Q K"], Int[Tensor, "Q L"], Cache]:
    """Q texts behind a prefix, with room for more: ids, attention mask (Q, prefix + L), positions, and a cache."""
    # Pads stand between the prefix and the shorter texts and are masked: an answer does not depend on its neighbours.
    longest, start = max(len(text) for text in texts), len(prefix_ids)
    most = lmm.config.text_config.max_position_embeddings - start - room
    if longest > most:
        what = "the question, and the answer where it is given, have"
        raise ReadsegError(f"{what} {longest} tokens, at most {most} fit; use fewer words.")
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.ones(len(texts), start + longest, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.tensor(list(text))
        mask[row, start : start + longest - len(text)] = 0
    positions = (mask.cumsum(-1) - 1)[:, start:].clamp(min=0)
    grown = Cache(layers=[_RoomyLayer(layer, len(texts), longest + room) for layer in cache.layers])
    return ids.to(lmm.device), mask.to(lmm.device), positions.to(lmm.device), grown


class _RoomyLayer(DynamicLayer):
    """Keys and values of `count` rows that begin alike, with room for more: a step writes, and copies nothing."""

    def __init__(self, prefix: DynamicLayer, count: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(prefix.keys, prefix.values)
        self.length, size = 0, prefix.keys.shape[-2] + room
        self.all_keys, self.all_values = (
            t.new_zeros(count, t.shape[1], size, t.shape[3]) for t in (prefix.keys, prefix.values)
        )
        self.update(prefix.keys, prefix.values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (count, heads, l, d) and returns everything so far."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.all_keys[:, :, start : self.length] = key_states
        self.all_values[:, :, start : self.length] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]
        return self.keys, self.values
