"""Names, protocols and samples, on miniatures of all data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from readseg.data.readers.reasonseg import ReasonSeg
from readseg.data.readers.refer import RefCoco
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import DATA_SETS, Benchmark, chosen, open_benchmark, resolve


def texts(benchmark: Benchmark) -> list[tuple[str, bool | None]]:
    return [(query.text, query.present) for page in benchmark for query in page.questions]


def test_a_data_set_stands_for_its_splits_but_train(data: Path) -> None:
    assert resolve(data, ["reasonseg"]) == ["reasonseg/val", "reasonseg/test"]
    assert sorted(resolve(data, ["refcoco"])) == ["refcoco/testA", "refcoco/testB", "refcoco/val"]
    assert resolve(data, ["refcocog"]) == ["refcocog/val", "refcocog/test"]
    everything = resolve(data, ["all"])
    assert {name.split("/")[0] for name in everything} == set(DATA_SETS)
    assert not [name for name in everything if name.endswith("train")]
    mixed = resolve(data, ["reasonseg/val", "scenes", "all", "scenes"])
    assert mixed[:2] == ["reasonseg/val", "scenes"] and len(mixed) == len(everything) + 1
    assert resolve(None, ["unseen", "scenes", "unseen"]) == ["unseen", "scenes"], "they need no data"
    assert resolve(data, ["refcoco/unc/testA", "refcoco/train"]) == ["refcoco/unc/testA", "refcoco/train"]


def test_without_the_preferred_file_there_is_another(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data / "refer_seg" / "refcocog", root / "refer_seg" / "refcocog")
    folder = root / "refer_seg" / "refcocog"
    (folder / "refs(umd_exclude_unified).p").unlink()
    assert resolve(root, ["refcocog"]) == ["refcocog/val", "refcocog/test"]
    (folder / "refs(umd).p").rename(folder / "refs(google).p")
    shutil.copy(folder / "refs(google).p", folder / "refs(mine).p")
    assert resolve(root, ["all"]) == [f"refcocog/{by}/{part}" for by in ("google", "mine") for part in ("val", "test")]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("coco", "no benchmark 'coco'; there are scenes, unseen, reasonseg"),
        ("refcoco/dev", "no split 'dev'; there is .*testA"),
        ("refcoco/umd/val", r"expected refs\(umd\)\.p"),
        ("reasonseg/dev", "no split 'dev' .* there is .*val"),
        ("reasonseg/val/x", "expected DATASET/SPLIT"),
        ("reasonseg/unc/val", "expected DATASET/SPLIT"),
        ("refcoco/", "expected DATASET/SPLIT"),
        ("Refcoco/val", "no benchmark"),
    ],
)
def test_unknown_names(name: str, told: str, data: Path) -> None:
    with pytest.raises(ReadsegError, match=told):
        open_benchmark(data, *resolve(data, [name]))


def test_missing_data_say_what_belongs_where(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"refcoco: nothing to evaluate .* readseg data check"):
        resolve(tmp_path, ["refcoco"])
    with pytest.raises(ReadsegError, match="--data"):
        resolve(None, ["refcoco"])
    with pytest.raises(ReadsegError, match="no such folder"):
        resolve(tmp_path / "none", ["all"])
    with pytest.raises(ReadsegError, match="data check"):
        resolve(tmp_path, ["all"])


def test_reasonseg_asks_the_first_text_and_when_generated_false_premises(data: Path) -> None:
    files = sorted((data / "reason_seg" / "ReasonSeg" / "test").glob("*.json"))
    records = [json.loads(file.read_bytes().decode("utf-8", "replace")) for file in files]
    forced, generated = (open_benchmark(data, "reasonseg/test", how) for how in (None, "generated"))
    assert (forced.protocol, forced.match, len(forced)) == ("forced", "union", len(files))
    first = [(record["text"][0].strip(), True) for record in records]
    assert texts(forced) == first
    false = [row[0].strip() for record in records for row in record.get("false_premise_QA", [])]
    assert false and sum(forced.left_out) == len(false)
    assert sorted(texts(generated)) == sorted([*first, *((text, False) for text in false)])
    assert sum(generated.left_out) == 0
    assert {query.sentence for page in forced for query in page.questions} == {True, False}


def test_referring_sets_ask_everything(data: Path) -> None:
    reader = RefCoco(data, "refcoco|testA")
    benchmark = open_benchmark(data, "refcoco/testA")
    entries = [reader[number] for number in range(len(reader))]
    assert texts(benchmark) == [(said.text, True) for entry in entries for said in entry.expressions]
    assert benchmark.settings == {"split": "refcoco|unc_exclude_unified|testA"}
    assert open_benchmark(data, "refcoco/unc/testA").settings == {"split": "refcoco|unc|testA"}
    page = benchmark[0]
    assert page.image_id.startswith("refer_seg/images/mscoco") and (data / page.image_id).is_file()
    assert page.questions[0].targets()[0].any()


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_protocols_are_those_that_are_published(dataset: str, data: Path) -> None:
    published = "forced" if dataset in ("reasonseg", "refclef", "refcoco", "refcoco+", "refcocog") else "generated"
    benchmark = open_benchmark(data, f"{dataset}/val")
    assert benchmark.protocol == published
    forced = open_benchmark(data, f"{dataset}/val", "forced")
    assert all(present for _, present in texts(forced))
    if published == "generated":
        lost = [present for _, present in texts(benchmark)].count(False)
        assert lost and sum(forced.left_out) <= lost
        assert len(texts(forced)) == len(texts(benchmark)) - lost


def test_wrong_arguments_are_named(data: Path) -> None:
    for name in ("coco/val", "refcoco", "unseen"):
        with pytest.raises(ReadsegError, match="expected DATASET/SPLIT"):
            open_benchmark(data, name)
    with pytest.raises(IndexError):
        open_benchmark(data, "refcoco/val")[99]


def test_a_broken_record_is_known_before_anything_is_asked(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data / "reason_seg", root / "reason_seg")
    path = sorted((root / "reason_seg" / "ReasonSeg" / "val").glob("*.json"))[-1]
    path.write_text('{"text": 3}')
    with pytest.raises(ReadsegError, match=path.name):
        open_benchmark(root, "reasonseg/val")


def numbered(count: int, *, ordered: bool = False) -> Benchmark:
    names = tuple(map(str, range(count)))
    return Benchmark("x", "generated", "union", names, page=lambda _: pytest.fail("no page is needed"), ordered=ordered)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1500])
def test_samples_are_spread_and_a_larger_one_holds_the_smaller(count: int) -> None:
    benchmark = numbered(count)
    before: set[int] = set()
    for limit in (1, 2, 3, 10, 64, 99, 2000):
        sample = chosen(benchmark, limit)
        assert sample == sorted(set(sample)) and len(sample) == min(limit, count)
        assert before <= set(sample)
        before = set(sample)
        if limit < count:
            gaps = [b - a for a, b in zip([-1, *sample], [*sample, count], strict=True)]
            assert max(gaps) <= 4 * count / limit + 1, "no part is left out"
    assert chosen(benchmark, None) == list(range(count))
    assert chosen(numbered(count, ordered=True), 3) == list(range(min(3, count)))


def test_names_of_pages_are_unique(data: Path) -> None:
    for name in resolve(data, ["all"]):
        benchmark = open_benchmark(data, name)
        keys = [query.key for page in benchmark for query in page.questions]
        assert len(set(keys)) == len(keys) and len(set(benchmark.names)) == len(benchmark)
        assert all(key.rpartition("/")[0] in benchmark.names for key in keys)
    assert len(ReasonSeg(data, "val")) == len(open_benchmark(data, "reasonseg/val"))
