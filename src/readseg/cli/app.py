"""The commands by name. A command's module is imported when it is called, so that `--help` stays quick."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from readseg.cli.errors import run

COMMANDS = {
    "segment": "Answer questions about an image: what is asked for, where it is, and the points that found it.",
    "chat": 'Talk about an image over several turns; "exit", or the end of the input, ends it.',
    "train": "Train a model from a recipe; a run that was killed goes on from its last checkpoint.",
    "merge": "Write a trained model whole: the weights that training started from, with the adapter merged into them.",
    "convert": "Read weights in any layout this package knows and write them in another; LoRA weights are merged.",
    "evaluate": "Score a model on benchmarks: of the field, below --data, or drawn: scenes, and what it never saw.",
    "score": "Score predictions that readseg evaluate has written; several together stand in the same tables.",
    "analyse": "Draw where models look for an answer about one image, and what each prompt makes of it.",
    "study": "Measure how models work on a benchmark: maps, layers, necessity of SEG, knowledge, answers.",
    "ablate": "Compare ways to prompt a trained model, and, with several --model, models trained in different ways.",
    "data": "Make, check and show data sets.",
}
"""Each is the function, or the app, of the same name in readseg.cli.NAME; its help begins with this line."""


def lazy_group(commands: dict[str, str], load: Callable[[str], Any]) -> type[TyperGroup]:
    """A group that knows the first line of help of its commands, and loads the one that is called."""

    class LazyGroup(TyperGroup):
        """Stubs for `--help`; a command takes the place of its stub when it is called."""

        def __init__(self, **settings: Any) -> None:
            stubs = {name: TyperCommand(name, help=text) for name, text in commands.items()}
            super().__init__(**{**settings, "commands": stubs})

        def load_command(self, name: str) -> Any:
            """Puts a command in the place of its stub."""
            self.commands[name] = load(name)
            return self.commands[name]

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            """As typer's, with the command that is called loaded first."""
            if args and args[0] in commands:
                self.load_command(args[0])
            return super().resolve_command(ctx, args)

    return LazyGroup


def as_command(name: str, function: Callable[..., Any], help: str | None = None) -> Any:
    """A function with annotated options as a command."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=help)(function)
    return typer.main.get_command(single)


def _load(name: str) -> Any:
    module = import_module(f"readseg.cli.{name}")
    if hasattr(module, "app"):
        return typer.main.get_group(module.app)
    return as_command(name, getattr(module, name))


app = typer.Typer(
    name="readseg", cls=lazy_group(COMMANDS, _load), no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback()
def readseg() -> None:
    """Reasoning segmentation: ask for an object in words, get an answer, its mask and the points that found it."""


def main() -> None:
    """Entry point of `readseg`: runs a command; bad input is one line on stderr and exit code 2."""
    run(app)
