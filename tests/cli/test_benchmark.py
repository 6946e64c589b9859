"""What studies share: models that are loaded when they are needed, one at a time, and what is written of a study."""

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
from readseg.analysis.study import StudyContext, folder_name
from readseg.cli.benchmark import study_models
from readseg.cli.options import LoadOptions, ModelsOptions
from readseg.cli.output import write_results
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
    calls: list[Any] = []

    def load(name: str | None, **loading: Any) -> Segmenter:
        calls.append((name, {key: value for key, value in loading.items() if value is not None}))
        return small()

    monkeypatch.setattr(Segmenter, "from_pretrained", load)
    return calls


def test_models_are_loaded_one_at_a_time(loads: list[Any], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a").mkdir()
    loading = {"device": "cpu", "system": "llava_v1"}
    first, second = study_models(ModelsOptions(model=[str(tmp_path / "a"), "embedded"], **loading))
    assert [(one.name, one.source) for one in (first, second)] == [("a", str(tmp_path / "a")), ("embedded", None)]
    assert loads == [] and "name='a'" in repr(first), "nothing is loaded to say who they are"
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
    (model,) = study_models(ModelsOptions(dtype="float32"))
    weights = model.settings["weights"]
    assert model.settings == {
        "model": "embedded", "bits": None, "system": None, "weights": weights, "dtype": "float32", "own_prompt": "both",
    }  # fmt: skip
    other = small()
    next(other.model.parameters()).data += 1
    assert LoadOptions().settings(other, None)["weights"] != weights
    given = LoadOptions(bits=4, system="vicuna_v1", device="cpu").settings(other, "runs/x/")
    assert (given["model"], given["bits"], given["system"]) == ("runs/x", 4, "vicuna_v1") and "device" not in given
    json.dumps(model.settings, allow_nan=False)


def test_names_of_models(loads: list[Any], tmp_path: Path) -> None:
    places = [tmp_path / "runs" / "x" / "model", tmp_path / "runs" / "y" / "model", tmp_path / "READ-7B"]
    for place in places:
        place.mkdir(parents=True)
    found = study_models(ModelsOptions(model=[f"{places[0]}/", *map(str, places[1:])]))
    assert [one.name for one in found] == ["x/model", "y/model", "READ-7B"]
    (tmp_path / "other" / "READ-7B").mkdir(parents=True)
    again = [str(tmp_path / "READ-7B"), str(tmp_path / "other" / "READ-7B")]
    assert [one.name for one in study_models(ModelsOptions(model=again))] == again, "told apart by the whole path"
    assert loads == []


def test_models_that_are_not_there_or_twice_are_errors(tmp_path: Path, loads: list[Any]) -> None:
    with pytest.raises(ReadsegError, match="no such folder"):
        study_models(ModelsOptions(model=["embedded", str(tmp_path / "nowhere")]))
    with pytest.raises(ReadsegError, match="embedded is given twice"):
        study_models(ModelsOptions(model=["embedded", "embedded"]))
    with pytest.raises(ReadsegError, match="given twice"):
        study_models(ModelsOptions(model=[str(tmp_path), f"{tmp_path}/"]))
    assert loads == []


def test_folders_of_models(tmp_path: Path) -> None:
    models = [studies.model(name) for name in ("a/b", "a b", "a-b-2", "c")]
    context = StudyContext(studies.benchmark(), models, tmp_path)
    assert [context.folder_of(one).name for one in models] == ["a-b", "a-b-2", "a-b-2-2", "c"]
    assert StudyContext(context.benchmark, models[:1], tmp_path).folder_of(models[0]) == tmp_path
    assert folder_name("../..") == "model" and folder_name("é 杯") == "é-杯"


def test_results_are_written_in_all_forms(tmp_path: Path, capsys: Capture) -> None:
    table = Table("one \ud800", "row", {"a": "A"}, [Row("r", {"a": Estimate(0.5, 0.25, 0.75, 4)})], ["a [note]"])
    write_results(tmp_path, "maps", [table], {"": Image.new("RGB", (3, 2)), "more": Image.new("RGB", (4, 2))})
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
    write_results(tmp_path, "maps", [table, table], {})
    assert {"maps-1.csv", "maps-2.csv"} <= {path.name for path in tmp_path.iterdir()}
