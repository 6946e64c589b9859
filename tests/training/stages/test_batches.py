"""Collator: every [SEG] with its mask, conversations that fit, and the cells that a mask covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from readseg.data.mixture import Mixture, parse_ratio
from readseg.training.stages.finetuning import Collator
from small import small_processor
from tuned import options


def batches(start: Path, data: Path, **changes: object) -> Collator:
    chosen = options(start, **changes)
    return Collator(Mixture(data, parse_ratio(chosen.ratio), seed=3), small_processor(), chosen, 3)


@pytest.mark.parametrize("pack", [True, False])
def test_each_seg_has_its_mask_in_the_size_of_its_image(start: Path, mini: Path, pack: bool) -> None:
    made = batches(start, mini, pack=pack)
    seg = made.processor.config.seg_token_id
    for number in range(12):
        batch = made.batch(number)
        rows, columns = np.nonzero(batch["input_ids"].numpy() == seg)
        assert len(rows) == len(batch["masks"])
        for row, mask in zip(rows, batch["masks"], strict=True):
            assert mask.shape == batch["frames"][batch["row_images"][row]].hw
        # A question holds no [SEG]: each of them is learned.
        assert (batch["labels"].numpy()[rows, columns] == seg).all()


def test_masks_follow_their_questions_when_rows_are_sorted(start: Path, mini: Path) -> None:
    made = batches(start, mini)
    drawn = next(d for d in map(made.mixture.draw, range(99)) if len({len(t.question) for t in d.sample.turns}) > 2)
    rows = made.conversations(drawn)
    assert [len(row.ids) for row in rows] == sorted((len(row.ids) for row in rows), reverse=True)
    by_question = {turn.question: turn.masks for turn in drawn.sample.turns}
    for row in rows:
        (turn,) = row.turns
        assert len(row.masks) == len(by_question[turn.question])
        for mask, expected in zip(row.masks, by_question[turn.question], strict=True):
            assert mask is expected


def test_a_long_conversation_loses_its_last_rounds(start: Path, mini: Path) -> None:
    long = batches(start, mini, ratio="0:0:0:1:0:0", max_tokens=4096)
    whole = max((long.conversations(long.mixture.draw(n))[0] for n in range(8)), key=lambda row: len(row.turns))
    assert len(whole.turns) > 1
    drawn = next(d for d in map(long.mixture.draw, range(8)) if len(d.sample.turns) == len(whole.turns))
    room = len(long.conversations(drawn)[0].ids) - 1
    short = batches(start, mini, ratio="0:0:0:1:0:0", max_tokens=max(32, room))
    (row,) = short.conversations(drawn)
    assert 0 < len(row.turns) < len(drawn.sample.turns)
    assert row.turns == list(drawn.sample.turns[: len(row.turns)])
    assert len(row.ids) <= room


def test_of_a_question_that_is_too_long_nothing_is_left(start: Path, mini: Path) -> None:
    made = batches(start, mini, ratio="0:0:0:0:0:1", max_tokens=32)
    with pytest.warns(UserWarning, match="more than max_tokens, 32"):
        batch = made.batch(0)
    assert not batch["masks"] and batch["input_ids"].shape[1] == len(made.prefix)
    assert made.skipped.count > 0


def test_a_batch_is_a_function_of_its_number(start: Path, mini: Path) -> None:
    one, other = batches(start, mini), batches(start, mini)
    later = [one.batch(number) for number in (4, 1)]
    for batch, number in zip(later, (4, 1), strict=True):
        again = other.batch(number)
        assert (batch["input_ids"] == again["input_ids"]).all()
        assert batch["seed"] == again["seed"]
    assert later[0]["seed"] != later[1]["seed"]
