"""`readseg study` end to end: the studies of maps and layers on two kinds of models, resumption, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter

import studies
from commandline import Console
from readseg.analysis.studies import maps as maps_study
from readseg.analysis.studies.map_records import MapRecord
from readseg.analysis.study import RECORDS
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.cli import benchmark
from readseg.errors import ReadsegError
from released import write_released, write_sam
from studies import contents

MAP_RECORDS = TypeAdapter(list[MapRecord])
TABLES = ["maps-1.csv", "maps-2.csv", "maps-3.csv", "maps.json", "maps.md"]


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {row["group"] + next(iter(list(row.values())[1:])): row for row in csv.DictReader(file)}


def test_the_embedded_model_on_scenes(tmp_path: Path, console: Console) -> None:
    printed = console.out("study", "maps", "scenes", "--device", "cpu", "--out", tmp_path, "-n", 2)
    assert sorted(contents(tmp_path)) == sorted([*TABLES, RECORDS, "misaligned.md", "report.html"])
    header, images, records = studies.recorded(tmp_path / RECORDS)
    assert header["study"] == "maps" and images == ["scene-500000", "scene-500001"]
    records = MAP_RECORDS.validate_python(records)
    assert {record.image for record in records} == set(images)
    for prompt in ("plain_points", "plain_truth"):
        assert all(prompt in record.prompts for record in records), "the original SAM lies beside the model"
    settings = header["settings"]
    assert settings["original_sam"] and settings["clip"] is None and settings["extremes"] == 5
    assert "language model, last layer" in printed and "points alone, original SAM" in printed
    maps = rows(tmp_path / "maps-1.csv")
    assert int(maps["language model, last layer"]["giou_count"]) == len(records)
    assert float(maps["language model, last layer"]["auc"]) > 0.9, "it was trained to"
    own = float(rows(tmp_path / "maps-2.csv")["the model's own prompt"]["giou"])
    assert own == pytest.approx(sum(record.own_iou for record in records) / len(records), abs=1e-4)
    report = (tmp_path / "report.html").read_text()
    assert "scene-500001/" in report and "What the maps know: embedded" in report


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    studies.run("maps", studies.context(whole))
    examine, calls = maps_study.examine, []

    def interrupted(*given: object) -> list[MapRecord]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return examine(*given)

    monkeypatch.setattr(maps_study, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        studies.run("maps", studies.context(half))
    assert list(contents(half)) == [RECORDS] and len(studies.recorded(half / RECORDS)[1]) == 1
    studies.run("maps", studies.context(half))
    assert contents(half) == contents(whole), "the same to the byte, the page too"
    before = len(calls)
    studies.run("maps", studies.context(half))
    assert len(calls) == before and contents(half) == contents(whole)


def test_a_folder_of_records_that_hold_less_is_refused(tmp_path: Path) -> None:
    """Such as one from before the points from the true mask: no study is made of two kinds of records."""
    studies.run("maps", studies.context(tmp_path, limit=1))
    head, *pages = (tmp_path / RECORDS).read_text().splitlines()
    values = json.loads(head)
    assert values["settings"].pop("record") == 2
    old = "\n".join([json.dumps(values), *pages]) + "\n"
    (tmp_path / RECORDS).write_text(old)
    with pytest.raises(ReadsegError, match=r"record: None there, 2 now\); give another folder or delete it"):
        studies.run("maps", studies.context(tmp_path, limit=2))
    assert (tmp_path / RECORDS).read_text() == old


def test_two_models_stand_in_one_table(tmp_path: Path) -> None:
    models = [studies.model("one"), studies.model("o/ther")]
    studies.run("maps", studies.context(tmp_path, models=models, limit=1))
    assert sorted(contents(tmp_path)) == sorted(
        [*TABLES, *(f"{m}/{name}" for m in ("one", "o-ther") for name in (RECORDS, "misaligned.md", "report.html"))]
    )
    table = json.loads((tmp_path / "maps.json").read_text())["tables"][0]
    assert list(dict.fromkeys(row["group"] for row in table["rows"])) == ["one", "o/ther"]
    text = (tmp_path / "maps.md").read_text()
    assert "one: original" not in text
    assert "one: points alone, original SAM: not available: the original SAM is not beside" in text
    studies.run("layers", studies.context(tmp_path / "layers", models=models, limit=1))
    names = sorted(contents(tmp_path / "layers"))
    assert names == ["layers-maps-o-ther.png", "layers-maps-one.png", "layers.csv", "layers.json", "layers.md",
                     "layers.png", "o-ther/records.jsonl", "one/records.jsonl"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*the model sees only the centre")
def test_a_released_family_on_a_data_set(data: Path, tmp_path: Path, console: Console) -> None:
    write_released(tmp_path / "read", "read")
    write_sam(tmp_path / "sam.pth")
    model = ("--model", tmp_path / "read", "--device", "cpu", "--data", data, "-n", 2)
    out = tmp_path / "maps"
    options = ("--sam", tmp_path / "sam.pth", "--extremes", 2, "--num-points", 4)
    code, _, err = console("study", "maps", "reasonseg/val", *model, "--out", out, *options)
    assert code == 0, err
    header, images, records = studies.recorded(out / RECORDS)
    records = MAP_RECORDS.validate_python(records)
    assert len(records) == 2 and all(record.given and record.places == (0,) for record in records)
    assert header["settings"]["protocol"] == "forced" and header["settings"]["points"]["num_points"] == 4
    assert all(len(record.points) <= 4 for record in records)
    # This SAM's decoder is the checkpoint's own: points alone give the same masks in both.
    assert all(record.prompts["plain_points"] == record.prompts["points"] for record in records)
    text = (out / "maps.md").read_text()
    assert "teacher-forced" in text and "the answer's own words: not available" in text and "a sample of 2 of" in text
    assert "released weights of the family read" in err
    out = tmp_path / "layers"
    console.out("study", "layers", "reasonseg/val", *model, "--out", out)
    assert list(rows(out / "layers.csv")) == ["layer 0", "layer 1", "layer 2 (last)", "area: the whole image"]
    for name in ("layers.png", "layers-maps.png"):
        with Image.open(out / name) as drawn:
            assert drawn.width >= 1200
    code, _, err = console("study", "maps", "reasonseg/val", *model, "--out", out)
    assert code == 2 and "study: 'layers' there, 'maps' now" in err


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    monkeypatch.setattr(
        benchmark,
        "run_study",
        lambda _, context, __: folders.append((str(context.out), len(context.benchmark), context.limit)),
    )
    (tmp_path / "own" / "model").mkdir(parents=True)
    console.out("study", "maps", "scenes")
    console.out("study", "layers", "scenes", "--model", "own/model", "--model", "embedded", "-n", 5)
    assert folders == [
        ("runs/analysis/embedded/scenes-maps", 300, None),
        ("runs/analysis/own-model+embedded/scenes-layers", 5, 5),
    ]
    assert (tmp_path / "runs/analysis/embedded/scenes-maps").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("maps", "desk.png"), "desk.png is a file: expected a benchmark such as scenes"),
        (("maps", "none.png"), "no benchmark 'none.png'"),
        (("maps", "unseen"), "benchmark unseen: it has no masks to compare with; readseg evaluate unseen says"),
        (("maps", "chairs"), "no benchmark 'chairs'; there are scenes, unseen, reasonseg"),
        (("maps", "reasonseg/val"), "name the folder that the data sets lie in with --data"),
        (("maps", "reasonseg/val", "--data", "nowhere"), "nowhere: no such folder"),
        (("maps", "reasonseg/val", "--data", "."), "no split 'val' of"),
        (("everything", "scenes"), "No such command 'everything'"),
        (("maps", "scenes", "--protocol", "forced"), "scenes are scored under the protocol generated only"),
        (("maps", "scenes", "-n", "0"), "Invalid value for '--count'"),
        (("maps", "scenes", "--model", "nowhere"), "no such folder"),
        (("maps", "scenes", "--model", "embedded", "--model", "embedded"), "embedded is given twice"),
        (("maps", "scenes", "--truth", "desk.png"), "No such option: --truth"),
        (("maps", "scenes", "--rows", "3"), "No such option: --rows"),
        (("layers", "scenes", "--clip", "x"), "No such option: --clip"),
        (("necessity", "scenes", "--points", "on"), "No such option: --points"),
        (("maps", "scenes", "--predictions", "x"), "No such option: --predictions"),
        (("maps", "scenes", "--out", "desk.png"), "desk.png"),
        (("maps", "scenes", "--out", "out", "--sam", "nowhere.pth", "-n", "1", "--device", "cpu"), "nowhere.pth"),
        (
            ("maps", "scenes", "--out", "out", "--clip", "model", "-n", "1", "--device", "cpu"),
            "expected a CLIP with a text encoder",
        ),
        (("maps", "scenes", "--out", "out", "--t-pos", "0.1", "-n", "1", "--device", "cpu"), "t_neg < t_pos"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, desk: Path, console: Console
) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "readseg"}')
    before = contents(tmp_path)
    assert message in console.error("study", *words)
    assert contents(tmp_path) == before, "nothing is written"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for study, field in (("maps", "wanted"), ("layers", "layers"), ("necessity", "said")):
        out = tmp_path / study
        studies.run(study, studies.context(out, limit=1))
        lines = (out / RECORDS).read_text().splitlines(keepends=True)
        page = json.loads(lines[1])
        page["records"][0][field] = "?"
        del page["sum"]  # a sum that does not fit is refused before a record is read
        (out / RECORDS).write_text("".join([lines[0], json.dumps(page) + "\n", *lines[2:]]))
        with pytest.raises(ReadsegError, match=rf"records\.jsonl, the records of page-0: 0\.{field}.*damaged"):
            studies.run(study, studies.context(out, limit=1))


def test_nothing_to_measure(tmp_path: Path) -> None:
    """False premises alone: tables without a number, and no picture of maps."""
    asked = studies.benchmark([[(studies.UNICORN, False, [])]])
    studies.run("maps", studies.context(tmp_path / "maps", asked))
    assert "0 masks of 0 questions" in (tmp_path / "maps" / "maps.md").read_text()
    studies.run("layers", studies.context(tmp_path / "layers", asked))
    assert "layers-maps.png" not in contents(tmp_path / "layers")
    assert ORIGINAL_SAM_DECODER not in contents(tmp_path)
