"""The figure of `segment`: for each question the image, the map with its points, and the masks of both heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from answering import HEADS, load
from PIL import Image

from readseg.viz.overlays import contact_sheet, heat_map, overlay

TITLES = {"sam": "mask: SAM, from the points", "features": "mask: features, without SAM"}
TILE = 300
"""Pixels of a panel's side: three of them are as wide as a README."""


def figure(folder: Path, image: Image.Image, questions: Sequence[str]) -> tuple[Image.Image, list[str]]:
    """A row of panels for each question, and a line of text for each.

    Raises:
        ReadsegError: there is no model in `folder`, or a question is empty.
    """
    referring = load(folder)
    answers = {head: referring.segment(image, questions, head=head) for head in HEADS}
    panels: list[Image.Image] = []
    captions: list[str] = []
    lines: list[str] = []
    for k, question in enumerate(questions):
        first = answers[HEADS[0]][k]
        panels.append(heat_map(image, first.similarity, points=[(first.points_xy, first.point_labels)]))
        captions.append(f'"{question}": there with {first.presence:.2f}')
        for head in HEADS:
            masks = answers[head][k].masks
            panels.append(overlay(image, masks))
            captions.append(TITLES[head] if len(masks) else "no mask: not there")
        covered = ", ".join(f"{head} {np.mean(answers[head][k].masks):.1%}" for head in HEADS) if first.present else ""
        lines.append(
            f"{question}: {first.answer} present {first.presence:.3f}{f'; of the image: {covered}' if covered else ''}"
        )
    return contact_sheet(panels, captions, columns=1 + len(HEADS), tile=TILE), lines
