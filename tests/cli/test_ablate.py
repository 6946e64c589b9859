"""`readseg ablate` end to end: the embedded model, small ones, a released checkpoint; killed, resumed, refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import commandline
from readseg.core.io import read_lines
from readseg.evaluation.predictions import PREDICTIONS
from readseg.inference.segmenter import Segmenter
from released import write_released

Capture = pytest.CaptureFixture[str]
GRID = [f"{ratio}, {number} points" for ratio in ("0.8/0.2", "0.7/0.3", "0.6/0.4") for number in (10, 30, 60)]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return commandline.run(monkeypatch, "ablate", *words)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_embedded_model_on_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "points", "-n", 2, "--device", "cpu") == 0
    out = tmp_path / "runs" / "ablation" / "embedded" / "scenes-points"
    printed = capsys.readouterr().out
    assert (
        "0.8/0.2, 30 points (own)" in printed and str(Path("runs/ablation/embedded/scenes-points/points.md")) in printed
    )
    table = rows(out / "points.csv")
    assert [row["prompt"].removesuffix(" (own)") for row in table] == GRID
    assert {row["kind"] for row in table} == {"prompted"} and {row["group"] for row in table} == {"embedded"}
    assert all(0.2 < float(row["giou"]) <= 1 for row in table), "points of any setting find something"
    own = next(row for row in table if row["prompt"].endswith("(own)"))
    assert own["giou_gap"] == "" and all(row["giou_gap"] for row in table if row is not own)
    (in_json,) = json.loads((out / "points.json").read_text())["tables"]
    assert [row["cells"]["giou"]["value"] for row in in_json["rows"]] == [float(row["giou"]) for row in table]
    assert [row["cells"]["kind"] for row in in_json["rows"]] == ["prompted"] * 9
    text = (out / "points.md").read_text(encoding="utf-8")
    assert "prompted in different ways" in text and "196 cells" in text and text.count("\n| ") == 11
    assert "sections" not in text, "the first scenes are of one"
    with Image.open(out / "points.png") as picture:
        assert picture.width == 1200
    # What `readseg evaluate` says of the model's own setting is in the same file, prediction by prediction.
    command = ("evaluate", "scenes", "-n", 2, "--device", "cpu", "--out", tmp_path / "evaluated")
    assert commandline.run(monkeypatch, *command) == 0
    evaluated = read_lines(tmp_path / "evaluated" / "scenes" / "predictions.jsonl", PREDICTIONS).records
    assert read_lines(out / "predictions" / "predictions.jsonl", PREDICTIONS).records == evaluated


def test_a_released_checkpoint_under_the_forced_protocol(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for family in ("read", "lisa"):
        write_released(tmp_path / family, family)
    tower = ("--vision-tower", tmp_path / "clip")
    words = ("reasonseg/val", "--data", data, "-n", 2, *tower, "--device", "cpu", "--out")
    out = tmp_path / "out of read"
    assert run(monkeypatch, "alignment", *words, out, "--model", tmp_path / "read") == 0
    # The rounding of the released weights is their own setting; exact is possible too, for they see the centre crop.
    table = rows(out / "alignment.csv")
    assert [row["prompt"] for row in table] == ["exact", "reference (own)"]
    assert all(row["giou"] for row in table)
    text = (out / "alignment.md").read_text(encoding="utf-8")
    assert "teacher-forced" in text and "a sample: 2 of " in text
    out, lisa = tmp_path / "out of lisa", ("--model", tmp_path / "lisa")
    assert run(monkeypatch, "prompt", *words, out, *lisa) == 0
    table = rows(out / "prompt.csv")
    assert table[0]["prompt"] == "[SEG] only (own)" and len(table) == 5
    assert "trained without points" in (out / "prompt.md").read_text(encoding="utf-8")
    assert run(monkeypatch, "points", *words, out, *lisa, "--num-points", 9, "--downsample", 2) == 0
    assert [(row["prompt"], row["points"]) for row in rows(out / "points.csv")] == [
        ("[SEG] only (own)", "0"),
        ("0.8/0.2, 9 points", "4 of 9"),
        ("0.7/0.3, 9 points", "4 of 9"),
        ("0.6/0.4, 9 points", "4 of 9"),
    ]
    capsys.readouterr()


def test_models_beside_each_other(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["points"] |= {"num_points": 2, "t_pos": 0.6, "downsample": 2}
    (other / "config.json").write_text(json.dumps(config))
    words = ("refcoco/testA", "--data", data, "--protocol", "generated", "-n", 2, "--device", "cpu", "--out", out)
    options = ("--ratio", "0.9/0.1", "--ratio", "0.8/0.2", "--num-points", 5, "--num-points", 7)
    assert run(monkeypatch, "points", *words, *options, "--model", f"{model}/", "--model", other) == 0
    for place, (name, own) in enumerate(((model, 0), (other, 1)), start=1):
        table = rows(out / f"points-{place}.csv")
        assert {(row["kind"], row["group"]) for row in table} == {("prompted", name.name)}
        grid = [row["prompt"].removesuffix(" (own)") for row in table][own:]
        assert grid == ["0.9/0.1, 5 points", "0.9/0.1, 7 points", "0.8/0.2, 5 points", "0.8/0.2, 7 points"]
    beside = rows(out / "points-3.csv")
    assert [(row["kind"], row["model"]) for row in beside] == [("trained", model.name), ("trained", "other")]
    assert [row["setting"] for row in beside] == [
        "[SEG] and points: 0.8/0.2, 5 points of 4 x 4 cells, DtoC, exact",
        "[SEG] and points: 0.6/0.2, 2 points of 2 x 2 cells, DtoC, exact",
    ]
    for place, row in enumerate(beside, start=1):
        (own_row,) = [r for r in rows(out / f"points-{place}.csv") if r["prompt"].endswith("(own)")]
        assert own_row["giou"] == row["giou"] and own_row["ciou"] == row["ciou"]
    assert sorted(path.name for path in out.glob("*.png")) == ["points-1.png", "points-2.png", "points-3.png"]
    assert (out / "other" / "predictions_0.8-0.2-7" / "predictions.jsonl").exists()
    text = (out / "points.md").read_text(encoding="utf-8")
    assert text.count("kind prompted:") == 2 and text.count("kind trained:") == 1
    assert f"other has the weights of {model.name}: they differ in their configuration only." in text


@pytest.mark.parametrize("calls", [1, 8])
def test_interrupted_and_resumed(calls: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prompt", "-n", 3, "--model", model, "--device", "cpu", "--out")
    assert run(monkeypatch, *words, tmp_path / "calm") == 0
    decode, left = Segmenter.decode, [calls]

    def decode_a_few(self: Segmenter, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return decode(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "decode", decode_a_few)
        assert run(patch, *words, tmp_path / "cut") == 130
    parts = list((tmp_path / "cut").rglob("predictions-rank0.jsonl"))
    assert len(parts) == min(calls, 5) and not list((tmp_path / "cut").glob("prompt*"))
    kept = {path.parent: path.read_bytes() for path in parts}
    assert run(monkeypatch, *words, tmp_path / "cut") == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "calm")
    assert all((folder / "predictions.jsonl").read_bytes().startswith(part) for folder, part in kept.items())


def test_other_settings_are_refused_and_nothing_is_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = ("prompt", "--model", model, "--device", "cpu", "--out", tmp_path, "-n")
    assert run(monkeypatch, *words, 2) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    for more, told in (
        ((2, "--num-points", 3), "num_points"),
        ((2, "--threshold", "std"), "std"),
        ((1,), "more than are asked for now"),
        ((2, "--dtype", "bfloat16"), "dtype"),
    ):
        assert run(monkeypatch, *words, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith("readseg: ") and told in error and error.count("\n") == 1
    now = contents(tmp_path)
    assert {name: now[name] for name in before} == before
    assert run(monkeypatch, *words, 2) == 0
    assert {name: text for name, text in contents(tmp_path).items() if name in before} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("points", "--ratio", "0.2/0.8"), "T_NEG < T_POS"),
        (("points", "--ratio", "0.5/0.5"), "T_NEG < T_POS"),
        (("points", "--ratio", "1.1/0.2"), "T_NEG < T_POS"),
        (("points", "--ratio", "nan/0.2"), "T_NEG < T_POS"),
        (("points", "--ratio", "0.8"), "expected two numbers"),
        (("points", "--ratio", "0.8/0.2/0.1"), "expected two numbers"),
        (("points", "--ratio", "high/low"), "expected two numbers"),
        (("points", "--num-points", "0"), "num-points"),
        (("points", "--threshold", "std"), "--threshold"),
        (("alignment", "--alignment", "exact"), "--alignment"),
        (("prompt", "--ratio", "0.8/0.2", "--ratio", "0.7/0.3"), "takes one, got 2"),
        (("prompt", "--num-points", "3", "--num-points", "4"), "takes one, got 2"),
        (("prompt", "--ratio", "0.8/0.2", "--threshold", "std"), "leave it out"),
        (("prompt", "--downsample", "15", "-n", "1", "--device", "cpu"), "grid of 196 image tokens"),
        (("prompt", "--alignment", "reference", "-n", "1", "--device", "cpu"), "centre crop"),
        (("layers",), "layers"),
        ((), "points|prompt|alignment"),
        (("points", "coco"), "there are scenes, unseen, reasonseg"),
        (("points", "refcoco/val"), "--data"),
        (("points", "refcoco", "--data", "{data}"), "takes one split"),
        (("points", "scenes", "--protocol", "forced"), "generated only"),
        (("points", "unseen"), "no masks to compare with"),
        (("points", "-n", "0"), "count"),
        (("points", "--model", "{none}"), "none"),
        (("points", "--model", "embedded", "--model", "{none}"), "none"),
        (("points", "--model", "embedded", "--model", "embedded"), "given twice"),
        (("points", "--out", "{file}"), "cannot write"),
        (("points", "{file}"), "expected a benchmark"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], told: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    places: dict[str, Any] = {"{data}": data, "{none}": tmp_path / "none", "{file}": tmp_path / "file"}
    assert run(monkeypatch, *(places.get(word, word) for word in words)) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.startswith("readseg: ") and printed.err.count("\n") == 1
    assert printed.out == ""
    assert contents(tmp_path) == {"file": b"mine"}
