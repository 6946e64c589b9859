"""Long JSON files, one record at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from readseg.data.records import elements, read_between
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
