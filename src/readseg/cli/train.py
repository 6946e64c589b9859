"""`readseg train`: runs a recipe, or goes on with one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a preset, such as tiny, or a YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, by default runs/RECIPE; the same folder again goes on."),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
) -> None:
    """Train a model from a recipe; a run that was killed goes on from its last checkpoint."""
    from readseg.training.config import load_recipe
    from readseg.training.recipe import run_recipe

    folder = out if out is not None else Path("runs") / Path(recipe).stem
    model = run_recipe(load_recipe(recipe), folder, only=stage)
    typer.echo(f"model: {model}" if model.exists() else f"run: {folder}; the model is written by the last stage")
