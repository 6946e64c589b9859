"""SasP anywhere, on a model without a language model: `python examples/referring train | evaluate | segment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from readseg.cli.errors import run
from readseg.cli.segment import check_writable

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "weights" / "referring"

app = typer.Typer(
    name="referring",
    help="A referring segmentation model without a language model, with READ's points.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Option(help="Folder of a trained model.", show_default="weights/referring")]
HeadName = Annotated[
    Literal["sam", "features"] | None,
    typer.Option(help="What makes the mask: SAM, or CNN features at the points. By default both, one after the other."),
]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same folder again goes on.")],
    only: Annotated[Literal["cnn", "fusion"] | None, typer.Option(help="Train this stage only.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Of the stages vision and read of the preset tiny."),
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="NAME=NUMBER", help="Of the network, such as width=64.")
    ] = None,
) -> None:
    """Train the model on what the embedded model was trained on; a run that was killed goes on."""
    from training import train_referring

    check_writable(out)
    folder = train_referring(out, only=only, changes=changes or (), sizes=sizes or ())
    typer.echo(f"model: {folder}" if folder.exists() else f"run: {out}; the stage fusion writes the model")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Gets predictions and report; an interrupted run goes on from there.")],
    model: Model = TRAINED,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes of the fixed set.")] = 600,
    head: HeadName = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="predictions.jsonl of another model, to compare with; may be given often."),
    ] = None,
) -> None:
    """Score the model on the fixed set of drawn scenes; `readseg score` reads the predictions again."""
    from scoring import evaluate_referring

    from readseg.cli.evaluate import report_results

    check_writable(out)
    results, comparison = evaluate_referring(model, out, count, head, beside or ())
    report_results(results, out, None)
    typer.echo(f"\nunion of all masks against union of all targets:\n\n{comparison}")


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="Picture to look at.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help='Such as "the red cow".')],
    out: Annotated[Path, typer.Option(help="The picture to write.")],
    model: Model = TRAINED,
) -> None:
    """Draw map, points and the masks of both heads, a row for each question."""
    from picture import figure

    from readseg.core.images import load_image
    from readseg.core.io import atomic_write
    from readseg.errors import ReadsegError

    if out.suffix.lower() != ".png":
        raise ReadsegError(f"--out {out}: expected the name of a picture that ends in .png")
    opened = load_image(image)
    check_writable(out.parent)
    drawn, lines = figure(model, opened, questions)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as place:
        drawn.save(place, format="PNG")
    for line in lines:
        typer.echo(line)
    typer.echo(f"picture: {out}")


if __name__ == "__main__":
    run(app)
