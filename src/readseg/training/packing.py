"""Several questions on one image in one row: the image's tokens are computed once, and no question sees another.

    row = prefix (with the image) | question 1, answer 1 | question 2, answer 2 | ... | padding

A token attends to what stands before it in the prefix and in its own question; positions start again behind the
prefix. The states are those that each question would have in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100


class Packed(NamedTuple):
    """R rows of L tokens.

    input_ids, labels, position_ids: (R, L); labels are -100 where nothing is learned.
    attention_mask: (R, 1, L, L) bool, True where the row's token may attend to the column's.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    attention_mask: Tensor


def pack(
    prefix_ids: Sequence[int], rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], pad_token_id: int
) -> Packed:
    """Pack questions behind a common prefix.

    Args:
        prefix_ids: the ids before any question, with the image's tokens.
        rows: for each image, its questions as (ids, labels) of question and answer.
        pad_token_id: fills the shorter rows; a pad attends only to itself and is attended by nothing else.

    Returns:
        The rows, padded on the right to the longest.
    """
    start = len(prefix_ids)
    length = start + max((sum(len(ids) for ids, _ in row) for row in rows), default=0)
    input_ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owner = torch.full((len(rows), length), -1)
    input_ids[:, :start] = torch.tensor(list(prefix_ids))
    positions[:, :start] = torch.arange(start)
    owner[:, :start] = 0
    for r, row in enumerate(rows):
        at = start
        for number, (ids, targets) in enumerate(row, start=1):
            end = at + len(ids)
            input_ids[r, at:end] = torch.tensor(list(ids))
            labels[r, at:end] = torch.tensor(list(targets))
            positions[r, at:end] = torch.arange(start, start + len(ids))
            owner[r, at:end] = number
            at = end
    column, query = owner[:, None, :], owner[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((column == 0) | (column == query)) & (query >= 0) & (column >= 0)
    allowed |= torch.eye(length, dtype=torch.bool)
    return Packed(input_ids, labels, positions, allowed[:, None])
