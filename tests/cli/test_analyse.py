"""`readseg analyse` end to end: its studies of maps and layers on two kinds of models, resumption, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import commandline
import studies
from readseg.analysis.studies import examine as examining
from readseg.analysis.studies.measures import Measured
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.cli import study_layers, study_maps
from readseg.errors import ReadsegError
from readseg.evaluation.run import RECORDS, read_study
from released import write_released, write_sam
from small import picture
from tiny_segmenter import build

Capture = pytest.CaptureFixture[str]
TABLES = ["maps-1.csv", "maps-2.csv", "maps-3.csv", "maps.json", "maps.md"]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return commandline.run(monkeypatch, "analyse", *words)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {row["group"] + next(iter(list(row.values())[1:])): row for row in csv.DictReader(file)}


def test_the_embedded_model_on_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    words = ("scenes", "--device", "cpu", "--out", tmp_path, "-n")
    assert run(monkeypatch, *words, 1) == 0
    assert sorted(contents(tmp_path)) == sorted([*TABLES, RECORDS, "misaligned.md", "report.html"])
    first = (tmp_path / RECORDS).read_bytes()
    assert run(monkeypatch, *words, 2) == 0
    assert (tmp_path / RECORDS).read_bytes().startswith(first), "a larger sample goes on from a smaller one"
    study = read_study(tmp_path / RECORDS)
    assert study.name == "maps" and list(study.images) == ["scene-500000", "scene-500001"]
    records = [Measured.from_json(record) for record in study.records]
    assert {record.image for record in records} == set(study.images)
    for prompt in ("plain_points", "plain_truth"):
        assert all(prompt in record.prompts for record in records), "the original SAM lies beside the model"
    assert study.settings["original_sam"] and study.settings["clip"] is None and study.settings["extremes"] == 5
    printed = capsys.readouterr().out
    assert "language model, last layer" in printed and "points alone, original SAM" in printed
    maps = rows(tmp_path / "maps-1.csv")
    assert int(maps["language model, last layer"]["giou_count"]) == len(records)
    assert float(maps["language model, last layer"]["auc"]) > 0.9, "it was trained to"
    own = float(rows(tmp_path / "maps-2.csv")["the model's own prompt"]["giou"])
    assert own == pytest.approx(sum(record.own_iou for record in records) / len(records), abs=1e-4)
    report = (tmp_path / "report.html").read_text()
    assert "scene-500001/" in report and "What the maps know: embedded" in report


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    study_maps.run(studies.job(whole))
    examine, calls = examining.examine, []

    def interrupted(*given: object) -> list[Measured]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return examine(*given)

    monkeypatch.setattr(examining, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study_maps.run(studies.job(half))
    assert list(contents(half)) == [RECORDS] and len(read_study(half / RECORDS).images) == 1
    study_maps.run(studies.job(half))
    assert contents(half) == contents(whole), "the same to the byte, the page too"
    before = len(calls)
    study_maps.run(studies.job(half))
    assert len(calls) == before and contents(half) == contents(whole)


def test_a_folder_of_records_that_hold_less_is_refused(tmp_path: Path) -> None:
    """Such as one from before the points from the true mask: no study is made of two kinds of records."""
    study_maps.run(studies.job(tmp_path, limit=1))
    head, *pages = (tmp_path / RECORDS).read_text().splitlines()
    values = json.loads(head)
    assert values["settings"].pop("record") == 2
    old = "\n".join([json.dumps(values), *pages]) + "\n"
    (tmp_path / RECORDS).write_text(old)
    with pytest.raises(ReadsegError, match=r"record: None there, 2 now\); give another folder or delete it"):
        study_maps.run(studies.job(tmp_path, limit=2))
    assert (tmp_path / RECORDS).read_text() == old


def test_two_models_stand_in_one_table(tmp_path: Path, capsys: Capture) -> None:
    models = [studies.model("one"), studies.model("o/ther")]
    study_maps.run(studies.job(tmp_path, models=models, limit=1))
    assert sorted(contents(tmp_path)) == sorted(
        [*TABLES, *(f"{m}/{name}" for m in ("one", "o-ther") for name in (RECORDS, "misaligned.md", "report.html"))]
    )
    table = json.loads((tmp_path / "maps.json").read_text())["tables"][0]
    assert list(dict.fromkeys(row["group"] for row in table["rows"])) == ["one", "o/ther"]
    assert "one: original" not in (tmp_path / "maps.md").read_text()
    assert "one: points alone, original SAM: not available: the original SAM is not beside" in (
        (tmp_path / "maps.md").read_text()
    )
    study_layers.run(studies.job(tmp_path / "layers", models=models, limit=1))
    names = sorted(contents(tmp_path / "layers"))
    assert names == ["layers-maps-o-ther.png", "layers-maps-one.png", "layers.csv", "layers.json", "layers.md",
                     "layers.png", "o-ther/records.jsonl", "one/records.jsonl"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*the model sees only the centre")
def test_a_released_family_on_a_data_set(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write_released(tmp_path / "read", "read")
    write_sam(tmp_path / "sam.pth")
    model = ("--model", tmp_path / "read", "--device", "cpu", "--data", data, "-n", 2)
    out = tmp_path / "maps"
    options = ("--sam", tmp_path / "sam.pth", "--extremes", 2, "--num-points", 4)
    assert run(monkeypatch, "reasonseg/val", *model, "--out", out, *options) == 0
    study = read_study(out / RECORDS)
    records = [Measured.from_json(record) for record in study.records]
    assert len(records) == 2 and all(record.given and record.places == (0,) for record in records)
    assert study.settings["protocol"] == "forced" and study.settings["points"]["num_points"] == 4
    assert all(len(record.points) <= 4 for record in records)
    # This SAM's decoder is the checkpoint's own: points alone give the same masks in both.
    assert all(record.prompts["plain_points"] == record.prompts["points"] for record in records)
    text = (out / "maps.md").read_text()
    assert "teacher-forced" in text and "the answer's own words: not available" in text and "a sample of 2 of" in text
    shown = capsys.readouterr()
    assert "released weights of the family read" in shown.err
    out = tmp_path / "layers"
    assert run(monkeypatch, "reasonseg/val", *model, "--out", out, "--study", "layers") == 0
    assert list(rows(out / "layers.csv")) == ["layer 0", "layer 1", "layer 2 (last)", "area: the whole image"]
    for name in ("layers.png", "layers-maps.png"):
        with Image.open(out / name) as drawn:
            assert drawn.width >= 1200
    capsys.readouterr()
    assert run(monkeypatch, "reasonseg/val", *model, "--out", out) == 2
    assert "study: 'layers' there, 'maps' now" in capsys.readouterr().err


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for study in (study_maps, study_layers):
        monkeypatch.setattr(study, "run", lambda job, *_: folders.append((str(job.out), len(job.benchmark), job.limit)))
    build_here = tmp_path / "own" / "model"
    build_here.mkdir(parents=True)
    assert run(monkeypatch, "scenes") == 0
    assert run(monkeypatch, "scenes", "--study", "layers", "--model", "own/model", "--model", "embedded", "-n", 5) == 0
    assert folders == [
        ("runs/analysis/embedded/scenes-maps", 300, None),
        ("runs/analysis/own-model+embedded/scenes-layers", 5, 5),
    ]
    assert (tmp_path / "runs/analysis/embedded/scenes-maps").is_dir()


def test_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "model")
    picture().save("desk.png")
    words = ("desk.png", "the cat", "--model", "model", "--device", "cpu", "--out", "out", "--layers")
    assert run(monkeypatch, *words, "--num-points", 3, "--points", "on", "--extremes", 2) == 0
    found = json.loads(Path("out/analysis.json").read_text())
    assert "it is the cat [SEG]." in capsys.readouterr().out and "it is the cat [SEG]." in json.dumps(found)
    assert {"analysis.png", "layers.png"} <= set(contents(Path("out")))
    assert found["models"][0]["extremes"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("desk.png",), "desk.png: QUERY is missing: say what to ask about the picture"),
        (("none.png",), "none.png: no such picture, nor a benchmark"),
        ((".",), ".: no such picture, nor a benchmark"),
        (("none.png", "the cup"), "none.png"),
        (("text.png", "the cup"), "text.png"),
        (("desk.png", " "), "query"),
        (("scenes", "the cup"), "scenes is a benchmark: leave QUERY out"),
        (("unseen", "the cup"), "unseen is a benchmark: leave QUERY out"),
        (("unseen",), "benchmark unseen: it has no masks to compare with; readseg evaluate unseen says"),
        (("reasonseg/val", "the cup"), "reasonseg/val is a benchmark"),
        (("chairs",), "no benchmark 'chairs'; there are scenes, unseen, reasonseg"),
        (("reasonseg/val",), "name the folder that the data sets lie in with --data"),
        (("reasonseg/val", "--data", "nowhere"), "nowhere: no such folder"),
        (("reasonseg/val", "--data", "."), "no such split is below"),
        (("scenes", "--study", "everything"), "Invalid value for '--study'"),
        (("scenes", "--protocol", "forced"), "scenes are scored under the protocol generated only"),
        (("scenes", "-n", "0"), "Invalid value for '--count'"),
        (("scenes", "--model", "nowhere"), "no such folder"),
        (("scenes", "--model", "embedded", "--model", "embedded"), "embedded is given twice"),
        (("scenes", "--truth", "desk.png"), "--truth: of an image with a QUERY, not of the study maps"),
        (("scenes", "--answer", "[SEG]"), "--answer: of an image with a QUERY"),
        (("scenes", "--layers"), "--layers: of an image with a QUERY"),
        (("scenes", "--rows", "3"), "--rows: of --study answers, not of the study maps"),
        (("scenes", "--study", "layers", "--clip", "x"), "--clip: of --study maps, not of the study layers"),
        (("scenes", "--study", "necessity", "--points", "on"), "--points: of an image with a QUERY or --study maps"),
        (("scenes", "--study", "necessity", "--t-pos", "0.7"), "--t-pos: of an image"),
        (("scenes", "--predictions", "x"), "--predictions: of --study knowledge or --study answers"),
        (("desk.png", "the cup", "--study", "maps"), "--study: of a benchmark, without a QUERY, not of one image"),
        (("desk.png", "the cup", "-n", "3"), "--count: of a benchmark"),
        (("scenes", "--study", "layers", "--extremes", "3"), "--extremes: of an image with a QUERY or --study maps"),
        (("desk.png", "the cup", "--clip", "x"), "--clip: of --study maps, not of one image"),
        (("scenes", "--out", "desk.png"), "desk.png"),
        (("scenes", "--sam", "nowhere.pth", "-n", "1", "--device", "cpu"), "nowhere.pth"),
        (("scenes", "--clip", "model", "-n", "1", "--device", "cpu"), "expected a CLIP with a text encoder"),
        (("scenes", "--t-pos", "0.1", "-n", "1", "--device", "cpu"), "t_neg < t_pos"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("desk.png")
    Path("text.png").write_text("no picture")
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "readseg"}')
    before = contents(tmp_path)
    assert run(monkeypatch, *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert contents(tmp_path) == before, "nothing is written"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for study, field in ((study_maps, "wanted"), (study_layers, "layers")):
        out = tmp_path / study.NAME
        study.run(studies.job(out, limit=1))
        lines = (out / RECORDS).read_text().splitlines(keepends=True)
        page = json.loads(lines[1])
        page["records"][0][field] = "?"
        del page["sum"]  # a sum that does not fit is refused before a record is read
        (out / RECORDS).write_text("".join([lines[0], json.dumps(page) + "\n", *lines[2:]]))
        with pytest.raises(ReadsegError, match=r"records\.jsonl: .*damaged"):
            study.run(studies.job(out, limit=1))
        shutil.rmtree(out)


def test_nothing_to_measure(tmp_path: Path) -> None:
    """False premises alone: tables without a number, and no picture of maps."""
    asked = studies.benchmark([[(studies.UNICORN, False, [])]])
    study_maps.run(studies.job(tmp_path / "maps", asked))
    assert "0 masks of 0 questions" in (tmp_path / "maps" / "maps.md").read_text()
    study_layers.run(studies.job(tmp_path / "layers", asked))
    assert "layers-maps.png" not in contents(tmp_path / "layers")
    assert ORIGINAL_SAM_DECODER not in contents(tmp_path)
