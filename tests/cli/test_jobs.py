"""What the studies share: models that are loaded when they are needed, one at a time, and what `finish` writes."""

from __future__ import annotations

import csv
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import studies
from readseg.cli import options
from readseg.cli.jobs import Job, LaterModel, Model, finish, folder_name, model_folder, models_of, settings_of
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.viz.tables import Row, Table
from small import small_model, small_processor

Capture = pytest.CaptureFixture[str]


def small() -> Segmenter:
    return Segmenter(small_model(), small_processor(), notes=("a note",))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was loaded, with which options; every model is a small one."""
    found: list[Any] = []

    def load(name: str | None, **loading: Any) -> Segmenter:
        found.append((name, loading))
        return small()

    monkeypatch.setattr(options, "load_segmenter", load)
    return found


def test_models_are_loaded_one_at_a_time(loads: list[Any], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a").mkdir()
    loading = {"device": "cpu", "bits": None, "system": "llava_v1"}
    first, second = models_of([str(tmp_path / "a"), "embedded"], loading=loading)
    assert [(one.name, one.source) for one in (first, second)] == [("a", str(tmp_path / "a")), ("embedded", None)]
    assert loads == [] and "LaterModel('a')" in repr(first), "nothing is loaded to say who they are"
    assert first.segmenter is first.segmenter
    assert loads == [(str(tmp_path / "a"), loading)]
    assert capsys.readouterr().err == "readseg: a note\n"
    held = weakref.ref(first.segmenter)
    settings = first.settings
    assert len(loads) == 1
    assert second.segmenter.model is not None and loads[1][0] is None
    gc.collect()
    assert held() is None, "the first one is let go"
    assert first.settings is settings and len(loads) == 2, "what is known of it stays"
    assert first != second and first == first and len({first, second}) == 2


def test_settings_of_a_model(loads: list[Any]) -> None:
    (model,) = models_of(None, loading={"bits": None, "system": None, "dtype": "float32"})
    weights = model.settings["weights"]
    assert model.settings == {
        "model": "embedded", "bits": None, "system": None, "weights": weights, "dtype": "float32", "own_prompt": "both",
    }  # fmt: skip
    other = small()
    next(other.model.parameters()).data += 1
    assert settings_of(other, None, {})["weights"] != weights
    given = settings_of(other, "runs/x/", {"bits": 4, "system": "vicuna_v1", "device": "cpu"})
    assert (given["model"], given["bits"], given["system"]) == ("runs/x", 4, "vicuna_v1") and "device" not in given
    json.dumps(model.settings, allow_nan=False)


def test_names_of_models(loads: list[Any], tmp_path: Path) -> None:
    places = [tmp_path / "runs" / "x" / "model", tmp_path / "runs" / "y" / "model", tmp_path / "READ-7B"]
    for place in places:
        place.mkdir(parents=True)
    found = models_of([f"{places[0]}/", *map(str, places[1:])], loading={})
    assert [one.name for one in found] == ["x/model", "y/model", "READ-7B"]
    (tmp_path / "other" / "READ-7B").mkdir(parents=True)
    again = [str(tmp_path / "READ-7B"), str(tmp_path / "other" / "READ-7B")]
    assert [one.name for one in models_of(again, loading={})] == again, "told apart by the whole path"
    assert loads == []


def test_models_that_are_not_there_or_twice_are_errors(tmp_path: Path, loads: list[Any]) -> None:
    with pytest.raises(ReadsegError, match="no such folder"):
        models_of(["embedded", str(tmp_path / "nowhere")], loading={})
    with pytest.raises(ReadsegError, match="embedded is given twice"):
        models_of(["embedded", "embedded"], loading={})
    with pytest.raises(ReadsegError, match="given twice"):
        models_of([str(tmp_path), f"{tmp_path}/"], loading={})
    assert loads == []


def test_folders_of_models(tmp_path: Path) -> None:
    models = [Model(name, studies.segmenter(), {}, None) for name in ("a/b", "a b", "a-b-2", "c")]
    job = Job(studies.benchmark(), models, tmp_path, None, None)
    assert [model_folder(job, one).name for one in models] == ["a-b", "a-b-2", "a-b-2-2", "c"]
    assert model_folder(Job(job.benchmark, models[:1], tmp_path, None, None), models[0]) == tmp_path
    assert folder_name("../..") == "model" and folder_name("é 杯") == "é-杯"
    assert issubclass(LaterModel, Model)


def test_finish_writes_all_forms(tmp_path: Path, capsys: Capture) -> None:
    table = Table("one \ud800", "row", {"a": "A"}, [Row("r", {"a": Estimate(0.5, 0.25, 0.75, 4)})], ["a [note]"])
    job = studies.job(tmp_path)
    finish(job, "maps", [table], {"": Image.new("RGB", (3, 2)), "more": Image.new("RGB", (4, 2))})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "maps-more.png", "maps.csv", "maps.json", "maps.md", "maps.png",
    ]  # fmt: skip
    (row,) = csv.DictReader((tmp_path / "maps.csv").read_text().splitlines())
    assert row["a_high"] == "0.75"
    assert json.loads((tmp_path / "maps.json").read_text())["tables"][0]["rows"][0]["cells"]["a"]["count"] == 4
    assert "0.500 [0.250, 0.750]" in (tmp_path / "maps.md").read_text()
    with Image.open(tmp_path / "maps-more.png") as picture:
        assert picture.size == (4, 2)
    printed = capsys.readouterr().out
    assert "a [note]" in printed and "0.500" in printed and str(tmp_path / "maps.csv") in printed.replace("\n", "")
    finish(job, "maps", [table, table], {})
    assert {"maps-1.csv", "maps-2.csv"} <= {path.name for path in tmp_path.iterdir()}
