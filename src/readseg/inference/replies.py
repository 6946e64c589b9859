"""What stands between an image with a question and its masks: the encoded image, and the reply in words.

`Segmenter.segment` goes through both in one call. Whoever asks for masks of one reply in several ways, as the analysis
does, keeps them: an image is encoded once, an answer is generated once, and only the masks are made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from readseg.core.frames import Frame
from readseg.inference.queries import asks_for_mask, is_command, needs_words
from readseg.model.config import ConversationConfig
from readseg.model.generation import Answer
from readseg.model.prompt_format import inference_question


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What is known of an image before any question.

    Attributes:
        image: RGB, upright.
        frame: its frame.
        prefix_ids: ids of what stands before every question, with the image tokens.
        cache: keys and values of that prefix.
        patches: (N, D), projected CLIP patches: what enters the language model.
        h_img: (N, D), last states of the image tokens.
        mask_embeddings: (1, C, h, w), of the mask model.
    """

    image: Image.Image
    frame: Frame
    prefix_ids: list[int] = field(repr=False)
    cache: DynamicCache = field(repr=False)
    patches: Float[Tensor, "N D"] = field(repr=False)
    h_img: Float[Tensor, "N D"] = field(repr=False)
    mask_embeddings: Float[Tensor, "1 C h w"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Reply:
    """The answer to one question in words, with the states that its masks are made of.

    Attributes:
        query: as it was given.
        question: as the model was asked.
        asks: whether the query asks for an object.
        answer: ids and states.
        given: whether the model was given the answer.
        names: of the objects, where one question asked for several.
    """

    query: str
    question: str
    asks: bool
    answer: Answer = field(repr=False)
    given: bool = False
    names: tuple[str, ...] = ()


def question_for(
    conversation: ConversationConfig,
    query: str,
    *,
    asks: bool | None = None,
    sentence: bool | None = None,
    always: bool = False,
) -> tuple[str, bool]:
    """What a model is asked for a query, and whether the query asks for an object.

    Args:
        conversation: the model's own.
        query: as a user gives it.
        asks: whether it asks for an object; by default its form tells (`queries.asks_for_mask`).
        sentence: whether it is a whole sentence, not the name of a thing; by default its form tells.
        always: put it into the family's words whatever it is; by default (and without `sentence`) a plain question, and
            what speaks of segmentation itself, is asked as it stands.

    >>> question_for(ConversationConfig(name_question="Where is {name}?"), "the cup")
    ('Where is the cup?', True)
    >>> question_for(ConversationConfig(name_question="Where is {name}?"), "how many cups are there?")
    ('how many cups are there?', False)
    """
    wanted = asks_for_mask(query) if asks is None else asks
    if not always and sentence is None and not needs_words(query, wanted):
        return query, wanted
    if sentence is None and is_command(query):
        sentence = True
    return inference_question(conversation, query, sentence=sentence), wanted
