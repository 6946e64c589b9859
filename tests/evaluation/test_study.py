"""Records of a study on disk: a kill at any moment loses at most one page, and nothing else is ever mixed in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import studies
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, Page
from readseg.evaluation.study import FORMAT, RECORDS, Record, look_at, read_study

BENCHMARK = studies.benchmark()


def looking(seen: list[str], until: int | None = None) -> Callable[[Page], list[Record]]:
    """A look that notes whom it saw, and is interrupted before one page more than `until`."""

    def look(page: Page) -> list[Record]:
        if until is not None and len(seen) == until:
            raise KeyboardInterrupt
        seen.append(page.name)
        return [{"key": query.key, "text": query.text} for query in page.queries]

    return look


def study(folder: Path | None, seen: list[str] | None = None, until: int | None = None, **changes: Any) -> Any:
    options = {"name": "maps", "settings": {"model": "tiny", "k": 3}, "folder": folder, **changes}
    benchmark = options.pop("benchmark", BENCHMARK)
    return look_at(benchmark, looking([] if seen is None else seen, until), **options)


def test_a_study_is_what_was_looked_at(tmp_path: Path) -> None:
    found = study(tmp_path)
    keys = [query.key for number in range(len(BENCHMARK)) for query in BENCHMARK[number].queries]
    assert [record["key"] for record in found.records] == keys
    assert list(found.pages) == list(BENCHMARK.names)
    assert found.settings == {
        "model": "tiny", "k": 3, "benchmark": "hand", "protocol": "generated", "match": "order",
    }  # fmt: skip
    assert found.about == {"images": 4, "of": 4}
    assert read_study(tmp_path / RECORDS) == found
    assert study(None) == found, "in memory only"
    lines = (tmp_path / RECORDS).read_text().splitlines()
    assert json.loads(lines[0])["format"] == FORMAT and len(lines) == 5


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, seen, until=2)
    assert list(read_study(tmp_path / RECORDS).pages) == ["page-0", "page-1"]
    again: list[str] = []
    found = study(tmp_path, again)
    assert again == ["page-2", "page-3"]
    assert found == study(None)
    before = (tmp_path / RECORDS).read_bytes()
    study(tmp_path, again)
    assert again == ["page-2", "page-3"] and (tmp_path / RECORDS).read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_last_line_is_done_again(tmp_path: Path, cut: int) -> None:
    whole = study(tmp_path)
    content = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(content[:-cut])
    assert list(read_study(tmp_path / RECORDS).pages) == ["page-0", "page-1", "page-2"]
    seen: list[str] = []
    assert study(tmp_path, seen) == whole
    assert seen == ["page-3"]
    assert (tmp_path / RECORDS).read_bytes() == content


def test_a_larger_sample_goes_on_from_a_smaller_one(tmp_path: Path) -> None:
    seen: list[str] = []
    few = study(tmp_path, seen, limit=2)
    assert seen == ["page-0", "page-2"] and list(few.pages) == seen, "spread over the benchmark"
    assert few.about == {"images": 2, "of": 4}
    found = study(tmp_path, seen)
    assert seen == ["page-0", "page-2", "page-1", "page-3"]
    assert list(found.pages) == list(BENCHMARK.names), "in the benchmark's order, whatever the file's"
    assert study(tmp_path, seen, limit=2) == few, "what is known of other pages is left out, and left alone"
    assert len((tmp_path / RECORDS).read_bytes().splitlines()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"model": "tiny", "k": 4}}, "k: 3 there, 4 now"),
        ({"settings": {"model": "tiny"}}, "k: 3 there, None now"),
        ({"benchmark": studies.benchmark(protocol="forced")}, "protocol: 'generated' there, 'forced' now"),
        ({"benchmark": studies.benchmark(settings={"split": "val"})}, "split: None there, 'val' now"),
        ({"name": "layers"}, "of the study 'maps', not 'layers'"),
    ],
)
def test_other_settings_are_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    study(tmp_path, limit=1)
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(ReadsegError, match=message) as caught:
        study(tmp_path, **changes)
    assert str(tmp_path / RECORDS) in str(caught.value) and "give another folder" in str(caught.value)
    assert (tmp_path / RECORDS).read_bytes() == before


@pytest.mark.parametrize("change", ["text", "present", "place"])
def test_other_data_under_the_same_names_are_an_error(tmp_path: Path, change: str) -> None:
    study(tmp_path, limit=1)
    before = (tmp_path / RECORDS).read_bytes()

    def page(number: int) -> Page:
        own = BENCHMARK.page(number)
        first = {"text": {"text": "the cow"}, "present": {"present": False}, "place": {}}[change]
        queries = (replace(own.queries[0], **first), *own.queries[1:])
        return replace(own, queries=queries, place="other.jpg" if change == "place" else own.place)

    with pytest.raises(ReadsegError, match=f"{RECORDS}: .* the data have changed; give another folder"):
        study(tmp_path, benchmark=Benchmark(**{**vars(BENCHMARK), "page": page}))
    assert (tmp_path / RECORDS).read_bytes() == before


def test_settings_that_are_tuples_are_the_same_when_read_back(tmp_path: Path) -> None:
    one = study(tmp_path, settings={"thresholds": (0.1, 0.2), 3: None})
    other = study(tmp_path, settings={"thresholds": [0.1, 0.2], "3": None})
    assert one.settings == other.settings


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (0, b"{}", "line 1: expected a head with format"),
        (0, b'{"format": "readseg-analysis-0"}', "line 1: expected a head with format"),
        (0, b'{"format": "readseg-analysis-1", "study": 3}', "line 1: 'study': expected str, got 3"),
        (0, b"\xff\xfe", "line 1: expected JSON"),
        (2, b"half a line", "line 3: expected JSON"),
        (2, b"[1, 2]", "line 3: expected a page with its records"),
        (2, b'{"page": "page-1", "records": [3]}', "line 3: expected a page with its records"),
        (2, b"[" * 100_000, "line 3: expected JSON"),
        (2, b'{"page": "page-0", "records": []}', "line 3: the page 'page-0' occurs twice"),
    ],
)
def test_a_damaged_line_is_an_error_and_stays(tmp_path: Path, number: int, line: bytes, message: str) -> None:
    study(tmp_path)
    path = tmp_path / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = line + b"\n"
    path.write_bytes(b"".join(lines))
    for attempt in (lambda: study(tmp_path), lambda: read_study(path)):
        with pytest.raises(ReadsegError, match=f"{RECORDS}, {message}"):
            attempt()
    assert path.read_bytes() == b"".join(lines)


def test_a_record_that_is_not_what_was_measured_is_an_error(tmp_path: Path) -> None:
    found = study(tmp_path)
    path = tmp_path / RECORDS
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"page-2/0"', b'"page-2/8"'))
    assert path.read_bytes() != content
    with pytest.raises(ReadsegError, match=f"{RECORDS}, line 4: the records of the page 'page-2' are not what was"):
        study(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    seen: list[str] = []
    assert study(tmp_path, seen) == found and seen == ["page-2"], "as the error says"


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="cannot be read"):
        read_study(tmp_path / RECORDS)
    (tmp_path / RECORDS).touch()
    with pytest.raises(ReadsegError, match="line 1"):
        study(tmp_path)


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    def look(page: Page) -> list[Record]:
        study(tmp_path)
        return []

    with pytest.raises(ReadsegError, match="another process is writing"):
        look_at(BENCHMARK, look, name="maps", settings={"model": "tiny", "k": 3}, folder=tmp_path)


def test_an_error_of_a_page_keeps_the_pages_before(tmp_path: Path) -> None:
    def page(number: int) -> Page:
        if number == 2:
            raise ReadsegError("page-2.jpg: cannot be read")
        return BENCHMARK.page(number)

    broken = Benchmark(**{**vars(BENCHMARK), "page": page})
    with pytest.raises(ReadsegError, match=r"page-2\.jpg"):
        study(tmp_path, benchmark=broken)
    seen: list[str] = []
    study(tmp_path, seen)
    assert seen == ["page-2", "page-3"]
