"""The page of a study of maps as a file: what is in it, and that nothing that it is given can break it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from page_study import HW, MAPS, study, view
from readseg.analysis.map_metrics import ThresholdCurve, search_thresholds
from readseg.analysis.page import PageData, page_case, picked, to_html, write_page
from readseg.analysis.page_data import PageCase, PageMap, PageView
from readseg.analysis.studies.map_records import Counts, Grid, MapRecord, MapScores, PointPrompt
from readseg.core.masks import encode_rle
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.viz.tables import Row, Table

MARKUP = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\"' & $title {}"
NASTY = MARKUP + " \u2028 \ud800 \x00\x1b[31m \u202e"
SHOWN = NASTY.replace("\ud800", "\ufffd").replace("\x00\x1b", "\ufffd\ufffd").replace("\u202e", "\ufffd")
VOID = {"meta", "input", "img", "br"}
NUMBER = Estimate(0.5, 0.25, 0.75, 3)
TABLE = Table(
    "Maps",
    "map",
    {"giou": "gIoU", "ciou": "cIoU"},
    [Row("lmm", {"giou": NUMBER, "ciou": math.nan}, "bound")],
    ["n = 3"],
)


class Page(HTMLParser):
    """Every element with its attributes, the text of each, and the data block; fails on one closed and not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open
        blocks = [part for tag, part in self.texts if tag == "script"]
        assert len(blocks) == 2, "the data and the script"
        self.data: dict[str, Any] = json.loads(blocks[0])
        self.script = blocks[1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))


def page_of(cases: list[PageCase], **parts: Any) -> Page:
    return Page(to_html(PageData("Maps", {}, [], cases, **parts)))


def one_case(**parts: Any) -> PageCase:
    return replace(study(1)[0].case, **parts)


def unpacked(text: str) -> list[int]:
    """Numbers of seven bits a byte, read from the last byte to the first."""
    values: list[int] = []
    for byte in reversed(base64.b64decode(text)):
        if byte < 128:
            values.append(byte)
        else:
            values[-1] = values[-1] * 128 + (byte - 128)
    return values[::-1]


def mask_of(text: str, hw: tuple[int, int]) -> np.ndarray:
    runs = unpacked(text)
    runs.append(hw[0] * hw[1] - sum(runs))
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(hw)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_for_nothing() -> None:
    page = Page(to_html(PageData("Maps", {"model": "A"}, [TABLE], [one.case for one in study(4)], ["a note"])))
    assert not {tag for tag, _ in page.found} & {"link", "iframe", "img", "object", "embed", "base", "style src"}
    assert not {name for _, attrs in page.found for name in attrs if name in ("src", "action") or name[:2] == "on"}
    ids = {f"#{attrs['id']}" for _, attrs in page.found if "id" in attrs}
    assert {attrs["href"] for _, attrs in page.found if "href" in attrs} <= ids, "links lead to parts of the page"
    rest = (page.script + "".join(text for tag, text in page.texts if tag == "style")).replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert not re.search(
        r"https?:|//\w|url\(|@import|fetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacent|eval\(|document\.write",
        rest,
    )
    texts = {text for _, text in page.texts}
    assert {"Maps", "model", "A", "a note.", "n = 3.", "gIoU", "bound", "lmm", "0.500", "0.250 to 0.750", "-"} <= texts


def test_only_the_script_and_the_style_of_the_page_may_run() -> None:
    page = page_of([])
    (policy,) = [attrs["content"] for tag, attrs in page.found if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    (style,) = [text for tag, text in page.texts if tag == "style"]
    for rule, text in (("script-src", page.script), ("style-src", style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    case = one_case(key=NASTY, question=NASTY, answer=NASTY, model=NASTY, kind=NASTY, section=NASTY, flags=[NASTY])
    case = replace(case, numbers={NASTY: 0.5, "own": 1.0}, maps={NASTY: case.maps["lmm"]})
    table = Table(NASTY, NASTY, {"x": NASTY}, [Row(NASTY, {"x": NASTY}, NASTY)], [NASTY])
    data = PageData(NASTY, {NASTY: NASTY}, [table], [case], [NASTY], {"own": NASTY})
    write_page(tmp_path / "page.html", data)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    harmless = Page(
        to_html(
            PageData("T", {"n": "f"}, [Table("t", "f", {"x": "x"}, [Row("r", {"x": "c"}, "g")], ["n"])], [case], ["n"])
        )
    )
    assert [tag for tag, _ in page.found] == [tag for tag, _ in harmless.found]
    (read,) = page.data["cases"]
    for name in ("key", "question", "answer", "kind", "section"):
        assert read[name] == SHOWN
    assert read["flags"] == page.data["models"] == [SHOWN]
    assert page.data["columns"] == [{"name": SHOWN, "heading": SHOWN}, {"name": "own", "heading": SHOWN}]
    assert page.data["maps"] == [{"name": SHOWN, "heading": SHOWN}]
    for tag in ("title", "h1", "h2", "dt", "dd", "th", "td"):
        assert SHOWN in [part for own, part in page.texts if own == tag], tag
    assert "\x00" not in text and "\x1b" not in text and "\u202e" not in text


def test_the_data_block_cannot_be_left() -> None:
    block = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        to_html(PageData("", {}, [], [one_case(answer=NASTY)])),
        re.DOTALL,
    )
    assert block and "<" not in block[1] and block[1].isascii()


def test_numbers_are_exact_and_what_is_missing_is_null() -> None:
    values = {"a": 0.1 + 0.2, "b": 1 / 3, "c": None, "d": math.nan, "e": math.inf, "f": 5e-324}
    page = page_of([one_case(numbers=values), one_case(numbers={"g": 1.0, "a": 2.0})], headings={"a": "A"})
    assert [column["name"] for column in page.data["columns"]] == ["a", "b", "c", "d", "e", "f", "g"]
    assert [column["heading"] for column in page.data["columns"]][:2] == ["A", "b"]
    assert page.data["cases"][0]["numbers"] == [0.1 + 0.2, 1 / 3, None, None, None, 5e-324, None]
    assert page.data["cases"][1]["numbers"] == [2.0, None, None, None, None, None, 1.0]


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
def test_counts_are_exact(dtype: type) -> None:
    rng = np.random.default_rng(1)
    inter = np.sort(rng.integers(0, 3_000_000, 101))[::-1].astype(dtype)
    unions = inter + np.sort(rng.integers(0, 90_000_000, 101))[::-1].astype(dtype)
    page = page_of([one_case(maps={"x": PageMap(ThresholdCurve(inter, unions))})])
    steps = unpacked(page.data["cases"][0]["curves"][0])
    assert (steps[0] - np.cumsum([0, *steps[1:101]])).tolist() == inter.tolist()
    assert (steps[101] - np.cumsum([0, *steps[102:]])).tolist() == unions.tolist()


def test_counts_of_random_maps_and_of_the_wrong_order() -> None:
    for known in study(5):
        page = page_of([known.case])
        for name, text in zip(MAPS, page.data["cases"][0]["curves"], strict=True):
            steps = unpacked(text)
            for k in (0, 1, 50, 100):
                found = (steps[0] - sum(steps[1 : k + 1]), steps[101] - sum(steps[102 : 102 + k]))
                assert found == known.counts(name, k / 100)


def test_masks_and_maps_of_a_small_picture_are_as_they_were() -> None:
    known = study(1)[0]
    drawn = page_of([known.case]).data["cases"][0]["view"]
    seen = known.case.view
    assert seen is not None
    assert drawn["size"] == [HW[1], HW[0]]
    for name, mask in (("target", known.target == 1), ("ignored", known.target == 255), ("own", seen.own)):
        assert np.array_equal(mask_of(drawn[name], HW), mask)
    for (grid,), name in zip(drawn["grids"], MAPS, strict=True):
        levels = np.frombuffer(base64.b64decode(grid["levels"]), np.uint8).reshape(grid["hw"])
        assert np.array_equal(levels, known.case.maps[name].grids[0][0])
        assert grid["box"] == [0, 0, 1, 1]
    assert np.allclose(drawn["points"], [[3.5 / 20, 4.5 / 12, 1], [9.5 / 20, 2.5 / 12, 0]], atol=1e-4)
    kind, _, content = drawn["picture"].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(content))).size == (20, 12)


def test_a_large_picture_becomes_small_with_its_masks() -> None:
    target = np.zeros((400, 1200), np.uint8)
    target[100:300, 600:] = 1
    picture = Image.fromarray(np.where(target[..., None] == 1, (250, 10, 10), (10, 10, 250)).astype(np.uint8))
    drawn = page_of([one_case(view=PageView(picture, target, target == 0))]).data["cases"][0]["view"]
    assert drawn["size"] == [240, 80] and drawn["ignored"] is None
    wanted = np.zeros((80, 240), bool)
    wanted[20:60, 120:] = True
    assert np.array_equal(mask_of(drawn["target"], (80, 240)), wanted)
    assert np.array_equal(mask_of(drawn["own"], (80, 240)), ~wanted)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["picture"].partition(",")[2]))).convert("RGB"))
    assert np.array_equal(pixels[..., 0] > pixels[..., 2], wanted)


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (-12, -20, 60, 50), (10, 0, 26, 12), (-100, -100, 400, 400)])
def test_cells_beyond_the_image_go_and_change_nothing_on_it(box: tuple[int, int, int, int]) -> None:
    grid = np.random.default_rng(2).integers(0, 256, (16, 16), dtype=np.uint8)
    case = one_case(maps={"x": PageMap(study(1)[0].case.maps["lmm"].curve, [(grid, box)])})
    (left,) = page_of([case]).data["cases"][0]["view"]["grids"][0]
    levels = np.frombuffer(base64.b64decode(left["levels"]), np.uint8).reshape(left["hw"])
    inner = np.array(left["box"]) * (HW[1], HW[0], HW[1], HW[0])

    def on_image(values: np.ndarray, box: Any) -> np.ndarray:
        """Bilinear to 8 pixels for each cell, then read at the image's pixels; -1 outside of the box."""
        x0, y0, x1, y1 = box
        y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
        rows, columns = np.array(values.shape)[:, None, None] * [(y - y0) / (y1 - y0), (x - x0) / (x1 - x0)]
        grid = torch.from_numpy(np.stack([2 * columns / values.shape[1] - 1, 2 * rows / values.shape[0] - 1], -1))
        sampled = torch.nn.functional.grid_sample(
            torch.from_numpy(values.astype(np.float64))[None, None],
            grid[None],
            padding_mode="border",
            align_corners=False,
        )
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        return np.where(inside, sampled[0, 0].numpy(), -1)

    assert np.allclose(on_image(levels, inner), on_image(grid, box), atol=0.01)
    if max(box) > 50:
        assert levels.size < grid.size / 2


def test_a_case_is_small() -> None:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    y, x = np.mgrid[:480, :640]
    target = (((x - 300) / 200) ** 2 + ((y - 240) / 150 + np.sin(x / 20) / 4) ** 2 < 1).astype(np.uint8)
    value_map = (np.hypot(x - 300, y - 240) / 500).clip(0, 1)
    curve = search_thresholds(value_map, target)
    maps = {
        "lmm": PageMap(curve, [(rng.integers(0, 256, (24, 24), dtype=np.uint8), (80.0, 0.0, 560.0, 480.0))]),
        "sam": PageMap(curve, [(rng.integers(0, 256, (64, 64), dtype=np.uint8), (0.0, 0.0, 640.0, 640.0))]),
    }
    points = [PointPrompt(float(k), float(k), 1) for k in range(30)]
    numbers = {f"n{k}": float(rng.random()) for k in range(30)}
    none = len(to_html(PageData("", {}, [], [])))
    for picture in (noise, noise.filter(ImageFilter.BoxBlur(4))):
        case = one_case(view=PageView(picture, target, target == 1, points), maps=maps, numbers=numbers)
        one, two = (len(to_html(PageData("", {}, [], [case] * count))) for count in (1, 2))
        assert two - one < 15 * 1024
        assert len(to_html(PageData("", {}, [], [replace(case, view=None)]))) - none < 3_500
    assert none < 60_000, "the page itself"


def test_the_same_data_make_the_same_bytes_and_a_page_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "maps.html"
    write_page(path, PageData("Maps", {}, [TABLE], [one.case for one in study(3)]))
    before = path.read_bytes()
    write_page(path, PageData("Maps", {}, [TABLE], [one.case for one in study(3)]))
    assert path.read_bytes() == before

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        write_page(path, PageData("Other", {}, [], []))
    assert [file.name for file in path.parent.iterdir()] == ["maps.html"] and path.read_bytes() == before


def test_nothing_to_show_is_a_page_too() -> None:
    page = page_of([])
    assert page.data == {"models": [], "columns": [], "maps": [], "cases": []}


def wrong_curve(inter: list[int], unions: list[int]) -> dict[str, Any]:
    return {"maps": {"x": PageMap(ThresholdCurve(np.array(inter), np.array(unions)))}}


GOOD = study(1)[0].case.maps["lmm"].curve
SEEN = view(np.random.default_rng(0), np.zeros(HW, np.uint8))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (wrong_curve([1] * 100, [1] * 100), "101 whole numbers, got int64 of shape \\(100,\\)"),
        (wrong_curve([], []), "101 whole numbers"),
        ({"maps": {"x": PageMap(ThresholdCurve(np.ones(101), np.ones(101)))}}, "101 whole numbers, got float64"),
        (wrong_curve([1] * 100 + [2], [9] * 101), "do not grow"),
        (wrong_curve([2] * 101, [1] * 101), "not above"),
        (wrong_curve([0] * 100 + [-1], [9] * 101), "do not grow"),
        ({"view": replace(SEEN, own=np.zeros((3, 3), bool))}, "masks of one size"),
        ({"view": replace(SEEN, target=np.zeros((0, 3), np.uint8), own=np.zeros((0, 3), bool))}, "masks of one size"),
        ({"maps": {"x": PageMap(GOOD, [(np.zeros((2, 2)), (0, 0, 1, 1))])}}, "bytes \\(h, w\\), got float64"),
        ({"maps": {"x": PageMap(GOOD, [(np.zeros((2, 2), np.uint8), (0, 0, 0, 1))])}}, "a box"),
        ({"maps": {"x": PageMap(GOOD, [(np.zeros((2, 2), np.uint8), (0, 0, math.nan, 1))])}}, "a box"),
    ],
)
def test_wrong_cases_are_named(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(ReadsegError, match=f"case 'the key'.*{told}"):
        page_of([one_case(key="the key", **parts)])


def test_scores_over_other_units_are_wrong() -> None:
    two = [one.case for one in study(2)]
    with pytest.raises(ReadsegError, match=r"case 'image-0/1': expected the maps of the others"):
        page_of([two[0], replace(two[1], maps={"lmm": two[1].maps["lmm"]})])
    page = page_of([two[0], replace(two[1], maps={"lmm": two[1].maps["lmm"]}, model="B")])
    assert [[text is None for text in case["curves"]] for case in page.data["cases"]] == [[False, False], [False, True]]


def test_texts_have_contrast_in_light_and_dark() -> None:
    style = next(text for tag, text in page_of([]).texts if tag == "style")

    def light(colour: str) -> float:
        """WCAG's relative luminance."""
        digits = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    sets = [dict(re.findall(r"--(\w+): #(\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(sets) == 2
    for colours in sets:
        for back in (light(colours["back"]), light(colours["card"])):
            for ink in ("ink", "soft", "bad", "giou", "ciou"):
                high, low = sorted((light(colours[ink]), back), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, ink


# -- what is made of records -------------------------------------------------------------------------------------------


def record(**parts: Any) -> MapRecord:
    target = np.zeros((4, 6), bool)
    target[1:3, 2:5] = True
    value_map = np.linspace(0, 1, 24).reshape(4, 6)
    curve = search_thresholds(value_map, target.astype(np.uint8))
    scores = MapScores(
        Counts(4, 10), 0.37, 1.0, 0.5, 0.75, tuple(curve.intersections.tolist()), tuple(curve.unions.tolist())
    )
    levels = np.arange(6, dtype=np.uint8) * 51
    grid = Grid((2, 3), (0.0, -1.0, 6.0, 5.0), -3.0, 8.0, base64.b64encode(levels.tobytes()).decode())
    values: dict[str, Any] = {
        "key": "a/0", "unit": 0, "image": "a", "place": "a.jpg", "section": "val", "kind": "name", "tags": (),
        "size": (4, 6), "question": "the cat", "answer": "it is [SEG].", "expected": None, "given": False, "segs": 1,
        "places": (0,), "words": "", "words_right": None, "misaligned": False, "wanted": 6, "counted": 23,
        "maps": {"lmm": scores, "sam": None, "before": replace(scores, intersections=(), unions=())},
        "prompts": {"own": Counts(3, 6), "seg": Counts(6, 6), "points": None},
        "consistency": math.nan, "spearman": math.nan,
        "target": encode_rle(target), "ignored": encode_rle(np.eye(4, 6, dtype=bool) & (np.arange(6) == 0)),
        "mask": encode_rle(~target), "points": (PointPrompt(1.0, 2.0, 1),), "grids": {"lmm": (grid, grid), "sam": ()},
    }  # fmt: skip
    return MapRecord(**(values | parts))


def test_a_record_becomes_a_row() -> None:
    measured = record()
    case = page_case(measured, "A")
    assert (case.key, case.question, case.answer, case.kind, case.section) == (
        "a/0",
        "the cat",
        "it is [SEG].",
        "name",
        "val",
    )
    assert case.view is None and not any(one.grids for one in case.maps.values())
    expected = {
        "own": 0.5, "lmm_iou": 0.4, "sam_iou": 0.0, "before_iou": 0.4, "prompt_seg": 1.0, "prompt_points": 0.0,
        "lmm_t": 0.37, "lmm_pointing": 1.0, "lmm_auc": 0.75, "sam_t": None, "area": 6 / 23,
    }  # fmt: skip
    assert {name: case.numbers[name] for name in expected} == expected
    assert math.isnan(case.numbers["spearman"] or 0)
    assert list(case.maps) == ["lmm", "sam"], "those whose counts at all thresholds are known"
    assert case.maps["lmm"].curve.unions.tolist() == list(measured.maps["lmm"].unions)  # type: ignore[union-attr]
    assert not case.maps["sam"].curve.intersections.any(), "no map makes an empty mask"
    assert set(case.maps["sam"].curve.unions.tolist()) == {6}


@pytest.mark.parametrize(
    ("parts", "flags"),
    [
        ({}, ["constant map"]),
        ({"misaligned": True, "places": ()}, ["misaligned", "no [SEG]"]),
        ({"grids": {"lmm": ()}}, []),
    ],
)
def test_what_is_odd_about_a_record_is_a_flag(parts: dict[str, Any], flags: list[str]) -> None:
    assert page_case(record(**parts), "A").flags == flags


def test_a_record_with_its_picture_is_drawn() -> None:
    case = page_case(record(unit=1), "A", Image.new("RGB", (600, 400), (9, 99, 199)))
    assert case.key == "a/0#2"
    assert case.view is not None and case.view.picture.size == (240, 160)
    assert np.count_nonzero(case.view.target == 1) == 6 and case.view.target[0, 0] == 255
    assert np.array_equal(case.view.own, case.view.target != 1)
    drawn = page_of([case]).data["cases"][0]["view"]
    assert [len(grids) for grids in drawn["grids"]] == [2, 0], "the map is the maximum of several [SEG]"
    assert base64.b64decode(drawn["grids"][0][0]["levels"]) == bytes([0, 51, 102, 153, 204, 255])


def test_a_wrong_mask_of_a_record_is_named() -> None:
    for bad in ({"size": [4, 6], "counts": "oo"}, encode_rle(np.zeros((2, 2), bool))):
        with pytest.raises(ReadsegError, match="a/0: "):
            page_case(record(mask=bad), "A", Image.new("RGB", (6, 4)))


def test_units_to_look_at_are_spread_over_iou_and_hold_the_misaligned() -> None:
    rng = np.random.default_rng(0)
    ious, wrong = rng.random(1000).tolist(), (rng.permutation(1000) < 25).tolist()
    found = picked(ious, wrong, 100)
    assert len(found) == len(set(found)) == 100 and found == sorted(found)
    assert {k for k in range(1000) if wrong[k]} <= set(found), "there are fewer than a quarter"
    ranks = sorted(np.argsort(np.argsort(ious))[found])
    assert ranks[0] < 13 and ranks[-1] > 986 and max(np.diff(ranks)) < 16
    assert len(picked(ious, [True] * 1000, 40)) == 40
    assert picked([0.5] * 3, [False] * 3, 10) == [0, 1, 2]
    assert picked([], [], 10) == [] and picked([0.5], [True], 0) == []
