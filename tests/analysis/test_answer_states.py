"""The words that an answer has for what a [SEG] stands for, in the answers of all families."""

from __future__ import annotations

import re

import pytest

from readseg.analysis.answer_states import phrase_of_seg


def tokens(answer: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Spans of the words of an answer with the space before them, as byte-level BPE has them, and which are [SEG]."""
    spans = [match.span() for match in re.finditer(r"\s*(\[SEG\]|\w+|[^\w\s])", answer)]
    return spans, [k for k, (first, end) in enumerate(spans) if answer[first:end].strip() == "[SEG]"]


def words(answer: str, phrases: tuple[str, ...] = ()) -> list[str | None]:
    spans, segs = tokens(answer)
    found = [phrase_of_seg(answer, spans, segs, k, phrases[k] if phrases else "") for k in range(len(segs))]
    for one in found:
        if one is not None:
            said = "".join(answer[slice(*spans[place])] for place in one.tokens)
            assert said.strip() == one.text, "its tokens are the words"
            assert not set(one.tokens) & set(segs)
    return [None if one is None else one.text for one in found]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the purple hat [SEG].", ["the purple hat"]),
        ("the device is the laptop [SEG].", ["the laptop"]),
        ("the fish is the bottommost one [SEG].", ["the bottommost one"]),
        ("the apple [SEG] and the broom [SEG].", ["the apple", "the broom"]),
        ("it is the red cup [SEG] and there is a saw [SEG].", ["the red cup", "a saw"]),
        ("they are [SEG] and [SEG].", [None, None]),
        ("Sure, the segmentation result is [SEG].", [None]),
        ("Sure, it is [SEG].", [None]),
        ("Sure, [SEG].", [None]),
        ("[SEG].", [None]),
        ("It is [SEG] .", [None]),
        ("Sure, the man with the hat [SEG].", ["the man with the hat"]),
        ("You need light to read. The lamp [SEG] gives it.", ["The lamp"]),
        ("a T.V. set [SEG]", ["set"]),
        ("the saw, the cup [SEG]", ["the cup"]),
        ("this [SEG]", ["this"]),
        ("the island [SEG] and the sandbox [SEG]", ["the island", "the sandbox"]),
        ("杯 [SEG]", ["杯"]),
    ],
)
def test_words_before_a_seg(answer: str, expected: list[str | None]) -> None:
    assert words(answer) == expected


def test_marked_phrases_are_taken_as_they_are() -> None:
    assert words("Sure,a fox:[SEG], a heron:[SEG].", ("a fox", "a heron")) == ["a fox", "a heron"]
    answer = "<p> the cup that is red </p> [SEG] is beside <p> the cup </p> [SEG] ."
    assert words(answer, ("the cup that is red", "the cup")) == ["the cup that is red", "the cup"]
    assert words("the cup [SEG] [SEG]", ("the cup", "the cup")) == ["the cup", None], "the words of another [SEG]"


def test_a_word_counts_where_it_stands() -> None:
    answer = "the cup [SEG] and the cup [SEG]"
    spans, segs = tokens(answer)
    assert [phrase_of_seg(answer, spans, segs, k).tokens for k in (0, 1)] == [(0, 1), (4, 5)]
