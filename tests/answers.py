"""An answer with its states, asked in one call."""

from __future__ import annotations

from typing import Any

from readseg.analysis.answer_states import AnswerStates, ExamineOptions, collect_states
from readseg.inference.segmenter import Segmenter


def read_answer(
    segmenter: Segmenter, image: Any, query: str, *, answer: bool | str = False, options: Any = None, **asked: Any
) -> AnswerStates:
    """The states of the answer to one question about one image; `answer` is given to the model."""
    encoded = segmenter.encode(image)
    (reply,) = segmenter.reply(encoded, [query], force=answer, **asked)
    return collect_states(segmenter, encoded, reply, options or ExamineOptions())
