"""One table: what a family of weights was trained with. Everything else treats all families alike.

A family is data. What a saved model needs of it stands in its `ReadConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

from readseg.config import ConversationConfig, PointConfig, Prompt
from readseg.geometry import View

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SEG, IMAGE, IM_START, IM_END = "[SEG]", "<image>", "<im_start>", "<im_end>"

# The system prompt of training (the released demos of some families say "user" instead of "human").
LLAVA_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Family:
    """The values of one family.

    name: as in `ReadConfig.family`.
    added_tokens: in the order of their ids, behind those of the tokenizer that training started from.
    conversation: the words around a question.
    points: how points are made.
    prompt: what prompts the mask decoder.
    view: how the language model sees an image.
    """

    name: str
    added_tokens: tuple[str, ...]
    conversation: ConversationConfig
    points: PointConfig
    prompt: Prompt = "both"
    view: View = "crop"


TINY = Family(
    name="tiny",
    # Its tokenizer is trained from nothing: these are its first ids.
    added_tokens=(PAD, BOS, EOS, IMAGE, IM_START, IM_END, SEG),
    conversation=ConversationConfig(),
    points=PointConfig(num_points=30, t_pos=0.8, t_neg=0.2, downsample=1, alignment="exact"),
    view="stretch",
)

READ = Family(
    name="read",
    added_tokens=(SEG, IM_START, IM_END),
    conversation=ConversationConfig(
        system=LLAVA_V1,
        name_question="What is {name} in this image? Please output segmentation mask.",
        sentence_question="{sentence} Please output segmentation mask.",
    ),
    points=PointConfig(num_points=30, t_pos=0.8, t_neg=0.2, downsample=2, alignment="reference"),
)

FAMILIES = {family.name: family for family in (TINY, READ)}
