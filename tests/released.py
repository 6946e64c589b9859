"""Tiny random checkpoints in the released layout: its names, shapes and files, written down by hand.

Nothing of the package's own code makes these names; `refused` and `processor_of` alone load what was written. The
language model is 16 channels wide, the vision tower 24 (it sees 4 x 4 patches of a 32 px image), SAM's image encoder 20
and its decoder 32 (4 x 4 embeddings of a 64 px image), so that no two parts can be mistaken for each other.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import sentencepiece
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

from readseg.checkpoints.checkpoint import build, read_checkpoint
from readseg.errors import ReadsegError
from readseg.model.processing import ReadProcessor

Form = Literal["bin-sharded", "bin", "safetensors"]
FORMS: tuple[Form, ...] = ("bin-sharded", "bin", "safetensors")

# Added tokens in the order of their ids, behind the tokenizer's own.
ADDED = {
    "read": ("[SEG]", "<im_start>", "<im_end>"),
    "sesame": ("[SEG]", "<im_start>", "<im_end>"),
    "lisa": ("<im_patch>", "<im_start>", "<im_end>", "[SEG]"),
    "gsva": ("[SEG]", "[REJ]", "<im_start>", "<im_end>"),
    "glamm": ("<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>"),
}
ARCHITECTURES = {
    "read": "READForCausalLM",
    "sesame": "SESAMEForCausalLM",
    "lisa": "LISAForCausalLM",
    "gsva": "LisaGSVAForCausalLM",
    "glamm": "GLaMMForCausalLM",
}
LINEAR = ("lisa", "gsva")
TOWER = "model.vision_tower.vision_tower."
SAM = "model.visual_model."
ALPHA, RANK = 16.0, 2  # alpha / r is a power of two: the merged weights are exact but for one rounding
SEEN, INNER_SEEN, LAYERS_SEEN, PATCHES = 24, 20, 3, 16  # the vision tower
MASKED, CHANNELS, SIDE, PATCH = 20, 32, 4, 16  # SAM


@dataclass(frozen=True)
class Size:
    """The language model: width, layers, inner width, and rows of the tables beyond the tokenizer's."""

    width: int = 16
    layers: int = 2
    inner: int = 24
    spare: int = 0


SMALL = Size()

_WORDS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: What is the red cup in this image? Please output segmentation "
    "mask. ASSISTANT: Sure, the segmentation result is. It is the cup, there is no saw but there is a dog. provides an "
    "overview of the picture."
)


@cache
def tokenizer_model() -> bytes:
    """A SentencePiece model made as LLaMA's was: BPE, bytes for what it does not know, spaces kept as they are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_WORDS] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def pieces() -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(tokenizer_model())
    return processor


def added_ids(family: str) -> dict[str, int]:
    return {token: pieces().vocab_size() + place for place, token in enumerate(ADDED[family])}


def settings_of(family: str, size: Size = SMALL) -> dict[str, Any]:
    """config.json, as the real ones are: GLaMM's has words of its own, and like LISA's it names no projector."""
    settings: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": True,
        "hidden_act": "silu",
        "hidden_size": size.width,
        "image_aspect_ratio": "square",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": size.inner,
        "max_position_embeddings": 1024,
        "mm_hidden_size": SEEN,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": True,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "clip",
        "model_type": "llava",
        "num_attention_heads": 2,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": 2,
        "out_dim": CHANNELS,
        "pad_token_id": 0,
        "pretrain_mm_mlp_adapter": None,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "train_mask_decoder": True,
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
        "vision_tower": "clip",
        "vocab_size": _rows(family, size),
    }
    if family == "glamm":
        for name in ("mm_use_im_start_end", "image_grid_pinpoints", "image_aspect_ratio", "freeze_mm_mlp_adapter"):
            del settings[name]
        return settings | {
            "bbox_token_idx": added_ids(family)["<bbox>"],
            "image_aspect": "square",
            "mm_use_image_start_end": True,
            "mm_vision_module": "clip",
            "num_level_reg_features": 4,
            "select_feature_type": "patch",
            "vision_module": "clip",
            "with_region": True,
        }
    if family == "gsva":
        settings["mm_projector_type"] = "linear"
    elif family != "lisa":
        settings["mm_projector_type"] = "mlp2x_gelu"
    return settings


def language_shapes(family: str, size: Size = SMALL) -> dict[str, tuple[int, ...]]:
    """The language model, the projector and the projection of [SEG]."""
    width, rows = size.width, _rows(family, size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for layer in range(size.layers):
        start = f"model.layers.{layer}"
        shapes |= {f"{start}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{start}.mlp.{name}_proj.weight": (size.inner, width) for name in ("gate", "up")}
        shapes |= {f"{start}.mlp.down_proj.weight": (width, size.inner)}
        shapes |= {f"{start}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}
    shapes |= (
        _linear("model.mm_projector", SEEN, width)
        if family in LINEAR
        else _linear("model.mm_projector.0", SEEN, width) | _linear("model.mm_projector.2", width, width)
    )
    return (
        shapes
        | _linear("model.text_hidden_fcs.0.0", width, width)
        | _linear("model.text_hidden_fcs.0.2", width, CHANNELS)
    )


def sam_shapes() -> dict[str, tuple[int, ...]]:
    """SAM under the names of its authors: one layer with windows of 3, one that sees all 4 x 4 patches."""
    width, inner, heads, channels = MASKED, 28, 2, CHANNELS
    encoder, prompts, decoder = "image_encoder", "prompt_encoder", "mask_decoder"
    shapes: dict[str, tuple[int, ...]] = {
        f"{encoder}.pos_embed": (1, SIDE, SIDE, width),
        f"{encoder}.patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        f"{encoder}.patch_embed.proj.bias": (width,),
    }
    for layer, side in enumerate((3, SIDE)):
        block = f"{encoder}.blocks.{layer}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (2 * side - 1, width // heads) for axis in "hw"}
        shapes |= _linear(f"{block}.mlp.lin1", width, inner) | _linear(f"{block}.mlp.lin2", inner, width)
    shapes |= {
        f"{encoder}.neck.0.weight": (channels, width, 1, 1),
        f"{encoder}.neck.2.weight": (channels, channels, 3, 3),
    }
    shapes |= _norm(f"{encoder}.neck.1", channels) | _norm(f"{encoder}.neck.3", channels)
    shapes |= {f"{prompts}.pe_layer.positional_encoding_gaussian_matrix": (2, channels // 2)}
    shapes |= {f"{prompts}.point_embeddings.{kind}.weight": (1, channels) for kind in range(4)}
    shapes |= {f"{prompts}.{name}_embed.weight": (1, channels) for name in ("no_mask", "not_a_point")}
    for index, (seen, made, side) in {0: (1, 2, 2), 3: (2, 8, 2), 6: (8, channels, 1)}.items():
        name = f"{prompts}.mask_downscaling.{index}"
        shapes |= {f"{name}.weight": (made, seen, side, side), f"{name}.bias": (made,)}
    shapes |= _norm(f"{prompts}.mask_downscaling.1", 2) | _norm(f"{prompts}.mask_downscaling.4", 8)
    shapes |= {f"{decoder}.iou_token.weight": (1, channels), f"{decoder}.mask_tokens.weight": (4, channels)}
    shapes |= _attention(f"{decoder}.transformer.final_attn_token_to_image", channels // 2)
    shapes |= _norm(f"{decoder}.transformer.norm_final_attn", channels)
    for layer in range(2):
        block = f"{decoder}.transformer.layers.{layer}"
        shapes |= _attention(f"{block}.self_attn", channels)
        shapes |= _attention(f"{block}.cross_attn_token_to_image", channels // 2)
        shapes |= _attention(f"{block}.cross_attn_image_to_token", channels // 2)
        shapes |= _linear(f"{block}.mlp.lin1", channels, 40) | _linear(f"{block}.mlp.lin2", 40, channels)
        for number in range(1, 5):
            shapes |= _norm(f"{block}.norm{number}", channels)
    for index, (seen, made) in {0: (channels, channels // 4), 3: (channels // 4, channels // 8)}.items():
        name = f"{decoder}.output_upscaling.{index}"
        shapes |= {f"{name}.weight": (seen, made, 2, 2), f"{name}.bias": (made,)}
    shapes |= _norm(f"{decoder}.output_upscaling.1", channels // 4)
    heads_of = {f"output_hypernetworks_mlps.{token}": (channels, channels // 8) for token in range(4)}
    for head, (hidden, made) in (heads_of | {"iou_prediction_head": (36, 4)}).items():
        for index, (seen, out) in enumerate(((channels, hidden), (hidden, hidden), (hidden, made))):
            shapes |= _linear(f"{decoder}.{head}.layers.{index}", seen, out)
    return shapes


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """CLIP's vision tower, under the names that its own files have."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (SEEN,),
        "vision_model.embeddings.patch_embedding.weight": (SEEN, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (PATCHES + 1, SEEN),
    }
    for layer in range(LAYERS_SEEN):
        block = f"vision_model.encoder.layers.{layer}"
        for name in ("q", "k", "v", "out"):
            shapes |= _linear(f"{block}.self_attn.{name}_proj", SEEN, SEEN)
        shapes |= _linear(f"{block}.mlp.fc1", SEEN, INNER_SEEN) | _linear(f"{block}.mlp.fc2", INNER_SEEN, SEEN)
        shapes |= _norm(f"{block}.layer_norm1", SEEN) | _norm(f"{block}.layer_norm2", SEEN)
    return shapes | _norm("vision_model.pre_layrnorm", SEEN) | _norm("vision_model.post_layernorm", SEEN)


def weights_of(family: str, size: Size = SMALL) -> dict[str, Tensor]:
    """Weights of a merged checkpoint under released names, without the tower; the same at every call."""
    return dict(_weights(family, size))


@cache
def _weights(family: str, size: Size) -> Mapping[str, Tensor]:
    mask_model = "grounding_encoder" if family == "glamm" else "visual_model"
    shapes = language_shapes(family, size) | {f"model.{mask_model}.{name}": s for name, s in sam_shapes().items()}
    if family == "glamm":
        shapes |= _linear("model.region_encoder.mlvl_fuse.fc", 8, 8) | {
            "model.region_encoder.pconvs.0.weight": (4, 4, 3, 3)
        }
    return drawn(shapes, seed=1 + list(ADDED).index(family))


@cache
def tower_weights(seed: int = 0) -> Mapping[str, Tensor]:
    return drawn(tower_shapes(), seed=100 + seed)


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """bfloat16 weights of a size that lets no part vanish."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(shape, generator=generator) * (1.0 if "gaussian" in name else 0.3)
            + (1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0)
        ).bfloat16()
        for name, shape in shapes.items()
    }


def with_lora(state: Mapping[str, Tensor], alpha: float = ALPHA) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of a training run, as peft names it, and what it is when merged.

    LoRA is on q_proj and v_proj, the tables of tokens were trained whole.
    """
    generator = torch.Generator().manual_seed(7)
    raw: dict[str, Tensor] = {}
    merged = dict(state)
    for name, weight in state.items():
        module, _, last = name.rpartition(".")
        module = f"base_model.model.{module}"
        if ".layers." in name and name.startswith("model.layers.") and module.endswith(("q_proj", "v_proj")):
            a = torch.randn(RANK, weight.shape[1], generator=generator).bfloat16()
            b = torch.randn(weight.shape[0], RANK, generator=generator).bfloat16()
            raw |= {f"{module}.base_layer.weight": weight}
            raw |= {f"{module}.lora_A.default.weight": a, f"{module}.lora_B.default.weight": b}
            merged[name] = (weight.double() + alpha / RANK * (b.double() @ a.double())).bfloat16()
        elif name in ("lm_head.weight", "model.embed_tokens.weight"):
            raw[f"{module}.original_module.{last}"] = torch.zeros_like(weight)
            raw[f"{module}.modules_to_save.default.{last}"] = weight
        else:
            raw[f"{module}.{last}"] = weight
    return raw, merged


def write_state(folder: Path, state: Mapping[str, Tensor], form: Form = "bin", *, wrapped: bool = False) -> None:
    """Weights in one of the forms that are found; `wrapped` as DeepSpeed does it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("pytorch_model*"), *folder.glob("model*")]:
        old.unlink()
    tensors = {name: value.clone() for name, value in state.items()}
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "bin":
        torch.save({"module": tensors, "dp_world_size": 8} if wrapped else tensors, folder / "pytorch_model.bin")
    else:
        limit = int(0.4 * sum(value.nbytes for value in tensors.values()))
        shards = split_torch_state_dict_into_shards(
            tensors, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=limit
        )
        for file, held in shards.filename_to_tensors.items():
            torch.save({name: tensors[name] for name in held}, folder / file)
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(folder / "pytorch_model.bin.index.json", index)


def write_tower(folder: Path, *, seed: int = 0, whole: bool = False, **changes: Any) -> dict[str, Tensor]:
    """A CLIP tower in its own folder, or as part of a `whole` CLIP; returns the tower's own weights."""
    vision = {
        "hidden_size": SEEN,
        "image_size": 32,
        "intermediate_size": INNER_SEEN,
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS_SEEN,
        "patch_size": 8,
        "projection_dim": 12,
    } | changes
    tower = dict(tower_weights(seed))
    held = tower | {"vision_model.embeddings.position_ids": torch.arange(PATCHES + 1)[None]}
    config: dict[str, Any] = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **vision}
    if whole:
        text = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        config = {"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": vision, "text_config": text}
        shapes = {
            "logit_scale": (),
            "text_model.embeddings.token_embedding.weight": (9, 8),
            "text_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
            "text_model.final_layer_norm.weight": (8,),
            "text_projection.weight": (12, 8),
            "visual_projection.weight": (12, SEEN),
        }
        held |= drawn(shapes, seed=5)
    write_state(folder, held, "bin")
    write_json(folder / "config.json", config)
    return tower


def write_released(
    folder: Path,
    family: str,
    *,
    form: Form = "bin-sharded",
    unmerged: bool = False,
    with_tower: bool = False,
    wrapped: bool = False,
    prefix: str = "",
    size: Size = SMALL,
    change: Callable[[dict[str, Tensor]], Any] | None = None,
) -> dict[str, Tensor]:
    """A folder as the families' authors release theirs, and its CLIP tower in the folder "clip" beside it.

    `unmerged` has the LoRA weights of a training run; with `with_tower` the checkpoint has a tower of its own, other
    than that in "clip"; `wrapped` is as DeepSpeed wraps a state dict ("bin" only); `prefix` is put before every name;
    `change` is done to the state dict before it is written. Returns the merged weights, as they should be found.
    """
    state = weights_of(family, size)
    if with_tower:
        state |= {TOWER + name: value for name, value in tower_weights(1).items()}
    raw, merged = with_lora(state) if unmerged else (dict(state), state)
    # Some versions of the libraries saved what they compute.
    start = "base_model.model.model.layers" if unmerged else "model.layers"
    raw |= {f"{start}.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(size.layers)}
    if change is not None:
        raw = {name: value.clone() for name, value in raw.items()}
        change(raw)
    write_state(folder, {prefix + name: value for name, value in raw.items()}, form, wrapped=wrapped)
    write_json(folder / "config.json", settings_of(family, size))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    write_json(folder / "added_tokens.json", added_ids(family))
    shutil.rmtree(folder.parent / "clip", ignore_errors=True)
    write_tower(folder.parent / "clip")
    return merged


@cache
def processor_of(family: str) -> ReadProcessor:
    """The processor of a family's weights, shared by all tests."""
    with TemporaryDirectory() as folder:
        write_released(Path(folder) / "weights", family, form="safetensors")
        return read_checkpoint(Path(folder) / "weights").processor()


def llava_state() -> dict[str, Tensor]:
    """LLaVA's share of a released checkpoint: without SAM, the projection and the rows of added tokens."""
    rows = pieces().vocab_size()
    state = {n: v for n, v in weights_of("read").items() if not n.startswith((SAM, "model.text_hidden_fcs."))}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:rows].clone()
    return state


def sam_state() -> dict[str, Tensor]:
    """SAM's share of a released checkpoint, under the names of its authors."""
    return {name.removeprefix(SAM): value for name, value in weights_of("read").items() if name.startswith(SAM)}


def write_llava(folder: Path) -> Path:
    """A LLaVA as its authors save it, and its CLIP tower in the folder "clip" beside it."""
    write_state(folder, llava_state(), "bin-sharded")
    settings = settings_of("read") | {"architectures": ["LlavaLlamaForCausalLM"], "vocab_size": pieces().vocab_size()}
    write_json(folder / "config.json", settings)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    write_tower(folder.parent / "clip")
    return folder


def write_sam(place: Path) -> Path:
    """A SAM as its authors save it, one file."""
    torch.save(sam_state(), place)
    return place


def change_settings(folder: Path, file: str = "config.json", /, **changes: Any) -> None:
    """Changes settings in a file; a value of `...` removes one."""
    place = folder / file
    settings = json.loads(place.read_text()) | changes
    write_json(place, {name: value for name, value in settings.items() if value is not ...})


def change_weights(place: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Changes a file of safetensors."""
    state = load_file(place)
    change(state)
    save_file(state, place, metadata={"format": "pt"})


def write_json(place: Path, content: Any) -> None:
    place.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files and folders below one, to see whether anything was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def refused(folder: Path, pattern: str, watched: Path | None = None, **options: Any) -> str:
    """The message of the one-line error that loading ends with; nothing was written."""
    watched = watched or folder.parent
    before = listing(watched)
    with pytest.raises(ReadsegError, match=pattern) as caught:
        build(read_checkpoint(folder, **options))
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert "None:" not in message, message  # a file or folder that is not known by its name
    assert listing(watched) == before
    return message


class RunsCode:
    """Unpickled in the ordinary way it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def _rows(family: str, size: Size) -> int:
    return pieces().vocab_size() + len(ADDED[family]) + size.spare


def _linear(name: str, seen: int, made: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (made, seen), f"{name}.bias": (made,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in "qkv":
        shapes |= _linear(f"{name}.{part}_proj", CHANNELS, inner)
    return shapes | _linear(f"{name}.out_proj", inner, CHANNELS)


# As the public script that made transformers' SAM from the authors' files replaces parts of names, in this order.
_SAM_PARTS = {
    "iou_prediction_head.layers.0": "iou_prediction_head.proj_in",
    "iou_prediction_head.layers.1": "iou_prediction_head.layers.0",
    "iou_prediction_head.layers.2": "iou_prediction_head.proj_out",
    "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
    "point_embeddings": "point_embed",
    "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    "image_encoder": "vision_encoder",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    ".norm": ".layer_norm",
    "blocks": "layers",
}
_HYPER = {"layers.0": "proj_in", "layers.1": "layers.0", "layers.2": "proj_out"}
_PARTS = {
    "model.mm_projector.0.": "lmm.model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "lmm.model.multi_modal_projector.linear_2.",
    "model.mm_projector.": "lmm.model.multi_modal_projector.",
    "model.text_hidden_fcs.0.": "seg_projection.",
    f"{TOWER}vision_model.": "lmm.model.vision_tower.",
    "model.": "lmm.model.language_model.",
    "lm_head.": "lmm.lm_head.",
}


def stock_sam_name(name: str) -> str:
    """What a weight of SAM is called in transformers."""
    if "output_hypernetworks_mlps" in name:
        head, _, rest = name.partition(".layers.")
        index, _, last = rest.partition(".")
        return f"{head}.{_HYPER[f'layers.{index}']}.{last}"
    for part, stock in _SAM_PARTS.items():
        name = name.replace(part, stock)
    return name


def our_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under the names of `ReadModel`; what has no place there is left out."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("model.visual_model.", "model.grounding_encoder.")):
            stock = stock_sam_name(name.split(".", 2)[2])
            ours[f"sam.{stock}"] = value
            if stock.startswith("prompt_encoder.shared_embedding."):
                ours[f"sam.shared_image_embedding.{stock.rpartition('.')[2]}"] = value
        elif "region_encoder" not in name:
            part = next(part for part in _PARTS if name.startswith(part))
            ours[_PARTS[part] + name.removeprefix(part)] = value
    return ours
