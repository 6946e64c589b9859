"""ReasonSeg and LLaVA-Instruct, as on disk.

reason_seg/ReasonSeg/{train,val,test}/*.{jpg,json}
llava_dataset/llava_instruct_150k.json (pictures in coco/train2017)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readseg.miniatures.expressions import absent_names, capitalised
from readseg.miniatures.files import trace, write_bytes, write_json
from readseg.miniatures.pictures import Picture
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
    """One file of ReasonSeg: which object is asked for (None: one that is not there), how, and what else it holds."""

    picture: Picture
    split: str
    target: int | None
    texts: tuple[str, ...]
    is_long: bool
    has_flag: bool = False
    has_ignored: bool = False
    has_false_premises: bool = False


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
    number, split, names = picture.number, _SPLITS[picture.number % 4], picture.facts.names
    described = picture.described
    if split == "train":
        first = described[number % len(described)]
        texts = CLASSES[names[first]].descriptions
        is_long = number // 2 % 2 == 1
        if is_long:
            texts = tuple(template.format(d=text) for template, text in zip(_LONG, texts, strict=False))
        yield _Question(picture, split, first, texts, is_long, number % 8 == 0, is_long, number % 6 != 4)
        return
    for index, is_long in zip(described, (False, True), strict=False):
        # Worded as training never is, one short and one long.
        text = CLASSES[names[index]].held_out_descriptions[0]
        text = _LONG[number % len(_LONG)].format(d=text) if is_long else text
        yield _Question(picture, split, index, (text,), is_long, is_long and number % 8 == 3, not is_long, is_long)
    if split == "test" and number < 8:
        # ReasonSeg has two such files: nothing is marked. What they ask for is not there.
        absent = absent_names(picture.facts, picture.facts.groups[described[0]])[0]
        yield _Question(picture, split, None, (CLASSES[absent].held_out_descriptions[0],), False, number >= 4)


def _layout(question: _Question, image_name: str, *, quoted: bool) -> dict[str, Any]:
    picture, target, denied = question.picture, question.target, []
    shapes = [_shape("flag", _FLAG, image_name)] if question.has_flag else []
    if target is not None:
        shapes += _shapes("target", picture, target, image_name)
        if question.has_ignored:
            shapes += _shapes("ignore", picture, _doubtful(picture, target), image_name)
        denied = _denied(picture, target) if question.has_false_premises else []
    texts = [f"“{text}” – that is the question." if quoted else text for text in question.texts]
    layout = {"text": texts, "is_sentence": question.is_long, "shapes": shapes}
    return {**layout, "false_premise_QA": denied} if denied else layout


def _doubtful(picture: Picture, target: int) -> int:
    """Another object, of the target's group if there is one: whether it counts is left open."""
    groups = picture.facts.groups
    others = [i for i in picture.visible if i != target]
    return min(others, key=lambda i: (groups[i] != groups[target], picture.facts.areas[i]))


def _shapes(label: str, picture: Picture, index: int, image_name: str) -> list[dict[str, Any]]:
    return [_shape(label, points, image_name) for points in trace(picture.rendered.masks[index])]


def _shape(label: str, points: list[list[float]], image_name: str) -> dict[str, Any]:
    shape = {"label": label, "labels": [label], "shape_type": "polygon", "image_name": image_name, "points": points}
    return {**shape, "group_id": None, "group_ids": [None], "flags": {}}


def _denied(picture: Picture, target: int) -> list[list[Any]]:
    """[question, is_sentence, answer]: descriptions of objects that are not there, long and short."""
    present = CLASSES[picture.facts.names[target]]
    denied: list[list[Any]] = []
    for name, is_long in zip(absent_names(picture.facts, present.group), (True, False), strict=False):
        text = CLASSES[name].descriptions[0]
        text = _LONG[picture.number % len(_LONG)].format(d=text) if is_long else text
        answer = refusal(name, are=CLASSES[name].is_plural, similar=article(present.counted))
        denied.append([text, is_long, capitalised(answer)])
    return denied


def write_llava(root: Path, pictures: Sequence[Picture]) -> int:
    """Writes LLaVA-Instruct: a conversation about each picture of coco/train2017. Returns their number."""
    records = []
    for picture in pictures:
        conversation: list[dict[str, str]] = []
        for question, answer in picture.dialogue:
            if not conversation:
                question = f"{question}\n<image>" if picture.number % 2 else f"<image>\n{question}"
            conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        name = f"{picture.image_id:012d}"
        records.append({"id": name, "image": f"{name}.jpg", "conversations": conversation})
    write_json(root / "llava_dataset/llava_instruct_150k.json", records)
    return len(records)
