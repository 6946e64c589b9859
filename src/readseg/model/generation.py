"""Answers behind one prefix: the image and what stands before the question are computed once, questions as one batch.

Works on a bare stock LLaVA. Speaks token ids and hidden states; Q texts, L tokens, D the width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer

from readseg.errors import ReadsegError

Ids = Sequence[int]


class Generation(NamedTuple):
    """One answer, generated or given.

    ids: its token ids, without the end token.
    states: (len(ids), D), `states[i]` is the hidden state that predicted `ids[i]`.
    finished: False where `max_new_tokens` cut the answer off.
    predicted_ids: of a given answer, what the model itself would have said at each place; of a generated one `ids`.
    """

    ids: list[int]
    states: Float[Tensor, "T D"]
    finished: bool
    predicted_ids: list[int]


class _Batch(NamedTuple):
    """Q texts behind one prefix: ids (Q, L) left padded, attention mask (Q, prefix + L), positions (Q, L), cache."""

    ids: Int[Tensor, "Q L"]
    mask: Int[Tensor, "Q K"]
    positions: Int[Tensor, "Q L"]
    cache: Cache


@torch.no_grad()
def generate(
    lmm: LlavaForConditionalGeneration,
    prefix_ids: Ids,
    cache: DynamicCache,
    queries: Sequence[Ids],
    max_new_tokens: int = 64,
) -> list[Generation]:
    """Greedy answers to Q questions (the ids that follow the prefix), decoded as one batch; `cache` stays as it was.

    Pads stand between the prefix and the shorter questions and are masked, so that an answer does not depend
    on its neighbours.
    """
    if not queries:
        return []
    batch = _batch_behind(lmm, prefix_ids, cache, queries, max_new_tokens)
    open_rows = torch.ones(len(queries), dtype=torch.bool, device=lmm.device)
    end = torch.tensor(lmm.config.text_config.eos_token_id, device=lmm.device)

    new_ids, states = [], []
    for _ in range(max_new_tokens):
        hidden = _run(lmm, batch)[:, -1]
        ids = lmm.lm_head(hidden).argmax(-1, keepdim=True).to(lmm.device)
        new_ids.append(ids)
        states.append(hidden)
        open_rows &= ~torch.isin(ids[:, 0], end)
        if not open_rows.any():
            break
        batch = _Batch(ids, F.pad(batch.mask, (0, 1), value=1), batch.positions[:, -1:] + 1, batch.cache)
    generations = []
    for row, row_states in zip(torch.cat(new_ids, 1), torch.stack(states, 1), strict=True):
        is_end = torch.isin(row, end)
        finished = bool(is_end.any())
        answer = row[: int(is_end.int().argmax()) if finished else len(row)].tolist()
        generations.append(Generation(answer, row_states[: len(answer)], finished, answer))
    return generations


@torch.no_grad()
def force(
    lmm: LlavaForConditionalGeneration,
    prefix_ids: Ids,
    cache: DynamicCache,
    queries: Sequence[Ids],
    answers: Sequence[Ids],
) -> list[Generation]:
    """Teacher forcing behind one prefix: the states of the answers' ids, and what the model itself would have said."""
    if not queries:
        return []
    texts = [[*query, *answer] for query, answer in zip(queries, answers, strict=True)]
    batch = _batch_behind(lmm, prefix_ids, cache, texts, 0)
    hidden = _run(lmm, batch)
    generations = []
    for row, answer in enumerate(answers):
        states = hidden[row, hidden.shape[1] - len(answer) - 1 : -1]
        generations.append(Generation(list(answer), states, True, lmm.lm_head(states).argmax(-1).tolist()))
    return generations


def _batch_behind(
    lmm: LlavaForConditionalGeneration, prefix_ids: Ids, cache: DynamicCache, texts: Sequence[Ids], room: int
) -> _Batch:
    """Texts as one batch behind a prefix, left padded, with room for more tokens."""
    longest = max(len(text) for text in texts)
    most = lmm.config.text_config.max_position_embeddings - len(prefix_ids) - room
    if longest > most:
        raise ReadsegError(
            f"the question, and the answer where it is given, have {longest} tokens, at most {most} fit; "
            "use fewer words."
        )
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.ones(len(texts), len(prefix_ids) + longest, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.tensor(list(text))
        mask[row, len(prefix_ids) : len(prefix_ids) + longest - len(text)] = 0
    positions = (mask.cumsum(-1) - 1)[:, len(prefix_ids) :].clamp(min=0)
    layers = [_RoomyLayer(layer, len(texts), longest + room) for layer in cache.layers]
    device = lmm.device
    return _Batch(ids.to(device), mask.to(device), positions.to(device), Cache(layers=layers))


def _run(lmm: LlavaForConditionalGeneration, batch: _Batch) -> Float[Tensor, "Q L D"]:
    """Last hidden states of a batch; its cache grows."""
    return lmm.model.language_model(
        inputs_embeds=lmm.get_input_embeddings()(batch.ids),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        past_key_values=batch.cache,
        use_cache=True,
    ).last_hidden_state


class _RoomyLayer(DynamicLayer):
    """Keys and values of `count` rows that begin alike, with room for more: a step writes, and copies nothing."""

    def __init__(self, prefix: DynamicLayer, count: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(prefix.keys, prefix.values)
        self.length = prefix.keys.shape[-2]
        self.all_keys, self.all_values = (
            torch.cat([t.expand(count, -1, -1, -1), t.new_zeros(count, t.shape[1], room, t.shape[3])], dim=-2)
            for t in (prefix.keys, prefix.values)
        )
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (count, heads, l, d) and returns everything so far."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.all_keys[:, :, start : self.length] = key_states
        self.all_values[:, :, start : self.length] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]
        return self.keys, self.values
