"""Predictions survive kills, refuse foreign files, and come back as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import readseg
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Asked, Prediction, PredictionFile, read_predictions, write_predictions

SETTINGS = {"model": "tiny", "questions": 3}
MASK = {"size": [2, 3], "counts": "06"}
COW = Asked(
    key="scene-0/0",
    image="scene-0",
    size=(2, 3),
    question="where is the cow?",
    present=True,
    targets=(MASK,),
    ignored={"size": [2, 3], "counts": "15"},
    section="scenes",
    kind="category",
    tags=frozenset({"pair", "distractor"}),
)
FIRST = Prediction(COW, "it is the cow [SEG].", True, (MASK,))
SECOND = Prediction(
    Asked("scene-0/1", "a/ü.jpg", (2, 3), "la vache ?", False), "Il n'y a pas de vache – désolé.\n", False
)
THIRD = Prediction(Asked("1/0", "scene-1", (2, 3), "how many?", None, expected="three"), "thr", None, finished=False)
HEAD = b'{"format": "readseg-predictions-2", "settings": {}, "about": {}}\n'


def write(path: Path, *predictions: Prediction) -> None:
    with PredictionFile(path, SETTINGS) as file:
        for prediction in predictions:
            file.add(prediction)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "p.jsonl"
    write(path, FIRST, SECOND, THIRD)
    head, predictions = read_predictions(path)
    assert (head.settings, head.about) == (SETTINGS, {})
    assert list(predictions.values()) == [FIRST, SECOND, THIRD]
    again = tmp_path / "again.jsonl"
    write_predictions(again, SETTINGS, {"images": 2}, predictions.values())
    assert again.read_bytes().split(b"\n")[1:] == path.read_bytes().split(b"\n")[1:]
    assert read_predictions(again, SETTINGS)[0].about == {"images": 2}


def test_a_line_is_on_its_way_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.add(FIRST)
        assert read_predictions(path)[1] == {FIRST.key: FIRST}


def test_resume_adds_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write(path, FIRST)
    with PredictionFile(path, SETTINGS) as file:
        assert FIRST.key in file and len(file) == 1 and file[FIRST.key] == FIRST
        assert SECOND.key not in file
        file.add(SECOND)
        assert list(file) == [FIRST, SECOND]
    assert list(read_predictions(path)[1].values()) == [FIRST, SECOND]


def test_every_possible_cut_of_the_last_line(tmp_path: Path) -> None:
    """Whatever a kill left of the last line, what stood before it is kept and the run goes on."""
    path = tmp_path / "p.jsonl"
    write(path, FIRST)
    before = path.read_bytes()
    write(path, SECOND)
    whole = path.read_bytes()
    for length in range(len(before), len(whole)):
        path.write_bytes(whole[:length])
        assert list(read_predictions(path)[1].values()) == [FIRST]
        assert path.stat().st_size == length, "reading changes nothing"
        write(path, SECOND)
        assert path.read_bytes() == whole


def test_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    code = f"""
from pathlib import Path
from readseg.evaluation.predictions import Asked, Prediction, PredictionFile
file = PredictionFile(Path({str(path)!r}), {SETTINGS!r})
number = 0
while True:
    file.add(Prediction(Asked(f"q/{{number}}", "a.jpg", (2, 3), "what?", False), "x" * 2000, False))
    number += 1
    print(number, flush=True)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(readseg.__file__).parent.parent)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    reported = 0
    while reported < 50:
        reported = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    reported = max([reported, *map(int, child.stdout.read().split())])
    child.wait()
    child.stdout.close()
    with PredictionFile(path, SETTINGS) as file:
        assert len(file) >= reported
        assert [p.key for p in file] == [f"q/{i}" for i in range(len(file))]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write(path, FIRST)
    content = path.read_bytes()
    with pytest.raises(ReadsegError, match="model: 'tiny' there, 'big' now"):
        PredictionFile(path, {**SETTINGS, "model": "big"})
    assert path.read_bytes() == content


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.add(FIRST)
        with pytest.raises(ReadsegError, match=r"p\.jsonl: another process"):
            PredictionFile(path, SETTINGS)
        file.add(SECOND)
    with PredictionFile(path, SETTINGS) as file:
        assert len(file) == 2


def test_settings_compare_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    PredictionFile(path, {"size": (1, 2)}).close()
    with PredictionFile(path, {"size": [1, 2]}) as file:  # other settings would be refused
        assert len(file) == 0


def test_the_same_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with PredictionFile(path, SETTINGS) as file:
        file.add(FIRST)
        with pytest.raises(ReadsegError, match="there already"):
            file.add(FIRST)
    with path.open("a") as raw:
        raw.write(json.dumps(FIRST.to_json()) + "\n")
    with pytest.raises(ReadsegError, match=r"line 3.*twice"):
        read_predictions(path)


def line(**changes: object) -> bytes:
    record = {**FIRST.to_json(), **changes}
    return json.dumps({name: value for name, value in record.items() if value != "absent"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "line 1"),
        (b"hello\n", "line 1"),
        (b'{"format": "something else"}\n', "line 1.*'something else'"),
        (b'{"format": "readseg-predictions-1", "settings": {}}\n', "another version"),
        (b'{"format": "readseg-predictions-2", "settings": {}}\n', "'about'"),
        (b"[1]\n", "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
        (b"\xff\xfe\x00\n", "line 1"),
        (HEAD + b"null\n", "line 2"),
        (HEAD + b'{"key": \n', "line 2"),
        (HEAD + line() + b"\n", "line 3"),
        (HEAD + line(key=1), "line 2.*'key'"),
        (HEAD + line(answer="absent"), "line 2.*'answer'"),
        (HEAD + line(present=1), "'present'"),
        (HEAD + line(said="absent"), "'said'"),
        (HEAD + line(finished=None), "'finished'"),
        (HEAD + line(masks=[{"size": [1, 1]}]), "'masks'"),
        (HEAD + line(targets={}), "'targets'"),
        (HEAD + line(ignored=3), "'ignored'"),
        (HEAD + line(size=[2]), "'size'"),
        (HEAD + line(size=[2, True]), "'size'"),
        (HEAD + line(size=[10**6, 10**6]), "'size'"),
        (HEAD + line(tags=[1]), "'tags'"),
    ],
)
def test_foreign_files_are_refused_and_left_alone(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=part):
        read_predictions(path)
    with pytest.raises(ReadsegError, match=part):
        PredictionFile(path, {})
    assert path.read_bytes() == content


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="none"):
        read_predictions(tmp_path / "none.jsonl")
    with pytest.raises(ReadsegError, match="cannot be read"):
        read_predictions(tmp_path)
