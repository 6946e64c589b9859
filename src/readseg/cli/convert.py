"""`readseg convert`: a model's files in another layout, or base models joined to start training from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from readseg.checkpoints.base_models import start_from
from readseg.checkpoints.checkpoint import Checkpoint, save_checkpoint
from readseg.checkpoints.load import read_model
from readseg.cli.options import WeightOptions, grouped
from readseg.errors import ReadsegError

Layout = Annotated[
    Literal["readseg", "released"],
    typer.Option(help="readseg: one folder with all that is needed; released: for the authors' own code."),
]


@grouped
def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id of the weights to read.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.", show_default=False)],
    weights: WeightOptions,
    layout: Layout = "readseg",
    sam: Annotated[
        str | None,
        typer.Option(help="Start from base models: MODEL is LLaVA-1.5, this a SAM (folder, hub id or .pth file)."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=1 << 62, help="Of the fresh projection, with --sam; 0 by default.")
    ] = None,
) -> None:
    """Read weights in any layout this package knows and write them in another; LoRA weights are merged.

    With --sam: LLaVA-1.5 and a SAM become an untrained model of the family (default read), with its tokens added.
    """
    if sam is not None and (weights.lora_alpha is not None or weights.system is not None):
        raise ReadsegError(
            "--lora-alpha and --system are for trained weights, --sam for base models: give one of them."
        )
    if sam is None and seed is not None:
        raise ReadsegError("--seed is of the fresh projection of a start: it needs --sam.")
    if weights.system is not None and layout == "released":
        raise ReadsegError(
            "--system: the released layout has no place for it; leave it out, or choose --layout readseg."
        )
    check_new(out)

    if sam is None:
        checkpoint = read_model(model, **asdict(weights))
    else:
        checkpoint = start_from(
            model, sam, family=weights.family or "read", vision_tower=weights.vision_tower, seed=seed or 0
        )
    write(checkpoint, out, layout)


def check_new(out: Path) -> None:
    """Fail before anything is read."""
    if out.is_symlink() or out.resolve().exists():
        raise ReadsegError(f"{out} is there already: name a folder that does not exist yet.")


def write(checkpoint: Checkpoint, out: Path, layout: Layout) -> None:
    """Write a whole model, and say what it is."""
    for note in checkpoint.notes:
        typer.echo(f"readseg: {note}", err=True)
    size = sum(weight.nbytes for weight in checkpoint.weights.values())
    with Console(stderr=True).status(f"writing {size / 1e9:.1f} GB to {out}"):
        save_checkpoint(checkpoint, out, layout=layout)
    typer.echo(f"{checkpoint.config.family}, {len(checkpoint.weights)} weights: {out}")
