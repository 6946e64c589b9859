"""The mixture: exact ratios, whole passes, the same draws for everybody, true answers, and broken files passed over."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from readseg.data import mixture
from readseg.data.mixture import KINDS, BrokenRecords, Mixture, MixtureItem, parse_ratio
from readseg.data.registry import DATA_SETS
from readseg.data.types import Entry, Expression
from readseg.errors import ReadsegError
from readseg.miniatures.pictures import Picture

IMAGES = 8
REFER = ("refer_seg", "correct_refer_seg", "neg_refer_seg")


@pytest.fixture(scope="module")
def root(data: Path) -> Path:
    return data


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of some of the data sets, to damage."""

    def copy(*folders: str) -> Path:
        for folder in folders:
            shutil.copytree(root / folder, tmp_path / folder, dirs_exist_ok=True)
        return tmp_path

    return copy


class Made:
    """A data set made by hand: as many entries as asked for, all of one image, counted when they are read."""

    def __init__(self, image: Path, size: int, make: Callable[[int], Any], name: str = "ade20k|training") -> None:
        self.image, self.size, self.make, self.name = image, size, make, name
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Entry:
        self.read.append(index)
        return Entry(str(index), self.image, **self.make(index))


@pytest.fixture
def made(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Puts a data set made by hand into the place of one that is on disk."""

    def put(size: int, make: Callable[[int], Any], place: str = "ade20k") -> Made:
        data = Made(sorted((root / "ade20k/images/training").iterdir())[0], size, make, f"{place}|made")
        monkeypatch.setitem(DATA_SETS, place, replace(DATA_SETS[place], open=lambda root, split: data))
        return data

    return put


@pytest.fixture(scope="module")
def hw(root: Path) -> tuple[int, int]:
    entry = DATA_SETS["ade20k"].open(root, "training")[0]
    assert entry.expressions[0].mask is not None
    height, width = entry.expressions[0].mask().shape
    return height, width


def true(text: str, hw: tuple[int, int], value: int = 1, **more: Any) -> Expression:
    """Something that is there, its mask full of a value."""
    return Expression(text, False, True, lambda: np.full(hw, value, np.uint8), **more)


def one(root: Path, kind: str, name: str | None = None, **more: Any) -> Mixture:
    return Mixture(root, {kind: 1}, data_sets={kind: [name]} if name else None, **more)


def said(drawn: MixtureItem) -> tuple[Any, ...]:
    """All of a draw, to compare."""
    turns = [
        (turn.question, turn.answer, turn.present, turn.kind, turn.tags, [mask.tobytes() for mask in turn.masks])
        for turn in drawn.sample.turns
    ]
    image = drawn.sample.image
    assert isinstance(image, np.ndarray)
    return drawn.kind, drawn.data_set, drawn.sample.name, drawn.dialogue, drawn.skipped, image.tobytes(), turns


def entries(root: Path, data_set: str) -> dict[str, Entry]:
    """Of the split that a draw names, by name."""
    base, _, split = data_set.partition("|")
    reader = DATA_SETS[base].open(root, data_set if DATA_SETS[base].has_variants else split)
    return {entry.name: entry for entry in (reader[place] for place in range(len(reader)))}


def usual(kind: str) -> list[str]:
    """The data sets that a kind takes by default."""
    return [name for name, data_set in DATA_SETS.items() if data_set.kind == kind]


# -- the sequence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["10:1:1:1:1:10", "0:12:2:2:1:0", "1:0:0:0:0:0"])
def test_every_block_holds_the_ratio_exactly(root: Path, text: str) -> None:
    ratio = parse_ratio(text)
    data = Mixture(root, ratio)
    size = sum(ratio.values())
    blocks = [[data._kind(block * size + place) for place in range(size)] for block in range(6)]
    for block in blocks:
        assert Counter(kind for kind, _ in block) == {kind: weight for kind, weight in ratio.items() if weight}
    assert size == 1 or len({tuple(kind for kind, _ in block) for block in blocks}) > 1
    # The draws of each kind are counted without a gap.
    for kind in data._weights:
        assert [n for block in blocks for k, n in block if k == kind] == list(range(6 * ratio[kind]))
    assert [data.draw(number).kind for number in range(size)] == [kind for kind, _ in blocks[0]]


def test_a_kind_goes_round_its_data_sets(root: Path) -> None:
    data = one(root, "sem_seg")
    names = [data.draw(number).data_set.split("|")[0] for number in range(40)]
    rounds = {tuple(names[start : start + 5]) for start in range(0, 40, 5)}
    assert len(rounds) > 1 and all(sorted(own) == sorted(usual("sem_seg")) for own in rounds)


def test_every_entry_comes_once_before_any_comes_again(root: Path) -> None:
    data = Mixture(root, parse_ratio("3:2:1:1:1:2"), data_sets={"sem_seg": ["ade20k", "mapillary"]})
    seen: dict[str, list[str]] = {}
    for number in range(250):
        drawn = data.draw(number)
        assert not drawn.skipped
        seen.setdefault(drawn.data_set, []).append(drawn.sample.name)
    assert seen.keys() == {part.data_set for part in data.sources}
    for part in data.sources:
        names = seen[part.data_set]
        passes = [tuple(names[start : start + part.entries]) for start in range(0, len(names), part.entries)]
        assert len(passes) > 2 and len(set(passes)) > 1
        assert all(len(set(own)) == len(own) for own in passes)


def test_a_draw_is_a_function_of_its_number(root: Path) -> None:
    ratio = parse_ratio("2:1:1:1:1:2")
    first, second, other = Mixture(root, ratio), Mixture(root, ratio), Mixture(root, ratio, seed=1)
    told = [said(first.draw(number)) for number in range(16)]
    assert [said(second.draw(number)) for number in reversed(range(16))] == told[::-1]
    assert said(first.draw(5)) == told[5]
    assert [said(other.draw(number)) for number in range(16)] != told
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: said(first.draw(number)), range(16))) == told
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert [said(drawn) for drawn in pool.map(first.draw, [3, 15, 0])] == [told[number] for number in (3, 15, 0)]


def test_a_draw_reads_one_entry_of_many(made: Callable[..., Made], root: Path, hw: tuple[int, int]) -> None:
    data = made(1_000_000, lambda index: {"expressions": (true("cow", hw),)})
    drawn = one(root, "sem_seg", "ade20k")
    assert not data.read
    names = {drawn.draw(number).sample.name for number in (0, 999_999, 123_456_789)}
    assert len(data.read) == len(names) == 3


def test_what_it_is_made_of_is_told_and_only_training_splits_are_read(root: Path) -> None:
    data = Mixture(root, parse_ratio("10:0:1:1:0:10"), data_sets={"sem_seg": ["mapillary"]})
    told = [(part.kind, part.weight, part.data_set, part.entries) for part in data.sources]
    assert told[0] == ("sem_seg", 10, "mapillary|training", IMAGES)
    assert ("reason_seg", 10, "ReasonSeg|train", 4) in told
    assert [kind for kind, _, _, _ in told] == ["sem_seg", *["correct_refer_seg"] * 3, "vqa", "reason_seg"]
    assert not data.missing
    sources = Mixture(root, dict.fromkeys(KINDS, 1)).sources
    splits = {part.data_set.split("|")[-1] for part in sources}
    assert splits == {"training", "train2017", "train", "llava_instruct_150k"}
    unified = {f"{name}_exclude_unified|train" for name in ("refcoco|unc", "refcoco+|unc", "refcocog|umd")}
    assert {part.data_set for part in sources if part.kind == "refer_seg"} == {"refclef|unc|train", *unified}
    (public,) = one(root, "refer_seg", "refcoco|unc").sources
    assert public.data_set == "refcoco|unc|train"
    assert one(root, "refer_seg", "grefcoco").draw(0).data_set == "grefcoco|unc|train"


# -- what is asked and answered ----------------------------------------------------------------------------------------


def test_images_and_masks_are_those_of_the_reader(root: Path) -> None:
    for kind in ("sem_seg", *REFER):
        names = ["ade20k", "cocostuff", "mapillary"] if kind == "sem_seg" else usual(kind)
        data = Mixture(root, {kind: 1}, data_sets={kind: names})
        there = {part.data_set: entries(root, part.data_set) for part in data.sources}
        for number in range(24):
            drawn = data.draw(number)
            entry = there[drawn.data_set][drawn.sample.name]
            image = drawn.sample.image
            assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.flags.writeable
            assert not drawn.dialogue
            for turn in drawn.sample.turns:
                asked = [e.mask for e in entry.expressions if e.text in turn.question and e.mask is not None]
                for mask in turn.masks:
                    assert mask.shape == image.shape[:2]
                    assert any(np.array_equal(mask, paint()) for paint in asked)


def test_questions_are_few_and_different(root: Path) -> None:
    counted: Counter[int] = Counter()
    for kind in ("sem_seg", *REFER, "reason_seg"):
        for questions in (1, 3):
            data = one(root, kind, questions=questions)
            for number in range(20):
                turns = data.draw(number).sample.turns
                assert 1 <= len(turns) <= questions
                assert len({turn.question for turn in turns}) == len(turns)
                counted[len(turns)] += questions == 3
    assert counted[3] > 60


def test_one_text_is_asked_once_and_true_where_it_is_true_at_all(
    made: Callable[..., Made], root: Path, hw: tuple[int, int]
) -> None:
    legs = true("leg", hw), replace(true("leg", hw), mask=lambda: np.eye(*hw, dtype=np.uint8))
    made(4, lambda index: {"expressions": (*legs, Expression("Leg ", False, False))}, "fprefcoco")
    drawn = one(root, "correct_refer_seg", "fprefcoco")
    turns = [turn for number in range(40) for turn in drawn.draw(number).sample.turns]
    assert len(turns) == 40 and all(turn.present for turn in turns)
    assert {int(turn.masks[0].sum()) for turn in turns} == {hw[0] * hw[1], min(hw)}


@pytest.mark.parametrize("name", ["ade20k", "cocostuff", "mapillary"])
def test_false_classes_are_absent_and_corrections_name_what_is_there(
    root: Path, pictures: list[Picture], name: str
) -> None:
    data = one(root, "sem_seg", name)
    there = entries(root, data.sources[0].data_set)
    shown = {name: set(pictures[number].facts.names) for number, name in enumerate(there)}
    kinds: Counter[str] = Counter()
    for number in range(100):
        drawn = data.draw(number)
        entry = there[drawn.sample.name]
        present = {expression.text for expression in entry.expressions}
        assert not present & set(entry.absent)
        assert not shown[drawn.sample.name] & set(entry.absent)
        for turn in drawn.sample.turns:
            kinds[turn.kind] += 1
            if turn.present:
                continue
            (false,) = re.findall(r"\b(?:no|any) (.+?)(?= can be seen|[.,;]| here| in | but |$)", turn.answer, re.I)[:1]
            assert false in entry.absent and false in turn.question
            named = [text for text in present if f"the {text}" in turn.answer]
            assert bool(named) == (turn.kind == "correction")
    assert all(kinds[kind] > 3 for kind in ("denial", "correction", "confirmation"))


def test_shares_of_classes_that_are_not_there(made: Callable[..., Made], root: Path, hw: tuple[int, int]) -> None:
    there = tuple(true(name, hw) for name in ("cow", "dog", "hat", "key"))
    made(50, lambda index: {"expressions": there, "absent": ("bus", "owl", "bed", "van")})
    data = one(root, "sem_seg", "ade20k")
    kinds = Counter(turn.kind for number in range(600) for turn in data.draw(number).sample.turns)
    total = kinds.total()
    assert total == 1800
    for kind, share in (("confirmation", 0.85), ("denial", 0.07), ("correction", 0.08)):
        assert abs(kinds[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_shares_of_false_premises_of_reasonseg(made: Callable[..., Made], root: Path, hw: tuple[int, int]) -> None:
    questions = tuple(replace(true(f"What is {n}?", hw), sentence=True) for n in "abc")
    false = tuple(Expression(f"Where is {n}?", True, False, instead="a cow" * (n == "x")) for n in "xyz")
    made(40, lambda index: {"expressions": questions + (false if index % 2 else ())}, "reasonseg")
    data = one(root, "reason_seg")
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for number in range(400):
        sample = data.draw(number).sample
        kinds[int(sample.name) % 2 == 1].update(turn.kind for turn in sample.turns)
        for turn in sample.turns:
            assert (turn.kind == "correction") == (not turn.present and "Where is x?" in turn.question)
            assert ("a cow" in turn.answer) == (turn.kind == "correction")
    assert kinds[False] == {"confirmation": 600}
    assert abs(kinds[True]["confirmation"] / 600 - 0.85) < 0.04
    assert kinds[True]["denial"] > kinds[True]["correction"] > 15


def test_a_file_of_false_premises_alone_is_asked(made: Callable[..., Made], root: Path) -> None:
    made(3, lambda index: {"expressions": (Expression("unicorn", False, False),)}, "reasonseg")
    assert [turn.kind for turn in one(root, "reason_seg").draw(0).sample.turns] == ["denial"]


def test_parts_are_never_denied_since_nobody_knows(root: Path) -> None:
    data = Mixture(root, {"sem_seg": 1}, data_sets={"sem_seg": ["paco_lvis", "pascal_part"]})
    assert all(turn.present for number in range(50) for turn in data.draw(number).sample.turns)


def test_false_expressions_come_as_the_files_have_them(root: Path) -> None:
    for kind, expected in (("refer_seg", set()), ("correct_refer_seg", {"correction"}), ("neg_refer_seg", {"denial"})):
        data = one(root, kind)
        there = {part.data_set: entries(root, part.data_set) for part in data.sources}
        kinds = set()
        for drawn in map(data.draw, range(60)):
            false = [e for e in there[drawn.data_set][drawn.sample.name].expressions if not e.present]
            for turn in drawn.sample.turns:
                kinds.add(turn.kind)
                instead = [e.instead for e in false if e.text in turn.question]
                assert turn.present or any(text in turn.answer for text in instead)
        assert kinds == {"confirmation"} | expected


def test_conversations_are_whole_and_rounds_of_one(root: Path) -> None:
    told = json.loads((root / "llava_dataset/llava_instruct_150k.json").read_text())
    data = one(root, "vqa", questions=1)
    for number in range(IMAGES):
        drawn = data.draw(number)
        assert drawn.dialogue
        (record,) = [r for r in told if drawn.sample.name.startswith(f"{r['id']}#")]
        assert len(drawn.sample.turns) == len(record["conversations"]) / 2 > 1
        for turn, reply in zip(drawn.sample.turns, record["conversations"][1::2], strict=True):
            assert (turn.answer, turn.masks, turn.present) == (reply["value"], (), None)


def test_what_has_no_outline_is_never_asked(made: Callable[..., Made], root: Path, hw: tuple[int, int]) -> None:
    def seen() -> np.ndarray:
        raise AssertionError("it is asked")

    empty = Expression("ghost", False, True, seen, tags=frozenset({"no_target"}))
    made(4, lambda index: {"expressions": (empty, true("cow", hw)) if index else (empty,)})
    data = one(root, "sem_seg", "ade20k")
    for number in range(40):
        drawn = data.draw(number)
        assert drawn.sample.name != "0" and not drawn.skipped
        assert all("cow" in turn.question for turn in drawn.sample.turns)


# -- what is broken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder_of", "damage"),
    [
        ("images", lambda path: path.write_bytes(path.read_bytes()[:500])),
        ("images", Path.unlink),
        ("annotations", lambda path: path.write_bytes(b"no picture")),
    ],
)
def test_a_broken_file_is_passed_over_and_told(
    own: Callable[..., Path], folder_of: str, damage: Callable[[Path], object]
) -> None:
    folder = own("ade20k")
    whole = [one(folder, "sem_seg").draw(number) for number in range(2 * IMAGES)]
    path = sorted((folder / "ade20k" / folder_of / "training").iterdir())[2]
    damage(path)
    data = one(folder, "sem_seg")
    for number, before in enumerate(whole):
        drawn = data.draw(number)
        if before.sample.name == path.stem:
            (told,) = drawn.skipped
            assert told.startswith("ade20k|training: ") and str(path) in told
            assert drawn.sample.name != path.stem and said(data.draw(number)) == said(drawn)
        else:
            assert said(drawn) == said(before)


def test_a_broken_annotation_leaves_the_rest_of_its_image(own: Callable[..., Path]) -> None:
    folder = own("refer_seg/refcoco", "refer_seg/images/mscoco")
    path = folder / "refer_seg/refcoco/instances.json"
    content = json.loads(path.read_text())
    damaged = content["annotations"][::3]
    for record in damaged:
        record["segmentation"] = [[float("nan"), 1.0, 2.0, 2.0, 3.0, 4.0]]
    path.write_text(json.dumps(content))
    data = one(folder, "refer_seg")
    drawn = [data.draw(number) for number in range(30)]
    told = [message for item in drawn for message in item.skipped]
    assert told and all("instances.json: annotation " in message for message in told)
    assert {int(re.findall(r"annotation (\d+)", message)[0]) for message in told} <= {r["id"] for r in damaged}
    assert all(turn.masks[0].any() for item in drawn for turn in item.sample.turns)


@pytest.mark.parametrize(
    ("text", "wrong", "why"),
    [
        ("ghost", 0, "the mask of 'ghost' covers nothing"),
        ("ghost", 255, "the mask of 'ghost' covers nothing"),
        ("the [SEG] ghost", 1, "holds .SEG."),
    ],
)
def test_a_wrong_expression_gives_its_place_to_another(
    made: Callable[..., Made], root: Path, hw: tuple[int, int], text: str, wrong: int, why: str
) -> None:
    expressions = true(text, hw, wrong), true("cow", hw), true("dog", hw)
    data = made(2, lambda index: {"expressions": expressions}, "refcoco")
    drawn = [one(root, "refer_seg", "refcoco", questions=2).draw(number) for number in range(10)]
    for item in drawn:
        assert len(item.sample.turns) == 2 and all("ghost" not in turn.question for turn in item.sample.turns)
    (message,) = {message for item in drawn for message in item.skipped}
    assert str(data.image) in message and re.search(why, message)


def test_a_conversation_with_the_token_in_an_answer_is_passed_over(made: Callable[..., Made], root: Path) -> None:
    data = made(2, lambda index: {"dialogue": (("Where?", "Here [SEG]." if index else "Here."),)}, "llava_instruct")
    drawn = [one(root, "vqa").draw(number) for number in range(4)]
    assert {item.sample.name for item in drawn} == {"0"}
    (message,) = {message for item in drawn for message in item.skipped}
    assert str(data.image) in message


def test_too_many_in_a_row_are_an_error(own: Callable[..., Path]) -> None:
    folder = own("ade20k")
    images = sorted((folder / "ade20k/images/training").iterdir())
    for path in images[1:]:
        path.unlink()
    data = one(folder, "sem_seg")
    assert {data.draw(number).sample.name for number in range(10)} == {images[0].stem}
    images[0].unlink()
    all_broken = rf"{IMAGES} records in a row cannot be used. The first: .*\.jpg.*data check"
    with pytest.raises(ReadsegError, match=all_broken):
        data.draw(0)


def test_a_large_broken_data_set_is_given_up_early(made: Callable[..., Made], root: Path) -> None:
    def broken() -> np.ndarray:
        raise ReadsegError("a.json: broken")

    data = made(100_000, lambda index: {"expressions": (Expression("cow", False, True, broken),)})
    with pytest.raises(ReadsegError, match=r"50 records in a row.*a\.json: broken"):
        one(root, "sem_seg", "ade20k").draw(0)
    assert len(data.read) == mixture.MOST_IN_A_ROW


def test_what_was_passed_over_is_told_once_and_limited() -> None:
    shown: list[str] = []
    broken = BrokenRecords(shown.append, limit=2)
    for message in ("a.jpg", "b.jpg", "b.jpg", "a.jpg"):
        broken.add(message)
    assert shown == ["passed over: a.jpg", "passed over: b.jpg"]
    assert broken.count == 2
    with pytest.raises(ReadsegError, match=r"3 records are broken, the limit is 2\. The last: c\.jpg.*--thorough"):
        broken.add("c.jpg")
    with pytest.raises(ReadsegError, match="1 records"):
        BrokenRecords(shown.append, limit=0).add("a.jpg")


def test_broken_records_are_counted_by_several_threads() -> None:
    shown: list[str] = []
    broken = BrokenRecords(shown.append, limit=30)
    with ThreadPoolExecutor(8) as pool, pytest.raises(ReadsegError, match=r"31 records are broken.*The last: record"):
        list(pool.map(lambda number: broken.add(f"record {number % 31}"), range(400)))
    assert len(shown) == len(set(shown)) == 31
    with pytest.raises(ReadsegError, match="31 records"):  # also of one that is not new
        broken.add("record 0")


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "1:1:1:1:1", "1:1:1:1:1:1:1", "a:1:1:1:1:1", "-1:1:1:1:1:1", "1.5:1:1:1:1:1", "0:0:0:0:0:0"),
        *("²:1:1:1:1:1", "1001:1:1:1:1:1", "99999999999:1:1:1:1:1"),
    ],
)
def test_a_wrong_ratio_says_what_is_expected(text: str) -> None:
    assert parse_ratio(" 10:1:2:3:0:10 ") == dict(zip(KINDS, (10, 1, 2, 3, 0, 10), strict=True))
    with pytest.raises(ReadsegError, match=r"expected 6 whole numbers from 0 to 1000.*sem_seg:refer_seg:.*10:1:1:1"):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        ("video", ["a"], "data_sets: no kind 'video'; there are sem_seg"),
        ("vqa", ["refcoco"], "vqa takes llava_instruct, got 'refcoco'"),
        ("vqa", ["llava_instruct|val"], "vqa takes llava_instruct"),
        *(("vqa", names, "different names for vqa") for names in ([], "llava_instruct", ["llava_instruct"] * 2)),
        ("refer_seg", ["refcoco|unc|val"], "refer_seg takes refclef"),
        ("refer_seg", ["refcoco|google"], r"refs\(google\)"),
    ],
)
def test_wrong_arguments_are_named(root: Path, kind: str, names: Any, said: str) -> None:
    with pytest.raises(ReadsegError, match=said):
        Mixture(root, {"vqa": 1, "refer_seg": 1}, data_sets={kind: names})


def test_what_is_missing_is_told_with_its_place(own: Callable[..., Path]) -> None:
    folder = own("ade20k", "cocostuff")
    none = r"none of the data sets of reason_seg is there.*ReasonSeg.*train is missing"
    with pytest.raises(ReadsegError, match=none):
        one(folder, "reason_seg")
    with pytest.raises(ReadsegError, match=r"mapillary is to be read for sem_seg, but .*config_v2\.0\.json is missing"):
        one(folder, "sem_seg", "mapillary")
    data = one(folder, "sem_seg")
    assert [part.data_set for part in data.sources] == ["ade20k|training"]
    (told,) = (message for message in data.missing if message.startswith("cocostuff: "))
    assert "coco/train2017 is missing: put" in told
    with pytest.raises(ReadsegError, match="no such folder"):
        one(folder / "nowhere", "sem_seg")
