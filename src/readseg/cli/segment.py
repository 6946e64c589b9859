"""`readseg segment`: answers to questions about an image, with masks, pictures and JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from rich.text import Text

    from readseg.config import PointConfig
    from readseg.segmentation import Segmentation
    from readseg.segmenter import Segmenter

MODEL_HELP = "Folder or hub id of a model; by default the embedded one."
DEVICE_HELP = 'Where to compute, such as "cpu" or "cuda:0"; by default a GPU if there is one.'


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY", help="What to look for, or questions.", show_default=False)
    ],
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures and JSON; by default outputs/NAME_OF_IMAGE.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a query instead of words.")] = False,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    prompt: Annotated[
        Literal["both", "seg", "points"] | None, typer.Option(help="What prompts the mask decoder.")
    ] = None,
    num_points: Annotated[int | None, typer.Option(min=1, help="The most points for a [SEG].")] = None,
    t_pos: Annotated[float | None, typer.Option(min=0, max=1, help="Similarity of positive points, from.")] = None,
    t_neg: Annotated[float | None, typer.Option(min=0, max=1, help="Similarity of negative points, up to.")] = None,
) -> None:
    """Answer questions about an image: what is asked for, where it is, and the points that found it.

    Writes result.json, overlay.png, mask_K.png and heatmap_K.png;
    of several queries into folders query_1, query_2, ... of the output folder.
    """
    from readseg.images import load_image

    picture = load_image(image)  # before the model is loaded: a wrong name fails at once
    folder = out if out is not None else Path("outputs") / (image.stem or "image")
    check_writable(folder)

    from readseg.segmenter import Segmenter  # brings torch along

    segmenter = Segmenter.from_pretrained(model, device=device)
    points = _points(segmenter, num_points, t_pos, t_neg)
    results = segmenter.segment(picture, queries, prompt=prompt, points=points)
    for index, result in enumerate(results):
        place = folder if len(results) == 1 else folder / f"query_{index + 1}"
        result.save(place)
        if as_json:
            typer.echo(result.to_json())
        else:
            show(result, place)


def check_writable(folder: Path) -> None:
    """Fail now rather than after the work; leaves nothing behind, so that a failure makes no empty folder.

    Raises:
        ReadsegError: the folder cannot be written to, or not be made where it does not exist yet.
    """
    import tempfile

    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadsegError(f"cannot write to {folder}: {reason}; choose another folder with --out") from error


def show(result: Segmentation, place: Path | None, *, question: bool = True) -> None:
    """Print an answer for people: question (unless they just typed it), words, masks, and where the pictures are."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    if question:
        text.append(f"{result.query.strip()[:200]}\n", style="bold")
    text.append(f"  {result.answer or '(no words)'}\n", style="green" if result.present else "yellow")
    _details(text, result)
    if place is not None:
        text.append(f"  pictures and JSON: {place}\n", style="dim")
    Console(highlight=False, soft_wrap=True).print(text, end="")


def _details(text: Text, result: Segmentation) -> None:
    if not result.finished:
        text.append("  the answer was cut off at its longest length\n", style="yellow")
    if result.present is False:
        text.append("  not found: the model gave no mask\n", style="yellow")
    for index, mask in enumerate(result.masks):
        count = len(result.point_labels[index])
        text.append(f"  mask {index + 1}: {mask.mean():.1%} of the image, {count} points\n", style="dim")


def _points(
    segmenter: Segmenter, num_points: int | None, t_pos: float | None, t_neg: float | None
) -> PointConfig | None:
    """The model's settings of points with what was given on the command line; None where nothing was."""
    given = {"num_points": num_points, "t_pos": t_pos, "t_neg": t_neg}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return None
    try:
        return dataclasses.replace(segmenter.model.config.points, **changes)
    except ValueError as error:
        raise ReadsegError(str(error)) from error
