"""What is written appears whole, replaces what was there, and leaves nothing behind when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from readseg.files import whole


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as place:
        place.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("")
    with whole(path) as place:
        place.mkdir()
        (place / "new").write_text("")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail() -> None:
        with whole(path) as place:
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
    with whole(tmp_path / "a") as left:
        left.write_text("old")
    left.mkdir()
    with whole(tmp_path / "a") as place:
        place.write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
