"""`readseg merge`: an adapter and the weights that it was trained on become one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.checkpoints.adapters import read_adapter
from readseg.cli.convert import Layout, check_new, write


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder or hub id of what training left.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.", show_default=False)],
    base: Annotated[str | None, typer.Option(help="The weights it was trained on, if they were moved since.")] = None,
    sam: Annotated[str | None, typer.Option(help="The SAM it was trained on, if it was moved since.")] = None,
    vision_tower: Annotated[str | None, typer.Option(help="The CLIP tower, if it was moved since.")] = None,
    layout: Layout = "readseg",
) -> None:
    """Write a trained model whole: the weights that training started from, with the adapter merged into them."""
    check_new(out)
    write(read_adapter(adapter, base=base, sam=sam, vision_tower=vision_tower), out, layout)
