"""`readseg data`: files end to end, samples of data sets, and one line for bad input."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from commandline import Console
from readseg.cli.data import draw_samples
from readseg.data.registry import DATA_SETS
from readseg.errors import ReadsegError


def test_writes_scenes(tmp_path: Path, console: Console) -> None:
    out = tmp_path / "scenes"
    printed = console.out(
        *("data", "scenes", "--out", out, "-n", 2, "--seed", 9, "--size", 160, "--wording", "held_out")
    )
    assert "2 scenes" in printed and "contact_sheet.png" in printed
    records = [json.loads(line) for line in (out / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("phrasing" in record["tags"] for record in records)
    assert {Path(record["image"]).stem.rpartition("-")[0] for record in records} == {"scene-000009", "scene-000010"}


@pytest.mark.parametrize(
    "words",
    [
        ("scenes",),
        ("scenes", "--out", "{out}", "-n", "0"),
        ("scenes", "--out", "{out}", "-n", "many"),
        ("scenes", "--out", "{out}", "--seed", "-1"),
        ("scenes", "--out", "{out}", "--size", "9"),
        ("scenes", "--out", "{out}", "--wording", "mine"),
        ("scenes", "--out", "{file}"),
        ("mini", "--out", "{out}", "--images", "7"),
        ("pictures", "--out", "{out}"),
    ],
)
def test_bad_input(words: tuple[str, ...], tmp_path: Path, console: Console) -> None:
    (tmp_path / "file").write_text("precious")
    places = {"{out}": tmp_path / "out", "{file}": tmp_path / "file"}
    code, out, err = console("data", *(places.get(word, word) for word in words))
    assert code == 2 and err and "Traceback" not in err and out == ""
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "precious"


def test_miniatures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    """The command writes what the tests of data sets read, too."""
    write = Mock(return_value={"refcoco": 3, "grefcoco": 4})
    monkeypatch.setattr("readseg.cli.data.write_miniatures", write)
    assert console.out("data", "mini", "--out", tmp_path, "--images", 9) == f"refcoco 3, grefcoco 4: {tmp_path}\n"
    write.assert_called_once_with(tmp_path, seed=0, images=9, progress=False)


def test_what_is_there_is_checked_and_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("reason_seg", "refer_seg", "vlpart"):
        shutil.copytree(data / folder, tmp_path / "mini" / folder)
    assert "refcocog|umd_exclude_unified|test" in console.out("data", "check", "mini", "--thorough")
    console.out("data", "show", "mini", "pascal_part", "-n", 3)
    assert Path("samples.png").is_file()
    console.out("data", "show", data, "-n", 1, "--out", "all.png")
    with Image.open("all.png") as sheet, Image.open("samples.png") as one:
        assert sheet.height > one.height and sheet.width == 4 * 320
    for path in Path("mini/reason_seg/ReasonSeg/val").glob("*.json"):
        path.write_text("{")
    code, out, _ = console("data", "check", "mini")
    assert code == 1 and "reasonseg val: " in out


def test_names_that_look_like_markup_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a[", "b]", "refer_seg", "refcoco")
    folder.mkdir(parents=True)
    part = "va[/red]l\x1b[2J"
    said = [{"sent": "it", "tokens": ["it"], "raw": "it", "sent_id": 0}]
    refs = [{"image_id": 7, "ann_id": 70, "split": part, "sentences": said}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "instances.json").write_text('{"images": [], "annotations": []}')
    code, printed, _ = console("data", "check", "a[/b]")
    assert code == 1 and "a[/b]" in printed and "refcoco|unc|va[/red]l\\x1b[2J" in printed and "\x1b" not in printed
    assert "expected image 7, which refs(unc).p names" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "nowhere"), "no such folder"),
        (("show", ".", "imagenet"), "no data set 'imagenet'"),
        (("show", ".", "refcoco"), "readseg data check"),
        (("show", "."), "readseg data check"),
        (("show", ".", "--split", "val"), "name that"),
        (("mini", "--out", "taken"), "taken"),
    ],
)
def test_bad_folders_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/mine").write_text("mine")
    assert said in console.error("data", *words)


def test_samples_are_drawn(data: Path) -> None:
    for name in sorted(DATA_SETS):
        assert draw_samples(data, name, count=2).width == 640
    one, same, other = (draw_samples(data, "refcoco", "refcoco|unc|val", count=1, seed=seed) for seed in (0, 0, 5))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_samples_of_all_are_drawn_on_one_sheet(data: Path, tmp_path: Path) -> None:
    sheet = draw_samples(data, count=1)
    assert sheet.width == 4 * 320 and sheet.height > 4 * 200
    one = draw_samples(data, "ade20k", count=1)
    assert sheet.crop((0, 0, 320, 150)).tobytes() == one.crop((0, 0, 320, 150)).tobytes()
    shutil.copytree(data / "reason_seg", tmp_path / "some" / "reason_seg")
    assert draw_samples(tmp_path / "some").width == 2 * 320
    with pytest.raises(ReadsegError, match="no data set that can be shown"):
        draw_samples(tmp_path / "some" / "reason_seg")
    with pytest.raises(ReadsegError, match="no such folder"):
        draw_samples(tmp_path / "nowhere")
    with pytest.raises(ReadsegError, match="is of one data set: name that"):
        draw_samples(data, split="val")


def test_what_is_not_there_cannot_be_shown(data: Path, tmp_path: Path) -> None:
    for root, name, split, said in (
        (data, "imagenet", None, "no data set 'imagenet'; there are ade20k"),
        (data, "refcoco", "refcoco|unc|testC", "there are refcoco"),
        (tmp_path, "ade20k", None, "training is missing: put images/training of .*; readseg data check"),
    ):
        with pytest.raises(ReadsegError, match=said):
            draw_samples(root, name, split)


def test_files_that_cannot_be_read_are_told_and_the_others_shown(data: Path, tmp_path: Path) -> None:
    for folder in ("ade20k", "refer_seg/images", "refer_seg/refcoco"):
        shutil.copytree(data / folder, tmp_path / folder)
    refs = tmp_path / "refer_seg" / "refcoco" / "refs(unc).p"
    refs.write_bytes(b"cos\nsystem\n.")
    assert draw_samples(tmp_path, "refcoco", count=1).width  # of the other file
    refs.with_name("refs(unc_exclude_unified).p").unlink()
    with pytest.raises(ReadsegError, match="is refused, nothing of it was run"):
        draw_samples(tmp_path, "refcoco")
    with pytest.warns(UserWarning, match=r"refcoco is not shown: .*refs\(unc\)\.p is refused"):
        assert draw_samples(tmp_path, count=1).width == 320
