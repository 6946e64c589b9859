"""LoRA weights of a training run, merged into the weights that they change: W' = W + (alpha / r) B A.

Speaks names and tensors of a state dict, before any model is made. Source: LoRA (arXiv 2106.09685), equation 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from readseg.errors import ReadsegError

DEFAULT_ALPHA = 16.0  # of all published recipes of this family
_WRAPPERS = ("module.", "base_model.model.")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.(\w+))?\.weight")
_REPLACED = re.compile(r"(.+)\.modules_to_save\.\w+\.(.+)")


def strip_wrapper_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DistributedDataParallel, DeepSpeed and peft put before every name."""
    plain = dict(state)
    for prefix in (*_WRAPPERS, *_WRAPPERS):
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain


def has_lora(state: Mapping[str, Tensor]) -> bool:
    """Whether some weights are not merged yet."""
    return any(_LORA.fullmatch(name) for name in state)


def merge_lora(state: Mapping[str, Tensor], alpha: float = DEFAULT_ALPHA) -> dict[str, Tensor]:
    """The state dict of the merged model, under the names that it has without peft; other tensors are not copied."""
    if not 0 < alpha < math.inf:
        raise ReadsegError(f"lora_alpha must be a number above 0; got {alpha}.")
    pairs: dict[str, dict[str, Tensor]] = {}
    merged: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := _LORA.fullmatch(name):
            pair = pairs.setdefault(match[1], {})
            if match[2] in pair:
                raise ReadsegError(f"{match[1]} has several LoRA adapters; keep one, or merge them with peft.")
            pair[match[2]] = value
        elif match := _REPLACED.fullmatch(name):
            replaced[f"{match[1]}.{match[2]}"] = value
        else:
            merged[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    merged |= replaced
    for module, pair in pairs.items():
        name = f"{module}.weight"
        if pair.keys() != {"A", "B"}:
            raise ReadsegError(f"{module} has lora_{''.join(pair)} alone; lora_A and lora_B belong together.")
        if name not in merged:
            raise ReadsegError(f"{module} has LoRA weights, but there is no {name} that they change.")
        weight, a, b = merged[name], pair["A"], pair["B"]
        for half, value in pair.items():
            if not value.is_floating_point() or value.ndim != 2 or not value.numel():
                raise ReadsegError(f"{module}: lora_{half} must be a matrix of floating point numbers.")
        if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != weight.shape:
            raise ReadsegError(
                f"{module}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit {tuple(weight.shape)}."
            )
        # A (r, in) and B (out, r); the sum is formed in float32.
        change = (b.float() @ a.float()) * (alpha / a.shape[0])
        merged[name] = (weight.float() + change).to(weight.dtype)
    return merged
