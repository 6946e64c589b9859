"""Masks as the data sets write them: polygons, run lengths, boxes, and halves of objects.

Frame: (x, y) in pixels of the picture, the first pixel's left upper corner is (0, 0), its middle (0.5, 0.5).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from readseg.core.masks import encode_rle


def traced(mask: np.ndarray) -> list[list[list[float]]]:
    """Polygons that give a mask back whoever paints them: truncated to pixels and outlined, or filled as COCO does.

    Each corner lies in its pixel, on the side that is outside of the mask: truncated it is that pixel, and the area
    inside is that of all pixels but for a seam of 0.1. A part with holes is cut through them into parts without.

    Args:
        mask: (H, W) bool.

    Returns:
        Polygons of at least three corners [x, y].
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
            polygons += traced(left) + traced(right)
        else:
            polygons.append(_outward(contours[0][:, 0]))
    return polygons


def _outward(corners: np.ndarray) -> list[list[float]]:
    """The corners (K, 2) of a contour of OpenCV, each moved within its pixel towards the outside.

    Where the contour turns back, at the end of a line of pixels, there are two.
    """
    if len(corners) == 1:
        corners, steps = np.repeat(corners, 2, axis=0), np.asarray(((1.0, 0.0), (-1.0, 0.0)))
    else:
        steps = np.roll(corners, -1, axis=0) - corners
        steps = steps / np.hypot(steps[:, 0], steps[:, 1])[:, None]
    # OpenCV walks with the outside on this hand.
    normals = np.stack((-steps[:, 1], steps[:, 0]), axis=1)
    moved: list[list[float]] = []
    for corner, step, before, after in zip(corners, np.roll(steps, 1, 0), np.roll(normals, 1, 0), normals, strict=True):
        towards = np.round(before + after, 6)
        for side in (towards,) if towards.any() else (before + step, after + step):
            moved.append(np.round(corner + 0.5 + 0.4 * np.sign(np.round(side, 6)), 1).tolist())
    return moved


def annotation(
    number: int, image_id: int, category_id: int, mask: np.ndarray, *, run_lengths: bool = False
) -> dict[str, Any]:
    """A mask (H, W) as an annotation of COCO: polygons, or a list of one RLE as RefCLEF's; area and box are exact."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    polygons = [[value for point in polygon for value in point] for polygon in ([] if run_lengths else traced(mask))]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": polygons or [encode_rle(mask)],
        "area": float(mask.sum()),
        "bbox": [float(v) for v in (x, y, columns[-1] + 1 - x, rows[-1] + 1 - y)],
        "iscrowd": 0,
    }


def halves(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The two halves of an object, (H, W) each, cut across its longer side in the middle of its box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    first, second = mask.copy(), mask.copy()
    if np.ptp(rows) >= np.ptp(columns):
        middle = int(rows[0] + rows[-1] + 1) // 2
        first[middle:], second[:middle] = False, False
        return {"top half": first, "bottom half": second}
    middle = int(columns[0] + columns[-1] + 1) // 2
    first[:, middle:], second[:, :middle] = False, False
    return {"left half": first, "right half": second}
