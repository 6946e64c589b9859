"""The released layout and ours: names of weights, and what a released config.json says in our words.

Speaks names, shapes and plain settings; the tensors themselves are passed on as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from readseg.checkpoints import sam_keys
from readseg.errors import ReadsegError
from readseg.model.config import Projector, ReadConfig
from readseg.model.families import BOS, EOS, FAMILIES, IM_END, IM_START, SEG, Family
from readseg.model.tokenizer import LegacyTokenizer

_LANGUAGE = "lmm.model.language_model."
PROJECTOR = "lmm.model.multi_modal_projector."
TOWER, TOWER_RELEASED = "lmm.model.vision_tower.", "model.vision_tower.vision_tower.vision_model."

# (released, ours); the mask model stands apart, because its prefix and all its names differ.
_PREFIXES = (
    ("lm_head.", "lmm.lm_head."),
    ("model.embed_tokens.", f"{_LANGUAGE}embed_tokens."),
    ("model.layers.", f"{_LANGUAGE}layers."),
    ("model.norm.", f"{_LANGUAGE}norm."),
    ("model.mm_projector.0.", f"{PROJECTOR}linear_1."),
    ("model.mm_projector.2.", f"{PROJECTOR}linear_2."),
    ("model.mm_projector.", PROJECTOR),
    ("model.text_hidden_fcs.0.", "seg_projection."),
    (TOWER_RELEASED, TOWER),
)
_ROPES = tuple(ROPE_INIT_FUNCTIONS)
# Computed, not learned: some versions of the libraries saved them.
_COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")
_PROJECTOR_TYPES: dict[Projector, str] = {"linear": "linear", "mlp": "mlp2x_gelu"}
# What the authors' own libraries need beside tokenizer.model and added_tokens.json.
TOKENIZER_SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
}
# Ours alone; weights that were trained without the auxiliary loss have it at 0.
OWN = ("map_bias",)
# The tables of embeddings: released names, ours.
TABLES = {
    "model.embed_tokens.weight": f"{_LANGUAGE}embed_tokens.weight",
    "lm_head.weight": "lmm.lm_head.weight",
}


def mask_model_of(names: Mapping[str, Any]) -> str | None:
    """The name under which released weights hold SAM, without dots around it; None where they hold none."""
    for name in sorted({family.mask_model for family in FAMILIES.values()}):
        if any(key.startswith(f"model.{name}.") for key in names):
            return name
    return None


def holds_tower(state: Mapping[str, Any]) -> bool:
    """Whether released weights hold the CLIP tower too, as a training run's raw file does."""
    return any(name.startswith(TOWER_RELEASED) for name in state)


def without_computed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the buffers that a model computes by itself."""
    return {name: value for name, value in state.items() if not name.endswith(_COMPUTED)}


def to_ours(state: Mapping[str, Tensor], mask_model: str) -> tuple[dict[str, Tensor], list[str]]:
    """From released names to those of `ReadModel`.

    Args:
        state: without computed buffers and unused parts.
        mask_model: "visual_model", or the name that the family gave SAM.

    Returns:
        The state dict under our names, and the names that have no place in it.

    Raises:
        ReadsegError: names under `mask_model` that are not SAM's.
    """
    ours: dict[str, Tensor] = {}
    sam: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if name.startswith(prefix := f"model.{mask_model}."):
            sam[name.removeprefix(prefix)] = value
            continue
        for released, own in _PREFIXES:
            if name.startswith(released):
                ours[own + name.removeprefix(released)] = value
                break
        else:
            unknown.append(name)
    ours |= {f"sam.{name}": value for name, value in sam_keys.to_stock(sam).items()}
    return ours, unknown


def to_released(state: Mapping[str, Tensor], mask_model: str) -> dict[str, Tensor]:
    """From the names of `ReadModel` to released ones; the inverse of `to_ours`. What is ours alone is left out."""
    released: dict[str, Tensor] = {}
    sam: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in OWN:
            continue
        if name.startswith("sam."):
            sam[name.removeprefix("sam.")] = value
            continue
        old, own = next(pair for pair in _PREFIXES if name.startswith(pair[1]))
        released[old + name.removeprefix(own)] = value
    return released | {f"model.{mask_model}.{name}": value for name, value in sam_keys.to_original(sam).items()}


def language_config(settings: Mapping[str, Any], tokenizer: LegacyTokenizer) -> LlamaConfig:
    """The language model that a released config.json describes; where text begins and ends, its tokenizer says.

    Raises:
        ReadsegError: a setting is missing, none that LLaMA can have, or contradicts the tokenizer.
    """
    ends = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in (("bos", BOS), ("eos", EOS))}
    for name, index in ends.items():
        if settings.get(name, index) not in (index, None):
            raise ReadsegError(f"config.json: {name} is {settings[name]!r}, but the tokenizer says {index}.")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if missing := [name for name in needed if not _is_size(settings.get(name))]:
        raise ReadsegError(f"config.json must give whole numbers, 1 or more, for {', '.join(missing)}.")
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    groups = heads if settings.get("num_key_value_heads") is None else settings["num_key_value_heads"]
    if width % (2 * heads) or not _is_size(groups) or heads % groups:
        raise ReadsegError(
            f"config.json: hidden_size {width} must be a multiple of twice num_attention_heads {heads}, and that of "
            f"num_key_value_heads {groups!r}."
        )
    for name in ("rms_norm_eps", "rope_theta"):
        value = settings.get(name, 1.0)
        if not 0 < _number(value) < math.inf:
            raise ReadsegError(f"config.json: {name} must be a number above 0; got {value!r}.")
    if not isinstance(act := settings.get("hidden_act", "silu"), str) or act not in ACT2FN:
        raise ReadsegError(f"config.json: hidden_act {act!r} is no activation function.")
    scaling = settings.get("rope_scaling")
    if scaling and (not isinstance(scaling, dict) or scaling.get("type", scaling.get("rope_type")) not in _ROPES):
        raise ReadsegError(f"config.json: rope_scaling {scaling!r} is of none of the kinds {', '.join(_ROPES)}.")
    if scaling and not 0 < _number(scaling.get("factor", 1.0)) < math.inf:
        raise ReadsegError(f"config.json: the factor of rope_scaling must be a number above 0; got {scaling!r}.")
    optional = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act", "rope_theta")
    given = {name: settings[name] for name in (*needed, *optional) if settings.get(name) is not None}
    if scaling:
        given["rope_scaling"] = scaling
    return LlamaConfig(
        **given,
        **ends,
        pad_token_id=tokenizer.unk_token_id,  # as all of these families pad
        tie_word_embeddings=False,
    )


def lmm_config(settings: Mapping[str, Any], vision: CLIPVisionConfig, tokenizer: LegacyTokenizer) -> LlavaConfig:
    """The language and vision model of a released config.json and its tower.

    Raises:
        ReadsegError: a setting that is missing or makes no sense.
    """
    feature = settings.get("mm_vision_select_feature", "patch")
    if feature != "patch":
        raise ReadsegError(f"config.json: mm_vision_select_feature must be 'patch'; got {feature!r}.")
    text = language_config(settings, tokenizer)
    layer, depth = settings.get("mm_vision_select_layer", -2), vision.num_hidden_layers
    if type(layer) is not int or not 0 < abs(layer) <= depth:
        raise ReadsegError(
            f"config.json: mm_vision_select_layer must be one of the tower's {depth} layers, such as -2; got {layer!r}."
        )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        # No token of the tokenizer stands for the image: one past the last row of the embeddings marks its places.
        image_token_index=text.vocab_size,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def read_config(
    settings: Mapping[str, Any],
    family: Family,
    tokenizer: LegacyTokenizer,
    vision: CLIPVisionConfig,
    weights: Mapping[str, Tensor],
) -> ReadConfig:
    """What a released config.json, its tokenizer, its vision tower and the shapes of its weights say, in our words.

    Args:
        settings: config.json.
        family: which family the weights are of.
        tokenizer: of the weights.
        vision: the configuration of the CLIP tower.
        weights: under released names; SAM is read off their shapes.

    Raises:
        ReadsegError: a setting that is missing or makes no sense.
    """
    prefix = f"model.{family.mask_model}."
    mask = sam_keys.config_of({n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)})
    config = family_config(
        family, lmm_config(settings, vision, tokenizer), mask, tokenizer, _projector(settings, weights)
    )
    if settings.get("mm_use_im_start_end", True) is False:
        words = config.conversation
        config.conversation = replace(words, image_text=words.image_text.replace(IM_START, "").replace(IM_END, ""))
    config.released = dict(settings)
    return config


def family_config(
    family: Family, lmm: LlavaConfig, mask: SamConfig, tokenizer: LegacyTokenizer, projector: Projector
) -> ReadConfig:
    """The configuration of a family's model: what the family fixes, around its two stock models.

    Args:
        family: of the model.
        lmm: the language and vision model.
        mask: the mask model.
        tokenizer: with the family's tokens.
        projector: what takes image features to the language model.
    """
    return ReadConfig(
        lmm_config=lmm,
        mask_config=mask,
        points=family.points_for(lmm.image_seq_length, lmm.text_config.hidden_size),
        conversation=family.conversation,
        family=family.name,
        prompt=family.prompt,
        view=family.view,
        projector=projector,
        seg_token_id=tokenizer.added[SEG],
        rej_token_id=tokenizer.added.get(family.rejection) if family.rejection else None,
    )


def released_settings(config: ReadConfig, family: Family, tower: str) -> dict[str, Any]:
    """A config.json of the released layout for weights that were not loaded from one: what `read_config` reads back.

    Args:
        config: of the model.
        family: of the model.
        tower: folder or hub id of its CLIP tower, which the layout leaves out.
    """
    text, vision = config.lmm_config.text_config, config.lmm_config.vision_config
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("vocab_size", "rms_norm_eps", "max_position_embeddings", "hidden_act"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
    )
    return {
        "architectures": [family.architectures[0]],
        "model_type": "llava",
        **{name: getattr(text, name) for name in names},
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": _PROJECTOR_TYPES[config.projector],
        "mm_use_im_start_end": IM_START in config.conversation.image_text,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.lmm_config.vision_feature_layer,
        "mm_vision_tower": tower,
        "vision_tower": tower,
        "out_dim": config.mask_config.prompt_encoder_config.hidden_size,
        "train_mask_decoder": True,
        "use_mm_proj": True,
    }


def _number(value: Any) -> float:
    """Value as a number, NaN where it is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _projector(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Projector:
    """As the names of the weights say: some released configs do not."""
    found: Projector = "linear" if "model.mm_projector.weight" in weights else "mlp"
    said = settings.get("mm_projector_type")
    if said is not None and said != _PROJECTOR_TYPES[found]:
        raise ReadsegError(
            f"config.json says mm_projector_type {said!r}, but the weights hold a projector of the kind {found!r}: "
            "it is the config of other weights."
        )
    return found
