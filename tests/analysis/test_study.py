"""What a study measures and keeps: in the benchmark's order, once, whatever interrupts it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import studies
from readseg.analysis.study import RECORDS, StudyModel
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions
from readseg.inference.segmenter import Segmenter

BENCHMARK = studies.benchmark()


def looking(seen: list[str], until: int | None = None) -> Callable[[ImageQuestions], list[dict[str, Any]]]:
    """A look that notes whom it saw, and is interrupted before one page more than `until`."""

    def look(page: ImageQuestions) -> list[dict[str, Any]]:
        if until is not None and len(seen) == until:
            raise KeyboardInterrupt
        seen.append(page.name)
        return [{"key": query.key, "text": query.text} for query in page.questions]

    return look


def study(
    folder: Path, seen: list[str] | None = None, until: int | None = None, *, benchmark: Benchmark = BENCHMARK,
    limit: int | None = None, name: str = "maps", settings: Any = None,
) -> list[dict[str, Any]]:  # fmt: skip
    context = studies.context(folder, benchmark, limit=limit)
    look = looking([] if seen is None else seen, until)
    return context.measure(context.models[0], look, dict[str, Any], name, settings or {"model": "tiny", "k": 3})


def images_of(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["key"].split("/")[0] for record in records))


def test_a_study_is_what_was_looked_at(tmp_path: Path) -> None:
    found = study(tmp_path)
    keys = [query.key for number in range(len(BENCHMARK)) for query in BENCHMARK[number].questions]
    assert [record["key"] for record in found] == keys
    header, images, records = studies.recorded(tmp_path / RECORDS)
    assert header == {
        "format": "readseg-analysis-1",
        "study": "maps",
        "settings": {"model": "tiny", "k": 3, "benchmark": "hand", "protocol": "generated", "match": "order"},
        "about": {"images": 4, "of": 4},
    }
    assert images == list(BENCHMARK.names) and records == found
    assert studies.context(tmp_path).about == header["about"]
    assert len((tmp_path / RECORDS).read_text().splitlines()) == 5


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, seen, until=2)
    assert studies.recorded(tmp_path / RECORDS)[1] == ["page-0", "page-1"]
    again: list[str] = []
    found = study(tmp_path, again)
    assert again == ["page-2", "page-3"]
    assert found == study(tmp_path / "whole")
    before = (tmp_path / RECORDS).read_bytes()
    study(tmp_path, again)
    assert again == ["page-2", "page-3"] and (tmp_path / RECORDS).read_bytes() == before


def test_a_larger_sample_goes_on_from_a_smaller_one(tmp_path: Path) -> None:
    seen: list[str] = []
    few = study(tmp_path, seen, limit=2)
    assert seen == ["page-0", "page-2"] and images_of(few) == seen, "spread over the benchmark"
    found = study(tmp_path, seen)
    assert seen == ["page-0", "page-2", "page-1", "page-3"]
    assert images_of(found) == list(BENCHMARK.names), "in the benchmark's order, whatever the file's"
    assert study(tmp_path, seen, limit=2) == few, "what is known of other pages is left out, and left alone"
    assert len((tmp_path / RECORDS).read_bytes().splitlines()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"model": "tiny", "k": 4}}, "k: 3 there, 4 now"),
        ({"benchmark": studies.benchmark(protocol="forced")}, "protocol: 'generated' there, 'forced' now"),
        ({"benchmark": studies.benchmark(settings={"split": "val"})}, "split: None there, 'val' now"),
        ({"name": "layers"}, "study: 'maps' there, 'layers' now"),
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

    def page(number: int) -> ImageQuestions:
        own = BENCHMARK.page(number)
        first = {"text": {"text": "the cow"}, "present": {"present": False}, "place": {}}[change]
        questions = (replace(own.questions[0], **first), *own.questions[1:])
        return replace(own, questions=questions, image_id="other.jpg" if change == "place" else own.image_id)

    with pytest.raises(ReadsegError, match=f"{RECORDS}: .* the data have changed; give another folder"):
        study(tmp_path, benchmark=Benchmark(**{**vars(BENCHMARK), "page": page}))
    assert (tmp_path / RECORDS).read_bytes() == before


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


def test_an_error_of_a_page_keeps_the_pages_before(tmp_path: Path) -> None:
    def page(number: int) -> ImageQuestions:
        if number == 2:
            raise ReadsegError("page-2.jpg: cannot be read")
        return BENCHMARK.page(number)

    broken = Benchmark(**{**vars(BENCHMARK), "page": page})
    with pytest.raises(ReadsegError, match=r"page-2\.jpg"):
        study(tmp_path, benchmark=broken)
    seen: list[str] = []
    study(tmp_path, seen)
    assert seen == ["page-2", "page-3"]


@pytest.mark.parametrize("name", ["maps", "layers", "necessity", "knowledge", "answers"])
def test_one_model_is_in_memory_at_a_time(tmp_path: Path, name: str) -> None:
    before: list[weakref.ref[Segmenter]] = []

    def load(_: str | None) -> Segmenter:
        assert all(model() is None for model in before), "the model before is still held"
        segmenter = Segmenter(studies.segmenter().model, studies.segmenter().processor)
        before.append(weakref.ref(segmenter))
        return segmenter

    loaded: dict[str, Segmenter] = {}
    models = [
        StudyModel(name, name, load, lambda *_, name=name: {"model": name, "weights": name}, loaded) for name in "ab"
    ]
    studies.run(name, studies.context(tmp_path, models=models, limit=1))
    assert len(before) == 2
