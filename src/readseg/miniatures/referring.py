"""RefCLEF, RefCOCO and its kin, with false premises, and gRefCOCO, as on disk.

    refer_seg/{refclef,refcoco,refcoco+,refcocog}/{instances.json,refs(*).p}
    refer_seg/{R-refcoco,R-refcoco+,R-refcocog,fprefcoco,fprefcoco+,fprefcocog}/{instances.json,refs(*).p}
    refer_seg/grefcoco/{instances.json,grefs(unc).json}
    refer_seg/images/mscoco/images/train2014, refer_seg/images/saiapr_tc-12

Splits go by image. "exclude_unified" files are those without the training images that any of the sets holds out.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from readseg.miniatures.expressions import ReferringExpression, capitalised
from readseg.miniatures.files import coco_annotation, coco_file, coco_image, write_bytes, write_json
from readseg.miniatures.pictures import Picture
from readseg.scenes.classes import CLASSES

Splitter = Callable[[int], str]
_CATEGORY = {name: index + 1 for index, name in enumerate(CLASSES)}
_CATEGORIES = [{"supercategory": c.group, "id": _CATEGORY[name], "name": name} for name, c in CLASSES.items()]
_OBJECTS_PER_IMAGE = 100


def _unc(number: int) -> str:
    """RefCOCO's splits; testB from the eighth picture on."""
    return ("train", "val", "train", "testB" if number // 4 % 2 else "testA")[number % 4]


def _umd(number: int) -> str:
    """RefCOCOg's; it holds out a picture that RefCOCO trains on."""
    return "val" if number == 2 else ("train", "val", "train", "test")[number % 4]


def _berkeley(number: int) -> str:
    return "val" if number % 2 else "train"


@dataclass(frozen=True)
class _RefSet:
    """How one folder of refer_seg is filled.

    kinds: of expression, the preferred ones first. files: a splitter for each split_by. marks: how sentences are marked
    as false premises. article: whether expressions are full noun phrases.
    """

    kinds: tuple[str, ...]
    files: Mapping[str, Splitter]
    marks: Literal["", "exist", "gt_sent"] = ""
    article: bool = False

    def phrase(self, text: str) -> str:
        """An expression as this set writes it."""
        return f"the {text}" if self.article and not text.startswith("something ") else text


_SHORT = ("category", "position", "size", "colour", "group")
_NO_POSITIONS = ("colour", "category", "reasoning", "size", "group")
_LONG = ("relation", "reasoning", "colour", "size", "category")
_UNC: Mapping[str, Splitter] = {"unc": _unc, "unc_exclude_unified": _unc}
_UMD: Mapping[str, Splitter] = {"umd": _umd, "umd_exclude_unified": _umd}
_BERKELEY: Mapping[str, Splitter] = {"berkeley_exclude_unified": _berkeley}
_REF_SETS: Mapping[str, _RefSet] = {
    "refclef": _RefSet(_SHORT, {"unc": _unc}),
    "refcoco": _RefSet(_SHORT, _UNC),
    "refcoco+": _RefSet(_NO_POSITIONS, _UNC),
    "refcocog": _RefSet(_LONG, _UMD, article=True),
    "R-refcoco": _RefSet(_SHORT, _UNC, "exist"),
    "R-refcoco+": _RefSet(_NO_POSITIONS, _UNC, "exist"),
    "R-refcocog": _RefSet(_LONG, _UMD, "exist", article=True),
    "fprefcoco": _RefSet(_SHORT, _BERKELEY, "gt_sent"),
    "fprefcoco+": _RefSet(_NO_POSITIONS, _BERKELEY, "gt_sent"),
    "fprefcocog": _RefSet(_LONG, _BERKELEY, "gt_sent", article=True),
}


@dataclass(frozen=True)
class _Image:
    """A picture with its id and file name in COCO or in RefCLEF."""

    picture: Picture
    id: int
    file_name: str


Ref = dict[str, Any]


def write_refer_seg(root: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """Writes refer_seg. Returns for each folder the number of refs, in its first file."""
    folder, counts = root / "refer_seg", {}
    coco = [_Image(p, p.image_id, f"COCO_train2014_{p.image_id:012d}.jpg") for p in pictures]
    numbers = [1000 * (p.number % 3) + p.number + 25 for p in pictures]
    clef = [_Image(p, n, f"{n // 1000:02d}/images/{n}.jpg") for p, n in zip(pictures, numbers, strict=True)]
    for subfolder, images in (("mscoco/images/train2014", coco), ("saiapr_tc-12", clef)):
        for image in images:
            write_bytes(folder / "images" / subfolder / image.file_name, image.picture.jpeg)
    instances = _instances(coco)
    for name, ref_set in _REF_SETS.items():
        images = clef if name == "refclef" else coco
        own = _instances(clef, run_lengths=True) if name == "refclef" else instances
        write_json(folder / name / "instances.json", own)
        refs = _with_ids((image, ref) for image in images for ref in _refs(ref_set, image))
        counts[name] = len(refs)
        for split_by, splitter in ref_set.files.items():
            kept = [{**ref, "split": splitter(number)} for number, ref in refs if _keeps(split_by, splitter, number)]
            # The first ones were written by Python 2; through JSON, so that the same values are the same bytes.
            data = pickle.dumps(json.loads(json.dumps(kept)), protocol=2 if "_" in split_by else 0)
            write_bytes(folder / name / f"refs({split_by}).p", data)
    write_json(folder / "grefcoco/instances.json", instances)
    refs = _with_ids((image, ref) for image in coco for ref in _grefs(image))
    write_json(folder / "grefcoco/grefs(unc).json", [{**ref, "split": _unc(number)} for number, ref in refs])
    return {**counts, "grefcoco": len(refs)}


def _keeps(split_by: str, splitter: Splitter, number: int) -> bool:
    held_out = _unc(number) != "train" or _umd(number) != "train"
    return not (split_by.endswith("_exclude_unified") and splitter(number) == "train" and held_out)


def _annotation_id(picture: Picture, index: int) -> int:
    return _OBJECTS_PER_IMAGE * (picture.number + 1) + index


def _category_id(picture: Picture, index: int) -> int:
    return _CATEGORY[picture.facts.names[index]]


def _instances(images: Sequence[_Image], *, run_lengths: bool = False) -> dict[str, Any]:
    annotations = [
        coco_annotation(
            _annotation_id(image.picture, index),
            image.id,
            _category_id(image.picture, index),
            image.picture.rendered.masks[index],
            run_lengths=run_lengths,
        )
        for image in images
        for index in image.picture.visible
    ]
    return coco_file([coco_image(i.picture, i.id, i.file_name) for i in images], annotations, _CATEGORIES)


def _refs(ref_set: _RefSet, image: _Image) -> Iterator[Ref]:
    """The refs of one picture, without their ids and splits."""
    picture = image.picture
    denied: list[dict[str, Any]] = []
    for index in picture.visible:
        true = [ref_set.phrase(e.text) for e in picture.expressions_of(index, ref_set.kinds)]
        # A false premise takes the place that a second expression has elsewhere.
        false = [(ref_set.phrase(p.text), ref_set.phrase(p.instead)) for p in picture.false_premises_of(index)]
        sentences: list[dict[str, Any]]
        if ref_set.marks == "exist":
            sentences = [{"sent": text, "exist": True} for text in true[:2]]
            sentences += [{"sent": text, "exist": False} for text, _ in false[:1]]
            denied += [{"sent": text, "exist": False} for text, _ in false[1:2]]
        elif ref_set.marks == "gt_sent":
            sentences = [{"sent": text, "is_false_premise": False} for text in true[:1]]
            sentences += [{"sent": text, "is_false_premise": True, "gt_sent": instead} for text, instead in false[:2]]
        else:
            sentences = [{"sent": text} for text in true[:3]]
        if sentences:
            yield _ref(image, _annotation_id(picture, index), _category_id(picture, index), sentences)
    if denied:
        yield _ref(image, -1, -1, denied[:2])


def _grefs(image: _Image) -> Iterator[Ref]:
    """The refs of gRefCOCO about one picture: of several objects, of one, of none."""
    picture = image.picture
    single = [expression for index in picture.visible for expression in picture.expressions_of(index)[:1]]
    premises = [premise for index in picture.unique for premise in picture.false_premises_of(index)[:1]]
    absent = [ReferringExpression("", premise.text, ()) for premise in premises]
    for expression in (*picture.multiple, *single[:3], *absent[:2]):
        ids = [_annotation_id(picture, index) for index in expression.objects] or [-1]
        categories = list(dict.fromkeys(_category_id(picture, index) for index in expression.objects)) or [-1]
        yield _ref(image, ids, categories, [{"sent": expression.text}])


def _ref(image: _Image, ann_id: int | list[int], category_id: int | list[int], sentences: list[dict[str, Any]]) -> Ref:
    number = (ann_id if isinstance(ann_id, int) else ann_id[0]) % _OBJECTS_PER_IMAGE
    return {
        "image_id": image.id,
        "ann_id": ann_id,
        "category_id": category_id,
        # A ref's own file name is no file: real ones have the number of the object behind the image's.
        "file_name": f"{Path(image.file_name).stem}_{number}.jpg",
        "sentences": [{**s, "raw": f"{capitalised(s['sent'])}.", "tokens": s["sent"].split()} for s in sentences],
    }


def _with_ids(refs: Iterable[tuple[_Image, Ref]]) -> list[tuple[int, Ref]]:
    """The refs with ref_id and sent_ids, behind the numbers of their pictures."""
    numbered, next_id = [], 0
    for ref_id, (image, ref) in enumerate(refs):
        sentences = [{**sentence, "sent_id": i} for i, sentence in enumerate(ref["sentences"], next_id)]
        ids = [sentence["sent_id"] for sentence in sentences]
        next_id += len(ids)
        numbered.append((image.picture.number, {**ref, "ref_id": ref_id, "sent_ids": ids, "sentences": sentences}))
    return numbered
