"""Scenes as files: pictures, ReasonSeg-style JSON, exact masks, and a contact sheet to look at.

    OUT/scene-000007-2.jpg         the picture (JPEG, as ReasonSeg's), one copy for each question with a target
    OUT/scene-000007-2.json        ReasonSeg's layout: text, is_sentence, shapes, false_premise_QA
    OUT/masks/scene-000007-2.0.png the exact mask of the answer's first [SEG], 0 and 255
    OUT/questions.jsonl            every question of every scene, with its answer and masks as RLE
    OUT/contact_sheet.png          the first scenes with their masks and questions

All coordinates are pixels of the picture, (x, y). Polygons are outer contours: holes are filled in them, the
PNG masks are exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from PIL import Image

from readseg.core.io import atomic_write
from readseg.core.masks import encode_rle, save_png, union
from readseg.errors import ReadsegError
from readseg.scenes.question_forms import Source
from readseg.scenes.questions import Question, ask
from readseg.scenes.render import SIZES_HW, Rendered, make_scene, render
from readseg.viz.overlays import contact_sheet, overlay

NATIVE_SIDE = max(max(hw) for hw in SIZES_HW)
"""Longer side of a scene in pixels where no size is asked for."""

SHEET_SCENES = 12
"""At most so many scenes are shown on the contact sheet."""


@dataclass(frozen=True)
class Written:
    """What `write_scenes` wrote: numbers of scenes, questions and questions with a target, and what to look at."""

    scenes: int
    questions: int
    targets: int
    contact_sheet: Path


def write_scenes(
    out: Path, count: int, seed: int, *, size: int = NATIVE_SIDE, questions: int = 6, wording: str = "train"
) -> Written:
    """Draws scenes `seed`, ..., `seed + count - 1` and writes them with their questions.

    The same arguments write the same files. A file that is there already is overwritten.

    Args:
        out: folder, made if it does not exist.
        count: number of scenes, at least 1.
        seed: of the first scene, at least 0.
        size: longer side of the pictures in pixels, 64 to 2048.
        questions: asked about each scene, at least 1.
        wording: "train" or "held_out": which phrasings and descriptions to ask with.

    Raises:
        ReadsegError: an argument is out of its range, `out` is a file, or the extra `scenes` is not installed.
    """
    _check(out, count, seed, size, questions, wording)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    asked = targets = 0
    pictures: list[Image.Image] = []
    captions: list[str] = []
    with atomic_write(out / "questions.jsonl") as place, place.open("w", encoding="utf-8") as stream:
        for number in range(seed, seed + count):
            picture, about = draw_scene(number, size=size, questions=questions, wording=wording)
            records = _write_scene(out, f"scene-{number:06d}", picture, about)
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            asked += len(about)
            targets += sum(bool(question.targets) for question in about)
            if len(pictures) < 2 * SHEET_SCENES:
                _show(picture, about, pictures, captions)
    sheet = out / "contact_sheet.png"
    with atomic_write(sheet) as place:
        contact_sheet(pictures, captions, columns=4).save(place, format="PNG")
    return Written(count, asked, targets, sheet)


def draw_scene(
    number: int, *, size: int = NATIVE_SIDE, questions: int = 6, wording: str = "train"
) -> tuple[Rendered, list[Question]]:
    """One scene with its questions, a function of the arguments; see `write_scenes` for them."""
    scene = make_scene(number)
    factor = size / max(scene.height, scene.width)
    scene = replace(scene, height=round(scene.height * factor), width=round(scene.width * factor))
    picture = render(scene)
    rng, source = np.random.default_rng([number, 11]), _source(wording)
    asked = ask(scene, picture.areas, picture.boxes, rng, count=questions, phrasing=source, descriptions=source)
    return picture, asked


def target_masks(question: Question, masks: np.ndarray) -> list[np.ndarray]:
    """The mask of each [SEG] of a question's answer: the union of the things that it means.

    Args:
        question: whose `targets` index the things of the scene.
        masks: (T, H, W) bool, visible pixels of each thing.

    Returns:
        One (H, W) bool array for each [SEG]; none for a false premise or a plain question.
    """
    return [union([masks[index] for index in target], masks.shape[1:]) for target in question.targets]


def outlines(mask: np.ndarray) -> list[list[list[int]]]:
    """The outer contours of a mask (H, W) as polygons: painted (filled, with their outline) they give it back.

    Returns:
        For each connected part its corners [x, y], in pixels; holes are not kept.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0].tolist() for contour in contours]


def _check(out: Path, count: int, seed: int, size: int, questions: int, wording: str) -> None:
    for name, value, low, high in (
        ("count", count, 1, 1_000_000),
        ("seed", seed, 0, 2**62),
        ("size", size, 64, 2048),
        ("questions", questions, 1, 50),
    ):
        if not low <= value <= high:
            raise ReadsegError(f"{name}: expected {low} to {high}, got {value}")
    _source(wording)
    if out.exists() and not out.is_dir():
        raise ReadsegError(f"{out} is a file; expected a folder to write scenes to")


def _source(name: str) -> Source:
    sources: tuple[Source, ...] = get_args(Source)
    for source in sources:
        if name == source:
            return source
    raise ReadsegError(f"wording: expected one of {', '.join(sources)}, got {name!r}")


def _write_scene(out: Path, stem: str, picture: Rendered, about: Sequence[Question]) -> list[dict[str, Any]]:
    """Writes a scene's files; returns the lines of questions.jsonl."""
    image = Image.fromarray(picture.image)
    refused = [[q.question, True, q.answer] for q in about if q.present is False]
    with_target = [k for k, q in enumerate(about) if q.targets]
    # A scene that has nothing but false premises still gets its file: without shapes, as ReasonSeg has them too.
    for k in with_target or [0]:
        name = f"{stem}-{k}"
        masks = target_masks(about[k], picture.masks)
        for order, mask in enumerate(masks):
            save_png(out / "masks" / f"{name}.{order}.png", mask)
        image.save(out / f"{name}.jpg", quality=95)
        shapes = [
            {"label": "target", "points": points, "shape_type": "polygon", "image_name": f"{name}.jpg"}
            for mask in masks
            for points in outlines(mask)
        ]
        text = [about[k].question] if masks else []
        layout = {"text": text, "is_sentence": True, "shapes": shapes, "false_premise_QA": refused}
        (out / f"{name}.json").write_text(json.dumps(layout, ensure_ascii=False, indent=1), encoding="utf-8")
    shown = f"{stem}-{(with_target or [0])[0]}.jpg"
    return [
        {
            "image": f"{stem}-{k}.jpg" if q.targets else shown,
            "kind": q.kind,
            "question": q.question,
            "answer": q.answer,
            "present": q.present,
            "tags": sorted(q.tags),
            "masks": [encode_rle(mask) for mask in target_masks(q, picture.masks)],
        }
        for k, q in enumerate(about)
    ]


def _show(picture: Rendered, about: Sequence[Question], pictures: list[Image.Image], captions: list[str]) -> None:
    """Adds a scene's first question with a target, and its first without, to the contact sheet."""
    image = Image.fromarray(picture.image)
    for wanted in (True, False):
        question = next((q for q in about if bool(q.targets) == wanted), None)
        if question is not None:
            masks = target_masks(question, picture.masks)
            pictures.append(overlay(image, np.stack(masks) if masks else picture.masks[:0]))
            captions.append(f"{question.kind}: {question.question} — {question.answer}")
