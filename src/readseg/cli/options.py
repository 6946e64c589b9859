"""Options that several commands share: which model, how it is loaded, and how points prompt the mask decoder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from readseg.core.sasp import PointConfig
    from readseg.inference.segmenter import Segmenter
    from readseg.model.config import Prompt

MODEL, POINTS = "Model", "Points"  # panels of --help

Model = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of a model; by default the embedded one.", rich_help_panel=MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(
        help='Where to compute, such as "cpu" or "cuda:0"; by default a GPU if there is one.', rich_help_panel=MODEL
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Precision; by default what fits the device and the model's size.", rich_help_panel=MODEL),
]
Bits = Annotated[
    int | None,
    typer.Option(help="8 or 4: a quantised language model (needs bitsandbytes).", rich_help_panel=MODEL),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help='"auto" spreads a large model over several GPUs.', rich_help_panel=MODEL),
]
FamilyName = Annotated[
    Literal["read", "sesame", "lisa", "gsva", "glamm"] | None,
    typer.Option("--family", help="Of released weights, where their files do not tell it.", rich_help_panel=MODEL),
]
VisionTower = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of released weights' CLIP tower.", rich_help_panel=MODEL),
]
System = Annotated[
    Literal["llava_v1", "vicuna_v1"] | None,
    typer.Option(help="System prompt of released weights; llava_v1 is that of training.", rich_help_panel=MODEL),
]
LoraAlpha = Annotated[
    float | None,
    typer.Option(help="Alpha of LoRA weights that are not merged yet.", rich_help_panel=MODEL),
]

PointsSwitch = Annotated[
    Literal["on", "off", "only"] | None,
    typer.Option(
        "--points",
        help="Similarity as points for any family: on, off (the SEG embedding alone) or only (without it).",
        rich_help_panel=POINTS,
    ),
]
NumPoints = Annotated[int | None, typer.Option(min=1, help="The most points for a SEG.", rich_help_panel=POINTS)]
TPos = Annotated[
    float | None, typer.Option(min=0, max=1, help="Similarity of positive points, from.", rich_help_panel=POINTS)
]
TNeg = Annotated[
    float | None, typer.Option(min=0, max=1, help="Similarity of negative points, up to.", rich_help_panel=POINTS)
]
Downsample = Annotated[
    int | None, typer.Option(min=1, help="Reduce the token grid by this factor first.", rich_help_panel=POINTS)
]
AlignmentName = Annotated[
    Literal["reference", "exact"] | None,
    typer.Option(
        "--alignment", help="Where the grid lies: rounded as in READ's training, or exactly.", rich_help_panel=POINTS
    ),
]
ThresholdRule = Annotated[
    Literal["range", "std"] | None,
    typer.Option(
        "--threshold",
        help="range: --t-pos and --t-neg on the min-max map; std: mean +/- half a deviation (the paper's text).",
        rich_help_panel=POINTS,
    ),
]

_PROMPTS: dict[str | None, Prompt | None] = {None: None, "on": "both", "off": "seg", "only": "points"}


def load_segmenter(name: str | None, **options: Any) -> Segmenter:
    """The model of the options above."""
    from readseg.inference.segmenter import Segmenter  # brings torch along

    return Segmenter.from_pretrained(name, **options)


def tell(segmenter: Segmenter) -> None:
    """Say on stderr what a model's files were taken for; nothing of the embedded one."""
    for note in segmenter.notes:
        typer.echo(f"readseg: {note}", err=True)


def point_options(
    segmenter: Segmenter, switch: str | None, **settings: float | str | None
) -> tuple[Prompt | None, PointConfig | None]:
    """What `Segmenter.segment` takes: the prompt, and the model's settings of points with what was given.

    Raises:
        ReadsegError: a setting that makes no sense, or that nothing would use.
    """
    changes: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    prompt = _PROMPTS[switch]
    config = segmenter.model.config
    if settings.get("threshold") == "std" and {"t_pos", "t_neg"} & changes.keys():
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
