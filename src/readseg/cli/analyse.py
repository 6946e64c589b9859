"""`readseg analyse`: how the SEG token works, on one image or on a benchmark, for one model or several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from readseg.cli import options
from readseg.cli.segment import check_writable
from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from readseg.cli.jobs import Job, Model
    from readseg.core.sasp import PointConfig
    from readseg.evaluation.benchmarks import Benchmark
    from readseg.inference.segmenter import Segmenter
    from readseg.model.config import Prompt

Study = Literal["maps", "layers", "necessity", "knowledge", "answers"]

IMAGE, BENCHMARK = "One image", "A benchmark"  # panels of --help
SCENES_BY_DEFAULT = 300

_ALL = ("maps", "layers", "necessity", "knowledge", "answers")
_ASKED = ("image", "maps", "layers")
# Which work uses an option; who gives it for other work means something that will not happen.
_USED_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("--truth", "--answer", "--layers"), ("image",)),
    **dict.fromkeys(("--sam", "--extremes"), ("image", "maps")),
    "--clip": ("maps",),
    "--predictions": ("knowledge", "answers"),
    **dict.fromkeys(("--rows", "--pick", "--seed"), ("answers",)),
    **dict.fromkeys(("--study", "--data", "--protocol", "--count"), _ALL),
    **dict.fromkeys(
        ("--points", "--num-points", "--t-pos", "--t-neg", "--downsample", "--alignment", "--threshold"), _ASKED
    ),
}


def analyse(
    target: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|BENCHMARK",
            help="A picture, with a QUERY; or scenes, or a split such as reasonseg/val or refcoco/testA.",
            show_default=False,
        ),
    ],
    query: Annotated[
        str | None, typer.Argument(metavar="[QUERY]", help="What to ask about the picture.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or hub id of a model, or embedded, the default; several stand beside each other.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results, by default outputs/IMAGE or runs/analysis/MODEL/BENCHMARK-STUDY; an "
            "interrupted study goes on from there.",
            show_default=False,
        ),
    ] = None,
    sam: Annotated[
        str | None,
        typer.Option(
            help="The SAM that the model was trained from: folder, hub id or .pth file; by default its mask decoder "
            "beside the model."
        ),
    ] = None,
    extremes: Annotated[
        int | None,
        typer.Option(min=1, help="So many highest and lowest cells prompt that SAM too; 5 by default."),
    ] = None,
    truth: Annotated[
        list[Path] | None,
        typer.Option(
            help="Picture of the expected mask, for scores; given often, the k-th is that of the k-th SEG.",
            rich_help_panel=IMAGE,
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Give the models this answer, with its SEG.", rich_help_panel=IMAGE)
    ] = None,
    layers: Annotated[bool, typer.Option(help="Also the maps of all layers.", rich_help_panel=IMAGE)] = False,
    study: Annotated[
        Study | None,
        typer.Option(
            help="maps (default): what maps and prompts are worth; layers: a map at each layer; necessity: SEG as the "
            "decision to segment; knowledge: things named and described; answers: a sheet of answers.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder that all data sets lie in.", rich_help_panel=BENCHMARK)
    ] = None,
    protocol: Annotated[
        Literal["forced", "generated"] | None,
        typer.Option(
            help="Give the model its answer, or let it answer; by default as each set is published.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            help="Images: the first scenes (300 by default), or a sample spread over a data set (all by default).",
            rich_help_panel=BENCHMARK,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="maps: folder or hub id of a CLIP with its text encoder.", rich_help_panel=BENCHMARK),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            help="knowledge, answers: predictions of other systems, beside the models.", rich_help_panel=BENCHMARK
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="answers: questions on the sheet; 8 by default.", rich_help_panel=BENCHMARK),
    ] = None,
    pick: Annotated[
        Literal["mixed", "worst", "best", "random"] | None,
        typer.Option(help="answers: which questions; mixed by default.", rich_help_panel=BENCHMARK),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="answers: of --pick random; 0 by default.", rich_help_panel=BENCHMARK)
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    bits: options.Bits = None,
    device_map: options.DeviceMap = None,
    family: options.FamilyName = None,
    vision_tower: options.VisionTower = None,
    system: options.System = None,
    lora_alpha: options.LoraAlpha = None,
    points: options.PointsSwitch = None,
    num_points: options.NumPoints = None,
    t_pos: options.TPos = None,
    t_neg: options.TNeg = None,
    downsample: options.Downsample = None,
    alignment: options.AlignmentName = None,
    threshold: options.ThresholdRule = None,
) -> None:
    """Look into models: one figure of an image and a question, or a study of a benchmark, as numbers and pictures.

    Writes tables as Markdown, JSON and CSV, what was measured of each question, and pictures.
    """
    work = (study or "maps") if query is None else "image"
    settings = {
        "num_points": num_points,
        "t_pos": t_pos,
        "t_neg": t_neg,
        "downsample": downsample,
        "alignment": alignment,
        "threshold": threshold,
    }
    _check_used(
        work,
        {
            "--truth": truth or None,
            "--answer": answer,
            "--layers": layers or None,
            "--sam": sam,
            "--clip": clip,
            "--extremes": extremes,
            "--predictions": predictions or None,
            "--rows": rows,
            "--pick": pick,
            "--seed": seed,
            "--study": study,
            "--data": data,
            "--protocol": protocol,
            "--count": count,
            "--points": points,
            **{f"--{name.replace('_', '-')}": value for name, value in settings.items()},
        },
    )

    def chosen_points(segmenter: Segmenter) -> tuple[Prompt | None, PointConfig | None]:
        return options.point_options(segmenter, points, **settings)

    loading = {
        "device": device,
        "dtype": dtype,
        "bits": bits,
        "device_map": device_map,
        "family": family,
        "vision_tower": vision_tower,
        "system": system,
        "lora_alpha": lora_alpha,
    }
    from readseg.cli.jobs import Job, models_of

    if query is not None:
        from readseg.cli.analyse_image import analyse_image, check_inputs

        _check_image(target)
        check_inputs(target, query, truth=truth, out=out, answer=answer)  # before any model is looked for
        models = models_of(model, loading=loading)
        analyse_image(
            target,
            query,
            truth=truth,
            out=out,
            models=models,
            plain=sam,
            points=chosen_points,
            answer=answer,
            layers=layers,
            extremes=extremes,
        )
        return
    benchmark = opened(data, target, protocol, count)
    models = models_of(model, loading=loading)
    folder = out if out is not None else _default_folder(models, benchmark, work)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(benchmark, models, folder, count, data)
    extra = {"rows": rows, "pick": pick, "seed": seed}
    _study(job, work, chosen_points, sam, clip, extremes, predictions or (), extra)


def _study(
    job: Job,
    work: str,
    points: Any,
    sam: str | None,
    clip: str | None,
    extremes: int | None,
    predictions: Sequence[Path],
    sheet: Mapping[str, Any],
) -> None:
    from readseg.cli import study_answers, study_knowledge, study_layers, study_maps, study_necessity

    if work == "maps":
        study_maps.run(job, points, sam, clip, extremes)
    elif work == "layers":
        study_layers.run(job, points)
    elif work == "necessity":
        study_necessity.run(job)
    elif work == "knowledge":
        study_knowledge.run(job, predictions)
    else:
        study_answers.run(job, predictions, sheet["rows"] or 8, sheet["pick"] or "mixed", sheet["seed"] or 0)


def opened(
    data: Path | None, name: str, protocol: Literal["forced", "generated"] | None, count: int | None
) -> Benchmark:
    """The one benchmark that a name stands for.

    Raises:
        ReadsegError: it stands for none or for several, or its data are not there.
    """
    from readseg.evaluation.benchmarks import ALL, DATA_SETS, DRAWN, SCENES, UNSEEN, open_benchmark, resolve

    known = name == ALL or name.split("/")[0] in (*DRAWN, *DATA_SETS)
    if not known and Path(name).is_file():
        raise ReadsegError(f"{name}: QUERY is missing: say what to ask about the picture.")
    if not known and (Path(name).suffix or Path(name).is_dir()):
        raise ReadsegError(f"{name}: no such picture, nor a benchmark such as scenes or reasonseg/val.")
    if name == UNSEEN:
        raise ReadsegError(
            f"benchmark {UNSEEN}: it has no masks to compare with; readseg evaluate {UNSEEN} says what is refused."
        )
    if protocol == "forced" and name == SCENES:
        raise ReadsegError("--protocol forced: scenes are scored under the protocol generated only.")
    names = resolve(data, [name])
    if len(names) > 1:
        raise ReadsegError(f"benchmark {name}: a study takes one split: {', '.join(names)}.")
    if names[0] != SCENES:
        return open_benchmark(data or Path(), names[0], protocol)
    from readseg.evaluation.scenes import SceneSet, scene_benchmark  # needs the extra "scenes"

    return scene_benchmark(SceneSet(scenes=count or SCENES_BY_DEFAULT))


def _check_used(work: str, given: Mapping[str, Any]) -> None:
    """An option that nothing would use is an error, not silence."""
    what = "one image" if work == "image" else f"the study {work}"
    for option, value in given.items():
        users = _USED_BY[option]
        if value is not None and work not in users:
            named = ["an image with a QUERY" if user == "image" else f"--study {user}" for user in users]
            of = "a benchmark, without a QUERY" if users == _ALL else " or ".join(named)
            raise ReadsegError(f"{option}: of {of}, not of {what}; leave it out.")


def _check_image(target: str) -> None:
    from readseg.evaluation.benchmarks import ALL, DATA_SETS, DRAWN

    if target.split("/")[0] in (*DRAWN, ALL, *DATA_SETS) and not Path(target).exists():
        raise ReadsegError(f"{target} is a benchmark: leave QUERY out, or name a picture's file.")


def _default_folder(models: Sequence[Model], benchmark: Benchmark, study: str) -> Path:
    from readseg.cli.jobs import folder_name

    names = "+".join(folder_name(model.name) for model in models)[:80]
    return Path("runs") / "analysis" / names / f"{folder_name(benchmark.name)}-{study}"
