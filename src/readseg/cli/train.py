"""`readseg train`: runs a recipe, or goes on with one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.core.io import processes
from readseg.training import recipe as recipes
from readseg.training.config import load_recipe, with_start


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a preset, such as tiny, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, by default runs/RECIPE; the same folder again goes on.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder that all data sets lie in, for recipes that train on them.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights instead of the recipe's: folder or hub id; with --sam a LLaVA-1.5."
        ),
    ] = None,
    sam: Annotated[
        str | None, typer.Option(help="Start from this SAM and a LLaVA-1.5: folder, hub id or .pth file.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Replace a setting of the recipe; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print data, model, trained weights, memory and first batch, then stop.")
    ] = False,
) -> None:
    """Train a model from a recipe; a run that was killed goes on from its last checkpoint.

    On several GPUs or machines: accelerate launch -m readseg train RECIPE ...
    """
    folder = out or Path("runs") / Path(recipe).stem
    chosen = with_start(load_recipe(recipe, changes or ()), start, sam)
    if dry_run:
        recipes.dry_run(chosen, folder, only=stage, data=data)
        return
    result = recipes.run_recipe(chosen, folder, only=stage, data=data)
    if not processes().is_main_process:
        return
    if result.name == "adapter":
        typer.echo(f"adapter: {result}; use it as --model, or write the whole model: readseg merge {result} OUT")
    else:
        typer.echo(f"model: {result}" if result.exists() else f"run: {folder}; the model is written by the last stage")
