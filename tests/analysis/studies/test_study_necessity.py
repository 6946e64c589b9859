"""The study of the [SEG] decision on a small model: its files, its resumption, its errors."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import studies
from readseg.analysis.studies import necessity
from readseg.errors import ReadsegError

Capture = pytest.CaptureFixture[str]
CSVS = [f"necessity-{k}.csv" for k in (1, 2, 3, 4)]
FILES = ["necessity.json", "necessity.md", "necessity.png", "roc.json", *CSVS]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_curves_and_chart(tmp_path: Path, capsys: Capture) -> None:
    studies.run("necessity", studies.context(tmp_path))
    assert sorted(contents(tmp_path)) == sorted([*FILES, "records.jsonl"])
    printed = capsys.readouterr().out
    assert "who decides whether to segment? tiny" in printed and str(tmp_path / "roc.json") not in printed
    with (tmp_path / "necessity-1.csv").open(newline="", encoding="utf-8") as file:
        said = next(csv.DictReader(file))
    # By heart: "the cat" and "all the birds and the tree" are answered, "the unicorn" is refused, whatever is true.
    assert (said["decided by"], float(said["true_positive"]), float(said["false_positive"])) == (
        "[SEG] in the answer",
        pytest.approx(4 / 5),
        pytest.approx(2 / 5),
    )
    assert float(said["balanced"]) == pytest.approx((4 / 5 + 3 / 5) / 2)
    curves = json.loads((tmp_path / "roc.json").read_text())["tiny"]
    assert set(curves) == {*necessity.SCORES, "said"}
    assert curves["said"] == {"false_positive": [pytest.approx(2 / 5)], "true_positive": [pytest.approx(4 / 5)]}
    assert curves["peak"]["false_positive"][0] == 0 and curves["peak"]["true_positive"][-1] == pytest.approx(1)
    assert "10 questions, 5 with a true and 5 with a false premise, about 4 of 4 images" in (
        tmp_path / "necessity.md"
    ).read_text(encoding="utf-8")
    with Image.open(tmp_path / "necessity.png") as chart:
        assert chart.width == 1200


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies.run("necessity", studies.context(tmp_path / "whole"))
    measure, asked = necessity.measure, []

    def counted(segmenter: Any, benchmark: Any, page: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(page.name)
        return measure(segmenter, benchmark, page)

    monkeypatch.setattr(necessity, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        studies.run("necessity", studies.context(tmp_path / "part"))
    assert list(contents(tmp_path / "part")) == [str(Path("records.jsonl"))]
    asked.clear()
    studies.run("necessity", studies.context(tmp_path / "part"))
    assert asked == ["page-2", "page-3"]
    asked.extend(["full"] * 2)  # nobody is asked a third time: the next question would end it
    studies.run("necessity", studies.context(tmp_path / "part"))
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_several_models_stand_in_files_of_their_own(tmp_path: Path) -> None:
    studies.run("necessity", studies.context(tmp_path, models=[studies.model("a/b"), studies.model("a b")]))
    found = contents(tmp_path)
    assert {"a-b/records.jsonl", "a-b-2/records.jsonl"} < set(found)
    assert {"necessity-a-b.png", "necessity-a-b-2.png", "necessity-8.csv"} < set(found)
    assert set(json.loads(found["roc.json"])) == {"a/b", "a b"}


def test_a_wrong_benchmark_is_known_before_a_model_is_asked(tmp_path: Path) -> None:
    nobody = replace(studies.model(), loaded={})
    for benchmark, told in (
        (studies.benchmark(protocol="forced"), "use --protocol generated"),
        (studies.benchmark([[(studies.CAT, True, [])]]), "no false premises are among its 1 images"),
    ):
        with pytest.raises(ReadsegError, match=told):
            studies.run("necessity", studies.context(tmp_path, benchmark, [nobody]))
    assert not contents(tmp_path)


def test_wrong_records_and_other_settings_are_named(tmp_path: Path) -> None:
    studies.run("necessity", studies.context(tmp_path))
    path = tmp_path / "records.jsonl"
    with pytest.raises(ReadsegError, match=r"records.jsonl was made with other settings \(weights: 'w' there"):
        studies.run(
            "necessity",
            studies.context(tmp_path, models=[studies.model(settings={"model": "tiny", "weights": "other"})]),
        )
    head, first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    page = json.loads(first)
    page["records"][0]["said"] = "yes"
    path.write_text("".join([head, json.dumps(page) + "\n", *others]), encoding="utf-8")
    with pytest.raises(ReadsegError, match=r"records.jsonl, line 2: .*the records of the page"):
        studies.run("necessity", studies.context(tmp_path))
    del page["sum"]  # as what wrote no sum would have it
    path.write_text("".join([head, json.dumps(page) + "\n", *others]), encoding="utf-8")
    with pytest.raises(ReadsegError, match=r"records.jsonl, the records of .*said"):
        studies.run("necessity", studies.context(tmp_path))
