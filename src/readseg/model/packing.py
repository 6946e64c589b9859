"""Several questions on one image in one row: the image's tokens are computed once, and no question sees another.

    row = prefix (with the image) | slot 1 | slot 2 | ...        slot = question, answer, padding

A token attends to what stands before it in the prefix and in its own slot; positions start again behind the prefix.
The states are those that each question would have in a row of its own. Slots have the same width in all rows, so that
attention is a few dense products and its cost grows with the number of questions, not with its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.models.llama.modeling_llama import eager_attention_forward, repeat_kv

from readseg.core.types import IGNORE_INDEX

STEP = 4  # widths of slots are multiples of this: few different ones, each a product of its own


class Layout(NamedTuple):
    """Where the slots of a row lie: the prefix is ``start`` tokens long, the slots follow with these ``widths``."""

    start: int
    widths: tuple[int, ...]


class Packed(NamedTuple):
    """R rows of L tokens, each tensor (R, L); labels are -100 where nothing is learned."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    layout: Layout


def pack(
    prefix_ids: Sequence[int], rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], pad_token_id: int
) -> Packed:
    """Pack each image's conversations (ids, labels) behind a common prefix; the longest first pad least."""
    start = len(prefix_ids)
    columns = zip_longest(*rows, fillvalue=((), ()))
    widths = tuple(-(-max(len(ids) for ids, _ in column) // STEP) * STEP for column in columns)
    length = start + sum(widths)
    input_ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    input_ids[:, :start] = torch.tensor(list(prefix_ids))
    positions = torch.cat([torch.arange(start), *(torch.arange(start, start + width) for width in widths)])
    for r, row in enumerate(rows):
        at = start
        for (ids, targets), width in zip(row, widths, strict=False):
            input_ids[r, at : at + len(ids)] = torch.tensor(list(ids))
            labels[r, at : at + len(ids)] = torch.tensor(list(targets))
            at += width
    return Packed(input_ids, labels, positions.expand(len(rows), -1), Layout(start, widths))


def allow_packing(language_model: nn.Module) -> None:
    """From now on a transformers language model also takes rows of a layout: ``language_model(..., layout=layout)``."""
    # A setting of the model and no context around a call: gradient checkpointing runs the layers when it is long over.
    config: Any = language_model.config
    if config._attn_implementation not in _NAMES.values():
        config._attn_implementation = _NAMES.get(config._attn_implementation, _NAMES["sdpa"])


def packed_attention(
    query: Float[Tensor, "R H L d"],
    key: Float[Tensor, "R H L d"],
    value: Float[Tensor, "R H L d"],
    layout: Layout,
    scaling: float,
) -> Float[Tensor, "R L H d"]:
    """Attention within a layout: softmax(scaling q k^T) v, H heads of width d.

    The tokens of a slot attend to the whole prefix and, causally, to their slot; those of the prefix causally to it.
    """
    start, widths = layout
    query = query * scaling
    prefix_key, prefix_value = key[:, :, :start], value[:, :, :start]
    logits = query[:, :, :start] @ prefix_key.mT + _causal(start, query)
    parts = [logits.softmax(-1).to(value.dtype) @ prefix_value]
    at = start
    for width, same in groupby(widths):
        count = len(list(same))
        q, k, v = (part[:, :, at : at + count * width] for part in (query, key, value))
        q_slot, k_slot, v_slot = (part.unflatten(2, (count, width)) for part in (q, k, v))
        own = q_slot @ k_slot.mT + _causal(width, query)
        share = torch.cat([q @ prefix_key.mT, own.flatten(2, 3)], -1).softmax(-1).to(value.dtype)
        inside = share[..., start:].unflatten(2, (count, width)) @ v_slot
        parts.append(share[..., :start] @ prefix_value + inside.flatten(2, 3))
        at += count * width
    return torch.cat(parts, 2).transpose(1, 2).contiguous()


def _causal(width: int, like: Tensor) -> Tensor:
    """(width, width), 0 where a row's token may attend to the column's, else the lowest number."""
    lowest = torch.finfo(like.dtype).min
    return torch.full((width, width), lowest, dtype=like.dtype, device=like.device).triu(1)


def _with_layout(otherwise: Any) -> Any:
    """An attention function of transformers that follows a layout where one is given."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        layout: Layout | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers calls it, query (B, heads, L, d): the attended values, and no weights where it packs."""
        if layout is None:
            return otherwise(module, query, key, value, attention_mask, scaling=scaling, **options)
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return packed_attention(query, key, value, layout, scaling), None

    return attention


_NAMES = {"eager": "readseg_packed_eager", "sdpa": "readseg_packed_sdpa"}
_STOCK = {"eager": (eager_attention_forward, eager_mask), "sdpa": (sdpa_attention_forward, sdpa_mask)}
for _kind, (_attention, _mask) in _STOCK.items():
    AttentionInterface.register(_NAMES[_kind], _with_layout(_attention))
    AttentionMaskInterface.register(_NAMES[_kind], _mask)
