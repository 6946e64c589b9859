"""Referring expressions: RefCOCO/+/g, RefCLEF, gRefCOCO, and those with false premises, R-RefCOCO* and FP-RefCOCO*.

    ROOT/refer_seg/DATASET/instances.json                 images, and annotations with their masks
    ROOT/refer_seg/DATASET/refs(SPLIT_BY).p               sentences; also grefs(SPLIT_BY), also .json
    ROOT/refer_seg/images/mscoco/images/train2014, ROOT/refer_seg/images/saiapr_tc-12 (RefCLEF's)

Frame: pixels of the image. A split is "DATASET|SPLIT_BY|NAME", such as "refcoco|unc|testA"; without the middle part it
is the first that is on disk of those that `preferred` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard
from weakref import WeakValueDictionary

import numpy as np
from pydantic import BeforeValidator, Field

from readseg.core.masks import union
from readseg.data.annotations import compact, covers_nothing, image_hw, require_image_size, segmentation_mask
from readseg.data.files import FileName, OptionalText, Record, Text, parse, read_json, read_pickle
from readseg.data.types import DataSet, Entry, Expression
from readseg.errors import ReadsegError

FOLDER = Path("refer_seg")
"""Where the data sets lie below the root of all data."""
COCO_IMAGES = FOLDER / "images" / "mscoco" / "images" / "train2014"
CLEF_IMAGES = FOLDER / "images" / "saiapr_tc-12"
NO_TARGET = -1
"""In the place of an annotation's id: nothing in the image is meant."""

_REFS = re.compile(r"g?refs\((?P<split_by>[^()|]+)\)\.(?:json|p)")


def _to_bool(flag: Any) -> Any:
    return bool(flag) if isinstance(flag, int) and flag in (0, 1) else flag


_Flag = Annotated[bool, BeforeValidator(_to_bool)]


class _SentenceRecord(Record):
    sent: Text
    is_false_premise: _Flag = False
    exist: _Flag = True
    gt_sent: OptionalText = ""


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


def _without_blank(sentences: Any) -> Any:
    """Some sentences have no word left: nobody can ask them."""
    if not isinstance(sentences, list | tuple):
        return sentences
    words = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]
    return [own for own, text in zip(sentences, words, strict=True) if not isinstance(text, str) or text.strip()]


class _RefPlace(Record):
    image_id: int
    split: str


class _RefRecord(Record):
    ann_id: Annotated[list[int], BeforeValidator(_as_list), Field(min_length=1)]
    sentences: Annotated[list[_SentenceRecord], BeforeValidator(_without_blank)]


class _ImageRecord(Record):
    file_name: FileName


class _Ref(NamedTuple):
    """Sentences that mean the same objects, the union of annotations; of none if nothing is meant."""

    annotations: tuple[int, ...]
    sentences: tuple[tuple[str, bool, str], ...]  # text, whether it is there, what is there instead


@dataclass(slots=True)
class _Group:
    """All that is asked about an image, or the first thing that is wrong with it."""

    image: int | None
    refs: list[_Ref] = field(default_factory=list)
    error: str = ""


class _Image(NamedTuple):
    file_name: Any
    hw: tuple[int, int] | None


class _Annotation(NamedTuple):
    image: int | None
    segmentation: Any


@dataclass(frozen=True)
class _Files:
    """A data set's two files, of all splits: what is never used of them is not kept."""

    refs: Path
    instances: Path
    groups: dict[str, list[_Group]]
    images: dict[int, _Image]
    annotations: dict[int, _Annotation]
    ambiguous: frozenset[tuple[str, int]]  # ("image" or "annotation", id) of records of one id that differ


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
        self._files = _load(refs, root / FOLDER / dataset / "instances.json")
        groups = self._files.groups.get(part)
        if not groups:
            known = ", ".join(name for name, own in self._files.groups.items() if own) or "none"
            raise ReadsegError(f"{refs}: no split {part!r}; there is {known}")
        self._groups = groups
        clef = dataset == "refclef"
        self._image_path = partial(_clef_image, root / CLEF_IMAGES) if clef else (root / COCO_IMAGES).joinpath

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Entry:
        group = self._groups[index]
        if group.error:
            raise ReadsegError(f"{self._files.refs}: {group.error}")
        image = self._files.images.get(group.image) if group.image is not None else None
        if image is None:
            raise ReadsegError(f"{self._files.instances}: no image {group.image}, which {self._files.refs.name} names")
        self._require_unambiguous("image", group.image)
        where = f"{self._files.instances}: image {group.image}"
        path = self._image_path(parse(_ImageRecord, {"file_name": image.file_name}, where).file_name)
        expressions = [own for ref in group.refs for own in self._expressions(ref, group.image, image, path)]
        return Entry(str(group.image), path, tuple(expressions))

    def _expressions(self, ref: _Ref, image_id: int | None, image: _Image, path: Path) -> Iterable[Expression]:
        annotations = self._files.annotations
        for number in ref.annotations:
            if number not in annotations or annotations[number].image not in (None, image_id):
                raise ReadsegError(
                    f"{self._files.instances}: image {image_id} has no annotation {number}, which "
                    f"{self._files.refs.name} names"
                )
            self._require_unambiguous("annotation", number)
        several = {"several"} if len(ref.annotations) > 1 else set()
        empty = all(covers_nothing(annotations[number].segmentation) for number in ref.annotations)
        tags = frozenset(several | {"no_target"} if empty else several)
        mask = partial(_mask, self._files, ref.annotations, image.hw, path)
        for text, present, instead in ref.sentences:
            if present:
                yield Expression(text, False, True, mask, kind="true premise", tags=tags)
            else:
                yield Expression(text, False, False, instead=instead, kind="false premise")

    def _require_unambiguous(self, what: str, number: int | None) -> None:
        if (what, number) in self._files.ambiguous:
            raise ReadsegError(f"{self._files.instances}: {what} {number} is there twice, and they differ")


# -- files -------------------------------------------------------------------------------------------------------------


def refs_files(folder: Path) -> dict[str, Path]:
    """The file of sentences of each SPLIT_BY in the folder of a data set; of two, the one that is JSON."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.glob("*refs(*).*")):
        if match := _REFS.fullmatch(path.name):
            paths.setdefault(match["split_by"], path)
    return paths


def splits(dataset: str, root: Path) -> tuple[list[str], list[str]]:
    """The splits of a data set that are on disk, and what is wrong with files of sentences that cannot be read."""
    names: list[str] = []
    damaged: list[str] = []
    for split_by, path in sorted(refs_files(root / FOLDER / dataset).items()):
        try:
            names += [f"{dataset}|{split_by}|{part}" for part, groups in _groups(path).items() if groups]
        except ReadsegError as error:
            damaged.append(str(error))
    return names, damaged


def _choose(root: Path, dataset: str, split_by: str | None) -> tuple[str, Path]:
    folders = sorted({path.parent for path in (root / FOLDER).glob("*/*refs(*).*") if _REFS.fullmatch(path.name)})
    folder = root / FOLDER / dataset
    paths = refs_files(folder) if folder in folders else {}
    candidates = preferred(dataset) if split_by is None else (split_by,)
    for name in candidates:
        if name in paths:
            return name, paths[name]
    if split_by is None and len(paths) == 1:
        return next(iter(paths.items()))
    names = ", ".join(path.name for path in paths.values()) or "none"
    sets = ", ".join(path.name for path in folders) or "none"
    raise ReadsegError(
        f"{folder}: expected refs({candidates[-1]}).p beside instances.json, there is {names}; data sets there: {sets}"
    )


def _clef_image(folder: Path, file_name: str) -> Path:
    """RefCLEF's images lie flat, or as the original archive has them, in a folder for each thousand."""
    stem = Path(file_name).stem
    paths = [folder / file_name]
    if stem.isdecimal():
        paths += [folder / f"{int(stem) // 1000:02d}" / "images" / Path(file_name).name]
    return next((path for path in paths if path.is_file()), paths[0])


def _load(refs: Path, instances: Path) -> _Files:
    try:
        key = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in (refs, instances))
    except OSError as error:
        raise ReadsegError(f"{error.filename}: no such file; it belongs beside {refs.name}") from error
    files = _LOADED.get(key)
    if files is None:
        groups = _groups(refs)
        refs_of_all = (ref for part in groups.values() for group in part for ref in group.refs)
        named = {number for ref in refs_of_all for number in ref.annotations}
        files = _LOADED[key] = _Files(refs, instances, groups, *_instances(instances, named))
    return files


def _instances(
    path: Path, named: set[int]
) -> tuple[dict[int, _Image], dict[int, _Annotation], frozenset[tuple[str, int]]]:
    """Images, the annotations that sentences name, and which of both are ambiguous.

    The rest is dropped while the file is parsed: it would take 1 GB.
    """
    ambiguous: set[tuple[str, int]] = set()
    images: dict[int, _Image] = {}
    annotations: dict[int, _Annotation] = {}

    def keep(record: dict[str, Any]) -> Any:
        number = record.get("id")
        if "segmentation" in record:
            if _is_id(number) and number in named:
                image_id = record.get("image_id")
                own = _Annotation(image_id if _is_id(image_id) else None, compact(record["segmentation"]))
                if number in annotations and _plain(annotations[number]) != _plain(own):
                    ambiguous.add(("annotation", number))
                annotations[number] = own
            return None
        if "file_name" in record:
            height, width = record.get("height"), record.get("width")
            if _is_id(number):
                image = _Image(record["file_name"], (height, width) if _is_id(height) and _is_id(width) else None)
                if images.setdefault(number, image) != image:
                    ambiguous.add(("image", number))
            return None
        return record

    content = read_json(path, object_hook=keep)
    if not isinstance(content, dict) or "images" not in content or "annotations" not in content:
        raise ReadsegError(f'{path}: expected an object with "images" and "annotations"')
    return images, annotations, frozenset(ambiguous)


def _plain(annotation: _Annotation) -> tuple[int | None, Any]:
    """As it was in the file, without arrays: to be compared."""
    image, parts = annotation
    if isinstance(parts, list):
        parts = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
    return image, parts


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


# -- sentences ---------------------------------------------------------------------------------------------------------


def _groups(path: Path) -> dict[str, list[_Group]]:
    """The images of each split, in the order of the file, with what is asked about them.

    A record that does not say its split is an image of every one: it would be missing from one of them.
    """
    records = read_json(path) if path.suffix == ".json" else read_pickle(path)
    if not isinstance(records, list):
        raise ReadsegError(f"{path}: expected a list of records, got {type(records).__name__}")
    parts: dict[str, dict[int, _Group]] = {}
    lost: list[_Group] = []
    for number, record in enumerate(records):
        try:
            place = parse(_RefPlace, record, f"record {number}")
        except ReadsegError as error:
            lost.append(_Group(None, error=str(error)))
            continue
        try:
            ref, wrong = _ref(parse(_RefRecord, record, f"record {number} (image {place.image_id})")), ""
        except ReadsegError as error:
            ref, wrong = _Ref((), ()), str(error)
        if ref.sentences or wrong:
            group = parts.setdefault(place.split, {}).setdefault(place.image_id, _Group(place.image_id))
            group.refs.append(ref)
            group.error = group.error or wrong
    return {part: [*groups.values(), *lost] for part, groups in parts.items()}


def _ref(record: _RefRecord) -> _Ref:
    annotations = tuple(dict.fromkeys(number for number in record.ann_id if number != NO_TARGET))
    sentences = []
    for own in record.sentences:
        # The first key that is there decides.
        exists = not own.is_false_premise if "is_false_premise" in own.model_fields_set else own.exist
        text, present = own.sent.strip(), bool(annotations) and exists
        instead = "" if present else own.gt_sent.strip()
        sentences.append((text, present, "" if instead == text else instead))
    return _Ref(annotations, tuple(sentences))


# -- masks -------------------------------------------------------------------------------------------------------------


def _mask(files: _Files, annotations: tuple[int, ...], hw: tuple[int, int] | None, image: Path) -> np.ndarray:
    """The union of annotations, uint8 (H, W) in {0, 1}."""
    if hw is None:
        hw = image_hw(image)
    else:
        require_image_size(image, hw, files.instances)
    parts = []
    for number in annotations:
        try:
            parts.append(segmentation_mask(files.annotations[number].segmentation, hw))
        except ValueError as error:
            raise ReadsegError(f"{files.instances}: annotation {number}: {error}") from error
    return union(parts, hw).astype(np.uint8)


# -- the data sets -----------------------------------------------------------------------------------------------------

_REFERRING_KINDS = ("refer_seg", "correct_refer_seg", "neg_refer_seg")


def _data_set(name: str, kind: str | None, protocol: Literal["forced", "generated"]) -> DataSet:
    files, names = partial(_needed_files, name), partial(splits, name)
    return DataSet(name, files, names, RefCoco, "train", kind, _REFERRING_KINDS, protocol, has_variants=True)


def _needed_files(dataset: str, root: Path) -> list[tuple[Path, str]]:
    folder = root / FOLDER / dataset
    usual = folder / f"refs({preferred(dataset)[0]}).p"
    return [
        (folder / "instances.json", f"{dataset}'s instances.json"),
        (next(iter(refs_files(folder).values()), usual), f"{dataset}'s {usual.name}, or another of its refs files,"),
        (root / (CLEF_IMAGES if dataset == "refclef" else COCO_IMAGES), "the images (*.jpg)"),
    ]


DATA_SETS = (
    *(_data_set(name, "refer_seg", "forced") for name in ("refclef", "refcoco", "refcoco+", "refcocog")),
    *(_data_set(name, "neg_refer_seg", "generated") for name in ("R-refcoco", "R-refcoco+", "R-refcocog")),
    *(_data_set(name, "correct_refer_seg", "generated") for name in ("fprefcoco", "fprefcoco+", "fprefcocog")),
    _data_set("grefcoco", None, "generated"),
)
