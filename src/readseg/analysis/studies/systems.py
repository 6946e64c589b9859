"""Several systems' answers to the same questions: models that are asked, and predictions that are on disk.

A system need not be a language model: whatever writes predictions in the package's format stands beside one
(`evaluation.predictions`). Only questions that all of them answered are compared, and only where all of them were
measured against the same truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark
from readseg.evaluation.predictions import Result, read_result
from readseg.evaluation.report import label


@dataclass(frozen=True, eq=False)
class Answered:
    """A system's answers to a benchmark.

    name: as tables call it.
    result: its answers, scored.
    source: what errors call it: the file, or the model's name.
    """

    name: str
    result: Result
    source: str


def read_systems(places: Sequence[Path], benchmark: Benchmark) -> list[Answered]:
    """The predictions for a benchmark in files, or in all files predictions.jsonl below folders."""
    found: dict[Path, Result] = {}
    for place in places:
        files = sorted(place.rglob("predictions.jsonl")) if place.is_dir() else [place]
        if not files:
            raise ReadsegError(
                f"{place}: no predictions.jsonl is there; readseg evaluate --out writes one when it is done"
            )
        results = {file.resolve(): read_result(file) for file in files}
        own = {file: result for file, result in results.items() if result.settings["benchmark"] == benchmark.name}
        if not own:
            there = ", ".join(sorted({str(result.settings["benchmark"]) for result in results.values()}))
            raise ReadsegError(f"{place}: expected predictions for {benchmark.name}, got those for {there}")
        for file, result in own.items():
            _check(file, result, benchmark)
        found |= own
    names = [label(result) for result in found.values()]
    systems = []
    for (file, result), name in zip(found.items(), names, strict=True):
        distinct = name if names.count(name) == 1 else f"{name} ({file.parent.name})"
        systems.append(Answered(distinct, result, str(file)))
    return systems


def aligned(systems: Sequence[Answered]) -> list[Answered]:
    """The same systems with the questions that all of them answered, in the order of the first."""
    truths = [{p.key: p.truth for p in system.result.predictions} for system in systems]
    shared = [key for key in truths[0] if all(key in other for other in truths[1:])]
    if not shared:
        raise ReadsegError(
            f"no question was answered by all of {', '.join(system.source for system in systems)}: expected answers to "
            "the same benchmark, the same images of it"
        )
    for key in shared:
        for system, other in zip(systems[1:], truths[1:], strict=True):
            if other[key] != truths[0][key]:
                raise ReadsegError(
                    f"{system.source}, {key!r}: its {_difference(truths[0][key], other[key])} is not that of "
                    f"{systems[0].source}: the two were asked about different data"
                )
    names = [system.name for system in systems]
    renamed = [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]
    return [
        replace(system, name=name, result=_only(system.result, shared))
        for system, name in zip(systems, renamed, strict=True)
    ]


def left_out(before: Sequence[Answered], after: Sequence[Answered]) -> list[str]:
    """What `aligned` left out, in words for a note; nothing where all systems answered the same questions."""
    lost = [(b.name, len(a.result.predictions) - len(b.result.predictions)) for a, b in zip(before, after, strict=True)]
    told = ", ".join(f"{count} of {name}" for name, count in lost if count)
    return [f"answers to questions that not all systems were asked are left out: {told}"] if told else []


def _check(file: Path, result: Result, benchmark: Benchmark) -> None:
    for name, wanted in (("protocol", benchmark.protocol), ("match", benchmark.match), *benchmark.settings.items()):
        there = result.settings.get(name)
        if there != wanted:
            raise ReadsegError(
                f"{file}: {name}: expected {wanted!r}, as this benchmark is asked now, got {there!r}: scores of both "
                "do not belong in one table"
            )


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first field that differs."""
    return next(name for name in one if one[name] != other[name])


def _only(result: Result, keys: Sequence[str]) -> Result:
    """A result with these questions only, in this order."""
    place = {prediction.key: number for number, prediction in enumerate(result.predictions)}
    numbers = [place[key] for key in keys]
    return replace(
        result,
        predictions=tuple(result.predictions[number] for number in numbers),
        outcomes=tuple(result.outcomes[number] for number in numbers),
    )
