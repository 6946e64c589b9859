from __future__ import annotations

import re

import pytest
import torch
from transformers import SamConfig, SamModel

from readseg.checkpoints.sam_keys import config_of, to_original, to_stock
from readseg.errors import ReadsegError
from released import drawn, sam_shapes, stock_sam_name
from small import small_config


@pytest.fixture
def sam() -> SamModel:
    return SamModel(small_config().mask_config)


def test_names_go_there_and_back(sam: SamModel) -> None:
    state = sam.state_dict()
    original = to_original(state)
    assert "image_encoder.blocks.0.attn.rel_pos_h" in original
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight" in original
    assert len(original) == len(state) - 1  # the Fourier features have one name there
    back = to_stock(original)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_loaded_model_is_the_saved_one(sam: SamModel) -> None:
    other = SamModel(small_config().mask_config)
    other.load_state_dict(to_stock(to_original(sam.state_dict())))
    state = sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_unknown_names_are_listed(sam: SamModel) -> None:
    state = to_original(sam.state_dict()) | {"image_encoder.neck.9.weight": torch.zeros(1), "x": torch.zeros(1)}
    with pytest.raises(ReadsegError, match=r"image_encoder.neck.9.weight, x"):
        to_stock(state)
    with pytest.raises(ReadsegError, match="not names of SamModel: y"):
        to_original({"y": torch.zeros(1)})


# -- config_of ---------------------------------------------------------------------------------------------------------


def original_of(**vision: object) -> dict[str, torch.Tensor]:
    """A SAM of the authors' sizes, without memory, under their names."""
    config = SamConfig(vision_config=vision)
    with torch.device("meta"):
        return to_original(SamModel(config).state_dict())


# The authors' three: width, layers, heads, layers with global attention.
PUBLISHED = {
    "vit_b": (768, 12, 12, [2, 5, 8, 11]),
    "vit_l": (1024, 24, 16, [5, 11, 17, 23]),
    "vit_h": (1280, 32, 16, [7, 15, 23, 31]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sams_are_recognised(name: str) -> None:
    width, depth, heads, everywhere = PUBLISHED[name]
    state = original_of(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, global_attn_indexes=everywhere
    )
    config = config_of(state)
    vision, prompts, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (width, depth, heads)
    assert (vision.global_attn_indexes, vision.window_size, vision.mlp_dim) == (everywhere, 14, 4 * width)
    assert (vision.image_size, vision.patch_size, vision.output_channels, vision.num_pos_feats) == (1024, 16, 256, 128)
    assert (prompts.hidden_size, prompts.image_size, prompts.patch_size, prompts.image_embedding_size) == (
        256, 1024, 16, 64,
    )  # fmt: skip
    assert prompts.mask_input_channels == 16
    assert (decoder.hidden_size, decoder.mlp_dim, decoder.num_hidden_layers, decoder.num_attention_heads) == (
        256, 2048, 2, 8,
    )  # fmt: skip
    assert (decoder.attention_downsample_rate, decoder.num_multimask_outputs) == (2, 3)
    assert (decoder.iou_head_depth, decoder.iou_head_hidden_dim) == (3, 256)


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
    ],
)
def test_odd_sams_are_recognised(
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
        found = config_of(to_original(state))
        again = SamModel(found).state_dict()
    assert {name: value.shape for name, value in again.items()} == {name: value.shape for name, value in state.items()}
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        # Of the random features only the size is left in a state dict, of windows that no layer has, nothing.
        ours, theirs = getattr(found, part).to_dict(), getattr(config, part).to_dict()
        different = {name for name in theirs if ours[name] != theirs[name]} - {
            "scale",
            "initializer_range",
            "mlp_ratio",
        }
        assert not different


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
        config_of(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.pos_embed", (1, 4, 5, 20)),
        ("image_encoder.pos_embed", (4, 4, 20)),
        ("image_encoder.pos_embed", ()),
        ("image_encoder.patch_embed.proj.weight", ()),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5,)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5, 0)),
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
        config_of(state)
    assert len(str(caught.value).splitlines()) == 1


def test_windows_of_two_sizes_are_an_error() -> None:
    state = drawn(sam_shapes(), seed=0)
    state["image_encoder.blocks.1.attn.rel_pos_h"] = torch.zeros(9, 10)
    with pytest.raises(ReadsegError, match="not those of a SAM"):
        config_of(state)


def test_nothing_is_no_sam() -> None:
    with pytest.raises(ReadsegError, match=r"lack image_encoder.pos_embed"):
        config_of({})
    state = {name: value for name, value in drawn(sam_shapes(), seed=0).items() if ".blocks." not in name}
    with pytest.raises(ReadsegError, match="SAM"):
        config_of(state)


def test_the_authors_names_are_those_of_the_public_script() -> None:
    state = drawn(sam_shapes(), seed=0)
    stock = to_stock(state)
    assert all(stock[stock_sam_name(name)] is value for name, value in state.items())
    assert len(stock) == len(state) + 1
    sam = SamModel(config_of(state))
    sam.load_state_dict(to_stock(state))
    loaded = sam.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in stock.items())
