"""`readseg chat`: a conversation about an image, at a prompt or with questions piped in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from readseg.cli.options import ModelOptions, PromptOptions, grouped, print_notes
from readseg.cli.output import check_writable, print_answer
from readseg.core.images import load_image
from readseg.errors import ReadsegError

END_WORDS = frozenset({"exit", "quit", "/exit", "/quit"})


@grouped
def chat(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    model: ModelOptions,
    points: PromptOptions,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures and JSON of each turn, in turn_K; by default none are written."),
    ] = None,
) -> None:
    """Talk about an image over several turns; "exit", or the end of the input, ends it.

    Questions may also come through a pipe, one a line.
    """
    picture = load_image(image)
    if out is not None:
        check_writable(out)

    segmenter = model.load(model.model)
    prompt, _ = points.choose(segmenter)
    print_notes(segmenter)
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
        print_answer(result, place, question=not interactive)


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
