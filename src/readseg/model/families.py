"""One table: what a family of weights was trained with. Everything else treats all families alike.

A family is data. What a saved model needs of it stands in its `ReadConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from readseg.core.frames import View
from readseg.core.sasp import PointConfig
from readseg.core.types import SEG as SEG
from readseg.errors import ReadsegError
from readseg.model.config import ConversationConfig, Prompt

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
REJ, IMAGE, IM_START, IM_END = "[REJ]", "<image>", "<im_start>", "<im_end>"
PHRASE, PHRASE_END = "<p>", "</p>"

# The system prompt of training (the released demos of some families say "user" instead of "human").
LLAVA_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VICUNA_V1 = LLAVA_V1.replace("human", "user")
SYSTEMS = {"llava_v1": LLAVA_V1, "vicuna_v1": VICUNA_V1}
"""System prompts by the names that the family's scripts give them (`--conv_type`)."""


@dataclass(frozen=True)
class Family:
    """The values of one family; `name`, `conversation`, `points`, `prompt` and `view` are as in `ReadConfig`.

    added_tokens: in the order of their ids, behind those of the tokenizer that training started from.
    points: where the weights were trained without (`prompt` "seg"), how to add them.
    points_13b: what replaces them in the family's weights of 13 billion parameters, if they differ.
    architectures: what "architectures" in a released config.json says.
    repositories: released weights, as hub ids; their names tell the family where config.json errs.
    image_tokens: N with the vision tower that the weights were trained with.
    linear: whether the projector may be one layer.
    mask_model: the name that released weights hold SAM under.
    rejection: the token that says of one of several objects that it is not there; "" where there is none.
    unused: weights under these names are known and not used.
    """

    name: str
    added_tokens: tuple[str, ...]
    conversation: ConversationConfig
    points: PointConfig
    points_13b: PointConfig | None = None
    prompt: Prompt = "both"
    view: View = "crop"
    architectures: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    image_tokens: int = 24 * 24
    linear: bool = False
    mask_model: str = "visual_model"
    rejection: str = ""
    unused: tuple[str, ...] = ()

    def points_for(self, image_tokens: int, width: int) -> PointConfig:
        """The settings of points for a grid of so many tokens and a language model of this width."""
        if self.points_13b is not None and width >= _WIDTH_13B:
            return self.points_13b
        # A grid of CLIP-L/14 at 224 px, added points: it is small enough as it is.
        small = self.prompt == "seg" and image_tokens < READ.image_tokens
        return replace(self.points, downsample=1) if small else self.points


_WIDTH_13B = 5120

_REFERRING = ConversationConfig(
    system=LLAVA_V1,
    name_question="What is {name} in this image? Please output segmentation mask.",
    sentence_question="{sentence} Please output segmentation mask.",
    forced_answer="Sure, the segmentation result is [SEG].",
)
# READ's values for families that were trained without points; nothing ties them to the rounding of READ's training.
_ADDED_POINTS = PointConfig(num_points=30, t_pos=0.8, t_neg=0.2, downsample=2, alignment="exact")

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
    conversation=_REFERRING,
    points=PointConfig(num_points=30, t_pos=0.8, t_neg=0.2, downsample=2, alignment="reference"),
    points_13b=PointConfig(num_points=60, t_pos=0.6, t_neg=0.2, downsample=1, alignment="reference"),
    architectures=("READForCausalLM",),
    repositories=(
        "rui-qian/READ-LLaVA-v1.5-7B-for-ReasonSeg-valset",
        "rui-qian/READ-LLaVA-v1.5-7B-for-ReasonSeg-valset-ft",
        "rui-qian/READ-LLaVA-v1.5-7B-for-ReasonSeg-testset",
        "rui-qian/READ-LLaVA-v1.5-13B-for-ReasonSeg-testset",
        "rui-qian/READ-LLaVA-v1.5-7B-for-fprefcoco",
    ),
)

SESAME = Family(
    name="sesame",
    added_tokens=(SEG, IM_START, IM_END),
    conversation=_REFERRING,
    points=_ADDED_POINTS,
    prompt="seg",
    architectures=("SESAMEForCausalLM",),
    # The second is the folder that READ's training starts from, where its users change what config.json says.
    repositories=("tsunghanwu/SESAME", "tsunghanwu/SESAME-LLaVA-v1.5-7B"),
)

LISA = Family(
    name="lisa",
    added_tokens=(SEG, IM_START, IM_END),
    conversation=replace(_REFERRING, forced_answer="[SEG]."),
    points=_ADDED_POINTS,
    prompt="seg",
    architectures=("LISAForCausalLM", "LisaForCausalLM"),
    repositories=("xinlai/LISA-7B-v1", "xinlai/LISA-13B-llama2-v1"),
    image_tokens=16 * 16,
    linear=True,
)

GSVA = Family(
    name="gsva",
    added_tokens=(SEG, REJ, IM_START, IM_END),
    conversation=replace(
        _REFERRING,
        # No space before "in": so do the family's evaluation scripts ask.
        names_question="What are {names}in this image? Please output segmentation masks.",
        forced_answer="[SEG]",
        answer_tokens=(SEG, REJ),
    ),
    points=_ADDED_POINTS,
    prompt="seg",
    architectures=("LisaGSVAForCausalLM",),
    image_tokens=16 * 16,
    linear=True,
    rejection=REJ,
)

GLAMM = Family(
    name="glamm",
    added_tokens=(IM_START, IM_END, "<bbox>", "<point>", SEG, PHRASE, PHRASE_END),
    conversation=replace(
        _REFERRING,
        image_text="The <im_start><image><im_end> provides an overview of the picture.\n",
        answer_tokens=(SEG, PHRASE, PHRASE_END),
    ),
    points=_ADDED_POINTS,
    prompt="seg",
    architectures=("GLaMMForCausalLM",),
    repositories=("MBZUAI/GLaMM-FullScope",),
    mask_model="grounding_encoder",
    unused=("model.region_encoder.",),
)

FAMILIES = {family.name: family for family in (TINY, READ, SESAME, LISA, GSVA, GLAMM)}
RELEASED = tuple(name for name, family in FAMILIES.items() if family.architectures)
"""Families whose weights others released."""


def family_of(
    settings: Mapping[str, Any],
    mask_model: str | None,
    added: Collection[str],
    *,
    linear: bool,
    name: str,
    chosen: str | None = None,
) -> tuple[Family, str]:
    """The family of released weights, and how it was determined.

    The names of weights leave several possible (READ, SESAME and LISA on LLaVA-1.5 have the same tensors, and prompt
    SAM differently): then the user's choice decides, or the repository's name, or config.json.

    settings: config.json;  mask_model: the name under which the weights hold SAM;  added: the tokenizer's added tokens;
    linear: whether the projector is one layer;  name: the folder, as the hub's cache names it;  chosen: by the user.
    """
    possible = [
        family
        for family in FAMILIES.values()
        if family.architectures
        and family.mask_model == mask_model
        and bool(family.rejection) == (REJ in added)
        and (not linear or family.linear)
    ]
    if not possible:
        raise ReadsegError(f"{name}: these weights are of none of the families {', '.join(RELEASED)}.")
    options = " or ".join(family.name for family in possible)
    if chosen is not None:
        if FAMILIES[chosen] not in possible:
            raise ReadsegError(f"{name}: family {chosen!r} was asked for, but these weights are of {options}.")
        return FAMILIES[chosen], "as asked"
    architectures = settings.get("architectures")
    architectures = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    by_config = next((family for family in FAMILIES.values() if set(family.architectures) & set(architectures)), None)
    # A hub's cache names folders so: .../models--owner--name/snapshots/...
    cached = re.search(r"models--[^/]*--([^/]+)/snapshots/[^/]+$", name)
    repository = cached[1] if cached else name.rstrip("/").rpartition("/")[2]
    for family in possible:
        if any(known.rpartition("/")[2] == repository for known in family.repositories):
            if by_config in (None, family):
                return family, "by its name"
            return family, f"by its name; config.json says {by_config.name}"
    if by_config is not None and by_config in possible:
        return by_config, "by config.json"
    if by_config is not None:
        raise ReadsegError(
            f"{name}: config.json is of the family {by_config.name} ({', '.join(architectures)}), the weights are of "
            f"{options}; if config.json is wrong, name the family (--family)."
        )
    if len(possible) == 1:
        return possible[0], "by its weights"
    raise ReadsegError(
        f"{name}: config.json (architectures: {', '.join(architectures) or 'none'}) does not tell the family; name it: "
        f"--family {options}."
    )
