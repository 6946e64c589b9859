"""Stages 0 and 1: the mask model and the vision tower, each trained alone on scenes before they are frozen.

Both draw their scenes from the step's number, so a batch is a function of the step. How a model without pre-trained
parts begins is here too: the stock classes draw layers with a fixed small deviation, from which they hardly learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import CLIPVisionModel, SamModel

from readseg.core.frames import ImageFrame
from readseg.core.sasp import select_points
from readseg.core.token_grid import cell_coverage
from readseg.model.losses import mask_losses
from readseg.model.processing import ReadProcessor
from readseg.scenes.classes import TINTS, TRAINED
from readseg.scenes.render import RenderedScene, Scene, make_scene, render
from readseg.training.config import MaskStageConfig, VisionStageConfig

# Of a thing's centre along each side of the image, for the loss on what image tokens show.
POSITION_BINS = 8
# Of the side of a square as large as the thing, in shares of the square root of the image's area.
SIZE_BINS, SIZE_STEP = 6, 0.06
# What is asked of each image token, and how many answers there are.
TOKEN_ATTRIBUTES = {
    "names": 1 + len(TRAINED),
    "tints": 1 + len(TINTS),
    "columns": POSITION_BINS,
    "rows": POSITION_BINS,
    "sizes": SIZE_BINS,
}


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw all weights anew: W ~ N(0, 1 / fan_in), biases 0, norms 1 and 0, embeddings N(0, 0.3^2).

    The fan-in of a convolution is channels times kernel area. Call ``torch.manual_seed`` first.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            is_transposed = isinstance(layer, nn.ConvTranspose2d)
            fan_in = layer.weight.shape[0] if is_transposed else layer.weight[0].numel()
            layer.weight.normal_(0.0, fan_in**-0.5)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.Embedding):
            layer.weight.normal_(0.0, 0.3)
        elif "norm" in type(layer).__name__.lower():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.fill_(1.0 if name == "weight" else 0.0)
    for name, parameter in module.named_parameters():
        if name.endswith(("class_embedding", "pos_embed")):
            parameter.normal_(0.0, 0.3)
        elif name.endswith(("rel_pos_h", "rel_pos_w")):
            parameter.zero_()


@torch.no_grad()
def initialise_sam(sam: SamModel) -> None:
    """:func:`initialise`, then what lets a mask decoder learn from points at once.

    Point, mask and IoU tokens ~ N(0, 1) as in the original SAM; random Fourier features of deviation 1; and in every
    cross-attention W_q = W_k, so that a point's position code first attends to the same code in the image.
    """
    initialise(sam)
    prompt, decoder = sam.prompt_encoder, sam.mask_decoder
    for embedding in (*prompt.point_embed, prompt.not_a_point_embed, decoder.iou_token, decoder.mask_tokens):
        embedding.weight.normal_(0.0, 1.0)
    sam.shared_image_embedding.positional_embedding.normal_(0.0, 1.0)
    shared = prompt.shared_embedding.positional_embedding
    shared.copy_(sam.shared_image_embedding.positional_embedding)
    attentions = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        attention.q_proj.weight.copy_(attention.k_proj.weight)


def training_scene(seed: int, dense: float, rng: np.random.Generator) -> tuple[Scene, RenderedScene]:
    """A training scene; a share ``dense`` of them holds up to 12 things, which teaches more per image."""
    scene = make_scene(seed, count=(7, 12) if rng.random() < dense else (4, 8))
    return scene, render(scene)


def cell_labels(scene: Scene, drawn: RenderedScene, side: int) -> dict[str, Tensor]:
    """What each cell of a side x side grid shows: `TOKEN_ATTRIBUTES` (N,) and ``boxes`` (N, 4) of the thing in front.

    Names and tints count from 1, 0 is nothing, and the thing's own colours. -100 is left out: a border of things, and
    all but the name where nothing is there.
    """
    cover = cell_coverage(drawn.masks, side).reshape(len(scene.objects), -1)
    front, share = cover.argmax(0), cover.max(0)
    centres = (drawn.boxes[:, :2] + drawn.boxes[:, 2:]) / 2
    bins = np.minimum(centres * POSITION_BINS, POSITION_BINS - 1).astype(int)
    of_things = {
        "names": np.asarray([1 + TRAINED.index(thing.name) for thing in scene.objects]),
        "tints": np.asarray([0 if t.tint is None else 1 + TINTS.index(t.tint) for t in scene.objects]),
        "columns": bins[:, 0],
        "rows": bins[:, 1],
        "sizes": np.minimum(np.sqrt(drawn.areas) / SIZE_STEP, SIZE_BINS - 1).astype(int),
    }
    labels = {name: np.where(share >= 0.35, values[front], -100) for name, values in of_things.items()}
    labels["names"][cover.sum(0) < 0.03] = 0
    labels["boxes"] = drawn.boxes[front].astype(np.float32)
    return {name: torch.from_numpy(values) for name, values in labels.items()}


def vision_heads(width: int) -> nn.ModuleDict:
    """Linear layers on the states (B, N, width) of patches or cells: ``name``, ``tint`` and ``box``."""
    sizes = {"name": 1 + len(TRAINED), "tint": 1 + len(TINTS), "box": 4}
    return nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})


def vision_batch(processor: ReadProcessor, seeds: Iterable[int], side: int) -> dict[str, Tensor]:
    """Scenes, one for each seed: ``pixels`` (B, 3, s, s), and the `cell_labels` of each, (B, N) and (B, N, 4)."""
    scenes = []
    for seed in seeds:
        scene, drawn = training_scene(seed, 0.6, np.random.default_rng([seed, 1]))
        pixels = processor.lmm_pixels(Image.fromarray(drawn.image))
        scenes.append({"pixels": pixels, **cell_labels(scene, drawn, side)})
    return default_collate(scenes)


def vision_losses(
    heads: nn.ModuleDict, states: Tensor, batch: dict[str, Tensor], centres: Tensor | float = 0.0
) -> dict[str, Tensor]:
    """The loss of `VisionStage` of states (B, N, width), and accuracies; ``centres`` (N, 4) are added to the boxes."""
    names, tints = batch["names"].flatten(), batch["tints"].flatten()
    name_logits = heads["name"](states).flatten(0, 1).float()
    tint_logits = heads["tint"](states).flatten(0, 1).float()
    boxes = (heads["box"](states).float() + centres).flatten(0, 1)
    on = tints >= 0
    weight = torch.ones(name_logits.shape[1], device=states.device)
    weight[0] = 0.2
    name_loss = F.cross_entropy(name_logits, names, weight=weight)
    tint_loss = F.cross_entropy(tint_logits, tints)
    box_loss = F.l1_loss(boxes[on], batch["boxes"].flatten(0, 1)[on])
    return {
        "loss": name_loss + 0.5 * tint_loss + 2.0 * box_loss,
        "name_accuracy": (name_logits[on].argmax(1) == names[on]).float().mean(),
        "tint_accuracy": (tint_logits[on].argmax(1) == tints[on]).float().mean(),
        "box_error": box_loss.detach(),
    }


class VisionStage(nn.Module):
    """Stage 1. Each of the N patches says what it shows: class, tint, and the thing's box.

    loss = CE(class) + 0.5 CE(tint) + 2 L1(box); tint and box only where a thing covers the patch.
    """

    uses_all = True
    rate_factors: Mapping[str, float] = {}

    def __init__(self, processor: ReadProcessor, options: VisionStageConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        vision = processor.config.lmm_config.vision_config
        self.tower = CLIPVisionModel._from_config(vision, attn_implementation="eager")
        self.heads = vision_heads(vision.hidden_size)
        initialise(self)
        self.grid = vision.image_size // vision.patch_size
        self.processor, self.options = processor, options

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Scenes with the content of each patch, see `vision_batch`."""
        first = self.options.first_seed + (step * world + rank) * self.options.images_per_step
        return vision_batch(self.processor, range(first, first + self.options.images_per_step), self.grid)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the accuracy of class and tint over the patches that show a thing."""
        return vision_losses(self.heads, self.tower(pixel_values=batch["pixels"]).last_hidden_state[:, 1:], batch)


class MaskStage(nn.Module):
    """Stage 0. The mask model learns what a point, a click and a box mean, on one thing or on several at once.

    loss = 2 BCE + DICE at the mask model's own size + MSE of its IoU estimate. Six tenths of the batches are prompted
    as READ prompts: points chosen by SasP from a noisy coverage map.
    """

    uses_all = False
    rate_factors: Mapping[str, float] = {}

    def __init__(self, processor: ReadProcessor, options: MaskStageConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = processor.config
        self.sam = SamModel._from_config(config.mask_config, attn_implementation="eager")
        initialise_sam(self.sam)
        self.size, self.grid = config.mask_size, round(config.num_image_tokens**0.5)
        self.processor, self.options = processor, options
        self.sam.mask_decoder.requires_grad_(True)
        self.sam.prompt_encoder.mask_embed.requires_grad_(False)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Scenes, targets (B, P, S, S) uint8 with 255 on the padding, and one kind of prompt for all of them."""
        count, per_image = self.options.images_per_step, self.options.masks_per_image
        rng = np.random.default_rng([step, rank, 3])
        kind = str(rng.choice(["points", "clicks", "box"], p=[0.6, 0.3, 0.1]))
        clicks = int(rng.integers(1, 4))
        first = self.options.first_seed + (step * world + rank) * count
        rows = []
        for seed in range(first, first + count):
            scene, drawn = training_scene(seed, 0.3, rng)
            image = Image.fromarray(drawn.image)
            frame = self.processor.frame(image)
            chosen = np.stack([_target(drawn, rng) for _ in range(per_image)])
            row = {"pixels": self.processor.mask_pixels(image), "targets": _to_mask_frame(chosen, frame)}
            if kind == "box":
                row["boxes"] = _boxes(chosen, frame, rng)
            elif kind == "points":
                row["points"], row["labels"] = self._read_points(chosen, frame, rng)
            else:
                row["points"], row["labels"] = _clicks(chosen, clicks, frame, rng)
            rows.append(row)
        return default_collate(rows)

    def _read_points(self, masks: np.ndarray, frame: ImageFrame, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Points as SasP would choose them from a similarity map that roughly shows the target."""
        cover = cell_coverage(masks, self.grid)
        smooth = rng.normal(0, 1, (len(masks), 5, 5)).astype(np.float32)
        noise = np.stack([cv2.resize(field, (self.grid, self.grid)) for field in smooth])
        level = rng.uniform(0.0, 0.25)
        fine = rng.normal(0, 1, cover.shape).astype(np.float32)
        scores = torch.from_numpy(np.sqrt(cover) + level * (0.5 * noise + 0.6 * fine)).flatten(1)
        config = replace(self.processor.config.points, alignment="exact", threshold="range")
        chosen = select_points(scores, frame.hw, config, box=frame.lmm_box)
        return frame.to_mask_frame(chosen.xy.float()), chosen.labels

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the mean IoU of the masks."""
        names = {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes"}
        prompts = {argument: batch[name] for name, argument in names.items() if name in batch}
        output = self.sam(pixel_values=batch["pixels"], **prompts, multimask_output=False)
        low = output.pred_masks[:, :, 0].float()
        logits = F.interpolate(low, size=(self.size, self.size), mode="bilinear", align_corners=False)
        targets = batch["targets"]
        counted = targets != 255
        losses = mask_losses(list(logits.flatten(0, 1)), list(targets.flatten(0, 1)))
        with torch.no_grad():
            predicted, true = (logits > 0) & counted, targets == 1
            inside = (predicted & true).sum((-1, -2)).float()
            iou = inside / (predicted | true).sum((-1, -2)).clamp(min=1)
        estimate = F.mse_loss(output.iou_scores[..., 0].float(), iou)
        return {
            "loss": 2.0 * losses.bce + losses.dice + estimate,
            "bce": losses.bce.detach(),
            "dice": losses.dice.detach(),
            "mean_iou": iou.mean(),
        }


def _target(drawn: RenderedScene, rng: np.random.Generator) -> np.ndarray:
    """The mask of one visible thing, or of two or three of them (one time in five)."""
    visible = np.flatnonzero(drawn.areas > 0.004)
    many = int(rng.integers(2, 4)) if rng.random() < 0.2 else 1
    chosen = rng.choice(visible, size=min(many, len(visible)), replace=False)
    return drawn.masks[chosen].any(0)


def _to_mask_frame(masks: np.ndarray, frame: ImageFrame) -> Tensor:
    """Masks resized into the mask model's square, 255 on its padding: uint8 (P, S, S)."""
    height, width = frame.mask_hw
    result = np.full((len(masks), frame.mask_size, frame.mask_size), 255, np.uint8)
    for mask, place in zip(masks, result, strict=True):
        resized = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        place[:height, :width] = resized > 0.5
    return torch.from_numpy(result)


def _clicks(masks: np.ndarray, count: int, frame: ImageFrame, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One click inside each mask, and ``count - 1`` more inside or outside."""
    xy = np.zeros((len(masks), count, 2), np.float32)
    labels = np.ones((len(masks), count), np.int64)
    for i, mask in enumerate(masks):
        for j in range(count):
            labels[i, j] = 1 if j == 0 else int(rng.random() < 0.5)
            rows, columns = np.nonzero(mask == bool(labels[i, j]))
            k = rng.integers(len(rows))
            xy[i, j] = columns[k], rows[k]
    return frame.to_mask_frame(torch.from_numpy(xy)), torch.from_numpy(labels)


def _boxes(masks: np.ndarray, frame: ImageFrame, rng: np.random.Generator) -> Tensor:
    """Boxes around the masks, each side moved by up to three pixels: (P, 4)."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    boxes += rng.uniform(-3, 3, boxes.shape).astype(np.float32)
    return frame.to_mask_frame(torch.from_numpy(boxes).reshape(-1, 2, 2)).reshape(-1, 4)
