"""`readseg analyse IMAGE QUERY...`: where models look and what each prompt makes of it, as a figure and numbers."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.text import Text

from readseg.analysis.answer_states import ExamineOptions
from readseg.analysis.map_metrics import read_ground_truth
from readseg.analysis.prompts import load_original_sam
from readseg.analysis.studies.maps import SamOptions
from readseg.analysis.studies.single_image import (
    ImageResult,
    ModelResult,
    examine_image,
    image_figure,
    tables_of,
    to_json,
)
from readseg.cli.benchmark import study_models
from readseg.cli.errors import printable
from readseg.cli.options import ModelsOptions, PointOptions, grouped
from readseg.cli.output import check_writable, print_tables, stdout_console
from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import ALL, DATA_SETS, DRAWN
from readseg.inference.queries import check_query
from readseg.model.prompt_format import writable

FIGURE, LAYERS, NUMBERS = "analysis.png", "layers.png", "analysis.json"


@grouped
def analyse(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY", help="What to ask about the picture.", show_default=False)
    ],
    models: ModelsOptions,
    points: PointOptions,
    sam: SamOptions,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results, by default outputs/NAME_OF_IMAGE.", show_default=False),
    ] = None,
    truth: Annotated[
        list[Path] | None,
        typer.Option(help="Picture of the expected mask, for scores; repeatable: the k-th belongs to the k-th SEG."),
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Give the models this answer, with its SEG.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also the maps of all layers.")] = False,
) -> None:
    """Draw where models look for an answer about one image, and what each prompt makes of it.

    Writes analysis.png, analysis.json and with --layers layers.png;
    of several queries into folders query_1, query_2, ... of the output folder.
    """
    # Images, truths and the folder come before any model is loaded: what is wrong is told at once.
    if image.split("/")[0] in (*DRAWN, ALL, *DATA_SETS) and not Path(image).exists():
        raise ReadsegError(f"{image} is a benchmark: readseg study maps {image} measures it; expected a picture.")
    for query in queries:
        check_query(query)
    if answer is not None and not answer.strip():
        raise ReadsegError("--answer is empty: expected a text, with [SEG] where a mask should be")
    picture = load_image(image)
    truths = tuple(read_ground_truth(file, (picture.height, picture.width)) for file in truth or ())
    folder = out if out is not None else Path("outputs") / (Path(image).stem or "image")
    check_writable(folder)
    chosen, console = study_models(models), Console(stderr=True)
    for number, query in enumerate(queries, start=1):
        results = []
        for model in track(chosen, "analysing", console=console, disable=not console.is_terminal, transient=True):
            original_sam = load_original_sam(model.segmenter, sam.sam)
            options = ExamineOptions(*points.choose(model.segmenter), original_sam, extremes=sam.extremes)
            results.append(
                examine_image(model, picture, query, truths=truths, options=options, answer=answer, layers=layers)
            )
            del original_sam, options  # parts of the model, which would stay while the next one is loaded
        result = ImageResult(image, picture, writable(query), truths, tuple(results))
        write_analysis(folder if len(queries) == 1 else folder / f"query_{number}", result, layers)


def write_analysis(folder: Path, result: ImageResult, layers: bool) -> None:
    """Print answers and tables; write all files at once: complete before the first takes its place, numbers last."""
    pictures: dict[str, Image.Image] = {FIGURE: image_figure(result)}
    if layers:
        pictures[LAYERS] = image_figure(result, layers=True)
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / LAYERS if not layers and (folder / NUMBERS).exists() else None
    with ExitStack() as stack:
        numbers = stack.enter_context(atomic_write(folder / NUMBERS))
        numbers.write_text(
            json.dumps(to_json(result), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", errors="replace"
        )
        for name, figure in pictures.items():
            figure.save(stack.enter_context(atomic_write(folder / name)), format="PNG")
        if old is not None:  # of an earlier call: all files of a folder tell of one
            old.unlink(missing_ok=True)
    console = stdout_console()
    for model in result.models:
        console.print(_answer(model))
    print_tables(tables_of(result))
    typer.echo(f"written: {', '.join(printable(str(folder / name)) for name in (*pictures, NUMBERS))}")


def _answer(model: ModelResult) -> Text:
    """A model's answer in words."""
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
