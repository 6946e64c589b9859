"""A model of a few thousand weights that has learned five answers by heart: all code paths, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from readseg.config import ReadConfig, tiny_config
from readseg.conversation import Turn
from readseg.families import BOS, EOS, IMAGE, PAD, SEG, TINY
from readseg.model import ReadModel
from readseg.processor import ReadProcessor, build_tiny_tokenizer
from readseg.segmenter import Segmenter

ANSWERS = {
    "the cat": "it is the cat [SEG].",
    "something that tells the time": "it is the watch [SEG].",
    "all the birds and the tree": "they are [SEG] and [SEG].",
    "the unicorn": "there is no unicorn.",
    "how many animals are there?": "two.",
}
LONGEST_CONTEXT = 400


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    """Coloured noise, RGB, size (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def small_config(ids: dict[str, int], vocab_size: int, view: str = "stretch") -> ReadConfig:
    """The embedded model's configuration with every width and depth cut down."""
    config = tiny_config(
        vocab_size=vocab_size,
        image_token_id=ids[IMAGE],
        seg_token_id=ids[SEG],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    lmm, sam = config.lmm_config, config.mask_config
    cuts: list[tuple[object, dict[str, object]]] = [
        (
            lmm.vision_config,
            {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 32}
            | {"num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 32},
        ),
        (
            lmm.text_config,
            {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
            | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": LONGEST_CONTEXT},
        ),
        (
            sam.vision_config,
            {"image_size": 32, "patch_size": 8, "hidden_size": 32, "output_channels": 32, "mlp_dim": 32}
            | {"num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [0], "num_pos_feats": 16},
        ),
        (
            sam.prompt_encoder_config,
            {"hidden_size": 32, "image_size": 32, "patch_size": 8, "image_embedding_size": 4},
        ),
        (
            sam.mask_decoder_config,
            {"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"iou_head_hidden_dim": 32},
        ),
    ]
    for part, values in cuts:
        for name, value in values.items():
            setattr(part, name, value)
    lmm.image_seq_length = config.num_image_tokens
    config.view = view
    return config


def build(folder: Path, *, view: str = "stretch") -> Path:
    """Train the small model on `ANSWERS`, whatever the image, and save it."""
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer([*ANSWERS, *ANSWERS.values()], vocab_size=400)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in TINY.added_tokens}
    config = small_config(ids, len(tokenizer), view)
    model, processor = ReadModel(config), ReadProcessor(tokenizer, config)
    rows = [processor.encode([Turn(question, answer)]) for question, answer in ANSWERS.items()]
    longest = max(len(row) for row, _ in rows)
    pad = ids[PAD]
    input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
    pixels = torch.stack([processor.lmm_pixels(picture(seed=seed)) for seed in range(len(rows))])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids, pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load(folder: Path) -> Segmenter:
    """The saved model on the CPU."""
    return Segmenter.from_pretrained(folder, device="cpu")
