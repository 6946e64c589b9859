"""LLaVA-Instruct, in its true format and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from readseg.data.readers.llava_instruct import LlavaInstruct
from readseg.errors import ReadsegError

SPLIT = "llava_instruct_150k"


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(said)]


def record(*said: str, name: str = "000000000009", image: Any = "000000000009.jpg") -> dict[str, Any]:
    return {"id": name, "image": image, "conversations": turns(*said)}


GOOD = record("Is it a cat?\n<image>", "Yes.")


def write(root: Path, content: Any, *, raw: bool = False) -> Path:
    (root / "coco" / "train2017").mkdir(parents=True, exist_ok=True)
    path = root / "llava_dataset" / f"{SPLIT}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if raw else json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    return path


def read(root: Path, *records: Any) -> LlavaInstruct:
    write(root, list(records))
    return LlavaInstruct(root, SPLIT)


def test_rounds_without_the_place_of_the_image(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        record("<image>\nWhat is it?", " A bus.\n", "And its colour?", "Red, I’d say."),
        record("Look at <image> and say what it is.", "A <image>dog.", name="b"),
        record("<<image>image>Where is it?", "In Köln 😀.", image="in/a folder.png"),
    )
    assert (data.name, len(data)) == (f"vqa|{SPLIT}", 3)
    assert [entry.dialogue for entry in data] == [
        (("What is it?", "A bus."), ("And its colour?", "Red, I’d say.")),
        (("Look at and say what it is.", "A dog."),),
        (("Where is it?", "In Köln 😀."),),
    ]
    images = tmp_path / "coco/train2017"
    assert [data[place].image for place in (0, 2)] == [images / "000000000009.jpg", images / "in/a folder.png"]
    assert data[0].expressions == ()


def test_names_are_unique_although_ids_are_not(tmp_path: Path) -> None:
    data = read(tmp_path, GOOD, GOOD, {key: GOOD[key] for key in ("image", "conversations")})
    assert [entry.name for entry in data] == ["000000000009#0", "000000000009#1", "#2"]
    assert data[-1].name == "#2"
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record("a?", "b.") | {"image": None}, '"image": expected a valid string'),
        (record("a?", "b.", image=""), '"image": expected the name of a file'),
        (record("a?", "b.", image="../../etc/passwd"), '"image": expected the name of a file'),
        ({"id": "x", "conversations": turns("a?", "b.")}, '"image": is missing'),
        (record("a?"), "it has 1 turns"),
        (record("a?", "b.", "c?"), "it has 3 turns"),
        (record(), "it has 0 turns"),
        (record("a?", "b.") | {"conversations": "a?"}, '"conversations": expected a valid list'),
        (record("a?", "b.") | {"conversations": turns("a?")[:1] * 2}, "turn 1 must be \"from\" gpt, it is 'human'"),
        (record("a?", "b.") | {"conversations": turns("a?", "b.")[::-1]}, 'turn 0 must be "from" human'),
        (record("a?", "b.") | {"conversations": ["a?", "b."]}, '"conversations.0": expected an object'),
        ({**GOOD, "conversations": [{"from": ["human"]}, {}]}, "\"conversations.0.from\": expected 'human'"),
        (record("a?", " \n"), "turn 1 is empty"),
        (record("<image>", "b."), "turn 0 is empty"),
        ({**GOOD, "conversations": [{"from": "human", "value": 3}, {}]}, "expected a valid string, got 3"),
        (record("a?", "b.") | {"conversations": [{"from": "human"}, {}]}, '"conversations.0.value": is missing'),
        (record("a \ud83d?", "b."), "lone surrogate"),
        ([1, 2], "expected an object"),
        (float("nan"), "expected an object"),
    ],
)
def test_a_broken_record_names_itself_and_spares_the_others(tmp_path: Path, broken: Any, message: str) -> None:
    data = read(tmp_path, GOOD, broken, GOOD)
    assert len(data) == 3
    with pytest.raises(ReadsegError, match=rf"{SPLIT}\.json: record 1.*{message}"):
        data[1]
    assert data[0].dialogue == data[2].dialogue == (("Is it a cat?", "Yes."),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected {, got its end"),
        (b"[]", "holds no conversation"),
        (b"{}", "holds no conversation"),
        (b'{"data": [1], "x": 2}', "must be a list of conversations"),
    ],
)
def test_a_broken_file_is_told_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content, raw=True)
    with pytest.raises(ReadsegError, match=message) as told:
        LlavaInstruct(tmp_path, SPLIT)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def test_a_file_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    data = read(tmp_path, GOOD, GOOD)
    path = write(tmp_path, [record("Short?", "Yes."), GOOD])
    with pytest.raises(ReadsegError, match="was changed"):
        data[1]
    path.unlink()
    with pytest.raises(ReadsegError, match="cannot be read"):
        data[0]
