"""Loads what this project and others saved: a folder or a hub id becomes a model, or an error that names what is wrong.

Two layouts: ours (`ReadModel.save_pretrained`), and the released one of READ, SESAME, LISA, GSVA and GLaMM. Nothing is
converted on disk; weights stay in their files, memory-mapped, until the model takes them as they are.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, CLIPVisionConfig, CLIPVisionModel

from readseg import layouts, lora, sam_keys
from readseg.config import ReadConfig
from readseg.errors import ReadsegError
from readseg.families import FAMILIES, RELEASED, SEG, SYSTEMS, family_of
from readseg.files import whole
from readseg.layouts import TOWER_RELEASED
from readseg.model import ReadModel
from readseg.processor import ReadProcessor
from readseg.tokenizer import MODEL_FILE, LegacyTokenizer
from readseg.weight_files import fetch, let_go, read_weights, write_weights

# The tables of embeddings: released names, ours.
_TABLES = {
    "model.embed_tokens.weight": "lmm.model.language_model.embed_tokens.weight",
    "lm_head.weight": "lmm.lm_head.weight",
}
_SMALL = 4 << 30  # bytes in float32: a model up to this size computes in it on a CPU by default


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of, before it is one.

    config: the model's.
    tokenizer: of the released weights; None where `folder` holds one of another kind.
    weights: under the names of `ReadModel`, memory-mapped where nothing had to be computed.
    folder: where it was read from.
    notes: what a user should know: weights that are not used, for instance.
    """

    config: ReadConfig
    tokenizer: LegacyTokenizer | None
    weights: dict[str, Tensor]
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The type that the language model's weights are stored in."""
        return self.weights["lmm.lm_head.weight"].dtype

    def processor(self) -> ReadProcessor:
        """The tokenizer and the config, as the model needs them around it."""
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
        return _whole(_ours(folder, system))
    if kind not in ("llava", "llava_llama") or "text_config" in settings:
        raise ReadsegError(
            f"{folder / 'config.json'} is of a model of type {kind!r}, without a mask model: expected weights that "
            f"this package saved, or released ones of {', '.join(RELEASED)}."
        )
    return _whole(_released(folder, settings, str(name), family, vision_tower, system, lora_alpha))


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
        bits: 8 or 4 for a quantised language model (needs bitsandbytes); SAM and the vision tower are left as they are.

    Raises:
        ReadsegError: an option that does not exist, a library that is missing, or weights that are no numbers.
    """
    device = device or torch.device("cpu")
    dtype = dtype or default_dtype(checkpoint, device)
    if not dtype.is_floating_point:
        raise ReadsegError(f"dtype must be float32, bfloat16 or float16; got {dtype}.")
    options: dict[str, Any] = {"dtype": dtype}
    if bits is not None:
        options["quantization_config"] = _quantisation(bits, dtype)
    if device_map is not None:
        options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    config = copy.deepcopy(checkpoint.config)
    for part in (config.lmm_config, config.lmm_config.vision_config, config.lmm_config.text_config, config.mask_config):
        part.dtype = None  # what a part was saved in must not decide what it is loaded in
    on_cpu = "device_map" not in options
    weights = {n: _converted(w, dtype) if on_cpu else w for n, w in checkpoint.weights.items()}
    try:
        model = ReadModel.from_pretrained(None, config=config, state_dict=weights, **options)
    except ReadsegError as error:
        raise ReadsegError(f"{checkpoint.folder}: {error}") from error
    if bits is not None:
        model.sam.float()
    return model, checkpoint.processor()


def _converted(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type, and the pages of its file given back: never two copies of more than one weight in memory."""
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
    if out.exists() or out.is_symlink():
        raise ReadsegError(f"{out} is there already: name a folder that does not exist yet.")
    if layout == "released" and (checkpoint.config.released is None or checkpoint.config.family not in RELEASED):
        raise ReadsegError(f"weights of the family {checkpoint.config.family!r} have no released layout.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadsegError(f"{out.parent} cannot be made: {error.strerror or error}.") from error
    with whole(out) as place:
        place.mkdir()
        if layout == "released":
            weights = {n: w for n, w in checkpoint.weights.items() if not n.startswith(layouts.TOWER)}
            mask_model = FAMILIES[checkpoint.config.family].mask_model
            write_weights(layouts.to_released(weights, mask_model), place, safe=False)
            for name, content in (
                ("config.json", checkpoint.config.released),
                ("tokenizer_config.json", layouts.TOKENIZER_SETTINGS),
            ):
                (place / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            write_weights(checkpoint.weights, place, safe=True)
            checkpoint.config.save_pretrained(place)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(place)
        else:
            checkpoint.processor().tokenizer.save_pretrained(place)


# -- the two layouts ---------------------------------------------------------------------------------------------------


def _ours(folder: Path, system: str | None) -> Checkpoint:
    with _blaming(folder / "config.json"):
        config = ReadConfig.from_pretrained(folder)
    legacy = not (folder / "tokenizer.json").is_file()
    if legacy and not (folder / MODEL_FILE).is_file():
        raise ReadsegError(f"{folder} holds no tokenizer: expected tokenizer.json or {MODEL_FILE} in it.")
    tokenizer = LegacyTokenizer.from_folder(folder) if legacy else None
    weights = sam_keys.with_both_names(read_weights(folder), "sam.")
    check_names(weights, config, folder)
    if tokenizer is not None:
        _check_rows(folder, tokenizer, {key: weights[own] for key, own in _TABLES.items()})
    return Checkpoint(_worded(config, system), tokenizer, weights, folder)


def _released(
    folder: Path,
    settings: dict[str, Any],
    name: str,
    family_name: str | None,
    vision_tower: str | Path | None,
    system: str | None,
    lora_alpha: float | None,
) -> Checkpoint:
    tokenizer = LegacyTokenizer.from_folder(folder)
    if SEG not in tokenizer.added:
        raise ReadsegError(f"the tokenizer of {folder} has no {SEG}: expected it in added_tokens.json.")
    state = layouts.without_computed(lora.unwrapped(read_weights(folder)))
    notes = []
    if lora.has_lora(state):
        alpha = _alpha(folder) if lora_alpha is None else lora_alpha
        state = lora.merge_lora(state, alpha)
        notes.append(f"LoRA weights were merged with alpha {alpha:g}")
    mask_model = layouts.mask_model_of(state)
    if mask_model is None:
        raise ReadsegError(
            f"{folder} holds no weights of SAM: a base model? Then start from it: readseg convert --sam."
        )
    linear = "model.mm_projector.weight" in state
    family = family_of(settings, mask_model, tokenizer.added, linear=linear, name=name, chosen=family_name)
    if unused := sorted(key for key in state if family.unused and key.startswith(family.unused)):
        notes.append(f"{len(unused)} weights are not used ({', '.join(family.unused)}*)")
        state = {key: value for key, value in state.items() if key not in set(unused)}
    vision, tower = read_tower(settings, folder, vision_tower, with_weights=not layouts.holds_tower(state))
    _check_tokens(folder, settings, tokenizer, state)
    with _blaming(folder / "config.json"):
        config = layouts.read_config(settings, family, tokenizer.added, vision, state)
    empty = layouts.to_released(_empty_model(config, folder), family.mask_model)
    outside = {} if layouts.holds_tower(state) else {k: v for k, v in empty.items() if k.startswith(TOWER_RELEASED)}
    _check(state, {key: value for key, value in empty.items() if key not in outside}, folder)
    if outside:
        found = {TOWER_RELEASED + key.removeprefix(layouts.TOWER): value for key, value in tower.items()}
        _check(found, outside, folder, f"the weights of the vision tower {settings.get('mm_vision_tower')}")
    weights, _ = layouts.to_ours(state, family.mask_model)
    weights |= tower | {own: torch.zeros(()) for own in layouts.OWN}
    return Checkpoint(_worded(config, system), tokenizer, weights, folder, tuple(notes))


def _whole(checkpoint: Checkpoint) -> Checkpoint:
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


def read_tower(
    settings: Mapping[str, Any], folder: Path, given: str | Path | None, *, with_weights: bool
) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """The CLIP tower of released weights: its configuration, and its weights under our names if they are asked for.

    Args:
        settings: config.json of the weights.
        folder: where they lie; a tower of the name that config.json gives may lie beside it.
        given: folder or hub id that replaces what config.json says.
        with_weights: whether to read them too.

    Raises:
        ReadsegError: no tower is named, or it cannot be loaded.
    """
    said = given or settings.get("mm_vision_tower") or settings.get("vision_tower")
    if not isinstance(said, (str, Path)):
        raise ReadsegError(f"{folder / 'config.json'} names no mm_vision_tower; name one: --vision-tower.")
    beside = folder.parent / said
    try:
        place = fetch(beside if given is None and beside.is_dir() else said)
        with _blaming(place / "config.json"):
            if (kind := read_settings(place).get("model_type")) not in ("clip", "clip_vision_model"):
                raise ReadsegError(f"{place} is a model of type {kind!r} and no CLIP.")
            tower = CLIPVisionConfig.from_pretrained(place)
            with torch.device("meta"):
                CLIPVisionModel(tower)
            if tower.image_size // tower.patch_size < 1:
                raise ReadsegError(f"image_size {tower.image_size} holds no patch of {tower.patch_size} pixels.")
        state = read_weights(place) if with_weights else {}
    except ReadsegError as error:
        raise ReadsegError(f"the vision tower {said} cannot be loaded: {error} Name one: --vision-tower.") from error
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    # A whole CLIP has a text side too; a tower saved alone has only what begins like this.
    own = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
    weights = {
        layouts.TOWER + key.removeprefix(prefix): value
        for key, value in layouts.without_computed(state).items()
        if key.startswith(tuple(prefix + part for part in own))
    }
    return tower, weights


def _alpha(folder: Path) -> float:
    """Alpha of a training run: peft writes it beside its weights."""
    place = folder / "adapter_config.json"
    settings = _json(place) if place.is_file() else {"lora_alpha": lora.DEFAULT_ALPHA}
    if others := [name for name in ("use_rslora", "use_dora", "alpha_pattern") if settings.get(name)]:
        raise ReadsegError(f"{place}: {', '.join(others)} is not supported here: merge these weights with peft.")
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise ReadsegError(f"{place}: lora_alpha must be a number above 0; got {alpha!r}.")
    return float(alpha)


# -- checks ------------------------------------------------------------------------------------------------------------


def _empty_model(config: ReadConfig, folder: Path) -> dict[str, Tensor]:
    """Names and shapes of the weights that a model of this config has; no memory is taken."""
    with _blaming(folder / "config.json"), torch.device("meta"):
        return ReadModel(config).state_dict()


@contextmanager
def _blaming(place: Path) -> Iterator[None]:
    """Whatever the libraries say of a configuration that makes no sense, as an error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # as of a layer without any weight
            yield
    except Exception as error:  # they share no base class
        reason = (str(error).splitlines() or [""])[0].removeprefix("config.json: ")
        raise ReadsegError(f"{place}: {reason or type(error).__name__}") from error


def check_names(weights: Mapping[str, Tensor], config: ReadConfig, folder: Path) -> None:
    """Raises ReadsegError, naming all of them, where weights are not those of a model of this config."""
    _check(weights, _empty_model(config, folder), folder)


def _check(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path, what: str = "the weights"
) -> None:
    """Raises ReadsegError, naming all of them, where weights are missing, unexpected or of a wrong shape or type."""
    wrong = [
        f"{name} is {tuple(given[name].shape)} and not {tuple(expected[name].shape)}"
        for name in sorted(given.keys() & expected.keys())
        if given[name].shape != expected[name].shape
    ]
    whole = [
        f"{name} is {str(value.dtype).removeprefix('torch.')}"
        for name, value in sorted(given.items())
        if not value.is_floating_point()
    ]
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", sorted(expected.keys() - given.keys())),
            ("unexpected", sorted(given.keys() - expected.keys())),
            ("of a wrong shape", wrong),
            ("no floating point numbers", whole),
        )
        if names
    ]
    if problems:
        raise ReadsegError(f"{folder}: {what} are not those that its config.json describes; {'; '.join(problems)}.")


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
    _check_rows(folder, tokenizer, {key: state[key] for key in _TABLES if key in state})
    rows = settings.get("vocab_size")
    table = state.get("model.embed_tokens.weight")
    if table is not None and len(table) != rows:
        raise ReadsegError(
            f"{folder}: config.json says vocab_size {rows}, but model.embed_tokens.weight has {len(table)} rows."
        )


def _quantisation(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    if bits not in (4, 8):
        raise ReadsegError(f"bits must be 8 or 4; got {bits}.")
    try:
        import bitsandbytes  # noqa: F401 - transformers reports its absence at length
    except ImportError as error:
        raise ReadsegError("8 and 4 bit need bitsandbytes: pip install bitsandbytes") from error
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


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        ReadsegError: it is not there, no JSON, or no settings by name.
    """
    return _json(folder / "config.json")


def _json(place: Path) -> dict[str, Any]:
    if not place.is_file():
        raise ReadsegError(f"{place.parent} holds no model: expected {place.name}, weights and a tokenizer in it.")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{place} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ReadsegError(f"{place} must hold settings by name; got {type(content).__name__}.")
    return content
