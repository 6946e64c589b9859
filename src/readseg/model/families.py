"""One table, `families.yaml`: what a family of weights was trained with. Everything else treats all families alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from readseg.core.frames import View
from readseg.core.io import read_yaml
from readseg.core.sasp import PointConfig
from readseg.core.types import SEG as SEG
from readseg.errors import ReadsegError
from readseg.model.config import ConversationConfig, Prompt

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
REJ, IMAGE, IM_START, IM_END = "[REJ]", "<image>", "<im_start>", "<im_end>"
PHRASE, PHRASE_END = "<p>", "</p>"


@dataclass(frozen=True)
class Family:
    """The values of one family; `name`, `conversation`, `points`, `prompt` and `view` are as in `ReadConfig`."""

    name: str
    added_tokens: tuple[str, ...]  # in the order of their ids, behind those of the tokenizer that training started from
    conversation: ConversationConfig
    points: PointConfig  # where the weights were trained without (`prompt` "seg"), how to add them
    points_13b: PointConfig | None = None  # of weights of 13 billion parameters, if they differ
    prompt: Prompt = "both"
    view: View = "crop"
    architectures: tuple[str, ...] = ()  # of released weights, in config.json
    repositories: tuple[str, ...] = ()  # their hub ids; names tell where config.json errs
    image_tokens: int = 24 * 24  # with the vision tower that the weights were trained with
    linear: bool = False  # whether the projector may be one layer
    mask_model: str = "visual_model"  # the name that released weights hold SAM under
    rejection: str = ""  # the token that says of one of several objects that it is not there
    unused: tuple[str, ...] = ()  # prefixes of weights that are known and not used

    def points_for(self, image_tokens: int, width: int) -> PointConfig:
        """The settings of points for a grid of so many tokens and a language model of this width."""
        if self.points_13b is not None and width >= _WIDTH_13B:
            return self.points_13b
        # A grid of CLIP-L/14 at 224 px, added points: it is small enough as it is.
        small = self.prompt == "seg" and image_tokens < READ.image_tokens
        return replace(self.points, downsample=1) if small else self.points


_WIDTH_13B = 5120

_TABLE = read_yaml(Path(__file__).with_name("families.yaml"))
FAMILIES = TypeAdapter(dict[str, Family]).validate_python(
    {name: {"name": name, **values} for name, values in _TABLE.items() if not name.startswith(".")}
)
TINY, READ = FAMILIES["tiny"], FAMILIES["read"]
LLAVA_V1 = READ.conversation.system
VICUNA_V1 = LLAVA_V1.replace("human", "user")
# By the names that the family's scripts give them (`--conv_type`).
SYSTEMS = {"llava_v1": LLAVA_V1, "vicuna_v1": VICUNA_V1}
RELEASED = tuple(name for name, family in FAMILIES.items() if family.architectures)  # with weights of others


def family_of(
    settings: Mapping[str, Any],
    mask_model: str | None,
    added: Collection[str],
    *,
    linear: bool,
    name: str,
    chosen: str | None = None,
) -> tuple[Family, str]:
    """The family of released weights, and how it was determined; `name` is the folder, as the hub's cache names it.

    What the weights hold leaves several possible (READ, SESAME and LISA on LLaVA-1.5 have the same tensors, and prompt
    SAM differently): then the user's choice decides, or the repository's name, or config.json (`settings`).
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
    listed = settings.get("architectures")
    architectures = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    by_config = next((family for family in FAMILIES.values() if set(family.architectures) & set(architectures)), None)
    # A hub's cache names folders so: .../models--owner--name/snapshots/...
    cached = re.search(r"models--[^/]*--([^/]+)/snapshots/[^/]+$", name)
    repository = cached[1] if cached else name.rstrip("/").rpartition("/")[2]
    names = {known.rpartition("/")[2]: family for family in possible for known in family.repositories}
    if (by_name := names.get(repository)) is not None:
        other = "" if by_config in (None, by_name) else f"; config.json says {by_config.name}"
        return by_name, f"by its name{other}"
    if by_config is not None:
        if by_config in possible:
            return by_config, "by config.json"
        raise ReadsegError(
            f"{name}: config.json is of the family {by_config.name} ({', '.join(architectures)}), the weights are of "
            f"{options}; if config.json is wrong, name the family (--family)."
        )
    if len(possible) == 1:
        return possible[0], "by its weights"
    listed = f"architectures: {', '.join(architectures) or 'none'}"
    raise ReadsegError(f"{name}: config.json ({listed}) does not tell the family; name it: --family {options}.")
