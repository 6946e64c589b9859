"""Files of annotations: JSON record by record, records as models, and pickles of which nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from readseg.core.images import image_hw
from readseg.data import files
from readseg.data.files import (
    FileName,
    Record,
    Words,
    parse,
    read_bytes,
    read_json,
    read_json_at,
    read_pickle,
    scan_json,
)
from readseg.errors import ReadsegError

# -- JSON and records --------------------------------------------------------------------------------------------------


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
    found = list(scan_json(path))
    assert [(key, value) for key, value, _, _ in found] == [
        (key, value) for key in ("images", "annotations") for value in whole[key]
    ]
    assert [read_json_at(path, start, end) for _, _, start, end in found] == [value for _, value, _, _ in found]


WHOLE = json.dumps([{"id": 1, "turns": [{"a": "b"}]}, {"id": 2}]).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected {, got its end"),
        (b" \n", "got its end"),
        (b"3", "expected {, got 3"),
        (WHOLE[:-1], "got its end"),
        (WHOLE[:-9], "no whole JSON file"),
        (WHOLE[: len(WHOLE) // 2 + 4], "no whole JSON file"),
        (WHOLE + b"]", "more behind its end"),
        (WHOLE.replace(b"]}, {", b"]} {"), "expected , or ]"),
        (b"[1,]", "Expecting value"),
        (b'{"a": [1,]}', "Expecting value"),
        (b"[" * 100_000, "no whole JSON file"),
        (b"[" + b"9" * 10_000 + b"]", "no whole JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "expected {, got v"),
        (b'[{"id": "caf\xe9"}]', "not UTF-8: byte 12"),
        (b"{1: 2}", "no whole JSON file"),
        (b'{"a" 2}', "expected :"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ReadsegError, match=message) as caught:
        list(scan_json(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_what_never_ends_or_is_no_file_is_not_read(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ReadsegError, match=f"{path.name} is a pipe or a device: expected a file"):
            read_bytes(path)
        with pytest.raises(ReadsegError, match=f"{path.name} is a directory or no regular file"):
            image_hw(path)
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "gone", "No such"), (tmp_path / "loop", "symbolic")):
        with pytest.raises(ReadsegError, match=f"{path.name} cannot be read: .*{reason}"):
            read_bytes(path)


class Thing(Record):
    image: FileName
    names: list[Words]
    count: int = 0


def test_a_record_is_told_by_its_place_and_field() -> None:
    thing = parse(Thing, {"image": "a/b.jpg", "names": [" x "], "more": {}}, "a.json: record 3")
    assert (thing.image, thing.names, thing.count) == ("a/b.jpg", ["x"], 0)
    for record, message in (
        ({"names": []}, '"image": is missing'),
        ({"image": "a", "names": ["b", " "]}, "\"names.1\": expected words, got ' '"),
        ({"image": "a", "names": ["\ud83d"]}, '"names.0": holds half of a character'),
        *(
            ({"image": "a", "names": [], "count": count}, '"count": expected a valid integer, got ')
            for count in (True, 1.0, "1", None)
        ),
        *((record, "expected an object, got ") for record in (None, [], "x" * 5000, float("nan"))),
    ):
        with pytest.raises(ReadsegError) as caught:
            parse(Thing, record, "a.json: record 3")
        assert str(caught.value).startswith(f"a.json: record 3: {message}") and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name",
    ["", " ", "../a", "a/../../b", "/etc/passwd", "a\\b", "a\0b", "x" * 300, "ä" * 130, "a\ud800", None, 5, ["a"]],
)
def test_names_of_files_stay_inside_their_folder(name: Any) -> None:
    with pytest.raises(ReadsegError, match=r'"image": expected (the name of a file inside|a valid string)'):
        parse(Thing, {"image": name, "names": []}, "a")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b"9" * 10_000])
def test_what_is_no_json_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ReadsegError, match=r"a\.json is no JSON: "):
        read_json(tmp_path / "a.json")


# -- pickles -----------------------------------------------------------------------------------------------------------

RAN: list[object] = []
REF = {
    "sent_ids": [0, 1],
    "ann_id": 1719310,
    "ref_id": 0,
    "image_id": 581857,
    "split": "train",
    "sentences": [{"tokens": ["the", "café"], "raw": "THE café", "sent_id": 0, "sent": "the café", "exist": True}],
    "box": (1.5, -2, None, 2**70),
}
# What Python 2 writes for [{'sent': u'caf\xe9', 'raw': 'caf\xc3\xa9', 'ann_id': 12L, 'exist': True}] in protocol 0.
PYTHON_2 = (
    b"(lp0\n(dp1\nS'sent'\np2\nVcaf\xe9\np3\nsS'raw'\np4\nS'caf\\xc3\\xa9'\np5\n"
    b"sS'ann_id'\np6\nL12L\nsS'exist'\np7\nI01\nsa."
)
# The same in protocol 2.
PYTHON_2_BINARY = (
    b"\x80\x02]q\x01}q\x02(U\x04sentq\x03X\x05\x00\x00\x00caf\xc3\xa9q\x04U\x03rawq\x05U\x05caf\xc3\xa9q\x06"
    b"U\x06ann_idq\x07\x8a\x01\x0cU\x05existq\x08\x88ua."
)


def ran(*args: object) -> list[object]:
    RAN.append(args)
    return []


class Hostile:
    """Pickles to a call of `ran`, as an attacker's pickle calls os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ran, ("payload",)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "refs(unc).p"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert read_pickle(written(tmp_path, pickle.dumps([REF, REF], protocol))) == [REF, REF]


@pytest.mark.parametrize(
    ("content", "utf_8", "latin_1"),
    [(PYTHON_2, b"\\xc3\\xa9", b"\\xe9"), (PYTHON_2_BINARY, b"U\x05caf\xc3\xa9", b"U\x04caf\xe9")],
)
def test_text_of_python_2(tmp_path: Path, content: bytes, utf_8: bytes, latin_1: bytes) -> None:
    for encoded in (content, content.replace(utf_8, latin_1)):
        found = read_pickle(written(tmp_path, encoded))
        assert found == [{"sent": "café", "raw": "café", "ann_id": 12, "exist": True}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps([REF, Hostile()], protocol)
    RAN.clear()
    pickle.loads(content)
    assert RAN, "this pickle must be one that runs code where it is not stopped"
    RAN.clear()
    with pytest.raises(ReadsegError, match=r"refs\(unc\)\.p is refused, nothing of it was run: it asks for .*\.ran"):
        read_pickle(written(tmp_path, content))
    assert not RAN


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "builtins eval", "__builtin__ eval", "builtins getattr", "builtins bytearray",
     "copyreg _reconstructor", "copy_reg __newobj__", "numpy ndarray", "numpy._core.multiarray _reconstruct",
     "functools partial", "builtins set", "builtins set.__class__", "collections OrderedDict", "_codecs encode",
     "numpy.core.multiarray scalar", "numpy dtype", "decimal Decimal", "pathlib Path"],
)  # fmt: skip
def test_other_globals_are_refused_and_named(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    for content in (
        f"c{module}\n{attribute}\n.".encode(),
        f"(i{module}\n{attribute}\n.".encode(),
        b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(attribute)])
        + attribute.encode() + b"\x93.",
    ):  # fmt: skip
        with pytest.raises(ReadsegError, match=f"refs.unc..p is refused.*{re.escape(module)}.{re.escape(attribute)}"):
            read_pickle(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOFError"),
        (b"\x80\x05]", "damaged"),
        (b"not a pickle at all", "damaged"),
        (b"\x80\x63.", "damaged"),
        (b"Pexternal\n.", "persistent id"),
        (b"\x80\x02\x82\x01.", "damaged"),  # an extension code
        (b"I1\n(tR.", "damaged"),  # a call of a number
        (b"]}S'append'\nI1\nsb.", "damaged"),  # state for a list
        (b"c__builtin__\nset\n}S'_make'\nI1\nsb.", "refused.*__builtin__.set"),  # state for a class
        (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "refused.*_codecs.encode"),
        (b"c__builtin__\nbytes\n(I999999999999\ntR.", "refused.*__builtin__.bytes"),
        (b"\x80\x02" + b"]" * 10 + b"a" * 50 + b".", "damaged"),
        (b"(VC:\\U\n.", "damaged"),
    ],
)
def test_damaged_and_wicked_files_are_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ReadsegError, match=message) as caught:
        read_pickle(written(tmp_path, content))
    assert "refs(unc).p" in str(caught.value) and "\n" not in str(caught.value)


def test_deep_and_endless_values_are_read(tmp_path: Path) -> None:
    deep = read_pickle(written(tmp_path, b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."))
    assert len(deep) == 1
    endless: list[object] = []
    endless.append(endless)
    found = read_pickle(written(tmp_path, pickle.dumps(endless)))
    assert found[0] is found


def test_missing_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReadsegError, match=r"gone\.p cannot be read: No such file"):
        read_pickle(tmp_path / "gone.p")
    monkeypatch.setattr(files, "MAX_PICKLE_BYTES", 3)
    with pytest.raises(ReadsegError, match="too large"):
        read_pickle(written(tmp_path, b"I12345\n."))
