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
from PIL import Image, ImageFilter

from page_study import HW, MAPS, curve_of, grid_of, pictures_of, study
from readseg.analysis.page import flags_of, numbers_of, pick_units, write_page
from readseg.analysis.studies.map_records import MapRecord, PointPrompt
from readseg.core.masks import Counts, encode_rle
from readseg.core.stats import Estimate
from readseg.errors import ReadsegError
from readseg.viz.tables import Row, Table, printable
from records import measured

MARKUP = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\"' & {{ title }} {% x %}"
NASTY = MARKUP + " \u2028 \ud800 \x00\x1b[31m \u202e"
SHOWN = printable(NASTY)
VOID = {"meta", "input", "img", "br"}
TABLE = Table(
    "Maps",
    "map",
    {"giou": "gIoU", "ciou": "cIoU"},
    [Row("lmm", {"giou": Estimate(0.5, 0.25, 0.75, 3), "ciou": math.nan}, "bound")],
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


def html_of(folder: Path, records: list[MapRecord], pictures: Any = None, **parts: Any) -> str:
    values = {"title": "Maps", "facts": {}, "tables": []} | parts
    write_page(folder / "page.html", records=records, pictures=pictures or {}, **values)
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def page_of(tmp_path: Path) -> Any:
    """Writes a page and reads it."""
    return lambda records, pictures=None, **parts: Page(html_of(tmp_path, records, pictures, **parts))


def levels_of(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_for_nothing(page_of: Any) -> None:
    units = study(4)
    page = page_of([one.record for one in units], pictures_of(units), facts={"model": "A"}, tables=[TABLE])
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
    assert {"Maps", "model", "A", "n = 3.", "gIoU", "bound", "lmm", "0.500", "0.250 to 0.750", "-"} <= texts


def test_only_the_script_and_the_style_of_the_page_may_run(page_of: Any) -> None:
    page = page_of([])
    assert page.data == {"columns": [], "maps": [], "cases": []}, "nothing to show is a page too"
    (policy,) = [attrs["content"] for tag, attrs in page.found if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    (style,) = [text for tag, text in page.texts if tag == "style"]
    for rule, text in (("script-src", page.script), ("style-src", style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")


def test_hostile_text_stays_text(page_of: Any, tmp_path: Path) -> None:
    record = replace(study(1)[0].record, **dict.fromkeys(("key", "question", "answer", "kind", "section"), NASTY))
    table = Table(NASTY, NASTY, {"x": NASTY}, [Row(NASTY, {"x": NASTY}, NASTY)], [NASTY])
    page = page_of([record], title=NASTY, facts={NASTY: NASTY}, tables=[table])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    harmless = Table("t", "f", {"x": "x"}, [Row("r", {"x": "c"}, "g")], ["n"])
    other = page_of([record], title="T", facts={"n": "f"}, tables=[harmless])
    assert [tag for tag, _ in page.found] == [tag for tag, _ in other.found]
    (read,) = page.data["cases"]
    for name in ("key", "question", "answer", "kind", "section"):
        assert read[name] == SHOWN
    for tag in ("title", "h1", "h2", "dt", "dd", "th", "td"):
        assert SHOWN in [part for own, part in page.texts if own == tag], tag
    assert "\x00" not in text and "\x1b" not in text and "\u202e" not in text


def test_the_data_block_cannot_be_left(tmp_path: Path) -> None:
    text = html_of(tmp_path, [replace(study(1)[0].record, answer=NASTY)])
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert block and "<" not in block[1] and block[1].isascii()


def test_numbers_are_exact_and_what_is_missing_is_null(page_of: Any) -> None:
    first = measured(consistency=0.1 + 0.2, spearman=math.nan, prompts={"own": Counts(1, 3)})
    second = measured(consistency=5e-324, prompts={"own": Counts(1, 3), "seg": Counts(1, 2)})
    page = page_of([first, second])
    names = [column["name"] for column in page.data["columns"]]
    rows = [dict(zip(names, case["numbers"], strict=True)) for case in page.data["cases"]]
    assert [row["consistency"] for row in rows] == [0.1 + 0.2, 5e-324] and rows[0]["own"] == 1 / 3
    assert [row["spearman"] for row in rows] == [None, -0.25]
    assert [row["prompt_seg"] for row in rows] == [None, 0.5]


def test_counts_are_exact(page_of: Any) -> None:
    for known in study(5):
        page = page_of([known.record])
        for name, counts in zip(MAPS, page.data["cases"][0]["curves"], strict=True):
            assert list(zip(counts["I"], counts["U"], strict=True)) == known.all_counts(name)
    none = measured(maps={"lmm": None, "sam": None})
    (counts, _) = page_of([none]).data["cases"][0]["curves"]
    assert counts == {"I": [0] * 101, "U": [6] * 101}, "no map makes an empty mask"


def test_masks_and_maps_of_a_small_picture_are_as_they_were(page_of: Any) -> None:
    (known,) = study(1)
    drawn = page_of([known.record], {0: known.picture}).data["cases"][0]["view"]
    assert drawn["size"] == [HW[1], HW[0]]
    assert np.array_equal(levels_of(drawn["target"]) == 255, known.target == 1)
    assert np.array_equal(levels_of(drawn["ignored"]) == 255, known.target == 255)
    for (grid,), name in zip(drawn["grids"], MAPS, strict=True):
        assert np.array_equal(
            levels_of(grid["image"]), np.frombuffer(known.record.grids[name][0].levels, np.uint8).reshape(HW)
        )
        assert grid["box"] == [0, 0, 1, 1]
    assert np.allclose(drawn["points"], [[3.5 / 20, 4.5 / 12, 1], [9.5 / 20, 2.5 / 12, 0]], atol=1e-4)
    kind, _, content = drawn["picture"].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(content))).size == (20, 12)


def test_a_large_picture_becomes_small_with_its_masks(page_of: Any) -> None:
    target = np.zeros((400, 1200), bool)
    target[100:300, 600:] = True
    picture = Image.fromarray(np.where(target[..., None], (250, 10, 10), (10, 10, 250)).astype(np.uint8))
    record = measured(size=target.shape, target=encode_rle(target), mask=encode_rle(~target))
    drawn = page_of([record], {0: picture}).data["cases"][0]["view"]
    assert drawn["size"] == [240, 80] and drawn["ignored"] is None
    wanted = np.zeros((80, 240), bool)
    wanted[20:60, 120:] = True
    assert np.array_equal(levels_of(drawn["target"]) == 255, wanted)
    assert np.array_equal(levels_of(drawn["own"]) == 255, ~wanted)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["picture"].partition(",")[2]))).convert("RGB"))
    assert np.array_equal(pixels[..., 0] > pixels[..., 2], wanted)


def test_a_case_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    y, x = np.mgrid[:480, :640]
    target = ((x - 300) / 200) ** 2 + ((y - 240) / 150 + np.sin(x / 20) / 4) ** 2 < 1
    curve = curve_of((np.hypot(x - 300, y - 240) / 500).clip(0, 1), target.astype(np.uint8))
    grids = {
        "lmm": (grid_of(rng.integers(0, 256, (24, 24)), (80.0, 0.0, 560.0, 480.0)),),
        "sam": (grid_of(rng.integers(0, 256, (64, 64)), (0.0, 0.0, 640.0, 640.0)),),
    }
    record = measured(
        size=(480, 640), target=encode_rle(target), mask=encode_rle(target), maps=dict.fromkeys(MAPS, curve),
        grids=grids, points=tuple(PointPrompt(float(k), float(k), 1) for k in range(30)),
    )  # fmt: skip
    none = len(html_of(tmp_path, []))
    for picture in (noise, noise.filter(ImageFilter.BoxBlur(4))):
        one, two = (len(html_of(tmp_path, [record] * n, dict.fromkeys(range(n), picture))) for n in (1, 2))
        assert two - one < 20 * 1024
        assert len(html_of(tmp_path, [record])) - none < 5_500
    assert none < 60_000, "the page itself"


def test_the_same_data_make_the_same_bytes_and_a_page_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, records = tmp_path / "new" / "page.html", [one.record for one in study(3)]
    before = html_of(tmp_path / "new", records, tables=[TABLE])
    assert html_of(tmp_path / "new", records, tables=[TABLE]) == before

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        html_of(tmp_path / "new", [])
    assert list(path.parent.iterdir()) == [path] and path.read_text(encoding="utf-8") == before


def test_texts_have_contrast_in_light_and_dark(page_of: Any) -> None:
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


def test_a_record_becomes_a_row(page_of: Any) -> None:
    record = measured(maps=dict(measured().maps) | {"sam": None}, prompts={"own": Counts(3, 6), "points": None}, unit=1)
    numbers = numbers_of(record)
    expected = {
        "own": 0.5, "lmm_iou": 5 / 8, "sam_iou": 0.0, "before_iou": 3 / 9, "prompt_points": 0.0, "consistency": 0.5,
        "lmm_t": 0.4, "lmm_pointing": 1.0, "lmm_auc": 0.9, "sam_t": None, "area": 6 / 24,
    }  # fmt: skip
    assert {name: numbers[name] for name in expected} == expected
    page = page_of([record])
    assert page.data["cases"][0]["key"] == "page/0#2" and page.data["cases"][0]["view"] is None
    assert [one["name"] for one in page.data["maps"]] == ["lmm", "sam"], "those whose counts are all known"


@pytest.mark.parametrize(
    ("parts", "flags"),
    [
        ({"maps": {"lmm": None, "sam": None}}, ["constant map"]),
        ({"misaligned": True, "places": ()}, ["misaligned", "no [SEG]"]),
        ({}, []),
    ],
)
def test_what_is_odd_about_a_record_is_a_flag(parts: dict[str, Any], flags: list[str]) -> None:
    assert flags_of(measured(**parts)) == flags


def test_a_map_is_the_maximum_of_the_grids_of_several_seg(page_of: Any) -> None:
    grid = measured().grids["lmm"][0]
    record = measured(grids={"lmm": (grid, grid), "sam": ()})
    drawn = page_of([record], {0: Image.new("RGB", (6, 4))}).data["cases"][0]["view"]
    assert [len(grids) for grids in drawn["grids"]] == [2, 0]


def test_a_wrong_mask_of_a_record_is_named(page_of: Any) -> None:
    for bad in ({"size": [4, 6], "counts": "oo"}, encode_rle(np.zeros((2, 2), bool))):
        with pytest.raises(ReadsegError, match="page/0: "):
            page_of([measured(mask=bad)], {0: Image.new("RGB", (6, 4))})


def test_units_to_look_at_are_spread_over_iou_and_hold_the_misaligned() -> None:
    rng = np.random.default_rng(0)
    ious, wrong = rng.random(1000).tolist(), (rng.permutation(1000) < 25).tolist()
    found = pick_units(ious, wrong, 100)
    assert len(found) == len(set(found)) == 100 and found == sorted(found)
    assert {k for k in range(1000) if wrong[k]} <= set(found), "there are fewer than a quarter"
    ranks = sorted(np.argsort(np.argsort(ious))[found])
    assert ranks[0] < 13 and ranks[-1] > 986 and max(np.diff(ranks)) < 16
    assert len(pick_units(ious, [True] * 1000, 40)) == 40
    assert pick_units([0.5] * 3, [False] * 3, 10) == [0, 1, 2]
    assert pick_units([], [], 10) == [] and pick_units([0.5], [True], 0) == []
