"""Loads what this project and others saved: a folder or a hub id becomes a model, or an error that names what is wrong.

Two layouts: ours (`ReadModel.save_pretrained`), and the released one of READ, SESAME, LISA, GSVA and GLaMM. Nothing is
converted on disk; weights stay in their files, memory-mapped, until the model takes them as they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from readseg.checkpoints import key_mapping, lora, sam_keys
from readseg.checkpoints.config_json import blaming, read_json, read_settings
from readseg.checkpoints.files import differences, fetch, let_go, read_weights, write_weights
from readseg.checkpoints.key_mapping import TOWER_RELEASED
from readseg.checkpoints.vision_tower import read_tower
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.model.config import ReadConfig
from readseg.model.families import FAMILIES, RELEASED, SEG, SYSTEMS, family_of
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.tokenizer import MODEL_FILE, LegacyTokenizer

EMBEDDED = Path(__file__).parents[1] / "weights" / "tiny"
"""The folder of the model that comes with the package."""
_UNUSED = "unused"  # a folder beside our weights, for what others' code needs
_LARGEST_ALPHA = 1e6
_SMALL = 4 << 30  # bytes in float32: a model up to this size computes in it on a CPU by default


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of, before it is one.

    config: the model's.
    tokenizer: of the released weights; None where `folder` holds one of another kind.
    weights: under the names of `ReadModel`, memory-mapped where nothing had to be computed.
    folder: where it was read from.
    notes: what a user should know: how the family was told, weights that are not used.
    unused: weights that are not used, under released names: they are kept for the way back.
    """

    config: ReadConfig
    tokenizer: LegacyTokenizer | None
    weights: dict[str, Tensor]
    folder: Path
    notes: tuple[str, ...] = ()
    unused: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the language model's weights are stored in."""
        return self.weights["lmm.lm_head.weight"].dtype

    def processor(self) -> ReadProcessor:
        """The tokenizer and the config, as the model needs them around it."""
        if self.tokenizer is not None:
            return ReadProcessor(self.tokenizer, self.config)
        try:
            return ReadProcessor.from_pretrained(self.folder)
        except ReadsegError:
            raise
        except Exception as error:  # of the libraries that read it: they share no base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ReadsegError(f"{self.folder}: the tokenizer's files are damaged: {reason}") from error


def read_checkpoint(
    name: str | Path,
    *,
    family: str | None = None,
    vision_tower: str | Path | None = None,
    system: str | None = None,
    lora_alpha: float | None = None,
) -> Checkpoint:
    """Finds, reads and checks the files of a model in either layout. No weight is copied, none of them is run.

    Args:
        name: a folder, or a hub id "owner/model" (downloaded once).
        family: of released weights, where config.json does not tell it: one of `families.RELEASED`.
        vision_tower: folder or hub id of the CLIP tower; by default where config.json says, first beside the folder.
        system: the system prompt, "llava_v1" (training, the default) or "vicuna_v1" (some released demos).
        lora_alpha: alpha of LoRA weights that are not merged yet; by default what adapter_config.json beside them
            says, else 16.

    Raises:
        ReadsegError: names the file, key or argument: no such model, a file that is missing or damaged, weights that
            are missing, unexpected or of a wrong shape, a tokenizer without [SEG] or of other embeddings.
    """
    if family is not None and family not in RELEASED:
        raise ReadsegError(f"family must be one of {', '.join(RELEASED)}; got {family!r}.")
    if system is not None and system not in SYSTEMS:
        raise ReadsegError(f"system must be one of {', '.join(SYSTEMS)}; got {system!r}.")
    folder = fetch(name)
    settings = read_settings(folder)
    kind = settings.get("model_type")
    if kind == ReadConfig.model_type:
        given = {"family": family, "vision_tower": vision_tower, "lora_alpha": lora_alpha}
        if names := [name for name, value in given.items() if value is not None]:
            raise ReadsegError(f"{', '.join(names)}: for released weights only; {folder} is in this package's layout.")
        return _complete(_ours(folder, system))
    if kind not in ("llava", "llava_llama") or "text_config" in settings:
        raise ReadsegError(
            f"{folder / 'config.json'} is of a model of type {kind!r}, without a mask model: expected weights that "
            f"this package saved, or released ones of {', '.join(RELEASED)}."
        )
    return _complete(_released(folder, settings, family, vision_tower, system, lora_alpha))


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    bits: int | None = None,
) -> tuple[ReadModel, ReadProcessor]:
    """The model and its processor. On a CPU, weights in the type that they are stored in stay memory-mapped.

    Those weights are shared with `checkpoint`: training the model changes it too (and never the files).

    Args:
        checkpoint: what `read_checkpoint` gave.
        dtype: of the weights; by default bfloat16 on a GPU, and on a CPU float32 for models of up to a billion weights,
            the stored type for larger ones.
        device: where to; by default the CPU.
        device_map: spreads the layers of the language model over devices, as accelerate does: "auto", or places by
            name; replaces `device`.
        bits: 8 or 4 for a quantised language model (needs bitsandbytes); SAM is kept in float32, the rest in `dtype`.

    Raises:
        ReadsegError: an option that does not exist, a library that is missing, or weights that are no numbers.
    """
    if device is not None and device_map is not None:
        raise ReadsegError("device and device_map: give one of them.")
    spread = device_map is not None and torch.cuda.is_available()
    device = device or torch.device("cuda" if spread else "cpu")
    dtype = dtype or default_dtype(checkpoint, device)
    if not dtype.is_floating_point:
        raise ReadsegError(f"dtype must be float32, bfloat16 or float16; got {dtype}.")
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
    on_cpu = "device_map" not in options
    weights = {n: _converted(n, w, dtype) if on_cpu else w for n, w in checkpoint.weights.items()}
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


def _converted(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type, and the pages of its file given back: never two copies of more than one weight in memory."""
    if name.endswith(tuple(ReadModel._keep_in_fp32_modules_strict)):
        dtype = torch.float32
    converted = weight.to(dtype)
    if converted is not weight:
        let_go(weight)
    return converted


def default_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU float32 where that takes no more than 4 GiB, else the stored type."""
    if device.type != "cpu":
        return torch.bfloat16
    numbers = sum(weight.numel() for weight in checkpoint.weights.values())
    return torch.float32 if 4 * numbers <= _SMALL else checkpoint.dtype


def save_checkpoint(checkpoint: Checkpoint, out: Path, *, layout: str = "readseg") -> None:
    """Writes a checkpoint as a folder, whole or not at all; the tensors are those that were read.

    Args:
        checkpoint: from `read_checkpoint`, or a start from base models.
        out: a folder that does not exist yet.
        layout: "readseg" (safetensors, with the vision tower) or "released" (the original's names in sharded .bin
            files, without the tower, for the authors' own code).

    Raises:
        ReadsegError: `out` exists, or the weights have no released layout.
    """
    if layout not in ("readseg", "released"):
        raise ReadsegError(f'layout must be "readseg" or "released"; got {layout!r}.')
    if out.is_symlink() or (out := out.resolve()).exists():
        raise ReadsegError(f"{out} is there already: name a folder that does not exist yet.")
    if layout == "released" and (checkpoint.config.released is None or checkpoint.config.family not in RELEASED):
        raise ReadsegError(f"weights of the family {checkpoint.config.family!r} have no released layout.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadsegError(f"{out.parent} cannot be made: {error.strerror or error}.") from error
    for name, weight in checkpoint.weights.items():
        if weight.layout == torch.strided:
            if not torch.isfinite(weight).all():
                raise ReadsegError(f"{checkpoint.folder}: {name} holds values that are no numbers: nothing is written.")
            let_go(weight)
    with atomic_write(out, new=True) as place:
        place.mkdir()
        if layout == "released":
            weights = {n: w for n, w in checkpoint.weights.items() if not n.startswith(key_mapping.TOWER)}
            mask_model = FAMILIES[checkpoint.config.family].mask_model
            write_weights(key_mapping.to_released(weights, mask_model) | checkpoint.unused, place, safe=False)
            for name, content in (
                ("config.json", checkpoint.config.released),
                ("tokenizer_config.json", key_mapping.TOKENIZER_SETTINGS),
            ):
                (place / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            write_weights(checkpoint.weights, place, safe=True)
            if checkpoint.unused:
                (place / _UNUSED).mkdir()
                write_weights(checkpoint.unused, place / _UNUSED, safe=True)
            checkpoint.config.save_pretrained(place)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(place)
        else:
            checkpoint.processor().tokenizer.save_pretrained(place)


# -- the two layouts ---------------------------------------------------------------------------------------------------


def _ours(folder: Path, system: str | None) -> Checkpoint:
    with blaming(folder / "config.json"):
        config = ReadConfig.from_pretrained(folder)
    legacy = not (folder / "tokenizer.json").is_file()
    if legacy and not (folder / MODEL_FILE).is_file():
        raise ReadsegError(f"{folder} holds no tokenizer: expected tokenizer.json or {MODEL_FILE} in it.")
    tokenizer = LegacyTokenizer.from_folder(folder) if legacy else None
    weights = sam_keys.with_both_names(read_weights(folder), "sam.")
    check_names(weights, config, folder)
    if tokenizer is not None:
        _check_rows(folder, tokenizer, {key: weights[own] for key, own in key_mapping.TABLES.items()})
    unused = read_weights(folder / _UNUSED) if (folder / _UNUSED).is_dir() else {}
    return Checkpoint(_worded(config, system), tokenizer, weights, folder, _told(unused), unused)


def _released(
    folder: Path,
    settings: dict[str, Any],
    family_name: str | None,
    vision_tower: str | Path | None,
    system: str | None,
    lora_alpha: float | None,
) -> Checkpoint:
    tokenizer = LegacyTokenizer.from_folder(folder)
    if SEG not in tokenizer.added:
        raise ReadsegError(f"the tokenizer of {folder} has no {SEG}: expected it in added_tokens.json.")
    state = key_mapping.without_computed(lora.unwrapped(read_weights(folder)))
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
    family, how = family_of(
        settings, mask_model, tokenizer.added, linear=linear, name=str(folder.absolute()), chosen=family_name
    )
    unused = {key: value for key, value in state.items() if family.unused and key.startswith(family.unused)}
    state = {key: value for key, value in state.items() if key not in unused}
    tower = read_tower(settings, folder, vision_tower, with_weights=not key_mapping.holds_tower(state))
    notes = [f"released weights of the family {family.name} ({how})", *notes, *_told(unused)]
    if vision_tower is not None:
        settings = settings | {"mm_vision_tower": tower.name, "vision_tower": tower.name}
        if tower.image_tokens != family.image_tokens:
            notes.append(f"{tower.name}: {tower.image_tokens} image tokens, the family's have {family.image_tokens}")
    _check_tokens(folder, settings, tokenizer, state)
    with blaming(folder / "config.json"):
        config = key_mapping.read_config(settings, family, tokenizer, tower.config, state)
    held = sum(key.startswith("model.layers.") and key.endswith(".input_layernorm.weight") for key in state)
    if (said := config.lmm_config.text_config.num_hidden_layers) != held:
        raise ReadsegError(f"{folder}: config.json says num_hidden_layers {said}, the weights have {held} layers.")
    empty = key_mapping.to_released(_empty_model(config, folder), family.mask_model)
    outside = {} if key_mapping.holds_tower(state) else {k: v for k, v in empty.items() if k.startswith(TOWER_RELEASED)}
    _check(state, {key: value for key, value in empty.items() if key not in outside}, folder)
    if outside:
        found = {TOWER_RELEASED + key.removeprefix(key_mapping.TOWER): value for key, value in tower.weights.items()}
        _check(found, outside, folder, f"the weights of the vision tower {tower.name}")
    weights, _ = key_mapping.to_ours(state, family.mask_model)
    weights |= tower.weights | {own: torch.zeros(()) for own in key_mapping.OWN}
    return Checkpoint(_worded(config, system), tokenizer, weights, folder, tuple(notes), unused)


def _told(unused: Mapping[str, Tensor]) -> tuple[str, ...]:
    return (f"{len(unused)} weights are not used ({min(unused)}, ...)",) if unused else ()


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    """Raises ReadsegError where a tokenizer lacks what conversations need."""
    try:
        checkpoint.processor().prefix_ids()
    except ReadsegError as error:
        raise ReadsegError(f"{checkpoint.folder}: {error}") from error
    return checkpoint


def _worded(config: ReadConfig, system: str | None) -> ReadConfig:
    if system is not None:
        if config.family not in RELEASED:
            raise ReadsegError(f"system: weights of the family {config.family} were trained without a system prompt.")
        config.conversation = replace(config.conversation, system=SYSTEMS[system])
    return config


def lora_alpha_of(folder: Path) -> float:
    """Alpha of a training run: peft writes it beside its weights.

    Raises:
        ReadsegError: it is no number, or the weights are of a kind of LoRA that is not read here.
    """
    place = folder / "adapter_config.json"
    settings = read_json(place) if place.is_file() else {"lora_alpha": lora.DEFAULT_ALPHA}
    if others := [name for name in ("use_rslora", "use_dora", "alpha_pattern") if settings.get(name)]:
        raise ReadsegError(f"{place}: {', '.join(others)} is not supported here: merge these weights with peft.")
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < _LARGEST_ALPHA:
        raise ReadsegError(f"{place}: lora_alpha must be a number above 0; got {alpha!r}.")
    return float(alpha)


# -- checks ------------------------------------------------------------------------------------------------------------


def _empty_model(config: ReadConfig, folder: Path) -> dict[str, Tensor]:
    """Names and shapes of the weights that a model of this config has; no memory is taken."""
    with blaming(folder / "config.json"), torch.device("meta"):
        return ReadModel(config).state_dict()


def check_names(weights: Mapping[str, Tensor], config: ReadConfig, folder: Path) -> None:
    """Raises ReadsegError, naming all of them, where weights are not those of a model of this config."""
    _check(weights, _empty_model(config, folder), folder)


def _check(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path, what: str = "the weights"
) -> None:
    """Raises ReadsegError, naming all of them, where weights are missing, unexpected or of a wrong shape or type."""
    if problems := differences(given, expected):
        raise ReadsegError(f"{folder}: {what} are not those that its config.json describes; {problems}.")


def _check_rows(folder: Path, tokenizer: LegacyTokenizer, tables: Mapping[str, Tensor]) -> None:
    """Raises ReadsegError where an added token has no row in a table of embeddings."""
    for key, table in tables.items():
        rows = len(table) if table.ndim else 0
        for token, index in tokenizer.added.items():
            if index >= rows:
                raise ReadsegError(
                    f"{folder}: {token} has the id {index}, but {key} has only {rows} rows: added_tokens.json is of "
                    "other weights."
                )


def _check_tokens(
    folder: Path, settings: Mapping[str, Any], tokenizer: LegacyTokenizer, state: Mapping[str, Tensor]
) -> None:
    """Raises ReadsegError where config.json, the tokenizer and the tables of embeddings disagree about the tokens."""
    _check_rows(folder, tokenizer, {key: state[key] for key in key_mapping.TABLES if key in state})
    rows = settings.get("vocab_size")
    table = state.get("model.embed_tokens.weight")
    if table is not None and len(table) != rows:
        raise ReadsegError(
            f"{folder}: config.json says vocab_size {rows}, but model.embed_tokens.weight has {len(table)} rows."
        )


def _quantisation(bits: int, dtype: torch.dtype, config: ReadConfig) -> BitsAndBytesConfig:
    if bits not in (4, 8):
        raise ReadsegError(f"bits must be 8 or 4; got {bits}.")
    try:
        import bitsandbytes  # noqa: F401 - transformers reports its absence at length
    except ImportError as error:
        raise ReadsegError("8 and 4 bit need bitsandbytes: pip install bitsandbytes") from error
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
        llm_int8_skip_modules=[
            *("sam", "seg_projection", "lmm.lm_head"),
            *("lmm.model.vision_tower", "lmm.model.multi_modal_projector"),
        ],
    )
