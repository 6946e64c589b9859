"""What is written appears whole or not at all, and JSON lines survive kills and refuse foreign files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import readseg
from readseg.core.io import JsonlStore, LineFormat, atomic_write, read_lines, write_lines
from readseg.errors import ReadsegError


def write_to(path: Path, write: Callable[[Path], object], **options: bool) -> None:
    with atomic_write(path, **options) as place:
        write(place)


def test_files_and_folders_are_replaced_at_the_end(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "model"
    path.write_text("old")
    folder.mkdir()
    (folder / "old").write_text("")
    with atomic_write(path) as place, atomic_write(folder) as part:
        place.write_text("new")
        part.mkdir()
        (part / "new").write_text("")
        assert path.read_text() == "old" and [entry.name for entry in folder.iterdir()] == ["old"]
    assert path.read_text() == "new" and [entry.name for entry in folder.iterdir()] == ["new"]
    assert sorted(tmp_path.iterdir()) == [path, folder]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail(place: Path) -> None:
        place.mkdir() if folder else place.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_to(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as left:
        left.write_text("old")
    left.mkdir()
    with atomic_write(tmp_path / "a") as place:
        place.write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link"])
def test_new_places_replace_nothing(tmp_path: Path, kind: str) -> None:
    """Also not what came while the block ran."""
    path = tmp_path / "out"

    def write(place: Path) -> None:
        place.mkdir()
        if kind == "file":
            path.write_text("mine")
        elif kind == "link":
            path.symlink_to(tmp_path / "nowhere")
        else:
            path.mkdir()
            if kind == "folder":
                (path / "mine").write_text("mine")

    with pytest.raises(FileExistsError):
        write_to(path, write, new=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    if kind == "folder":
        assert (path / "mine").read_text() == "mine"


def test_dots_name_no_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError):
        write_to(Path("new/.."), lambda place: (Path("new").mkdir(), place.mkdir()), new=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_errors_name_the_place_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as error, atomic_write(path) as place:
        place.write_text("a")
    assert error.value.filename == str(path)


# -- JSON lines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    key: str
    values: tuple[float, ...] = ()
    text: str | None = None


ITEMS = LineFormat("items-2", Item)
HEADER = {"settings": {"model": "tiny", "k": 3}, "about": {"of": 2}}
FIRST, SECOND, THIRD = Item("a/0", (0.1, 1e-300)), Item("a/1", text="désolé –\n"), Item("b/0", (2.0,), "x")


def write(path: Path, *items: Item) -> None:
    with JsonlStore(path, ITEMS, HEADER) as store:
        for item in items:
            store.add(item)


def stored(path: Path) -> list[Item]:
    return list(read_lines(path, ITEMS, HEADER).records.values())


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "p.jsonl"
    write(path, FIRST, SECOND)
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"format": "items-2", "settings": {"model": "tiny", "k": 3}, "about": {"of": 2}}',
        '{"key": "a/0", "values": [0.1, 1e-300], "text": null}',
        '{"key": "a/1", "values": [], "text": "désolé –\\n"}',
    ]
    with JsonlStore(path, ITEMS, {**HEADER, "about": {}}) as store:  # what only describes may differ
        assert list(store.records.values()) == [FIRST, SECOND]
        store.add(THIRD)
        assert stored(path) == [FIRST, SECOND, THIRD], "a line is on its way as soon as it is added"
        with pytest.raises(ReadsegError, match="'a/0' is there already"):
            store.add(FIRST)
    write_lines(tmp_path / "again.jsonl", ITEMS, read_lines(path, ITEMS).header, [FIRST, SECOND, THIRD])
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    with JsonlStore(None, ITEMS, HEADER) as memory:
        memory.add(FIRST)
        assert memory.records == {"a/0": FIRST}


def test_every_possible_cut_of_the_last_line(tmp_path: Path) -> None:
    """Whatever a kill left of the last line, what stood before it is kept and the run goes on."""
    path = tmp_path / "p.jsonl"
    write(path, FIRST)
    before = path.read_bytes()
    write(path, SECOND)
    content = path.read_bytes()
    for length in range(len(before), len(content)):
        path.write_bytes(content[:length])
        assert stored(path) == [FIRST]
        assert path.stat().st_size == length, "reading changes nothing"
        write(path, SECOND)
        assert path.read_bytes() == content


def test_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    code = f"""
import sys
from pathlib import Path
from test_io import HEADER, ITEMS, Item, JsonlStore
store = JsonlStore(Path({str(path)!r}), ITEMS, HEADER)
number = 0
while True:
    store.add(Item(str(number), text="x" * 2000))
    number += 1
    print(number, flush=True)
"""
    paths = [Path(readseg.__file__).parent.parent, Path(__file__).parent]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    reported = 0
    while reported < 50:
        reported = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    reported = max([reported, *map(int, child.stdout.read().split())])
    child.wait()
    child.stdout.close()
    with JsonlStore(path, ITEMS, HEADER) as store:
        assert len(store.records) >= reported
        assert list(store.records) == [str(number) for number in range(len(store.records))]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"settings": {"model": "big", "k": 3}}, "model: 'tiny' there, 'big' now"),
        ({"settings": {"model": "tiny"}}, "k: 3 there, None now"),
        ({"study": "maps"}, "line 1: study: expected str, got None"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, header: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.jsonl"
    write(path, FIRST)
    content = path.read_bytes()
    with pytest.raises(ReadsegError, match=rf"p\.jsonl.*{message}"):
        JsonlStore(path, ITEMS, {**HEADER, **header})
    assert path.read_bytes() == content


def test_settings_compare_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for settings in ({"size": (1, 2), 3: None}, {"size": [1, 2], "3": None}):
        with JsonlStore(path, ITEMS, {"settings": settings, "about": {}}) as store:
            assert not store.records


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with JsonlStore(path, ITEMS, HEADER) as store:
        store.add(FIRST)
        with pytest.raises(ReadsegError, match=r"p\.jsonl: another process"):
            JsonlStore(path, ITEMS, HEADER)
        store.add(SECOND)
    assert stored(path) == [FIRST, SECOND]


HEAD = b'{"format": "items-2", "settings": {}, "about": {}}\n'
LINE = b'{"key": "a", "values": [1.5], "text": null}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: Invalid JSON"),
        (b"hello\n", "line 1: Invalid JSON"),
        (b'{"format": "something else"}\n', "line 1.*'items-2', got 'something else'"),
        (b'{"format": "items-1", "settings": {}}\n', "line 1.*another version"),
        (b'{"format": "items-2", "settings": {}}\n', "line 1: about"),
        (b'{"format": "items-2", "settings": [], "about": {}}\n', "line 1: settings"),
        (b"[1]\n", "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
        (b"\xff\xfe\x00\n", "line 1"),
        (HEAD + b"null\n", "line 2"),
        (HEAD + b'{"key": \n', "line 2: Invalid JSON"),
        (HEAD + b"[" * 100_000 + b"\n", "line 2: Invalid JSON"),
        (HEAD + LINE + b"\n", "line 3"),
        (HEAD + LINE + LINE, "line 3: key 'a' occurs twice"),
        (HEAD + b'{"values": []}\n', "line 2: key: Field required"),
        (HEAD + b'{"key": 1}\n', "line 2: key: .*got 1"),
        (HEAD + b'{"key": "a", "values": [1, "2"]}\n', r"line 2: values\.1: .*got '2'"),
        (HEAD + b'{"key": "a", "values": [true]}\n', r"line 2: values\.0"),
        (HEAD + b'{"key": "a", "text": 3}\n', "line 2: text"),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    for attempt in (lambda: read_lines(path, ITEMS), lambda: JsonlStore(path, ITEMS, {"settings": {}, "about": {}})):
        with pytest.raises(ReadsegError, match=rf"p\.jsonl, {message}"):
            attempt()
    assert path.read_bytes() == content


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ReadsegError, match=rf"{path}: cannot be read"):
            read_lines(path, ITEMS)
