"""Masks and files as the data sets write them: polygons, run lengths, boxes, halves of objects; JSON and label maps.

Frame: (x, y) in pixels of the picture, the first pixel's left upper corner is (0, 0), its middle (0.5, 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from readseg.core.masks import encode_rle
from readseg.miniatures.pictures import Picture


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_json(path: Path, value: Any, *, encoding: str = "utf-8") -> None:
    """Writes a value as JSON without escapes, in this encoding."""
    write_bytes(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(encoding))


def write_labels(path: Path, labels: np.ndarray, palette: Sequence[int] = ()) -> None:
    """Writes a map of labels, uint8 (H, W), as PNG: grey, or with a palette of which it holds the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(palette)
    image.save(path, format="PNG")


def write_coco(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    """Writes a file of annotations as COCO lays it out."""
    about = {
        "info": {"description": "readseg miniature", "version": "1.0", "year": 2024},
        "licenses": [{"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}],
    }
    write_json(path, {**about, "images": images, "annotations": annotations, "categories": categories})


def coco_image(picture: Picture, image_id: int, file_name: str) -> dict[str, Any]:
    """A picture's entry among COCO's `images`."""
    height, width = picture.hw
    return {"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1}


def coco_annotation(
    number: int, image_id: int, category_id: int, mask: np.ndarray, *, run_lengths: bool = False
) -> dict[str, Any]:
    """A mask (H, W) as an annotation of COCO: polygons, or a list of one RLE as RefCLEF's; area and box are exact."""
    polygons = [] if run_lengths else [[value for point in polygon for value in point] for polygon in trace(mask)]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": polygons or [encode_rle(mask)],
        "area": float(mask.sum()),
        "bbox": [float(value) for value in cv2.boundingRect(mask.astype(np.uint8))],
        "iscrowd": 0,
    }


def trace(mask: np.ndarray) -> list[list[list[float]]]:
    """Polygons of [x, y] that give a mask (H, W) back: truncated to pixels and outlined, or filled as COCO does.

    Each corner lies in its pixel, on the side that is outside of the mask: truncated it is that pixel, and the area
    inside is that of all pixels but for a seam of 0.1. A part with holes is cut through them into parts without.
    """
    polygons: list[list[list[float]]] = []
    number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for label in range(1, number):
        part = (labels == label).astype(np.uint8)
        contours, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        hole = next((c for c, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True) if parent >= 0), None)
        if hole is not None:
            cut = int(hole[..., 0].min() + hole[..., 0].max() + 1) // 2
            left, right = part.copy(), part.copy()
            left[:, cut:] = right[:, :cut] = 0
            polygons += trace(left) + trace(right)
        else:
            polygons.append(_outward(contours[0][:, 0]))
    return polygons


def _outward(corners: np.ndarray) -> list[list[float]]:
    """The corners (K, 2) of a contour of OpenCV, each moved within its pixel outwards; two where it turns back."""
    if len(corners) == 1:
        corners, steps = np.repeat(corners, 2, axis=0), np.asarray(((1.0, 0.0), (-1.0, 0.0)))
    else:
        steps = np.roll(corners, -1, axis=0) - corners
        steps = steps / np.hypot(steps[:, 0], steps[:, 1])[:, None]
    # OpenCV walks with the outside on this hand.
    normals = np.stack((-steps[:, 1], steps[:, 0]), axis=1)
    came, before = np.roll(steps, 1, 0), np.roll(normals, 1, 0)
    towards = np.round(before + normals, 6)
    turns = ~towards.any(axis=1)
    sides = np.stack((np.where(turns[:, None], before + came, towards), normals + came), axis=1)
    moved = np.round(corners[:, None] + 0.5 + 0.4 * np.sign(np.round(sides, 6)), 1)
    return moved[np.stack((np.ones_like(turns), turns), axis=1)].tolist()


def halves(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The two halves of an object, (H, W) each, cut across its longer side in the middle of its box."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows, columns = np.indices(mask.shape)
    if height >= width:
        first, names = rows < y + height // 2, ("top half", "bottom half")
    else:
        first, names = columns < x + width // 2, ("left half", "right half")
    return dict(zip(names, (mask & first, mask & ~first), strict=True))
