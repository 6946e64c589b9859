"""`readseg analyse IMAGE QUERY`: one figure of where models look and what each prompt makes of it, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from readseg.cli.errors import printable
from readseg.cli.segment import check_writable

if TYPE_CHECKING:
    from PIL import Image

    from readseg.analysis.studies.single_image import ImageFound, ModelFound
    from readseg.analysis.truth import Truth
    from readseg.cli.jobs import Model
    from readseg.core.sasp import PointConfig
    from readseg.inference.segmenter import Segmenter
    from readseg.model.config import Prompt

FIGURE, LAYERS, NUMBERS = "analysis.png", "layers.png", "analysis.json"

PointOptions = Callable[["Segmenter"], "tuple[Prompt | None, PointConfig | None]"]
"""What prompts a model's own masks, and how points are chosen, where options say so (`options.point_options`)."""


class Inputs(NamedTuple):
    """What a user names, checked.

    image: RGB, upright.
    truths: what is expected; none where that is not given.
    out: the folder of the results; may not exist yet.
    """

    image: Image.Image
    truths: tuple[Truth, ...]
    out: Path


def check_inputs(
    target: str, query: str, *, truth: Path | Sequence[Path] | None, out: Path | None, answer: str | None
) -> Inputs:
    """Reads what the command needs, before any model is loaded: what is wrong is told at once.

    Args:
        target: the image's file.
        query: what to ask.
        truth: a mask's file: what every [SEG] is held against; or several, the k-th for the k-th [SEG].
        out: a folder; by default outputs/NAME_OF_IMAGE.
        answer: to give to the models.

    Raises:
        ReadsegError: the image or the truth cannot be used, the query or the answer is empty, or the folder cannot be
            written to.
    """
    from readseg.analysis.truth import read_truth
    from readseg.core.images import load_image
    from readseg.errors import ReadsegError
    from readseg.inference.queries import check_query

    check_query(query)
    if answer is not None and not answer.strip():
        raise ReadsegError("--answer is empty: expected a text, with [SEG] where a mask should be")
    image = load_image(target)
    files = [truth] if isinstance(truth, Path) else truth or []
    truths = tuple(read_truth(file, (image.height, image.width)) for file in files)
    folder = out if out is not None else Path("outputs") / (Path(target).stem or "image")
    check_writable(folder)
    return Inputs(image, truths, folder)


def analyse_image(
    target: str,
    query: str,
    *,
    truth: Path | Sequence[Path] | None,
    out: Path | None,
    models: Sequence[Model],
    plain: str | Path | None = None,
    points: PointOptions | None = None,
    answer: str | None = None,
    layers: bool = False,
    extremes: int | None = None,
) -> None:
    """Asks all models, prints tables, and writes the figure and the numbers, each whole or not at all.

    Args:
        target: the image's file.
        query: what to ask.
        truth: as in `check_inputs`.
        out: as in `check_inputs`.
        models: at least one, loaded.
        plain: where the original SAM is (`plain_sam`); by default beside each model's own weights.
        points: gives each model its prompt and its settings of points; by default the model's own.
        answer: to give to the models; by default they answer by themselves.
        layers: whether to draw and measure the maps of all layers too.
        extremes: k of the prompt "plain_extremes"; `looks.EXTREMES` by default.

    Raises:
        ReadsegError: as `check_inputs` and `single.examine_image`.
    """
    import sys

    import typer
    from rich.console import Console
    from rich.progress import track

    from readseg.analysis.looks import EXTREMES
    from readseg.analysis.original_sam import plain_sam
    from readseg.analysis.studies.figures import image_figure, layers_figure
    from readseg.analysis.studies.single_image import ImageFound, examine_image
    from readseg.analysis.studies.single_tables import tables_of
    from readseg.cli.jobs import show
    from readseg.model.prompt_format import writable

    given = check_inputs(target, query, truth=truth, out=out, answer=answer)
    looked = []
    stderr = Console(stderr=True)
    for model in track(models, "looking", console=stderr, disable=not stderr.is_terminal, transient=True):
        prompt, settings = (None, None) if points is None else points(model.segmenter)
        looked.append(
            examine_image(
                model.segmenter,
                given.image,
                query,
                truths=given.truths,
                plain=plain_sam(model.segmenter, plain),
                answer=answer,
                prompt=prompt,
                points=settings,
                extremes=extremes or EXTREMES,
                layers=layers,
                name=model.name,
                source=model.source,
                settings=model.settings,
            )
        )
    found = ImageFound(target, given.image, writable(query), given.truths, tuple(looked))
    pictures = {FIGURE: image_figure(found)} | ({LAYERS: layers_figure(found)} if layers else {})
    _write(given.out, found, pictures)

    console = Console(width=None if sys.stdout.isatty() else 120)
    for one in found.models:
        console.print(_told(one))
    show(tables_of(found))
    typer.echo(f"written: {', '.join(printable(str(given.out / name)) for name in (*pictures, NUMBERS))}")


def _told(model: ModelFound) -> object:
    """A model's answer in words."""
    from rich.text import Text

    text = Text(f"{printable(model.name)}: ", style="bold")
    text.append(printable(model.answer) or "(no words)", style="green" if model.segs else "yellow")
    if model.given:
        text.append("  (given to the model)", style="dim")
    if not model.finished:
        text.append("  (cut off at its longest length)", style="yellow")
    if model.segs:
        return text
    text.append("\n  " + ("no [SEG] in the given answer" if model.given else "no [SEG] in the answer"), style="yellow")
    if model.nearest is not None:
        near = model.nearest
        text.append(f'; it came nearest to it at "{printable(near.token)}", with a chance of {near.probability:.2g}')
    return text


def _write(folder: Path, found: ImageFound, pictures: dict[str, Image.Image]) -> None:
    """All files at once: they are complete before the first of them takes its place, the numbers last."""
    import json
    from contextlib import ExitStack

    from readseg.core.io import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    old = folder / LAYERS if LAYERS not in pictures and (folder / NUMBERS).exists() else None
    with ExitStack() as stack:
        numbers = stack.enter_context(atomic_write(folder / NUMBERS))
        numbers.write_text(
            json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", errors="replace"
        )
        for name, picture in pictures.items():
            picture.save(stack.enter_context(atomic_write(folder / name)), format="PNG")
        if old is not None:  # of an earlier call: all files of a folder tell of one
            old.unlink(missing_ok=True)
