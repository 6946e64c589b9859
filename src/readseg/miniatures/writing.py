"""Files of the miniatures: JSON and pictures, in folders that are made as they are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from readseg.miniatures.pictures import Picture


def write_json(path: Path, value: Any, *, encoding: str = "utf-8") -> None:
    """Writes a value as JSON without escapes, in this encoding."""
    write_bytes(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(encoding))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_labels(path: Path, labels: np.ndarray, palette: list[int] | None = None) -> None:
    """Writes a map of labels, uint8 (H, W), as PNG: grey, or with a palette of which it holds the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, format="PNG")


def image_record(picture: Picture, image_id: int, file_name: str) -> dict[str, Any]:
    """A picture's entry among COCO's `images`."""
    height, width = picture.hw
    return {"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1}


def coco_file(images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[Any]) -> dict[str, Any]:
    """The whole of a file of annotations as COCO lays it out."""
    info = {"description": "readseg miniature", "version": "1.0", "year": 2024}
    licences = [{"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}]
    return {
        "info": info,
        "licenses": licences,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
