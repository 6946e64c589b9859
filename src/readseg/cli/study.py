"""`readseg study NAME BENCHMARK`: how models work on a benchmark, as tables with intervals, records and pictures."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from readseg.cli.app import as_command, lazy_group

STUDIES = {
    "maps": "What maps and prompts are worth: the tables of section 3.2, and a page to look at.",
    "layers": "At which layer of the language model the map finds the object.",
    "necessity": "SEG as the decision whether to segment, against thresholds on the map and the mask.",
    "knowledge": "Things named and things described, several systems side by side.",
    "answers": "A sheet of answers with masks or refusals, several systems side by side.",
}
"""Each is `STUDY` of readseg.analysis.studies.NAME."""


def _load(name: str) -> Any:
    from readseg.cli.benchmark import study_command  # what it imports is heavy, and --help is not

    study: Any = import_module(f"readseg.analysis.studies.{name}").STUDY
    return as_command(name, study_command(study), STUDIES[name])


app = typer.Typer(cls=lazy_group(STUDIES, _load), no_args_is_help=True, add_completion=False)


@app.callback()
def study() -> None:
    """Measure how models work on a benchmark: maps, layers, necessity of SEG, knowledge, answers."""
