"""What a model is made of, and how it prompts: every value that a saved folder carries in `config.json`.

A family's values are held here (`ConversationConfig`, `PointConfig`), so that a saved model explains itself; the table
that they come from is `families.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, LlavaConfig, PreTrainedConfig, SamConfig

from readseg.core.frames import View
from readseg.core.io import read_yaml
from readseg.core.sasp import PointConfig
from readseg.core.token_grid import check_choice

Prompt = Literal["both", "seg", "points"]
Projector = Literal["mlp", "linear"]


@dataclass(frozen=True)
class ConversationConfig:
    """The words around a question, as the weights were trained with them.

    system: text before the first turn; may be empty.
    image_text: text of the first turn before the question; "<image>" stands for the image's tokens.
    name_question: what to ask for the name of an object ("{name}").
    sentence_question: what to ask for a whole sentence ("{sentence}").
    names_question: what to ask for several objects at once ("{names}"); empty where the weights were not trained so.
    forced_answer: the answer of teacher forcing, where an evaluation gives the model its answer.
    answer_tokens: what is a token where it stands in an answer; anywhere else it is text.
    """

    system: str = ""
    image_text: str = "<im_start><image><im_end>\n"
    name_question: str = "{name}"
    sentence_question: str = "{sentence}"
    names_question: str = ""
    forced_answer: str = "[SEG]."
    answer_tokens: tuple[str, ...] = ("[SEG]",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer_tokens", tuple(self.answer_tokens))
        if self.names_question and self.names_question.count("{names}") != 1:
            raise ValueError(f"names_question must be empty or contain '{{names}}' once; got {self.names_question!r}.")
        parts = {"image_text": "<image>", "name_question": "{name}", "sentence_question": "{sentence}"}
        for field, part in parts.items():
            if getattr(self, field).count(part) != 1:
                raise ValueError(f"{field} must contain {part!r} once; got {getattr(self, field)!r}.")


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain data; ValueError names a setting that it does not have."""
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    return cls(**values)


class ReadConfig(PreTrainedConfig):
    """Configuration of `ReadModel`: the two stock models, and what joins them.

    lmm_config: the language and vision model (`LlavaConfig`).
    mask_config: the mask model (`SamConfig`).
    points: how points are made (`PointConfig`).
    conversation: the words around a question (`ConversationConfig`).
    family: the family that the weights belong to; a name, nothing depends on it.
    projector: what takes image features to the language model: "mlp" (two layers, LLaVA-1.5) or "linear" (LLaVA-1).
    prompt: what prompts the mask decoder: the points and the projected [SEG] ("both", the paper), "seg" or "points".
    view: how the language model sees an image: "crop" (shortest side, centre), "letterbox" or "stretch".
    seg_token_id: the id of [SEG] in this model's tokenizer.
    rej_token_id: the id of [REJ], with which a family says of one of several objects that it is not there; or None.
    released: the config.json of the released weights that the model was loaded from, for the way back; or None.
    text_loss_weight, bce_loss_weight, dice_loss_weight: of loss = text * CE + bce * BCE + dice * DICE.
    map_loss_weight: of the auxiliary loss on the similarity map; 0 is the paper.
    """

    model_type = "readseg"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {"lmm_config": LlavaConfig, "mask_config": SamConfig}

    # Any: transformers and __post_init__ turn plain data, as read from a file, into the types named above.
    lmm_config: Any = None
    mask_config: Any = None
    points: Any = None
    conversation: Any = None
    family: str = "read"
    prompt: Prompt = "both"
    view: View = "crop"
    projector: Projector = "mlp"
    seg_token_id: int = 32000
    rej_token_id: int | None = None
    released: Any = None
    text_loss_weight: float = 1.0
    bce_loss_weight: float = 2.0
    dice_loss_weight: float = 0.5
    map_loss_weight: float = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, kind in (("points", PointConfig), ("conversation", ConversationConfig)):
            value = getattr(self, name)
            setattr(self, name, value if isinstance(value, kind) else from_dict(kind, value or {}))
        check_choice("prompt", self.prompt, Prompt)
        check_choice("view", self.view, View)
        check_choice("projector", self.projector, Projector)
        for name in ("text_loss_weight", "bce_loss_weight", "dice_loss_weight", "map_loss_weight"):
            weight = getattr(self, name)
            if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be a number, 0 or more; got {weight!r}.")
        super().__post_init__(**kwargs)
        self.check_points(self.points)

    def check_points(self, points: PointConfig) -> None:
        """Raises ValueError where settings of points do not fit this model's view of images or its token grid."""
        if points.alignment == "reference" and self.view != "crop":
            wrong = "is a rounding of the centre crop, but the view is"
            raise ValueError(f'alignment "reference" {wrong} {self.view!r}: use alignment "exact".')
        if points.downsample**2 > self.num_image_tokens:
            grid = f"the grid of {self.num_image_tokens} image tokens"
            raise ValueError(f"downsample must not exceed the side of {grid}; got {points.downsample}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to `config.json`."""
        conversation = dataclasses.asdict(self.conversation)
        conversation["answer_tokens"] = list(self.conversation.answer_tokens)
        return {**super().to_dict(), "points": dataclasses.asdict(self.points), "conversation": conversation}

    @property
    def image_token_id(self) -> int:
        """The id that marks the image's places in `input_ids`."""
        return self.lmm_config.image_token_index

    @property
    def num_image_tokens(self) -> int:
        """N, the number of tokens that one image fills: (side // patch)^2."""
        vision = self.lmm_config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    @property
    def lmm_size(self) -> int:
        """Side in pixels of the square that the language model sees."""
        return self.lmm_config.vision_config.image_size

    @property
    def mask_size(self) -> int:
        """Side in pixels of the square that the mask model sees."""
        return self.mask_config.vision_config.image_size


AutoConfig.register(ReadConfig.model_type, ReadConfig, exist_ok=True)


def tiny_config(*, vocab_size: int, image_token_id: int, seg_token_id: int, **ids: int) -> ReadConfig:
    """The embedded model (`tiny.yaml`) with the ids of its tokenizer; `ids`: {bos, eos, pad}_token_id."""
    values = read_yaml(Path(__file__).with_name("tiny.yaml"))
    values["lmm_config"]["image_token_index"] = image_token_id
    values["lmm_config"]["text_config"] |= {"vocab_size": vocab_size, **ids}
    return ReadConfig(seg_token_id=seg_token_id, **values)
