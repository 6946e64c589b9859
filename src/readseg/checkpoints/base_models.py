"""Where training starts: a LLaVA that answers in words and a SAM, made one model by new tokens and a fresh projection.

Both base models are read in either of their layouts: LLaVA-1.5 as its authors saved it or as transformers does
(`llava-hf/...`), SAM as `facebook/sam-vit-*` or as the original `sam_vit_*.pth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaConfig, SamConfig, SamModel

from readseg.checkpoints import key_mapping, lora
from readseg.checkpoints.checkpoint import Checkpoint, check_weights, read_tower
from readseg.checkpoints.files import fetch, key_mismatches, read_config_json, read_weights
from readseg.errors import ReadsegError
from readseg.model.config import Projector
from readseg.model.families import FAMILIES, RELEASED, SEG
from readseg.model.tokenizer import LegacyTokenizer

_OPENAI_TOWER = "openai/clip-vit-large-patch14-336"  # LLaVA-1.5's, for weights whose config does not name it
# Beside a model's weights: the mask decoder as it was before READ was trained, as the original SAM has it.
ORIGINAL_SAM_DECODER = "sam_mask_decoder.safetensors"


def start_from(
    llava: str | Path, sam: str | Path, *, family: str = "read", vision_tower: str | Path | None = None, seed: int = 0
) -> Checkpoint:
    """A model of a family before any training: the base models' weights, and what joins them.

    A new token's row, in both tables of embeddings, is the mean of the rows that there were. The projection
    Linear(D, D) - ReLU - Linear(D, C) is drawn as torch draws it, from `seed`. `llava` is a folder or hub id of
    LLaVA-1.5, `sam` of a SAM, or a file `sam_vit_*.pth`; `vision_tower` is for a LLaVA that does not hold its tower.
    """
    if family not in RELEASED:
        raise ReadsegError(f"family must be one of {', '.join(RELEASED)}; got {family!r}.")
    chosen = FAMILIES[family]
    folder = fetch(llava)
    settings = read_config_json(folder)
    if settings.get("model_type") not in ("llava", "llava_llama"):
        raise ReadsegError(f"{folder} is a model of type {settings.get('model_type')!r}: expected a LLaVA-1.5.")
    base = LegacyTokenizer.from_folder(folder)
    if SEG in base.added:
        raise ReadsegError(f"{folder} knows {SEG} already: it is no base model, load it as it is.")
    tokenizer = base.with_added(chosen.added_tokens)
    lmm, weights, tower = _read_llava(folder, settings, vision_tower, base)
    rows, new = len(tokenizer), len(chosen.added_tokens)
    for name in key_mapping.TABLES.values():
        if name not in weights or weights[name].ndim != 2 or len(weights[name]) < rows - new:
            raise ReadsegError(f"{folder}: expected {rows - new} rows or more in {name}, as the tokenizer has tokens.")
        table = weights[name][: rows - new]  # rows that pad it are dropped
        weights[name] = torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype).expand(new, -1)])
    lmm.text_config.vocab_size = lmm.image_token_index = rows
    mask, mask_weights = read_sam(sam)
    weights |= {f"sam.{name}": value for name, value in mask_weights.items()}
    projector: Projector = "linear" if f"{key_mapping.PROJECTOR}weight" in weights else "mlp"
    config = key_mapping.family_config(chosen, lmm, mask, tokenizer, projector)
    config.released = key_mapping.released_settings(config, chosen, tower)
    width, out = lmm.text_config.hidden_size, mask.prompt_encoder_config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
    weights |= {f"seg_projection.{name}": value for name, value in projection.state_dict().items()}
    weights |= {own: torch.zeros(()) for own in key_mapping.OWN}
    check_weights(weights, config, folder)
    return Checkpoint(config, tokenizer, weights, folder)


def read_sam(source: str | Path) -> tuple[SamConfig, dict[str, Tensor]]:
    """A SAM's configuration and weights under the names of `SamModel`, from any source that `start_from` takes."""
    file = Path(source).expanduser()
    path = file if file.is_file() else fetch(source)
    state = read_weights(path)
    if any(name.startswith("image_encoder.") for name in state):
        config, weights = key_mapping.sam_config_of(state), key_mapping.sam_to_stock(state)
    else:
        if path.is_file() or read_config_json(path).get("model_type") != "sam":
            raise ReadsegError(f"{path} is no SAM: expected facebook/sam-vit-* or an original sam_vit_*.pth.")
        config, weights = SamConfig.from_pretrained(path), key_mapping.with_both_fourier_names(state)
    with torch.device("meta"):
        expected = SamModel(config).state_dict()
    if problems := key_mismatches(weights, expected):
        raise ReadsegError(f"{path}: the weights are not those of a SAM; {problems}.")
    return config, weights


def _read_llava(
    folder: Path, settings: Mapping[str, Any], vision_tower: str | Path | None, tokenizer: LegacyTokenizer
) -> tuple[LlavaConfig, dict[str, Tensor], str]:
    """Configuration, weights under our names, and where the tower came from; of either layout."""
    state = key_mapping.without_computed(lora.strip_wrapper_prefixes(read_weights(folder)))
    if "text_config" not in settings:
        if key_mapping.mask_model_of(state) is not None:
            raise ReadsegError(f"{folder} holds a mask model already: it is no base model, load it as it is.")
        tower = read_tower(settings, folder, vision_tower, with_weights=not key_mapping.holds_tower(state))
        weights = key_mapping.to_ours(state, mask_model="visual_model") | tower.weights
        return key_mapping.lmm_config(settings, tower.config, tokenizer), weights, tower.name
    if vision_tower is not None:
        raise ReadsegError(f"{folder} holds its vision tower: leave out --vision-tower.")
    lmm = LlavaConfig.from_pretrained(folder)
    if not isinstance(lmm.vision_config, CLIPVisionConfig) or lmm.text_config.model_type != "llama":
        raise ReadsegError(f"{folder}: expected a LLaVA of a CLIP tower and a LLaMA, as LLaVA-1.5 is.")
    lmm.text_config.pad_token_id = tokenizer.unk_token_id
    lmm.image_seq_length = (lmm.vision_config.image_size // lmm.vision_config.patch_size) ** 2
    return lmm, key_mapping.replace_prefixes(state, key_mapping.NAMES["llava_hf"]), _OPENAI_TOWER
