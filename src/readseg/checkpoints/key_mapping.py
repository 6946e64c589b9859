"""The released layout and ours: names of weights, and what a released config.json says in our words.

Speaks names, shapes and plain settings; the tensors themselves are passed on as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from readseg.core.io import read_yaml
from readseg.errors import ReadsegError, first_five
from readseg.model.config import Projector, ReadConfig
from readseg.model.families import BOS, EOS, FAMILIES, IM_END, IM_START, SEG, Family
from readseg.model.tokenizer import LegacyTokenizer

NAMES = read_yaml(Path(__file__).with_suffix(".yaml"))
PROJECTOR = "lmm.model.multi_modal_projector."
TOWER, TOWER_RELEASED = "lmm.model.vision_tower.", "model.vision_tower.vision_tower.vision_model."
# Computed, not learned: some versions of the libraries saved them.
_COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")
_PROJECTOR_TYPES: dict[Projector, str] = {"linear": "linear", "mlp": "mlp2x_gelu"}
# Ours alone; weights that were trained without the auxiliary loss have it at 0.
OWN = ("map_bias",)
# The tables of embeddings: released names, ours.
TABLES = {
    "model.embed_tokens.weight": "lmm.model.language_model.embed_tokens.weight",
    "lm_head.weight": "lmm.lm_head.weight",
}


def mask_model_of(names: Mapping[str, Any]) -> str | None:
    """The name under which released weights hold SAM, without dots around it; None where they hold none."""
    known = sorted({family.mask_model for family in FAMILIES.values()})
    return next((name for name in known if any(key.startswith(f"model.{name}.") for key in names)), None)


def holds_tower(state: Mapping[str, Any]) -> bool:
    """Whether released weights hold the CLIP tower too, as a training run's raw file does."""
    return any(name.startswith(TOWER_RELEASED) for name in state)


def without_computed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the buffers that a model computes by itself."""
    return {name: value for name, value in state.items() if not name.endswith(_COMPUTED)}


def replace_prefixes(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict with the first prefix that fits replaced in each name; a name that none fits stays."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        old, new = next((pair for pair in prefixes.items() if name.startswith(pair[0])), ("", ""))
        renamed[new + name.removeprefix(old)] = value
    return renamed


def to_ours(state: Mapping[str, Tensor], mask_model: str) -> dict[str, Tensor]:
    """From released names to those of `ReadModel`; unknown ones stay. SAM lies in `mask_model`."""
    prefix = f"model.{mask_model}."
    sam = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return replace_prefixes(rest, NAMES["released"]) | {
        f"sam.{name}": value for name, value in sam_to_stock(sam).items()
    }


def to_released(state: Mapping[str, Tensor], mask_model: str) -> dict[str, Tensor]:
    """From the names of `ReadModel` to released ones; the inverse of `to_ours`. What is ours alone is left out."""
    sam = {name.removeprefix("sam."): value for name, value in state.items() if name.startswith("sam.")}
    rest = {name: value for name, value in state.items() if not name.startswith("sam.") and name not in OWN}
    released = replace_prefixes(rest, {ours: released for released, ours in NAMES["released"].items()})
    return released | {f"model.{mask_model}.{name}": value for name, value in sam_to_original(sam).items()}


# -- SAM ---------------------------------------------------------------------------------------------------------------

# One tensor, which the stock class holds under two names.
_FOURIER = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_FOURIER_STOCK = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)") + r"((?:\.\w+)*)")


_TO_STOCK = [(_pattern(original), stock) for original, stock in NAMES["sam"].items()]
_TO_ORIGINAL = [(_pattern(stock), original) for original, stock in NAMES["sam"].items()]


def sam_to_stock(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the original's names ("image_encoder...", no prefix) to those of transformers' `SamModel`."""
    names = _translate([key for key in state if key != _FOURIER], _TO_STOCK, "the original SAM")
    stock = {new: state[old] for old, new in names.items()}
    return stock | (dict.fromkeys(_FOURIER_STOCK, state[_FOURIER]) if _FOURIER in state else {})


def sam_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of transformers' `SamModel` to the original's; the inverse of `sam_to_stock`."""
    names = _translate([key for key in state if key not in _FOURIER_STOCK], _TO_ORIGINAL, "SamModel")
    return {names.get(key, _FOURIER): value for key, value in state.items()}


def with_both_fourier_names(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict of `SamModel` with the Fourier features under both of their names; files may hold one only."""
    names = [prefix + name for name in _FOURIER_STOCK]
    fourier = [state[name] for name in names if name in state]
    return {**dict.fromkeys(names, fourier[0]), **state} if fourier else dict(state)


def _translate(keys: Iterable[str], table: list[tuple[re.Pattern[str], str]], source: str) -> dict[str, str]:
    names: dict[str, str] = {}
    unknown = []
    for key in keys:
        for pattern, target in table:
            if match := pattern.fullmatch(key):
                *numbers, rest = match.groups()
                for number in numbers:
                    target = target.replace("#", number, 1)
                names[key] = target + rest
                break
        else:
            unknown.append(key)
    if unknown:
        raise ReadsegError(f"not names of {source}: {first_five(unknown)}.")
    return names


def sam_config_of(state: Mapping[str, Tensor]) -> SamConfig:
    """The configuration of a SAM with these weights (under the original's names), read off their shapes.

    Heads of the mask decoder leave no trace in a shape: there are 8, as in every SAM.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ReadsegError(f"the weights of SAM lack {name}.")
        return tuple(state[name].shape)

    def count(name: str) -> int:
        pattern = _pattern(name)
        return len({match[1] for key in state if (match := pattern.match(key))})

    try:
        _, rows, columns, width = shape("image_encoder.pos_embed")
        patch = shape("image_encoder.patch_embed.proj.weight")[-1]
        depth = count("image_encoder.blocks.#.")
        reaches = [shape(f"image_encoder.blocks.{layer}.attn.rel_pos_h") for layer in range(depth)]
        if rows != columns or not depth:
            raise ValueError
        # A table of relative positions has 2 n - 1 rows: n is the window, or the whole side for global attention.
        sides = [(rows_of_table + 1) // 2 for rows_of_table, _ in reaches]
        windows = {side for side in sides if side != rows}
        channels = shape("image_encoder.neck.0.weight")[0]
        half = shape(_FOURIER)[1]
        attention = shape("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight")[0]
        if len(windows) > 1 or 2 * half != channels or channels % attention:
            raise ValueError
        picture = {"image_size": rows * patch, "patch_size": patch}
        return SamConfig(
            vision_config={
                **picture,
                "hidden_size": width,
                "output_channels": channels,
                "num_hidden_layers": depth,
                "num_attention_heads": width // reaches[0][1],
                "mlp_dim": shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
                "global_attn_indexes": [layer for layer, side in enumerate(sides) if side == rows],
                "window_size": min(windows, default=0),
                "num_pos_feats": half,
            },
            prompt_encoder_config={
                **picture,
                "hidden_size": channels,
                "mask_input_channels": shape("prompt_encoder.mask_downscaling.3.weight")[0],
            },
            mask_decoder_config={
                "hidden_size": channels,
                "mlp_dim": shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
                "num_hidden_layers": count("mask_decoder.transformer.layers.#."),
                "num_attention_heads": 8,
                "attention_downsample_rate": channels // attention,
                "num_multimask_outputs": shape("mask_decoder.mask_tokens.weight")[0] - 1,
                "iou_head_depth": count("mask_decoder.iou_prediction_head.layers.#."),
                "iou_head_hidden_dim": shape("mask_decoder.iou_prediction_head.layers.0.weight")[0],
            },
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ReadsegError("the shapes of the image encoder or mask decoder are not those of a SAM.") from error


# -- config.json -------------------------------------------------------------------------------------------------------


def language_config(settings: Mapping[str, Any], tokenizer: LegacyTokenizer) -> LlamaConfig:
    """The language model that a released config.json describes; where text begins and ends, its tokenizer says."""
    ends = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in (("bos", BOS), ("eos", EOS))}
    for name, index in ends.items():
        if settings.get(name, index) not in (index, None):
            raise ReadsegError(f"config.json: {name} is {settings[name]!r}, but the tokenizer says {index}.")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    nullable, optional = ("num_key_value_heads", "max_position_embeddings"), ("rms_norm_eps", "rope_theta")
    values: dict[str, Any] = {name: settings.get(name) for name in needed}
    values |= {name: settings[name] for name in nullable if settings.get(name) is not None}
    values |= {name: settings[name] for name in optional if name in settings}
    # LlamaConfig checks types; what it takes and fails on later, or never, is checked here.
    for name, value in values.items():
        if not _is_positive(value):
            raise ReadsegError(f"config.json: {name} must be a number above 0; got {value!r}.")
    if values["hidden_size"] % (2 * values["num_attention_heads"]):
        raise ReadsegError("config.json: hidden_size must be a multiple of twice num_attention_heads.")
    values["hidden_act"] = settings.get("hidden_act", "silu")
    if not isinstance(values["hidden_act"], str) or values["hidden_act"] not in ACT2FN:
        raise ReadsegError(f"config.json: hidden_act {values['hidden_act']!r} is no activation function.")
    if scaling := settings.get("rope_scaling"):
        kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else None
        if not isinstance(kind, str) or kind not in ROPE_INIT_FUNCTIONS or not _is_positive(scaling.get("factor", 1.0)):
            raise ReadsegError(f"config.json: rope_scaling {scaling!r} is none that a LLaMA can have.")
        values["rope_scaling"] = scaling
    values["pad_token_id"] = tokenizer.unk_token_id  # as all of these families pad
    return LlamaConfig(**values, **ends, tie_word_embeddings=False)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < 1 << 31  # NaN is not


def lmm_config(settings: Mapping[str, Any], vision: CLIPVisionConfig, tokenizer: LegacyTokenizer) -> LlavaConfig:
    """The language and vision model of a released config.json and its tower."""
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
    """What a released config.json, its tokenizer, its vision tower and the shapes of its weights say, in our words."""
    prefix = f"model.{family.mask_model}."
    mask = sam_config_of({n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)})
    # The names of the weights tell the projector: some released configs do not.
    projector: Projector = "linear" if "model.mm_projector.weight" in weights else "mlp"
    if settings.get("mm_projector_type") not in (None, _PROJECTOR_TYPES[projector]):
        raise ReadsegError(
            f"config.json says mm_projector_type {settings['mm_projector_type']!r}, but the weights hold a projector "
            f"of the kind {projector!r}: it is the config of other weights."
        )
    config = family_config(family, lmm_config(settings, vision, tokenizer), mask, tokenizer, projector)
    if settings.get("mm_use_im_start_end", True) is False:
        words = config.conversation
        config.conversation = replace(words, image_text=words.image_text.replace(IM_START, "").replace(IM_END, ""))
    config.released = dict(settings)
    return config


def family_config(
    family: Family, lmm: LlavaConfig, mask: SamConfig, tokenizer: LegacyTokenizer, projector: Projector
) -> ReadConfig:
    """The configuration of a family's model: what the family fixes, around its two stock models."""
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

    `tower` is the folder or hub id of its CLIP tower, which the layout leaves out.
    """
    text, vision = config.lmm_config.text_config, config.lmm_config.vision_config
    return {
        "architectures": [family.architectures[0]],
        "model_type": "llava",
        **{name: getattr(text, name) for name in NAMES["text_settings"]},
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
