"""How a model that has no pre-trained parts begins.

The stock classes draw every layer with a fixed small deviation, made for fine-tuning; from nothing they hardly learn.
Here every layer keeps the variance of its input, and SAM's cross-attention begins by looking where a point lies.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import SamModel


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
