"""Adapters: small, read back onto the weights they belong to, and onto no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from readseg.checkpoints.adapters import Base, fingerprint, open_base, read_adapter, save_adapter
from readseg.checkpoints.checkpoint import build
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.training.stages.finetuning import FinetuningStage
from released import change_settings, change_weights, write_llava, write_sam
from small import picture
from tuned import stage, write_start


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuningStage:
    """A stage whose weights have moved, by lot."""
    root = tmp_path_factory.mktemp("adapters")
    made = stage(write_start(root / "start"), data, root / "cache", lora_alpha=6.0, lora_rank=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made


@pytest.fixture
def adapter(built: FinetuningStage, tmp_path: Path) -> Path:
    built.export(built.state_dict(), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_it_holds_what_was_trained_and_no_more(built: FinetuningStage, adapter: Path) -> None:
    held = load_file(adapter / "adapter_model.safetensors")
    trained = {name for name, weight in built.model.named_parameters() if weight.requires_grad}
    assert {f"base_model.model.{name}".replace(".default.", ".") for name in trained} == set(held)


def test_read_back_it_is_w_plus_alpha_over_r_b_a(built: FinetuningStage, adapter: Path) -> None:
    found = read_adapter(adapter).weights
    start = open_base(built.base).weights
    for name, weight in built.model.state_dict().items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        if ".base_layer." in name:
            a, b = (built.model.state_dict()[name.replace("base_layer", f"lora_{half}.default")] for half in "AB")
            expected = start[plain].double() + 6.0 / 3 * (b.double() @ a.double())
            torch.testing.assert_close(found[plain].double(), expected, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(found[plain], weight), name


def test_the_merged_model_says_what_the_trained_one_says(built: FinetuningStage, adapter: Path) -> None:
    image = picture(40, 60)
    trained = Segmenter(built.model, built.processor).segment(image, "the cup", force=True)
    built.model.train()
    merged = Segmenter.from_pretrained(adapter, device="cpu").segment(image, "the cup", force=True)
    torch.testing.assert_close(torch.as_tensor(merged.scores), torch.as_tensor(trained.scores), atol=1e-4, rtol=1e-4)
    assert merged.masks.shape == trained.masks.shape == (1, 40, 60)
    assert (merged.masks == trained.masks).mean() > 0.999


def test_peft_reads_it_too(built: FinetuningStage, adapter: Path) -> None:
    from peft import PeftConfig

    settings = PeftConfig.from_pretrained(str(adapter))
    assert (settings.r, settings.lora_alpha, settings.base_model_name_or_path) == (3, 6.0, built.base.model)


def test_it_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training started is kept as absolute paths, a SAM and a tower too; hub ids stay."""
    write_llava(tmp_path / "llava")
    write_sam(tmp_path / "sam.pth")
    monkeypatch.chdir(tmp_path)
    base = Base("llava", sam="sam.pth", vision_tower="clip")
    start, trained = open_base(base), {"map_bias": torch.zeros(())}
    save_adapter(tmp_path / "a", trained, start.processor(), None, base, fingerprint(start.weights))
    monkeypatch.chdir("/")
    assert read_adapter(tmp_path / "a").weights.keys() == start.weights.keys()
    (tmp_path / "sam.pth").rename(tmp_path / "elsewhere.pth")
    with pytest.raises(ReadsegError, match=r"belongs to .*llava.*--sam"):
        read_adapter(tmp_path / "a")
    assert read_adapter(tmp_path / "a", sam=str(tmp_path / "elsewhere.pth")).weights
    save_adapter(tmp_path / "b", trained, start.processor(), None, Base("owner/model"), "0")
    assert json.loads((tmp_path / "b" / "base.json").read_text())["model"] == "owner/model"


def test_other_weights_are_refused(built: FinetuningStage, adapter: Path, tmp_path: Path) -> None:
    other, same = (Path(shutil.copytree(built.base.model, tmp_path / name)) for name in ("other", "same"))
    change_weights(other / "model.safetensors", lambda state: state["lmm.lm_head.weight"][0, 0].add_(1))
    with pytest.raises(ReadsegError, match=rf"trained on other weights than those of {other}"):
        read_adapter(adapter, base=str(other))
    assert read_adapter(adapter, base=str(same)).weights


def test_fingerprints_do_not_depend_on_the_type_that_weights_are_kept_in() -> None:
    weights = {"a": torch.randn(5, 70), "b": torch.zeros(())}
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    assert fingerprint(weights) == fingerprint(half) == fingerprint(dict(reversed(weights.items())))
    assert fingerprint(weights | {"b": torch.ones(())}) != fingerprint(weights)
    assert fingerprint({"c": weights["a"], "b": weights["b"]}) != fingerprint(weights)


FILE, HEAD = "adapter_model.safetensors", "base_model.model.lmm.lm_head.weight"


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda adapter: change_weights(adapter / FILE, change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / FILE).unlink(), f"{FILE} cannot be read"),
        (lambda a: (a / FILE).write_bytes(b"half"), f"{FILE} is truncated"),
        (lambda a: (a / "base.json").write_text("{"), "base.json is no JSON"),
        (lambda a: change_settings(a, "base.json", seed=...), "base.json is damaged: expected .*seed"),
        (lambda a: change_settings(a, "base.json", model="/gone"), r"belongs to /gone.*--base"),
        (lambda a: change_settings(a, "base.json", fingerprint="0"), "trained on other weights"),
        (lambda a: change_settings(a, "adapter_config.json", lora_alpha="x"), "lora_alpha must be"),
        (lambda a: (a / "config.json").write_text("[]"), "config.json"),
        (changed(lambda held: held.pop(HEAD)), r"holds \d+ tensors, base.json says \d+: it is not whole"),
        (changed(lambda held: held.update({HEAD: torch.zeros(3, 3)})), r"lmm.lm_head.weight is \(3, 3\)"),
        (changed(lambda held: held[HEAD][0].fill_(torch.nan)), "no numbers: lmm.lm_head.weight"),
    ],
)
def test_damage_is_named(adapter: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(adapter)
    with pytest.raises(ReadsegError, match=message):
        build(read_adapter(adapter))


def test_a_model_is_no_adapter(built: FinetuningStage) -> None:
    with pytest.raises(ReadsegError, match="is no adapter"):
        read_adapter(built.base.model)


def test_only_base_models_are_joined(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError):
        open_base(Base(str(write_start(tmp_path / "start")), sam=str(tmp_path)))
