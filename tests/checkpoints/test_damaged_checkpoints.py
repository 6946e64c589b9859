"""Checkpoints, released and ours, that are damaged or do not fit together, and wrong arguments: refused in one line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import released
from commandline import Console
from readseg.checkpoints.checkpoint import EMBEDDED, read_checkpoint, save_checkpoint
from released import (
    LINEAR,
    TOWER,
    RunsCode,
    change_settings,
    change_weights,
    our_state,
    refused,
    settings_of,
    tower_weights,
    write_json,
    write_released,
    write_state,
    write_tower,
)

State = dict[str, Tensor]
Change = Callable[[State], Any]

KEY = "model.layers.1.mlp.up_proj.weight"
BASE = released.pieces().vocab_size()


# -- LoRA --------------------------------------------------------------------------------------------------------------


def test_another_scale_than_alpha_by_r_is_not_merged_as_it(folder: Path) -> None:
    """peft's variants scale the change by other factors: merged by alpha / r, the weights would be silently wrong."""
    write_released(folder, "read", unmerged=True)
    for alpha in (0.0, -16.0, float("nan"), float("inf")):
        refused(folder, "alpha|no numbers", lora_alpha=alpha)
    settings = {"lora_alpha": 16, "r": 2, "use_rslora": False, "alpha_pattern": {}}
    write_json(folder / "adapter_config.json", settings)
    read_checkpoint(folder)
    for name, value in (("use_rslora", True), ("alpha_pattern", {"q_proj": 64}), ("use_dora", True)):
        write_json(folder / "adapter_config.json", settings | {name: value})
        refused(folder, f"adapter_config.json.*{name}")


# -- the vision tower --------------------------------------------------------------------------------------------------


def test_without_its_tower_a_checkpoint_is_refused(read: Path) -> None:
    for name in (5, ["clip"], True, {}, "", "../../etc", "clip\0"):
        change_settings(read, mm_vision_tower=name, vision_tower=...)
        refused(read, r"--vision-tower|vision_tower")
    change_settings(read, mm_vision_tower="clip")
    shutil.rmtree(read.parent / "clip")
    refused(read, r"vision tower clip cannot be loaded: .*--vision-tower")
    change_settings(read, mm_vision_tower=None)
    refused(read, r"config.json names no mm_vision_tower.*--vision-tower")
    refused(read, r"/nowhere/clip.*--vision-tower", vision_tower="/nowhere/clip")
    refused(read, r"missing/tower.*--vision-tower", vision_tower=Path("missing/tower"))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"hidden_size": 32}, r"mm_projector|vision_tower|vision tower"),
        ({"image_size": 64}, r"position_embedding"),
        ({"patch_size": 4}, r"patch_embedding|position_embedding"),
        ({"num_hidden_layers": 2}, r"layers.2"),
        ({"num_hidden_layers": 4}, r"layers.3"),
        *[({"num_attention_heads": value}, r"num_attention_heads|clip") for value in (5, 0)],
        *[({"image_size": value}, r"image_size|clip") for value in ("large", 0)],
        *[({"patch_size": value}, r"patch_size|clip") for value in (0, 64)],
        ({"hidden_size": -24}, r"hidden_size|clip"),
        ({"hidden_act": "none such"}, r"hidden_act|none such|clip"),
    ],
)
def test_a_tower_of_another_size_is_refused(read: Path, changes: dict[str, Any], pattern: str) -> None:
    write_tower(read.parent / "clip", **changes)
    refused(read, pattern)


@pytest.mark.parametrize("with_tower", [False, True])
def test_a_tower_without_settings_or_weights_is_refused(folder: Path, with_tower: bool) -> None:
    write_released(folder, "read", with_tower=with_tower)
    clip = folder.parent / "clip"
    tower = dict(tower_weights())
    del tower["vision_model.encoder.layers.1.mlp.fc1.bias"]
    write_state(clip, tower)
    if not with_tower:
        refused(folder, r"clip.*layers.1.mlp.fc1.bias")
    for content in ("[]", "{", "", '"clip"', '{"model_type": "clip", "vision_config": 5}'):
        (clip / "config.json").write_text(content)
        refused(folder, "clip|vision tower")


# -- weights -----------------------------------------------------------------------------------------------------------


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path) -> None:
    write_released(folder, "read", form="bin")
    torch.save({KEY: RunsCode(folder.parent / "marker")}, folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model.bin.*system")
    assert not (folder.parent / "marker").exists()


@pytest.mark.parametrize("family", ["gsva", "glamm"])
@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        KEY,
        "model.text_hidden_fcs.0.2.bias",
        "model.{sam}.image_encoder.blocks.1.norm2.bias",
        "model.{sam}.image_encoder.pos_embed",
        "model.{sam}.mask_decoder.iou_token.weight",
        "model.{sam}.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "model.{projector}.bias",
    ],
)
def test_a_missing_weight_is_named(folder: Path, family: str, key: str) -> None:
    name = key.format(
        sam="grounding_encoder" if family == "glamm" else "visual_model",
        projector="mm_projector" if family in LINEAR else "mm_projector.2",
    )
    write_released(folder, family, form="bin", change=lambda state: state.pop(name))
    refused(folder, name.partition("encoder.")[2] if "pos_embed" in name or "pe_layer" in name else name)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "base_model.model.") for name in ("model.new_part.weight", "model.layers.2.mlp.up_proj.weight")),
        ("model.layers.2.mlp.up_proj.weight", ""),
        ("model.visual_model.image_encoder.blocks.7.norm1.bias", ""),
        ("model.visual_model.extra.weight", ""),
        ("model.text_hidden_fcs.1.0.weight", ""),
        ("model.mm_projector.4.weight", ""),
        ("model.new_part.weight", ""),
        ("something_else", ""),
        ("module.lm_head.weight", ""),
        (f"{TOWER}vision_model.more.weight", ""),
    ],
)
def test_an_unexpected_weight_is_named(folder: Path, name: str, prefix: str) -> None:
    write_released(
        folder,
        "read",
        form="safetensors",
        unmerged=bool(prefix),
        change=lambda state: state.update({prefix + name: torch.ones(2, dtype=torch.bfloat16)}),
    )
    refused(folder, "image_encoder.blocks" if "blocks" in name else name.removeprefix("model.visual_model."))


MISSHAPEN = (
    "model.layers.0.input_layernorm.weight",
    KEY,
    "model.mm_projector.0.weight",
    "model.norm.weight",
    "model.text_hidden_fcs.0.2.weight",
    "model.visual_model.image_encoder.blocks.1.attn.qkv.bias",
    "model.visual_model.image_encoder.neck.2.weight",
    "model.visual_model.mask_decoder.output_hypernetworks_mlps.3.layers.1.weight",
    "model.visual_model.prompt_encoder.mask_downscaling.6.weight",
)


def grow(state: State, *names: str) -> None:
    for name in names:
        state[name] = torch.cat([state[name], state[name][:1]])


@pytest.mark.parametrize("start", range(0, len(MISSHAPEN), 5))
def test_weights_of_a_wrong_shape_are_named(folder: Path, start: int) -> None:
    names = MISSHAPEN[start : start + 5]
    write_released(folder, "read", form="bin", change=lambda state: grow(state, *names))
    message = refused(folder, "wrong shape")
    assert all(f"{name} is (" in message for name in names)


def test_tables_of_a_wrong_shape_are_named(folder: Path) -> None:
    names = ("lm_head.weight", "model.embed_tokens.weight")
    write_released(folder, "read", form="bin", change=lambda state: grow(state, *names))
    rows = settings_of("read")["vocab_size"]
    refused(folder, f"vocab_size {rows}, but model.embed_tokens.weight has {rows + 1}")


def test_of_many_keys_five_are_named(folder: Path) -> None:
    def change(state: State) -> None:
        state.update({f"extra.{number:02}": torch.ones(1) for number in range(40)} | {"new\nline": torch.ones(1)})
        for name in [name for name in state if name.startswith(("model.layers.0.mlp.", "model.layers.0.self_attn."))]:
            del state[name]
        grow(state, *MISSHAPEN)

    write_released(folder, "read", form="bin", change=change)
    message = refused(folder, r"unexpected: 'new\\nline', extra.00, extra.01, extra.02, extra.03 and 36 more; ")
    assert "; missing: model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight, " in message
    assert message.count("model.layers.0.") == 5 + 1 and " and 2 more; unexpected: " in message
    assert message.count(" is (") == 5 and message.endswith("and 4 more.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lm_head.weight", float("nan")),
        (KEY, float("inf")),
        ("model.visual_model.image_encoder.neck.1.bias", -float("inf")),
        ("model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", float("nan")),
    ],
)
def test_weights_that_are_no_numbers_are_named(folder: Path, name: str, value: float) -> None:
    write_released(folder, "read", form="bin", change=lambda state: state[name].view(-1)[:1].fill_(value))
    refused(folder, "|".join(our_state({name: torch.zeros(1)})))


def test_whole_numbers_are_no_weights(read: Path) -> None:
    for name, dtype in ((KEY, "int8"), ("lm_head.weight", "uint8"), ("model.norm.weight", "bool")):
        state = released.weights_of("read")
        write_state(read, state | {name: state[name].to(getattr(torch, dtype))})
        refused(read, f"{name} is {dtype}")


def test_an_empty_folder_a_file_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"x")
    for name, told in (("empty", "config.json"), ("file.bin", "file.bin"), ("nothing", "nothing")):
        refused(tmp_path / name, told, tmp_path)


def test_a_checkpoint_without_sam_is_a_base_model(folder: Path) -> None:
    def without(state: State) -> None:
        for name in [name for name in state if "visual_model" in name]:
            del state[name]

    write_released(folder, "read", change=without)
    refused(folder, "no weights of SAM")


# -- config.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        *[({name: value}, rf"{name}|unexpected: model.layers.0") for name in ("hidden_size", "intermediate_size",
            "num_hidden_layers", "num_attention_heads", "vocab_size") for value in (..., "16", 16.0, 0, -2)],
        ({"hidden_size": 18}, "hidden_size|embed_tokens"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers 3, the weights have 2"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers 1, the weights have 2"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 32}, "num_attention_heads"),
        *[({"num_key_value_heads": value}, "num_key_value_heads|k_proj") for value in (1, 0, -1, 3, "2")],
        ({"vocab_size": 999}, "vocab_size 999"),
        ({"vocab_size": 342}, "vocab_size 342"),
        *[({"rms_norm_eps": value}, "rms_norm_eps") for value in ("small", [1], None)],
        *[({"max_position_embeddings": value}, "max_position_embeddings") for value in ("2048", 1.5)],
        *[({"rope_theta": value}, "rope_theta") for value in ("x", [1], None)],
        *[({"rope_scaling": value}, "rope") for value in ("x", [1], {"type": "none such", "factor": 2.0})],
        *[({"hidden_act": value}, "hidden_act") for value in ("none such", 5, ["silu"])],
        *[({"eos_token_id": value}, "eos_token_id.*tokenizer says 2") for value in (1, -1, 99999, [2], "2", "x", 1.5)],
        ({"bos_token_id": "x"}, "bos_token_id"),
        *[({"mm_vision_select_layer": value}, "mm_vision_select_layer") for value in ("x", 99, -9, 0, None)],
        *[({"mm_vision_select_feature": value}, "mm_vision_select_feature") for value in ("cls_patch", 5, None)],
        *[({"mm_projector_type": value}, "mm_projector_type") for value in ("linear", "mlp3x_gelu", 5, ["linear"])],
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": ...}, "None"),
        ({"model_type": ["llava"]}, "llava"),
        ({"model_type": {"a": 1}}, "a"),
        ({"text_config": {"model_type": "llama"}}, "'llava'"),
        *[({"architectures": value}, "--family|architectures") for value in
            (..., None, [], ["LlavaForCausalLM"], "READForCausalLM", 5, [5], [["x"]], [None])],
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(read: Path, changes: dict[str, Any], pattern: str) -> None:
    change_settings(read, **changes)
    message = refused(read, pattern)
    assert "config.json" in message or str(read) in message


@pytest.mark.parametrize("place", ["read", "ours"])
def test_a_config_that_is_no_settings_is_refused(request: pytest.FixtureRequest, place: str) -> None:
    config = request.getfixturevalue(place) / "config.json"
    for content in (b"[]", b"5", b'"llava"', b"null", b"", b"{", b"{'a': 1}", b"[" * 100_000, b"\xff\xfe{\0}\0"):
        config.write_bytes(content)
        refused(config.parent, r"config.json")
    config.unlink()
    refused(config.parent, r"expected config.json")


# -- the tokenizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        *[(content, r"\[SEG\].*added_tokens.json") for content in (None, {}, {"<im_start>": BASE, "<im_end>": BASE + 1},
            {"[seg]": BASE, "<im_start>": BASE + 1, "<im_end>": BASE + 2})],
        ({"[SEG]": BASE, "<im_start>": BASE + 1}, "<im_end>"),
        ({"[SEG]": BASE, "<im_start>": BASE + 1, "<im_end>": BASE + 3}, r"<im_end>.*has only"),
        ({"[SEG]": 10**30, "<im_start>": BASE + 1, "<im_end>": BASE + 2}, r"id of its own.*\[SEG\]"),
        ({"[SEG]": BASE, "<im_start>": BASE, "<im_end>": BASE + 1}, "added_tokens.json"),
        *[({"[SEG]": value, "<im_start>": BASE + 1, "<im_end>": BASE + 2}, "added_tokens.json") for value in
            (BASE - 1, -1, str(BASE), None, float(BASE), True)],
        ({"[SEG]": str(BASE), "<im_start>": str(BASE + 1), "<im_end>": str(BASE + 2)}, "added_tokens.json"),
        ({"[SEG]": [BASE], "<im_start>": [BASE + 1], "<im_end>": {}}, "added_tokens.json"),
        *[(content, "added_tokens.json") for content in (["[SEG]"], b"{", b"", b"[" * 100_000, b"\xff\xfe")],
        (b'{"[SEG]": %d, "<im_start>": %d, "<im_end>": %d, "[SEG]": %d}' % (BASE, BASE + 1, BASE + 2, BASE + 1),
            "added_tokens"),
    ],
)  # fmt: skip
def test_added_tokens_that_do_not_fit_are_refused(read: Path, content: Any, pattern: str) -> None:
    place = read / "added_tokens.json"
    if content is None:
        place.unlink()
    else:
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refused(read, pattern)


@pytest.mark.parametrize("place", ["read", "ours"])
def test_a_tokenizer_that_is_none_is_refused(request: pytest.FixtureRequest, place: str) -> None:
    tokenizer = request.getfixturevalue(place) / "tokenizer.model"
    tokenizer.write_bytes(b"garbage")
    refused(tokenizer.parent, "tokenizer.model")
    tokenizer.unlink()
    refused(tokenizer.parent, "tokenizer.model")


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Released weights of GSVA as this package saves them."""
    place = tmp_path_factory.mktemp("saved")
    write_released(place / "weights", "gsva")
    save_checkpoint(read_checkpoint(place / "weights"), place / "ours")
    return place / "ours"


@pytest.fixture
def ours(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "ours"))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda state: state.pop("lmm.lm_head.weight"), r"missing: lmm.lm_head.weight"),
        (lambda state: state.pop("map_bias"), r"missing: map_bias"),
        (lambda state: state.pop("lmm.model.vision_tower.pre_layrnorm.bias"), r"missing: .*pre_layrnorm.bias"),
        (lambda state: state.update(extra=torch.ones(1)), r"unexpected: extra"),
        (lambda state: state.update(map_bias=torch.ones(2)), r"wrong shape: map_bias is \(2,\) and not \(\)"),
        (lambda state: state["lmm.lm_head.weight"].fill_(float("nan")), r"lmm.lm_head.weight"),
        (lambda state: state.update({"lmm.lm_head.weight": state["lmm.lm_head.weight"].to(torch.int8)}), r"lm_head"),
    ],
)
def test_our_weights_damaged_are_named(ours: Path, change: Change, pattern: str) -> None:
    change_weights(ours / "model.safetensors", change)
    refused(ours, pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"prompt": "box"}, "prompt"),
        ({"view": 5}, "view"),
        ({"projector": "mlp"}, "multi_modal_projector|projector"),
        ({"points": {"k": 1}}, "k"),
        ({"points": "many"}, "points|config.json"),
        ({"points": {"num_points": "many"}}, "num_points|config.json"),
        ({"conversation": {"answer_tokens": 5}}, "answer_tokens|config.json"),
        *[({"seg_token_id": value}, r"\[SEG\]|seg_token_id") for value in ("x", 5, None)],
        ({"bce_loss_weight": "x"}, "bce_loss_weight"),
        ({"lmm_config": "x"}, "lmm_config|config.json"),
        ({"lmm_config": {"model_type": "bert"}}, "lmm_config|config.json|weights"),
        ({"lmm_config": None}, "lmm_config|weights"),
        ({"mask_config": []}, "mask_config|config.json|weights"),
        ({"mask_config": 5}, "mask_config|config.json"),
    ],
)
def test_our_config_damaged_is_refused(ours: Path, changes: dict[str, Any], pattern: str) -> None:
    change_settings(ours, **changes)
    refused(ours, pattern)


@pytest.mark.parametrize(
    ("part", "name", "values"),
    [
        ("text_config", "hidden_size", (-16, "x")),
        ("text_config", "num_attention_heads", (0, 3)),
        ("text_config", "vocab_size", (0,)),
        ("text_config", "hidden_act", ("none such",)),
        ("vision_config", "image_size", (0,)),
        ("vision_config", "patch_size", (0,)),
        ("vision_config", "hidden_size", (-1,)),
    ],
)
def test_our_config_with_impossible_sizes_is_refused(ours: Path, part: str, name: str, values: tuple[Any, ...]) -> None:
    lmm = json.loads((ours / "config.json").read_text())["lmm_config"]
    for value in values:
        lmm[part][name] = value
        change_settings(ours, lmm_config=lmm)
        refused(ours, f"config.json|ours|{name}")


def test_our_tokenizer_of_other_weights_is_refused(ours: Path) -> None:
    for added in (
        {"[REJ]": BASE, "[SEG]": BASE + 1, "<im_start>": BASE + 2, "<im_end>": BASE + 3},
        {"[SEG]": BASE, "<im_start>": BASE + 2, "<im_end>": BASE + 3},
        {"[SEG]": BASE, "[REJ]": BASE + 1, "<im_start>": BASE + 2, "<im_end>": BASE + 90},
        {"[SEG]": BASE, "[REJ]": BASE + 1},
        {},
    ):
        write_json(ours / "added_tokens.json", added)
        refused(ours, r"\[SEG\]|\[REJ\]|<im_")


def test_code_in_a_models_folder_is_never_run(tmp_path: Path, console: Console) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    change_settings(
        folder,
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    trap = tmp_path / "it_ran"
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass OwnTokenizer: pass\n")
    image = EMBEDDED.parents[3] / "examples" / "reasoning.png"
    for words in (("segment", image, "the bird", "--model", folder), ("convert", folder, tmp_path / "out")):
        console.monkeypatch.setattr(sys, "stdin", io.StringIO("yes\nyes\n"))  # to a question whether to run it
        assert "code of its own" in console.error(*words)
        assert not trap.exists() and not (tmp_path / "out").exists()
