"""What lies below a folder: found, missing, and broken."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from PIL import Image

from readseg.core.images import load_image
from readseg.data.readers import refer
from readseg.data.readers.coco_parts import PACO, PascalPart
from readseg.data.readers.llava_instruct import LlavaInstruct
from readseg.data.readers.semantic import ADE20K, COCOStuff, Mapillary
from readseg.data.registry import DATA_SETS, check
from readseg.data.types import DataSet, SplitReader
from readseg.errors import ReadsegError

REFERRING = [data_set.name for data_set in refer.DATA_SETS]


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "mini"))


def test_every_data_set_is_found_and_whole(data: Path) -> None:
    found = list(check(data, thorough=True))
    assert {row.name for row in found} == set(DATA_SETS)
    assert not [row for row in found if row.broken or row.problems or not row.entries]
    assert all(row.expressions for row in found if row.name != "llava_instruct")
    names = [DATA_SETS[row.name].open(data, row.split).name for row in found]
    assert len(set(names)) == len(names)
    splits = {row.split for row in found if row.name == "refcoco"}
    assert {"refcoco|unc|testA", "refcoco|unc_exclude_unified|train"} <= splits


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    found = list(check(tmp_path))
    assert {row.name for row in found} == set(DATA_SETS)
    for row in found:
        assert (row.entries, row.broken) == (0, 0)
        assert all(problem.startswith(f"{tmp_path}") and "is missing: put" in problem for problem in row.problems)
    assert any("refs(unc_exclude_unified).p" in row.problems[1] for row in found if row.name == "refcoco+")
    with pytest.raises(ReadsegError, match="no such folder"):
        list(check(tmp_path / "nowhere"))


@pytest.mark.parametrize("reader", [ADE20K, COCOStuff, Mapillary, PACO, PascalPart, LlavaInstruct])
def test_each_file_that_is_missing_is_named_with_its_place(tmp_path: Path, reader: type[SplitReader]) -> None:
    assert reader.splits(tmp_path) == ([], [])
    for path, what in reader.files(tmp_path):
        with pytest.raises(ReadsegError, match="is missing: put") as told:
            reader(tmp_path, reader.SPLITS[0])
        assert str(told.value) == f"{path} is missing: put {what} there"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix == ".json" else path.mkdir()
    assert reader.splits(tmp_path) == ([reader.SPLITS[0]], [])


def test_what_is_broken_is_counted_and_named(data: Path, tmp_path: Path) -> None:
    root = tmp_path
    for folder in ("ade20k", "coco", "cocostuff", *(f"refer_seg/{name}" for name in ("images", "refcoco", "refcoco+"))):
        shutil.copytree(data / folder, root / folder)
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


def test_what_is_missing_of_a_set_that_is_there_is_told(root: Path) -> None:
    for place in ("refer_seg/images/mscoco", "reason_seg/ReasonSeg/train"):
        shutil.rmtree(root / place)
    for place in (root / "refer_seg" / "refcoco").glob("refs*"):
        place.unlink()
    (root / "refer_seg" / "grefcoco" / "grefs(unc).json").write_text("[]")
    found = {(row.name, row.split): row for row in check(root)}
    assert "train is missing: put ReasonSeg's" in found["reasonseg", "-"].problems[0]
    assert found["reasonseg", "val"].entries
    refs = root / "refer_seg" / "refcoco" / "refs(unc_exclude_unified).p"
    assert found["refcoco", "-"].problems[0].startswith(f"{refs} is missing: put refcoco's {refs.name}, or another")
    images = root / "refer_seg" / "images" / "mscoco" / "images" / "train2014"
    assert found["refcoco+", "-"].problems == (f"{images} is missing: put the images (*.jpg) there",)
    assert not any(row.broken for (_, split), row in found.items() if split == "-")
    assert found["refcoco+", "refcoco+|unc|val"].broken
    images.mkdir(parents=True)
    (told,) = (row for row in check(root) if row.name == "grefcoco")
    assert "nothing that can be read is in" in told.problems[0] and "grefs(unc).json" in told.problems[0]


class Hostile:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_is_refused_spares_the_others(root: Path) -> None:
    mark = root / "ran"
    hostile = root / "refer_seg" / "refcoco" / "refs(unc).p"
    hostile.write_bytes(pickle.dumps([Hostile(mark)]))
    found = {(row.name, row.split): row for row in check(root)}
    told = found["refcoco", "-"]
    assert (told.broken, told.entries) == (1, 0) and f"{hostile} is refused" in told.problems[0]
    assert not found["refcoco", "refcoco|unc_exclude_unified|val"].broken
    assert {name for name, _ in found} == set(DATA_SETS)
    assert not mark.exists()


# What may lie in the place of a file.
DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, old: None,
    "empty": lambda path, old: path.write_bytes(b""),
    "cut": lambda path, old: path.write_bytes(old[: len(old) // 2]),
    "a folder": lambda path, old: path.mkdir(),
    "a link to itself": lambda path, old: path.symlink_to(path.name),
    "a pipe": lambda path, old: os.mkfifo(path),
    "a device": lambda path, old: path.symlink_to("/dev/zero"),
    "a pointer": lambda path, old: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:9\n"),
    "noise": lambda path, old: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "nesting": lambda path, old: path.write_bytes(b"[" * 300_000),
    "another size": lambda path, old: Image.new("L", (7, 5)).save(path, format="PNG"),
    "16 bits": lambda path, old: Image.fromarray(np.ones((9, 9), np.uint16)).save(path, format="PNG"),
}
ANNOTATIONS = {
    "mapillary": "mapillary/config_v2.0.json",
    "paco_lvis": "vlpart/paco/annotations/paco_lvis_v1_train.json",
    "pascal_part": "vlpart/pascal_part/train.json",
    "llava_instruct": "llava_dataset/llava_instruct_150k.json",
    "ade20k": "ade20k/objectInfo150.txt",
    "grefcoco": "refer_seg/grefcoco/grefs(unc).json",
    **{name: f"refer_seg/{name}/instances.json" for name in REFERRING if name != "grefcoco"},
}

SISTERS = {"refcoco+", "refcocog", "R-refcoco+", "R-refcocog", "fprefcoco+", "fprefcocog"}
"""Read as those that they are called after."""
SIZES_UNTOLD = ("reasonseg", "llava_instruct")
"""Whose files do not say how large their images are."""


@pytest.fixture
def in_time() -> Iterator[None]:
    """A reader that waits for a pipe would wait for ever."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it waits")

    old = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def told_of(data_set: DataSet, root: Path) -> list[str]:
    """The errors of a data set: of its files, and of the first entry of its first split."""
    splits, told = data_set.splits(root)
    for split in splits[:1]:
        try:
            entry = data_set.open(root, split)[0]
            load_image(entry.image)
            for expression in entry.expressions:
                if expression.mask is not None:
                    expression.mask()
        except ReadsegError as error:
            told = [*told, str(error)]
    return told


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", sorted(DATA_SETS.keys() - SISTERS))
def test_damaged_files_are_errors_that_name_them(root: Path, name: str) -> None:
    data_set = DATA_SETS[name]
    assert told_of(data_set, root) == []
    entry = data_set.open(root, data_set.splits(root)[0][0])[0]
    places = {entry.image}
    if name in ANNOTATIONS:
        places.add(root / ANNOTATIONS[name])
    if name == "reasonseg":
        places.add(entry.image.with_suffix(".json"))
    if name in ("ade20k", "cocostuff", "mapillary"):
        places |= set((root / name).rglob(f"{entry.name}.png"))
    if name in REFERRING:
        places |= set((root / "refer_seg" / name).glob("*refs*.p"))
    for path in places:
        old = path.read_bytes()
        for damage, put in DAMAGES.items():
            path.unlink()
            put(path, old)
            told = told_of(data_set, root)
            absent = damage in ("missing", "a link to itself") and path != entry.image  # which may be no error
            unseen = damage in ("another size", "16 bits") and path == entry.image and name in SIZES_UNTOLD
            if not absent and not unseen:
                assert any(str(path) in message for message in told), f"{path.name}, {damage}: {told}"
            assert all(str(root) in message and "\n" not in message and len(message) < 900 for message in told)
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(old)
    assert told_of(data_set, root) == []
