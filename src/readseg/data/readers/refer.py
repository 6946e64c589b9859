"""Referring expressions: RefCOCO/+/g, RefCLEF, gRefCOCO, and those with false premises, R-RefCOCO* and FP-RefCOCO*.

    ROOT/refer_seg/DATASET/instances.json                 images, and annotations with their masks
    ROOT/refer_seg/DATASET/refs(SPLIT_BY).p               sentences; also grefs(SPLIT_BY), also .json
    ROOT/refer_seg/images/mscoco/images/train2014, ROOT/refer_seg/images/saiapr_tc-12 (RefCLEF's)

Frame: pixels of the image. A split is "DATASET|SPLIT_BY|NAME"; without the middle part it is the first that is on disk
of those that `preferred` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

from pydantic import BeforeValidator, Field

from readseg.data.annotations import ImageRecord, compact, covers_nothing, paint
from readseg.data.files import OptionalText, Record, Text, parse, read_json, read_pickle
from readseg.data.types import DataSet, Entry, Expression
from readseg.errors import ReadsegError

FOLDER = Path("refer_seg")  # where the data sets lie below the root of all data
COCO_IMAGES = FOLDER / "images" / "mscoco" / "images" / "train2014"
CLEF_IMAGES = FOLDER / "images" / "saiapr_tc-12"
NO_TARGET = -1  # in the place of an annotation's id: nothing in the image is meant

_REFS = re.compile(r"g?refs\((?P<split_by>[^()|]+)\)\.(?:json|p)")
_KEPT = ("file_name", "height", "width", "image_id", "segmentation")  # of instances.json
_Flag = Annotated[bool, Field(strict=False)]  # some have 0 and 1


class _SentenceRecord(Record):
    sent: Text
    is_false_premise: _Flag = False
    exist: _Flag = True
    gt_sent: OptionalText = ""


class _RefPlace(Record):
    image_id: int
    split: str


class _RefRecord(Record):
    ann_id: Annotated[
        list[int], BeforeValidator(lambda ids: ids if isinstance(ids, list) else [ids]), Field(min_length=1)
    ]
    sentences: list[_SentenceRecord]


class _Sentence(NamedTuple):
    text: str
    annotations: tuple[str, ...]  # "annotation 70", ..: it means their union; none where it is false
    instead: str


@dataclass(slots=True)
class _Group:
    """All that is asked about an image, or the first thing that is wrong with it."""

    image_id: int  # -1 where its record does not say
    sentences: list[_Sentence] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class _Files:
    """A data set's two files, of all splits; of instances.json only what sentences name."""

    refs: Path
    instances: Path
    groups: dict[str, list[_Group]]
    records: dict[str, dict[str, Any] | None]  # "image 7", "annotation 70", ..; None where two of one id differ


# The splits of a data set share its files: they are read once while any reader of them is alive.
_LOADED: WeakValueDictionary[tuple[object, ...], _Files] = WeakValueDictionary()


def preferred(dataset: str) -> tuple[str, ...]:
    """Which refs(SPLIT_BY) is read where a split does not say, best first.

    "..._exclude_unified", which keeps the test images of the sister sets out of training, before the public original.
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

    A split is "refcoco|testA" or "refcoco|unc|testA". Raises ReadsegError where there is no such split, or its files
    cannot be read; a broken record raises where it is accessed.
    """

    def __init__(self, root: Path, split: str) -> None:
        dataset, *middle = split.split("|")
        if not 1 <= len(middle) <= 2:
            raise ReadsegError(f'split {split!r}: expected "DATASET|NAME" or "DATASET|SPLIT_BY|NAME": "refcoco|testA"')
        part = middle.pop()
        split_by, refs = _find_refs(root, dataset, middle[0] if middle else None)
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
        group, files = self._groups[index], self._files
        if group.error:
            raise ReadsegError(f"{files.refs}: {group.error}")
        name = f"image {group.image_id}"
        image = parse(ImageRecord, self._record(name), f"{files.instances}: {name}")
        path = self._image_path(image.file_name)
        expressions = []
        for text, names, instead in group.sentences:
            if not names:
                expressions.append(Expression(text, False, False, instead=instead, kind="false premise"))
                continue
            records = {own: self._record(own) for own in names}
            for own, record in records.items():
                if (owner := record.get("image_id")) not in (None, group.image_id):
                    raise ReadsegError(f"{files.instances}: {own} is of image {owner!r:.60}, in {files.refs} of {name}")
            segmentations = {own: record["segmentation"] for own, record in records.items()}
            tags = {"several"} if len(names) > 1 else set()
            if all(map(covers_nothing, segmentations.values())):
                tags.add("no_target")
            mask = partial(paint, segmentations, image, path, files.instances)
            expressions.append(Expression(text, False, True, mask, kind="true premise", tags=frozenset(tags)))
        return Entry(str(group.image_id), path, tuple(expressions))

    def _record(self, name: str) -> dict[str, Any]:
        record = self._files.records.get(name)
        if record is None:
            raise ReadsegError(
                f"{self._files.instances}: expected {name}, which {self._files.refs.name} names, once: it is missing, "
                "or there are several and they differ"
            )
        return record


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


def _find_refs(root: Path, dataset: str, split_by: str | None) -> tuple[str, Path]:
    """The SPLIT_BY that is meant, and its file."""
    folders = sorted({path.parent for path in (root / FOLDER).glob("*/*refs(*).*") if _REFS.fullmatch(path.name)})
    folder = root / FOLDER / dataset
    paths = refs_files(folder) if folder in folders else {}
    candidates = [split_by] if split_by else [*preferred(dataset), *(paths if len(paths) == 1 else ())]
    for name in candidates:
        if name in paths:
            return name, paths[name]
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
        every = [group for part in groups.values() for group in part]
        named = {name for group in every for sentence in group.sentences for name in sentence.annotations}
        named |= {f"image {group.image_id}" for group in every}
        files = _LOADED[key] = _Files(refs, instances, groups, _instances(instances, named))
    return files


def _instances(path: Path, named: set[str]) -> dict[str, dict[str, Any] | None]:
    """Images and annotations that sentences name. The rest is dropped while it is parsed: it would take 1 GB."""
    records: dict[str, dict[str, Any] | None] = {}

    def keep(record: dict[str, Any]) -> Any:
        """Moves what is named out of the tree, drops its like, and leaves other objects where they are."""
        kind = "annotation" if "segmentation" in record else "image" if "file_name" in record else None
        if kind is None:
            return record
        name = f"{kind} {record.get('id')!r}"
        if name in named:
            own = {key: compact(record[key]) for key in _KEPT if key in record}
            records[name] = own if records.get(name, own) == own else None
        return None

    content = read_json(path, object_hook=keep)
    if not isinstance(content, dict) or "images" not in content or "annotations" not in content:
        raise ReadsegError(f'{path}: expected an object with "images" and "annotations"')
    return records


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
            lost.append(_Group(-1, error=str(error)))
            continue
        group = parts.setdefault(place.split, {}).setdefault(place.image_id, _Group(place.image_id))
        try:
            group.sentences += _sentences(parse(_RefRecord, record, f"record {number} (image {place.image_id})"))
        except ReadsegError as error:
            group.error = group.error or str(error)
    return {
        part: [group for group in [*groups.values(), *lost] if group.sentences or group.error]
        for part, groups in parts.items()
    }


def _sentences(record: _RefRecord) -> Iterator[_Sentence]:
    annotations = tuple(dict.fromkeys(f"annotation {number}" for number in record.ann_id if number != NO_TARGET))
    for sentence in record.sentences:
        # The first key that is there decides.
        told = "is_false_premise" in sentence.model_fields_set
        text, instead = sentence.sent.strip(), sentence.gt_sent.strip()
        if not text:  # nobody can ask it
            continue
        if annotations and (not sentence.is_false_premise if told else sentence.exist):
            yield _Sentence(text, annotations, "")
        else:
            yield _Sentence(text, (), "" if instead == text else instead)


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
