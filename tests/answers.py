"""A small model whose answers are given to it, and an answer with its states, asked in one call."""

from __future__ import annotations

from functools import cache
from typing import Any

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, collect_states
from readseg.inference.segmenter import Segmenter
from readseg.model.config import ConversationConfig
from small import small_model, small_processor

SIZE = (40, 60)
TWO = "it is the red cup [SEG] and there is a saw [SEG]."
WORDS = ConversationConfig(name_question="What is {name}?", sentence_question="{sentence} Tell me.", forced_answer=TWO)


def small(view: Any = "stretch") -> Segmenter:
    """Only repeats: its answers must be given. One for each view, however it is asked for; not to be changed."""
    return _small(view)


@cache
def _small(view: Any) -> Segmenter:
    return Segmenter(small_model(view=view, conversation=WORDS), small_processor(view=view, conversation=WORDS))


def read_answer(
    segmenter: Segmenter, image: Any, query: str, *, answer: bool | str = False, options: Any = None, **asked: Any
) -> AnswerStates:
    """The states of the answer to one question about one image; `answer` is given to the model."""
    encoded = segmenter.encode(image)
    (reply,) = segmenter.reply(encoded, [query], force=answer, **asked)
    return collect_states(segmenter, encoded, reply, options or ExamineOptions())
