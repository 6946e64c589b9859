"""Which family released weights are of: what their names leave open, the repository's name or config.json decides."""

from __future__ import annotations

from typing import Any

import pytest

from readseg.errors import ReadsegError
from readseg.model.families import FAMILIES, LLAVA_V1, RELEASED, SYSTEMS, VICUNA_V1, family_of
from readseg.model.prompt_format import prefix
from released import ADDED, ARCHITECTURES, LINEAR, settings_of


def told(family: str, said: str | None = None, *, name: str = "somewhere/weights", **changes: Any) -> str:
    """The family of weights that are truly of `family`, with the config.json of `said`."""
    settings = settings_of(said or family) | changes
    return family_of(
        settings,
        "grounding_encoder" if family == "glamm" else "visual_model",
        ADDED[family],
        linear=family in LINEAR,
        name=name,
    )[0].name


def test_the_released_families_are_these_five() -> None:
    assert RELEASED == ("read", "sesame", "lisa", "gsva", "glamm")
    assert set(FAMILIES) == {"tiny", *RELEASED}
    assert all(name == family.name for name, family in FAMILIES.items())


@pytest.mark.parametrize("other", ADDED)
@pytest.mark.parametrize("family", ADDED)
def test_config_decides_where_the_weights_leave_it_open(family: str, other: str) -> None:
    """Two layers in the projector and SAM as visual_model, without [REJ]: READ, SESAME and later LISA are alike."""
    if family == other or (family in ("read", "sesame") and other in ("read", "sesame", "lisa")):
        assert told(family, other) == other
        return
    with pytest.raises(ReadsegError, match=rf"somewhere/weights: config.json is of the family {other} .*--family"):
        told(family, other)


@pytest.mark.parametrize(
    ("truth", "name", "family"),
    [
        *(("read", f"rui-qian/READ-LLaVA-v1.5-{name}", "read") for name in (
            "7B-for-ReasonSeg-valset", "7B-for-ReasonSeg-valset-ft", "7B-for-ReasonSeg-testset",
            "13B-for-ReasonSeg-testset", "7B-for-fprefcoco",
        )),
        *(("read", name, "sesame") for name in ("tsunghanwu/SESAME", "/disk/SESAME/", "SESAME", "someone-else/SESAME")),
        *(("lisa", name, "lisa") for name in ("xinlai/LISA-7B-v1", "xinlai/LISA-13B-llama2-v1")),
        ("glamm", "MBZUAI/GLaMM-FullScope", "glamm"),
    ],
)  # fmt: skip
def test_the_name_of_a_repository_wins(truth: str, name: str, family: str) -> None:
    for said in ADDED:
        assert told(truth, said, name=name) == family


def test_a_name_cannot_make_weights_what_they_are_not() -> None:
    assert told("glamm", name="SESAME") == "glamm"
    assert told("gsva", name="READ-LLaVA-v1.5-7B-for-fprefcoco") == "gsva"
    with pytest.raises(ReadsegError, match="--family"):
        told("lisa", "sesame", name="tsunghanwu/SESAME")


def test_how_a_family_was_told() -> None:
    def how(said: str, name: str, chosen: str | None = None) -> str:
        return family_of(settings_of(said), "visual_model", ADDED["read"], linear=False, name=name, chosen=chosen)[1]

    assert how("read", "x") == "by config.json"
    assert how("sesame", "/hub/models--tsunghanwu--SESAME/snapshots/0a1b2c") == "by its name"
    assert how("read", "weights/SESAME-LLaVA-v1.5-7B") == "by its name; config.json says read"
    assert how("read", "SESAME", "lisa") == "as asked"
    with pytest.raises(ReadsegError, match="family 'gsva' was asked for, but these weights are of read or sesame"):
        how("read", "x", "gsva")


@pytest.mark.parametrize("name", ["SESAME-mine", "mySESAME", "SESAME/final", "sesame", "LISA-7B-v1.bak"])
def test_a_name_that_is_alike_is_another(name: str) -> None:
    assert told("read", name=name) == "read"


@pytest.mark.parametrize("said", [None, [], ["LlavaLlamaForCausalLM"], ["ReadForCausalLM"]])
def test_what_is_undecided_is_an_error_that_names_the_choices(said: Any) -> None:
    with pytest.raises(ReadsegError, match=r"--family read or sesame or lisa\.$") as caught:
        told("read", architectures=said)
    assert "architectures: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("family", "architectures", "expected"),
    [
        *((family, said, family) for family in ("lisa", "gsva", "glamm") for said in (None, ["LlavaLlamaForCausalLM"])),
        *(("read", [said], "lisa") for said in ("LISAForCausalLM", "LisaForCausalLM")),
        *(("lisa", ["Other", said], "lisa") for said in ("LISAForCausalLM", "LisaForCausalLM")),
    ],
)
def test_architectures_decide_where_the_weights_do_not(family: str, architectures: Any, expected: str) -> None:
    assert told(family, architectures=architectures) == expected


def test_weights_of_no_family_are_an_error() -> None:
    seg, both = ("[SEG]",), ("[SEG]", "[REJ]")
    glamm = "grounding_encoder"
    for model, added, linear in ((None, seg, False), ("another", seg, False), (glamm, both, False), (glamm, seg, True)):
        with pytest.raises(ReadsegError, match=r"x: these weights are of none of the families read, sesame"):
            family_of(settings_of("read"), model, added, linear=linear, name="x")


@pytest.mark.parametrize("family", RELEASED)
def test_a_family_has_what_its_weights_were_trained_with(family: str) -> None:
    """The facts of the released repositories."""
    values = FAMILIES[family]
    assert ARCHITECTURES[family] in values.architectures
    assert values.conversation.system == LLAVA_V1
    assert values.prompt == ("both" if family == "read" else "seg")
    assert values.points.alignment == ("reference" if family == "read" else "exact")
    assert values.conversation.name_question == "What is {name} in this image? Please output segmentation mask."
    assert values.conversation.sentence_question == "{sentence} Please output segmentation mask."
    assert set(values.conversation.answer_tokens) <= set(ADDED[family])
    assert set(values.added_tokens) <= set(ADDED[family])
    assert {token for token in ("[SEG]", "[REJ]") if token in ADDED[family]} <= set(values.conversation.answer_tokens)
    text = "".join(piece.text for piece in prefix(values.conversation))
    start = f"<s>{LLAVA_V1} USER: "
    if family == "glamm":
        assert text == f"{start}The <im_start><image><im_end> provides an overview of the picture.\n"
    else:
        assert text == f"{start}<im_start><image><im_end>\n"


def test_system_prompts_differ_in_whose_questions_they_are() -> None:
    assert SYSTEMS == {"llava_v1": LLAVA_V1, "vicuna_v1": VICUNA_V1}
    assert LLAVA_V1 == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions."
    )
    assert VICUNA_V1 == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
