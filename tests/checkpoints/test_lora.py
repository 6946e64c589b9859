"""W' = W + (alpha / r) B A, under the names that peft and its wrappers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from readseg.checkpoints.lora import DEFAULT_ALPHA, has_lora, merge_lora, strip_wrapper_prefixes
from readseg.errors import ReadsegError


def pair(rank: int = 2) -> dict[str, Tensor]:
    return {
        "x.weight": torch.randn(3, 5),
        "x.lora_A.default.weight": torch.randn(rank, 5),
        "x.lora_B.default.weight": torch.randn(3, rank),
    }


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("alpha", [16.0, 1.0, 7.5])
def test_merged_is_the_equation(rank: int, alpha: float) -> None:
    state = pair(rank=rank)
    weight, a, b = (value.double() for value in state.values())
    wanted = weight + alpha / rank * torch.einsum("or,ri->oi", b, a)
    merged = merge_lora(state, alpha)
    assert list(merged) == ["x.weight"] and DEFAULT_ALPHA == 16
    assert torch.equal(merge_lora(state)["x.weight"], merge_lora(state, 16.0)["x.weight"])
    torch.testing.assert_close(merged["x.weight"].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_formed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    state = {
        "x.weight": torch.full((1, 1), 256.0, dtype=dtype),
        # 64 ones of 1/16 each: added one by one in a short type, they would vanish.
        "x.lora_A.weight": torch.full((64, 1), 0.25, dtype=dtype),
        "x.lora_B.weight": torch.full((1, 64), 0.25, dtype=dtype),
    }
    merged = merge_lora(state, alpha=64.0)["x.weight"]
    assert merged.dtype == dtype
    assert merged.item() == 260.0


def test_peft_merges_to_the_same() -> None:
    from peft import LoraConfig, get_peft_model

    base = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 2))
    config = LoraConfig(r=2, lora_alpha=10, target_modules=["0"], modules_to_save=["2"], init_lora_weights=False)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(1.0)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(".base_layer." in name for name in raw) and any(".modules_to_save.default." in name for name in raw)
    wanted = model.merge_and_unload().state_dict()
    merged = merge_lora(strip_wrapper_prefixes(raw), alpha=10.0)
    assert merged.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)


def test_other_tensors_are_not_copied_and_nothing_is_changed() -> None:
    state = pair() | {"y.weight": torch.randn(2), "z.base_layer.bias": torch.randn(2)}
    before = {name: value.clone() for name, value in state.items()}
    merged = merge_lora(state)
    assert merged.keys() == {"x.weight", "y.weight", "z.bias"}
    assert merged["y.weight"] is state["y.weight"]
    assert merged["z.bias"] is state["z.base_layer.bias"]
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_a_module_trained_whole_replaces_the_original_and_may_have_lora() -> None:
    old, new = torch.zeros(2), torch.ones(2)
    state = {"x.original_module.weight": old, "x.modules_to_save.default.weight": new}
    for ordered in (state, dict(reversed(state.items()))):
        merged = merge_lora(ordered)
        assert list(merged) == ["x.weight"] and merged["x.weight"] is new
    state = pair()
    state = {"x.base_layer.weight": state.pop("x.weight")} | state
    assert has_lora(state) and list(merge_lora(state)) == ["x.weight"]


def test_lora_is_known_by_its_names() -> None:
    assert has_lora(pair()) and has_lora({"x.lora_A.weight": torch.ones(1)})
    assert not has_lora({}) and not has_lora(dict.fromkeys(("x.weight", "lora.weight", "x.lora_A.bias"), torch.ones(1)))


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "base_model.model.", "module.base_model.model.", "base_model.model.module.", "module.module."],
)
def test_wrappers_are_taken_off(prefix: str) -> None:
    plain = {"lm_head.weight": torch.ones(1), "model.norm.weight": torch.ones(1)}
    found = strip_wrapper_prefixes({prefix + name: value for name, value in plain.items()})
    assert found == plain


def test_a_prefix_of_some_names_only_is_none() -> None:
    state = {"module.x": torch.ones(1), "y": torch.ones(1)}
    assert strip_wrapper_prefixes(state) == state
    assert strip_wrapper_prefixes({}) == {}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"x.lora_B.default.weight": None}, r"^x has lora_A alone"),
        ({"x.lora_A.default.weight": None}, r"^x has lora_B alone"),
        ({"x.weight": None}, r"no x.weight"),
        ({"x.lora_A.default.weight": torch.ones(2, 4)}, r"x: lora_A \(2, 4\) and lora_B \(3, 2\) do not fit \(3, 5\)"),
        ({"x.lora_B.default.weight": torch.ones(3, 1)}, r"x: lora_A .* do not fit"),
        ({"x.lora_B.default.weight": torch.ones(3)}, r"x: lora_B must be a matrix"),
        ({"x.lora_A.default.weight": torch.ones(())}, r"x: lora_A must be a matrix"),
        ({"x.lora_A.default.weight": torch.ones(0, 5), "x.lora_B.default.weight": torch.ones(3, 0)}, r"^x"),
        ({"x.lora_A.default.weight": torch.ones(2, 5, dtype=torch.int8)}, r"^x"),
        # Two runs at once: to merge the last one only would be a silent loss.
        ({"x.lora_A.more.weight": torch.ones(2, 5), "x.lora_B.more.weight": torch.ones(3, 2)}, r"^x"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_fit_are_an_error(change: dict[str, Tensor | None], pattern: str) -> None:
    state = {name: value for name, value in (pair() | change).items() if value is not None}
    with pytest.raises(ReadsegError, match=pattern) as caught:
        merge_lora(state)
    assert len(str(caught.value).splitlines()) == 1
