"""A whole model of a few channels, with weights that make every part of it matter, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerFast, SamConfig

from readseg.core.sasp import PointConfig
from readseg.model.config import ReadConfig
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import build_tiny_tokenizer

TEXTS = ("where is the red cup?", "it is the red cup [SEG].", "there is no saw, but there is a cup [SEG].")


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    return build_tiny_tokenizer(TEXTS, vocab_size=300)


def small_config(
    tokenizer: PreTrainedTokenizerFast | None = None, *, width: int = 16, context: int = 256, **changes: Any
) -> ReadConfig:
    """16 image tokens of a 32 px image; 4 x 4 embeddings of a 32 px image; `width` channels throughout."""
    tokenizer = tokenizer or small_tokenizer()
    image, seg = tokenizer.convert_tokens_to_ids(["<image>", "[SEG]"])
    layers = {"hidden_size": width, "num_attention_heads": 2}
    vision = CLIPVisionConfig(
        **layers, image_size=32, patch_size=8, intermediate_size=width, num_hidden_layers=2, projection_dim=width
    )
    text = LlamaConfig(
        **layers,
        vocab_size=len(tokenizer),
        intermediate_size=3 * width // 2,
        num_hidden_layers=2,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    mask = SamConfig(
        vision_config={
            **layers,
            "image_size": 32,
            "patch_size": 8,
            "output_channels": width,
            "num_hidden_layers": 1,
            "mlp_dim": width,
            "global_attn_indexes": [0],
            "window_size": 0,
            "num_pos_feats": width // 2,
            "scale": 1.0,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": 32, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={**layers, "mlp_dim": width, "iou_head_hidden_dim": width},
    )
    lmm = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    settings: dict[str, Any] = {
        "lmm_config": lmm,
        "mask_config": mask,
        "points": PointConfig(num_points=5, downsample=1, alignment="exact"),
        "family": "tiny",
        "view": "stretch",
        "seg_token_id": seg,
    }
    return ReadConfig(**(settings | changes))


def small_model(**changes: Any) -> ReadModel:
    """Weights of a size that lets no part vanish; the same at every call."""
    model = ReadModel(small_config(**changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "positional_embedding" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            elif "positional_embedding" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def small_processor(**changes: Any) -> ReadProcessor:
    return ReadProcessor(small_tokenizer(), small_config(**changes))


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    """Coloured noise, RGB, size (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)
