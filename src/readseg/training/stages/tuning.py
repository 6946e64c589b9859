"""What of a model is trained: LoRA on the language model's attention, and some parts whole; the rest stays frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from readseg.checkpoints.load import quiet_libraries
from readseg.errors import ReadsegError
from readseg.model.modeling import ReadModel
from readseg.training.config import FinetuningStageConfig, Trained

if TYPE_CHECKING:
    from peft import LoraConfig

PARTS: dict[Trained, str] = {
    "lm_head": "lmm.lm_head",
    "embed_tokens": "lmm.model.language_model.embed_tokens",
    "mask_decoder": "sam.mask_decoder",
    "seg_projection": "seg_projection",
    "projector": "lmm.model.multi_modal_projector",
}
"""Where the parts are in `ReadModel`."""


def tune(model: ReadModel, options: FinetuningStageConfig, *, seed: int = 0) -> LoraConfig | None:
    """Freezes a model, puts LoRA layers into it and thaws what is trained whole; those weights become float32.

    Args:
        model: changed in place; may be on the device "meta".
        options: of the stage.
        seed: of the LoRA weights A; B begins at 0.

    Returns:
        The settings of LoRA, None without it.

    Raises:
        ReadsegError: the language model has no layer of the name of a target.
    """
    model.requires_grad_(False)
    settings = None
    if options.lora_rank:
        language = model.lmm.model.language_model
        known = {name.rpartition(".")[2] for name, layer in language.named_modules() if isinstance(layer, nn.Linear)}
        if unknown := sorted(set(options.lora_targets) - known):
            raise ReadsegError(
                f"lora_targets: the language model has no layer {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        with quiet_libraries():  # peft speaks of libraries that nobody asked for
            from peft import LoraConfig, inject_adapter_in_model
        settings = LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=rf"lmm\.model\.language_model\..*\.({'|'.join(sorted(options.lora_targets))})",
            bias="none",
        )
        on_meta = model.device.type == "meta"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, model, low_cpu_mem_usage=on_meta)
    for part in options.trained:
        model.get_submodule(PARTS[part]).requires_grad_(True)
    if options.map_loss_weight:
        model.map_bias.requires_grad_(True)
    else:  # a parameter without an axis cannot be sharded over GPUs
        bias = model.map_bias.detach()
        del model.map_bias
        model.register_buffer("map_bias", bias)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return settings
