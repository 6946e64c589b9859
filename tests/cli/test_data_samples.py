"""Samples of data sets are drawn; what is missing or refused is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from readseg.cli.data_samples import draw_samples
from readseg.data.registry import DATA_SETS
from readseg.errors import ReadsegError
from readseg.miniatures import write_miniatures


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "mini"
    write_miniatures(folder, images=8)
    return folder


def test_samples_are_drawn(miniatures: Path) -> None:
    for name in sorted(DATA_SETS):
        assert draw_samples(miniatures, name, count=2).width == 640
    one, same, other = (
        draw_samples(miniatures, "refcoco", "refcoco|unc|val", count=1, seed=seed) for seed in (0, 0, 5)
    )
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_samples_of_all_are_drawn_on_one_sheet(miniatures: Path, tmp_path: Path) -> None:
    sheet = draw_samples(miniatures, count=1)
    assert sheet.width == 4 * 320 and sheet.height > 4 * 200
    one = draw_samples(miniatures, "ade20k", count=1)
    assert sheet.crop((0, 0, 320, 150)).tobytes() == one.crop((0, 0, 320, 150)).tobytes()
    shutil.copytree(miniatures / "reason_seg", tmp_path / "some" / "reason_seg")
    assert draw_samples(tmp_path / "some").width == 2 * 320
    with pytest.raises(ReadsegError, match="no data set that can be shown"):
        draw_samples(tmp_path / "some" / "reason_seg")
    with pytest.raises(ReadsegError, match="no such folder"):
        draw_samples(tmp_path / "nowhere")
    with pytest.raises(ReadsegError, match="is of one data set: name that"):
        draw_samples(miniatures, split="val")


def test_what_is_not_there_cannot_be_shown(miniatures: Path, tmp_path: Path) -> None:
    for root, name, split, said in (
        (miniatures, "imagenet", None, "no data set 'imagenet'; there are ade20k"),
        (miniatures, "refcoco", "refcoco|unc|testC", "there are refcoco"),
        (tmp_path, "ade20k", None, "training is missing: put images/training of .*; readseg data check"),
    ):
        with pytest.raises(ReadsegError, match=said):
            draw_samples(root, name, split)


def test_files_that_cannot_be_read_are_told_and_the_others_shown(miniatures: Path, tmp_path: Path) -> None:
    for folder in ("ade20k", "refer_seg/images", "refer_seg/refcoco"):
        shutil.copytree(miniatures / folder, tmp_path / folder)
    refs = tmp_path / "refer_seg" / "refcoco" / "refs(unc).p"
    refs.write_bytes(b"cos\nsystem\n.")
    assert draw_samples(tmp_path, "refcoco", count=1).width  # of the other file
    refs.with_name("refs(unc_exclude_unified).p").unlink()
    with pytest.raises(ReadsegError, match="is refused, nothing of it was run"):
        draw_samples(tmp_path, "refcoco")
    with pytest.warns(UserWarning, match=r"refcoco is not shown: .*refs\(unc\)\.p is refused"):
        assert draw_samples(tmp_path, count=1).width == 320
