"""`readseg merge`: an adapter and the weights that it was trained on become one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from readseg.errors import ReadsegError


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder or hub id of what training left.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="The weights it was trained on, if they are not where they were then.")
    ] = None,
    layout: Annotated[
        Literal["readseg", "released"],
        typer.Option(help="readseg: one folder with all that is needed; released: for the authors' own code."),
    ] = "readseg",
) -> None:
    """Write a trained model whole: the weights that training started from, with the adapter merged into them."""
    if out.is_symlink() or out.resolve().exists():
        raise ReadsegError(f"{out} is there already: name a folder that does not exist yet.")

    from rich.console import Console

    from readseg.adapters import read_adapter
    from readseg.checkpoints import save_checkpoint

    checkpoint = read_adapter(adapter, base=base)
    for note in checkpoint.notes:
        typer.echo(f"readseg: {note}", err=True)
    size = sum(weight.nbytes for weight in checkpoint.weights.values())
    with Console(stderr=True).status(f"writing {size / 1e9:.1f} GB to {out}"):
        save_checkpoint(checkpoint, out, layout=layout)
    typer.echo(f"{checkpoint.config.family}, {len(checkpoint.weights)} weights: {out}")
