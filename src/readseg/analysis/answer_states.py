"""An answer and the states behind it: what similarity maps and prompts of the mask decoder are made of.

N counts image tokens, D is the language model's width, K its number of layers, T counts the answer's tokens, S its
[SEG]. Source: section 3.2, appendices A.1 and B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, SamModel

from readseg.analysis.cases import TargetMask
from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.io import read_yaml
from readseg.core.sasp import PointConfig
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt
from readseg.model.mask_prompts import full_precision

EXTREMES = 5
"""k of the prompt "plain_extremes", where it is not given."""
TEXTS = read_yaml(Path(__file__).with_name("maps_and_prompts.yaml"))
"""What tables, figures and the page say of maps and prompts."""

_NO_TEXT = "\ufffd"


@dataclass(frozen=True)
class ExamineOptions:
    """What answers are examined with: the model's own prompt and points, by default its configured ones, and more."""

    prompt: Prompt | None = None
    points: PointConfig | None = None
    original_sam: SamModel | None = field(default=None, repr=False)  # its prompts are left out without it
    clip: tuple[CLIPModel, Any] | None = field(default=None, repr=False)  # with its tokenizer; its map likewise
    extremes: int = EXTREMES  # so many highest cells and lowest ones make the prompt "plain_extremes"


class Phrase(NamedTuple):
    """Words of an answer as they stand there, and which of its tokens they are made of."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AnswerStates:
    """An answer and the states behind it: what all maps and prompts are made of.

    Layer 0 are the embeddings, layer k < K what block k leaves, not normed; layer K is after the final norm.
    """

    segmenter: Segmenter = field(repr=False)
    encoded: EncodedImage = field(repr=False)
    reply: ModelAnswer = field(repr=False)
    result: Segmentation
    h_img: Float[Tensor, "layers N D"] = field(repr=False)  # states of the image tokens
    h_answer: Float[Tensor, "layers T D"] = field(repr=False)  # the states that predict each token of the answer
    spans: tuple[tuple[int, int], ...] = field(repr=False)  # of each token its characters (first, end) in the answer
    seg_positions: tuple[int, ...]  # which of the answer's tokens are [SEG]
    prompt: Prompt  # of the model's own masks
    points: PointConfig
    options: ExamineOptions
    targets: Sequence[TargetMask] = field(default=(), repr=False)  # none where that is not known
    name: str = ""  # what was asked for, where the question is the name of a thing
    _decoded: dict[Prompt, Segmentation] = field(default_factory=dict, init=False, repr=False)

    def decode(self, prompt: Prompt) -> Segmentation:
        """What the model makes of the reply with any prompt."""
        if prompt == self.prompt:
            return self.result
        if prompt not in self._decoded:
            (self._decoded[prompt],) = self.segmenter.decode(
                self.encoded, [self.reply], prompt=prompt, points=self.points
            )
        return self._decoded[prompt]

    @property
    def frame(self) -> ImageFrame:
        """Of the image."""
        return self.encoded.frame

    @property
    def num_layers(self) -> int:
        """K, the number of layers of the language model."""
        return len(self.h_img) - 1

    @property
    def h_seg(self) -> Float[Tensor, "S D"]:
        """The states of the last layer that predict each [SEG]."""
        return self.h_answer[-1][list(self.seg_positions)]

    @cached_property
    def phrases(self) -> list[Phrase | None]:
        """Of each [SEG] the answer's own words for it."""
        marked = enumerate(self.result.phrases)
        return [phrase_of_seg(self.result.answer, self.spans, self.seg_positions, k, text) for k, text in marked]

    def phrase_scores(self, phrase: Phrase) -> tuple[Float[Tensor, "1 D"], Float[Tensor, "1 N"]]:
        """The mean of the last states that predict a phrase (1, D), as they were generated, and its scores (1, N)."""
        states = self.reply.answer.states[list(phrase.tokens)]
        mean = states.float().mean(dim=0, keepdim=True)
        return mean.to(states.dtype), dot_products(mean, self.encoded.h_img)


@torch.inference_mode()
def collect_states(
    segmenter: Segmenter,
    encoded: EncodedImage,
    reply: ModelAnswer,
    options: ExamineOptions | None = None,
    targets: Sequence[TargetMask] = (),
    name: str = "",
) -> AnswerStates:
    """Reads a reply of `Segmenter.reply` about an image of `Segmenter.encode` once more: the states of all layers.

    Some maps and prompts need `targets`, the masks that are expected, or the `name` that was asked for, where the
    question is the name of a thing.
    """
    model, options = segmenter.model, options or ExamineOptions()
    result = segmenter.decode(encoded, [reply], prompt=options.prompt, points=options.points)[0]
    asked = segmenter.processor.prompt_ids([Turn(reply.question)])
    ids = torch.tensor([[*asked, *result.answer_ids]], device=model.device)
    is_image = ids == model.config.image_token_id
    embeddings = model.lmm.get_input_embeddings()(ids.masked_fill(is_image, 0))
    embeddings = embeddings.masked_scatter(is_image[..., None], encoded.patches[None].to(embeddings.dtype))
    output = model.lmm.model.language_model(inputs_embeds=embeddings, use_cache=False, output_hidden_states=True)
    hidden = torch.stack([states[0].to(ids.device) for states in output.hidden_states])
    return AnswerStates(
        segmenter,
        encoded,
        reply,
        result,
        h_img=hidden[:, is_image[0]],
        # The state one place before a token predicts it.
        h_answer=hidden[:, len(asked) - 1 : -1],
        spans=_spans(segmenter, result.answer_ids),
        seg_positions=tuple(i for i, token in enumerate(result.answer_ids) if token == model.config.seg_token_id),
        prompt=options.prompt or model.config.prompt,
        points=options.points or model.config.points,
        options=options,
        targets=targets,
        name=name,
    )


def _spans(segmenter: Segmenter, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where each token's text stands in the decoded answer; tokens that share a character share its place."""
    texts = [segmenter.processor.decode(ids[:count]) for count in range(len(ids) + 1)]
    # A character of several bytes may be cut between tokens: it decodes to one sign that stands for no text.
    whole = [len(text.rstrip(_NO_TEXT)) for text in texts]
    ends = [length + text.endswith(_NO_TEXT) for text, length in zip(texts, whole, strict=True)]
    return tuple(zip(whole[:-1], ends[1:], strict=True))


# What names an object begins behind the last of these.
_CUT = re.compile(r"\b(?:is|are|was|were)\b|[.,;:!?](?=\s)", re.IGNORECASE)
_FILLERS = re.compile(r"^(?:\W*\b(?:and|or|but|also|sure|yes|okay|ok|here|it)\b)*\W*", re.IGNORECASE)


def phrase_of_seg(
    answer: str, spans: Sequence[tuple[int, int]], seg_positions: Sequence[int], seg: int, marked: str = ""
) -> Phrase | None:
    """The answer's own words for what its [SEG] number `seg` stands for; None where no words are left.

        the device is the laptop [SEG].            the laptop
        Sure, the segmentation result is [SEG].    none: these words name nothing

    They stand between the [SEG] before and this one: the phrase that is `marked` where the family's answers mark it,
    else what follows the last "is", "are" or stop, without fillers such as "and" or "sure".
    """
    first = spans[seg_positions[seg - 1]][1] if seg else 0
    stretch = answer[first : spans[seg_positions[seg]][0]]
    if marked:
        start = stretch.rfind(marked)
        if start < 0:
            return None
        end = start + len(marked)
    else:
        cut = max((cut.end() for cut in _CUT.finditer(stretch)), default=0)
        start, end = len(stretch) - len(_FILLERS.sub("", stretch[cut:])), len(re.sub(r"\W+$", "", stretch))
    if start >= end:
        return None
    tokens = _tokens_of(spans, start + first, end + first)
    return Phrase(answer[start + first : end + first], tokens) if tokens else None


def phrase_tokens(states: AnswerStates, phrase: str) -> tuple[int, ...]:
    """Which tokens of the answer make up whole words of it, in any case, where they stand first."""
    answer, words = states.result.answer, phrase.strip()
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) if words else None
    tokens = _tokens_of(states.spans, found.start(), found.end()) if found else ()
    if not tokens:
        raise ReadsegError(f"the phrase {phrase!r} is not in the answer {answer!r}: give whole words of it.")
    return tokens


def _tokens_of(spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    return tuple(i for i, (low, high) in enumerate(spans) if low < end and start < high)


def dot_products(states: Float[Tensor, "S D"], image: Float[Tensor, "N D"]) -> Float[Tensor, "S N"]:
    """Dot products (S, N) in float32, also under autocast and for states of a lower type: s = h . h_img^T."""
    with torch.inference_mode(), full_precision(states.device):
        return sasp.similarity(states.float(), image.to(states.device).float())


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An entry of `similarity_maps.MAPS` or `prompts.PROMPTS`, which tables, figures and the page go through."""

    compute: Callable[[AnswerStates], Sequence[Any]]  # of each [SEG] or target its map or mask; None for none
    title: str
    note: str = ""  # what the title does not say, beneath tables
    short: str = ""  # of a prompt: its heading in the tables of one image; without it, it is made for benchmarks only
    per_target: bool = False  # computed for each target, not for each [SEG]
    requires: str = ""  # a part of `ExamineOptions` that it needs
    absent: str = "no mask has one"  # why, where none has
    keeps_curve: bool = False  # of a map: its counts at all thresholds and its grid are recorded, for the page
    in_mask_frame: bool = False  # of a map: its grid covers the mask model's square, not what the language model sees
