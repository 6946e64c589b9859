"""A study of a benchmark: every page is looked at once, and what was found is kept, line by line.

    {"format": "readseg-analysis-1", "study": "maps", "settings": {...}, "about": {...}}
    {"page": "scene-500000", "asked": "5f0c...", "sum": "91d2...", "records": [{...}, ...]}

What `settings` say decides the records: a file is never added to with other ones. `asked` is a digest of the page's
questions: where the data have changed, what was found before is not passed off as found in them. `sum` is one of the
records: a number that was damaged on the disk is not passed off as measured. A line is written in one piece as soon as
its page is done; after a kill only the last one can be incomplete, it is cut off and its page done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from readseg.core.io import atomic_write, lock
from readseg.core.json_lines import check_settings, complete_lines, from_line, to_line
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, Page, chosen
from readseg.evaluation.run import hidden_parts_told_once

FORMAT = "readseg-analysis-1"
RECORDS = "records.jsonl"

Record = dict[str, Any]
"""JSON values by name."""


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        name: of the study.
        settings: what the records depend on.
        about: what else is known of them.
        pages: the records of each page by the page's name, in the benchmark's order.
    """

    name: str
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    pages: Mapping[str, Sequence[Record]]

    @property
    def records(self) -> list[Record]:
        """Of all pages, in the benchmark's order."""
        return [record for records in self.pages.values() for record in records]


def look_at(
    benchmark: Benchmark,
    look: Callable[[Page], Sequence[Record]],
    *,
    name: str,
    settings: Mapping[str, Any],
    folder: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Study:
    """Looks at the pages of a benchmark, and keeps what was found.

    Args:
        benchmark: whose pages.
        look: gives the records of a page.
        name: of the study.
        settings: JSON values that the records depend on, beside the benchmark's own.
        folder: keeps them in `RECORDS`; pages that are there already are not looked at again. In memory only where left
            out.
        limit: how many pages, see `benchmarks.chosen`.
        progress: show a bar.

    Raises:
        ReadsegError: records of another study, other settings or other questions in `folder`, a damaged line, another
            process writing there, or what `look` raises.
    """
    numbers = chosen(benchmark, limit)
    identity = {"benchmark": benchmark.name, "protocol": benchmark.protocol, "match": benchmark.match}
    settings = json.loads(json.dumps({**settings, **identity, **benchmark.settings}))
    head = {"format": FORMAT, "study": name, "settings": settings}
    about = {**benchmark.about, "images": len(numbers), "of": len(benchmark)}
    console = Console(stderr=True)
    quiet = not progress or not console.is_terminal
    found: dict[str, Sequence[Record]] = {}
    with _opened(folder, head, about) as (known, keep), hidden_parts_told_once(benchmark.name) as listening:
        for number in track(numbers, f"{benchmark.name}: {name}", console=console, disable=quiet, transient=True):
            page_name = benchmark.names[number]
            page = benchmark[number]
            asked = _asked(page)
            if page_name not in known:
                with listening(page):
                    # As they come back from disk: a resumed study is the same study.
                    records = json.loads(json.dumps(list(look(page)), allow_nan=False))
                known[page_name] = _Kept(records, asked)
                keep(page_name, known[page_name])
            elif known[page_name].asked not in (None, asked):
                raise ReadsegError(
                    f"{folder}/{RECORDS}: what was found about {page.place} is about other questions than the data now "
                    "ask: the data have changed; give another folder"
                )
            found[page_name] = known[page_name].records
    return Study(name, settings, about, found)


def read_study(path: Path) -> Study:
    """The study that a file of records holds; a half last line is left out.

    Raises:
        ReadsegError: no such file, or a line of it, named by its number, is not what it should be.
    """
    head, pages, _ = _parse(path)
    found = {name: kept.records for name, kept in pages.items()}
    return Study(head["study"], head["settings"], head["about"], found)


class _Kept(NamedTuple):
    """What is kept of a page: its records, and the digest of its questions; None where a line does not tell it."""

    records: Sequence[Record]
    asked: str | None


def _asked(page: Page) -> str:
    """A digest of a page's questions and of what is known of each before its masks are read."""
    asked = [(q.key, q.text, q.sentence, q.present, q.expected, q.kind, sorted(q.tags)) for q in page.queries]
    return _digest([page.place, asked])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@contextmanager
def _opened(
    folder: Path | None, head: Mapping[str, Any], about: Mapping[str, Any]
) -> Iterator[tuple[dict[str, _Kept], Callable[[str, _Kept], None]]]:
    """What is known of each page, and how to keep what is found of another one."""
    if folder is None:
        yield {}, lambda page, kept: None
        return
    path = folder / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with atomic_write(path) as place:
            place.write_bytes(to_line({**head, "about": dict(about)}))
    with path.open("r+b") as file:
        lock(file, str(path))
        there, known, length = _parse(path)
        _check(path, there, head)
        file.truncate(length)
        file.seek(length)

        def keep(page: str, kept: _Kept) -> None:
            records = list(kept.records)
            file.write(to_line({"page": page, "asked": kept.asked, "sum": _digest(records), "records": records}))
            file.flush()

        yield dict(known), keep


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, _Kept], int]:
    """The head, what is kept of each page, and the length in bytes of all complete lines."""
    lines, length = complete_lines(path, "the records of an analysis")
    head = from_line(lines[0], path, 1)
    fields = {"study": str, "settings": dict, "about": dict}
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ReadsegError(
            f"{path}, line 1: expected a head with format {FORMAT!r}; this is no analysis of this version"
        )
    for name, kind in fields.items():
        if not isinstance(head.get(name), kind):
            raise ReadsegError(f"{path}, line 1: {name!r}: expected {kind.__name__}, got {head.get(name)!r:.40}")
    pages: dict[str, _Kept] = {}
    for number, line in enumerate(lines[1:], start=2):
        record = from_line(line, path, number)
        page, records = (record.get("page"), record.get("records")) if isinstance(record, dict) else (None, None)
        if not isinstance(page, str) or not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise ReadsegError(f"{path}, line {number}: expected a page with its records; the file is damaged")
        if record.get("sum") not in (None, _digest(records)):
            raise ReadsegError(
                f"{path}, line {number}: the records of the page {page!r:.80} are not what was measured: the file is "
                "damaged; without this line the page is done again"
            )
        if page in pages:
            raise ReadsegError(f"{path}, line {number}: the page {page!r} occurs twice; the file is damaged")
        pages[page] = _Kept(records, record.get("asked"))
    return head, pages, length


def _check(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if there["study"] != now["study"]:
        raise ReadsegError(f"{path} is of the study {there['study']!r}, not {now['study']!r}; give another folder")
    check_settings(path, there["settings"], now["settings"])
