"""The sheet of answers on a small model: pictures of a data set, of scenes, and what is said without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import studies
from readseg.analysis.study import StudyContext
from readseg.evaluation.scenes import SceneSet, scene_benchmark
from small import picture


def rows(folder: Path) -> list[dict[str, Any]]:
    (table,) = json.loads((folder / "answers.json").read_text())["tables"]
    return list(table["rows"])


def drawn(folder: Path) -> np.ndarray:
    with Image.open(folder / "answers.png") as sheet:
        return np.asarray(sheet)


def test_a_sheet_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for number in range(4):  # the files that the benchmark's questions are about
        picture(*studies.HW, seed=number).save(data / f"page-{number}", format="PNG")
    context = StudyContext(
        studies.benchmark(about={"data": str(data)}), [studies.model("one"), studies.model("two")], out, 2, None
    )
    studies.run("answers", context, rows=3, pick="random", seed=5)
    assert str(out / "answers.png") in capsys.readouterr().out
    found = rows(out)
    assert len(found) == 3
    for row in found:
        assert row["cells"]["one: answer"] == row["cells"]["two: answer"]
        assert row["cells"]["one: went"] == row["cells"]["two: went"]
    sheet = drawn(out)
    assert sheet.shape[1] == 1200
    studies.run("answers", context, rows=3, pick="random", seed=5)
    assert np.array_equal(sheet, drawn(out))
    # Noise has many colours; where the images are not to be had there is one grey, and words.
    studies.run("answers", replace(context, data=tmp_path / "nothing"), rows=3, pick="random", seed=5)
    colours = [len(np.unique(pixels[:, :300].reshape(-1, 3), axis=0)) for pixels in (sheet, drawn(out))]
    assert colours[0] > 1000 > colours[1]


def test_a_sheet_of_scenes(tmp_path: Path) -> None:
    context = StudyContext(scene_benchmark(SceneSet(scenes=2)), [studies.model()], tmp_path, None, None)
    studies.run("answers", context, rows=4)
    found = rows(tmp_path)
    assert 1 <= len(found) <= 4 and all(row["cells"]["key"].startswith("scene-50000") for row in found)
    assert "the worst answers of tiny, then its best ones" in (tmp_path / "answers.md").read_text(encoding="utf-8")
    assert drawn(tmp_path).shape[1] == 1200


def test_masks_and_refusals_are_told(tmp_path: Path) -> None:
    studies.run("answers", studies.context(tmp_path), rows=9, pick="random")
    went = {row["cells"]["key"]: row["cells"]["tiny: went"] for row in rows(tmp_path)}
    assert len(went) == 9
    told = {
        "page-0/1": "refused, rightly",
        "page-1/0": "a mask, but it is not there",
        "page-1/1": "refused, but it is there",
    }
    assert all(went[key] == words for key, words in told.items() if key in went) and told.keys() & went.keys()
    iou = next(row["cells"]["tiny: iou"] for row in rows(tmp_path) if row["cells"]["key"] == "page-2/0")
    assert went["page-2/0"] == f"IoU {iou:.2f}, mean of 2"
