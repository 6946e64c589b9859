"""From a query to its question, by the query's form; and what stands between an image with a question and its masks.

Analyses that decode one answer in several ways keep the `EncodedImage` and the `ModelAnswer`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from readseg.core.frames import ImageFrame
from readseg.errors import ReadsegError
from readseg.model.config import ConversationConfig
from readseg.model.generation import Generation
from readseg.model.prompt_format import inference_question

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


@dataclass(frozen=True, eq=False, repr=False)
class EncodedImage:
    """What is computed of an image (RGB, upright) before any question."""

    image: Image.Image
    frame: ImageFrame
    prefix_ids: list[int]  # what stands before every question, with the image tokens
    cache: DynamicCache  # its keys and values
    patches: Float[Tensor, "N D"]  # projected CLIP patches, which enter the language model
    h_img: Float[Tensor, "N D"]  # last states of the image tokens
    mask_embeddings: Float[Tensor, "1 C h w"]


@dataclass(frozen=True, eq=False, repr=False)
class ModelAnswer:
    """The answer to a query in words, with the states that its masks are made of."""

    query: str
    question: str  # the query in the words that the model was asked with
    expects_mask: bool  # whether it asks for an object
    answer: Generation
    is_forced: bool = False  # whether the answer was given to the model
    names: tuple[str, ...] = ()  # of the objects, where it asks for several


def requests_mask(text: str) -> bool:
    """Whether a text asks for a mask in so many words: "segment", "find", "outline", "show me", "output a mask".

    >>> requests_mask("Can you segment the dog?"), requests_mask("Is there a dog?")
    (True, False)
    """
    return _REQUEST.search(text) is not None


def asks_for_mask(query: str) -> bool:
    """Whether a query given to `Segmenter.segment` asks for an object, so that no [SEG] means it is not there.

    Every query does, except a question that is answered in words and does not request a mask (`requests_mask`). Such
    questions are recognised by their form: "how ...", "count ...", "why ...", "when ...", "describe ...",
    "what colour ...", "is/are there ...", a question mark after "is/are/was/were/does/do/did/has/have ...", and what
    the whole image shows ("what is in the picture"). Where the rule errs, the option `asks` decides.

    >>> [asks_for_mask(q) for q in ("something to cut paper with", "where could I sit?", "how many dogs are there?")]
    [True, True, False]
    """
    return requests_mask(query) or _PLAIN_QUESTION.search(query.strip()) is None


def question_for(
    conversation: ConversationConfig,
    query: str,
    asks: bool | None = None,
    sentence: bool | None = None,
    always: bool = False,
) -> tuple[str, bool]:
    """What a model is asked for a query, and whether the query asks for an object; the query's form decides on None.

    Without `always` and `sentence`, a plain question and what speaks of segmentation itself are asked as they stand.
    """
    asks = asks_for_mask(query) if asks is None else asks
    has_own_words = not asks or "segment" in query.lower()
    if has_own_words and not always and sentence is None:
        return query, asks
    if sentence is None and _COMMAND.match(query.strip()):
        sentence = True
    return inference_question(conversation, query, sentence=sentence), asks


def check_query(query: Any) -> None:
    """Raises QueryError where a query is no text, or empty."""
    if not isinstance(query, str):
        raise QueryError(f"a query is text, got {type(query).__name__}: say what to look for")
    if not query.strip():
        raise QueryError("the query is empty: say what to look for")
