"""Loads what this project and others saved: a folder or a hub id becomes a model, or an error that names what is wrong.

Two layouts: ours (`ReadModel.save_pretrained`), and the released one of READ, SESAME, LISA, GSVA and GLaMM. Nothing is
converted on disk; weights stay in their files, memory-mapped, until the model takes them as they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, CLIPVisionConfig, CLIPVisionModel

from readseg.checkpoints import key_mapping, lora
from readseg.checkpoints.files import (
    fetch,
    key_mismatches,
    read_config_json,
    read_weights,
    release_pages,
    reraise_as_readseg_error,
    write_weights,
)
from readseg.checkpoints.key_mapping import TOWER, TOWER_RELEASED
from readseg.core.io import atomic_write, read_json
from readseg.errors import ReadsegError
from readseg.model.config import ReadConfig
from readseg.model.families import FAMILIES, RELEASED, SEG, SYSTEMS, family_of
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import LegacyTokenizer

EMBEDDED = Path(__file__).parents[1] / "weights" / "tiny"  # the model that comes with the package
_UNUSED = "unused"  # a folder beside our weights, for what others' code needs
_LARGEST_ALPHA = 1e6
_SMALL = 4 << 30  # bytes in float32: a model up to this size computes in it on a CPU by default
_NOT_QUANTISED = ("sam", "seg_projection", "lmm.lm_head", "lmm.model.vision_tower", "lmm.model.multi_modal_projector")
# A whole CLIP has a text side too; these are the tower's own parts.
_TOWER_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of, before it is one."""

    config: ReadConfig
    tokenizer: LegacyTokenizer | None  # of released weights; None where `folder` holds one of another kind
    weights: dict[str, Tensor]  # under the names of `ReadModel`, memory-mapped where nothing had to be computed
    folder: Path
    notes: tuple[str, ...] = ()  # what a user should know: how the family was told, weights that are not used
    unused: dict[str, Tensor] = field(default_factory=dict)  # under released names, kept for the way back

    def processor(self) -> ReadProcessor:
        """The tokenizer and the config, as the model needs them around it."""
        with reraise_as_readseg_error(f"{self.folder}: the tokenizer's files"):
            if self.tokenizer is not None:
                return ReadProcessor(self.tokenizer, self.config)
            return ReadProcessor.from_pretrained(self.folder)


def read_checkpoint(
    name: str | Path,
    *,
    family: str | None = None,
    vision_tower: str | Path | None = None,
    system: str | None = None,
    lora_alpha: float | None = None,
) -> Checkpoint:
    """Finds, reads and checks the files of a model (folder or hub id) in either layout. No weight is copied.

    `family`, `vision_tower` (folder or hub id) and `lora_alpha` are for released weights that do not tell them.
    """
    if family is not None and family not in RELEASED:
        raise ReadsegError(f"family must be one of {', '.join(RELEASED)}; got {family!r}.")
    if system is not None and system not in SYSTEMS:
        raise ReadsegError(f"system must be one of {', '.join(SYSTEMS)}; got {system!r}.")
    folder = fetch(name)
    settings = read_config_json(folder)
    kind = settings.get("model_type")
    if kind == ReadConfig.model_type:
        options = {"family": family, "vision_tower": vision_tower, "lora_alpha": lora_alpha}
        if names := [name for name, value in options.items() if value is not None]:
            raise ReadsegError(f"{', '.join(names)}: for released weights only; {folder} is in this package's layout.")
        checkpoint = _read_ours(folder)
    elif kind in ("llava", "llava_llama") and "text_config" not in settings:
        checkpoint = _read_released(folder, settings, family, vision_tower, lora_alpha)
    else:
        raise ReadsegError(
            f"{folder / 'config.json'} is of a model of type {kind!r}, without a mask model: expected weights that "
            f"this package saved, or released ones of {', '.join(RELEASED)}."
        )
    config = checkpoint.config
    if system is not None:
        if config.family not in RELEASED:
            raise ReadsegError(f"system: weights of the family {config.family} were trained without a system prompt.")
        config.conversation = replace(config.conversation, system=SYSTEMS[system])
    processor = checkpoint.processor()
    with reraise_as_readseg_error(folder):
        processor.prefix_ids()  # fails where the tokenizer lacks what conversations need
    return checkpoint


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    bits: int | None = None,
) -> tuple[ReadModel, ReadProcessor]:
    """The model and its processor; `bits`, 8 or 4, quantises the language model, SAM is then kept in float32.

    On a CPU, weights in the type that they are stored in stay memory-mapped and are shared with `checkpoint`.
    """
    if device is not None and device_map is not None:
        raise ReadsegError("device and device_map: give one of them.")
    spread = device_map is not None and torch.cuda.is_available()
    device = device or torch.device("cuda" if spread else "cpu")
    dtype = dtype or default_dtype(checkpoint, device)
    options: dict[str, Any] = {"dtype": dtype}
    if bits is not None:
        options["quantization_config"] = _quantisation(bits, dtype, checkpoint.config)
    if device_map is not None:
        options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    config = copy.deepcopy(checkpoint.config)
    for part in (config.lmm_config, config.lmm_config.vision_config, config.lmm_config.text_config, config.mask_config):
        part.dtype = None  # what a part was saved in must not decide what it is loaded in
    weights = dict(checkpoint.weights)
    if "device_map" not in options:
        for name, weight in checkpoint.weights.items():
            exact = name.endswith(tuple(ReadModel._keep_in_fp32_modules_strict))
            weights[name] = weight.to(torch.float32 if exact else dtype)
            if weights[name] is not weight:  # never two copies of more than one weight in memory
                release_pages(weight)
    try:
        model = ReadModel.from_pretrained(None, config=config, state_dict=weights, **options)
    except ReadsegError as error:
        raise ReadsegError(f"{checkpoint.folder}: {error}") from error
    if bits is not None:
        # From the files once more: what passed through a lower type has lost digits.
        sam = {n.removeprefix("sam."): w.float() for n, w in checkpoint.weights.items() if n.startswith("sam.")}
        model.sam.float().load_state_dict(sam)
    model.config.name_or_path = str(checkpoint.folder)  # where what lies beside the weights is found
    return model, checkpoint.processor()


def default_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU float32 where that takes no more than 4 GiB, else as the language model is stored."""
    if device.type != "cpu":
        return torch.bfloat16
    numbers = sum(weight.numel() for weight in checkpoint.weights.values())
    return torch.float32 if 4 * numbers <= _SMALL else checkpoint.weights["lmm.lm_head.weight"].dtype


def _quantisation(bits: int, dtype: torch.dtype, config: ReadConfig) -> BitsAndBytesConfig:
    if bits not in (4, 8):
        raise ReadsegError(f"bits must be 8 or 4; got {bits}.")
    if find_spec("bitsandbytes") is None:  # transformers reports its absence at length
        raise ReadsegError("8 and 4 bit need bitsandbytes: pip install bitsandbytes")
    text = config.lmm_config.text_config
    if bits == 4 and (text.hidden_size % 64 or text.intermediate_size % 64):
        raise ReadsegError(
            f"4 bit needs layers of sizes that are multiples of 64; this model's are {text.hidden_size} and "
            f"{text.intermediate_size}: choose 8 bit, or none."
        )
    return BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=list(_NOT_QUANTISED),
    )


def save_checkpoint(checkpoint: Checkpoint, out: Path, *, layout: Literal["readseg", "released"] = "readseg") -> None:
    """Writes a checkpoint as a new folder, whole or not at all: "readseg" as safetensors, or "released" as .bin files.

    The released layout has the original's names and no vision tower, for the authors' own code.
    """
    if out.is_symlink() or (out := out.resolve()).exists():
        raise ReadsegError(f"{out} is there already: name a folder that does not exist yet.")
    if layout == "released" and (checkpoint.config.released is None or checkpoint.config.family not in RELEASED):
        raise ReadsegError(f"weights of the family {checkpoint.config.family!r} have no released layout.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadsegError(f"{out.parent} cannot be made: {error.strerror or error}.") from error
    for name, weight in checkpoint.weights.items():
        if not torch.isfinite(weight).all():
            raise ReadsegError(f"{checkpoint.folder}: {name} holds values that are no numbers: nothing is written.")
        release_pages(weight)
    with atomic_write(out, new=True) as folder:
        folder.mkdir()
        if layout == "released":
            weights = {n: w for n, w in checkpoint.weights.items() if not n.startswith(TOWER)}
            mask_model = FAMILIES[checkpoint.config.family].mask_model
            write_weights(key_mapping.to_released(weights, mask_model) | checkpoint.unused, folder, safe=False)
            settings = {
                "config.json": checkpoint.config.released,
                "tokenizer_config.json": key_mapping.NAMES["tokenizer"],
            }
            for name, content in settings.items():
                (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            write_weights(checkpoint.weights, folder, safe=True)
            if checkpoint.unused:
                (folder / _UNUSED).mkdir()
                write_weights(checkpoint.unused, folder / _UNUSED, safe=True)
            checkpoint.config.save_pretrained(folder)
        (checkpoint.tokenizer or checkpoint.processor().tokenizer).save_pretrained(folder)


# -- the two layouts ---------------------------------------------------------------------------------------------------


def _read_ours(folder: Path) -> Checkpoint:
    with reraise_as_readseg_error(folder / "config.json"):
        config = ReadConfig.from_pretrained(folder)
    tokenizer = None if (folder / "tokenizer.json").is_file() else LegacyTokenizer.from_folder(folder)
    weights = key_mapping.with_both_fourier_names(read_weights(folder), "sam.")
    check_weights(weights, config, folder)
    if tokenizer is not None:
        _check_tables(folder, tokenizer, {key: weights[own] for key, own in key_mapping.TABLES.items()})
    unused = read_weights(folder / _UNUSED) if (folder / _UNUSED).is_dir() else {}
    return Checkpoint(config, tokenizer, weights, folder, _note_unused(unused), unused)


def _read_released(
    folder: Path,
    settings: dict[str, Any],
    family_name: str | None,
    vision_tower: str | Path | None,
    lora_alpha: float | None,
) -> Checkpoint:
    tokenizer = LegacyTokenizer.from_folder(folder)
    if SEG not in tokenizer.added:
        raise ReadsegError(f"the tokenizer of {folder} has no {SEG}: expected it in added_tokens.json.")
    state = key_mapping.without_computed(lora.strip_wrapper_prefixes(read_weights(folder)))
    notes = []
    if lora.has_lora(state):
        alpha = lora_alpha_of(folder) if lora_alpha is None else lora_alpha
        state = lora.merge_lora(state, alpha)
        notes.append(f"LoRA weights were merged with alpha {alpha:g}")
    elif lora_alpha is not None:
        raise ReadsegError(f"lora_alpha was given, but {folder} holds no LoRA weights to merge.")
    mask_model = key_mapping.mask_model_of(state)
    if mask_model is None:
        raise ReadsegError(
            f"{folder} holds no weights of SAM: a base model? Then start from it: readseg convert --sam."
        )
    linear = "model.mm_projector.weight" in state
    family, reason = family_of(
        settings, mask_model, tokenizer.added, linear=linear, name=str(folder.absolute()), chosen=family_name
    )
    unused = {key: value for key, value in state.items() if family.unused and key.startswith(family.unused)}
    state = {key: value for key, value in state.items() if key not in unused}
    tower = read_tower(settings, folder, vision_tower, with_weights=not key_mapping.holds_tower(state))
    notes = [f"released weights of the family {family.name} ({reason})", *notes, *_note_unused(unused)]
    if vision_tower is not None:
        settings = settings | {"mm_vision_tower": tower.name, "vision_tower": tower.name}
    tables = {key: state[key] for key in key_mapping.TABLES if key in state}
    _check_tables(folder, tokenizer, tables, settings.get("vocab_size"))
    with reraise_as_readseg_error(folder / "config.json"):
        config = key_mapping.read_config(settings, family, tokenizer, tower.config, state)
    if vision_tower is not None and (tokens := config.num_image_tokens) != family.image_tokens:
        notes.append(f"{tower.name}: {tokens} image tokens, the family's have {family.image_tokens}")
    layers = sum(key.startswith("model.layers.") and key.endswith(".input_layernorm.weight") for key in state)
    if (depth := config.lmm_config.text_config.num_hidden_layers) != layers:
        raise ReadsegError(f"{folder}: config.json says num_hidden_layers {depth}, the weights have {layers} layers.")
    # Checked under released names, since these are what a user sees in the files.
    expected = key_mapping.to_released(empty_weights(config, folder), family.mask_model)
    of_tower = {TOWER_RELEASED + key.removeprefix(TOWER): value for key, value in tower.weights.items()}
    what = "the weights" if key_mapping.holds_tower(state) else f"the weights with the vision tower {tower.name}"
    if problems := key_mismatches(state | of_tower, expected):
        raise ReadsegError(f"{folder}: {what} are not those that its config.json describes; {problems}.")
    weights = key_mapping.to_ours(state, family.mask_model)
    weights |= tower.weights | {own: torch.zeros(()) for own in key_mapping.OWN}
    return Checkpoint(config, tokenizer, weights, folder, tuple(notes), unused)


def lora_alpha_of(folder: Path) -> float:
    """Alpha of a training run: peft writes it beside its weights."""
    path = folder / "adapter_config.json"
    settings = read_json(path) if path.is_file() else {"lora_alpha": lora.DEFAULT_ALPHA}
    if others := [name for name in ("use_rslora", "use_dora", "alpha_pattern") if settings.get(name)]:
        raise ReadsegError(f"{path}: {', '.join(others)} is not supported here: merge these weights with peft.")
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < _LARGEST_ALPHA:
        raise ReadsegError(f"{path}: lora_alpha must be a number above 0; got {alpha!r}.")
    return float(alpha)


def _note_unused(unused: Mapping[str, Tensor]) -> tuple[str, ...]:
    return (f"{len(unused)} weights are not used ({min(unused)}, ...)",) if unused else ()


# -- the CLIP tower of released weights, which they name and do not hold -----------------------------------------------


class Tower(NamedTuple):
    """A vision tower: its weights under the names of `ReadModel`, and the folder or hub id that it goes by."""

    config: CLIPVisionConfig
    weights: dict[str, Tensor]
    name: str


def read_tower(
    settings: Mapping[str, Any], folder: Path, vision_tower: str | Path | None = None, *, with_weights: bool = True
) -> Tower:
    """The tower of a checkpoint, as `vision_tower` says, else as the settings in its config.json do."""
    name = vision_tower or settings.get("mm_vision_tower") or settings.get("vision_tower")
    if not isinstance(name, (str, Path)):
        raise ReadsegError(f"{folder / 'config.json'} names no mm_vision_tower; name one: --vision-tower.")
    # Of a name that is a path on its authors' machine, the last part may lie beside the checkpoint.
    beside = [folder.parent / name, folder.parent / Path(name).name] if vision_tower is None else []
    try:
        tower = fetch(next((path for path in beside if path.is_dir()), name))
        with reraise_as_readseg_error(tower / "config.json"):
            if (kind := read_config_json(tower).get("model_type")) not in ("clip", "clip_vision_model"):
                raise ReadsegError(f"{tower} is a model of type {kind!r} and no CLIP.")
            config = CLIPVisionConfig.from_pretrained(tower)
            with torch.device("meta"):
                CLIPVisionModel(config)
            if config.image_size // config.patch_size < 1:
                raise ReadsegError(f"image_size {config.image_size} holds no patch of {config.patch_size} pixels.")
        state = key_mapping.without_computed(read_weights(tower)) if with_weights else {}
    except ReadsegError as error:
        raise ReadsegError(f"the vision tower {name} cannot be loaded: {error} Name one: --vision-tower.") from error
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    parts = tuple(prefix + part for part in _TOWER_PARTS)
    weights = {TOWER + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(parts)}
    return Tower(config, weights, str(name))


# -- checks ------------------------------------------------------------------------------------------------------------


def empty_weights(config: ReadConfig, folder: Path) -> dict[str, Tensor]:
    """Names and shapes of the weights that a model of this config has; no memory is taken."""
    with reraise_as_readseg_error(folder / "config.json"), torch.device("meta"):
        return ReadModel(config).state_dict()


def check_weights(weights: Mapping[str, Tensor], config: ReadConfig, folder: Path) -> None:
    """Raises ReadsegError, naming all of them, where weights are not those of a model of this config."""
    if problems := key_mismatches(weights, empty_weights(config, folder)):
        raise ReadsegError(f"{folder}: the weights are not those that its config.json describes; {problems}.")


def _check_tables(
    folder: Path, tokenizer: LegacyTokenizer, tables: Mapping[str, Tensor], vocab_size: int | None = None
) -> None:
    """Raises ReadsegError where config.json, the tokenizer and the tables of embeddings disagree about the tokens."""
    for key, table in tables.items():
        rows = len(table) if table.ndim else 0
        for token, index in tokenizer.added.items():
            if index >= rows:
                raise ReadsegError(
                    f"{folder}: {token} has the id {index}, but {key} has only {rows} rows: added_tokens.json is of "
                    "other weights."
                )
        if vocab_size not in (None, rows):
            raise ReadsegError(f"{folder}: config.json says vocab_size {vocab_size}, but {key} has {rows} rows.")
