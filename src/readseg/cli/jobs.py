"""What the studies of `readseg analyse` share: the benchmark, the models, and where results go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from readseg.errors import ReadsegError

if TYPE_CHECKING:
    from PIL import Image

    from readseg.evaluation.benchmarks import Benchmark
    from readseg.inference.segmenter import Segmenter
    from readseg.viz.tables import Table

EMBEDDED = "embedded"
"""What the embedded model is called, also as --model."""

_PARTS = ("model", "adapter")  # folders of a run, which their own name says nothing of


@dataclass(frozen=True)
class Model:
    """A model that a study asks.

    name: as the tables call it.
    segmenter: loaded.
    settings: JSON values that its answers depend on.
    source: folder or hub id; None for the embedded one.
    """

    name: str
    segmenter: Segmenter
    settings: Mapping[str, Any]
    source: str | None


class LaterModel(Model):
    """A model that is loaded when it is needed, while the one that was needed before is let go.

    So any number of models is studied in the memory of one, where each is done with before the next is needed.

    Args:
        name: as the tables call it, different for each.
        source: folder or hub id; None for the embedded one.
        loading: options of `options.load_segmenter`.
        loaded: shared by all models of a job; holds the one that is loaded, by its name.
    """

    def __init__(
        self,
        name: str,
        source: str | None,
        loading: Mapping[str, Any],
        loaded: dict[str, Segmenter],
    ) -> None:
        self.__dict__.update(name=name, source=source, _loading=loading, _loaded=loaded, _settings=None)

    # One for each --model: two are the same only if they are one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"LaterModel({self.name!r})"

    @property
    def segmenter(self) -> Segmenter:
        """The model; loaded where it is not."""
        from readseg.cli import options

        loaded: dict[str, Segmenter] = self.__dict__["_loaded"]
        if self.name not in loaded:
            loaded.clear()
            loaded[self.name] = options.load_segmenter(self.source, **self.__dict__["_loading"])
            options.tell(loaded[self.name])
        return loaded[self.name]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its answers depend on; the model is loaded for it once."""
        if self.__dict__["_settings"] is None:
            self.__dict__["_settings"] = settings_of(self.segmenter, self.source, self.__dict__["_loading"])
        return self.__dict__["_settings"]


@dataclass(frozen=True)
class Job:
    """One study: what is asked of whom, and where results go.

    benchmark: that is asked.
    models: at least one.
    out: the study's folder; exists.
    limit: how many images; all for None.
    data: the folder of all data.
    """

    benchmark: Benchmark
    models: Sequence[Model]
    out: Path
    limit: int | None
    data: Path | None


def settings_of(segmenter: Segmenter, source: str | None, loading: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's answers depend on, as JSON values, the same for every command.

    Its weights too: a model that was trained on must not go on with what its former self has said.

    Args:
        segmenter: loaded.
        source: folder or hub id; None for the embedded one.
        loading: options that it was loaded with.
    """
    from readseg.checkpoints.load import digest

    return {
        "model": EMBEDDED if source is None else str(Path(source)),  # with a slash behind it is the same
        "weights": digest([segmenter.model]),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "bits": loading.get("bits"),
        "system": loading.get("system"),
        "own_prompt": segmenter.model.config.prompt,
    }


def models_of(given: Sequence[str] | None, *, loading: Mapping[str, Any]) -> list[Model]:
    """The models of a job, by their options --model: each is there, none is loaded yet.

    Args:
        given: folders or hub ids, or `EMBEDDED`, which is the default.
        loading: options of `options.load_segmenter` for all of them.

    Raises:
        ReadsegError: one of them is not there, or is given twice.
    """
    from readseg.checkpoints.files import fetch

    paths = [str(Path(source)) for source in given or (EMBEDDED,)]  # with a slash behind it is the same
    for path in paths:
        if paths.count(path) > 1:
            raise ReadsegError(f"--model {path} is given twice: give other ones, or leave one out.")
        if path != EMBEDDED:
            fetch(path)  # known before the first of them has worked for hours
    short = [_short_name(path) for path in paths]
    loaded: dict[str, Segmenter] = {}
    names = [name if short.count(name) == 1 else path for path, name in zip(paths, short, strict=True)]
    sources = [None if path == EMBEDDED else path for path in paths]
    return [LaterModel(name, source, loading, loaded) for name, source in zip(names, sources, strict=True)]


def folder_name(name: str) -> str:
    """A name as a folder is called.

    >>> folder_name("owner/READ 7B")
    'owner-READ-7B'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def model_folder(job: Job, model: Model) -> Path:
    """Where what one model said is kept: the job's folder, with several models one below it for each."""
    if len(job.models) == 1:
        return job.out
    taken: list[str] = []
    for other in job.models:
        name = folder_name(other.name)
        names = (name if k == 1 else f"{name}-{k}" for k in count(1))
        taken.append(next(one for one in names if one not in taken))
        if other is model:
            break
    return job.out / taken[-1]


def _short_name(path: str) -> str:
    """What tables call a model: the last part of a folder, with the run that it belongs to; a hub id as it is."""
    place = Path(path)
    if not place.exists():
        return path
    parts = place.resolve().parts
    return "/".join(parts[-2:]) if parts[-1] in _PARTS else parts[-1]


def show(tables: Sequence[Table]) -> None:
    """Print tables with their notes; 120 columns wide where the output is no terminal."""
    import sys

    from rich.console import Console

    from readseg.viz.tables import to_rich

    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables:
        console.print(to_rich(table))
        for note in table.notes:
            console.print(note, style="dim", highlight=False, markup=False)


def finish(job: Job, name: str, tables: Sequence[Table], pictures: Mapping[str, Image.Image]) -> None:
    """Print tables; write NAME.md, NAME.json, one CSV for each table, and pictures as NAME-KEY.png (NAME.png for "").

    Every file is written in one step, and named on the terminal.
    """
    import json

    import typer

    from readseg.cli.errors import printable
    from readseg.core.io import atomic_write
    from readseg.viz.tables import to_csv, to_json, to_markdown

    show(tables)
    texts = {
        f"{name}.md": "\n".join(to_markdown(table) for table in tables),
        f"{name}.json": json.dumps({"tables": [to_json(table) for table in tables]}, indent=1, allow_nan=False) + "\n",
    }
    for place, table in enumerate(tables, start=1):
        texts[f"{name}.csv" if len(tables) == 1 else f"{name}-{place}.csv"] = to_csv(table)
    for file, text in texts.items():
        with atomic_write(job.out / file) as place_:
            place_.write_text(text, encoding="utf-8", errors="replace")
    files = list(texts)
    for key, picture in pictures.items():
        file = f"{name}-{key}.png" if key else f"{name}.png"
        with atomic_write(job.out / file) as place_:
            picture.save(place_, format="PNG")
        files.append(file)
    typer.echo(f"written: {', '.join(printable(str(job.out / file)) for file in files)}")
