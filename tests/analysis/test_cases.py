"""Cases of a benchmark: the replies that evaluation scores, and which [SEG] speaks of which mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studies
from readseg.analysis.cases import TargetMask, cases_of
from readseg.core.masks import intersection_and_union, union
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, open_benchmark
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from released import write_released
from studies import CAT, HW, TWO, UNICORN, block


def counts_of(masks: np.ndarray, unit: TargetMask) -> tuple[int, int]:
    return intersection_and_union(union([masks[k] for k in unit.seg_indices], unit.target.shape), unit.target)


def counted(segmenter: Segmenter, benchmark: Benchmark) -> dict[str, tuple[Any, ...]]:
    """Counts of the units of every true premise, by its key."""
    found = {}
    for number in range(len(benchmark)):
        for case in cases_of(segmenter, benchmark, benchmark[number]):
            masks = segmenter.decode(case.encoded, [case.reply])[0].masks
            found[case.query.key] = tuple(counts_of(masks, unit) for unit in case.targets)
    return found


def scored(segmenter: Segmenter, benchmark: Benchmark, present: Sequence[bool | None]) -> dict[str, tuple[Any, ...]]:
    """What evaluation counts, by the question's key."""
    outcomes = evaluate(segmenter, benchmark)
    kept = [one for one in outcomes if one.present in present]
    return {one.key: tuple(zip(one.intersections, one.unions, strict=True)) for one in kept}


def test_counts_are_those_of_evaluation() -> None:
    segmenter, benchmark = studies.segmenter(), studies.benchmark()
    found, expected = counted(segmenter, benchmark), scored(segmenter, benchmark, (True, False))
    assert found.keys() == expected.keys(), "questions without a mask are none of the studies'"
    for key, units in found.items():
        assert units in (expected[key], ()), key
    assert {key for key, units in found.items() if not units} == scored(segmenter, benchmark, (False,)).keys()
    assert found["page-2/0"][0][0] > 0 and found["page-2/0"][1][0] > 0, "two masks for two targets"


@pytest.mark.parametrize("name", ["reasonseg/val", "refcoco/testA", "grefcoco/val"])
def test_a_released_family_on_data_sets(name: str, data: Path, tmp_path: Path) -> None:
    write_released(tmp_path / "glamm", "glamm")
    segmenter = Segmenter.from_pretrained(tmp_path / "glamm", device="cpu")
    whole = open_benchmark(data, name)
    few = Benchmark(**{**vars(whole), "names": whole.names[:1]})
    found, expected = counted(segmenter, few), scored(segmenter, few, (True,))
    # The tiny model never refuses and never stops: an answer of its own may lack a [SEG], a given one has it.
    assert {key: units for key, units in found.items() if units} == expected
    if whole.protocol == "forced":
        assert all(units[0][1] > 0 for units in found.values())


def test_order_and_union() -> None:
    targets = [block(5, 5, 20, 20), block(20, 30, 40, 60)]
    asked = [[(TWO, True, targets), (CAT, True, targets), (UNICORN, True, targets), (CAT, False, [])]]
    two, cat, unicorn, false = cases_of(studies.segmenter(), studies.benchmark(asked), studies.benchmark(asked)[0])
    assert [unit.seg_indices for unit in two.targets] == [(0,), (1,)]
    assert [unit.seg_indices for unit in cat.targets] == [(0,), ()], "the second target has no [SEG]"
    assert [unit.seg_indices for unit in unicorn.targets] == [(), ()]
    assert false.targets == ()
    for unit, target in zip(two.targets, targets, strict=True):
        np.testing.assert_array_equal(unit.target, target)

    benchmark = studies.benchmark(asked, match="union")
    two, cat, unicorn, false = cases_of(studies.segmenter(), benchmark, benchmark[0])
    assert [case.targets[0].seg_indices for case in (two, cat, unicorn)] == [(0, 1), (0,), ()]
    assert false.targets == ()
    np.testing.assert_array_equal(two.targets[0].target, targets[0] | targets[1])


@pytest.mark.parametrize("match", ["order", "union"])
def test_what_one_target_ignores_counts_for_none(match: str) -> None:
    targets = [block(5, 5, 20, 20, ignored=8), block(20, 30, 40, 60)]
    benchmark = studies.benchmark([[(TWO, True, targets)]], match=match)
    (case,) = cases_of(studies.segmenter(), benchmark, benchmark[0])
    for unit in case.targets:
        assert (unit.target[:8] == 255).all() and (unit.target[8:] != 255).all()
    masks = np.ones((2, *HW), bool)
    assert counts_of(masks, case.targets[-1])[1] == (HW[0] - 8) * HW[1]


@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_given_answers(tmp_path: Path) -> None:
    """Under "forced" the family's answer is given to names and sentences, and to nothing else."""
    write_released(tmp_path / "read", "read")
    segmenter = Segmenter.from_pretrained(tmp_path / "read", device="cpu")
    asked = [[("the cup", True, [block(5, 5, 20, 20)])]]
    (given,) = cases_of(segmenter, studies.benchmark(asked, protocol="forced"), studies.benchmark(asked)[0])
    (own,) = cases_of(segmenter, studies.benchmark(asked), studies.benchmark(asked)[0])
    assert given.reply.is_forced and not own.reply.is_forced
    assert given.targets[0].seg_indices == (0,)
    assert segmenter.decode(given.encoded, [given.reply])[0].answer == "Sure, the segmentation result is [SEG]."


def test_an_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, benchmark = studies.segmenter(), studies.benchmark()
    segmenter._encoded.clear()
    calls = []
    encode = type(segmenter.model).encode_image
    monkeypatch.setattr(type(segmenter.model), "encode_image", lambda *given: calls.append(1) or encode(*given))
    for case in cases_of(segmenter, benchmark, benchmark[2]):
        segmenter.decode(case.encoded, [case.reply])
    assert len(calls) == 1


def test_a_mask_of_the_wrong_size_is_an_error() -> None:
    benchmark = studies.benchmark([[(CAT, True, [block(5, 5, 20, 20), np.ones((3, 3), np.uint8)])]])
    with pytest.raises(ReadsegError, match="page-0: the image is 40 x 60, a mask of it 3 x 3"):
        cases_of(studies.segmenter(), benchmark, benchmark[0])
