"""`readseg analyse IMAGE QUERY`: what it prints and writes, and one line for every kind of bad input."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from commandline import run
from readseg.analysis.study import StudyModel
from readseg.cli import analyse as command
from readseg.core.masks import decode_rle
from readseg.errors import ReadsegError
from released import write_released
from small import picture
from studies import loaded_model
from tiny_segmenter import ANSWERS, build, load

SIZE = (40, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> StudyModel:
    return loaded_model("the model", load(folder), {"dtype": "float32"}, str(folder))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image, and a truth beside it, in the working folder."""
    monkeypatch.chdir(tmp_path)
    picture(*SIZE).save("desk.png")
    mask = np.zeros(SIZE, bool)
    mask[5:20, 10:40] = True
    Image.fromarray(mask).save("truth.png")
    return "desk.png"


def analyse(target: str, query: str, *models: StudyModel, truth: str | Sequence[str] = (), **options: Any) -> None:
    """The command on models that are loaded."""
    files = [Path(file) for file in ([truth] if isinstance(truth, str) else truth)]
    defaults = {name: p.default for name, p in inspect.signature(command.analyse).parameters.items()}
    given = {"image": target, "queries": [query], "truth": files, "out": Path("out"), **options}
    with patch.object(command, "study_models", return_value=models):
        command.analyse(**defaults | given)


def width(path: str) -> int:
    with Image.open(path) as image:
        return image.width


def numbers(folder: str = "out") -> dict[str, Any]:
    return json.loads(Path(folder, "analysis.json").read_text(encoding="utf-8"))


def test_figure_and_numbers(desk: str, model: StudyModel, capsys: pytest.CaptureFixture[str]) -> None:
    analyse(desk, "the cat", model, truth="truth.png")
    printed = capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"analysis.png", "analysis.json"}
    assert width("out/analysis.png") == 1400
    told = numbers()
    assert (told["image"], told["query"]) == ("desk.png", "the cat")
    one = told["models"][0]
    assert (one["name"], one["source"], one["settings"]) == ("the model", model.source, {"dtype": "float32"})
    expected = model.segmenter.segment(desk, "the cat")
    np.testing.assert_array_equal(decode_rle(one["segs"][0]["masks"]["own"]["mask"]), expected.masks[0])
    truth = np.asarray(Image.open("truth.png")) > 0
    iou = (expected.masks[0] & truth).sum() / (expected.masks[0] | truth).sum()
    assert one["segs"][0]["masks"]["own"]["truth"]["iou"] == iou
    for word in ("the model: it is the cat [SEG].", "language model, last layer", f"{iou:.3f}", "out/analysis.png"):
        assert word in printed


def test_the_default_folder(desk: str, model: StudyModel) -> None:
    analyse(desk, "the cat", model, out=None)
    assert Path("outputs/desk/analysis.png").is_file()


def test_several_models_truths_and_layers(desk: str, model: StudyModel, capsys: pytest.CaptureFixture[str]) -> None:
    second = loaded_model("another", model.segmenter, {})
    options = {"truth": ["truth.png", "truth.png"], "layers": True}
    analyse(desk, "all the birds and the tree", model, second, **options)
    told = numbers()
    assert [one["name"] for one in told["models"]] == ["the model", "another"]
    assert len(told["truths"]) == 2
    assert all(len(seg["layers"]) == 3 for one in told["models"] for seg in one["segs"])
    assert width("out/layers.png") == 1400
    assert "another, [SEG] 2" in capsys.readouterr().out


def test_a_given_answer(desk: str, model: StudyModel, capsys: pytest.CaptureFixture[str]) -> None:
    analyse(desk, "the unicorn", model, answer="it is the unicorn [SEG].")
    one = numbers()["models"][0]
    assert one["given"] and one["present"] and len(one["segs"]) == 1
    assert "(given to the model)" in capsys.readouterr().out
    analyse(desk, "the cat", model, answer="no.")
    assert "no [SEG] in the given answer" in capsys.readouterr().out
    assert numbers()["models"][0]["segs"] == []


def test_a_refusal(desk: str, model: StudyModel, capsys: pytest.CaptureFixture[str]) -> None:
    analyse(desk, "the unicorn", model, truth="truth.png", layers=True)
    printed = capsys.readouterr().out
    assert ANSWERS["the unicorn"] in printed and "no [SEG] in the answer; it came nearest" in printed
    assert numbers()["models"][0]["present"] is False


def test_files_of_an_earlier_call_do_not_stay(desk: str, model: StudyModel) -> None:
    analyse(desk, "the cat", model, layers=True)
    Path("out/mine.png").write_text("kept")
    analyse(desk, "the cat", model)
    assert {path.name for path in Path("out").iterdir()} == {"analysis.png", "analysis.json", "mine.png"}
    Path("other").mkdir()
    Path("other/layers.png").write_text("not ours")
    analyse(desk, "the cat", model, out=Path("other"))
    assert Path("other/layers.png").read_text() == "not ours"


def test_words_that_steer_terminals_are_text(desk: str, model: StudyModel, capsys: pytest.CaptureFixture[str]) -> None:
    query, answer = "a \x1b[31m\x00[bold]cat\udcff", "a \x1b[31m [SEG] [bold]b[/bold] \x07."
    analyse(desk, query, model, answer=answer)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and "\x00" not in printed
    assert "[bold]b[/bold]" in printed
    assert numbers()["query"] == "a \x1b[31m\x00[bold]cat?"


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
def test_images_of_any_shape(desk: str, model: StudyModel, size: tuple[int, int]) -> None:
    picture(*size).save("odd.png")
    Image.fromarray(np.ones(size, bool)).save("odd_truth.png")
    analyse("odd.png", "the cat", model, truth="odd_truth.png", layers=True)
    assert numbers()["size"] == list(size)
    assert width("out/analysis.png") == 1400


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"target": "none.png"}, "none.png: no such image file"),
        ({"target": "text.png"}, "text.png is not an image"),
        ({"query": "  "}, "the query is empty"),
        ({"answer": ""}, "--answer is empty"),
        ({"truth": "none.png"}, "none.png: no such image file"),
        ({"truth": "small.png"}, "small.png: the truth has 3 x 2 pixels"),
        ({"truth": "desk.png"}, "desk.png: the truth has colours"),
        ({"truth": ["truth.png", "small.png"]}, "small.png: the truth has 3 x 2 pixels"),
        ({"out": Path("text.png/out")}, "cannot write to text.png/out"),
        ({"query": "cat " * 3000}, "too long"),
        ({"sam": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(
    desk: str, model: StudyModel, change: dict[str, Any], told: str
) -> None:
    Path("text.png").write_text("no image")
    Image.fromarray(np.ones((2, 3), bool)).save("small.png")
    options: dict[str, Any] = {"target": desk, "query": "the cat"} | change
    with pytest.raises(ReadsegError, match=told):
        analyse(options.pop("target"), options.pop("query"), model, **options)
    assert not Path("out").exists()


def test_a_failure_while_writing_leaves_the_old_files(
    desk: str, model: StudyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse(desk, "the cat", model)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        analyse(desk, "the unicorn", model)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


# -- the command itself ------------------------------------------------------------------------------------------------


def test_command(desk: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("analyse", desk, "the cat", "--truth", "truth.png", "--layers", "--points", "only", "--num-points", "3")
    code = run(monkeypatch, *words, "--model", folder, "--out", "there", "--device", "cpu")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert {path.name for path in Path("there").iterdir()} == {"analysis.png", "analysis.json", "layers.png"}
    one = numbers("there")["models"][0]
    assert (one["prompt"], one["points"]["num_points"]) == ("points", 3)
    assert len(one["segs"][0]["masks"]["own"]["points"]) == 3
    assert "it is the cat [SEG]." in printed.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("desk.png", "the cat", "--model", "MODEL", "--model", "nowhere"), "nowhere"),
        (("desk.png", "the cat", "--model", "MODEL", "--model", "BROKEN"), "BROKEN"),
        (("desk.png", "the cat", "--model", "MODEL", "--truth", "desk.png"), "the truth has colours"),
        (("desk.png",), "Missing argument 'QUERY'"),
        (("scenes", "the cup"), "scenes is a benchmark: readseg study maps scenes measures it"),
        (("reasonseg/val", "the cup"), "reasonseg/val is a benchmark"),
    ],
)
def test_bad_input_of_the_command_is_one_line(
    desk: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    told: str,
) -> None:
    shutil.copytree(folder, "BROKEN")
    weights = Path("BROKEN/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    code = run(monkeypatch, "analyse", *(str(folder) if word == "MODEL" else word for word in words), "--device", "cpu")
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("readseg: ") and printed.err.count("\n") == 1
    assert told in printed.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize("family", ["read", "lisa", "gsva", "glamm"])
def test_released_checkpoints(desk: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_released(Path("released"), family)
    picture(48, 48).save("square.png")
    answers = {"glamm": "<p> the cup </p> [SEG].", "gsva": "Sure,the cup:[SEG], a fox:[REJ]."}
    words = ("analyse", "square.png", "the cup", "--model", "released", "--vision-tower", "clip", "--layers")
    given = ("--answer", answers.get(family, "it is the cup [SEG]."), "--out", "there", "--device", "cpu")
    assert run(monkeypatch, *words, *given) == 0
    one = numbers("there")["models"][0]
    assert one["present"] and not one["original_sam"]
    (seg,) = one["segs"]
    assert set(seg["maps"]) == {"lmm", "sam", "before", "words"}
    assert set(seg["masks"]) == {"own", "both", "seg", "points"}
    assert seg["words"] == "the cup"
    assert one["prompt"] == ("both" if family == "read" else "seg")


def test_several_questions(desk: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("analyse", desk, "the cat", "the unicorn", "--model", folder, "--out", "there", "--device", "cpu")
    assert run(monkeypatch, *words) == 0
    assert {path.name for path in Path("there").iterdir()} == {"query_1", "query_2"}
    assert [numbers(f"there/query_{k}")["query"] for k in (1, 2)] == ["the cat", "the unicorn"]
