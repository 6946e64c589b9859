"""The trained model as something to ask: a folder of weights, answers to questions about an image, scores on scenes.

A folder holds `model.safetensors` (weights in bfloat16), `config.json` (sizes, points) and the tokenizer. SAM's frozen
encoders are those of the embedded model, which the file names by a digest and does not repeat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model import Fused, Referrer, ReferringConfig, pack_questions, question_ids
from readseg.checkpoints.load import digest, load_model
from readseg.core import sasp
from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.run import System
from readseg.model.config import ReadConfig
from readseg.model.mask_prompts import Points
from readseg.model.processing import ReadProcessor

Head = Literal["sam", "features"]
HEADS: tuple[Head, ...] = ("sam", "features")

_FORMAT = "readseg-referring-1"
_OWN_SAM = "sam.mask_decoder."


@dataclass(frozen=True)
class Reference:
    """The answer to one question: what `readseg.evaluation.run.Answer` has of an answer, and how it came about.

    answer: "yes [SEG]." or "no."; this model has no other words.
    present: whether what was asked for is said to be there; presence: the probability that it is.
    masks: (1, H, W) bool, or (0, H, W) where it is not there.
    similarity: (H, W) float32, the map at the size of the image; points_xy: (P, 2) in its pixels; point_labels: (P,).
        All three are what the model looked at, also where it then refused.
    finished: it always is.
    """

    answer: str
    present: bool
    presence: float
    masks: np.ndarray
    similarity: np.ndarray
    points_xy: np.ndarray
    point_labels: np.ndarray
    finished: bool = True


@dataclass(frozen=True)
class Looked:
    """What the model keeps of an image for all questions: h_img (1, N, D), fine map, SAM's embeddings."""

    h_img: Tensor
    fine_map: Tensor
    embeddings: Tensor


class Referring:
    """Answers questions about images with the model of `model.py`.

    Args:
        model: put into evaluation mode.
        processor: the tokenizer, and the embedded model's views of an image.
    """

    def __init__(self, model: Referrer, processor: ReadProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self._last: tuple[bytes, Looked] | None = None

    def segment(self, image: Image.Image, questions: Sequence[str], *, head: Head = "sam") -> list[Reference]:
        """Answers to questions about one image, in their order; all are one batch.

        Args:
            image: RGB.
            questions: of any number.
            head: what makes the mask, see `model.py`.

        Raises:
            ReadsegError: an empty question, or an unknown head.
        """
        if head not in HEADS:
            raise ReadsegError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
        if any(not question.strip() for question in questions):
            raise ReadsegError("a question is empty: say what to look for")
        if not questions:
            return []
        frame = self.processor.frame(image)
        with torch.inference_mode():
            looked = self._look(image)
            rows = [[question_ids(self.processor.tokenizer, question) for question in questions]]
            packed = pack_questions(rows, self.processor.config.seg_token_id, self.model.config.longest)
            fused = self.model.fuse(packed, looked.h_img)
            points = self.model.find_points(fused.scores, packed.images, [frame])
            maps = sasp.full_map(fused.scores, frame.hw, alignment="exact", box=frame.lmm_box).numpy()
            there = torch.nonzero(fused.present > 0)[:, 0]
            masks = self._masks(fused, points, there, looked, image, head)
        found = dict(zip(there.tolist(), masks, strict=True))
        return [
            Reference(
                answer="yes [SEG]." if k in found else "no.",
                present=k in found,
                presence=float(fused.present[k].sigmoid()),
                masks=found[k][None] if k in found else np.zeros((0, *frame.hw), bool),
                similarity=maps[k],
                points_xy=points[k].xy.numpy(),
                point_labels=points[k].labels.numpy(),
            )
            for k in range(len(questions))
        ]

    def _look(self, image: Image.Image) -> Looked:
        """What does not depend on a question; that of the last image is kept."""
        key = f"{image.size}".encode() + image.tobytes()
        if self._last is None or self._last[0] != key:
            maps = self.model.look(self.processor.lmm_pixels(image)[None])
            h_img = self.model.image_tokens(maps["stride16"])
            fine_map = self.model.fine_map(maps["stride4"], maps["stride8"], h_img)
            embeddings = self.model.sam.get_image_embeddings(self.processor.mask_pixels(image)[None])
            self._last = key, Looked(h_img, fine_map, embeddings)
        return self._last[1]

    def _masks(
        self, fused: Fused, points: Sequence[Points], there: Tensor, looked: Looked, image: Image.Image, head: Head
    ) -> np.ndarray:
        """Masks (M, H, W) of the questions whose object is there."""
        frame = self.processor.frame(image)
        images = torch.zeros_like(there)
        chosen = Fused(*(value[there] for value in fused))
        own = [points[k] for k in there.tolist()]
        if head == "sam":
            low = self.model.sam_masks(chosen.h_seg, own, images, looked.embeddings, [frame])
            return (frame.masks_to_image(low) > 0).numpy()
        logits = self.model.feature_masks(chosen, own, images, looked.fine_map, [frame])
        if not len(logits):
            return np.zeros((0, *frame.hw), bool)
        resized = torch.nn.functional.interpolate(logits[:, None], frame.hw, mode="bilinear", align_corners=False)
        return (resized[:, 0] > 0).numpy()


def scene_system(referring: Referring, head: Head, name: str) -> System:
    """The model with one of its heads, as a system for `readseg.evaluation.run.run_systems`.

    Args:
        referring: the model.
        head: what makes its masks.
        name: what tables call the model.
    """

    def answer(page: ImageQuestions, image: Image.Image) -> list[Reference]:
        return referring.segment(image, [query.text for query in page.questions], head=head)

    settings = {"model": f"{name}, head {head}", "head": head, "weights": digest([referring.model])}
    return System(head, settings, answer)


def save(model: Referrer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model's folder, whole or not at all."""
    weights = dict(model.named_parameters())  # the statistics of the CNN's batch norms are small, and stay exact
    state = {
        key: tensor.detach().cpu().to(torch.bfloat16 if key in weights else tensor.dtype)
        for key, tensor in model.state_dict().items()
        if not key.startswith("sam.") or key.startswith(_OWN_SAM)
    }
    values = {
        "format": _FORMAT,
        "sizes": model.config.to_dict(),
        "points": vars(model.points),
        "encoders": digest([model.sam.vision_encoder]),
    }
    with atomic_write(folder) as place:
        place.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, place / "model.safetensors")
        tokenizer.save_pretrained(place)
        (place / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> Referring:
    """The model of a folder that `save` wrote, with the embedded model's SAM and views of an image.

    Raises:
        ReadsegError: there is no such folder, a file of it is missing or damaged, or it was trained on other encoders
            than the embedded model has; the message names the file.
    """
    values = _read_config(folder / "config.json")
    embedded, own, _ = load_model(dtype="float32", device="cpu")
    processor = ReadProcessor(_tokenizer(folder, own.config), own.config)
    try:
        sizes = ReferringConfig.from_dict(values["sizes"])
        points = sasp.PointConfig(**values["points"])
        model = Referrer(sizes, processor.config.mask_config, points)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReadsegError(f"{folder / 'config.json'}: not the sizes of a referring model ({error})") from error
    if digest([embedded.sam.vision_encoder]) != values.get("encoders"):
        raise ReadsegError(f"{folder}: trained with another embedded model than this one: train it again")
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise ReadsegError(f"{path}: no such file; a model has it beside config.json") from error
    except (SafetensorError, OSError) as error:
        raise ReadsegError(f"{path}: damaged, it cannot be read ({error})") from error
    _fill(model, state, embedded.sam.state_dict(), path)
    return Referring(model, processor)


def _tokenizer(folder: Path, config: ReadConfig) -> PreTrainedTokenizerBase:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ReadsegError(f"{path}: no such file; a model has it beside config.json")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, config=config)
    except Exception as error:  # of tokenizers, json, ...: they share no base class
        raise ReadsegError(f"{path}: damaged, it cannot be read ({error})") from error
    return tokenizer


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReadsegError(
            f"{path.parent}: no referring model is there (config.json is missing); train one: "
            "python examples/referring train --out DIR"
        ) from error
    except (ValueError, OSError) as error:
        raise ReadsegError(f"{path}: damaged, it cannot be read ({error})") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ReadsegError(f"{path}: expected a model of format {_FORMAT!r}")
    return values


def _fill(model: Referrer, own: Mapping[str, Tensor], sam: Mapping[str, Tensor], path: Path) -> None:
    """Weights into a model: its own, and SAM's frozen parts.

    Raises:
        ReadsegError: one is missing, unexpected, or of another shape.
    """
    shared = {f"sam.{key}": tensor for key, tensor in sam.items() if not f"sam.{key}".startswith(_OWN_SAM)}
    wanted = model.state_dict()
    given = {**shared, **own}
    wrong = sorted(wanted.keys() ^ given.keys()) or sorted(k for k in wanted if wanted[k].shape != given[k].shape)
    if wrong:
        raise ReadsegError(f"{path}: missing, unexpected or of another shape: {', '.join(wrong[:5])}")
    model.load_state_dict(given)
