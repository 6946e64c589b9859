"""What the studies of `readseg analyse` share: the benchmark, the models, and where results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from readseg.analysis.tables import Table
    from readseg.evaluation.benchmarks import Benchmark
    from readseg.segmenter import Segmenter


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


def finish(job: Job, name: str, tables: Sequence[Table], pictures: Mapping[str, Image.Image]) -> None:
    """Print tables; write NAME.md, NAME.json, one CSV for each table, and pictures as NAME-KEY.png (NAME.png for "").

    Every file is written in one step, and named on the terminal.
    """
    import json
    import sys

    import typer
    from rich.console import Console

    from readseg.analysis.tables import to_csv, to_json, to_markdown, to_rich
    from readseg.files import whole

    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables:
        console.print(to_rich(table))
        for note in table.notes:
            console.print(note, style="dim", highlight=False, markup=False)
    texts = {
        f"{name}.md": "\n".join(to_markdown(table) for table in tables),
        f"{name}.json": json.dumps({"tables": [to_json(table) for table in tables]}, indent=1, allow_nan=False) + "\n",
    }
    for place, table in enumerate(tables, start=1):
        texts[f"{name}.csv" if len(tables) == 1 else f"{name}-{place}.csv"] = to_csv(table)
    for file, text in texts.items():
        with whole(job.out / file) as place_:
            place_.write_text(text, encoding="utf-8", errors="replace")
    files = list(texts)
    for key, picture in pictures.items():
        file = f"{name}-{key}.png" if key else f"{name}.png"
        with whole(job.out / file) as place_:
            picture.save(place_, format="PNG")
        files.append(file)
    typer.echo(f"written: {', '.join(str(job.out / file) for file in files)}")
