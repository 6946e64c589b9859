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


def _option(panel: str, help: str, **limits: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=panel, **limits)


@dataclass(frozen=True)
class WeightOptions:
    """What released weights do not say of themselves."""

    family: Annotated[
        Literal["read", "sesame", "lisa", "gsva", "glamm"] | None,
        _option(MODEL, "Model family, where the checkpoint does not tell it."),
    ] = None
    vision_tower: Annotated[str | None, _option(MODEL, "Folder or hub id of released weights' CLIP tower.")] = None
    system: Annotated[
        Literal["llava_v1", "vicuna_v1"] | None,
        _option(MODEL, "System prompt of released weights; llava_v1 is that of training."),
    ] = None
    lora_alpha: Annotated[float | None, _option(MODEL, "Alpha of LoRA weights that are not merged yet.")] = None


@dataclass(frozen=True)
class LoadOptions(WeightOptions):
    """How a model is loaded."""

    device: Annotated[
        str | None, _option(MODEL, 'Where to compute, such as "cpu" or "cuda:0"; by default a GPU if there is one.')
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        _option(MODEL, "Precision; by default what fits the device and the model's size."),
    ] = None
    bits: Annotated[int | None, _option(MODEL, "8 or 4: a quantised language model (needs bitsandbytes).")] = None
    device_map: Annotated[str | None, _option(MODEL, '"auto" spreads a large model over several GPUs.')] = None

    def load(self, source: str | None) -> readseg.Segmenter:
        """The model of a folder or a hub id; None is the embedded one."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(LoadOptions)}
        return readseg.Segmenter.from_pretrained(source, **options)

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

    model: Annotated[str | None, _option(MODEL, "Folder or hub id of a model; by default the embedded one.")] = None


@dataclass(frozen=True)
class ModelsOptions(LoadOptions):
    """Several models, side by side."""

    model: Annotated[
        list[str] | None, _option(MODEL, "Folder or hub id of a model, or embedded, the default; repeatable.")
    ] = None


@dataclass(frozen=True)
class PromptOptions:
    """What prompts the mask decoder."""

    points: Annotated[
        Literal["on", "off", "only"] | None,
        _option(POINTS, "Similarity as points for any family: on, off (the SEG embedding alone) or only (without it)."),
    ] = None

    def choose(self, segmenter: readseg.Segmenter) -> tuple[Prompt | None, readseg.PointConfig | None]:
        """What `Segmenter.segment` takes: the prompt, and the model's settings of points with what was given."""
        changes = {name: value for name, value in vars(self).items() if value is not None}
        prompts: dict[str | None, Prompt | None] = {None: None, "on": "both", "off": "seg", "only": "points"}
        prompt, config = prompts[changes.pop("points", None)], segmenter.model.config
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

    downsample: Annotated[int | None, _option(POINTS, "Reduce the token grid by this factor first.", min=1)] = None
    alignment: Annotated[
        Literal["reference", "exact"] | None,
        _option(POINTS, "Where the grid lies: rounded as in READ's training, or exactly."),
    ] = None
    threshold: Annotated[
        Literal["range", "std"] | None,
        _option(POINTS, "range: --t-pos and --t-neg on the min-max map; std: mean +/- half a deviation (the paper)."),
    ] = None


@dataclass(frozen=True)
class PointOptions(GridOptions, PromptOptions):
    """How many points are chosen, and where."""

    num_points: Annotated[int | None, _option(POINTS, "The most points for a SEG.", min=1)] = None
    t_pos: Annotated[float | None, _option(POINTS, "Similarity of positive points, from.", min=0, max=1)] = None
    t_neg: Annotated[float | None, _option(POINTS, "Similarity of negative points, up to.", min=0, max=1)] = None


@dataclass(frozen=True)
class DataOptions:
    """Where benchmarks lie, and how they are asked."""

    data: Annotated[Path | None, typer.Option(help="The folder that all data sets lie in.")] = None
    protocol: Annotated[
        Literal["forced", "generated"] | None,
        typer.Option(help="Give the model its answer, or let it answer; by default as each set is published."),
    ] = None


@dataclass(frozen=True)
class BenchmarkOptions(DataOptions):
    """Which images of a benchmark, and how they are asked."""

    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            help="Images: the first scenes (300 by default), or a sample spread over a data set (all by default).",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results, by default such as runs/analysis/MODEL/BENCHMARK-STUDY; an interrupted run "
            "goes on from there."
        ),
    ] = None


def print_notes(segmenter: readseg.Segmenter) -> None:
    """Say on stderr what a model's files were taken for; nothing of the embedded one."""
    for note in segmenter.notes:
        typer.echo(f"readseg: {note}", err=True)
