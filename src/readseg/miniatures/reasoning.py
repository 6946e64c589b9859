"""ReasonSeg and LLaVA-Instruct, as on disk.

reason_seg/ReasonSeg/{train,val,test}/*.{jpg,json}
llava_dataset/llava_instruct_150k.json (pictures in coco/train2017)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readseg.miniatures.pictures import Picture
from readseg.miniatures.sayings import absent_names, sentence
from readseg.miniatures.shapes import traced
from readseg.miniatures.writing import write_bytes, write_json
from readseg.scenes.classes import CLASSES, article
from readseg.scenes.question_forms import refusal

_SPLITS = ("train", "val", "train", "test")
_LONG = (
    "Look at everything in this picture: where is {d}?",
    "Which of the things that can be seen here is {d}?",
    "I am looking for {d}; could you show me where it is in the image?",
)
_FLAG = [[3.0, 3.0], [14.0, 3.0], [8.5, 12.0]]


@dataclass(frozen=True)
class _Question:
    """One file of ReasonSeg: which thing is asked for (None: one that is not there), how, and what else it holds."""

    picture: Picture
    split: str
    target: int | None
    texts: tuple[str, ...]
    long: bool
    flagged: bool = False
    ignores: bool = False
    denies: bool = False


def write_reason_seg(root: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """Writes ReasonSeg. Returns the number of files of each split."""
    folder, counts = root / "reason_seg/ReasonSeg", dict.fromkeys(("train", "val", "test"), 0)
    for picture in pictures:
        for order, question in enumerate(_questions(picture)):
            stem = folder / question.split / f"{picture.image_id:07d}_{order}_o"
            write_bytes(stem.with_suffix(".jpg"), picture.jpeg)
            # One file is in cp1252, with quotation marks that are no UTF-8 there: the first long one of training.
            old = picture.number == 2
            layout = _layout(question, f"{stem.name}.jpg", quoted=old)
            write_json(stem.with_suffix(".json"), layout, encoding="cp1252" if old else "utf-8")
            counts[question.split] += 1
    return counts


def _questions(picture: Picture) -> Iterator[_Question]:
    number, split = picture.number, _SPLITS[picture.number % 4]
    described = picture.described
    if split == "train":
        first = described[number % len(described)]
        descriptions = CLASSES[picture.layout.names[first]].descriptions
        long = number // 2 % 2 == 1
        texts = tuple(form.format(d=d) for form, d in zip(_LONG, descriptions, strict=False)) if long else descriptions
        yield _Question(picture, split, first, texts, long, number % 8 == 0, long, number % 6 != 4)
        return
    for order, index in enumerate(described[:2]):
        # Worded as training never is, one short and one long.
        description = CLASSES[picture.layout.names[index]].held_out_descriptions[0]
        long = order == 1
        text = _LONG[number % len(_LONG)].format(d=description) if long else description
        yield _Question(picture, split, index, (text,), long, long and number % 8 == 3, not long, long)
    if split == "test" and number < 8:
        # ReasonSeg has two such files: nothing is marked. What they ask for is not there.
        absent = absent_names(picture.layout, picture.layout.groups[described[0]])[0]
        yield _Question(picture, split, None, (CLASSES[absent].held_out_descriptions[0],), False, number >= 4)


def _layout(question: _Question, image_name: str, *, quoted: bool) -> dict[str, Any]:
    picture, shapes = question.picture, []
    if question.target is not None:
        shapes += _shapes("target", picture, question.target, image_name)
    if question.ignores and question.target is not None:
        shapes += _shapes("ignore", picture, _doubtful(picture, question.target), image_name)
    if question.flagged:
        shapes.insert(0, _shape("flag", _FLAG, image_name))
    texts = [f"“{text}” – that is the question." if quoted else text for text in question.texts]
    layout = {"text": texts, "is_sentence": question.long, "shapes": shapes}
    denied = [] if question.target is None or not question.denies else _denied(picture, question.target)
    return {**layout, "false_premise_QA": denied} if denied else layout


def _doubtful(picture: Picture, target: int) -> int:
    """Another thing, of the target's group if there is one: whether it counts is left open."""
    groups = picture.layout.groups
    others = [i for i in picture.things if i != target]
    return min(others, key=lambda i: (groups[i] != groups[target], picture.layout.areas[i]))


def _shapes(label: str, picture: Picture, index: int, image_name: str) -> list[dict[str, Any]]:
    return [_shape(label, points, image_name) for points in traced(picture.rendered.masks[index])]


def _shape(label: str, points: list[list[float]], image_name: str) -> dict[str, Any]:
    shape = {"label": label, "labels": [label], "shape_type": "polygon", "image_name": image_name, "points": points}
    return {**shape, "group_id": None, "group_ids": [None], "flags": {}}


def _denied(picture: Picture, target: int) -> list[list[Any]]:
    """[question, is_sentence, answer]: descriptions of things that are not there, short and long."""
    there = CLASSES[picture.layout.names[target]]
    found: list[list[Any]] = []
    for order, name in enumerate(absent_names(picture.layout, there.group)[:2]):
        c = CLASSES[name]
        long = order == 0
        text = _LONG[picture.number % len(_LONG)].format(d=c.descriptions[0]) if long else c.descriptions[0]
        answer = refusal(name, are=c.is_plural, similar=article(there.counted))
        found.append([text, long, sentence(answer)])
    return found


def write_llava(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes LLaVA-Instruct: a conversation about each picture of coco/train2017. Returns their number."""
    records = []
    for picture in pictures:
        conversation: list[dict[str, str]] = []
        for question, answer in picture.talk:
            if not conversation:
                question = f"{question}\n<image>" if picture.number % 2 else f"<image>\n{question}"
            conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        name = f"{picture.image_id:012d}"
        records.append({"id": name, "image": f"{name}.jpg", "conversations": conversation})
    write_json(root / "llava_dataset/llava_instruct_150k.json", records)
    return len(records)
