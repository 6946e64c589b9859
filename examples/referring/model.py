"""A referring segmentation model without a language model, with READ's points ("SasP anywhere", appendix E).

A question and an image meet in a transformer whose first token plays the part of [SEG]:

    words   -> BertModel                                                   text states
    image   -> ResNetBackbone -> 1x1 projection + place -> BertModel       h_img (N, D), one token for each cell
    [SEG] ++ text states, cross-attending h_img -> BertModel               h_seg (D), its first output
    s = h_seg . h_img^T -> Similarity as Points -> points (x, y, label)

then either of two heads makes the mask:

    sam       the points and the projected h_seg prompt SAM, as in READ
    features  CNN features, interpolated at the points, refine h_seg into the weights of a 1x1 convolution over a
              stride-4 map of CNN features; no SAM

and a linear layer on h_seg says whether what is asked for is there. Transformers, CNN and SAM are stock classes
of transformers. What the image says is computed once for all questions on it: h_img does not depend on the question.

Frames: points are in pixels of the image until an `ImageFrame` takes them to SAM's square; the CNN sees the whole
image, stretched to a square. Q questions, I images, N image tokens, D width, C channels of the stride-4 map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    ResNetBackbone,
    ResNetConfig,
    SamConfig,
    SamModel,
)

from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points
from readseg.model.mask_prompts import full_precision, masks_from_prompts, select_points
from readseg.model.prompt_format import writable

NO_ATTENTION = -1e9
"""Added to attention between tokens that must not see each other."""
GROUPS = 8
"""Of the group norms of the fine map."""
FEWEST_CHANNELS = 16
"""With fewer, strided 1x1 convolutions of torch write beyond their memory (oneDNN's issue 6035; float32, AVX-512)."""


@dataclass(frozen=True)
class ReferringConfig:
    """Sizes of the model.

    vocabulary: tokens that the tokenizer has.
    image_size: side in pixels of the square that the CNN sees; one token for each 16 x 16 of them.
    stem, channels, depths: of the ResNet: channels behind its stem, then of its stages at stride 4, 8 and 16 (at least
        `FEWEST_CHANNELS`), and their blocks.
    width, heads, inner: D, attention heads and the inner width of all transformers.
    text_layers, image_layers, fusion_layers: of the three transformers.
    longest: the most tokens of a question; what is longer is cut.
    mask_channels: C of the stride-4 map of the head "features".

    Raises ValueError where a value makes no sense.
    """

    vocabulary: int
    image_size: int = 224
    stem: int = 32
    channels: tuple[int, int, int] = (48, 96, 160)
    depths: tuple[int, int, int] = (1, 2, 2)
    width: int = 192
    heads: int = 6
    inner: int = 512
    text_layers: int = 2
    image_layers: int = 2
    fusion_layers: int = 4
    longest: int = 63
    mask_channels: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, stages = getattr(self, field.name), field.name in ("channels", "depths")
            numbers = value if stages and isinstance(value, tuple) else (value,)
            if len(numbers) != (3 if stages else 1) or any(type(number) is not int or number < 1 for number in numbers):
                wanted = "three numbers from 1 on, one for each stage" if stages else "a number from 1 on"
                raise ValueError(f"{field.name}: expected {wanted}, got {value!r:.60}")
        if min(self.channels) < FEWEST_CHANNELS:
            raise ValueError(f"channels: expected at least {FEWEST_CHANNELS} in each stage, got {self.channels}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if self.mask_channels % GROUPS or self.image_size % 16:
            raise ValueError(
                f"mask_channels must be a multiple of {GROUPS} and image_size of 16, got {self.mask_channels} and "
                f"{self.image_size}"
            )

    @property
    def grid(self) -> int:
        """Side of the grid of image tokens."""
        return self.image_size // 16

    def to_dict(self) -> dict[str, Any]:
        """The values as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReferringConfig:
        """Raises TypeError for a name that is not a setting, ValueError for a value that makes no sense."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)


def build_cnn(config: ReferringConfig) -> ResNetBackbone:
    """A ResNet without its last stage: maps at stride 4, 8 and 16."""
    return ResNetBackbone(
        ResNetConfig(
            embedding_size=config.stem,
            hidden_sizes=list(config.channels),
            depths=list(config.depths),
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3"],
        )
    ).to(memory_format=torch.channels_last)


def question_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids of a question's words, without special tokens; what looks like one in a question is text."""
    text = writable(question.strip())
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


class Packed(NamedTuple):
    """Questions on I images, one row of L tokens for each image: [SEG] and the words of one question after the other.

    input_ids, positions, owners: (I, L); a token's place within its question, and the number of its question (-1: none,
        padding). places: (Q,) where each question's [SEG] is in its row; images: (Q,) which row that is.
    """

    input_ids: Tensor
    positions: Tensor
    owners: Tensor
    places: Tensor
    images: Tensor


def pack_questions(rows: Sequence[Sequence[Sequence[int]]], seg_token_id: int, longest: int) -> Packed:
    """Ids of questions, by image, as one batch; a question keeps its first ``longest`` ids.

    Questions are numbered image by image. An image may have none.
    """
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    owners: list[Tensor] = []
    places: list[int] = []
    images: list[int] = []
    for image, row in enumerate(rows):
        sequences = [[seg_token_id, *list(question)[:longest]] for question in row] or [[]]
        ids.append(torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long))
        positions.append(torch.tensor([k for sequence in sequences for k in range(len(sequence))], dtype=torch.long))
        owned = [[number] * len(sequence) for number, sequence in enumerate(sequences)]
        owners.append(torch.tensor([number for numbers in owned for number in numbers], dtype=torch.long))
        start = 0
        for _, sequence in zip(row, sequences, strict=False):
            places.append(start)
            images.append(image)
            start += len(sequence)
    return Packed(
        pad_sequence(ids, batch_first=True, padding_value=seg_token_id),
        pad_sequence(positions, batch_first=True),
        pad_sequence(owners, batch_first=True, padding_value=-1),
        torch.tensor(places, dtype=torch.long),
        torch.tensor(images, dtype=torch.long),
    )


class Fused(NamedTuple):
    """What the fusion transformer says of Q questions.

    h_seg: (Q, D). scores: (Q, N) float32, similarity with the image tokens. present: (Q,) logit that it is there.
    """

    h_seg: Tensor
    scores: Tensor
    present: Tensor


class FineMap(nn.Module):
    """The stride-4 map of the head "features": CNN maps and image tokens, added from coarse to fine.

        x8 = conv(up(P16 h_img) + P8 c8),    x4 = conv(up(x8) + P4 c4)

    c4 and c8 are the CNN's maps at stride 4 and 8; P are 1x1 convolutions, conv is 3x3 with group norm and ReLU.
    """

    def __init__(self, config: ReferringConfig) -> None:
        super().__init__()
        fine, middle, width = config.mask_channels, config.channels[1], config.width
        self.from4 = nn.Conv2d(config.channels[0], fine, 1)
        self.from8 = nn.Conv2d(middle, fine, 1)
        self.from16 = nn.Conv2d(width, fine, 1)
        self.mix8 = nn.Sequential(nn.Conv2d(fine, fine, 3, padding=1), nn.GroupNorm(GROUPS, fine), nn.ReLU())
        self.mix4 = nn.Sequential(nn.Conv2d(fine, fine, 3, padding=1), nn.GroupNorm(GROUPS, fine), nn.ReLU())
        self.out = nn.Conv2d(fine, fine, 1)

    def forward(self, stride4: Tensor, stride8: Tensor, h_img: Tensor) -> Tensor:
        """(I, c4, 4n, 4n), (I, c8, 2n, 2n), (I, N, D) -> (I, C, 4n, 4n)."""
        side = math.isqrt(h_img.shape[1])
        coarse = self.from16(h_img.transpose(1, 2).unflatten(2, (side, side)))
        middle = self.mix8(_twice(coarse) + self.from8(stride8))
        return self.out(self.mix4(_twice(middle) + self.from4(stride4)))


class Referrer(nn.Module):
    """The model of this file's head.

    Args:
        config: its sizes.
        mask_config: of the SAM that it prompts.
        points: how points are made.
    """

    def __init__(self, config: ReferringConfig, mask_config: SamConfig, points: PointConfig) -> None:
        super().__init__()
        self.config, self.points = config, points
        width, fine = config.width, config.mask_channels
        self.cnn = build_cnn(config)
        self.text = _bert(config, config.text_layers, config.longest + 1, vocabulary=config.vocabulary)
        self.projection = nn.Linear(config.channels[-1], width)
        self.image = _bert(config, config.image_layers, config.grid**2)
        self.fusion = _bert(config, config.fusion_layers, config.longest + 1, is_decoder=True, add_cross_attention=True)
        self.heads = nn.ModuleDict({"present": nn.Linear(width, 1)})
        self.map_bias = nn.Parameter(torch.zeros(()))
        prompt = mask_config.prompt_encoder_config.hidden_size
        self.seg_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt))
        self.fine_map = FineMap(config)
        self.refinement = nn.Sequential(nn.Linear(width + 2 * fine, width), nn.ReLU(), nn.Linear(width, fine))
        self.sam = SamModel._from_config(mask_config, attn_implementation="eager")

    def look(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the CNN says: (I, 3, s, s) -> "stride4", "stride8", "stride16", each (I, channels, side, side)."""
        maps = self.cnn(pixels.contiguous(memory_format=torch.channels_last)).feature_maps
        return dict(zip(("stride4", "stride8", "stride16"), maps, strict=True))

    def image_tokens(self, stride16: Tensor) -> Tensor:
        """h_img: the CNN's last map, projected, with its places, through the image transformer: (I, N, D)."""
        states = self.projection(stride16.flatten(2).transpose(1, 2))
        everywhere = states.new_zeros(len(states), 1, 1, 1, dtype=torch.float32)
        return self.image(inputs_embeds=states, attention_mask=everywhere).last_hidden_state

    def fuse(self, packed: Packed, h_img: Tensor) -> Fused:
        """The questions of a batch, each with its image.

        s = h_seg . h_img^T

        Args:
            packed: of `pack_questions`.
            h_img: (I, N, D) of `image_tokens`.
        """
        together = packed.owners[:, None, :, None] == packed.owners[:, None, None, :]
        mask = torch.zeros(together.shape, device=h_img.device).masked_fill(~together, NO_ATTENTION)
        words = self.text(
            input_ids=packed.input_ids, position_ids=packed.positions, attention_mask=mask
        ).last_hidden_state
        states = self.fusion(
            inputs_embeds=words,
            position_ids=packed.positions,
            attention_mask=mask,
            encoder_hidden_states=h_img,
            use_cache=False,
        ).last_hidden_state
        h_seg = states[packed.images, packed.places]
        with full_precision(h_img.device):
            scores = sasp.similarity(h_seg.float(), h_img.float()[packed.images])
        return Fused(h_seg, scores, self.heads["present"](h_seg)[:, 0].float())

    def find_points(self, scores: Tensor, images: Tensor, frames: Sequence[ImageFrame]) -> list[Points]:
        """Similarity as Points, with gradients (DtoC): those of each of Q questions, in pixels of its image."""
        return select_points(scores, images.tolist(), frames, self.points)

    def sam_masks(
        self, h_seg: Tensor, points: Sequence[Points], images: Tensor, embeddings: Tensor, frames: Sequence[ImageFrame]
    ) -> Tensor:
        """Head "sam": logits (Q, 4h, 4w) in SAM's square, of points ++ projected h_seg.

        Args:
            h_seg: (Q, D).
            points: of each question.
            images: (Q,) index into `embeddings` and `frames`.
            embeddings: (I, E, h, w) of SAM's encoder.
            frames: of the I images.
        """
        return masks_from_prompts(self.sam, points, self.seg_projection(h_seg), images.tolist(), embeddings, frames)

    def feature_masks(
        self,
        fused: Fused,
        points: Sequence[Points],
        images: Tensor,
        fine_map: Tensor,
        frames: Sequence[ImageFrame],
    ) -> Tensor:
        """Head "features": logits (Q, 4n, 4n) on the whole image, stretched to a square. No SAM.

            f+, f- = means of F at the positive and at the negative points
            logits = F . MLP([h_seg, f+, f-]) / sqrt(C) + up(s / sqrt(D) + b)

        F is the fine map, b the bias of the map loss: the mask begins as the similarity map.

        Args:
            fused: of Q questions.
            points: of each of them.
            images: (Q,) index into `fine_map` and `frames`.
            fine_map: (I, C, 4n, 4n) of `FineMap`.
            frames: of the I images.
        """
        size = fine_map.shape[-2:]
        with full_precision(fine_map.device):
            fine = fine_map.float()
            rough = (fused.scores / math.sqrt(self.config.width) + self.map_bias).unflatten(1, (self.config.grid, -1))
            rough = F.interpolate(rough[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            if not len(points):
                return rough
            xy = pad_sequence([one.xy for one in points], batch_first=True)
            labels = pad_sequence([one.labels for one in points], batch_first=True, padding_value=-1)
            sampled = fine.new_zeros(*labels.shape, fine.shape[1])
            for image in images.unique().tolist():
                rows = images == image
                sampled[rows] = sasp.sample_features(fine[image], xy[rows], frames[image].hw)
            pooled = [_mean(sampled, labels == label) for label in (1, 0)]
            seen = torch.cat([fused.h_seg.float(), *pooled], dim=1)
        weights = self.refinement(seen).float()
        with full_precision(fine_map.device):
            products = torch.einsum("qc,qchw->qhw", weights, fine[images])
            return products / math.sqrt(self.config.mask_channels) + rough


def _bert(config: ReferringConfig, layers: int, places: int, *, vocabulary: int = 1, **kind: bool) -> BertModel:
    """A BERT of the model's width; without dropout, because no question is seen twice."""
    settings = BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        num_hidden_layers=layers,
        num_attention_heads=config.heads,
        intermediate_size=config.inner,
        max_position_embeddings=places,
        type_vocab_size=1,
        pad_token_id=None,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **kind,
    )
    return BertModel._from_config(settings, add_pooling_layer=False, attn_implementation="eager")


def _twice(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """(Q, P, C), (Q, P) -> (Q, C), 0 where nothing is chosen."""
    weight = chosen.to(values)[..., None]
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)
