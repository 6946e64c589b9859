"""The answer to one question with its masks, and its way to JSON, PNG and pictures. Image pixels."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from readseg.core.masks import decode_rle, encode_rle, union
from readseg.core.sasp import full_map
from readseg.core.token_grid import Alignment, check_choice
from readseg.errors import ReadsegError
from readseg.viz import overlays

FORMAT = "readseg.segmentation/1"
_OUR_FILES = re.compile(r"overlay\.png|(mask|heatmap)_\d+\.png")
# What JSON holds as it is; files that are older than the second line lack its fields.
_PLAIN = ("query", "answer", "present", "finished")
_YOUNGER = ("phrases", "rejected", "said")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """An answer and its masks; S counts the [SEG] of the answer, N the image tokens.

    Attributes:
        query: what was asked, in the user's words.
        answer: what the model said, with its [SEG].
        present: True if there is a mask; False if an object was asked for and the model gave none (a refusal:
            it is not there); None where no object was asked for.
        image_size: (H, W).
        masks: (S, H, W) bool, one for each [SEG].
        points_xy: for each [SEG] (P, 2) float32, pixel indices (x, y); P differs, and may be 0.
        point_labels: for each [SEG] (P,), 1 positive, 0 negative, -1 neutral.
        scores: (S, N) float32, similarity of each [SEG] to the image tokens, row-major n x n.
        alignment: how the token grid lies on the image, "exact" or "reference" (`sasp.full_map`).
        box: (x0, y0, x1, y1), the image's rectangle under the grid, for "exact".
        finished: False where the answer was cut off at the limit of its length.
        phrases: for each [SEG] the words of the answer that it belongs to, "" where the family's answers do not say.
        rejected: what the answer says is not there, of several objects asked for at once ([REJ]).
        said: for each [SEG] of a given answer (teacher forcing) whether the model itself would have said it there;
            None for a generated answer.
        answer_ids: the answer as the model's tokens; () after `from_json`.
        image: what was asked about, RGB; None after `from_json`.
    """

    query: str
    answer: str
    present: bool | None
    image_size: tuple[int, int]
    masks: np.ndarray
    points_xy: tuple[np.ndarray, ...] = ()
    point_labels: tuple[np.ndarray, ...] = ()
    scores: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32), repr=False)
    alignment: Alignment = "exact"
    box: tuple[float, float, float, float] | None = None
    finished: bool = True
    phrases: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    said: tuple[bool, ...] | None = None
    answer_ids: tuple[int, ...] = field(default=(), repr=False)
    image: Image.Image | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count, hw = len(self.masks), tuple(self.image_size)
        object.__setattr__(self, "phrases", self.phrases or ("",) * count)
        if self.masks.dtype != np.bool_ or self.masks.shape[1:] != hw:
            raise ValueError(f"masks must be bool (S, *{hw}); got {self.masks.dtype} {self.masks.shape}")
        if (self.present is True) != (count > 0):
            raise ValueError(f"present is {self.present}, which does not fit {count} masks")
        of_each = self.points_xy, self.point_labels, self.scores, self.phrases, self.said or self.masks
        if {*map(len, of_each)} != {count}:
            raise ValueError(f"points, labels, scores, phrases and said must be those of {count} masks")
        for xy, labels in zip(self.points_xy, self.point_labels, strict=True):
            if xy.shape != (len(labels), 2) or not np.isin(labels, (1, 0, -1)).all():
                raise ValueError(f"points must be (P, 2) with P labels 1, 0 or -1; got {xy.shape}, {labels!r}")
        if self.scores.ndim != 2 or math.isqrt(self.scores.shape[1]) ** 2 != self.scores.shape[1]:
            raise ValueError(f"scores must be (S, N) with N = n * n; got {self.scores.shape}")
        check_choice("alignment", self.alignment, Alignment)
        if self.box is not None and len(self.box) != 4:
            raise ValueError(f"box must be (x0, y0, x1, y1) or None; got {self.box}")

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"Segmentation(query={self.query!r}, answer={self.answer!r}, present={self.present}, "
            f"{len(self.masks)} masks of {height} x {width})"
        )

    @cached_property
    def similarity(self) -> np.ndarray:
        """(S, H, W) float32 in [0, 1]: the similarity map g of each [SEG], 0 where the model does not see."""
        if not len(self.masks):
            return np.zeros((0, *self.image_size), np.float32)
        box = self.box if self.alignment == "exact" else None
        return full_map(torch.from_numpy(self.scores), self.image_size, alignment=self.alignment, box=box).numpy()

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the union of all masks, empty where there is none."""
        return union(self.masks, self.image_size)

    def overlay(self, image: Image.Image | None = None) -> Image.Image:
        """The masks, points and answer on the image; pass `image` where this result has none, as after `from_json`."""
        points = list(zip(self.points_xy, self.point_labels, strict=True))
        return overlays.overlay(self._image(image), self.masks, points=points, caption=f"{self.query} - {self.answer}")

    def heatmap(self, index: int = 0, image: Image.Image | None = None) -> Image.Image:
        """The similarity map and the points of one [SEG] on the image; an index without [SEG] is a ReadsegError."""
        if not 0 <= index < len(self.masks):
            raise ReadsegError(f"there is no heat map {index}: the answer has {len(self.masks)} [SEG]")
        points = [(self.points_xy[index], self.point_labels[index])]
        return overlays.heat_map(self._image(image), self.similarity[index], points=points, caption=self.query)

    def to_json(self) -> str:
        """One line of JSON, masks as COCO run lengths; `from_json` reads it back. The image is not in it."""
        points = zip(self.points_xy, self.point_labels, strict=True)
        values = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_PLAIN, *_YOUNGER)},
            "image_size": self.image_size,
            "masks": [encode_rle(mask) for mask in self.masks],
            "points": [
                {"xy": [list(map(shortest_float, point)) for point in xy], "labels": labels.tolist()}
                for xy, labels in points
            ],
            "similarity": {
                "alignment": self.alignment,
                "box": None if self.box is None else [float(side) for side in self.box],
                "scores": [list(map(shortest_float, row)) for row in self.scores],
            },
        }
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, image: Image.Image | None = None) -> Segmentation:
        """What `to_json` gave; `image` is what pictures are drawn on. A text of another form is a ReadsegError."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}")
            height, width = (int(side) for side in values["image_size"])
            masks = [decode_rle(rle) for rle in values["masks"]]
            points, similarity = values["points"], values["similarity"]
            plain = {name: values[name] for name in _PLAIN}
            plain |= {name: tuple(values[name]) for name in _YOUNGER if values.get(name) is not None}
            return cls(
                **plain,
                image_size=(height, width),
                masks=np.stack(masks) if masks else np.zeros((0, height, width), bool),
                points_xy=tuple(np.array(p["xy"], np.float32).reshape(-1, 2) for p in points),
                point_labels=tuple(np.array(p["labels"], np.int64) for p in points),
                scores=np.array(similarity["scores"] or np.zeros((0, 1)), np.float32),  # None becomes NaN
                alignment=similarity["alignment"],
                box=None if similarity["box"] is None else tuple(similarity["box"]),
                image=image,
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ReadsegError(f"this is not a saved segmentation ({FORMAT}): {reason}") from error

    def save(self, folder: str | Path) -> Path:
        """Write result.json, overlay.png, and mask_K.png, heatmap_K.png for the K-th [SEG], each whole or not at all.

        The folder, which is returned, is made if it is not there. Masks and heat maps of an earlier result in it are
        removed, so that all its files tell of one result. ReadsegError where it cannot be written.
        """
        folder = Path(folder)
        pictures = {"overlay.png": self.overlay()}
        for index, mask in enumerate(self.masks):
            pictures[f"mask_{index + 1}.png"] = Image.fromarray(mask.astype(np.uint8) * 255)
            pictures[f"heatmap_{index + 1}.png"] = self.heatmap(index)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
                for name, picture in pictures.items():
                    picture.save(Path(temporary, name))
                Path(temporary, "result.json").write_text(self.to_json() + "\n", encoding="utf-8")
                # All are complete now: only renames are left, the result last.
                for old in folder.iterdir() if (folder / "result.json").exists() else ():
                    if _OUR_FILES.fullmatch(old.name) and old.name not in pictures:
                        old.unlink()
                for name in (*pictures, "result.json"):
                    Path(temporary, name).replace(folder / name)
        except OSError as error:
            raise ReadsegError(f"cannot write to {folder}: {error.strerror or error}") from error
        return folder

    def _image(self, image: Image.Image | None) -> Image.Image:
        image = image or self.image
        if image is None:
            raise ReadsegError("this result has no image to draw on: pass image=")
        if (image.height, image.width) != tuple(self.image_size):
            raise ReadsegError(f"the image is {image.size} (W, H), the result's size (H, W) {self.image_size}")
        return image


def shortest_float(value: np.floating) -> float | None:
    """The shortest number that reads back as this float32; None for what JSON cannot hold."""
    return float(str(np.float32(value))) if np.isfinite(value) else None
