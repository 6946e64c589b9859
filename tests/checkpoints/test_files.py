"""Files of weights come back as written, or as an error of one line; no file runs code, copies or is changed."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from readseg.checkpoints import files
from readseg.checkpoints.files import fetch, read_weights, write_weights
from readseg.errors import ReadsegError
from released import RunsCode

Weights = dict[str, Tensor]


def some_weights() -> Weights:
    """All dtypes, and every way in which a tensor can be less or more than its memory."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(7, 5, generator=generator)
    return {
        "plain": plain,
        "shared": plain,
        "a.view": torch.randn(1000, generator=generator)[3:9],
        "transposed": torch.randn(4, 8, generator=generator).T,
        "expanded": torch.ones(1).expand(6),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
        "empty": torch.zeros(0, 3),
        "also.empty": torch.zeros(0),
        "scalar": torch.tensor(5),
        "bool": torch.tensor([True, False]),
        **{str(dtype): torch.arange(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(dtype): torch.arange(3).to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)},
    }


def check_same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert type(got[key]) is Tensor and not got[key].requires_grad
        assert got[key].dtype == value.dtype and torch.equal(got[key], value), key


def written(folder: Path, state: Mapping[str, Tensor] | None = None, *, safe: bool, shard_bytes: int = 10**9) -> Path:
    folder.mkdir(parents=True)
    write_weights(some_weights() if state is None else state, folder, safe=safe, shard_bytes=shard_bytes)
    return folder


def refused(place: Path | str, *parts: str, by: Callable[..., object] = read_weights) -> str:
    """The message of an error, which is one line, has these parts and gives no unsafe advice."""
    with pytest.raises(ReadsegError) as caught:
        by(place)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message.replace(str(place), "")) < 500
    assert "weights_only" not in message and "trust" not in message and "internal" not in message
    for part in parts:
        assert part in message, message
    return message


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def shard(number: int, safe: bool, of: int = 2) -> str:
    stem, kind = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    return f"{stem}-{number:05d}-of-{of:05d}.{kind}"


def index_name(safe: bool) -> str:
    return f"{'model.safetensors' if safe else 'pytorch_model.bin'}.index.json"


both_kinds = pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])


# ------------------------------------------------------------------------------------------------- there and back


@both_kinds
def test_one_file_comes_back(tmp_path: Path, safe: bool) -> None:
    folder = written(tmp_path / "m", safe=safe)
    assert names(folder) == {"model.safetensors" if safe else "pytorch_model.bin"}
    file = next(folder.iterdir())
    check_same(read_weights(folder), some_weights())
    check_same(read_weights(file), some_weights())
    # The same weights are the same bytes: no name of a temporary place is in them.
    assert file.read_bytes() == next(written(tmp_path / "again", safe=safe).iterdir()).read_bytes()


@both_kinds
def test_shards_come_back(tmp_path: Path, safe: bool) -> None:
    state = {name: torch.full((10,), float(number)) for number, name in enumerate("dacbe")}  # 40 bytes each
    folder = written(tmp_path / "m", state, safe=safe, shard_bytes=80)
    index = json.loads((folder / index_name(safe)).read_text())
    assert index["metadata"] == {"total_size": 200}
    numbers = {"d": 1, "a": 1, "c": 2, "b": 2, "e": 3}
    assert index["weight_map"] == {key: shard(number, safe, of=3) for key, number in numbers.items()}
    assert names(folder) == {shard(number, safe, of=3) for number in (1, 2, 3)} | {index_name(safe)}
    check_same(read_weights(folder), state)
    check_same(read_weights(folder / index_name(safe)), state)
    assert read_weights(folder / shard(2, safe, of=3)).keys() == {"c", "b"}


@both_kinds
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), shard_bytes=st.integers(1, 200))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_sizes_come_back_and_no_shard_is_too_large(safe: bool, sizes: list[int], shard_bytes: int) -> None:
    state = {f"k{number}": torch.arange(size, dtype=torch.float32) for number, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as name:
        write_weights(state, Path(name), safe=safe, shard_bytes=shard_bytes)
        check_same(read_weights(Path(name)), state)
        for path in Path(name).glob("*-of-*"):
            held = read_weights(path)
            assert sum(value.nbytes for value in held.values()) <= shard_bytes or len(held) == 1
        assert not [path for path in Path(name).iterdir() if path.name.startswith(".")]


@both_kinds
def test_memory_that_tensors_share_is_neither_written_nor_shared_after_reading(tmp_path: Path, safe: bool) -> None:
    large = torch.ones(100_000)
    view, column = large[:10], large.view(-1, 10)[:5, 0]
    folder = written(tmp_path / "m", {"view": view, "same": view, "column": column}, safe=safe)
    assert next(folder.iterdir()).stat().st_size < 4000
    state = read_weights(folder)
    state["view"].zero_()
    assert state["same"].all() and state["column"].all()


def test_transformers_and_torch_read_what_is_written(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = written(tmp_path / "bin", safe=False)
    check_same(torch.load(folder / "pytorch_model.bin", weights_only=True), some_weights())
    with safe_open(written(tmp_path / "safe", safe=True) / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        check_same({key: file.get_tensor(key) for key in file.keys()}, some_weights())  # noqa: SIM118


# ------------------------------------------------------------------------------------------------------ writing


class Made(Mapping[str, Tensor]):
    """Tensors that are made when asked for; notes how many bytes of them were alive at once."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.most = count, size, 0
        self.made: list[StorageWeakRef] = []

    def __getitem__(self, key: str) -> Tensor:
        tensor = torch.full((self.size,), int(key[1:]), dtype=torch.uint8)
        self.made.append(StorageWeakRef(tensor.untyped_storage()))
        self.most = max(self.most, self.size * sum(not made.expired() for made in self.made))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(f"k{number}" for number in range(self.count))

    def __len__(self) -> int:
        return self.count


@both_kinds
def test_no_more_than_one_shard_is_held(tmp_path: Path, safe: bool) -> None:
    made = Made(count=12, size=100)
    folder = written(tmp_path / "m", made, safe=safe, shard_bytes=300)
    assert 100 <= made.most <= 300
    assert len(made.made) == 2 * 12
    check_same(read_weights(folder), dict(made))
    assert made.most == 1200  # the count can see too many


@both_kinds
def test_mapped_weights_are_written_again(tmp_path: Path, safe: bool) -> None:
    first = read_weights(written(tmp_path / "a", safe=safe, shard_bytes=60))
    check_same(read_weights(written(tmp_path / "b", first, safe=not safe, shard_bytes=100)), some_weights())


WRONG_TENSORS: dict[str, Callable[[], object]] = {
    "complex64": lambda: torch.zeros(2, dtype=torch.complex64),
    "float8_e4m3fn": lambda: torch.zeros(2, dtype=torch.float8_e4m3fn),
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
    "qint8": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


# -------------------------------------------------------------------------------------------- which file is read


def test_the_order_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "training_args.bin").write_bytes(b"not weights")
    (folder / "config.json").write_text("{}")
    for value, (safe, shards) in enumerate([(False, False), (False, True), (True, False), (True, True)]):
        state = {name: torch.full((4,), value) for name in "ab"}
        source = written(tmp_path / f"{value}", state, safe=safe, shard_bytes=16 if shards else 1000)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        check_same(read_weights(folder), state)


@pytest.mark.parametrize("name", ["sam_vit_h_4b8939.pth", "x.pt", "adapter.bin", "x-00001-of-00001.bin"])
def test_the_only_file_of_a_folder(tmp_path: Path, name: str) -> None:
    torch.save(some_weights(), tmp_path / name)
    (tmp_path / "README.md").write_text("")
    check_same(read_weights(tmp_path), some_weights())
    check_same(read_weights(tmp_path / name), some_weights())
    (tmp_path / "b.safetensors").write_bytes(b"")
    refused(tmp_path, f"{tmp_path} holds '", f"'{name}'", "'b.safetensors'", " and no index")


def test_one_of_many_shards_is_not_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model-00001-of-00012.bin"
    torch.save(some_weights(), path)
    refused(tmp_path, path.name, "no index")
    check_same(read_weights(path), some_weights())


def test_wrong_places_are_errors(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path} holds no weights", "pytorch_model.bin", ".pth")
    refused(tmp_path / "absent.bin", "absent.bin cannot be read: No such file")
    refused(tmp_path / "absent", "absent: expected a folder or a file of weights")
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path / "notes.txt", "notes.txt: expected a folder or a file of weights")
    (tmp_path / "loop.bin").symlink_to("loop.bin")
    refused(tmp_path / "loop.bin", "loop.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "x.pth"])
def test_what_is_no_file_of_weights_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    refused(tmp_path, f"{name} cannot be read: Is a directory")
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("../blobs/gone")
    refused(tmp_path, f"{name} cannot be read: No such file")
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976576152\n")
    refused(tmp_path, f"{name} is a pointer of git-lfs", "git lfs pull")


# ----------------------------------------------------------------------------------------------------- wrappers


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read anything; be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX knows them")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_what_may_not_be_read_is_an_error(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / name).write_bytes(b"x")
        (place / name).chmod(0)
        with without_rights():
            refused(place, f"{place / name} cannot be read: Permission denied")
        (place / "shut").mkdir()
        (place / "shut").chmod(0)
        with without_rights():
            refused(place / "shut", f"{place / 'shut'} cannot be read: Permission denied")
            refused(place / "shut" / name, "cannot be read: Permission denied")
        (place / "shut").chmod(0o755)


@both_kinds
def test_files_that_cannot_be_written_can_be_read(tmp_path: Path, safe: bool) -> None:
    folder = written(tmp_path / "m", safe=safe)
    path = next(folder.iterdir())
    path.chmod(0o444)
    before = path.stat()
    check_same(read_weights(folder), some_weights())
    assert names(folder) == {path.name} and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("wrapper", ["module", "state_dict", "model"])
def test_what_trainers_wrap_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, "loss": 0.5, "by": "me", "lr": None, wrapper: some_weights()}, tmp_path / "x.pth")
    check_same(read_weights(tmp_path), some_weights())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        *[({"model": {"a": torch.ones(1)}, other: content}, "'model'") for other, content in
            (("optimizer", {"step": torch.ones(1)}), ("state_dict", {"a": torch.ones(1)}), ("extra", torch.ones(1)))],
        ({"weights": {"a": torch.ones(1)}}, "'weights'"),
        ({"model": {"module": {"a": torch.ones(1)}}}, "'module'"),
        ({"a": torch.ones(1), "step": 7}, "'step': a int"),
        ({"a": [torch.ones(1)]}, "'a': a list"),
        ({1: torch.ones(1)}, "got 1: a Tensor"),
        ({}, "an empty dict"),
        ({"model": {}}, "an empty dict"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        (None, "a NoneType"),
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_weights(tmp_path: Path, content: object, named: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path, str(tmp_path / "x.pth"), named)


def test_a_tensor_named_as_a_wrapper_is_a_tensor(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(1), "module": torch.ones(2)}, tmp_path / "x.pth")
    assert read_weights(tmp_path).keys() == {"model", "module"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "what"),
    [
        *(("x.pth", what) for what in WRONG_TENSORS),
        *(("x.safetensors", what) for what in ("complex64", "float8_e4m3fn")),
    ],
)
def test_odd_tensors_are_not_read(tmp_path: Path, file: str, what: str) -> None:
    state = {"a": torch.ones(1), "b.odd": WRONG_TENSORS[what]()}
    (torch.save if file == "x.pth" else save_file)(state, tmp_path / file)  # type: ignore[operator]
    refused(tmp_path, f"{file}: 'b.odd' is of a kind that is not supported", what)


# --------------------------------------------------------------------------------------------- hostile and damaged


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, old_format: bool) -> None:
    (tmp_path / "m").mkdir()
    content = {"a": torch.ones(1), "b": RunsCode(tmp_path / "ran")}
    torch.save(content, tmp_path / "m" / "x.bin", _use_new_zipfile_serialization=not old_format)
    refused(tmp_path / "m", "x.bin holds more than tensors ('", ".system')", "safetensors")
    assert names(tmp_path) == {"m"} and names(tmp_path / "m") == {"x.bin"}
    torch.load(tmp_path / "m" / "x.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # so the file was no blank


def test_other_pickles_run_no_code_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    refused(tmp_path, "x.bin")
    assert names(tmp_path) == {"x.bin"}
    torch.save({"a": torch.ones(1), "where": Path("x")}, tmp_path / "x.bin")
    refused(tmp_path, "x.bin holds more than tensors ('pathlib.")


@pytest.mark.filterwarnings("error")
def test_a_script_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name, text in {"constants.pkl": b"", "version": b"3", "data.pkl": b"", "byteorder": b"little"}.items():
            archive.writestr(f"x/{name}", text)
    refused(tmp_path, "x.pt is truncated, damaged or of another format")


FORMATS = ("x.bin", "x.safetensors", "old.pth")


@pytest.fixture(scope="module")
def whole_files() -> dict[str, bytes]:
    """A file of each format, by a name of its kind."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for path in (Path(name) / each for each in FORMATS):
            if path.suffix == ".safetensors":
                save_file({key: value.detach().clone().contiguous() for key, value in some_weights().items()}, path)
            else:
                torch.save(some_weights(), path, _use_new_zipfile_serialization=path.suffix != ".pth")
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_truncated_file_is_an_error(whole_files: dict[str, bytes], name: str, data: st.DataObject) -> None:
    content = whole_files[name]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        check_same(read_weights(Path(folder)), some_weights())
        (Path(folder) / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        # A name that is cut off is one that torch does not know.
        told = refused(Path(folder), str(Path(folder) / name), "damaged")
        assert "is truncated, damaged or of another format" in told or name == "old.pth"


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_changed_bytes_give_tensors_or_an_error(whole_files: dict[str, bytes], name: str, data: st.DataObject) -> None:
    content = bytearray(whole_files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            state = read_weights(Path(folder))
        except ReadsegError as error:
            assert len(str(error).splitlines()) == 1 and "weights_only" not in str(error)
        else:
            assert all(type(value) is Tensor and str(value.sum()) for value in state.values())


@given(content=st.binary(max_size=200))
@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("head", [b"", b"PK\3\4", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{}"])
def test_garbage_is_an_error(name: str, head: bytes, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(head + content)
        refused(Path(folder), name)


# ------------------------------------------------------------------------------------------------------- the index


@pytest.fixture(params=[False, True], ids=["bin", "safetensors"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A folder with two shards of one tensor each, a and b; whether they are safetensors."""
    state = {"a": torch.ones(4), "b": torch.full((4,), 2.0)}
    return written(tmp_path / "m", state, safe=request.param, shard_bytes=16), request.param


def one_shard(folder: Path, number: int, safe: bool, **state: Tensor) -> None:
    path = folder / shard(number, safe)
    if safe:
        save_file(state, path)
    else:
        torch.save(state, path)


def test_a_missing_shard_is_named(sharded: tuple[Path, bool]) -> None:
    folder, safe = sharded
    (folder / shard(2, safe)).unlink()
    refused(folder, str(folder), f"lacks '{shard(2, safe)}'", index_name(safe))


def test_a_shard_that_does_not_fit_the_index_is_named(sharded: tuple[Path, bool]) -> None:
    folder, safe = sharded
    index, first, second = folder / index_name(safe), shard(1, safe), shard(2, safe)
    for weight_map, path, keys in (
        ({"a": first, "b": second, "c": second}, second, "'c'"),  # promised and not there
        ({"a": first, "c": second}, second, "'b', 'c'"),  # there and not listed
        ({"a": second, "b": first}, first, "'a', 'b'"),  # in another shard than promised
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(folder, f"{folder / path} and {index.name} do not agree whether it holds {keys}")
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    one_shard(folder, 2, safe, a=torch.zeros(4), b=torch.ones(4))
    refused(folder, f"{folder / second} and", "'a'")  # in both


def test_an_index_names_only_files_beside_it(sharded: tuple[Path, bool]) -> None:
    folder, safe = sharded
    torch.save({"b": torch.ones(4)}, folder.parent / "x.bin")
    for name in ("../x.bin", "/etc/passwd", "sub/x.bin", "..", ".", "", "..\\x.bin", "a\0.bin", 3, None):
        (folder / index_name(safe)).write_text(json.dumps({"weight_map": {"a": shard(1, safe), "b": name}}))
        refused(folder, f"{index_name(safe)}: 'b' is said to lie in {name!r}")


def test_a_wrong_index_is_an_error(sharded: tuple[Path, bool]) -> None:
    folder, safe = sharded
    for text, told in (
        *((text, "is no JSON") for text in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000)),
        *((text, "must hold settings by name") for text in (b"[]", b"3")),
        *((text, "expected 'weight_map'") for text in (b"{}", b'{"weight_map": {}}', b'{"weight_map": ["a"]}')),
        (b'{"weight_map": {"a": ["x.bin"]}}', "'a' is said to lie in ['x.bin']"),
    ):
        (folder / index_name(safe)).write_bytes(text)
        refused(folder, index_name(safe), told)


def test_long_lists_are_cut(sharded: tuple[Path, bool]) -> None:
    folder, safe = sharded
    one_shard(folder, 2, safe, **{f"layer\n{number}": torch.ones(1) for number in range(40)})
    assert refused(folder, "holds 'b', 'layer\\n0'", "and 36 more").count("layer") == 4


# ----------------------------------------------------------------------------------------------- mapped, not copied


@both_kinds
def test_neither_tensors_nor_their_file_change_with_the_other(tmp_path: Path, safe: bool) -> None:
    (path,) = written(tmp_path / "m", safe=safe).iterdir()
    before = path.read_bytes()
    for value in read_weights(path).values():
        value.zero_()
    assert path.read_bytes() == before
    with torch.device("meta"):  # where new tensors are made does not matter
        held = read_weights(path)
    (tmp_path / "new").write_bytes(bytes(path.stat().st_size))
    (tmp_path / "new").replace(path)
    check_same(held, some_weights())


class Hub:
    """A hub on this machine, of one repository "owner/model"; it notes which files were asked for."""

    sha = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.gated = False
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = hub.answer(self.path.split("?")[0])
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    with suppress(ConnectionError):  # a client that has given up
                        self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.refusal:
            return self.refusal[0], {"X-Error-Code": self.refusal[1]}, b"{}"
        if path in {"/api/models/owner/model", "/api/models/owner/model/revision/main"}:
            listed = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": "owner/model", "sha": self.sha, "siblings": listed}).encode()
        if path == f"/api/models/owner/model/tree/{self.sha}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{hash(name) & 0xFFFF:040x}"}
                for name, content in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        name = path.removeprefix(f"/owner/model/resolve/{self.sha}/")
        if name in self.files:
            self.asked.append(name)
            if self.gated:
                return 403, {"X-Error-Code": "GatedRepo"}, b""
            return 200, {"ETag": f'"{hash(name) & 0xFFFF:040x}"', "X-Repo-Commit": self.sha}, self.files[name]
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def not_fetched(name: str | Path, *parts: str) -> None:
    start = time.perf_counter()
    refused(name, *parts, by=fetch)
    assert time.perf_counter() - start < 5


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


MANY = (
    *("config.json", "added_tokens.json", "tokenizer.model", "README.md", "training_args.bin", "optimizer.bin"),
    *("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
    *("my_optimizer.json", "tf_model.h5", "flax_model.msgpack", "model.onnx", "sam_vit_h_4b8939.pth"),
    *("onnx/model.safetensors", "global_step10/x.bin", "sub/config.json"),
)
TEXTS = {"config.json", "added_tokens.json", "tokenizer.model"}
BINS = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"}


def test_only_what_is_needed_is_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {name: name.encode() for name in MANY}
    folder = fetch("owner/model")
    assert folder.is_absolute() and names(folder) == TEXTS | BINS
    assert (folder / "tokenizer.model").read_bytes() == b"tokenizer.model"
    assert set(hub.asked) == TEXTS | BINS
    # Without the hub the same folder is found, if nothing of it is gone.
    offline(monkeypatch)
    assert fetch("owner/model") == folder
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    not_fetched("owner/model", "owner/model", "the hub gave no answer", "HF_HUB_OFFLINE")


def test_safetensors_go_first_and_are_read_where_they_were_fetched(hub: Hub, tmp_path: Path) -> None:
    safe = {path.name: path.read_bytes() for path in written(tmp_path / "m", safe=True, shard_bytes=60).iterdir()}
    hub.files = dict.fromkeys(MANY, b"x") | safe
    got = fetch("owner/model")
    assert names(got) == TEXTS | safe.keys()
    assert any(path.is_symlink() for path in got.iterdir())
    check_same(read_weights(got), some_weights())


def test_a_repository_without_weights_is_an_error(hub: Hub) -> None:
    hub.files = dict.fromkeys(["config.json", "sub/model.safetensors", "x.pth", "optimizer.bin"], b"x")
    not_fetched("owner/model", "owner/model holds no weights")
    assert set(hub.asked) == {"config.json"}


def test_refusals_of_the_hub_are_told(hub: Hub) -> None:
    hub.files = {"model.safetensors": b"x"}
    not_fetched("owner/absent", "owner/absent is no folder, nor a repository of the hub", "hf auth login")
    not_fetched("runs--x/model", "runs--x/model is no folder, nor a repository of the hub")
    hub.gated = True
    not_fetched("owner/model", "owner/model is gated", "https://huggingface.co/owner/model")
    hub.gated, hub.refusal = False, (403, "GatedRepo")
    not_fetched("owner/model", "owner/model is gated")
    hub.refusal = (401, "RepoNotFound")
    not_fetched("owner/model", "nor a repository of the hub, or a private one")
    hub.refusal = (503, "")
    not_fetched("owner/model", "the hub gave no answer (", "503")


def test_a_download_that_breaks_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device\nfor this")

    hub.files = {"model.safetensors": b"x"}
    monkeypatch.setattr(files, "snapshot_download", fail)
    not_fetched("owner/model", "owner/model was not fetched as a whole", "No space left", "try again")


def test_a_hub_that_is_down_or_silent_does_not_hold_us_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"model.safetensors": b"x"}
    folder = fetch("owner/model")
    held = threading.Event()
    monkeypatch.setattr(files, "HUB_TIMEOUT_S", 0.2)
    monkeypatch.setattr(hub, "answer", lambda path: (held.wait(20), (503, {}, b""))[1])
    try:
        assert fetch("owner/model") == folder
        not_fetched("owner/other", "owner/other is no folder", "the hub gave no answer (")
    finally:
        held.set()
    hub.server.server_close()
    assert fetch("owner/model") == folder
    not_fetched("owner/other", "the hub gave no answer")


def test_a_copy_of_another_program_is_used(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    place = tmp_path / "cache" / "models--owner--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(hub.sha)
    (place / "snapshots" / hub.sha).mkdir(parents=True)
    not_fetched("owner/model", "holds no weights")
    (place / "snapshots" / hub.sha / "pytorch_model.bin").write_bytes(b"x")
    assert fetch("owner/model") == place / "snapshots" / hub.sha


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    for name in ("owner/model", Path("owner/model"), "~/owner/model", str(tmp_path / "owner/../owner/model")):
        assert fetch(name) == tmp_path.resolve() / "owner" / "model"


def test_what_is_neither_folder_nor_repository_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"")
    not_fetched(tmp_path / "x.bin", "x.bin is a file", "expected a folder")
    for name in ("", "absent", "./absent/x", "../a/b", "/absent/x", "a/b/c", "~/absent", "a b/c", "https://x/y", "ä/b"):
        not_fetched(name, f"{name!r}: no such folder")
    for name in ("~nobody-of-this-name/x", "a\0b", "x" * 5000):
        not_fetched(name, "no such folder")
    not_fetched(Path("owner/model"), "owner/model is no folder", "HF_HUB_OFFLINE")
