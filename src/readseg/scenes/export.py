"""Scenes as files: pictures, ReasonSeg-style JSON, exact masks, and a contact sheet to look at.

docs/usage.md names the files. All coordinates are pixels of the picture, (x, y). Polygons are outer contours: holes are
filled in them, the PNG masks are exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from PIL import Image

from readseg.core.io import atomic_write
from readseg.core.masks import encode_rle
from readseg.errors import ReadsegError
from readseg.scenes.question_forms import Source
from readseg.scenes.questions import Question, ask, target_masks
from readseg.scenes.render import SIZES_HW, RenderedScene, make_scene, render
from readseg.viz.overlays import contact_sheet, overlay

NATIVE_SIDE = max(max(hw) for hw in SIZES_HW)  # longer side of a scene in pixels where no size is asked for
SHEET_SCENES = 12  # at most so many scenes are shown on the contact sheet


def write_scenes(
    out: Path, count: int, seed: int, *, size: int = NATIVE_SIDE, questions: int = 6, wording: str = "train"
) -> tuple[int, int]:
    """Writes scenes `seed`, ..., `seed + count - 1` below `out`, over what is there; a function of the arguments.

    `size` is the longer side of the pictures in pixels, `wording` ("train" or "held_out") which phrasings and
    descriptions to ask with. Returns the numbers of questions and of questions with a target.
    """
    if wording not in get_args(Source):
        raise ReadsegError(f"wording: expected one of {', '.join(get_args(Source))}, got {wording!r}")
    if out.exists() and not out.is_dir():
        raise ReadsegError(f"{out} is a file; expected a folder to write scenes to")
    (out / "masks").mkdir(parents=True, exist_ok=True)
    source: Source = "held_out" if wording == "held_out" else "train"
    total = targets = 0
    panels: list[tuple[Image.Image, str]] = []
    with atomic_write(out / "questions.jsonl") as path, path.open("w", encoding="utf-8") as stream:
        for number in range(seed, seed + count):
            picture, about = draw_scene(number, size=size, questions=questions, wording=source)
            records = _write_scene(out, f"scene-{number:06d}", picture, about)
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            total += len(about)
            targets += sum(bool(question.targets) for question in about)
            if len(panels) < 2 * SHEET_SCENES:
                panels += _panels(picture, about)
    pictures, captions = zip(*panels, strict=True)
    with atomic_write(out / "contact_sheet.png") as path:
        contact_sheet(pictures, captions, columns=4).save(path, format="PNG")
    return total, targets


def draw_scene(
    number: int, *, size: int = NATIVE_SIDE, questions: int = 6, wording: Source = "train"
) -> tuple[RenderedScene, list[Question]]:
    """One scene with its questions, a function of the arguments."""
    scene = make_scene(number)
    factor = size / max(scene.height, scene.width)
    scene = replace(scene, height=round(scene.height * factor), width=round(scene.width * factor))
    picture = render(scene)
    rng = np.random.default_rng([number, 11])
    return picture, ask(
        scene, picture.areas, picture.boxes, rng, count=questions, phrasing=wording, descriptions=wording
    )


def outlines(mask: np.ndarray) -> list[list[list[int]]]:
    """The outer contours of a mask (H, W) as polygons of [x, y]: filled, with their outline, they give it back."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0].tolist() for contour in contours]


def _write_scene(out: Path, stem: str, picture: RenderedScene, about: Sequence[Question]) -> list[dict[str, Any]]:
    """Writes a scene's files; returns the lines of questions.jsonl."""
    image = Image.fromarray(picture.image)
    masks = [target_masks(question, picture.masks) for question in about]
    refused = [[q.question, True, q.answer] for q in about if q.present is False]
    # A scene that has nothing but false premises still gets its file: without shapes, as ReasonSeg has them too.
    with_file = [k for k, question in enumerate(about) if question.targets] or [0]
    for k in with_file:
        name = f"{stem}-{k}"
        for order, mask in enumerate(masks[k]):
            with atomic_write(out / "masks" / f"{name}.{order}.png") as place:
                Image.fromarray(mask.astype(np.uint8) * 255).save(place, format="PNG", optimize=True)
        image.save(out / f"{name}.jpg", quality=95)
        shapes = [
            {"label": "target", "points": points, "shape_type": "polygon", "image_name": f"{name}.jpg"}
            for mask in masks[k]
            for points in outlines(mask)
        ]
        text = [about[k].question] if masks[k] else []
        layout = {"text": text, "is_sentence": True, "shapes": shapes, "false_premise_QA": refused}
        (out / f"{name}.json").write_text(json.dumps(layout, ensure_ascii=False, indent=1), encoding="utf-8")
    return [
        {
            "image": f"{stem}-{k if q.targets else with_file[0]}.jpg",
            "kind": q.kind,
            "question": q.question,
            "answer": q.answer,
            "present": q.present,
            "tags": sorted(q.tags),
            "masks": [encode_rle(mask) for mask in masks[k]],
        }
        for k, q in enumerate(about)
    ]


def _panels(picture: RenderedScene, about: Sequence[Question]) -> list[tuple[Image.Image, str]]:
    """Of a scene's first question with a target, and of its first without: the picture and a caption."""
    image, panels = Image.fromarray(picture.image), []
    for has_target in (True, False):
        question = next((q for q in about if bool(q.targets) == has_target), None)
        if question is not None:
            masks = target_masks(question, picture.masks)
            shown = overlay(image, np.stack(masks) if masks else picture.masks[:0])
            panels.append((shown, f"{question.kind}: {question.question} — {question.answer}"))
    return panels
