"""ADE20K, COCO-Stuff, Mapillary (maps of labels) and PACO, PASCAL-Part (objects and parts), as on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from readseg.miniatures.files import (
    coco_annotation,
    coco_image,
    halves,
    write_bytes,
    write_coco,
    write_json,
    write_labels,
)
from readseg.miniatures.pictures import COCO_STUFF, NAMES, Picture
from readseg.scenes.classes import CLASSES

UNLABELLED = 255
"""COCO-Stuff's pixel value of what has no label."""
BACKDROP = "backdrop"  # what is behind the objects of a scene, in the data sets whose names are the miniature's own
ADE20K = [*(NAMES["ade20k_synonyms"].get(name, name) for name in CLASSES), BACKDROP, *NAMES["ade20k_absent"]][:150]
"""The miniature's own 150 names, in the order of their pixel values 1 to 150: `CLASSES`, the backdrop, others."""
_ORDER = {name: index for index, name in enumerate((*CLASSES, BACKDROP))}
_MARGIN = 3


def label_map(picture: Picture, values: Mapping[str, int], unlabelled: int) -> np.ndarray:
    """uint8 (H, W): the value of what each pixel shows, `unlabelled` where there is none.

    The backdrop has none along the edges of the picture, as edges of real annotations often have.
    """
    labels = np.full(picture.hw, unlabelled, np.uint8)
    labels[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = values.get(BACKDROP, unlabelled)
    for name, mask in zip(picture.facts.names, picture.rendered.masks, strict=True):
        labels[mask] = values.get(name, unlabelled)
    return labels


def write_ade20k(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes ade20k; value 0 is unlabelled, class k of objectInfo150.txt is k. Returns the number of images."""
    values = {name: index + 1 for name, index in _ORDER.items()}
    pixels, seen = np.zeros(151), np.zeros(151, np.int64)
    for picture in pictures:
        stem = f"ADE_train_{picture.number + 1:08d}"
        labels = label_map(picture, values, 0)
        counts = np.bincount(labels.ravel(), minlength=151)
        pixels, seen = pixels + counts, seen + (counts > 0)
        write_bytes(root / f"ade20k/images/training/{stem}.jpg", picture.jpeg)
        write_labels(root / f"ade20k/annotations/training/{stem}.png", labels)
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for index, name in enumerate(ADE20K, 1):
        lines.append(f"{index}\t{pixels[index] / pixels.sum():.4f}\t{seen[index]}\t0\t0\t{name}")
    write_bytes(root / "ade20k/objectInfo150.txt", "".join(f"{line}\n" for line in lines).encode())
    return len(pictures)


def write_cocostuff(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes coco/train2017 and its maps in cocostuff/train2017. Returns the number of images."""
    for picture in pictures:
        stem = f"train2017/{picture.image_id:012d}"
        write_bytes(root / f"coco/{stem}.jpg", picture.jpeg)
        write_labels(root / f"cocostuff/{stem}.png", label_map(picture, COCO_STUFF, UNLABELLED))
    return len(pictures)


def write_mapillary(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes mapillary: maps with a palette, whose last label is "Unlabeled". Returns the number of images."""
    labels: list[dict[str, Any]] = [
        {
            "name": f"object--{name.replace(' ', '-')}",
            "readable": name.title(),
            "color": [37 * (index + 1) % 256, (91 * index + 40) % 256, (157 * index + 80) % 256],
            "instances": True,
            "evaluate": True,
        }
        for name, index in _ORDER.items()
    ]
    unlabelled = {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "instances": False}
    labels.append({**unlabelled, "evaluate": False})
    palette = [channel for label in labels for channel in label["color"]]
    for picture in pictures:
        stem = f"mini{picture.image_id:018d}"
        write_bytes(root / f"mapillary/training/images/{stem}.jpg", picture.jpeg)
        maps = label_map(picture, _ORDER, len(_ORDER))
        write_labels(root / f"mapillary/training/v2.0/labels/{stem}.png", maps, palette)
    write_json(root / "mapillary/config_v2.0.json", {"version": "2.0", "mapping": "public", "labels": labels})
    return len(pictures)


def write_paco(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes PACO: objects and their halves, named as LVIS does. Returns the number of annotations."""
    images = [coco_image(p, p.image_id, f"train2017/{p.image_id:012d}.jpg") for p in pictures]
    return _write_parts(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", pictures, images, paco=True)


def write_pascal_part(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes PASCAL-Part: halves of objects. Returns the number of annotations."""
    folder = root / "vlpart/pascal_part"
    images = [coco_image(p, p.number + 1, f"2008_{p.number + 1:06d}.jpg") for p in pictures]
    for picture, image in zip(pictures, images, strict=True):
        write_bytes(folder / "VOCdevkit/VOC2010/JPEGImages" / image["file_name"], picture.jpeg)
    return _write_parts(folder / "train.json", pictures, images, paco=False)


def _write_parts(path: Path, pictures: Sequence[Picture], images: list[dict[str, Any]], *, paco: bool) -> int:
    """Writes the halves of the pictures' objects, and for PACO the objects; returns the number of annotations."""
    categories: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for picture, image in zip(pictures, images, strict=True):
        for index in picture.unique:
            mask, name = picture.rendered.masks[index], picture.facts.names[index]
            parts = halves(mask).items()
            if paco:
                name, owner = lvis_name(name), {"obj_ann_id": len(annotations) + 1}
                masks = {name: mask} | {f"{name}:{part.replace(' ', '_')}": half for part, half in parts}
            else:
                masks, owner = {f"{name}:{part}": half for part, half in parts}, {}
            for full, piece in masks.items():
                new = {"supercategory": "PART" if ":" in full else "OBJECT", "id": len(categories) + 1, "name": full}
                category = categories.setdefault(full, new)
                annotations.append(coco_annotation(len(annotations) + 1, image["id"], category["id"], piece) | owner)
    write_coco(path, images, annotations, list(categories.values()))
    return len(annotations)


def lvis_name(name: str) -> str:
    """A class as LVIS and PACO write it: "car_(automobile)", "palm_tree"."""
    return str(NAMES["lvis"].get(name, name.replace(" ", "_")))
