"""What lies below a folder: found, missing, broken, and drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from readseg.data.catalogue import REFERRING, check, data_sets, show
from readseg.data.mini import write_miniatures
from readseg.errors import ReadsegError

NAMES = {"ade20k", "cocostuff", "mapillary", "paco_lvis", "pascal_part", "llava_instruct", "reasonseg", *REFERRING}


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "mini"
    write_miniatures(folder, images=8)
    return folder


@pytest.fixture
def root(miniatures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(miniatures, tmp_path / "mini"))


def test_every_data_set_is_found_and_whole(miniatures: Path) -> None:
    found = list(check(miniatures, thorough=True))
    assert {row.name for row in found} == NAMES
    assert not [row for row in found if row.broken or row.problems or not row.entries]
    assert all(row.expressions for row in found if row.name != "llava_instruct")
    splits = {row.split for row in found if row.name == "refcoco"}
    assert {"refcoco|unc|testA", "refcoco|unc_exclude_unified|train"} <= splits


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    found = list(check(tmp_path))
    assert {row.name for row in found} == NAMES
    for row in found:
        assert (row.entries, row.broken) == (0, 0)
        assert all(problem.startswith(f"{tmp_path}") and "is missing: put" in problem for problem in row.problems)
    assert any("refs(unc_exclude_unified).p" in row.problems[1] for row in found if row.name == "refcoco+")
    with pytest.raises(ReadsegError, match="no such folder"):
        list(check(tmp_path / "nowhere"))


def test_what_is_broken_is_counted_and_named(root: Path) -> None:
    image = sorted((root / "ade20k" / "images" / "training").glob("*.jpg"))[-1]
    image.write_bytes(image.read_bytes()[:50])
    mask = sorted((root / "cocostuff" / "train2017").glob("*.png"))[0]
    with Image.open(mask) as picture:
        picture.resize((7, 5)).save(mask)
    (root / "refer_seg" / "refcoco" / "instances.json").write_text("{")
    quick = {(row.name, row.split): row for row in check(root)}
    assert not quick["ade20k", "training"].broken  # only the first record is read
    thorough = {(row.name, row.split): row for row in check(root, thorough=True)}
    ade = thorough["ade20k", "training"]
    assert (ade.broken, len(ade.problems)) == (1, 1)
    assert image.name in ade.problems[0]
    assert mask.name in thorough["cocostuff", "train2017"].problems[0]
    assert "instances.json" in thorough["refcoco", "refcoco|unc|val"].problems[0]
    assert not thorough["refcoco+", "refcoco+|unc|val"].broken


def test_samples_are_drawn(miniatures: Path) -> None:
    for name in sorted(NAMES):
        assert show(miniatures, name, count=2).width == 640
    one, same, other = (show(miniatures, "refcoco", "refcoco|unc|val", count=1, seed=seed) for seed in (0, 0, 5))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_what_is_not_there_cannot_be_shown(miniatures: Path, tmp_path: Path) -> None:
    for root, name, split, said in (
        (miniatures, "imagenet", None, "no data set 'imagenet'; there are ade20k"),
        (miniatures, "refcoco", "refcoco|unc|testC", "there are refcoco"),
        (tmp_path, "ade20k", None, "readseg data check"),
    ):
        with pytest.raises(ReadsegError, match=said):
            show(root, name, split)


def test_each_set_is_read_by_its_own_reader(miniatures: Path) -> None:
    for data_set in data_sets(miniatures):
        names = {getattr(data_set.read(split), "name") for split in data_set.splits}  # noqa: B009 - not of the protocol
        assert len(names) == len(data_set.splits)
