"""Referring expressions: RefCOCO/+/g, RefCLEF, gRefCOCO, and those with false premises, R-RefCOCO* and FP-RefCOCO*.

    ROOT/refer_seg/DATASET/instances.json                 images, and annotations with their masks
    ROOT/refer_seg/DATASET/refs(SPLIT_BY).p               sentences; also grefs(SPLIT_BY), also .json
    ROOT/refer_seg/images/mscoco/images/train2014, ROOT/refer_seg/images/saiapr_tc-12 (RefCLEF's)

Frame: pixels of the image. A split is "DATASET|SPLIT_BY|NAME", such as "refcoco|unc|testA"; without the middle part it
is the first that is on disk of those that `preferred` names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard
from weakref import WeakValueDictionary

import numpy as np

from readseg.core.masks import union
from readseg.data.annotations import compact, covers_nothing, image_hw, segmentation_mask
from readseg.data.entries import Entry, Expression, half_a_character
from readseg.data.json_records import content, inside
from readseg.data.pickles import read_pickle
from readseg.errors import ReadsegError

PLACE = Path("refer_seg")
"""Where the data sets lie below the root of all data."""
COCO_IMAGES = PLACE / "images" / "mscoco" / "images" / "train2014"
CLEF_IMAGES = PLACE / "images" / "saiapr_tc-12"
NO_TARGET = -1
"""In the place of an annotation's id: nothing in the image is meant."""

_REFS = re.compile(r"g?refs\((?P<split_by>[^()|]+)\)\.(?:json|p)")


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    present: bool
    instead: str


@dataclass(frozen=True, slots=True)
class _Ref:
    """Sentences that mean the same objects, the union of annotations; of none if nothing is meant."""

    annotations: tuple[int, ...]
    sentences: tuple[_Sentence, ...]


@dataclass(slots=True)
class _Group:
    """All that is asked about an image, or the first thing that is wrong with it."""

    image: int | None
    refs: list[_Ref] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Image:
    file_name: Any
    hw: tuple[int, int] | None


@dataclass(frozen=True)
class _Files:
    """A data set's two files, of all splits: what is never used of them is not kept."""

    refs: Path
    instances: Path
    groups: dict[str, list[_Group]]
    images: dict[int, _Image]
    annotations: dict[int, tuple[int | None, Any]]
    ambiguous: frozenset[tuple[str, int]]
    """("image" or "annotation", id) of records of one id that differ."""


# The splits of a data set share its files: they are read once while any reader of them is alive.
_LOADED: WeakValueDictionary[tuple[object, ...], _Files] = WeakValueDictionary()


def preferred(dataset: str) -> tuple[str, ...]:
    """Which refs(SPLIT_BY) is read where a split does not say, best first.

    "..._exclude_unified", which keeps the test images of the sister sets out of training, before the public original.

    >>> preferred("refcocog"), preferred("refclef")
    (('umd_exclude_unified', 'umd'), ('unc', 'berkeley'))
    """
    kind = dataset.lower()
    if kind == "refclef":
        return "unc", "berkeley"
    if kind.startswith("fp"):
        return "berkeley_exclude_unified", "berkeley"
    own = "umd" if kind.endswith("refcocog") else "unc"
    return f"{own}_exclude_unified", own


class RefCoco:
    """A split of a data set of referring expressions: one entry for each image, in the order of the file.

    An entry has all sentences about its image in the file's order, kind "true premise" or "false premise". A sentence
    is false where the file says so (`is_false_premise`, else `exist`) or names no annotation. Tags: "several" (the
    union of more than one object), "no_target" (its annotations have no outline: the mask is empty).

    Args:
        root: the root of all data.
        split: "refcoco|testA", "refcoco|unc|testA"; see `splits`.

    Raises:
        ReadsegError: no such data set or split, or files that cannot be read. A record that is broken raises where it
            is accessed, and no other.
    """

    def __init__(self, root: Path, split: str) -> None:
        dataset, *middle = split.split("|")
        if not 1 <= len(middle) <= 2:
            raise ReadsegError(f'split {split!r}: expected "DATASET|NAME" or "DATASET|SPLIT_BY|NAME": "refcoco|testA"')
        part = middle.pop()
        split_by, refs = _choose(root, dataset, middle[0] if middle else None)
        self.name = f"{dataset}|{split_by}|{part}"
        self._files = _load(refs, root / PLACE / dataset / "instances.json")
        groups = self._files.groups.get(part)
        if not groups:
            there = ", ".join(name for name, found in self._files.groups.items() if found) or "none"
            raise ReadsegError(f"{refs}: no split {part!r}; there is {there}")
        self._groups = groups
        self._find = partial(_clef_image, root / CLEF_IMAGES) if dataset == "refclef" else (root / COCO_IMAGES).joinpath

    @staticmethod
    def splits(root: Path) -> list[str]:
        """All splits that are on disk, as "refcoco|unc|testA". Reads the files of sentences, not the annotations.

        Raises:
            ReadsegError: a file that cannot be read.
        """
        found = []
        for folder in _datasets(root):
            splits, damaged = splits_of(root, folder.name)
            if damaged:
                raise ReadsegError(damaged[0])
            found += splits
        return found

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Entry:
        group = self._groups[index]
        if group.error:
            raise ReadsegError(f"{self._files.refs}: {group.error}")
        image = self._files.images.get(group.image) if group.image is not None else None
        if image is None:
            raise ReadsegError(f"{self._files.instances}: no image {group.image}, which {self._files.refs.name} names")
        self._require_one("image", group.image)
        path = self._find(inside(image.file_name, f'{self._files.instances}: image {group.image}: "file_name"'))
        expressions = [own for ref in group.refs for own in self._expressions(ref, group.image, image, path)]
        return Entry(str(group.image), path, tuple(expressions))

    def _expressions(self, ref: _Ref, image_id: int | None, image: _Image, path: Path) -> Iterable[Expression]:
        tags = set()
        for number in ref.annotations:
            of_image, _ = self._files.annotations.get(number, (None, None))
            if number not in self._files.annotations or of_image not in (None, image_id):
                raise ReadsegError(
                    f"{self._files.instances}: image {image_id} has no annotation {number}, which "
                    f"{self._files.refs.name} names"
                )
            self._require_one("annotation", number)
        if len(ref.annotations) > 1:
            tags.add("several")
        if all(covers_nothing(self._files.annotations[number][1]) for number in ref.annotations):
            tags.add("no_target")
        mask = partial(_mask, self._files, ref.annotations, image, path)
        for said in ref.sentences:
            if said.present:
                yield Expression(said.text, False, True, mask, kind="true premise", tags=frozenset(tags))
            else:
                yield Expression(said.text, False, False, instead=said.instead, kind="false premise")

    def _require_one(self, what: str, number: int | None) -> None:
        if (what, number) in self._files.ambiguous:
            raise ReadsegError(f"{self._files.instances}: {what} {number} is there twice, and they differ")


# -- files -------------------------------------------------------------------------------------------------------------


def _datasets(root: Path) -> list[Path]:
    return sorted({path.parent for path in (root / PLACE).glob("*/*refs(*).*") if _REFS.fullmatch(path.name)})


def refs_files(folder: Path) -> dict[str, Path]:
    """The file of sentences of each SPLIT_BY in the folder of a data set; of two, the one that is JSON."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*refs(*).*")):
        if match := _REFS.fullmatch(path.name):
            found.setdefault(match["split_by"], path)
    return found


def splits_of(root: Path, dataset: str) -> tuple[list[str], list[str]]:
    """The splits of one data set that are on disk, and what is wrong with files of sentences that cannot be read."""
    splits: list[str] = []
    damaged: list[str] = []
    for split_by, path in sorted(refs_files(root / PLACE / dataset).items()):
        try:
            splits += [f"{dataset}|{split_by}|{part}" for part, groups in _groups(path).items() if groups]
        except ReadsegError as error:
            damaged.append(str(error))
    return splits, damaged


def _choose(root: Path, dataset: str, split_by: str | None) -> tuple[str, Path]:
    folder = root / PLACE / dataset
    there = refs_files(folder) if folder in _datasets(root) else {}
    wanted = preferred(dataset) if split_by is None else (split_by,)
    for name in wanted:
        if name in there:
            return name, there[name]
    if split_by is None and len(there) == 1:
        return next(iter(there.items()))
    names = ", ".join(path.name for path in there.values()) or "none"
    sets = ", ".join(path.name for path in _datasets(root)) or "none"
    raise ReadsegError(
        f"{folder}: expected refs({wanted[-1]}).p beside instances.json, there is {names}; data sets there: {sets}"
    )


def _clef_image(folder: Path, file_name: str) -> Path:
    """RefCLEF's images lie flat, or as the original archive has them, in a folder for each thousand."""
    stem = Path(file_name).stem
    places = [folder / file_name]
    if stem.isdecimal():
        places += [folder / f"{int(stem) // 1000:02d}" / "images" / Path(file_name).name]
    return next((place for place in places if place.is_file()), places[0])


def _load(refs: Path, instances: Path) -> _Files:
    try:
        states = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in (refs, instances)]
    except OSError as error:
        raise ReadsegError(f"{error.filename}: no such file; it belongs beside {refs.name}") from error
    key = tuple(states)
    found = _LOADED.get(key)
    if found is None:
        groups = _groups(refs)
        wanted = {
            number for part in groups.values() for group in part for ref in group.refs for number in ref.annotations
        }
        images, annotations, ambiguous = _instances(instances, wanted)
        found = _LOADED[key] = _Files(refs, instances, groups, images, annotations, ambiguous)
    return found


def _json(path: Path, keep: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    try:
        return json.loads(content(path), object_hook=keep)
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{path} is no JSON: {str(error).splitlines()[0]}") from error


def _instances(
    path: Path, wanted: set[int]
) -> tuple[dict[int, _Image], dict[int, tuple[int | None, Any]], frozenset[tuple[str, int]]]:
    """Images, the annotations that are wanted, and which of both are ambiguous.

    The rest is dropped while the file is parsed: it would take 1 GB.
    """
    ambiguous: set[tuple[str, int]] = set()
    images: dict[int, _Image] = {}
    annotations: dict[int, tuple[int | None, Any]] = {}

    def keep(record: dict[str, Any]) -> Any:
        number = record.get("id")
        if "segmentation" in record:
            if _is_id(number) and number in wanted:
                of_image = record.get("image_id")
                own = of_image if _is_id(of_image) else None, compact(record["segmentation"])
                if number in annotations and _plain(annotations[number]) != _plain(own):
                    ambiguous.add(("annotation", number))
                annotations[number] = own
            return None
        if "file_name" in record:
            name, height, width = record["file_name"], record.get("height"), record.get("width")
            if _is_id(number):
                image = _Image(name, (height, width) if _is_id(height) and _is_id(width) else None)
                if images.setdefault(number, image) != image:
                    ambiguous.add(("image", number))
            return None
        return record

    whole = _json(path, keep)
    if not isinstance(whole, dict) or "images" not in whole or "annotations" not in whole:
        raise ReadsegError(f'{path}: expected an object with "images" and "annotations"')
    return images, annotations, frozenset(ambiguous)


def _plain(annotation: tuple[int | None, Any]) -> tuple[int | None, Any]:
    """As it was in the file, without arrays: to be compared."""
    of_image, parts = annotation
    if isinstance(parts, list):
        parts = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
    return of_image, parts


# -- sentences ---------------------------------------------------------------------------------------------------------


def _groups(path: Path) -> dict[str, list[_Group]]:
    """The images of each split, in the order of the file, with what is asked about them.

    A record that does not say its split is an image of every one: it would be missing from one of them.
    """
    refs = _json(path) if path.suffix == ".json" else read_pickle(path)
    if not isinstance(refs, list):
        raise ReadsegError(f"{path}: expected a list of records, got {type(refs).__name__}")
    parts: dict[str, dict[int, _Group]] = {}
    lost: list[_Group] = []
    for place, ref in enumerate(refs):
        image, part = (ref.get("image_id"), ref.get("split")) if isinstance(ref, dict) else (None, None)
        where = f"record {place}"
        if not isinstance(part, str) or not _is_id(image):
            lost.append(_Group(None, error=f'{where}: expected an object with "image_id" and "split"'))
            continue
        try:
            own, wrong = _ref(ref), ""
        except ValueError as error:
            own, wrong = _Ref((), ()), f"{where} (image {image}): {error}"
        if own.sentences or wrong:
            group = parts.setdefault(part, {}).setdefault(image, _Group(image))
            group.refs.append(own)
            group.error = group.error or wrong
    return {part: [*groups.values(), *lost] for part, groups in parts.items()}


def _ref(record: dict[str, Any]) -> _Ref:
    named = record.get("ann_id")
    said = list(named) if isinstance(named, list | tuple) else [named]
    numbers = [number for number in said if _is_id(number)]
    if not numbers or numbers != said:
        raise ValueError(f"expected ann_id, a number, a list of them, or {NO_TARGET}, got {named!r:.40}")
    annotations = tuple(dict.fromkeys(number for number in numbers if number != NO_TARGET))
    sentences = record.get("sentences")
    if not isinstance(sentences, list | tuple):
        raise ValueError('expected "sentences", a list')
    return _Ref(annotations, tuple(_sentence(said, bool(annotations)) for said in sentences if not _blank(said)))


def _blank(said: Any) -> bool:
    """Some sentences have no word left: nobody can ask them."""
    return isinstance(said, dict) and isinstance(said.get("sent"), str) and not said["sent"].strip()


def _sentence(said: Any, has_annotation: bool) -> _Sentence:
    if not isinstance(said, dict) or not isinstance(said.get("sent"), str):
        raise ValueError('expected a sentence to be an object with the text "sent"')
    if half_a_character(f"{said['sent']}{said.get('gt_sent')}"):
        raise ValueError(f"sentence {said['sent']!r:.60} holds half of a character (a lone surrogate)")
    text = said["sent"].strip()
    present = has_annotation
    for key, true in (("is_false_premise", False), ("exist", True)):  # the first that is there decides
        if key in said:
            if said[key] not in (True, False):
                raise ValueError(f"sentence {text!r:.60}: expected {key} to be true or false, got {said[key]!r:.40}")
            present = has_annotation and bool(said[key]) == true
            break
    other = said.get("gt_sent")
    instead = other.strip() if isinstance(other, str) and not present else ""
    return _Sentence(text, present, "" if instead == text else instead)


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


# -- masks -------------------------------------------------------------------------------------------------------------


def _mask(files: _Files, annotations: tuple[int, ...], image: _Image, path: Path) -> np.ndarray:
    """The union of annotations, uint8 (H, W) in {0, 1}."""
    hw = image_hw(path)
    if image.hw not in (None, hw):
        raise ReadsegError(
            f"{path} is {hw[0]} x {hw[1]} (height x width), its annotations in {files.instances} are of "
            f"{image.hw[0]} x {image.hw[1]}: expected the original image"
        )
    parts = []
    for number in annotations:
        try:
            parts.append(segmentation_mask(files.annotations[number][1], hw))
        except ValueError as error:
            raise ReadsegError(f"{files.instances}: annotation {number}: {error}") from error
    return union(parts, hw).astype(np.uint8)
