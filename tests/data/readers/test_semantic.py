"""ADE20K, COCO-Stuff and Mapillary, in their true formats and damaged."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.data.readers.semantic import (
    _DOUBTFUL,
    _FAMILIES,
    ADE20K,
    ADE20K_NAMES,
    COCO_STUFF_NAMES,
    COCOStuff,
    Mapillary,
    read_values,
    surely_absent,
)
from readseg.data.types import Entry
from readseg.errors import ReadsegError

Reader = type[ADE20K] | type[COCOStuff] | type[Mapillary]

VALUES = np.array([[0, 1, 1, 3], [13, 13, 0, 255]], np.uint8)
LABELS = [
    {"name": "animal--bird", "readable": "Bird", "instances": True, "evaluate": True, "color": [165, 42, 42]},
    {"name": "object--support--pole", "readable": "Pole", "evaluate": True, "color": [1, 2, 3]},
    {"name": "object--pole-group", "readable": " pole", "evaluate": True, "color": [1, 2, 3]},
    {"name": "void--unlabeled", "readable": "Unlabeled", "evaluate": False, "color": [0, 0, 0]},
]
FOLDERS: dict[Any, tuple[str, str, str]] = {
    ADE20K: ("training", "ade20k/images/training", "ade20k/annotations/training"),
    COCOStuff: ("train2017", "coco/train2017", "cocostuff/train2017"),
    Mapillary: ("training", "mapillary/training/images", "mapillary/training/v2.0/labels"),
}


def folders(root: Path, reader: Reader) -> tuple[Path, Path]:
    """Folders of images and annotations, made."""
    _, images, annotations = FOLDERS[reader]
    for folder in (images, annotations):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return root / images, root / annotations


def write(root: Path, reader: Reader, name: str, values: Any, hw: tuple[int, int] | None = None) -> Path:
    """An image with its annotation; returns the annotation."""
    images, annotations = folders(root, reader)
    if reader is Mapillary:
        (root / "mapillary" / "config_v2.0.json").write_text(json.dumps({"labels": LABELS, "version": "1.2"}))
    values = np.asarray(values)
    height, width = hw or values.shape[:2]
    Image.new("RGB", (width, height), (9, 9, 9)).save(images / f"{name}.jpg")
    Image.fromarray(values).save(annotations / f"{name}.png")
    return annotations / f"{name}.png"


def read(root: Path, reader: Reader) -> Any:
    return reader(root, FOLDERS[reader][0])


def targets(entry: Entry) -> dict[str, list[list[int]]]:
    found = {}
    for expression in entry.expressions:
        assert (expression.present, expression.sentence, expression.instead) == (True, False, "")
        assert expression.mask is not None
        mask = expression.mask()
        assert mask.dtype == np.uint8 and mask.ndim == 2
        found[expression.text] = mask.tolist()
    return found


def test_ade20k_values_are_classes_and_one(tmp_path: Path) -> None:
    write(tmp_path, ADE20K, "ADE_train_00000002", VALUES)
    path = write(tmp_path, ADE20K, "ADE_train_00000001", np.full((2, 3), 150, np.uint8))
    for name in ("._a.png", "index.txt", "a.jpg"):  # no annotations
        path.with_name(name).write_bytes(b"x")
    data = read(tmp_path, ADE20K)
    assert (data.name, len(data)) == ("ade20k|training", 2)
    first, second = data
    assert targets(first) == {"flag": [[1, 1, 1], [1, 1, 1]]}
    assert second.name == "ADE_train_00000002"
    assert second.image == tmp_path / "ade20k" / "images" / "training" / "ADE_train_00000002.jpg"
    assert targets(second) == {
        "wall": [[255, 1, 1, 0], [0, 0, 255, 255]],
        "sky": [[255, 0, 0, 1], [0, 0, 255, 255]],
        "person": [[255, 0, 0, 0], [1, 1, 255, 255]],
    }


def test_cocostuff_does_not_ask_for_names_with_a_dash(tmp_path: Path) -> None:
    # 181 wood, 180 window-other, 0 person
    write(tmp_path, COCOStuff, "000000000009", np.array([[0, 180, 181, 255]], np.uint8))
    data = read(tmp_path, COCOStuff)
    assert (data.name, data[0].image) == ("cocostuff|train2017", tmp_path / "coco/train2017/000000000009.jpg")
    assert targets(data[0]) == {"person": [[1, 0, 0, 255]], "wood": [[0, 0, 1, 255]]}


def test_mapillary_labels_of_one_name_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, Mapillary, "a-_B2", np.array([[0, 1, 2, 3, 255]], np.uint8))
    data = read(tmp_path, Mapillary)
    assert (data.name, data[0].image) == ("mapillary|training", tmp_path / "mapillary/training/images/a-_B2.jpg")
    assert targets(data[0]) == {"bird": [[1, 0, 0, 255, 255]], "pole": [[0, 1, 1, 255, 255]]}


def test_a_palette_png_is_its_indices(tmp_path: Path) -> None:
    path = write(tmp_path, ADE20K, "a", VALUES)
    picture = Image.fromarray(VALUES).copy()
    picture.putpalette([(k * 7) % 256 for k in range(768)])
    assert picture.mode == "P"
    picture.save(path)
    assert list(targets(read(tmp_path, ADE20K)[0])) == ["wall", "sky", "person"]
    # Few colours: Pillow writes them with 1, 2 or 4 bits, and reads the indices again.
    for values in ([[0, 1]], [[1, 3]], [[1, 13]]):
        small = Image.fromarray(np.array(values, np.uint8)).copy()
        small.putpalette([(k * 7) % 256 for k in range(3 * (max(values[0]) + 1))])
        small.save(path)
        assert path.read_bytes()[24] < 8
        assert read_values(path).tolist() == values


def png(width: int, height: int, depth: int, row: bytes = b"") -> bytes:
    """Grey, of a size and depth that Pillow cannot write; its pixels are one row of bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"") if row else b""
    return b"\x89PNG\r\n\x1a\n" + head + pixels


@pytest.mark.parametrize(
    ("picture", "layout"),
    [
        (Image.new("RGB", (4, 2)), "RGB"),
        (Image.new("RGBA", (4, 2)), "RGBA"),
        (Image.new("LA", (4, 2)), "LA"),
        (Image.new("1", (4, 2)), "1"),
        (Image.fromarray(VALUES.astype(np.uint16)), "I;16B"),
    ],
)
def test_colours_and_deep_values_are_refused(tmp_path: Path, picture: Image.Image, layout: str) -> None:
    path = write(tmp_path, ADE20K, "a", VALUES)
    picture.save(path)
    with pytest.raises(ReadsegError, match=rf"a\.png is a PNG of {layout}: expected 8-bit grey or a palette"):
        read(tmp_path, ADE20K)[0]


def test_grey_of_few_bits_is_refused_since_pillow_would_spread_it(tmp_path: Path) -> None:
    path = write(tmp_path, ADE20K, "a", VALUES)
    path.write_bytes(png(3, 1, 4, b"\x13\x20"))
    assert np.asarray(Image.open(path)).tolist() == [[17, 51, 34]]
    with pytest.raises(ReadsegError, match="PNG of L;4: expected"):
        read(tmp_path, ADE20K)[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda old: b"", "is empty, damaged or no PNG"),
        (lambda old: old[:20], "no PNG"),
        (lambda old: old[:40], "damaged"),
        (lambda old: old[:-30], "damaged"),
        (lambda old: old[:45] + b"\0\0\0\0" + old[49:], "damaged"),
        (lambda old: b"GIF89a" + old, "no PNG"),
        (lambda old: png(2**31 - 1, 2**31 - 1, 8), "damaged or no PNG|pixels: expected 1 to"),
        (lambda old: png(0, 0, 8), "damaged or no PNG|pixels: expected 1 to"),
        (lambda old: png(9_000, 9_000, 8, b"x"), "has 9000 x 9000 pixels: expected 1 to"),
        (lambda old: png(5, 5, 8), "damaged"),
    ],
)
def test_a_damaged_annotation_names_itself_and_spares_the_others(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    write(tmp_path, ADE20K, "a", VALUES)
    path = write(tmp_path, ADE20K, "b", np.arange(1, 151, dtype=np.uint8).reshape(10, 15))
    path.write_bytes(damage(path.read_bytes()))
    data = read(tmp_path, ADE20K)
    with pytest.raises(ReadsegError, match=message) as told:
        data[1]
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    assert len(data[0].expressions) == 3


@pytest.mark.parametrize(
    ("reader", "values", "message"),
    [
        (ADE20K, [[1, 151]], r"\[151\], which no class of ade20k has"),
        (ADE20K, [[1, 254]], r"\[254\]"),
        (COCOStuff, [[0, 182, 200]], r"\[182, 200\], which no class of cocostuff has"),
        (Mapillary, [[0, 4]], r"\[4\], which no class of mapillary has"),
        (ADE20K, [[0, 255]], "no class to ask for"),
        (COCOStuff, [[180, 255]], "no class to ask for"),
        (Mapillary, [[3, 3]], "no class to ask for"),
    ],
)
def test_unknown_values_and_empty_annotations(
    tmp_path: Path, reader: Reader, values: list[list[int]], message: str
) -> None:
    path = write(tmp_path, reader, "a", np.array(values, np.uint8))
    data = read(tmp_path, reader)
    with pytest.raises(ReadsegError, match=message) as told:
        data[0]
    assert str(told.value).startswith(str(path))
    with pytest.raises(IndexError):
        data[1]


def test_an_image_of_another_size_is_refused_with_both_paths(tmp_path: Path) -> None:
    annotation = write(tmp_path, COCOStuff, "a", np.ones((2, 4), np.uint8), hw=(4, 2))
    entry = read(tmp_path, COCOStuff)[0]
    with pytest.raises(ReadsegError, match=r"is 4 x 2 \(height x width\), its annotation in .* 2 x 4") as told:
        targets(entry)
    assert str(annotation) in str(told.value) and str(entry.image) in str(told.value)


def test_an_image_is_measured_upright(tmp_path: Path) -> None:
    write(tmp_path, ADE20K, "a", np.ones((2, 4), np.uint8))
    entry, exif = read(tmp_path, ADE20K)[0], Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2, 4)).save(entry.image, exif=exif)
    assert targets(entry) == {"wall": [[1] * 4] * 2}


def test_masks_are_made_anew(tmp_path: Path) -> None:
    write(tmp_path, ADE20K, "a", VALUES)
    mask = read(tmp_path, ADE20K)[0].expressions[0].mask
    assert mask is not None
    first = mask()
    first[:] = 7
    assert mask().max() == 255 and set(np.unique(mask()).tolist()) == {0, 1, 255}


def test_a_folder_without_annotations_or_a_file_in_its_place(tmp_path: Path) -> None:
    _, annotations = folders(tmp_path, ADE20K)
    with pytest.raises(ReadsegError, match=r"holds no annotation \(\*\.png\)"):
        read(tmp_path, ADE20K)
    annotations.rmdir()
    annotations.write_text("x")
    with pytest.raises(ReadsegError, match="cannot be listed"):
        read(tmp_path, ADE20K)


HEADER = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"


def table(*changes: tuple[int, str]) -> str:
    special = {117: "plant pot;pot", 142: "CRT screen", 1: "wall, side "}
    names = {**dict(enumerate(ADE20K_NAMES, start=1)), **special, **dict(changes)}
    return HEADER + "".join(f"{k}\t0.1\t11664\t1172\t1\t{name}\n" for k, name in names.items())


def test_ade20k_names_of_the_data_set_come_first(tmp_path: Path) -> None:
    write(tmp_path, ADE20K, "a", np.array([[1, 117, 142, 150]], np.uint8))
    (tmp_path / "ade20k" / "objectInfo150.txt").write_text(table())
    assert list(targets(read(tmp_path, ADE20K)[0])) == ["wall", "plant pot", "crt screen", "flag"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it names 0"),
        (table().encode()[:-12], "it names 149"),
        (table((150, " ,flag")).encode(), "it names 149"),
        (table((151, "moon")).encode(), "it names 151"),
        ((table() + "150\t0.1\t1\t1\t1\tmoon\n").encode(), "classes 1 to 150"),
        (table().replace("\t", " ").encode(), "it names 0"),
        (table((3, "caf\xe9")).encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_broken_table_of_names_is_not_passed_over(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, ADE20K, "a", VALUES)
    path = tmp_path / "ade20k" / "objectInfo150.txt"
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=message) as told:
        read(tmp_path, ADE20K)
    assert str(told.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"[]", "expected an object"),
        (b"NaN", "expected an object, got nan"),
        (b"{}", '"labels": is missing'),
        (b'{"labels": {}}', '"labels": expected a valid list'),
        (b'{"labels": []}', '"labels": List should have at least 1 item'),
        (json.dumps({"labels": LABELS * 64}).encode(), '"labels": List should have at most 255 items'),
        (b'{"labels": [{"readable": "Bird"}, {"name": "x"}]}', '"labels.1.readable": is missing'),
        (b'{"labels": [{"readable": " "}]}', '"labels.0.readable": expected words'),
        (b'{"labels": [{"readable": "a\\u0007"}]}', '"labels.0.readable": expected words'),
        (b'{"labels": [{"readable": "\\ud800"}]}', '"labels.0.readable": holds half of a character'),
        (b'{"labels": [NaN]}', '"labels.0": expected an object'),
    ],
)
def test_a_broken_configuration_is_told_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, Mapillary, "a", VALUES)
    path = tmp_path / "mapillary" / "config_v2.0.json"
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=message) as told:
        read(tmp_path, Mapillary)
    assert str(told.value).startswith(str(path))


def test_classes_that_are_surely_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, ADE20K, "a", VALUES)  # wall, sky, person
    entry = read(tmp_path, ADE20K)[0]
    assert {"clock", "bed", "car"} < set(entry.absent) < set(ADE20K_NAMES)
    assert not {"wall", "sky", "person", "windowpane", "apparel"} & set(entry.absent)
    # 95 building-other is there and not asked for, 0 person is.
    write(tmp_path, COCOStuff, "1", np.array([[0, 95, 255]], np.uint8))
    entry = read(tmp_path, COCOStuff)[0]
    assert "zebra" in entry.absent
    assert not {"house", "clothes", "wall-wood", "hat"} & set(entry.absent)
    write(tmp_path, Mapillary, "a", np.array([[1, 2, 3]], np.uint8))
    assert read(tmp_path, Mapillary)[0].absent == ("bird",)


# -- names of classes --------------------------------------------------------------------------------------------------


def test_tables_are_whole() -> None:
    assert (len(ADE20K_NAMES), len(set(ADE20K_NAMES))) == (150, 150)
    assert (len(COCO_STUFF_NAMES), len(set(COCO_STUFF_NAMES))) == (182, 182)
    for name in ADE20K_NAMES + COCO_STUFF_NAMES:
        assert name == " ".join(name.split()).lower()
    # Indices that the data sets' papers and configurations name: the first, the last, and where stuff begins.
    assert (ADE20K_NAMES[0], ADE20K_NAMES[12], ADE20K_NAMES[149]) == ("wall", "person", "flag")
    assert [COCO_STUFF_NAMES[k] for k in (0, 90, 91, 181)] == ["person", "hair brush", "banner", "wood"]
    assert sorted(COCO_STUFF_NAMES[91:]) == list(COCO_STUFF_NAMES[91:])


@pytest.mark.parametrize(
    ("present", "name"),
    [
        ("wall", "wall"),
        ("dining table", "table"),
        ("building", "windowpane"),
        ("building-other", "house"),
        ("person", "clothes"),
        ("sea", "water"),
        ("tree", "plant"),
        ("traffic lights", "light"),
        ("sky", "metal"),
        ("lane marking - stop line", "lane marking - crosswalk"),
    ],
)
def test_what_another_label_may_cover_is_not_denied(present: str, name: str) -> None:
    assert surely_absent([name, "clock"], [present]) == ("clock",)


def test_the_order_stays_and_what_has_nothing_to_do_with_it_is_absent() -> None:
    assert surely_absent(["zebra", "airplane", "car"], ["grass", "car"]) == ("zebra", "airplane")
    assert surely_absent(["zebra"], []) == ("zebra",)


@pytest.mark.parametrize("table", [ADE20K_NAMES, COCO_STUFF_NAMES])
def test_there_is_always_something_to_deny(table: tuple[str, ...]) -> None:
    asked = [name for name in table if "-" not in name]
    for start in range(0, len(table) - 10, 5):
        assert len(surely_absent(asked, table[start : start + 10])) > 20


def test_what_coco_gave_up_labelling_is_never_denied() -> None:
    given_up = ["street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender"]
    given_up.append("hair brush")
    assert set(given_up) <= set(COCO_STUFF_NAMES)
    assert not surely_absent(given_up, ["sky"])


def test_no_name_is_misspelt() -> None:
    # Names of Mapillary are in a file of the data set; these are the ones that we know of.
    mapillary = """
        ambiguous barrier, animal group, balcony, barrier, bicyclist, bike lane, billboard, car mount, caravan,
        catch basin, cctv camera, concrete block, crosswalk - plain, curb, curb cut, driveway, dynamic, ego vehicle,
        garage, ground, ground animal, guard rail, lane separator, manhole, motorcyclist, on rails, other rider,
        other vehicle, parking, parking aisle, pedestrian area, person group, phone booth, pole group, pothole, rail
        track, road barrier, road median, road shoulder, road side, service lane, static, street light, temporary
        barrier, terrain, traffic cone, traffic island, traffic sign frame, trailer, trash can, tunnel, utility
        pole, vegetation, vehicle group, wheeled slow
    """
    known = {*ADE20K_NAMES, *COCO_STUFF_NAMES, *(" ".join(name.split()) for name in mapillary.split(","))}
    assert frozenset().union(*_FAMILIES, _DOUBTFUL) <= known
