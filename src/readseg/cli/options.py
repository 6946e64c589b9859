"""Groups of options that several commands share. A command takes a group as one parameter, see `grouped`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

import readseg  # its names are imported at their first use: --help stays quick
from readseg.errors import ReadsegError

MODEL, POINTS = "Model", "Points"  # panels of --help
EMBEDDED = "embedded"
"""What the embedded model is called, also as --model."""
Prompt = Literal["both", "seg", "points"]


def grouped(command: Callable[..., None], **chosen: type) -> Callable[..., None]:
    """A command for typer: each parameter that is a dataclass becomes an option for each of its fields.

    `chosen` replaces the annotations of parameters whose dataclass is known at run time only.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    groups = {name: chosen.get(name, p.annotation) for name, p in parameters.items()}
    groups = {name: group for name, group in groups.items() if dataclasses.is_dataclass(group)}
    flat = [p.replace(kind=p.KEYWORD_ONLY) for name, p in parameters.items() if name not in groups]
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        flat += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(group)
        ]

    @functools.wraps(command)
    def run(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{f.name: options.pop(f.name) for f in dataclasses.fields(group)})
        command(**options)

    del run.__wrapped__  # typer would ask it for its signature
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in flat}
    return run


@dataclass(frozen=True)
class WeightOptions:
    """What released weights do not say of themselves."""

    family: Annotated[
        Literal["read", "sesame", "lisa", "gsva", "glamm"] | None,
        typer.Option(help="Model family, where the checkpoint does not tell it.", rich_help_panel=MODEL),
    ] = None
    vision_tower: Annotated[
        str | None, typer.Option(help="Folder or hub id of released weights' CLIP tower.", rich_help_panel=MODEL)
    ] = None
    system: Annotated[
        Literal["llava_v1", "vicuna_v1"] | None,
        typer.Option(help="System prompt of released weights; llava_v1 is that of training.", rich_help_panel=MODEL),
    ] = None
    lora_alpha: Annotated[
        float | None, typer.Option(help="Alpha of LoRA weights that are not merged yet.", rich_help_panel=MODEL)
    ] = None


@dataclass(frozen=True)
class LoadOptions(WeightOptions):
    """How a model is loaded."""

    device: Annotated[
        str | None,
        typer.Option(
            help='Where to compute, such as "cpu" or "cuda:0"; by default a GPU if there is one.', rich_help_panel=MODEL
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision; by default what fits the device and the model's size.", rich_help_panel=MODEL),
    ] = None
    bits: Annotated[
        int | None,
        typer.Option(help="8 or 4: a quantised language model (needs bitsandbytes).", rich_help_panel=MODEL),
    ] = None
    device_map: Annotated[
        str | None, typer.Option(help='"auto" spreads a large model over several GPUs.', rich_help_panel=MODEL)
    ] = None

    def load(self, source: str | None) -> readseg.Segmenter:
        """The model of a folder or a hub id; None is the embedded one."""
        names = [field.name for field in dataclasses.fields(LoadOptions)]
        return readseg.Segmenter.from_pretrained(source, **{name: getattr(self, name) for name in names})

    def settings(self, segmenter: readseg.Segmenter, source: str | None) -> dict[str, Any]:
        """What a model's answers depend on, as JSON values, the same for every command.

        Its weights too: a model that was trained on must not go on with what its former self has said.
        """
        from readseg.checkpoints.load import digest

        return {
            "model": EMBEDDED if source is None else str(Path(source)),  # with a slash behind it is the same
            "weights": digest([segmenter.model]),
            "dtype": str(segmenter.model.dtype).removeprefix("torch."),
            "bits": self.bits,
            "system": self.system,
            "own_prompt": segmenter.model.config.prompt,
        }


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """One model."""

    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a model; by default the embedded one.", rich_help_panel=MODEL),
    ] = None


@dataclass(frozen=True)
class ModelsOptions(LoadOptions):
    """Several models, side by side."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or hub id of a model, or embedded, the default; several stand beside each other.",
            rich_help_panel=MODEL,
        ),
    ] = None


@dataclass(frozen=True)
class PromptOptions:
    """What prompts the mask decoder."""

    points: Annotated[
        Literal["on", "off", "only"] | None,
        typer.Option(
            help="Similarity as points for any family: on, off (the SEG embedding alone) or only (without it).",
            rich_help_panel=POINTS,
        ),
    ] = None

    def choose(self, segmenter: readseg.Segmenter) -> tuple[Prompt | None, readseg.PointConfig | None]:
        """What `Segmenter.segment` takes: the prompt, and the model's settings of points with what was given."""
        prompts: dict[str | None, Prompt | None] = {None: None, "on": "both", "off": "seg", "only": "points"}
        prompt, config = prompts[self.points], segmenter.model.config
        changes = {
            f.name: value
            for f in dataclasses.fields(self)
            if f.name != "points" and (value := getattr(self, f.name)) is not None
        }
        if changes.get("threshold") == "std" and {"t_pos", "t_neg"} & changes.keys():
            raise ReadsegError("--t-pos, --t-neg: the rule std takes its thresholds from the map; leave them out.")
        if changes and (prompt or config.prompt) == "seg":
            names = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
            raise ReadsegError(f"{names}: this model is prompted without points; add --points on.")
        if not changes:
            return prompt, None
        try:
            return prompt, dataclasses.replace(config.points, **changes)
        except ValueError as error:
            raise ReadsegError(str(error)) from error


@dataclass(frozen=True)
class GridOptions:
    """How the map becomes labelled cells."""

    downsample: Annotated[
        int | None, typer.Option(min=1, help="Reduce the token grid by this factor first.", rich_help_panel=POINTS)
    ] = None
    alignment: Annotated[
        Literal["reference", "exact"] | None,
        typer.Option(help="Where the grid lies: rounded as in READ's training, or exactly.", rich_help_panel=POINTS),
    ] = None
    threshold: Annotated[
        Literal["range", "std"] | None,
        typer.Option(
            help="range: --t-pos and --t-neg on the min-max map; std: mean +/- half a deviation (the paper's text).",
            rich_help_panel=POINTS,
        ),
    ] = None


@dataclass(frozen=True)
class PointOptions(GridOptions, PromptOptions):
    """How many points are chosen, and where."""

    num_points: Annotated[
        int | None, typer.Option(min=1, help="The most points for a SEG.", rich_help_panel=POINTS)
    ] = None
    t_pos: Annotated[
        float | None, typer.Option(min=0, max=1, help="Similarity of positive points, from.", rich_help_panel=POINTS)
    ] = None
    t_neg: Annotated[
        float | None, typer.Option(min=0, max=1, help="Similarity of negative points, up to.", rich_help_panel=POINTS)
    ] = None


@dataclass(frozen=True)
class OwnPoints:
    """No options of points: each model's own settings."""

    def choose(self, segmenter: readseg.Segmenter) -> tuple[None, None]:
        """Nothing to change."""
        return None, None


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which images of a benchmark, and how they are asked."""

    data: Annotated[Path | None, typer.Option(help="The folder that all data sets lie in.")] = None
    protocol: Annotated[
        Literal["forced", "generated"] | None,
        typer.Option(help="Give the model its answer, or let it answer; by default as each set is published."),
    ] = None
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            help="Images: the first scenes (300 by default), or a sample spread over a data set (all by default).",
        ),
    ] = None


def print_notes(segmenter: readseg.Segmenter) -> None:
    """Say on stderr what a model's files were taken for; nothing of the embedded one."""
    for note in segmenter.notes:
        typer.echo(f"readseg: {note}", err=True)
