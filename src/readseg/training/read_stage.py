"""Stage 2: the language model learns to answer, the map to light up, and the mask decoder what [SEG] means.

The vision tower and the mask model's encoders are frozen: what they say of an image is cached. The questions on an
image are packed behind its tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from readseg.config import ReadConfig, tiny_config
from readseg.conversation import Turn
from readseg.data.sample import Sample
from readseg.data.scenes.compose import make_scene, render
from readseg.data.scenes.questions import ask, from_scene
from readseg.families import BOS, EOS, IMAGE, PAD, SEG
from readseg.model import ReadModel
from readseg.processor import ReadProcessor, build_tiny_tokenizer
from readseg.training.cache import cached, digest
from readseg.training.config import ReadStageConfig, TrainConfig
from readseg.training.initialise import initialise
from readseg.training.packing import pack
from readseg.training.stages import cell_coverage

VOCABULARY_SCENES = 150
"""Scenes whose questions and answers the tokenizer is learned from."""


def blank_processor(recipe: TrainConfig) -> ReadProcessor:
    """A processor whose tokenizer is learned from the training questions; a function of the recipe alone."""
    texts: list[str] = []
    rng = np.random.default_rng([recipe.seed, 11])
    for seed in range(2_000_000, 2_000_000 + VOCABULARY_SCENES):
        scene = make_scene(seed)
        drawn = render(scene)
        for question in ask(scene, drawn.areas, drawn.boxes, rng, count=16):
            texts += [question.question, question.answer]
    tokenizer = build_tiny_tokenizer(texts, recipe.vocabulary)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in (IMAGE, SEG, BOS, EOS, PAD)}
    config = tiny_config(
        vocab_size=len(tokenizer),
        image_token_id=ids[IMAGE],
        seg_token_id=ids[SEG],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    return ReadProcessor(tokenizer, config)


class ReadStage(nn.Module):
    """Trains projector, language model, [SEG] projection and mask decoder; the rest stays as stages 0 and 1 left it.

    Args:
        processor: tokenizer and config.
        options: the stage's part of the recipe.
        seed: of the initial weights and of the questions.
        sam: weights of the mask model, from stage 0.
        tower: weights of the vision tower, from stage 1.
        cache: folder for the frozen encoders' features.
    """

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
        self.frozen = (self.model.lmm.model.vision_tower, self.model.sam)
        for module in self.frozen:
            module.requires_grad_(False)
        self.model.sam.mask_decoder.requires_grad_(True)
        self.processor, self.options, self.seed, self.cache = processor, options, seed, cache
        encoders = (self.model.lmm.model.vision_tower, self.model.sam.vision_encoder)
        self.key = digest(encoders)

    def learning_rates(self) -> dict[str, float]:
        """The mask decoder knows its work already."""
        return {"model.sam.": self.options.mask_decoder_rate}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        """Images of one cached group, with questions drawn anew for this step."""
        per_group = self.options.images_per_step
        groups = max(1, self.options.images // per_group)
        place = step * world + rank
        epoch, within = divmod(place, groups)
        group = int(np.random.default_rng([self.seed, epoch, 5]).permutation(groups)[within])
        first = self.options.first_seed + group * per_group
        rng = np.random.default_rng([self.seed, place, 6])
        samples = [self._sample(seed, rng) for seed in range(first, first + per_group)]
        images = [Image.fromarray(np.asarray(sample.image)) for sample in samples]
        features = cached(self.cache, f"{self.key}-{first}-{per_group}", lambda: self._encode(images))
        rows = [[self._segment(turns) for turns in self._conversations(sample, rng)] for sample in samples]
        packed = pack(self.processor.prefix_ids(), rows, self.model.config.lmm_config.text_config.pad_token_id)
        masks = [mask for sample in samples for turn in sample.turns for mask in turn.masks]
        grid = round(self.model.config.num_image_tokens**0.5)
        return packed._asdict() | {
            "features": features["features"],
            "embeddings": features["embeddings"],
            "frames": tuple(self.processor.frame(image) for image in images),
            "masks": [torch.from_numpy(mask) for mask in masks],
            "coverage": torch.from_numpy(np.stack([cell_coverage(m[None] == 1, grid)[0] for m in masks])).flatten(1)
            if masks
            else torch.zeros(0, grid * grid),
            "with_masks": step >= self.options.mask_warmup_steps,
        }

    def _sample(self, seed: int, rng: np.random.Generator) -> Sample:
        scene = make_scene(seed)
        drawn = render(scene)
        questions = ask(
            scene,
            drawn.areas,
            drawn.boxes,
            rng,
            count=self.options.questions_per_image,
            kinds=self.options.kinds or None,
            false_premise=self.options.false_premise,
            plain=self.options.plain,
        )
        return from_scene(f"scene-{seed}", drawn, questions)

    @torch.no_grad()
    def _encode(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """The frozen encoders' words: CLIP's patch states (I, N, d) and the mask model's embeddings (I, C, h, w)."""
        device = self.model.device
        pixels = torch.stack([self.processor.lmm_pixels(image) for image in images]).to(device)
        mask_pixels = torch.stack([self.processor.mask_pixels(image) for image in images]).to(device)
        tower = self.model.lmm.model.vision_tower
        return {
            "features": tower(pixel_values=pixels).last_hidden_state[:, 1:],
            "embeddings": self.model.embed_masks_image(mask_pixels),
        }

    def _conversations(self, sample: Sample, rng: np.random.Generator) -> list[list[Turn]]:
        """A sample's questions, most of them alone, some as the next turn of the conversation before them."""
        conversations: list[list[Turn]] = []
        for turn in sample.turns:
            if conversations and rng.random() < self.options.next_turn:
                conversations[-1].append(Turn(turn.question, turn.answer))
            else:
                conversations.append([Turn(turn.question, turn.answer)])
        return conversations

    def _segment(self, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation, as they follow the prefix."""
        ids, labels = self.processor.encode(turns)
        start = len(self.processor.prefix_ids())
        return ids[start:], labels[start:]

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars: the loss of `ReadModel.forward`, its parts, and how often the map's peak lies on the target."""
        projector = self.model.lmm.model.multi_modal_projector
        with_masks = batch["with_masks"]
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            labels=batch["labels"],
            image_features=projector(batch["features"].to(projector.linear_1.weight.dtype)),
            mask_embeddings=batch["embeddings"].float() if with_masks else None,
            frames=batch["frames"],
            masks=batch["masks"] if with_masks else None,
            coverage=batch["coverage"],
        )
        peak = batch["coverage"].gather(1, output.scores.argmax(1, keepdim=True))
        values = {
            "loss": output.loss,
            "text": output.text_loss,
            "map": output.map_loss,
            "hit": (peak > 0.3).float().mean(),
        }
        if with_masks:
            values |= {"bce": output.bce_loss, "dice": output.dice_loss}
        return {name: value if name == "loss" else value.detach() for name, value in values.items()}
