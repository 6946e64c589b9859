"""The command line, one file per command. Commands import what is heavy when they run: `--help` stays quick."""

from __future__ import annotations

import typer

from readseg.cli import ablate, analyse, chat, convert, data, evaluate, merge, score, segment, train
from readseg.cli.errors import run

app = typer.Typer(
    name="readseg",
    help="Reasoning segmentation: ask for an object in words, get an answer, its mask and the points that found it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("segment")(segment.segment)
app.command("chat")(chat.chat)
app.command("train")(train.train)
app.command("merge")(merge.merge)
app.command("convert")(convert.convert)
app.command("evaluate")(evaluate.evaluate)
app.command("score")(score.score)
app.command("analyse")(analyse.analyse)
app.command("ablate")(ablate.ablate)
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry point of `readseg`: runs a command; bad input is one line on stderr and exit code 2."""
    run(app)
