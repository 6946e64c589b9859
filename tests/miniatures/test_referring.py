"""RefCOCO and its kin in miniature: what is referred to is there, what is denied is not, every id resolves."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readseg.core.masks import decode_rle, iou, polygons_to_mask, union
from readseg.scenes.classes import CLASSES, TINTS

PICKLES = [
    "refclef/refs(unc).p",
    *(f"{name}/refs({split}).p" for name in ("refcoco", "refcoco+", "R-refcoco", "R-refcoco+")
      for split in ("unc", "unc_exclude_unified")),
    *(f"{name}/refs({split}).p" for name in ("refcocog", "R-refcocog") for split in ("umd", "umd_exclude_unified")),
    *(f"{name}/refs(berkeley_exclude_unified).p" for name in ("fprefcoco", "fprefcoco+", "fprefcocog")),
]  # fmt: skip
FILES = [*PICKLES, "grefcoco/grefs(unc).json"]
FOLDERS = sorted({name.split("/")[0] for name in FILES})


class Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"a pickle of plain data names {module}.{name}")


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return json.loads(data) if path.suffix == ".json" else Plain(io.BytesIO(data)).load()


def instances(mini: Any, folder: str) -> dict[str, Any]:
    return json.loads((mini.root / "refer_seg" / folder / "instances.json").read_text(encoding="utf-8"))


def pictures_of(mini: Any, data: dict[str, Any]) -> dict[int, Any]:
    return {record["id"]: p for record, p in zip(data["images"], mini.pictures, strict=True)}


def mask_of(record: dict[str, Any], hw: tuple[int, int]) -> np.ndarray:
    shapes = record["segmentation"]
    return union(decode_rle(s) for s in shapes) if isinstance(shapes[0], dict) else polygons_to_mask(shapes, hw)


@pytest.mark.parametrize("folder", FOLDERS)
def test_instances_are_the_scenes_things(mini, folder: str) -> None:
    data = instances(mini, folder)
    pictures, names = pictures_of(mini, data), {c["id"]: c["name"] for c in data["categories"]}
    place = "saiapr_tc-12" if folder == "refclef" else "mscoco/images/train2014"
    for record, picture in zip(data["images"], mini.pictures, strict=True):
        assert (mini.root / "refer_seg/images" / place / record["file_name"]).read_bytes() == picture.jpeg
        assert (record["height"], record["width"]) == picture.hw
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"]) >= 32
    for record in data["annotations"]:
        picture = pictures[record["image_id"]]
        mask = mask_of(record, picture.hw)
        overlaps = [iou(mask, truth) for truth in picture.rendered.masks]
        assert max(overlaps) > 0.95
        assert picture.facts.names[int(np.argmax(overlaps))] == names[record["category_id"]]
        assert record["area"] == pytest.approx(mask.sum(), rel=0.05)
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert np.abs(np.subtract(record["bbox"], box)).max() <= 4
        assert all(isinstance(s, dict if folder == "refclef" else list) for s in record["segmentation"])


@pytest.mark.parametrize("name", FILES)
def test_refs_carry_what_real_files_carry_and_all_ids_resolve(mini, name: str) -> None:
    refs = read(mini.root / "refer_seg" / name)
    data = instances(mini, name.split("/")[0])
    images, annotations = {i["id"]: i for i in data["images"]}, {a["id"]: a for a in data["annotations"]}
    assert len({r["ref_id"] for r in refs}) == len(refs) >= 24
    sentence_ids = [i for r in refs for i in r["sent_ids"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    for ref in refs:
        fields = {"ref_id", "ann_id", "category_id", "image_id", "split", "file_name", "sentences", "sent_ids"}
        assert ref.keys() == fields
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"] != []
        for told in ref["sentences"]:
            assert told.keys() >= {"sent", "raw", "tokens", "sent_id"}
            assert told["tokens"] == told["sent"].split()
        assert ref["file_name"].startswith(Path(images[ref["image_id"]]["file_name"]).stem + "_")
        several = name.startswith("grefcoco")
        ids, categories = (ref[key] if several else [ref[key]] for key in ("ann_id", "category_id"))
        if ids == [-1]:
            assert categories == [-1]
            continue
        assert {annotations[i]["image_id"] for i in ids} == {ref["image_id"]}
        assert {annotations[i]["category_id"] for i in ids} == set(categories)


@pytest.mark.parametrize("name", PICKLES)
def plain(value: Any) -> bool:
    items = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return type(value) in (dict, list, str, int, bool) and all(map(plain, items))


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_hold_plain_types_only(mini, name: str) -> None:
    path = mini.root / "refer_seg" / name
    assert plain(read(path)) and pickle.loads(path.read_bytes()) == read(path)


def test_each_set_has_its_own_splits(mini) -> None:
    unc, umd = {"train", "val", "testA", "testB"}, {"train", "val", "test"}
    for name in FILES:
        splits = {r["split"] for r in read(mini.root / "refer_seg" / name)}
        expected = {"train", "val"} if "berkeley" in name else umd if "umd" in name else unc
        assert splits == expected, name


def test_exclude_unified_trains_on_no_image_that_a_sibling_holds_out(mini) -> None:
    of = {name: read(mini.root / "refer_seg" / name) for name in PICKLES}
    originals = [*of["refcoco/refs(unc).p"], *of["refcoco+/refs(unc).p"], *of["refcocog/refs(umd).p"]]
    held_out = {r["image_id"] for r in originals if r["split"] != "train"}
    for name, refs in of.items():
        if "exclude_unified" not in name:
            continue
        assert not held_out & {r["image_id"] for r in refs if r["split"] == "train"}, name
        if "berkeley" not in name:
            original = of[name.replace("_exclude_unified", "")]
            kept = [r for r in original if r["split"] != "train" or r["image_id"] not in held_out]
            assert refs == kept
            # RefCOCOg holds out an image that the others train on; it loses none itself.
            assert (len(kept) == len(original)) == ("umd" in name)


def parse(text: str) -> tuple[str | None, str] | None:
    """(colour or None, class) of "red cow" or "cow"; None of what says more, or less."""
    text = text.removeprefix("the ")
    first, _, rest = text.partition(" ")
    if first in TINTS and rest in CLASSES:
        return first, rest
    return (None, text) if text in CLASSES else None


@pytest.mark.parametrize("name", FILES)
def test_names_and_colours_are_true_and_what_is_denied_is_not_there(mini, name: str) -> None:
    refs, data = read(mini.root / "refer_seg" / name), instances(mini, name.split("/")[0])
    pictures, names = pictures_of(mini, data), {c["id"]: c["name"] for c in data["categories"]}
    parsed = false = 0
    for ref in refs:
        facts = pictures[ref["image_id"]].facts
        for told in ref["sentences"]:
            absent = ref["ann_id"] in (-1, [-1])
            is_false = absent or told.get("is_false_premise", False) or not told.get("exist", True)
            false += is_false
            category = ref["category_id"][0] if isinstance(ref["category_id"], list) else ref["category_id"]
            if found := parse(told["sent"]):
                parsed += 1
                tint, word = found
                matching = [n for n, t in zip(facts.names, facts.tints, strict=True) if n == word and tint in (None, t)]
                assert len(matching) == (0 if is_false else 1), told
                assert is_false or names[category] == word
            if "gt_sent" in told:
                assert is_false and told["gt_sent"] != told["sent"]
                instead = parse(told["gt_sent"])
                assert instead is None or instead[1] == names[category]
            else:
                assert not told.get("is_false_premise", False)
    assert parsed >= 3
    assert (false > 0) == name.startswith(("R-", "fp", "g"))


def test_false_premises_are_marked_as_their_sets_mark_them(mini) -> None:
    for name in FILES:
        told = [s for r in read(mini.root / "refer_seg" / name) for s in r["sentences"]]
        extra = set().union(*told) - {"sent", "raw", "tokens", "sent_id"}
        expected = {"exist"} if name[0] == "R" else {"is_false_premise", "gt_sent"} if name[:2] == "fp" else set()
        assert extra == expected, name
    denied = [r for r in read(mini.root / "refer_seg/R-refcoco/refs(unc).p") if r["ann_id"] == -1]
    assert denied and not any(s["exist"] for r in denied for s in r["sentences"])


def test_grefcoco_means_several_one_or_none(mini) -> None:
    refs = read(mini.root / "refer_seg/grefcoco/grefs(unc).json")
    data = instances(mini, "grefcoco")
    pictures = pictures_of(mini, data)
    annotations = {a["id"]: a for a in data["annotations"]}
    names = {c["id"]: c["name"] for c in data["categories"]}
    sizes = [0 if r["ann_id"] == [-1] else len(r["ann_id"]) for r in refs]
    assert min(sizes.count(0), sizes.count(1), sum(size > 1 for size in sizes)) >= 8
    plural = {c.plural: name for name, c in CLASSES.items()}
    checked = 0
    for ref, size in zip(refs, sizes, strict=True):
        facts, text = pictures[ref["image_id"]].facts, ref["sentences"][0]["sent"]
        meant = sorted(names[annotations[i]["category_id"]] for i in ref["ann_id"]) if size else []
        first, _, second = text.partition(" and the ")
        if second:
            assert meant == sorted((first, second))
            checked += 1
        elif text.removeprefix("all ") in plural:
            assert len(meant) == facts.names.count(plural[text.removeprefix("all ")])
            checked += 1
    assert checked >= 5
