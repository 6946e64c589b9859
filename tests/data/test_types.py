"""Samples refuse what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from readseg.core.types import Turn
from readseg.data.types import Sample
from readseg.errors import ReadsegError

MASK = np.zeros((4, 6), np.uint8)


def test_any_number_of_masks_is_normal() -> None:
    turns = (
        Turn("how many?", "two."),
        Turn("the dog", "no, there is no dog here.", present=False),
        Turn("the cow", "it is the cow [SEG].", (MASK,), present=True),
        Turn("both", "they are the cow [SEG] and the car [SEG].", (MASK, MASK + 1), present=True),
    )
    sample = Sample("a", np.zeros((4, 6, 3), np.uint8), turns)
    assert [len(turn.masks) for turn in sample.turns] == [0, 0, 1, 2]
    assert Sample("b", Path("b.jpg"), turns).image == Path("b.jpg")


@pytest.mark.parametrize(
    ("answer", "masks", "present", "message"),
    [
        ("it is [SEG].", (), True, "needs 1 masks, got 0"),
        ("no.", (MASK,), False, "needs 0 masks, got 1"),
        ("it is [SEG].", (MASK,), False, "present is False"),
        ("it is [SEG].", (MASK,), None, "present is None"),
        ("no.", (), True, "present is True"),
        ("it is [SEG].", (MASK.astype(bool),), True, "must be uint8"),
        ("it is [SEG].", (MASK[None],), True, "must be uint8"),
        ("it is [SEG].", (MASK + 2,), True, "values other than"),
        ("[SEG] and [SEG].", (MASK, MASK.T), True, "one size"),
    ],
)
def test_turns_that_contradict_themselves(
    answer: str, masks: tuple[np.ndarray, ...], present: bool | None, message: str
) -> None:
    with pytest.raises(ReadsegError, match=message.replace("(", r"\(")):
        Sample("a", Path("a.jpg"), (Turn("q", answer, masks, present),))


def test_ignored_pixels_are_allowed() -> None:
    mask = MASK.copy()
    mask[0] = 255
    turn = Turn("q", "[SEG]", (mask,), present=True)
    assert Sample("a", Path("a.jpg"), (turn,)).turns[0].masks[0].max() == 255


def test_samples_need_turns_of_the_image_s_size() -> None:
    turn = Turn("q", "[SEG]", (MASK,), present=True)
    with pytest.raises(ReadsegError, match="no turns"):
        Sample("a", np.zeros((4, 6, 3), np.uint8), ())
    with pytest.raises(ReadsegError, match="one size"):
        Sample("a", np.zeros((6, 4, 3), np.uint8), (turn,))
    with pytest.raises(ReadsegError, match="must be uint8"):
        Sample("a", np.zeros((4, 6), np.uint8), (turn,))
    with pytest.raises(ReadsegError, match="one size"):
        Sample("a", Path("a.jpg"), (turn, Turn("r", "[SEG]", (MASK.T.copy(),), present=True)))
