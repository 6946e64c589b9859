"""RefCLEF, RefCOCO and its kin, with false premises, and gRefCOCO, as on disk.

Splits go by image. "exclude_unified" files are those without the training images that any of the sets holds out.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from readseg.core.io import read_yaml
from readseg.miniatures.files import coco_annotation, coco_image, write_bytes, write_coco, write_json
from readseg.miniatures.pictures import Picture, capitalised
from readseg.scenes.classes import CLASSES

_REF_SETS: Mapping[str, dict[str, Any]] = read_yaml(Path(__file__).with_suffix(".yaml"))
_CATEGORY = {name: index + 1 for index, name in enumerate(CLASSES)}
_CATEGORIES = [{"supercategory": c.group, "id": _CATEGORY[name], "name": name} for name, c in CLASSES.items()]
_OBJECTS_PER_IMAGE = 100

Image = tuple[Picture, dict[str, Any]]
"""A picture with its entry among COCO's `images`, in COCO or in RefCLEF."""
Ref = dict[str, Any]


def _split(split_by: str, number: int) -> str:
    """The split of the picture of a number, as those who published a set of references part it."""
    splitter = split_by.partition("_")[0]
    if splitter == "berkeley":
        return "val" if number % 2 else "train"
    if splitter == "umd":  # it holds out a picture that RefCOCO trains on
        return "val" if number == 2 else ("train", "val", "train", "test")[number % 4]
    return ("train", "val", "train", "testB" if number // 4 % 2 else "testA")[number % 4]


def _keeps(split_by: str, number: int) -> bool:
    is_held_out = _split("unc", number) != "train" or _split("umd", number) != "train"
    return not (split_by.endswith("_exclude_unified") and _split(split_by, number) == "train" and is_held_out)


def write_refer_seg(root: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """Writes refer_seg. Returns for each folder the number of refs, in its first file."""
    folder, counts = root / "refer_seg", {}
    coco = [(p, coco_image(p, p.image_id, f"COCO_train2014_{p.image_id:012d}.jpg")) for p in pictures]
    numbers = [1000 * (p.number % 3) + p.number + 25 for p in pictures]
    clef = [(p, coco_image(p, n, f"{n // 1000:02d}/images/{n}.jpg")) for p, n in zip(pictures, numbers, strict=True)]
    for subfolder, images in (("mscoco/images/train2014", coco), ("saiapr_tc-12", clef)):
        for picture, image in images:
            write_bytes(folder / "images" / subfolder / image["file_name"], picture.jpeg)
    annotations = _annotations(coco)
    for name, ref_set in _REF_SETS.items():
        images, own = (clef, _annotations(clef, run_lengths=True)) if name == "refclef" else (coco, annotations)
        write_coco(folder / name / "instances.json", [image for _, image in images], own, _CATEGORIES)
        refs = _with_ids((image, ref) for image in images for ref in _refs(ref_set, image))
        counts[name] = len(refs)
        for split_by in ref_set["files"]:
            kept = [{**ref, "split": _split(split_by, number)} for number, ref in refs if _keeps(split_by, number)]
            # The first ones were written by Python 2; through JSON, so that the same values are the same bytes.
            data = pickle.dumps(json.loads(json.dumps(kept)), protocol=2 if "_" in split_by else 0)
            write_bytes(folder / name / f"refs({split_by}).p", data)
    write_coco(folder / "grefcoco/instances.json", [image for _, image in coco], annotations, _CATEGORIES)
    refs = _with_ids((image, ref) for image in coco for ref in _grefs(image))
    write_json(folder / "grefcoco/grefs(unc).json", [{**ref, "split": _split("unc", number)} for number, ref in refs])
    return {**counts, "grefcoco": len(refs)}


def _annotation_id(picture: Picture, index: int) -> int:
    return _OBJECTS_PER_IMAGE * (picture.number + 1) + index


def _category_id(picture: Picture, index: int) -> int:
    return _CATEGORY[picture.facts.names[index]]


def _annotations(images: Sequence[Image], *, run_lengths: bool = False) -> list[dict[str, Any]]:
    annotations = []
    for picture, image in images:
        for index in picture.visible:
            ids = _annotation_id(picture, index), image["id"], _category_id(picture, index)
            annotations.append(coco_annotation(*ids, picture.rendered.masks[index], run_lengths=run_lengths))
    return annotations


def _refs(ref_set: Mapping[str, Any], image: Image) -> Iterator[Ref]:
    """The refs of one picture, without their ids and splits."""

    def phrase(text: str) -> str:
        return f"the {text}" if ref_set.get("article") and not text.startswith("something ") else text

    picture, _ = image
    denied: list[dict[str, Any]] = []
    for index in picture.visible:
        true = [phrase(text) for text in picture.expressions_of(index, ref_set["kinds"])]
        # A false premise takes the place that a second expression has elsewhere.
        false = [(phrase(text), phrase(instead)) for text, instead in picture.false_premises_of(index)]
        sentences: list[dict[str, Any]]
        if ref_set.get("marks") == "exist":
            sentences = [{"sent": text, "exist": True} for text in true[:2]]
            sentences += [{"sent": text, "exist": False} for text, _ in false[:1]]
            denied += [{"sent": text, "exist": False} for text, _ in false[1:2]]
        elif ref_set.get("marks") == "gt_sent":
            sentences = [{"sent": text, "is_false_premise": False} for text in true[:1]]
            sentences += [{"sent": text, "is_false_premise": True, "gt_sent": instead} for text, instead in false[:2]]
        else:
            sentences = [{"sent": text} for text in true[:3]]
        if sentences:
            yield _ref(image, _annotation_id(picture, index), _category_id(picture, index), sentences)
    if denied:
        yield _ref(image, -1, -1, denied[:2])


def _grefs(image: Image) -> Iterator[Ref]:
    """The refs of gRefCOCO about one picture: of several objects, of one, of none."""
    picture, _ = image
    multiple = [(e.subject, [i for target in e.targets for i in target]) for e in picture.multiple]
    single = [(text, [index]) for index in picture.visible for text in picture.expressions_of(index)[:1]]
    absent = [(text, list[int]()) for index in picture.unique for text, _ in picture.false_premises_of(index)[:1]]
    for text, objects in (*multiple, *single[:3], *absent[:2]):
        ids = [_annotation_id(picture, index) for index in objects] or [-1]
        categories = list(dict.fromkeys(_category_id(picture, index) for index in objects)) or [-1]
        yield _ref(image, ids, categories, [{"sent": text}])


def _ref(image: Image, ann_id: int | list[int], category_id: int | list[int], sentences: list[dict[str, Any]]) -> Ref:
    number = (ann_id if isinstance(ann_id, int) else ann_id[0]) % _OBJECTS_PER_IMAGE
    return {
        "image_id": image[1]["id"],
        "ann_id": ann_id,
        "category_id": category_id,
        # A ref's own file name is no file: real ones have the number of the object behind the image's.
        "file_name": f"{Path(image[1]['file_name']).stem}_{number}.jpg",
        "sentences": [{**s, "raw": f"{capitalised(s['sent'])}.", "tokens": s["sent"].split()} for s in sentences],
    }


def _with_ids(refs: Iterable[tuple[Image, Ref]]) -> list[tuple[int, Ref]]:
    """The refs with ref_id and sent_ids, behind the numbers of their pictures."""
    numbered, next_id = [], 0
    for ref_id, ((picture, _), ref) in enumerate(refs):
        sentences = [{**sentence, "sent_id": i} for i, sentence in enumerate(ref["sentences"], next_id)]
        ids = [sentence["sent_id"] for sentence in sentences]
        next_id += len(ids)
        numbered.append((picture.number, {**ref, "ref_id": ref_id, "sent_ids": ids, "sentences": sentences}))
    return numbered
