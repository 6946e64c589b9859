from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from readseg.core.sasp import PointConfig
from readseg.model.config import ConversationConfig, ReadConfig, tiny_config
from readseg.model.families import TINY
from readseg.model.modeling import ReadModel
from small import small_config

IDS = {"image_token_id": 3, "seg_token_id": 6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *((field, "nothing to fill in") for field in ("image_text", "name_question", "sentence_question")),
        *(("names_question", text) for text in ("what are they?", "{name}", "{names} and {names}")),
    ],
)
def test_a_conversation_keeps_its_placeholders(field: str, text: str) -> None:
    with pytest.raises(ValueError, match=field):
        ConversationConfig(**{field: text})


def test_config_survives_a_file(tmp_path: Path) -> None:
    conversation = ConversationConfig(
        system="Be brief.", name_question="Where is {name}?", names_question="What are {names}in this image?",
        forced_answer="[SEG]", answer_tokens=("[SEG]", "[REJ]"),
    )  # fmt: skip
    values = {
        "prompt": "seg", "bce_loss_weight": 3.5, "dice_loss_weight": 0.0, "projector": "linear", "rej_token_id": 7,
        "released": {"architectures": ["LisaGSVAForCausalLM"], "rope_scaling": None, "mm_vision_select_layer": -2},
        "family": "gsva", "points": PointConfig(threshold="std", num_points=7, alignment="exact"),
        "conversation": conversation,
    }  # fmt: skip
    config = small_config(**values)
    config.save_pretrained(tmp_path)
    for loaded in (ReadConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, ReadConfig)
        found, saved = loaded.to_dict(), config.to_dict()
        of_the_file = {"_name_or_path", "transformers_version"}
        assert {key for key in found.keys() | saved.keys() if found.get(key) != saved.get(key)} <= of_the_file
        assert {name: getattr(loaded, name) for name in values} == values
        assert isinstance(loaded.conversation.answer_tokens, tuple)
        assert loaded.mask_config.vision_config.scale == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "box"}, "prompt"),
        ({"view": "fit"}, "view"),
        ({"bce_loss_weight": None}, "loss_weight"),
        ({"text_loss_weight": -1.0}, "loss_weight"),
        ({"map_loss_weight": float("nan")}, "loss_weight"),
        ({"points": {"k": 1}}, "PointConfig has no setting k; it has alignment"),
        ({"points": PointConfig(alignment="reference"), "view": "stretch"}, "alignment"),
        ({"points": PointConfig(downsample=25)}, "downsample"),
        *(({"projector": value}, "projector must be one of mlp, linear") for value in ("linear ", "mlp2x", None, 2)),
    ],
)
def test_config_rejects_what_makes_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadConfig(**values)


def test_the_tiny_model_is_tiny_and_of_its_family() -> None:
    config = tiny_config(vocab_size=1400, **IDS)
    assert (config.points, config.conversation, config.view) == (TINY.points, TINY.conversation, TINY.view)
    assert config.family == TINY.name
    assert (config.num_image_tokens, config.lmm_size, config.mask_size) == (196, 224, 160)
    assert sum(weight.numel() for weight in ReadModel(config).parameters()) < 12e6


def test_released_weights_add_nothing_to_other_models() -> None:
    config = ReadConfig()
    assert (config.projector, config.rej_token_id, config.released) == ("mlp", None, None)
    assert config.conversation.answer_tokens == ("[SEG]",) and config.conversation.names_question == ""
    weights = config.text_loss_weight, config.bce_loss_weight, config.dice_loss_weight, config.map_loss_weight
    assert weights == (1.0, 2.0, 0.5, 0.0)


def test_a_map_cannot_be_reduced_below_one_point() -> None:
    points = PointConfig(downsample=4, alignment="exact")
    assert small_config(points=points).points == points  # 4 x 4 image tokens
    with pytest.raises(ValueError, match="downsample must not exceed the side of the grid of 16 image tokens"):
        small_config(points=PointConfig(downsample=5, alignment="exact"))


def test_a_linear_projector_is_one_layer() -> None:
    model = ReadModel(small_config(projector="linear"))
    shapes = {n: tuple(w.shape) for n, w in model.lmm.model.multi_modal_projector.named_parameters()}
    assert shapes == {"weight": (16, 16), "bias": (16,)}
