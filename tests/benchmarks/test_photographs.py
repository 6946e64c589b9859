"""benchmarks/photographs.py on pictures of noise, with the small model: whatever that says, the counts add up."""

from __future__ import annotations

import builtins
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from readseg.scenes.classes import CLASSES, TRAINED
from small import picture
from tiny_segmenter import build

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "photographs.py"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["photographs.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(end.value.code or 0)


def test_every_name_is_refused_or_claimed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for number in range(2):
        picture(seed=number).save(tmp_path / f"{number}.png")
    words = (tmp_path / "0.png", tmp_path / "1.png", "--there", "dog", "--model", model)
    assert run(monkeypatch, *words, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "0.png (60 x 40)" in printed and "1.png (60 x 40)" in printed
    refused = [int(count) for count in re.findall(rf"refused: (\d+) of {len(TRAINED) - 1} names", printed)]
    claimed = [part.count("  claimed: ") for part in re.split(r"\d\.png \(60 x 40\)", printed)[1:]]
    assert [a + b for a, b in zip(refused, claimed, strict=True)] == [len(TRAINED) - 1] * 2
    assert printed.count("there, or like what is there: the dog: ") == 2
    assert f"all photographs: {sum(refused)} of {2 * (len(TRAINED) - 1)} names refused" in printed
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert drawn == [f"{place:02}-{place - 1}.png" for place, count in enumerate(claimed, start=1) if count]
    assert drawn and all(Image.open(tmp_path / "out" / name).width >= 320 for name in drawn)


def test_questions_agree_in_number() -> None:
    script = runpy.run_path(str(SCRIPT))
    asked = {name: script["question"](name) for name in TRAINED}
    assert asked["cow"] == "where is the cow?" and asked["scissors"] == "where are the scissors?"
    assert {name for name, text in asked.items() if " are " in text} == {n for n in TRAINED if CLASSES[n].is_plural}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{image}", "--there", "moon"), "--there moon: expected one of the trained classes: cat, "),
        (("--there", "cow"), "--there: of images that you give"),
        (("nowhere.png",), "nowhere.png: no such image file"),
        (("{image}", "--out", "{image}"), "cannot write to"),
        ((), "pip install scikit-learn"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    picture().save(tmp_path / "image.png")
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(monkeypatch, *(str(tmp_path / "image.png") if word == "{image}" else word for word in words)) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.startswith("readseg: ") and printed.err.count("\n") == 1
