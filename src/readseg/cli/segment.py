"""`readseg segment`: answers to questions about an image, with masks, pictures and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from readseg.cli import options
from readseg.cli.errors import printable
from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from rich.text import Text

    from readseg.inference.result import Segmentation


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY", help="What to look for, or questions.", show_default=False)
    ],
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
            "--sentence/--name", help="Queries are whole sentences, or names of things; by default their form tells."
        ),
    ] = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    bits: options.Bits = None,
    device_map: options.DeviceMap = None,
    family: options.FamilyName = None,
    vision_tower: options.VisionTower = None,
    system: options.System = None,
    lora_alpha: options.LoraAlpha = None,
    points: options.PointsSwitch = None,
    num_points: options.NumPoints = None,
    t_pos: options.TPos = None,
    t_neg: options.TNeg = None,
    downsample: options.Downsample = None,
    alignment: options.AlignmentName = None,
    threshold: options.ThresholdRule = None,
) -> None:
    """Answer questions about an image: what is asked for, where it is, and the points that found it.

    Writes result.json, overlay.png, mask_K.png and heatmap_K.png;
    of several queries into folders query_1, query_2, ... of the output folder.
    """
    from readseg.core.images import load_image

    picture = load_image(image)  # before the model is loaded: a wrong name fails at once
    folder = out if out is not None else Path("outputs") / (image.stem or "image")
    check_writable(folder)

    segmenter = options.load_segmenter(
        model,
        device=device,
        dtype=dtype,
        bits=bits,
        device_map=device_map,
        family=family,
        vision_tower=vision_tower,
        system=system,
        lora_alpha=lora_alpha,
    )
    prompt, settings = options.point_options(
        segmenter,
        points,
        num_points=num_points,
        t_pos=t_pos,
        t_neg=t_neg,
        downsample=downsample,
        alignment=alignment,
        threshold=threshold,
    )
    options.tell(segmenter)
    if together:
        results = [segmenter.segment_together(picture, queries, prompt=prompt, points=settings, force=force)]
    else:
        results = segmenter.segment(picture, queries, prompt=prompt, points=settings, force=force, sentence=sentence)
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
        text.append(f"{printable(result.query.strip()[:200])}\n", style="bold")
    text.append(f"  {printable(result.answer) or '(no words)'}\n", style="green" if result.present else "yellow")
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
        phrase = f" ({printable(result.phrases[index])})" if result.phrases[index] else ""
        text.append(f"  mask {index + 1}{phrase}: {mask.mean():.1%} of the image, {count} points\n", style="dim")
        if result.said is not None and not result.said[index]:
            text.append("    given: the model by itself would not have segmented here\n", style="yellow")
    for phrase in result.rejected:
        text.append(f"  not found: {printable(phrase)}\n", style="yellow")
