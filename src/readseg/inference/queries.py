"""What a query asks for, told by its form: an object or words, a name or a sentence. Speaks text."""

from __future__ import annotations

import re
from typing import Any

from readseg.errors import ReadsegError

_REQUEST = re.compile(
    r"\b(segment\w*|segmentation|outline|highlight|locate|find|mark|show me|point (?:to|out|at))\b"
    r"|\b(?:output|give|draw|make|produce)\b.*\bmasks?\b",
    re.IGNORECASE,
)
_PLAIN_QUESTION = re.compile(
    r"^(?:how\b|count\b|why\b|when\b|describe\b|what colou?rs?\b|which colou?rs?\b"
    r"|what (?:do|can) you see|what does (?:this|the) (?:image|picture|photo|scene)"
    r"|what(?:'s| is| are) (?:there |shown |visible )?(?:in|on) (?:this|the) (?:image|picture|photo|scene)"
    r"|(?:is|are|was|were) there\b|(?:is|are|was|were|does|do|did|has|have)\b.*\?$)",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"^(?:segment|please|can|could|would|find|locate|show|mark|point|highlight|outline|where"
                      r"|what|which|who|if|identify)\b", re.IGNORECASE)  # fmt: skip


class QueryError(ReadsegError):
    """A question cannot be asked: it is empty, no text, or longer than the model's context."""


def requests_mask(text: str) -> bool:
    """Whether a text asks for a mask in so many words: "segment", "find", "outline", "show me", "output a mask".

    >>> requests_mask("Can you segment the dog?"), requests_mask("Is there a dog?")
    (True, False)
    """
    return _REQUEST.search(text) is not None


def asks_for_mask(query: str) -> bool:
    """Whether a query given to `Segmenter.segment` asks for an object, so that no [SEG] means it is not there.

    The rule: everything does, but a question that is answered in words and does not ask for a mask besides
    (`requests_mask`). Such questions are told by their form: "how ...", "count ...", "why ...", "when ...",
    "describe ...", "what colour ...", "is/are there ...", a question mark after "is/are/was/were/does/do/did/
    has/have ...", and what the whole image shows ("what is in the picture"). Where the rule errs, `asks=` decides.

    >>> [asks_for_mask(q) for q in ("something to cut paper with", "where could I sit?", "how many dogs are there?")]
    [True, True, False]
    """
    return requests_mask(query) or _PLAIN_QUESTION.search(query.strip()) is None


def needs_words(query: str, asks: bool) -> bool:
    """Whether a query is put into the family's words: not a plain question, nor what speaks of segments itself."""
    return asks and "segment" not in query.lower()


def is_command(query: str) -> bool:
    """Whether a query is worded as a question or a command, so that it is a sentence and no name.

    >>> is_command("where could I sit"), is_command("the red cup")
    (True, False)
    """
    return _COMMAND.match(query.strip()) is not None


def check_query(query: Any) -> None:
    """Raises QueryError where a query is no text, or empty."""
    if not isinstance(query, str):
        raise QueryError(f"a query is text, got {type(query).__name__}: say what to look for")
    if not query.strip():
        raise QueryError("the query is empty: say what to look for")
