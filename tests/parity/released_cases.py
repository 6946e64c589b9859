"""Reference cases of whole models as arguments of `ReadModel.forward`, for the tests of parts C, D and E.

Frames: images are the stored originals, in pixels; everything the models see of them is made by our processor.
Sizes, ids and the number of cases are read from the folder, never known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaConfig, SamConfig

from readseg.checkpoints.checkpoint import build, read_checkpoint
from readseg.core.frames import ImageFrame
from readseg.core.types import Turn
from readseg.model.config import ConversationConfig, ReadConfig
from readseg.model.families import FAMILIES, SEG
from readseg.model.modeling import ReadModel, ReadOutput
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import ASSISTANT, USER
from readseg.model.tokenizer import ADDED_FILE, MODEL_FILE, LegacyTokenizer

IMAGE_PLACE = -200  # what stands for the image in stored ids
IGNORED = -100
PAD = 0
LOGITS = 1e-3
POINTS = 2e-3
LOSSES = 1e-4
TEACHER_FORCED = ("C1_", "C2_")
PLAIN_IMAGE = "<im_start><image><im_end>\n"


def read_json(place: Path) -> Any:
    return json.loads(place.read_text(encoding="utf-8"))


def part_with(folder: Path, *needed: str) -> Path:
    """The folder of a part, which holds these files: the whole reference has them, and so has tests/golden."""
    missing = [name for name in needed if not (folder / name).exists()]
    assert not missing, f"{folder} has no {', '.join(missing)}"
    return folder


# -- comparing ---------------------------------------------------------------------------------------------------------


def close(ours: Tensor, theirs: Tensor, what: str, atol: float = LOGITS) -> None:
    """No value differs by more than `atol`, in float32; says which does, and of what."""
    ours, theirs = ours.detach().float(), theirs.float()
    # One pass where all is well: text logits are large. NaN is not, and is named below.
    if ours.shape == theirs.shape and ours.numel() and (ours - theirs).abs_().max() <= atol:
        return
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0, msg=lambda text: f"{what}: {text}")


def same_masks(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Binary masks (S, H, W) whose IoU is above 0.999 each."""
    ours, theirs = ours.bool(), theirs.bool()
    assert ours.shape == theirs.shape, what
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        union = (a | b).sum().item()
        iou = (a & b).sum().item() / union if union else 1.0
        assert iou > 0.999, f"{what}, mask {row}: IoU {iou}"


def stored(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, tuple[Any, ...]] | None:
    """A tensor and the slice of the full one that it is: "name" or "name_sub[:, ::2]"."""
    for key, value in tensors.items():
        if match := re.fullmatch(re.escape(name) + r"(?:_sub\[([\d:, ]+)\])?", key):
            return value, _slices(match[1])
    return None


def _slices(text: str | None) -> tuple[Any, ...]:
    if text is None:
        return (...,)
    parts = [part.strip().split(":") for part in text.split(",")]
    return tuple(
        int(part[0]) if len(part) == 1 else slice(*(int(number) if number else None for number in part))
        for part in parts
    )


# -- models and what they see ------------------------------------------------------------------------------------------


class View(NamedTuple):
    """One image as a model sees it: features (1, N, D), embeddings (1, C, h, w), and its frame."""

    features: Tensor
    embeddings: Tensor
    frame: ImageFrame


@dataclass
class Released:
    """A released checkpoint in float32, and the reference's images, encoded once each."""

    folder: Path
    model: ReadModel
    processor: ReadProcessor
    pictures: dict[str, Image.Image]
    views: dict[str, View] = field(default_factory=dict)

    def view(self, name: str) -> View:
        if name not in self.views:
            picture = self.pictures[name]
            with torch.no_grad():
                self.views[name] = View(
                    self.model.encode_image(self.processor.lmm_pixels(picture)[None]),
                    self.model.embed_masks_image(self.processor.mask_pixels(picture)[None]),
                    self.processor.frame(picture),
                )
        return self.views[name]

    def seen(self, names: Sequence[str]) -> dict[str, Any]:
        """Images as arguments of `forward`."""
        views = [self.view(name) for name in names]
        return {
            "image_features": torch.cat([view.features for view in views]),
            "mask_embeddings": torch.cat([view.embeddings for view in views]),
            "frames": [view.frame for view in views],
        }

    def rows(self, tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
        """Stored rows of text as arguments of `forward`, the image's place filled with its N tokens."""
        offset = tensors.get(f"{prefix}offset")
        ids, mask = tensors[f"{prefix}input_ids"], tensors.get(f"{prefix}attention_masks")
        rows: dict[str, Any] = {
            "input_ids": self.expanded(ids, ids, self.model.config.image_token_id),
            "row_images": torch.zeros(len(ids), dtype=torch.long),
        }
        if mask is not None:
            rows["attention_mask"] = self.expanded(mask.long(), ids, 1)
        if f"{prefix}labels" in tensors:
            rows["labels"] = self.expanded(tensors[f"{prefix}labels"], ids, IGNORED)
        if offset is not None:
            counts = offset.diff()
            assert counts.sum() == len(ids)
            rows["row_images"] = torch.arange(len(counts)).repeat_interleave(counts)
        return rows

    def expanded(self, values: Tensor, ids: Tensor, fill: int) -> Tensor:
        """(R, L) -> (R, L + N - 1): `values` with N times `fill` where `ids` have the image."""
        count = self.model.config.num_image_tokens
        rows = []
        for row, row_ids in zip(values, ids, strict=True):
            places = (row_ids == IMAGE_PLACE).nonzero().flatten().tolist()
            assert len(places) == 1, "every row has one image"
            rows.append(torch.cat([row[: places[0]], row.new_full((count,), fill), row[places[0] + 1 :]]))
        return torch.stack(rows)


@cache
def released(folder: Path, images: Path) -> Released:
    """Loads a checkpoint once for all tests."""
    model, processor = build(read_checkpoint(folder), dtype=torch.float32)
    pictures = {
        name.removesuffix(".orig_rgb_u8"): Image.fromarray(pixels.numpy())
        for name, pixels in load_file(images).items()
        if name.endswith(".orig_rgb_u8")
    }
    assert pictures
    return Released(folder, model.eval(), processor, pictures)


@contextmanager
def recorded_hidden(model: ReadModel) -> Iterator[list[Tensor]]:
    """Collects the last hidden states, after the final norm, of every call of the language model."""
    found: list[Tensor] = []
    handle = model.lmm.model.language_model.register_forward_hook(
        lambda module, args, output: found.append(output.last_hidden_state)
    )
    try:
        yield found
    finally:
        handle.remove()


def mask_logits(output: ReadOutput, frames: Sequence[ImageFrame], images: int) -> list[Tensor]:
    """Mask logits at image size, for each image (S, H, W)."""
    assert output.low_res_logits is not None and output.seg_images is not None
    return [frames[i].masks_to_image(output.low_res_logits[output.seg_images == i]) for i in range(images)]


def processor_alone(folder: Path, family: str, lmm_size: int = 56, mask_size: int = 1024) -> ReadProcessor:
    """A family's processor from tokenizer.model and added_tokens.json: where only text and pixels matter."""
    tokenizer = LegacyTokenizer((folder / MODEL_FILE).read_bytes(), read_json(folder / ADDED_FILE))
    own = FAMILIES[family]
    config = ReadConfig(
        lmm_config=LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=lmm_size, patch_size=14), image_token_index=len(tokenizer)
        ),
        mask_config=SamConfig(vision_config={"image_size": mask_size}),
        points=own.points,
        conversation=own.conversation,
        seg_token_id=tokenizer.added[SEG],
    )
    return ReadProcessor(tokenizer, config)


# -- teacher-forced cases ----------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A teacher-forced case, what the reference gave (`own`), what is right where that is wrong (`fixed`), and ours.

    tensors: the inputs, `own`'s or `fixed`'s.
    """

    name: str
    record: dict[str, Any]
    fixed_record: dict[str, Any]
    own: dict[str, Tensor] | None
    fixed: dict[str, Tensor] | None
    read: Released

    @property
    def tensors(self) -> dict[str, Tensor]:
        tensors = self.own if self.own is not None else self.fixed
        assert tensors is not None
        return tensors

    @property
    def images(self) -> list[str]:
        record = self.fixed_record if "images" in self.fixed_record else self.record
        return record["images"] if "images" in record else [record["image"]]

    @property
    def conversations(self) -> list[str]:
        record = self.fixed_record if "conversations" in self.fixed_record else self.record
        return record["conversations"]

    @cached_property
    def frames(self) -> list[ImageFrame]:
        return [self.read.view(name).frame for name in self.images]

    @cached_property
    def rows(self) -> dict[str, Any]:
        return self.read.rows(self.tensors)

    @property
    def targets(self) -> list[Tensor]:
        """Ground truth of each [SEG]. An image without one has none, whatever its size is said to be."""
        found = [self.tensors[f"masks.{place}"] for place in range(len(self.images))]
        return [mask for masks in found for mask in masks]

    @cached_property
    def ran(self) -> tuple[ReadOutput, Tensor]:
        """Our output and last hidden states."""
        arguments = self.rows | self.read.seen(self.images)
        if f"masks.{len(self.images) - 1}" in self.tensors:
            arguments["masks"] = self.targets
        with torch.no_grad(), recorded_hidden(self.read.model) as hidden:
            output = self.read.model(**arguments)
        return output, hidden[0]

    @property
    def output(self) -> ReadOutput:
        return self.ran[0]

    @cached_property
    def wrong(self) -> set[int]:
        """The [SEG] whose points the reference made with another image's size."""
        sizes = self.record.get("sim_shape") or []
        images = self.output.seg_images.tolist()
        return {k for k, size in enumerate(sizes) if tuple(size) != self.frames[images[k]].hw}

    @property
    def wrong_images(self) -> set[int]:
        return {self.output.seg_images[k].item() for k in self.wrong}


@cache
def teacher_forced(folder: Path) -> list[Case]:
    """All teacher-forced cases of part C that have values, each of which runs once for all tests."""
    index = read_json(folder / "index.json")
    read = released(folder / "ckpt", folder / "images.safetensors")
    place = folder / "corrected.json"
    corrected = read_json(place) if place.is_file() else {}
    names = [name for name in {**index, **corrected} if name.startswith(TEACHER_FORCED)]
    found = []
    for name in names:
        own, fixed = (folder / f"{name}{kind}.safetensors" for kind in ("", ".corrected"))
        if own.is_file() or fixed.is_file():
            found.append(
                Case(
                    name,
                    index.get(name, {}),
                    corrected.get(name, {}),
                    load_file(own) if own.is_file() else None,
                    load_file(fixed) if fixed.is_file() else None,
                    read,
                )
            )
    assert found, f"{folder} holds no teacher-forced case"
    files = {path.name.split(".safetensors")[0] for path in folder.glob("C[12]_*.safetensors")}
    assert files == {f"{case.name}" for case in found if case.own is not None} | {
        f"{case.name}.corrected" for case in found if case.fixed is not None
    }, "a file belongs to no case"
    return found


def values(case: Case, name: str) -> Iterator[tuple[Tensor, tuple[Any, ...], str]]:
    """What is stored under a name, in the case's own file and in the corrected one."""
    for tensors, kind in ((case.own, ""), (case.fixed, ".corrected")):
        if tensors is not None and (found := stored(tensors, name)) is not None:
            yield *found, f"{case.name}{kind} {name}"


# -- text --------------------------------------------------------------------------------------------------------------


def turns_of(text: str, conversation: ConversationConfig) -> tuple[list[Turn], ConversationConfig]:
    """A stored conversation as turns, and the words around its image, which part E has in LLaVA's form for all."""
    head = f"{conversation.system} "
    assert text.startswith(head), text
    rounds = text[len(head) :].split("</s>")
    if not rounds[-1]:
        rounds.pop()
    turns = []
    for place, part in enumerate(rounds):
        assert part.startswith(USER), part
        question, _, answer = part.removeprefix(USER).partition(ASSISTANT)
        if place == 0:
            image_texts = (conversation.image_text, PLAIN_IMAGE, "<image>\n")
            image_text = next(words for words in image_texts if question.startswith(words))
            question = question.removeprefix(image_text)
            if image_text != conversation.image_text:
                conversation = replace(conversation, image_text=PLAIN_IMAGE)
        turns.append(Turn(question, answer.removeprefix(" ") if answer else None))
    return turns, conversation


@contextmanager
def worded(processor: ReadProcessor, conversation: ConversationConfig) -> Iterator[ReadProcessor]:
    """The processor with other words around the image."""
    before = processor.config.conversation
    processor.config.conversation = conversation
    try:
        yield processor
    finally:
        processor.config.conversation = before


def collapsed(processor: ReadProcessor, ids: Sequence[int], *others: Sequence[int]) -> tuple[list[int], ...]:
    """Ids, and what goes along with them, as they are stored: one place for the image."""
    image = processor.config.image_token_id
    kept = [place for place, token in enumerate(ids) if token != image or place == 0 or ids[place - 1] != image]
    own = [IMAGE_PLACE if ids[place] == image else ids[place] for place in kept]
    return own, *([values[place] for place in kept] for values in others)


def stored_form(processor: ReadProcessor, text: str) -> tuple[list[int], list[int]]:
    """Our ids and labels of a stored conversation, as the reference stores them."""
    ids, labels = collapsed(processor, *encoded(processor, text))
    return ids, labels


def encoded(processor: ReadProcessor, text: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a stored conversation; of a prompt alone where no answer follows."""
    turns, words = turns_of(text, processor.config.conversation)
    with worded(processor, words):
        if turns[-1].answer is None:
            ids = processor.prompt_ids(turns)
            return ids, [IGNORED] * len(ids)
        return processor.encode(turns)


def unpadded(row: Tensor, mask: Tensor) -> list[int]:
    return row[mask.bool()].tolist()


def pieces_of(folder: Path) -> SentencePieceProcessor:
    """The names of ids, as the reference lists them."""
    pieces = SentencePieceProcessor()
    pieces.LoadFromSerializedProto((folder / MODEL_FILE).read_bytes())
    return pieces
