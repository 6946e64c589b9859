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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from readseg.miniatures.pictures import Picture
from readseg.miniatures.sayings import SINGLE, Saying, sentence
from readseg.miniatures.shapes import annotation
from readseg.miniatures.writing import coco_file, image_record, write_bytes, write_json
from readseg.scenes.classes import CLASSES

Splitter = Callable[[int], str]
_CATEGORY = {name: index + 1 for index, name in enumerate(CLASSES)}
_CATEGORIES = [{"supercategory": c.group, "id": _CATEGORY[name], "name": name} for name, c in CLASSES.items()]
_THINGS_PER_IMAGE = 100


def _unc(number: int) -> str:
    """RefCOCO's splits; testB from the eighth picture on."""
    return ("train", "val", "train", "testB" if number // 4 % 2 else "testA")[number % 4]


def _umd(number: int) -> str:
    """RefCOCOg's; it holds out a picture that RefCOCO trains on."""
    return "val" if number == 2 else ("train", "val", "train", "test")[number % 4]


def _berkeley(number: int) -> str:
    return "val" if number % 2 else "train"


@dataclass(frozen=True)
class _Family:
    """How one folder of refer_seg is filled.

    `kinds`: of expression, the preferred ones first; `files`: a splitter for each split_by; `falsehood`: what its
    sentences say about false premises, "exist" or "gt_sent"; `article`: whether its expressions are full noun phrases.
    """

    kinds: tuple[str, ...]
    files: Mapping[str, Splitter]
    falsehood: Literal["", "exist", "gt_sent"] = ""
    article: bool = False


_SHORT = ("category", "position", "size", "colour", "group")
_NO_PLACES = ("colour", "category", "reasoning", "size", "group")
_LONG = ("relation", "reasoning", "colour", "size", "category")
_UNC: Mapping[str, Splitter] = {"unc": _unc, "unc_exclude_unified": _unc}
_UMD: Mapping[str, Splitter] = {"umd": _umd, "umd_exclude_unified": _umd}
_BERKELEY: Mapping[str, Splitter] = {"berkeley_exclude_unified": _berkeley}
_FAMILIES: Mapping[str, _Family] = {
    "refclef": _Family(_SHORT, {"unc": _unc}),
    "refcoco": _Family(_SHORT, _UNC),
    "refcoco+": _Family(_NO_PLACES, _UNC),
    "refcocog": _Family(_LONG, _UMD, article=True),
    "R-refcoco": _Family(_SHORT, _UNC, "exist"),
    "R-refcoco+": _Family(_NO_PLACES, _UNC, "exist"),
    "R-refcocog": _Family(_LONG, _UMD, "exist", article=True),
    "fprefcoco": _Family(_SHORT, _BERKELEY, "gt_sent"),
    "fprefcoco+": _Family(_NO_PLACES, _BERKELEY, "gt_sent"),
    "fprefcocog": _Family(_LONG, _BERKELEY, "gt_sent", article=True),
}


def write_refer_seg(root: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """Writes refer_seg. Returns for each folder the number of refs, in its first file."""
    folder, counts = root / "refer_seg", {}
    for picture in pictures:
        write_bytes(folder / "images/mscoco/images/train2014" / _image_file(picture, clef=False), picture.jpeg)
        write_bytes(folder / "images/saiapr_tc-12" / _image_file(picture, clef=True), picture.jpeg)
    for name, family in _FAMILIES.items():
        clef = name == "refclef"
        write_json(folder / name / "instances.json", _instances(pictures, clef=clef))
        refs = _numbered(ref for picture in pictures for ref in _refs(family, picture, clef=clef))
        counts[name] = len(refs)
        for split_by, splitter in family.files.items():
            kept = [{**ref, "split": splitter(number)} for number, ref in refs if _keeps(split_by, splitter, number)]
            # The first ones were written by Python 2; through JSON, so that the same values are the same bytes.
            protocol = 2 if "_" in split_by else 0
            data = pickle.dumps(json.loads(json.dumps(kept)), protocol=protocol)
            write_bytes(folder / name / f"refs({split_by}).p", data)
    write_json(folder / "grefcoco/instances.json", _instances(pictures, clef=False))
    grefs = [{**ref, "split": _unc(n)} for n, ref in _numbered(r for p in pictures for r in _grefs(p))]
    write_json(folder / "grefcoco/grefs(unc).json", grefs)
    return {**counts, "grefcoco": len(grefs)}


def _keeps(split_by: str, splitter: Splitter, number: int) -> bool:
    held_out = _unc(number) != "train" or _umd(number) != "train"
    return not (split_by.endswith("_exclude_unified") and splitter(number) == "train" and held_out)


def _image_id(picture: Picture, *, clef: bool) -> int:
    return 1000 * (picture.number % 3) + picture.number + 25 if clef else picture.image_id


def _image_file(picture: Picture, *, clef: bool) -> str:
    number = _image_id(picture, clef=clef)
    return f"{number // 1000:02d}/images/{number}.jpg" if clef else f"COCO_train2014_{number:012d}.jpg"


def _annotation_id(picture: Picture, index: int) -> int:
    return _THINGS_PER_IMAGE * (picture.number + 1) + index


def _instances(pictures: Sequence[Picture], *, clef: bool) -> dict[str, Any]:
    images = [image_record(p, _image_id(p, clef=clef), _image_file(p, clef=clef)) for p in pictures]
    annotations = [
        annotation(
            _annotation_id(picture, index),
            _image_id(picture, clef=clef),
            _CATEGORY[picture.layout.names[index]],
            picture.rendered.masks[index],
            run_lengths=clef,
        )
        for picture in pictures
        for index in picture.things
    ]
    return coco_file(images, annotations, _CATEGORIES)


def _refs(family: _Family, picture: Picture, *, clef: bool) -> Iterator[tuple[Picture, dict[str, Any]]]:
    """The refs of one picture, without their numbers and splits."""
    image_id = _image_id(picture, clef=clef)
    denied: list[dict[str, Any]] = []
    for index in picture.things:
        said = [_phrase(s.text, family.article) for s in picture.about(index, family.kinds)]
        # A false premise takes the place that a second expression has elsewhere.
        false = [(_phrase(s.text, family.article), _phrase(s.instead, family.article)) for s in picture.swaps(index)]
        sentences: list[dict[str, Any]]
        if family.falsehood == "exist":
            sentences = [{"sent": text, "exist": True} for text in said[:2]]
            sentences += [{"sent": text, "exist": False} for text, _ in false[:1]]
            denied += [{"sent": text, "exist": False} for text, _ in false[1:2]]
        elif family.falsehood == "gt_sent":
            told = {"is_false_premise": False}
            sentences = [{"sent": text, **told} for text in said[:1]]
            told = {"is_false_premise": True}
            sentences += [{"sent": text, **told, "gt_sent": instead} for text, instead in false[:2]]
        else:
            sentences = [{"sent": text} for text in said[:3]]
        if sentences:
            category = _CATEGORY[picture.layout.names[index]]
            yield picture, _ref(image_id, _annotation_id(picture, index), category, sentences, clef=clef)
    if denied:
        yield picture, _ref(image_id, -1, -1, denied[:2], clef=clef)


def _grefs(picture: Picture) -> Iterator[tuple[Picture, dict[str, Any]]]:
    """The refs of gRefCOCO about one picture: of several things, of one, of none."""
    single = [saying for index in picture.things for saying in picture.about(index, SINGLE)[:1]]
    absent = [Saying("", swap.text, ()) for index in picture.alone for swap in picture.swaps(index)[:1]]
    for saying in (*picture.joined, *single[:3], *absent[:2]):
        names = [picture.layout.names[index] for index in saying.things]
        ids = [_annotation_id(picture, index) for index in saying.things] or [-1]
        categories = list(dict.fromkeys(_CATEGORY[name] for name in names)) or [-1]
        yield picture, _ref(picture.image_id, ids, categories, [{"sent": saying.text}], clef=False)


def _phrase(text: str, article: bool) -> str:
    return f"the {text}" if article and not text.startswith("something ") else text


def _ref(
    image_id: int, ann_id: int | list[int], category_id: int | list[int], sentences: list[dict[str, Any]], *, clef: bool
) -> dict[str, Any]:
    number = (ann_id if isinstance(ann_id, int) else ann_id[0]) % _THINGS_PER_IMAGE
    # A ref's own file name is no file: real ones have the number of the object behind the image's.
    stem = f"{image_id}" if clef else f"COCO_train2014_{image_id:012d}"
    return {
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": category_id,
        "file_name": f"{stem}_{number}.jpg",
        "sentences": [
            {**told, "raw": f"{sentence(told['sent'])}.", "tokens": told["sent"].split()} for told in sentences
        ],
    }


def _numbered(refs: Iterator[tuple[Picture, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """The refs with ref_id, sent_ids and the number of their picture."""
    numbered, next_sentence = [], 0
    for ref_id, (picture, ref) in enumerate(refs):
        ids = list(range(next_sentence, next_sentence + len(ref["sentences"])))
        next_sentence += len(ids)
        sentences = [{**told, "sent_id": i} for told, i in zip(ref["sentences"], ids, strict=True)]
        numbered.append((picture.number, {**ref, "ref_id": ref_id, "sent_ids": ids, "sentences": sentences}))
    return numbered
