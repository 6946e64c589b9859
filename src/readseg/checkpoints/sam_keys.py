"""Names of SAM's weights: the original repository's, which released checkpoints use, and those of the stock class.

The tensors are the same; only names differ. `#` stands for a number. The shapes say which SAM it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor
from transformers import SamConfig

from readseg.errors import ReadsegError

# (original, stock); what follows a name (".weight", ".attn.qkv.bias") is the same in both.
_NAMES = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.blocks.#.norm#", "vision_encoder.layers.#.layer_norm#"),
    ("image_encoder.blocks.#.attn", "vision_encoder.layers.#.attn"),
    ("image_encoder.blocks.#.mlp", "vision_encoder.layers.#.mlp"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("prompt_encoder.no_mask_embed", "prompt_encoder.no_mask_embed"),
    ("prompt_encoder.not_a_point_embed", "prompt_encoder.not_a_point_embed"),
    ("prompt_encoder.point_embeddings.#", "prompt_encoder.point_embed.#"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    ("mask_decoder.iou_token", "mask_decoder.iou_token"),
    ("mask_decoder.mask_tokens", "mask_decoder.mask_tokens"),
    ("mask_decoder.transformer.layers.#.norm#", "mask_decoder.transformer.layers.#.layer_norm#"),
    ("mask_decoder.transformer.layers.#.mlp", "mask_decoder.transformer.layers.#.mlp"),
    ("mask_decoder.transformer.layers.#.self_attn", "mask_decoder.transformer.layers.#.self_attn"),
    (
        "mask_decoder.transformer.layers.#.cross_attn_token_to_image",
        "mask_decoder.transformer.layers.#.cross_attn_token_to_image",
    ),
    (
        "mask_decoder.transformer.layers.#.cross_attn_image_to_token",
        "mask_decoder.transformer.layers.#.cross_attn_image_to_token",
    ),
    ("mask_decoder.transformer.final_attn_token_to_image", "mask_decoder.transformer.final_attn_token_to_image"),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    *(
        (f"mask_decoder.{head}.layers.{index}", f"mask_decoder.{head}.{layer}")
        for head in ("output_hypernetworks_mlps.#", "iou_prediction_head")
        for index, layer in enumerate(("proj_in", "layers.0", "proj_out"))
    ),
)
# One tensor, which the stock class holds under two names.
_FOURIER = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_FOURIER_STOCK = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)") + r"((?:\.\w+)*)")


_TO_STOCK = [(_pattern(original), stock) for original, stock in _NAMES]
_TO_ORIGINAL = [(_pattern(stock), original) for original, stock in _NAMES]


def to_stock(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the original's names ("image_encoder...", no prefix) to those of transformers' `SamModel`.

    Raises:
        ReadsegError: names that are not SAM's, all of them listed.
    """
    names = _translated([key for key in state if key != _FOURIER], _TO_STOCK, "the original SAM")
    stock = {names[key]: value for key, value in state.items() if key != _FOURIER}
    if _FOURIER in state:
        stock |= dict.fromkeys(_FOURIER_STOCK, state[_FOURIER])
    return stock


def with_both_names(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict of `SamModel` with the Fourier features under both of their names; files may hold one only.

    `prefix` stands before all names of SAM in `state`.
    """
    names = [prefix + name for name in _FOURIER_STOCK]
    found = [state[name] for name in names if name in state]
    return {**dict.fromkeys(names, found[0]), **state} if found else dict(state)


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of transformers' `SamModel` to the original's; the inverse of `to_stock`.

    Raises:
        ReadsegError: names that are not those of `SamModel`, all of them listed.
    """
    names = _translated([key for key in state if key not in _FOURIER_STOCK], _TO_ORIGINAL, "SamModel")
    return {names.get(key, _FOURIER): value for key, value in state.items()}


def config_of(state: Mapping[str, Tensor]) -> SamConfig:
    """The configuration of a SAM with these weights (under the original's names), read off their shapes.

    Heads of the mask decoder leave no trace in a shape: there are 8, as in every SAM.

    Raises:
        ReadsegError: a weight that tells a size is missing, or its shape is none of SAM's.
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
        half, iou_hidden = shape(_FOURIER)[1], shape("mask_decoder.iou_prediction_head.layers.0.weight")[0]
        attention = shape("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight")[0]
        if len(windows) > 1 or 2 * half != channels or channels % attention:
            raise ValueError
        return SamConfig(
            vision_config={
                "image_size": rows * patch,
                "patch_size": patch,
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
                "hidden_size": channels,
                "image_size": rows * patch,
                "patch_size": patch,
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
                "iou_head_hidden_dim": iou_hidden,
            },
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ReadsegError("the shapes of the image encoder or mask decoder are not those of a SAM.") from error


def _translated(keys: Iterable[str], table: list[tuple[re.Pattern[str], str]], of: str) -> dict[str, str]:
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
        raise ReadsegError(f"not names of {of}: {', '.join(sorted(unknown))}.")
    return names
