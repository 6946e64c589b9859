"""Stage 2: the language model learns to answer, the map to localise, and the mask decoder what [SEG] means.

The vision tower and the mask model's encoders are frozen: their outputs are cached. The questions on an image are
packed behind its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from readseg.checkpoints.load import digest
from readseg.core.token_grid import cell_coverage
from readseg.data.types import Sample
from readseg.model import losses
from readseg.model.config import ReadConfig, tiny_config
from readseg.model.families import BOS, EOS, IMAGE, PAD, SEG
from readseg.model.mask_prompts import full_precision
from readseg.model.modeling import ReadModel
from readseg.model.packing import pack
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import ASSISTANT
from readseg.model.tokenizer import build_tiny_tokenizer
from readseg.scenes.questions import ask, make_sample
from readseg.scenes.render import RenderedScene, Scene, make_scene, render
from readseg.training.config import ReadStageConfig, TrainConfig
from readseg.training.feature_cache import FeatureCache
from readseg.training.stages.pretraining import TOKEN_ATTRIBUTES, cell_labels, initialise

VOCABULARY_SCENES = 150  # whose questions and answers the tokenizer is learned from


def build_processor(recipe: TrainConfig) -> ReadProcessor:
    """A processor whose tokenizer is learned from the training questions; a function of the recipe alone."""
    texts: list[str] = []
    rng = np.random.default_rng([recipe.seed, 11])
    wordings = next((stage.new_wordings for stage in recipe.stages if isinstance(stage, ReadStageConfig)), 0.0)
    for seed in range(2_000_000, 2_000_000 + VOCABULARY_SCENES):
        scene = make_scene(seed)
        drawn = render(scene)
        for question in ask(scene, drawn.areas, drawn.boxes, rng, count=16, extra_template_rate=wordings):
            # The words before each answer are in every sequence: whole tokens make these a third shorter.
            texts += [question.question, ASSISTANT.strip(), question.answer]
    tokenizer = build_tiny_tokenizer(texts, recipe.vocabulary)
    tokens = {"image": IMAGE, "seg": SEG, "bos": BOS, "eos": EOS, "pad": PAD}
    ids = {f"{name}_token_id": int(tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}
    return ReadProcessor(tokenizer, tiny_config(vocab_size=len(tokenizer), **ids))


@dataclass(frozen=True)
class SceneBatch:
    """The images of one step and the questions on them."""

    first_seed: int  # of the first scene; those of the others follow it
    scenes: list[Scene]
    rendered: list[RenderedScene]
    samples: list[Sample]  # their turns are the questions
    rng: np.random.Generator  # of what is left to chance

    def cell_labels(self, side: int) -> dict[str, Tensor]:
        """What the cells of all images show, see `cell_labels`: (I, N), and boxes (I, N, 4)."""
        return default_collate([cell_labels(*pair, side) for pair in zip(self.scenes, self.rendered, strict=True)])


def sample_scene_batch(options: ReadStageConfig, seed: int, step: int, rank: int = 0, world: int = 1) -> SceneBatch:
    """Scenes and questions of a step, a pure function of the arguments: what any model learns from on equal terms."""
    per_group = options.images_per_step
    groups = max(1, options.images // per_group)
    number = step * world + rank
    epoch, index = divmod(number, groups)
    group = int(np.random.default_rng([seed, epoch, 5]).permutation(groups)[index])
    first = options.first_seed + group * per_group
    rng = np.random.default_rng([seed, number, 6])
    scenes = [make_scene(scene_seed, tinted=options.tinted) for scene_seed in range(first, first + per_group)]
    rendered = [render(scene) for scene in scenes]
    rates: dict[str, Any] = {
        "count": options.questions_per_image,
        "kinds": options.kinds or None,
        "false_premise_rate": options.false_premise,
        "text_only_rate": options.plain,
        "extra_template_rate": options.new_wordings,
        "unknown_noun_rate": options.strange,
    }
    samples = [
        make_sample(f"scene-{scene.seed}", picture, ask(scene, picture.areas, picture.boxes, rng, **rates))
        for scene, picture in zip(scenes, rendered, strict=True)
    ]
    return SceneBatch(first, scenes, rendered, samples, rng)


class ReadStage(nn.Module):
    """Trains projector, language model, [SEG] projection and mask decoder; the rest stays as stages 0 and 1 left it."""

    uses_all = False

    def __init__(
        self,
        processor: ReadProcessor,
        options: ReadStageConfig,
        seed: int,
        sam: dict[str, Tensor],
        tower: dict[str, Tensor],
        cache: Path,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = ReadConfig.from_dict(processor.config.to_dict())
        config.prompt = options.prompt
        config.map_loss_weight = options.map_loss_weight
        self.model = ReadModel(config)
        initialise(self.model.lmm)
        initialise(self.model.seg_projection)
        self.model.lmm.model.vision_tower.load_state_dict(tower)
        self.model.sam.load_state_dict(sam)
        width = config.lmm_config.text_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in TOKEN_ATTRIBUTES.items()})
        self.frozen = (self.model.lmm.model.vision_tower, self.model.sam)
        for module in self.frozen:
            module.requires_grad_(False)
        self.model.sam.mask_decoder.requires_grad_(True)
        self.processor, self.options, self.seed, self.cache = processor, options, seed, FeatureCache(cache)
        self.rate_factors: Mapping[str, float] = {"model.sam.": options.mask_decoder_rate}  # trained already
        self.prefix = processor.prefix_ids()
        self.key = digest((self.model.lmm.model.vision_tower, self.model.sam.vision_encoder))

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        """Images of one cached group, with questions drawn anew for this step."""
        sampled, options = sample_scene_batch(self.options, self.seed, step, rank, world), self.options
        rng, images = sampled.rng, [Image.fromarray(np.asarray(sample.image)) for sample in sampled.samples]
        precision = "bf16" if options.use_bf16() else "fp32"
        key = f"{self.key}-{precision}-{options.tinted}-{sampled.first_seed}-{options.images_per_step}"
        features = self.cache.get_or_compute(key, lambda: self._encode(images))
        # All of a step are alike: one long conversation would pad the questions of all images to its length.
        turns_each = 2 if rng.random() < options.next_turn else 1
        rows, turns = [], []
        for sample in sampled.samples:
            starts = range(0, len(sample.turns), turns_each)
            conversations = [sample.turns[k : k + turns_each] for k in starts]
            encoded = [(*self.processor.encode(conversation), conversation) for conversation in conversations]
            # The longest first: `pack` gives the k-th questions of all rows the same room.
            encoded.sort(key=lambda each: -len(each[0]))
            rows.append([(ids[len(self.prefix) :], labels[len(self.prefix) :]) for ids, labels, _ in encoded])
            turns += [turn for _, _, conversation in encoded for turn in conversation]
        masks = [mask for turn in turns for mask in turn.masks]
        grid = round(self.model.config.num_image_tokens**0.5)
        cells = [cell_coverage(mask[None] == 1, grid).reshape(1, -1) for mask in masks]
        decoded = rng.permutation(len(masks))[: options.masks_per_step or len(masks)]
        if step < options.mask_warmup_steps:
            decoded = decoded[:0]
        return pack(self.prefix, rows, self.model.config.lmm_config.text_config.pad_token_id)._asdict() | {
            **features,
            "frames": tuple(self.processor.frame(image) for image in images),
            "masks": [torch.from_numpy(mask) for mask in masks],
            "coverage": torch.from_numpy(np.concatenate([np.zeros((0, grid * grid), np.float32), *cells])),
            "decoded": torch.from_numpy(np.sort(decoded)),
            "attributes": sampled.cell_labels(grid),
        }

    @torch.no_grad()
    def _encode(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """The frozen encoders' outputs: CLIP's patch states (I, N, d) and the mask model's embeddings (I, C, h, w)."""
        device = self.model.device
        pixels = torch.stack([self.processor.lmm_pixels(image) for image in images]).to(device)
        mask_pixels = torch.stack([self.processor.mask_pixels(image) for image in images]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.use_bf16()):
            return {
                "features": self.model.encode_patches(pixels),
                "embeddings": self.model.embed_masks_image(mask_pixels),
            }

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars: the loss, its parts, and how often the map's peak lies on the target.

        loss = that of `ReadModel.forward` + w_sight * mean over heads of CE(head(h_img), what the token's cell shows)
        """
        weights = self.model.config
        output = self.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            labels=batch["labels"],
            layout=batch["layout"],
            image_features=self.model.project(batch["features"]),
            coverage=batch["coverage"],
        )
        peak = batch["coverage"].gather(1, output.scores.argmax(1, keepdim=True))
        values = {"text": output.text_loss, "map": output.map_loss, "hit": (peak > 0.3).float().mean()}
        loss = output.loss
        if len(chosen := batch["decoded"]):
            h_seg, scores, images = output.h_seg[chosen], output.scores[chosen], output.seg_images[chosen]
            frames, embeddings = batch["frames"], batch["embeddings"].float()
            _, low_res = self.model.decode_masks(h_seg, scores, images, embeddings, frames)
            with full_precision(low_res.device):
                pairs = zip(low_res, images.tolist(), strict=True)
                logits = [frames[i].masks_to_image(low[None])[0] for low, i in pairs]
                mask_losses = losses.mask_losses(logits, [batch["masks"][k] for k in chosen.tolist()])
            loss = loss + weights.bce_loss_weight * mask_losses.bce + weights.dice_loss_weight * mask_losses.dice
            values |= mask_losses._asdict()
        if self.options.sight_loss_weight:
            parts = [
                F.cross_entropy(head(output.h_img).flatten(0, 1).float(), batch["attributes"][name].flatten())
                for name, head in self.heads.items()
            ]
            values["sight"] = torch.stack(parts).mean()
            loss = loss + self.options.sight_loss_weight * values["sight"]
        return {"loss": loss} | {name: value.detach() for name, value in values.items()}
