"""`readseg ablate` end to end: the embedded model, small ones, a released checkpoint; killed, resumed, refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commandline import Console
from readseg.inference.segmenter import Segmenter
from released import write_released
from studies import contents

GRID = [f"{ratio}, {number} points" for ratio in ("0.8/0.2", "0.7/0.3", "0.6/0.4") for number in (10, 30, 60)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_embedded_model_on_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.chdir(tmp_path)
    printed = console.out("ablate", "points", "-n", 2, "--device", "cpu")
    out = tmp_path / "runs" / "ablation" / "embedded" / "scenes-points"
    assert "0.8/0.2, 30 points (own)" in printed and "runs/ablation/embedded/scenes-points/points.md" in printed
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


def test_a_released_checkpoint_under_the_forced_protocol(data: Path, tmp_path: Path, console: Console) -> None:
    for family in ("read", "lisa"):
        write_released(tmp_path / family, family)
    tower = ("--vision-tower", tmp_path / "clip")
    words = ("reasonseg/val", "--data", data, "-n", 2, *tower, "--device", "cpu", "--out")
    out = tmp_path / "out of read"
    console.out("ablate", "alignment", *words, out, "--model", tmp_path / "read")
    # The rounding of the released weights is their own setting; exact is possible too, for they see the centre crop.
    table = rows(out / "alignment.csv")
    assert [row["prompt"] for row in table] == ["exact", "reference (own)"]
    assert all(row["giou"] for row in table)
    text = (out / "alignment.md").read_text(encoding="utf-8")
    assert "teacher-forced" in text and "a sample: 2 of " in text
    out, lisa = tmp_path / "out of lisa", ("--model", tmp_path / "lisa")
    console.out("ablate", "prompt", *words, out, *lisa)
    table = rows(out / "prompt.csv")
    assert table[0]["prompt"] == "[SEG] only (own)" and len(table) == 5
    assert "trained without points" in (out / "prompt.md").read_text(encoding="utf-8")
    console.out("ablate", "points", *words, out, *lisa, "--num-points", 9, "--downsample", 2)
    assert [(row["prompt"], row["points"]) for row in rows(out / "points.csv")] == [
        ("[SEG] only (own)", "0"),
        ("0.8/0.2, 9 points", "4 of 9"),
        ("0.7/0.3, 9 points", "4 of 9"),
        ("0.6/0.4, 9 points", "4 of 9"),
    ]


def test_models_beside_each_other(model: Path, data: Path, tmp_path: Path, console: Console) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["points"] |= {"num_points": 2, "t_pos": 0.6, "downsample": 2}
    (other / "config.json").write_text(json.dumps(config))
    words = ("refcoco/testA", "--data", data, "--protocol", "generated", "-n", 2, "--device", "cpu", "--out", out)
    options = ("--ratio", "0.9/0.1", "--ratio", "0.8/0.2", "--num-points", 5, "--num-points", 7)
    console.out("ablate", "points", *words, *options, "--model", f"{model}/", "--model", other)
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


def test_interrupted_and_resumed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    words = ("prompt", "-n", 2, "--model", model, "--device", "cpu", "--out")
    console.out("ablate", *words, tmp_path / "calm")
    decode, left = Segmenter.decode, [8]

    def decode_a_few(self: Segmenter, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return decode(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "decode", decode_a_few)
        assert console("ablate", *words, tmp_path / "cut")[0] == 130
    parts = list((tmp_path / "cut").rglob("predictions-rank0.jsonl"))
    assert len(parts) == 5 and not list((tmp_path / "cut").glob("prompt*"))
    kept = {path.parent: path.read_bytes() for path in parts}
    console.out("ablate", *words, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "calm")
    assert all((folder / "predictions.jsonl").read_bytes().startswith(part) for folder, part in kept.items())


def test_other_settings_are_refused_and_nothing_is_lost(model: Path, tmp_path: Path, console: Console) -> None:
    words = ("prompt", "--model", model, "--device", "cpu", "--out", tmp_path, "-n")
    console.out("ablate", *words, 2)
    before = contents(tmp_path)
    for more, told in (
        ((2, "--num-points", 3), "num_points"),
        ((2, "--threshold", "std"), "std"),
        ((1,), "more than are asked for now"),
        ((2, "--dtype", "bfloat16"), "dtype"),
    ):
        assert told in console.error("ablate", *words, *more)
    now = contents(tmp_path)
    assert {name: now[name] for name in before} == before


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
        (("points", "refcoco", "--data", "{data}"), "takes one split"),
        (("points", "{file}"), "expected a benchmark"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], told: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    places: dict[str, Any] = {"{data}": data, "{file}": tmp_path / "file"}
    assert told in console.error("ablate", *(places.get(word, word) for word in words))
    assert contents(tmp_path) == {"file": b"mine"}
