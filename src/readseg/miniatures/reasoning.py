"""ReasonSeg (reason_seg/ReasonSeg) and LLaVA-Instruct (llava_dataset), as on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from readseg.miniatures.files import trace, write_bytes, write_json
from readseg.miniatures.pictures import Picture, capitalised
from readseg.scenes.classes import CLASSES, article
from readseg.scenes.question_forms import refusal

_SPLITS = ("train", "val", "train", "test")
_LONG = (
    "Look at everything in this picture: where is {d}?",
    "Which of the things that can be seen here is {d}?",
    "I am looking for {d}; could you show me where it is in the image?",
)
_FLAG = [[3.0, 3.0], [14.0, 3.0], [8.5, 12.0]]


class _Question(NamedTuple):
    """One file of ReasonSeg: which object is asked for (None: one that is not there), how, and what else it holds."""

    target: int | None
    texts: tuple[str, ...]
    is_long: bool
    has_flag: bool = False
    has_ignored: bool = False
    has_false_premises: bool = False


def write_reason_seg(root: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """Writes ReasonSeg. Returns the number of files of each split."""
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for picture in pictures:
        split = _SPLITS[picture.number % 4]
        # One file is in cp1252, with quotation marks that are no UTF-8 there: the first long one of training.
        is_old = picture.number == 2
        for order, question in enumerate(_questions(picture, split)):
            stem = root / "reason_seg/ReasonSeg" / split / f"{picture.image_id:07d}_{order}_o"
            write_bytes(stem.with_suffix(".jpg"), picture.jpeg)
            if is_old:
                quoted = tuple(f"“{text}” – that is the question." for text in question.texts)
                question = question._replace(texts=quoted)
            layout = _layout(picture, question, f"{stem.name}.jpg")
            write_json(stem.with_suffix(".json"), layout, encoding="cp1252" if is_old else "utf-8")
            counts[split] += 1
    return counts


def _questions(picture: Picture, split: str) -> Iterator[_Question]:
    number, names, described = picture.number, picture.facts.names, picture.described
    if split == "train":
        first = described[number % len(described)]
        texts = CLASSES[names[first]].descriptions
        is_long = number // 2 % 2 == 1
        if is_long:
            texts = tuple(template.format(d=text) for template, text in zip(_LONG, texts, strict=False))
        yield _Question(first, texts, is_long, number % 8 == 0, is_long, number % 6 != 4)
        return
    for index, is_long in zip(described, (False, True), strict=False):
        # Worded as training never is, one short and one long.
        text = CLASSES[names[index]].held_out_descriptions[0]
        text = _LONG[number % len(_LONG)].format(d=text) if is_long else text
        yield _Question(index, (text,), is_long, is_long and number % 8 == 3, not is_long, is_long)
    if split == "test" and number < 8:
        # ReasonSeg has two such files: nothing is marked. What they ask for is not there.
        absent = picture.absent_relatives(described[0])[0]
        yield _Question(None, (CLASSES[absent].held_out_descriptions[0],), False, number >= 4)


def _layout(picture: Picture, question: _Question, image_name: str) -> dict[str, Any]:
    def shape(label: str, points: list[list[float]]) -> dict[str, Any]:
        own = {"label": label, "labels": [label], "shape_type": "polygon", "image_name": image_name, "points": points}
        return {**own, "group_id": None, "group_ids": [None], "flags": {}}

    def shapes_of(label: str, index: int) -> list[dict[str, Any]]:
        return [shape(label, points) for points in trace(picture.rendered.masks[index])]

    target, denied = question.target, []
    shapes = [shape("flag", _FLAG)] if question.has_flag else []
    if target is not None:
        shapes += shapes_of("target", target)
        if question.has_ignored:
            # Another object, of the target's group if there is one: whether it counts is left open.
            groups, others = picture.facts.groups, [i for i in picture.visible if i != target]
            doubtful = min(others, key=lambda i: (groups[i] != groups[target], picture.facts.areas[i]))
            shapes += shapes_of("ignore", doubtful)
        denied = _denied(picture, target) if question.has_false_premises else []
    layout = {"text": question.texts, "is_sentence": question.is_long, "shapes": shapes}
    return {**layout, "false_premise_QA": denied} if denied else layout


def _denied(picture: Picture, target: int) -> list[list[Any]]:
    """[question, is_sentence, answer]: descriptions of objects that are not there, long and short."""
    present = CLASSES[picture.facts.names[target]]
    denied: list[list[Any]] = []
    for name, is_long in zip(picture.absent_relatives(target), (True, False), strict=False):
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
