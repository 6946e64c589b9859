"""Siblings of the embedded model: trained from its stages 0 and 1 as it was, but for one setting of stage 2.

A sibling shares the embedded model's encoders, tokenizer and plain mask decoder. Kept is only what differs: matrices
rounded to 8 bits, with a scale for each row, and vectors in bfloat16.

    python examples/siblings.py stages --out runs/seg           # stages 0 and 1, as the embedded model holds them
    readseg train tiny --stage read --set read.prompt=seg --out runs/seg
    python examples/siblings.py pack seg runs/seg/model         # -> weights/siblings/seg.safetensors
    python examples/siblings.py unpack --out runs/siblings      # -> runs/siblings/seg and all others, whole models
    readseg ablate prompt --model embedded --model runs/siblings/seg

A file holds each tensor under its name in the model: int8 q (R, ...) with float16 s (R,) under that name and ".scale",
w = q s; or bfloat16. Its metadata tell the format, the settings, and a digest of all that is not in the file.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from readseg import ReadsegError
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import EMBEDDED, Checkpoint, read_checkpoint, save_checkpoint
from readseg.checkpoints.files import key_mismatches, read_json, read_weights
from readseg.checkpoints.load import load_model
from readseg.cli.errors import run
from readseg.cli.output import check_writable
from readseg.core.io import atomic_write
from readseg.model.config import Prompt

PACKED = Path(__file__).resolve().parents[1] / "weights" / "siblings"
FORMAT = "readseg-sibling-1"
SCALE = ".scale"
LEVELS = 127
"""Whole numbers on either side of 0."""
LEARNED = (
    *("lmm.lm_head.", "lmm.model.language_model.", "lmm.model.multi_modal_projector.", "seg_projection."),
    *("sam.mask_decoder.", "map_bias"),
)
"""What stage 2 trains (`training.read_stage.ReadStage`), by the beginnings of names; all else is frozen."""
UNTOLD = {"architectures", "dtype", "_name_or_path", "transformers_version"}
"""What a config says of its file and not of its model."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)

app = typer.Typer(
    name="siblings",
    help="Models that were trained in other ways beside the embedded one: keep what differs, make them whole again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Base = Annotated[Path, typer.Option(help="Folder of the model that they are siblings of.", show_default="embedded")]
Packed = Annotated[Path, typer.Option(help="Where packed siblings are.", show_default="weights/siblings")]


@dataclass(frozen=True)
class Settings:
    """In what a sibling was trained differently, as in `ReadConfig`.

    prompt: what prompts its mask decoder. map_loss_weight: of the auxiliary map loss.
    """

    prompt: Prompt
    map_loss_weight: float

    def __post_init__(self) -> None:
        weight = self.map_loss_weight
        if self.prompt not in get_args(Prompt) or type(weight) not in (int, float) or not 0 <= weight < float("inf"):
            raise ValueError

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items())


SETTINGS = {field.name for field in dataclasses.fields(Settings)}


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers q in [-127, 127] and a scale s for each row, w = q s + e, |e| <= s / 2.

    s = max |w| / 127 of the row, rounded up to float16, so that no weight is cut off.

    Args:
        weight: (R, ...), R rows.

    Returns:
        q (R, ...) int8, s (R,) float16.
    """
    rows = weight.detach().float().flatten(1).numpy()
    highest = np.abs(rows).max(axis=1)
    scale = (highest / LEVELS).astype(np.float16)
    short = scale.astype(np.float32) * LEVELS < highest
    scale[short] = np.nextafter(scale[short], np.float16(np.inf))
    steps = scale.astype(np.float32)[:, None]
    whole_numbers = np.rint(np.divide(rows, steps, out=np.zeros_like(rows), where=steps > 0))
    return torch.from_numpy(whole_numbers.astype(np.int8)).view(weight.shape), torch.from_numpy(scale)


def restore(quantised: Tensor, scale: Tensor) -> Tensor:
    """Weights w = q s of what `quantise` gave: (R, ...) and (R,) -> (R, ...) float32."""
    return quantised.float() * scale.float().view(-1, *[1] * (quantised.ndim - 1))


def learned_by(sibling: Checkpoint, base: Checkpoint) -> dict[str, Tensor]:
    """The tensors in which a sibling differs from its base, by name.

    Raises:
        ReadsegError: it is no sibling: a setting, the tokenizer, a frozen tensor or the plain mask decoder differs.
    """
    told = f"{sibling.folder} is no sibling of {base.folder}"
    own, other = _config(base), _config(sibling)
    if changed := sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name)):
        raise ReadsegError(
            f"{told}: in config.json {changed[0]} is {other.get(changed[0])!r:.60} and not "
            f"{own.get(changed[0])!r:.60}; only {' and '.join(sorted(SETTINGS))} may differ"
        )
    if problems := key_mismatches(sibling.weights, base.weights):
        raise ReadsegError(f"{told}: {problems}")
    if _tokenizer(sibling) != _tokenizer(base):
        raise ReadsegError(f"{told}: its tokenizer.json differs; train it with the same seed, vocabulary and data")
    plain, own_plain = _plain_sam(sibling), _plain_sam(base)
    if plain and (moved := [name for name in plain.keys() | own_plain.keys() if not _equal(plain, own_plain, name)]):
        raise ReadsegError(f"{told}: {min(moved)} of {ORIGINAL_SAM_DECODER} differs: it is of another stage 0")
    found = [name for name in base.weights if not _equal(sibling.weights, base.weights, name)]
    if frozen := sorted(name for name in found if not name.startswith(LEARNED)):
        raise ReadsegError(f"{told}: {frozen[0]} differs, which stage 2 leaves as it is: it is of other stages 0 and 1")
    if not found:
        raise ReadsegError(f"{sibling.folder} has the weights of {base.folder}: there is nothing to pack")
    return {name: sibling.weights[name] for name in found}


def shared_digest(base: Checkpoint, apart: Mapping[str, Tensor]) -> str:
    """SHA-256 (16 hexadecimal digits) of what a sibling takes from its base.

    Those are the tokenizer, the plain mask decoder and all tensors that are not `apart`.
    """
    sha = hashlib.sha256(json.dumps(_tokenizer(base), sort_keys=True).encode())
    shared = {name: weight for name, weight in base.weights.items() if name not in apart}
    for tensors in (shared, _plain_sam(base)):
        for name, tensor in sorted(tensors.items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


@app.command()
def stages(
    out: Annotated[Path, typer.Option(help="Folder of a run; gets masks/ and vision/.")], base: Base = EMBEDDED
) -> None:
    """Write the weights of the embedded model's stages 0 and 1, as `readseg train --stage read` begins with them."""
    if not (base / ORIGINAL_SAM_DECODER).is_file():
        raise ReadsegError(f"{base / ORIGINAL_SAM_DECODER}: no such file; it is the mask decoder as stage 0 left it")
    places = {name: out / name / "weights.safetensors" for name in ("masks", "vision")}
    if taken := [path.parent for path in places.values() if path.parent.exists() or path.parent.is_symlink()]:
        raise ReadsegError(f"{taken[0]} is there already: remove it, or choose another --out")
    check_writable(out)
    model, _, _ = load_model(base, device="cpu", dtype="float32")
    plain = {name: weight.float() for name, weight in read_weights(base / ORIGINAL_SAM_DECODER).items()}
    found = {"masks": model.sam.state_dict() | plain, "vision": model.lmm.model.vision_tower.state_dict()}
    for name, path in places.items():
        path.parent.mkdir(parents=True)
        with atomic_write(path, new=True) as place:
            save_file({one: weight.contiguous().clone() for one, weight in found[name].items()}, place)
        _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def pack(
    name: Annotated[str, typer.Argument(help="Of the sibling, such as seg.")],
    model: Annotated[Path, typer.Argument(help="Folder of the trained sibling.")],
    base: Base = EMBEDDED,
    packed: Packed = PACKED,
) -> None:
    """Keep what of a model differs from the embedded one."""
    path = _place(packed, name)
    if path.exists():
        raise ReadsegError(f"{path} is there already: remove it, or choose another NAME")
    sibling, own = read_checkpoint(model), read_checkpoint(base)
    learned = learned_by(sibling, own)
    kept: dict[str, Tensor] = {}
    for one, weight in learned.items():
        if not torch.isfinite(weight).all():
            raise ReadsegError(f"{sibling.folder}: {one} holds values that are no numbers")
        if weight.ndim < 2:
            kept[one] = weight.bfloat16()
        else:
            kept[one], kept[one + SCALE] = quantise(weight)
    settings = Settings(**{one: getattr(sibling.config, one) for one in SETTINGS})
    told = {
        "format": FORMAT,
        "settings": json.dumps(dataclasses.asdict(settings)),
        "shared": shared_digest(own, learned),
    }
    packed.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, new=True) as place:
        save_file({one: tensor.contiguous() for one, tensor in kept.items()}, place, metadata=told)
    _say(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(learned)} tensors, {settings}")


@app.command()
def unpack(
    out: Annotated[Path, typer.Option(help="Gets a model's folder of each sibling's name.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Of siblings; by default all.")] = None,
    base: Base = EMBEDDED,
    packed: Packed = PACKED,
) -> None:
    """Make whole models of packed siblings, for any --model."""
    there = sorted(path.stem for path in packed.glob("*.safetensors") if not path.name.startswith("."))
    if unknown := [name for name in names or () if name not in there]:
        raise ReadsegError(f"no sibling {unknown[0]!r} in {packed}: there is {', '.join(there) or 'none'}")
    if not there:
        raise ReadsegError(f"no sibling in {packed}: pack one first")
    chosen = list(dict.fromkeys(names or there))
    if taken := [out / name for name in chosen if (out / name).exists() or (out / name).is_symlink()]:
        raise ReadsegError(f"{taken[0]} is there already: remove it, or choose another --out")
    check_writable(out)
    own = read_checkpoint(base)
    made = {name: _sibling(_place(packed, name), own) for name in chosen}  # all are good before one is written
    out.mkdir(parents=True, exist_ok=True)
    for name, sibling in track(made.items(), "unpacking", console=Console(stderr=True), transient=True):
        with atomic_write(out / name, new=True) as place:
            save_checkpoint(sibling, place)
            if (own.folder / ORIGINAL_SAM_DECODER).is_file():
                shutil.copyfile(own.folder / ORIGINAL_SAM_DECODER, place / ORIGINAL_SAM_DECODER)
    for name, sibling in made.items():
        _say(f"{out / name}: {Settings(**{one: getattr(sibling.config, one) for one in SETTINGS})}")


def _sibling(path: Path, base: Checkpoint) -> Checkpoint:
    """What a packed file makes of its base."""
    try:
        with safe_open(path, "pt") as file:
            told, kept = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ReadsegError(f"{path} is damaged ({error}): fetch it again") from error
    if (found := told.get("format")) != FORMAT:
        raise ReadsegError(f"{path}: expected a packed sibling of format {FORMAT!r}, got {found!r}")
    scales = {name: kept.pop(name) for name in list(kept) if name.endswith(SCALE)}
    learned: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        own, scale = base.weights.get(name), scales.pop(name + SCALE, None)
        plain = scale is None and tensor.dtype == torch.bfloat16
        rows = scale is not None and (tensor.dtype, scale.dtype) == (torch.int8, torch.float16)
        if own is None or tensor.shape != own.shape or not name.startswith(LEARNED):
            raise ReadsegError(f"{path}: {name} {tuple(tensor.shape)} is nothing that {base.folder} learns in stage 2")
        if not plain and not (rows and tensor.ndim > 1 and scale.shape == tensor.shape[:1]):
            raise ReadsegError(f"{path}: {name} is neither bfloat16 nor int8 with a float16 scale for each row")
        learned[name] = (tensor if scale is None else restore(tensor, scale)).to(own.dtype)
    if scales:
        raise ReadsegError(f"{path}: {min(scales)} is the scale of no tensor")
    if (digest := shared_digest(base, learned)) != told.get("shared"):
        raise ReadsegError(
            f"{path} was packed beside another model: it shares weights of digest {told.get('shared')}, those of "
            f"{base.folder} have {digest}; take the file that came with this model, or train and pack it anew"
        )
    try:
        settings = Settings(**json.loads(told["settings"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ReadsegError(f"{path}: expected the settings {' and '.join(sorted(SETTINGS))} in its metadata") from error
    config = copy.deepcopy(base.config)
    config.prompt, config.map_loss_weight = settings.prompt, settings.map_loss_weight
    return dataclasses.replace(base, config=config, weights=base.weights | learned)


def _place(packed: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ReadsegError(f"NAME {name!r}: expected letters, digits, '_', '-' and '.', such as seg")
    return packed / f"{name}.safetensors"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings by their whole names, without those that a sibling may have of its own."""
    found: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], before: str) -> None:
        for name, value in values.items():
            if name in UNTOLD or before + name in SETTINGS:
                continue
            if isinstance(value, Mapping) and value:
                walk(value, f"{before}{name}.")
            else:
                found[before + name] = value

    walk(json.loads(json.dumps(checkpoint.config.to_dict(), default=str)), "")
    return found


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    return read_json(checkpoint.folder / "tokenizer.json")


def _plain_sam(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The mask decoder of stage 0, where it lies beside a model."""
    place = checkpoint.folder / ORIGINAL_SAM_DECODER
    return read_weights(place) if place.is_file() else {}


def _equal(one: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    """Whether both hold a tensor, in the type that the second is stored in."""
    return name in one and name in own and torch.equal(one[name].to(own[name].dtype), own[name])


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    run(app)
