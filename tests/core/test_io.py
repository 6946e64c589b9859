"""What is written appears whole, replaces what was there, and leaves nothing behind when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.core.io import atomic_write


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as place:
        place.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("")
    with atomic_write(path) as place:
        place.mkdir()
        (place / "new").write_text("")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as place:
            if folder:
                place.mkdir()
            else:
                place.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
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

    def write() -> None:
        with atomic_write(path, new=True) as place:
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
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    if kind == "folder":
        assert (path / "mine").read_text() == "mine"


def test_dots_name_no_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")

    def write() -> None:
        with atomic_write(Path("new/.."), new=True) as place:
            Path("new").mkdir()
            place.mkdir()

    with pytest.raises(FileExistsError):
        write()
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_errors_name_the_place_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as error, atomic_write(path) as place:
        place.write_text("a")
    assert error.value.filename == str(path)
