"""The tables of section 3.2 from records made by hand: every cell against sums written down, every gap told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from readseg.analysis.prompts import PROMPTS as PROMPT_SPECS
from readseg.analysis.similarity_maps import MAPS as MAP_SPECS
from readseg.analysis.studies.map_records import MapRecord, MapScores
from readseg.analysis.studies.maps import (
    WHOLE,
    MapStudy,
    agreement_table,
    map_table,
    misaligned_table,
    prompt_table,
    tables,
)
from readseg.core.masks import Counts
from readseg.core.stats import Estimate
from readseg.viz.tables import Row, Table, to_markdown
from records import measured, scores

NAN = math.nan
MAPS = {name: spec.title for name, spec in MAP_SPECS.items()}
PROMPTS = {name: spec.title for name, spec in PROMPT_SPECS.items()}


def study(*records: MapRecord, name: str = "tiny", **changes: Any) -> MapStudy:
    settings: dict[str, Any] = {"protocol": "generated", "about": {"images": 3, "of": 9}, "own": "both"}
    return MapStudy(name, records, **(settings | changes))


def row(table: Table, name: str, group: str = "") -> Row:
    (found,) = [one for one in table.rows if one.name == name and one.group == group]
    return found


def value(cell: Any) -> float:
    assert isinstance(cell, Estimate)
    assert math.isnan(cell.value) or cell.low <= cell.value <= cell.high
    return cell.value


def with_map(lmm: MapScores | None, **changes: Any) -> MapRecord:
    return measured(maps=measured().maps | {"lmm": lmm}, **changes)


SEEN = with_map(scores(6, 8, pointing=1.0, mass=0.6, auc=0.9), key="a/0", image="a")
HALF = with_map(scores(2, 12, pointing=0.5, mass=0.2, auc=0.4), key="a/1", image="a")
NONE = measured(
    key="b/0", image="b", maps=dict.fromkeys(measured().maps), prompts=dict.fromkeys(measured().prompts),
    places=(), segs=0, consistency=NAN, spearman=NAN, words_right=False, wanted=12,
)  # fmt: skip


def test_maps() -> None:
    table = map_table([study(SEEN, HALF, NONE)])
    cells = row(table, MAPS["lmm"]).cells
    assert value(cells["giou"]) == pytest.approx((6 / 8 + 2 / 12 + 0) / 3, abs=1e-5)
    assert value(cells["ciou"]) == pytest.approx(8 / (8 + 12 + 12)), "no map: the target is all of the union"
    assert value(cells["pointing"]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert value(cells["mass"]) == pytest.approx((0.6 + 0.2 + 0) / 3)
    assert value(cells["auc"]) == pytest.approx((0.9 + 0.4 + 0.5) / 3), "no map ranks nothing"
    assert {cell.count for cell in cells.values() if isinstance(cell, Estimate)} == {3}
    area = row(table, WHOLE).cells
    expected = (6 / 24 + 6 / 24 + 12 / 24) / 3
    assert value(area["giou"]) == pytest.approx(expected, abs=1e-5) and value(area["ciou"]) == 24 / 72
    assert value(area["pointing"]) == value(area["mass"]) == pytest.approx(expected)
    assert value(area["auc"]) == 0.5
    assert [one.name for one in table.rows] == [*(MAPS[n] for n in ("lmm", "sam", "before", "words")), WHOLE]
    text = to_markdown(table)
    assert "1 of 3 masks: the answer holds no [SEG] for them" in text
    told = "3 masks of 3 questions about 2 images, true premises only; nothing that is there is asked about the other 1"
    assert f"{told} that were looked at; a sample of 3 of 9 images" in text
    assert "generated: the model answers by itself" in text and "bounds on what a threshold could reach" in text


def test_intervals_draw_whole_images() -> None:
    """Two masks of one image are one draw: with one image there is no spread at all."""
    one = row(map_table([study(SEEN, HALF)]), MAPS["lmm"]).cells["giou"]
    assert isinstance(one, Estimate) and one.low == one.value == one.high
    other = row(map_table([study(SEEN, with_map(scores(2, 12), image="c"))]), MAPS["lmm"]).cells["giou"]
    assert isinstance(other, Estimate) and other.low < other.value < other.high


def test_targets_that_have_no_place() -> None:
    """An empty target, one of all pixels, and a map that is dark on every pixel that counts."""
    empty = with_map(scores(0, 0, pointing=NAN, mass=NAN, auc=NAN), wanted=0)
    full = with_map(scores(24, 24, pointing=1.0, mass=1.0, auc=NAN), wanted=24)
    dark = with_map(scores(1, 8, pointing=0.25, mass=NAN, auc=0.5))
    table = map_table([study(SEEN, empty, full, dark)])
    for name in (MAPS["lmm"], WHOLE):
        cells = row(table, name).cells
        assert [cells[c].count for c in ("giou", "ciou", "pointing", "mass", "auc")] == [4, 4, 3, 3, 2]
    cells = row(table, MAPS["lmm"]).cells
    assert value(cells["giou"]) == pytest.approx((6 / 8 + 1 + 1 + 1 / 8) / 4, abs=1e-5)
    assert value(cells["mass"]) == pytest.approx((0.6 + 1 + 0) / 3)
    assert value(cells["auc"]) == pytest.approx((0.9 + 0.5) / 2)
    assert "1 targets are empty: they count in gIoU and cIoU only" in to_markdown(table)


def test_prompts() -> None:
    plain = measured().prompts | {"own": Counts(4, 10), "plain_points": Counts(1, 4), "plain_extremes": Counts(3, 4)}
    plain["plain_truth"] = Counts(7, 8)
    none = measured(prompts=dict.fromkeys(PROMPTS), wanted=12)
    table = prompt_table([study(measured(prompts=plain), none)])
    lacking = measured(prompts=plain | {"plain_points": None})
    assert [one.name for one in table.rows] == list(PROMPTS.values())
    assert value(row(table, PROMPTS["own"]).cells["giou"]) == pytest.approx(4 / 10 / 2, abs=1e-5)
    assert value(row(table, PROMPTS["own"]).cells["ciou"]) == pytest.approx(4 / 22)
    assert value(row(table, PROMPTS["plain_extremes"]).cells["giou"]) == pytest.approx(3 / 4 / 2, abs=1e-5)
    assert f"{PROMPTS['own']}: {PROMPTS['both']}." in to_markdown(table)
    table = prompt_table([study(measured(prompts=plain), lacking, own="seg")])
    assert value(row(table, PROMPTS["plain_points"]).cells["ciou"]) == pytest.approx(1 / (4 + 6))
    assert f"of a range: {PROMPTS['plain_points']} 1." in to_markdown(table)
    assert f"{PROMPTS['own']}: {PROMPTS['seg']}." in to_markdown(table)


def test_points_from_the_true_mask_are_over_the_same_masks() -> None:
    """Where there is no [SEG] too; where they are none, an empty mask, and a note of its own says how many."""
    name = PROMPTS["plain_truth"]
    found = measured(prompts=measured().prompts | {"plain_truth": Counts(9, 10)})
    silent = measured(prompts=dict.fromkeys(PROMPTS) | {"plain_truth": Counts(3, 4)}, places=(), wanted=12)
    nothing = measured(prompts=measured().prompts | {"plain_truth": None}, wanted=24)
    table = prompt_table([study(found, silent, nothing)])
    cells = row(table, name).cells
    assert cells["giou"].count == 3 and value(cells["giou"]) == pytest.approx((0.9 + 0.75 + 0) / 3, abs=1e-5)
    assert value(cells["ciou"]) == pytest.approx(12 / (10 + 4 + 24))
    text = to_markdown(table)
    assert (
        f"{name}: 1 true masks cover all cells alike, none or every one: no points, and an empty mask counts." in text
    )
    assert "It knows the truth" in text and "of a range" not in text
    assert "cover all cells alike" not in to_markdown(prompt_table([study(found, silent)]))
    text = to_markdown(prompt_table([study(nothing)]))
    assert f"{name}: not available: no mask has one" in text


def test_what_is_not_available_is_told() -> None:
    wordless = measured(
        maps=measured().maps | {"words": None},
        prompts=measured().prompts | {"words_points": None, "words_projected": None},
    )
    missing = {"clip": "no CLIP", "plain_points": "no SAM", "plain_extremes": "no SAM", "plain_truth": "no SAM"}
    maps, prompts, _ = tables([study(wordless, missing=missing)])
    assert MAPS["words"] not in [one.name for one in maps.rows] and MAPS["clip"] not in [r.name for r in maps.rows]
    text = to_markdown(maps) + to_markdown(prompts)
    assert f"{MAPS['clip']}: not available: no CLIP." in text
    assert f"{MAPS['words']}: not available: no answer has words of its own" in text
    assert f"{PROMPTS['plain_points']}: not available: no SAM." in text
    assert f"{PROMPTS['plain_truth']}: not available: no SAM." in text and "cover all cells alike" not in text
    assert f"{PROMPTS['words_projected']}: not available: no answer has words of its own" in text


def test_agreement_by_section_and_kind() -> None:
    records = [
        measured(key="a/0", image="a", section="one", kind="x", consistency=0.8, spearman=0.5, words_right=True),
        measured(key="a/1", image="a", section="two", kind="x", consistency=0.2, words_right=True, misaligned=True),
        measured(key="b/0", image="b", section="two", kind="y", consistency=NAN, spearman=NAN, words_right=False),
        measured(key="c/0", image="c", section="two", kind="", consistency=0.5, words_right=None),
    ]
    table = agreement_table([study(*records)])
    assert [one.name for one in table.rows] == ["all", "section: one", "section: two", "kind: x", "kind: y"]
    cells = table.rows[0].cells
    assert cells["count"] == "4"
    assert value(cells["iou"]) == pytest.approx(0.5) and cells["iou"].count == 3
    assert value(cells["spearman"]) == pytest.approx((0.5 - 0.25 - 0.25) / 3)
    assert value(cells["words"]) == pytest.approx(2 / 3) and cells["words"].count == 3
    assert value(cells["misaligned"]) == 0.5 and cells["misaligned"].count == 2
    assert math.isnan(value(row(table, "kind: y").cells["misaligned"])), "no right words: nothing can be misaligned"
    assert "1 of 4 masks lack one of the two maps" in to_markdown(table)
    for one in (map_table, prompt_table):
        assert "all sections of the benchmark together: one, two." in to_markdown(one([study(*records)]))
        assert "all sections" not in to_markdown(one([study(records[0])]))
    single = agreement_table([study(records[0])])
    assert [one.name for one in single.rows] == ["all"] and "has no width" in to_markdown(single)
    two = [measured(key="a/0", image="a"), measured(key="b/0", image="b")]
    assert "has no width" not in to_markdown(agreement_table([study(*two)]))


def test_several_models_stand_in_groups() -> None:
    one, other = study(SEEN, name="one"), study(HALF, name="o|ther", own="seg", missing={"clip": "none"})
    for table in tables([one, other]):
        assert list(dict.fromkeys(row.group for row in table.rows)) == ["one", "o|ther"]
        assert r"o\|ther: 1 masks of 1 questions" in to_markdown(table)
    maps = map_table([one, other])
    assert value(row(maps, MAPS["lmm"], "one").cells["ciou"]) == 6 / 8
    assert value(row(maps, MAPS["lmm"], "o|ther").cells["ciou"]) == 2 / 12
    assert tables([one])[0].title == "What the maps know: one"
    named = tables([replace(one, benchmark="scenes")])
    assert [table.title for table in named] == [
        "scenes: What the maps know: one",
        "scenes: What prompts the mask decoder: one",
        "scenes: Do the maps agree, and do words and masks? one",
    ]


def test_misaligned() -> None:
    bad = measured(
        key="b/0", misaligned=True, prompts={"own": Counts(1, 20)}, question="a | b", answer="the cup [SEG]."
    )
    worse = measured(key="a/3", unit=1, misaligned=True, prompts={"own": None})
    table = misaligned_table(study(bad, measured(), worse, measured(words_right=None)))
    assert [one.name for one in table.rows] == ["a/3, mask 2", "b/0"]
    assert table.rows[1].cells == {
        "question": "a | b", "answer": "the cup [SEG].", "own": 1 / 20, "lmm": 5 / 8, "sam": 4 / 8,
    }  # fmt: skip
    text = to_markdown(table)
    assert "2 of 3 masks with right words have an IoU below 0.1" in text and r"a \| b" in text
    assert "of 1 masks it cannot be told" in text
    few = misaligned_table(study(bad, worse), most=1)
    assert len(few.rows) == 1 and "; the first 1 are listed" in to_markdown(few)


def test_no_record_at_all() -> None:
    for table in [*tables([study()]), misaligned_table(study())]:
        assert "0 masks of 0 questions about 0 images" in to_markdown(table)
