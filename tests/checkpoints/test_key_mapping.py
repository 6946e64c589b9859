"""Released names and ours, there and back; what a config.json says in our words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, SamConfig, SamModel

import released
from readseg.checkpoints import key_mapping
from readseg.checkpoints.key_mapping import sam_config_of, sam_to_original, sam_to_stock
from readseg.errors import ReadsegError
from readseg.model.families import FAMILIES
from readseg.model.tokenizer import LegacyTokenizer
from released import (
    ADDED,
    added_ids,
    drawn,
    our_state,
    sam_shapes,
    settings_of,
    stock_sam_name,
    tokenizer_model,
    weights_of,
)
from small import small_config

VISION = CLIPVisionConfig(image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=2)
every_family = pytest.mark.parametrize("family", ADDED)


@every_family
def test_names_are_translated_and_tensors_are_not_touched(family: str) -> None:
    state = {name: value for name, value in weights_of(family).items() if "region_encoder" not in name}
    mask_model = FAMILIES[family].mask_model
    assert key_mapping.mask_model_of(state) == mask_model
    ours = key_mapping.to_ours(state, mask_model)
    wanted = our_state(state)
    assert ours.keys() == wanted.keys()
    assert all(ours[name] is value for name, value in wanted.items())
    back = key_mapping.to_released(ours, mask_model)
    assert back.keys() == state.keys()
    assert all(back[name] is value for name, value in state.items())


def test_names_without_a_place_stay() -> None:
    state = {"model.new.weight": torch.zeros(1), "lm_head.weight": torch.zeros(1), "model.norma": torch.zeros(1)}
    assert list(key_mapping.to_ours(state, "visual_model")) == ["model.new.weight", "lmm.lm_head.weight", "model.norma"]
    # Of another family's mask model every name is one without a place.
    strange = {"model.visual_model.x": torch.zeros(1)}
    assert key_mapping.to_ours(strange, "grounding_encoder") == strange
    with pytest.raises(ReadsegError, match=r"image_encoder\.none"):
        key_mapping.to_ours({"model.visual_model.image_encoder.none": torch.zeros(1)}, "visual_model")


def test_what_is_ours_alone_is_not_released() -> None:
    assert key_mapping.to_released({"map_bias": torch.zeros(())}, "visual_model") == {}


def test_the_mask_model_is_found_by_its_name() -> None:
    for names, found in (
        (("model.visual_model.x",), "visual_model"),
        (("a", "model.grounding_encoder.x"), "grounding_encoder"),
        (("visual_model.x", "model.visual_model2.x", "model.visual_model"), None),
        ((), None),
    ):
        assert key_mapping.mask_model_of(dict.fromkeys(names)) == found


def test_computed_buffers_are_left_out() -> None:
    learned = "vision_model.embeddings.position_embedding.weight"
    computed = ("model.layers.0.self_attn.rotary_emb.inv_freq", "vision_model.embeddings.position_ids")
    assert list(key_mapping.without_computed(dict.fromkeys((*computed, learned), torch.zeros(1)))) == [learned]


# -- SAM ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sam() -> SamModel:
    return SamModel(small_config().mask_config)


def test_sam_names_go_there_and_back(sam: SamModel) -> None:
    state = sam.state_dict()
    original = sam_to_original(state)
    assert "image_encoder.blocks.0.attn.rel_pos_h" in original
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight" in original
    assert len(original) == len(state) - 1  # the Fourier features have one name there
    back = sam_to_stock(original)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_unknown_sam_names_are_listed(sam: SamModel) -> None:
    state = sam_to_original(sam.state_dict()) | {"image_encoder.neck.9.weight": torch.zeros(1), "x": torch.zeros(1)}
    with pytest.raises(ReadsegError, match=r"image_encoder.neck.9.weight, x"):
        sam_to_stock(state)
    with pytest.raises(ReadsegError, match="not names of SamModel: y"):
        sam_to_original({"y": torch.zeros(1)})


# -- sam_config_of -----------------------------------------------------------------------------------------------------


def published(width: int, layers: int, heads: int, everywhere: list[int]) -> tuple[dict[str, object], ...]:
    """What makes one of the authors' three, of SamConfig's other sizes."""
    picture = {"image_size": 1024, "patch_size": 16}
    own = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width}
    shared = {"output_channels": 256, "num_pos_feats": 128, "window_size": 14, "global_attn_indexes": everywhere}
    return {**picture, **own, **shared}, {"hidden_size": 256, **picture}, {"hidden_size": 256}


@pytest.mark.parametrize(
    ("vision", "prompts", "decoder"),
    [
        ({"global_attn_indexes": [0, 1], "window_size": 0}, {}, {}),
        ({"global_attn_indexes": [], "window_size": 2}, {}, {}),
        ({"global_attn_indexes": [1], "window_size": 7}, {}, {}),  # windows larger than the image
        ({"num_attention_heads": 1, "mlp_dim": 5}, {}, {}),
        ({"num_attention_heads": 8}, {"mask_input_channels": 4}, {}),
        ({}, {}, {"attention_downsample_rate": 1, "mlp_dim": 3}),
        ({}, {}, {"num_multimask_outputs": 1, "iou_head_hidden_dim": 10, "num_hidden_layers": 3}),
        published(768, 12, 12, [2, 5, 8, 11]),
        published(1024, 24, 16, [5, 11, 17, 23]),
        published(1280, 32, 16, [7, 15, 23, 31]),
    ],
)
def test_sams_of_any_sizes_are_recognised(
    vision: dict[str, object], prompts: dict[str, object], decoder: dict[str, object]
) -> None:
    sizes = {"hidden_size": 32, "image_size": 40, "patch_size": 8, "output_channels": 64, "num_pos_feats": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 24}
    config = SamConfig(
        vision_config={**sizes, **layers, "window_size": 3, "global_attn_indexes": [0], **vision},
        prompt_encoder_config={"hidden_size": 64, "image_size": 40, "patch_size": 8, **prompts},
        mask_decoder_config={"hidden_size": 64, "num_attention_heads": 8, **decoder},
    )
    with torch.device("meta"):
        state = SamModel(config).state_dict()
        found = sam_config_of(sam_to_original(state))
        again = SamModel(found).state_dict()
    assert {name: value.shape for name, value in again.items()} == {name: value.shape for name, value in state.items()}
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        # Of the random features only the size is left in a state dict, of windows that no layer has, nothing.
        ours, theirs = getattr(found, part).to_dict(), getattr(config, part).to_dict()
        different = {name for name in theirs if ours[name] != theirs[name]}
        assert different <= {"scale", "initializer_range", "mlp_ratio"}


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.pos_embed",
        "image_encoder.patch_embed.proj.weight",
        "image_encoder.blocks.0.attn.rel_pos_h",
        "image_encoder.blocks.0.mlp.lin1.weight",
        "image_encoder.neck.0.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.mask_downscaling.3.weight",
        "mask_decoder.iou_prediction_head.layers.0.weight",
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight",
        "mask_decoder.transformer.layers.0.mlp.lin1.weight",
        "mask_decoder.mask_tokens.weight",
    ],
)
def test_a_size_that_is_missing_is_named(name: str) -> None:
    state = drawn(sam_shapes(), seed=0)
    del state[name]
    with pytest.raises(ReadsegError, match=rf"SAM lack {re.escape(name)}"):
        sam_config_of(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.pos_embed", (1, 4, 5, 20)),
        ("image_encoder.pos_embed", (4, 4, 20)),
        ("image_encoder.pos_embed", ()),
        ("image_encoder.patch_embed.proj.weight", ()),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5,)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5, 0)),
        ("image_encoder.blocks.1.attn.rel_pos_h", (9, 10)),  # windows of two sizes
        ("image_encoder.neck.0.weight", ()),
        ("image_encoder.neck.0.weight", (0, 20, 1, 1)),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", (2, 5)),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", (2,)),
        ("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", (7, 32)),
        ("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", (0, 32)),
    ],
)
def test_shapes_of_no_sam_are_an_error(name: str, shape: tuple[int, ...]) -> None:
    state = drawn(sam_shapes(), seed=0) | {name: torch.zeros(shape)}
    with pytest.raises(ReadsegError, match="not those of a SAM") as caught:
        sam_config_of(state)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_no_sam() -> None:
    with pytest.raises(ReadsegError, match=r"lack image_encoder.pos_embed"):
        sam_config_of({})
    state = {name: value for name, value in drawn(sam_shapes(), seed=0).items() if ".blocks." not in name}
    with pytest.raises(ReadsegError, match="SAM"):
        sam_config_of(state)


def test_the_authors_names_are_those_of_the_public_script() -> None:
    state = drawn(sam_shapes(), seed=0)
    stock = sam_to_stock(state)
    assert all(stock[stock_sam_name(name)] is value for name, value in state.items())
    assert len(stock) == len(state) + 1
    sam = SamModel(sam_config_of(state))
    sam.load_state_dict(sam_to_stock(state))
    loaded = sam.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in stock.items())


# -- config.json -------------------------------------------------------------------------------------------------------


def config_for(family: str, **changes: Any) -> Any:
    settings = settings_of(family) | changes
    return key_mapping.read_config(settings, FAMILIES[family], tokenizer(family), VISION, weights_of(family))


def test_read_13b_has_points_of_its_own() -> None:
    family = FAMILIES["read"]
    small, large = family.points_for(576, 4096), family.points_for(576, 5120)
    assert (small.num_points, small.t_pos, small.t_neg, small.downsample) == (30, 0.8, 0.2, 2)
    assert (large.num_points, large.t_pos, large.t_neg, large.downsample) == (60, 0.6, 0.2, 1)
    assert {small.alignment, large.alignment} == {"reference"}
    for name in ("sesame", "lisa", "gsva", "glamm"):
        assert FAMILIES[name].points_for(576, 5120) == FAMILIES[name].points_for(576, 4096)
        assert FAMILIES[name].points_for(576, 4096).downsample == 2
        assert FAMILIES[name].points_for(256, 4096).downsample == 1


def tokenizer(family: str = "read") -> LegacyTokenizer:
    return LegacyTokenizer(tokenizer_model(), added_ids(family))


def test_settings_that_are_left_out_have_llamas_values() -> None:
    settings = settings_of("read")
    for name in ("num_key_value_heads", "rope_scaling", "bos_token_id", "eos_token_id"):
        del settings[name]
    config = key_mapping.language_config(settings, tokenizer())
    assert (config.num_key_value_heads, config.bos_token_id, config.eos_token_id) == (2, 1, 2)
    assert not config.tie_word_embeddings


def test_rope_scaling_and_grouped_keys_are_kept() -> None:
    scaled = key_mapping.language_config(
        settings_of("read") | {"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 2.0}},
        tokenizer(),
    )
    assert scaled.num_key_value_heads == 1
    assert scaled.rope_parameters["rope_type"] == "linear"
    assert scaled.rope_parameters["factor"] == 2.0
    assert key_mapping.language_config(settings_of("read"), tokenizer()).rope_parameters["rope_type"] == "default"


@every_family
def test_settings_that_are_made_describe_the_same_model(family: str) -> None:
    first = config_for(family)
    settings = key_mapping.released_settings(first, FAMILIES[family], "clip")
    again = key_mapping.read_config(settings, FAMILIES[family], tokenizer(family), VISION, weights_of(family))
    values, made = first.to_dict(), again.to_dict()
    assert {key for key in values if values[key] != made[key]} == {"released"}
    real = settings_of(family)
    kept = settings.keys() & real.keys()
    assert {name: settings[name] for name in kept} == {name: real[name] for name in kept}
    # What the authors' own loaders ask for.
    needed = {"architectures", "model_type", "mm_vision_tower", "mm_hidden_size", "vocab_size", "out_dim"}
    assert needed <= kept
    assert released.ARCHITECTURES[family] in settings["architectures"]
