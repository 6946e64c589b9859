"""`readseg segment`: answers to questions about an image, with masks, pictures and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from readseg.cli.options import ModelOptions, PointOptions, grouped, print_notes
from readseg.cli.output import check_writable, print_answer
from readseg.core.images import load_image


@grouped
def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY", help="What to look for, or questions.", show_default=False)
    ],
    model: ModelOptions,
    points: PointOptions,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures and JSON; by default outputs/NAME_OF_IMAGE.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a query instead of words.")] = False,
    together: Annotated[
        bool, typer.Option(help="Ask for all queries with one question, as names of objects (GSVA).")
    ] = False,
    force: Annotated[
        bool, typer.Option(help="Teacher forcing: give the model its family's answer, get the masks of its SEG.")
    ] = False,
    sentence: Annotated[
        bool | None,
        typer.Option(
            "--sentence/--name", help="Treat queries as sentences, or as names of things; by default their form tells."
        ),
    ] = None,
) -> None:
    """Answer questions about an image: what is asked for, where it is, and the points that found it.

    Writes result.json, overlay.png, mask_K.png and heatmap_K.png;
    of several queries into folders query_1, query_2, ... of the output folder.
    """
    picture = load_image(image)  # before the model is loaded: a wrong name fails at once
    folder = out if out is not None else Path("outputs") / (image.stem or "image")
    check_writable(folder)
    segmenter = model.load(model.model)
    prompt, config = points.choose(segmenter)
    print_notes(segmenter)
    if together:
        results = [segmenter.segment_together(picture, queries, prompt=prompt, points=config, force=force)]
    else:
        results = segmenter.segment(picture, queries, prompt=prompt, points=config, force=force, sentence=sentence)
    for number, result in enumerate(results, start=1):
        place = folder if len(results) == 1 else folder / f"query_{number}"
        result.save(place)
        if as_json:
            typer.echo(result.to_json())
        else:
            print_answer(result, place)
