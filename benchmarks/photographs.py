"""What a model that was trained on drawings says of photographs: asked for the name of every class that it knows.

    python benchmarks/photographs.py                              # two photographs that scikit-learn ships
    python benchmarks/photographs.py garden.jpg --there tree --there cat --out outputs/photographs

"where is the {name}?" for each of the trained classes. Hardly any of them is in a photograph, and a model that never
saw one should refuse rather than invent. Tells for each photograph how many names are refused and what is claimed, on
how much of the image; and how many refusals go on to name a thing that is not there ("..., but there is a horse.").

Classes that --there names are left out of all counts and told apart: what is in the photographs, or could be taken for
it. With --out every claim is drawn, a picture for each photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from readseg import ReadsegError, Segmentation, Segmenter
from readseg.cli.errors import printable, run
from readseg.cli.output import check_writable
from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.evaluation.unseen import names_what_is_not_there
from readseg.scenes.classes import CLASSES, TRAINED
from readseg.viz.overlays import contact_sheet, overlay

SHIPPED = {"china.jpg": ("tree",), "flower.jpg": ("sunflower", "tulip")}
"""The photographs of scikit-learn: a pagoda among trees; a dahlia, neither of the two flowers but like them."""

Photograph = tuple[str, Image.Image, Sequence[str]]
"""Its name, its pixels, and the classes that are there."""


def main(
    image: Annotated[list[Path] | None, typer.Argument(help="By default two that scikit-learn ships.")] = None,
    there: Annotated[
        list[str] | None, typer.Option("--there", help="A class that is in the images given; may be given often.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder that gets a picture of all claims.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Folder or hub id; by default the embedded one.")] = None,
) -> None:
    for name in there or ():
        if name not in TRAINED:
            raise ReadsegError(f"--there {name}: expected one of the trained classes: {', '.join(TRAINED)}")
    if there and not image:
        raise ReadsegError("--there: of images that you give; leave it out for those of scikit-learn")
    if out is not None:
        check_writable(out)
    photographs = [(place.name, load_image(place), there or ()) for place in image] if image else shipped()
    segmenter = Segmenter.from_pretrained(model)
    counts = []
    for number, (name, picture, here) in enumerate(photographs, start=1):
        answers = dict(zip(TRAINED, segmenter.segment(picture, [question(n) for n in TRAINED], asks=True), strict=True))
        others = {known: answer for known, answer in answers.items() if known not in here}
        typer.echo(f"{printable(name)} ({picture.width} x {picture.height})")
        counts.append((tell(others), len(others)))
        for known in here:
            typer.echo(f"  there, or like what is there: the {known}: {said(answers[known])}")
        if out is not None and any(answer.mask.any() for answer in answers.values()):
            place = out / f"{number:02}-{Path(name).stem}.png"
            out.mkdir(parents=True, exist_ok=True)
            with atomic_write(place) as file:
                draw(answers, here).save(file, "PNG", optimize=True)
            typer.echo(f"  picture: {printable(str(place))}")
    refused, asked = (sum(column) for column in zip(*counts, strict=True))
    typer.echo(f"all photographs: {refused} of {asked} names refused ({refused / asked:.3f})")


def shipped() -> list[Photograph]:
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ReadsegError(
            "no IMAGE was given, and scikit-learn, which ships two, is not installed: pip install scikit-learn"
        ) from error
    return [(name, load_image(load_sample_image(name)), here) for name, here in SHIPPED.items()]


def question(name: str) -> str:
    return f"where {'are' if CLASSES[name].is_plural else 'is'} the {name}?"


def tell(answers: dict[str, Segmentation]) -> int:
    """Prints what is refused and what is claimed; returns how many are refused."""
    claimed = {name: answer for name, answer in answers.items() if answer.mask.any()}
    refused = [answer for name, answer in answers.items() if name not in claimed]
    invented = sum(names_what_is_not_there(answer.answer) for answer in refused)
    typer.echo(f"  refused: {len(refused)} of {len(answers)} names")
    typer.echo(f"  refusals that go on to name a thing that is not there: {invented}")
    for name, answer in sorted(claimed.items(), key=lambda pair: -np.count_nonzero(pair[1].mask)):
        typer.echo(f"  claimed: the {name}: {said(answer)}")
    return len(refused)


def said(answer: Segmentation) -> str:
    """An answer in its words, with what it marks."""
    marks = f"{answer.mask.mean():.1%} of the image" if answer.mask.any() else "no mask"
    return f'"{printable(answer.answer)}", {marks}'


def draw(answers: dict[str, Segmentation], here: Sequence[str]) -> Image.Image:
    """All claims side by side; what is there says so."""
    claimed = {name: answer for name, answer in answers.items() if answer.mask.any()}
    captions = [
        f"the {name}{' (there, or like it)' if name in here else ''}: {answer.answer}"
        for name, answer in claimed.items()
    ]
    return contact_sheet([overlay(a.image, a.masks) for a in claimed.values() if a.image is not None], captions)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    run(app)
