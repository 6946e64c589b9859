"""Long JSON files, one record at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from readseg.data.annotations import image_hw
from readseg.data.json_records import content, elements, read_between
from readseg.errors import ReadsegError


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_elements_are_found_again_by_their_bytes(
    tmp_path: Path, indent: int | None, ascii_only: bool, mark: bytes
) -> None:
    whole: dict[str, Any] = {
        "info": {"images": [1, 2]},
        "images": [{"id": 1, "name": "Köln, 東京 😀"}, {"id": 2}],
        "empty": [],
        "annotations": [[1.5, "]"], None, "}", {}, float("inf")],
        "years": 3,
    }
    path = tmp_path / "a.json"
    path.write_bytes(mark + json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode())
    found = list(elements(path))
    assert [(key, value) for key, value, _, _ in found] == [
        (key, value) for key in ("images", "annotations") for value in whole[key]
    ]
    assert [read_between(path, start, end) for _, _, start, end in found] == [value for _, value, _, _ in found]


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"[1 2]", b'{"a": [1,]}', b"3", b"\xff\xfe"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=r"a\.json"):
        list(elements(path))


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ReadsegError, match=f"{path.name} is a pipe or a device: expected a file"):
            content(path)
        with pytest.raises(ReadsegError, match=f"{path.name} is not a regular file"):
            image_hw(path)


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "gone", "No such"), (tmp_path / "loop", "symbolic")):
        with pytest.raises(ReadsegError, match=f"{path.name} cannot be read: .*{reason}"):
            content(path)
    (tmp_path / "a").write_bytes(b"\0a")
    assert content(tmp_path / "a") == b"\0a"
