"""The model: a stock LLaVA, a stock SAM, the projection that joins them, and SasP between them.

Speaks tokens, hidden states and logits; points are in image pixels until an `ImageFrame` takes them to the mask model's
input. S counts [SEG] tokens in reading order (row by row), R rows of text, I images, N image tokens, D the width of
the language model, C that of the mask model's prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, LlavaForConditionalGeneration, PreTrainedModel, SamModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from readseg.core import sasp
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, Points
from readseg.core.token_grid import check_choice
from readseg.core.types import IGNORE_INDEX
from readseg.errors import ReadsegError, first_five
from readseg.model import losses
from readseg.model.config import Prompt, ReadConfig
from readseg.model.generation import Generation, Ids, batch_behind
from readseg.model.mask_prompts import full_precision, masks_from_prompts, select_points
from readseg.model.packing import Layout, allow_packing

_LOSSES = ("text_loss", "bce_loss", "dice_loss", "map_loss")


@dataclass
class ReadOutput(ModelOutput):
    """What `ReadModel.forward` gives. Losses are scalars, unweighted but for `loss`.

    loss: the weighted sum of the losses whose targets were given, else None.
    text_loss, bce_loss, dice_loss, map_loss: None where their targets were not given.
    logits: (R, L, vocabulary) with `return_logits`, else None.
    h_seg: (S, D), the states that predict each [SEG];  h_img: (R, N, D), the states of the image tokens.
    scores: (S, N) similarity, float32;  seg_rows, seg_images: (S,) the row and the image of each [SEG].
    points: the `Points` of each [SEG];  low_res_logits: (S, h, w), in the frame of the mask model's square.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    bce_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    map_loss: Tensor | None = None
    logits: Tensor | None = None
    h_seg: Tensor | None = None
    h_img: Tensor | None = None
    scores: Tensor | None = None
    seg_rows: Tensor | None = None
    seg_images: Tensor | None = None
    points: list[Points] | None = None
    low_res_logits: Tensor | None = None


class ReadModel(PreTrainedModel):
    """READ: reasoning segmentation by similarity as points (arXiv 2412.17741).

        hidden = LMM(image, text);  h_seg = hidden before each [SEG];  h_img = hidden at the image tokens
        scores = h_seg . h_img^T -> points -> SAM(points ++ projection(h_seg)) -> mask logits

    lmm: `LlavaForConditionalGeneration`;  sam: `SamModel`;
    seg_projection: Linear(D, D) - ReLU - Linear(D, C);  map_bias: b of the auxiliary loss on the map.
    """

    config_class = ReadConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer", "CLIPVisionModel", "SamModel"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # SAM's random Fourier features turn a rounded value into another place in the image.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["positional_embedding"]

    config: ReadConfig
    lmm: LlavaForConditionalGeneration
    sam: SamModel

    def __init__(self, config: ReadConfig) -> None:
        if config._attn_implementation is None:
            # Without a GPU "eager" is the faster one for the embedded model's 20 x 20 patches; for SAM's 64 x 64 "sdpa"
            # takes half the time and a third of the memory.
            side = config.mask_size // config.mask_config.vision_config.patch_size
            config._attn_implementation = "sdpa" if torch.cuda.is_available() or side > 32 else "eager"
        super().__init__(config)
        self.lmm = LlavaForConditionalGeneration(config.lmm_config)
        self.sam = SamModel(config.mask_config)
        width = config.lmm_config.text_config.hidden_size
        if config.projector == "linear":
            vision_width = config.lmm_config.vision_config.hidden_size
            self.lmm.model.multi_modal_projector = nn.Linear(vision_width, width)
        prompt_width = config.mask_config.prompt_encoder_config.hidden_size
        self.seg_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))
        self.map_bias = nn.Parameter(torch.zeros(()))
        self.post_init()

    # -- images, once for all questions ------------------------------------------------------------------------

    def encode_image(self, pixel_values: Float[Tensor, "I 3 s s"]) -> Float[Tensor, "I N D"]:
        """Image tokens for the language model: pixels (I, 3, s, s) -> projected features (I, N, D)."""
        return self.project(self.encode_patches(pixel_values))

    def encode_patches(self, pixel_values: Float[Tensor, "I 3 s s"]) -> Float[Tensor, "I N d"]:
        """The vision tower's patch states, of the layer that the configuration names: (I, 3, s, s) -> (I, N, d)."""
        tower, layer = self.lmm.model.vision_tower, self.config.lmm_config.vision_feature_layer
        states = tower(pixel_values=pixel_values.to(tower.dtype), output_hidden_states=True).hidden_states
        return states[layer][:, 1:]

    def project(self, features: Float[Tensor, "I N d"]) -> Float[Tensor, "I N D"]:
        """Patch states as the language model takes them: (I, N, d) -> (I, N, D)."""
        projector = self.lmm.model.multi_modal_projector
        return projector(features.to(next(projector.parameters()).dtype))

    def embed_masks_image(self, mask_pixel_values: Float[Tensor, "I 3 S S"]) -> Float[Tensor, "I C h w"]:
        """The mask model's view of images: pixels (I, 3, S, S) -> embeddings (I, C, h, w)."""
        return self.sam.vision_encoder(mask_pixel_values.to(self.sam.vision_encoder.dtype)).last_hidden_state

    # -- the algorithm -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Int[Tensor, "R L"],
        attention_mask: Shaped[Tensor, "R L"] | None = None,
        position_ids: Int[Tensor, "_ L"] | None = None,
        pixel_values: Float[Tensor, "I 3 s s"] | None = None,
        image_features: Float[Tensor, "I N D"] | None = None,
        mask_pixel_values: Float[Tensor, "I 3 S S"] | None = None,
        mask_embeddings: Float[Tensor, "I C h w"] | None = None,
        frames: Sequence[ImageFrame] | None = None,
        row_images: Int[Tensor, " R"] | None = None,
        labels: Int[Tensor, "R L"] | None = None,
        masks: Sequence[Shaped[Tensor, "_ _"]] | None = None,
        coverage: Float[Tensor, "segs N"] | None = None,
        points: PointConfig | None = None,
        prompt: Prompt | None = None,
        layout: Layout | None = None,
        return_logits: bool = False,
    ) -> ReadOutput:
        """Teacher forcing: the whole text is given, the masks of all its [SEG] come out, and the losses.

            loss = w_text * CE + w_bce * BCE + w_dice * DICE + w_map * BCE(scores / sqrt(D) + b, coverage)

        Args:
            input_ids: (R, L), each row with N image tokens. A row may hold several questions packed behind one
                image, kept apart by `layout` and `position_ids`.
            attention_mask: (R, L), 1 where there is text, padding on either side. Default: no padding.
            position_ids: (R, L). Default: counted along the text, padding left out.
            pixel_values: (I, 3, s, s); not needed with `image_features`.
            image_features: (I, N, D), as `encode_image` gives.
            mask_pixel_values: (I, 3, S, S); not needed with `mask_embeddings`; without both no masks are made.
            mask_embeddings: (I, C, h, w), as `embed_masks_image` gives.
            frames: the I images' frames; needed for masks.
            row_images: (R,) the image of each row. Default: one row for each image.
            labels: (R, L), the ids to learn, -100 elsewhere (not shifted).
            masks: S targets, each (H, W) in the size of its image: 1, 0, or 255 for pixels that do not count. A family
                with [REJ] has a target for each of those too, in reading order; its logits are 0 there, as trained.
            coverage: (S, N) in [0, 1], the share of each image token's cell that the target covers.
            points: replace the configured ones.
            prompt: replaces the configured one.
            layout: where the questions lie that `packing.pack` packed; `attention_mask` is then not looked at.
            return_logits: text logits at all positions; they are else computed only where there is a label.

        Raises:
            ReadsegError: an input is missing, or the number of image tokens or masks does not fit.
        """
        if image_features is None:
            if pixel_values is None:
                raise ReadsegError("forward needs pixel_values or image_features.")
            image_features = self.encode_image(pixel_values)
        if row_images is None:
            row_images = torch.arange(len(input_ids), device=input_ids.device)
        assert len(row_images) == len(input_ids), "row_images must give an image for each row"
        if layout is not None:
            allow_packing(self.lmm.model.language_model)
        hidden = self._hidden_states(input_ids, attention_mask, position_ids, image_features[row_images], layout=layout)
        h_img = hidden[self._is_image(input_ids)].unflatten(0, (len(input_ids), -1))
        # In reading order, the states that predict each [SEG]. Nothing predicts a first token: it is not counted.
        seg_rows, seg_columns = (input_ids[:, 1:] == self.config.seg_token_id).nonzero(as_tuple=True)
        h_seg = hidden[seg_rows, seg_columns]
        seg_images = row_images[seg_rows]
        scores = self.similarity(h_seg, h_img[seg_rows])
        output = ReadOutput(h_seg=h_seg, h_img=h_img, scores=scores, seg_rows=seg_rows, seg_images=seg_images)

        if mask_embeddings is None and mask_pixel_values is not None:
            mask_embeddings = self.embed_masks_image(mask_pixel_values)
        if mask_embeddings is not None:
            if frames is None:
                raise ReadsegError("masks need the frames of their images: pass frames.")
            output.points, output.low_res_logits = self.decode_masks(
                h_seg, scores, seg_images, mask_embeddings, frames, points=points, prompt=prompt
            )

        if return_logits:
            output.logits = self.lmm.lm_head(hidden)
        if labels is not None:
            # The output layer sees only the states that predict a labelled token.
            learned = labels[:, 1:] != IGNORE_INDEX
            logits = self.lmm.lm_head(hidden[:, :-1][learned]).float()
            total = F.cross_entropy(logits, labels[:, 1:][learned], reduction="sum")
            output.text_loss = total / learned.sum().clamp(min=1)
        if masks is not None:
            output.bce_loss, output.dice_loss = self._mask_losses(output, input_ids, row_images, frames, masks)
        if coverage is not None:
            with full_precision(self.device):
                output.map_loss = losses.map_loss(scores, coverage, self.map_bias, width=h_seg.shape[-1])
        given = {name: getattr(output, name) for name in _LOSSES if getattr(output, name) is not None}
        terms = [getattr(self.config, f"{name}_weight") * loss for name, loss in given.items()]
        output.loss = sum(terms[1:], start=terms[0]) if terms else None
        return output

    def similarity(
        self, h_seg: Float[Tensor, "S D"], h_img: Float[Tensor, "N D"] | Float[Tensor, "S N D"]
    ) -> Float[Tensor, "S N"]:
        """Similarity h_seg . h_img^T: (S, D) with (N, D) or (S, N, D) -> (S, N), in float32 also under autocast."""
        with full_precision(h_seg.device):
            return sasp.similarity(h_seg.float(), h_img.float())

    def decode_masks(
        self,
        h_seg: Float[Tensor, "S D"],
        scores: Float[Tensor, "S N"],
        seg_images: Int[Tensor, " S"],
        mask_embeddings: Float[Tensor, "I C h w"],
        frames: Sequence[ImageFrame],
        points: PointConfig | None = None,
        prompt: Prompt | None = None,
    ) -> tuple[list[Points], Float[Tensor, "S 4*h 4*w"]]:
        """From the states of S [SEG] tokens to their points and masks, with the configured or the given settings.

        `seg_images` are indices into `mask_embeddings` and `frames`; logits are as of `masks_from_prompts`. An unknown
        prompt, or points that do not fit the model, are a ValueError.
        """
        prompt, points = prompt or self.config.prompt, points or self.config.points
        check_choice("prompt", prompt, Prompt)
        self.config.check_points(points)
        images = seg_images.tolist()
        # The parts of a model that is spread over devices meet where the mask model is.
        h_seg, scores = h_seg.to(mask_embeddings.device), scores.to(mask_embeddings.device)
        if prompt == "seg":
            chosen = [Points(scores.new_zeros(0, 2), seg_images.new_zeros(0)) for _ in images]
        else:
            chosen = select_points(scores, images, frames, points)
        tokens = None if prompt == "points" else self.seg_projection(h_seg)
        return chosen, masks_from_prompts(self.sam, chosen, tokens, images, mask_embeddings, frames)

    # -- generation: the prefix once, the questions as one batch --------------------------------------------------

    @torch.no_grad()
    def prefill(
        self, prefix_ids: Ids, image_features: Float[Tensor, "1 N D"]
    ) -> tuple[DynamicCache, Float[Tensor, "N D"]]:
        """Runs what no question changes, text and image features: keys and values of the prefix, and h_img (N, D)."""
        ids = torch.tensor([list(prefix_ids)], device=self.device)
        cache = DynamicCache()
        hidden = self._hidden_states(ids, None, None, image_features, cache=cache)
        return cache, hidden[self._is_image(ids)]

    @torch.no_grad()
    def generate_answers(
        self, prefix_ids: Ids, cache: DynamicCache, queries: Sequence[Ids], max_new_tokens: int = 64
    ) -> list[Generation]:
        """Greedy answers to Q questions, the ids behind the prefix, decoded as one batch; `cache` stays as it was."""
        if not queries:
            return []
        ids, mask, positions, grown = batch_behind(self.lmm, prefix_ids, cache, queries, max_new_tokens)
        open_rows = torch.ones(len(queries), dtype=torch.bool, device=self.device)
        end = torch.tensor(self.lmm.config.text_config.eos_token_id, device=self.device)
        new_ids, states = [], []
        for _ in range(max_new_tokens):
            hidden = self._hidden_states(ids, mask, positions, cache=grown)[:, -1]
            ids = self.lmm.lm_head(hidden).argmax(-1, keepdim=True).to(self.device)
            new_ids.append(ids)
            states.append(hidden)
            open_rows &= ~torch.isin(ids[:, 0], end)
            if not open_rows.any():
                break
            mask, positions = F.pad(mask, (0, 1), value=1), positions[:, -1:] + 1
        generations = []
        for row, row_states in zip(torch.cat(new_ids, 1), torch.stack(states, 1), strict=True):
            is_end = torch.isin(row, end)
            finished = bool(is_end.any())
            answer = row[: int(is_end.int().argmax()) if finished else len(row)].tolist()
            generations.append(Generation(answer, row_states[: len(answer)], finished, answer))
        return generations

    @torch.no_grad()
    def force_answers(
        self, prefix_ids: Ids, cache: DynamicCache, queries: Sequence[Ids], answers: Sequence[Ids]
    ) -> list[Generation]:
        """Teacher forcing: the states of the answers' ids, and what the model itself would have said."""
        if not queries:
            return []
        texts = [[*query, *answer] for query, answer in zip(queries, answers, strict=True)]
        ids, mask, positions, grown = batch_behind(self.lmm, prefix_ids, cache, texts, 0)
        hidden = self._hidden_states(ids, mask, positions, cache=grown)
        generations = []
        for row, answer in enumerate(answers):
            states = hidden[row, hidden.shape[1] - len(answer) - 1 : -1]
            predicted = self.lmm.lm_head(states).argmax(-1).tolist()
            generations.append(Generation(list(answer), states, True, predicted))
        return generations

    # -- pieces of forward -----------------------------------------------------------------------------------------

    def _hidden_states(
        self,
        input_ids: Int[Tensor, "R L"],
        attention_mask: Shaped[Tensor, "R L"] | None,
        position_ids: Int[Tensor, "_ L"] | None,
        image_features: Float[Tensor, "R N D"] | None = None,
        cache: Cache | None = None,
        layout: Layout | None = None,
    ) -> Float[Tensor, "R L D"]:
        """Last hidden states, after the final norm, with the image features at the image's places."""
        embed = self.lmm.get_input_embeddings()
        if image_features is None:
            embeddings = embed(input_ids)
        else:
            is_image = self._is_image(input_ids)
            embeddings = embed(input_ids.masked_fill(is_image, 0))
            embeddings = embeddings.masked_scatter(is_image[..., None], image_features.to(embeddings.dtype))
        if attention_mask is not None and position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.lmm.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **({} if layout is None else {"layout": layout}),
        ).last_hidden_state

    def _is_image(self, input_ids: Int[Tensor, "R L"]) -> Bool[Tensor, "R L"]:
        """True at the N image tokens that every row must have."""
        is_image = input_ids == self.config.image_token_id
        expected = self.config.num_image_tokens
        for row, count in enumerate(is_image.sum(-1).tolist()):
            if count != expected:
                raise ReadsegError(f"row {row} of input_ids has {count} image tokens, expected {expected}.")
        return is_image

    def _mask_losses(
        self,
        output: ReadOutput,
        input_ids: Int[Tensor, "R L"],
        row_images: Int[Tensor, " R"],
        frames: Sequence[ImageFrame] | None,
        masks: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        low_res = output.low_res_logits
        if low_res is None or frames is None:
            raise ReadsegError("mask losses need mask_pixel_values or mask_embeddings, and frames.")
        rej_id = -1 if self.config.rej_token_id is None else self.config.rej_token_id
        later_ids = input_ids[:, 1:]
        rows, columns = ((later_ids == self.config.seg_token_id) | (later_ids == rej_id)).nonzero(as_tuple=True)
        tokens = later_ids[rows, columns].tolist()
        if len(masks) != len(tokens):
            raise ReadsegError(f"{len(masks)} masks for {len(tokens)} [SEG] (or [REJ]) tokens; give one for each.")
        with full_precision(self.device):
            of_segs = iter(low_res)
            logits = [
                low_res.new_zeros(frames[image].hw)
                if token == rej_id
                else frames[image].masks_to_image(next(of_segs)[None])[0]
                for token, image in zip(tokens, row_images[rows].tolist(), strict=True)
            ]
            bce, dice = losses.mask_losses(logits, [mask.to(low_res.device) for mask in masks])
            # Distributed training waits for the gradient of every trained weight of the mask branch, also in a batch
            # without a mask: 0, with all of them in its graph.
            zero = torch.zeros((), device=self.device)
            if torch.is_grad_enabled():
                for weight in (*self.seg_projection.parameters(), *self.sam.parameters(), self.map_bias):
                    if weight.requires_grad:
                        zero = zero + weight.flatten()[:0].float().sum()
        return bce + zero, dice + zero

    # -- files and precision -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' own, but weights that are missing, unexpected, misshapen or infinite are a ReadsegError."""
        # transformers' own error of this kind names no key: let it pass, and name them here.
        kwargs["ignore_mismatched_sizes"] = True
        source = pretrained_model_name_or_path or "state_dict"
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of a wrong shape"}
        wrong = [f"{kind}: {first_five(map(str, info[key]))}" for key, kind in kinds.items() if info[key]]
        if wrong:
            raise ReadsegError(
                f"{source}: these weights are not those of the model that its config describes; {'; '.join(wrong)}."
            )
        if broken := [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]:
            raise ReadsegError(f"{source}: weights that are no numbers: {first_five(broken)}.")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As transformers' own, under the names that the modules have here (so that nothing is renamed on load)."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts; rotary frequencies and SAM's Fourier features, which a lower type spoils, stay float32."""
        kept = []
        for module in self.modules():
            for name in ("inv_freq", "original_inv_freq", "positional_embedding"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                    kept.append((module, name, tensor.detach()))
        super()._apply(fn, recurse)
        for owner, name, before in kept:
            after = getattr(owner, name)
            if after.dtype != before.dtype:
                after.data = before.to(device=after.device)
        return self


AutoModel.register(ReadConfig, ReadModel, exist_ok=True)
