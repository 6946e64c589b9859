"""Released weights at the command line: converted, and asked with points on, off and alone."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from commandline import Console
from readseg.cli import options
from readseg.inference.segmenter import Segmenter
from readseg.model.families import RELEASED, SYSTEMS
from released import ADDED, our_state, weights_of, write_released
from small import picture


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_and_back(console: Console, tmp_path: Path) -> None:
    given = write_released(tmp_path / "released", "gsva")
    assert "gsva" in console.out("convert", "released", "ours")
    held = load_file("ours/model.safetensors")
    assert all(torch.equal(held[name], value) for name, value in our_state(given).items())
    console.out("convert", "ours", "back", "--layout", "released")
    again = torch.load("back/pytorch_model.bin", weights_only=True)
    assert again.keys() == given.keys()
    assert all(torch.equal(again[name], value) for name, value in given.items())
    assert json.loads(Path("back/config.json").read_text()) == json.loads(Path("released/config.json").read_text())


def test_base_models(console: Console, tmp_path: Path) -> None:
    state = weights_of("read")
    sam = {n.removeprefix("model.visual_model."): v for n, v in state.items() if n.startswith("model.visual_model.")}
    torch.save(sam, "sam.pth")
    others = ("model.visual_model.", "model.text_hidden_fcs.")
    write_released(
        tmp_path / "llava", "read", form="bin", change=lambda s: [s.pop(n) for n in list(s) if n.startswith(others)]
    )
    Path("llava/added_tokens.json").unlink()
    console.out("convert", "llava", "start", "--sam", "sam.pth", "--seed", 3)
    assert json.loads(Path("start/config.json").read_text())["family"] == "read"
    assert "--lora-alpha" in console.error("convert", "llava", "other", "--sam", "sam.pth", "--lora-alpha", 4)


def test_bad_input(console: Console, tmp_path: Path) -> None:
    write_released(tmp_path / "released", "read")
    Path("there").mkdir()
    assert "is there already" in console.error("convert", "released", "there")
    assert "no such folder" in console.error("convert", "nowhere", "out")
    Path("released/pytorch_model-00001-of-00003.bin").unlink()
    assert "pytorch_model-00001-of-00003.bin" in console.error("convert", "released", "out")
    assert not Path("out").exists()
    tiny = Path(__file__).parents[2] / "src" / "readseg" / "weights" / "tiny"
    assert "no released layout" in console.error("convert", tiny, "out", "--layout", "released")
    assert "family" in console.error("convert", tiny, "out", "--family", "read")


@pytest.mark.parametrize("family", ADDED)
def test_points_are_one_switch_for_every_family(console: Console, tmp_path: Path, family: str) -> None:
    write_released(tmp_path / "released", family)
    picture(64, 64).save("square.png")
    console.monkeypatch.setattr(Segmenter, "from_pretrained", cache(Segmenter.from_pretrained))
    words = ("segment", "square.png", "the cup", "--model", "released")
    for given, count in (
        ((), 4 if family == "read" else 0),  # its 2 x 2 cells, each of them a point
        (("--points", "on", "--downsample", 1), 16),
        (("--points", "on", "--num-points", 3, "--alignment", "exact", "--threshold", "std"), 3),
        (("--points", "off"), 0),
        (("--points", "only", "--num-points", 2), 2),
    ):
        code, out, err = console(*words, "--force", "--json", *given)
        assert code == 0 and f"family {family}" in err, err
        assert len(json.loads(out)["points"][0]["labels"]) == count
    if family == "lisa":  # settings that nothing would use
        error = console.error(*words, "--num-points", 3)
        assert "--num-points" in error and "add --points on" in error


def test_several_objects_with_one_question(console: Console, tmp_path: Path) -> None:
    write_released(tmp_path / "released", "gsva")
    picture(64, 64).save("square.png")
    words = ("segment", "square.png", "the cup", "the dog", "--model", "released", "--together", "--force")
    result = json.loads(console.out(*words, "--json"))
    assert result["phrases"] == ["the cup", "the dog"]
    assert len(result["said"]) == 2
    assert "mask 1 (the cup)" in console.out(*words)
    write_released(tmp_path / "other", "lisa")
    code, out, err = console("segment", "square.png", "the cup", "--model", "other", "--together")
    assert (code, out) == (2, "")
    assert "not trained" in err.splitlines()[-1]


def test_options_that_nothing_would_use(console: Console, tmp_path: Path) -> None:
    write_released(tmp_path / "released", "read")
    picture(64, 64).save("square.png")
    assert "needs --sam" in console.error("convert", "released", "out", "--seed", 4)
    assert "--system" in console.error("convert", "released", "out", "--layout", "released", "--system", "vicuna_v1")
    assert "no LoRA weights" in console.error("convert", "released", "out", "--lora-alpha", 4)
    words = ("segment", "square.png", "cup", "--model", "released")
    assert "--t-pos" in console.error(*words, "--threshold", "std", "--t-pos", 0.9)
    assert "device_map" in console.error(*words, "--device", "cpu", "--device-map", "auto")


def test_nothing_of_the_users_is_lost(console: Console, tmp_path: Path) -> None:
    write_released(tmp_path / "weights" / "released", "read")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    os.chdir(tmp_path / "work")
    assert "is there already" in console.error("convert", tmp_path / "weights" / "released", "new/..")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]


def test_control_characters_do_not_reach_the_terminal(console: Console, tmp_path: Path) -> None:
    write_released(tmp_path / "released", "read")
    picture(64, 64).save("square.png")
    code, out, err = console("segment", "square.png", "a \x1b[2J\x07 cup", "--model", "released", "--force")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\\x1b[2J" in out
    assert "\x1b" not in console.error("segment", "square.png", "cup", "--model", "no\x1bwhere")


def test_the_command_line_knows_all_families_and_system_prompts() -> None:
    hints = get_type_hints(options.WeightOptions)
    for option, names in (("family", RELEASED), ("system", SYSTEMS)):
        assert {choice for kind in get_args(hints[option]) for choice in get_args(kind)} == set(names)
