"""Scenes as files: what is written is complete, exact and the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readseg.core.masks import decode_rle, polygons_to_mask, union
from readseg.errors import ReadsegError
from readseg.scenes.export import draw_scene, outlines, write_scenes
from readseg.scenes.questions import target_masks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "new" / "folder"
    questions, targets = write_scenes(out, 4, 3, questions=6)
    assert questions == len((out / "questions.jsonl").read_text().splitlines())
    assert targets == sum(bool(json.loads(p.read_text())["shapes"]) for p in out.glob("*.json"))
    return out


def test_every_picture_has_its_layout_and_every_target_its_exact_mask(written: Path) -> None:
    layouts = sorted(written.glob("*.json"))
    assert layouts
    assert [p.stem for p in layouts] == [p.stem for p in sorted(written.glob("scene-*.jpg"))]
    for path in layouts:
        layout = json.loads(path.read_text(encoding="utf-8"))
        with Image.open(path.with_suffix(".jpg")) as picture:
            width, height = picture.size
        exact = [np.asarray(Image.open(p)) > 0 for p in sorted((written / "masks").glob(f"{path.stem}.*.png"))]
        assert bool(exact) == bool(layout["shapes"]) == bool(layout["text"])
        painted = polygons_to_mask([shape["points"] for shape in layout["shapes"]], (height, width))
        truth = union(exact, (height, width))
        # Outer contours fill holes and add nothing else.
        assert np.all(painted[truth])
        assert (painted & ~truth).sum() <= 0.5 * max(1, truth.sum())
        for question, is_sentence, answer in layout["false_premise_QA"]:
            assert question and answer and is_sentence is True


def test_the_list_of_questions_agrees_with_the_masks(written: Path) -> None:
    lines = [json.loads(line) for line in (written / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in lines:
        assert (written / record["image"]).is_file()
        stem = Path(record["image"]).stem
        assert record["answer"].count("[SEG]") == len(record["masks"])
        assert bool(record["masks"]) == (record["present"] is True)
        for order, rle in enumerate(record["masks"]):
            with Image.open(written / "masks" / f"{stem}.{order}.png") as exact:
                assert np.array_equal(decode_rle(rle), np.asarray(exact) > 0)


def test_the_contact_sheet_can_be_looked_at(written: Path) -> None:
    with Image.open(written / "contact_sheet.png") as sheet:
        assert sheet.width >= 600 and np.asarray(sheet).std() > 20
    assert not list(written.rglob("*.part"))


def test_the_same_arguments_write_the_same_files(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, 4, 3, questions=6)
    names = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_size_is_that_of_the_longer_side() -> None:
    picture, questions = draw_scene(5, size=200)
    assert max(picture.image.shape[:2]) == 200
    assert picture.image.shape[:2] == picture.masks.shape[1:]
    for question in questions:
        assert len(target_masks(question, picture.masks)) == len(question.targets)


def test_outlines_give_the_mask_back() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:12] = mask[12:18, 20:29] = mask[0, 0] = True
    polygons = outlines(mask)
    assert len(polygons) == 3
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert outlines(np.zeros((5, 5), bool)) == []


def test_wrong_arguments_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="train, held_out"):
        write_scenes(tmp_path / "out", 1, 0, wording="test")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ReadsegError, match="is a file"):
        write_scenes(tmp_path / "file", 1, 0)
    assert (tmp_path / "file").read_text() == "precious"
