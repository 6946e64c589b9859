"""`readseg chat`: a conversation about an image, at a prompt or with questions piped in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from readseg.cli import options
from readseg.cli.segment import check_writable, show
from readseg.errors import ReadsegError

END_WORDS = frozenset({"exit", "quit", "/exit", "/quit"})


def chat(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures and JSON of each turn, in turn_K; by default none are written."),
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
) -> None:
    """Talk about an image over several turns; "exit", or the end of the input, ends it.

    Questions may also come through a pipe, one a line.
    """
    from readseg.core.images import load_image

    picture = load_image(image)
    if out is not None:
        check_writable(out)

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
    prompt, _ = options.point_options(segmenter, points)
    options.tell(segmenter)
    conversation = segmenter.chat(picture)
    interactive = sys.stdin is not None and sys.stdin.isatty()
    for text in _questions(interactive):
        try:
            result = conversation.ask(text, prompt=prompt)
        except ReadsegError as error:
            if not interactive:
                raise
            typer.echo(f"readseg: {error}", err=True)
            continue
        place = None
        if out is not None:
            place = result.save(out / f"turn_{len(conversation.turns)}")
        show(result, place, question=not interactive)


def _questions(interactive: bool) -> Iterator[str]:
    """Lines of text until the end, blank ones left out."""
    if interactive:
        import readline  # noqa: F401 - arrow keys and history for input()
    while sys.stdin is not None:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise ReadsegError("the input is not UTF-8 text") from error
        if line.lower() in END_WORDS:
            return
        if line:
            yield line
