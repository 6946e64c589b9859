"""The page of a study of maps as a reader has it: opened from its file in a browser, without a word of complaint."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Browser, Tab, browser
from page_study import HW, MAPS, Known, grid_of, pictures_of, scores, study
from readseg.analysis.page import flags_of, numbers_of, write_page
from readseg.analysis.studies.map_records import PointPrompt
from readseg.core.masks import encode_rle
from readseg.core.stats import Estimate, mask_ious
from readseg.viz.tables import Row, Table, printable

UNITS = study(130)
TABLE = Table("Maps", "map", {"giou": "gIoU"}, [Row("lmm", {"giou": Estimate(0.5, 0.25, 0.75, 3)})], ["n = 3"])
ROWS = 100  # of a page of the table

# Waits, by real time, for what the page does on its own time.
UNTIL = """
const until = async (what) => {
  const end = performance.now() + 60000;
  while (!what()) {
    if (performance.now() > end) throw new Error(`in vain: ${what}`);
    await new Promise((then) => setTimeout(then, 10));
  }
};
const painted = (canvas) => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  return pen.getImageData(0, 0, 1, 1).data[3] > 0;
};
const frames = () => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
"""
SEEN = """
const card = document.querySelector("#cards canvas");
card.scrollIntoView();
await until(() => painted(card));
"""
KEYS = '[...document.querySelectorAll("#rows tr")].map((row) => row.querySelector("small").textContent)'


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "maps.html"
    write_page(path, "Maps of A", {"model": "A"}, [TABLE], [one.record for one in UNITS], pictures_of(UNITS))
    return path


@pytest.fixture
def tab(opened: Browser, page: Path) -> Iterator[Tab]:
    """The page, which has said nothing and asked for nothing by the end of each test."""
    there = opened.open(page)
    yield there
    there.close()
    assert not there.messages
    assert not there.requests


def three_digits(number: float) -> str:
    """As a browser writes them: halves go up."""
    return str(Decimal(number).quantize(Decimal("0.001"), ROUND_HALF_UP))


def all_keys(tab: Tab) -> list[str]:
    """Keys of all rows, turning the table's pages."""
    found: list[str] = tab.run(f"return {KEYS}")
    while not tab.run('return document.querySelector("#forth").disabled'):
        found += tab.run(f'document.querySelector("#forth").click(); return {KEYS}')
    return found


def keys(units: list[Known]) -> list[str]:
    return [one.record.key for one in units]


def choose(tab: Tab, name: str, value: str) -> None:
    tab.run(
        f"const field = document.querySelector('#{name}'); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', { bubbles: true })); field.dispatchEvent(new Event('change'))"
    )


def slide(tab: Tab, place: int, t: float) -> None:
    tab.run(
        f"const input = document.querySelector('[data-block=\"{place}\"] input'); input.value = {t};"
        "input.dispatchEvent(new Event('input'))"
    )


def told_scores(tab: Tab, place: int, which: str) -> list[str]:
    """Number of units, gIoU and cIoU in the block of a map."""
    found: list[str] = tab.run(
        f"return [...document.querySelectorAll('[data-block=\"{place}\"] [data-units={which}] td')]"
        ".map((cell) => cell.textContent)"
    )
    return found


# -- it opens ----------------------------------------------------------------------------------------------------------


def test_it_opens_from_its_file_in_silence(tab: Tab) -> None:
    seen = tab.run(
        UNTIL + SEEN + 'return [location.protocol, document.title, document.querySelector("#app").hidden,'
        'document.querySelectorAll("#rows tr").length, document.querySelectorAll("#cards article").length]'
    )
    assert seen == ["file:", "Maps of A", False, ROWS, 24]


def test_a_complaint_and_a_request_would_be_heard(opened: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    image = '<img src="http://127.0.0.1:9/x.png"><script>window.injected = 1</script>'
    bad.write_text(page.read_text(encoding="utf-8").replace("<h1>", f"{image}<h1>"), encoding="utf-8")
    there = opened.open(bad)
    injected = there.run('console.warn("aloud"); setTimeout(() => { throw new Error("lost") }); return window.injected')
    there.run("await new Promise((then) => setTimeout(then, 50))")
    assert injected is None, "the page's policy holds"
    said = "\n".join(there.messages)
    for part in ("x.png", "Executing inline script", "aloud", "lost"):
        assert part in said
    assert there.requests == ["http://127.0.0.1:9/x.png"]


def test_hostile_text_is_text(opened: Browser, tmp_path: Path) -> None:
    nasty = "</script><script>window.injected = 1</script><img src=x onerror='window.injected = 1'><!-- \u2028 \ud800"
    shown = printable(nasty)
    parts: dict[str, Any] = dict.fromkeys(("key", "question", "answer", "kind", "section"), nasty)
    record = replace(UNITS[1].record, **parts)
    table = Table(nasty, nasty, {"x": nasty}, [Row(nasty, {"x": nasty}, nasty)], [nasty])
    records = [record, replace(record, kind="any", section="")]
    write_page(tmp_path / "page.html", nasty, {nasty: nasty}, [table], records, dict.fromkeys((0, 1), UNITS[1].picture))
    there = opened.open(tmp_path / "page.html")
    found = there.run(
        UNTIL + SEEN + 'document.querySelector("#rows button").click(); await frames();'
        "const text = (where) => document.querySelector(where).textContent;"
        'return [window.injected, document.querySelectorAll("img").length, text("title"), text("h1"),'
        'text("#rows small"), text("#look-title"), text(".question"), text(".answer"),'
        'text("#kind option:nth-child(2)")]'
    )
    assert found == [None, 0, *[shown] * 7]
    assert not there.messages and not there.requests


def test_an_empty_study_opens_too(opened: Browser, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "Nothing", {}, [], [], {})
    there = opened.open(tmp_path / "page.html")
    assert there.run('return document.querySelector("#count").textContent') == "0 of 0 units"
    assert not there.messages


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(opened: Browser, page: Path, dark: bool) -> None:
    there = opened.open(page, width=390, height=844, dark=dark)
    wide, back = there.run(
        'document.querySelector("button.look").click();'
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    assert wide <= 390
    assert (sum(map(int, back.removeprefix("rgb(").rstrip(")").split(","))) < 200) == dark
    assert there.run('return document.querySelector("dialog").scrollWidth') <= 390


# -- table -------------------------------------------------------------------------------------------------------------


def lost_last(value: Callable[[Known], Any], reverse: bool) -> list[str]:
    there = [one for one in UNITS if value(one) not in (None, "") and value(one) == value(one)]
    lost = [one for one in UNITS if one not in there]
    return keys([*sorted(there, key=value, reverse=reverse), *lost])


def test_a_click_or_a_key_on_a_heading_sorts(tab: Tab) -> None:
    columns: dict[str, Callable[[Known], Any]] = {
        "own": lambda one: one.record.own_iou,
        "spearman": lambda one: one.record.spearman,
        "lmm_t": lambda one: one.record.maps["lmm"].threshold,
        "answer": lambda one: one.record.answer.lower(),
        "kind": lambda one: one.record.kind,
    }
    assert all_keys(tab) == keys(UNITS)
    for column, value in columns.items():
        for direction in ("ascending", "descending"):
            marked = tab.run(
                f"document.querySelector('[data-column={column}] button').click();"
                "return [...document.querySelectorAll('[aria-sort]')]"
                ".map((head) => [head.dataset.column, head.getAttribute('aria-sort')])"
            )
            assert marked == [[column, direction]]
            assert all_keys(tab) == lost_last(value, reverse=direction == "descending")
    tab.run("document.querySelector('[data-column=lmm_t] button').focus()")
    tab.press("Enter")
    assert all_keys(tab) == lost_last(columns["lmm_t"], reverse=False)
    assert tab.run("return document.activeElement.closest('th').dataset.column") == "lmm_t", "the focus stays"


def test_the_table_shows_what_the_data_hold(tab: Tab) -> None:
    heads = tab.run("return [...document.querySelectorAll('#head button')].map((head) => head.firstChild.textContent)")
    assert heads[:6] == ["question", "answer", "kind", "section", "flags", "IoU, own mask"]
    rows = tab.run(
        "return [...document.querySelectorAll('#rows tr')].map((row) => [...row.cells].map((c) => c.innerText))"
    )
    for cells, one in zip(rows, UNITS[:ROWS], strict=True):
        record, numbers, flags = one.record, numbers_of(one.record).values(), flags_of(one.record)
        assert cells[0].split("\n") == [record.question, record.key]
        assert cells[1:4] == [record.answer, record.kind, record.section]
        assert cells[4] == "".join(flags) or cells[4].split("\n") == flags
        assert cells[5:] == ["-" if n is None or n != n else three_digits(n) for n in numbers]
    assert tab.run('return document.querySelector("#place").textContent') == "1 to 100 of 130"


# -- filter ------------------------------------------------------------------------------------------------------------


def test_the_filter_keeps_what_was_asked_for(tab: Tab) -> None:
    def check(wanted: Callable[[Known], bool]) -> None:
        expected = [one for one in UNITS if wanted(one)]
        assert all_keys(tab) == keys(expected)
        assert tab.run('return document.querySelector("#count").textContent') == f"{len(expected)} of 130 units"
        pictured = [one for one in expected if one.picture]
        cards = tab.run('return document.querySelectorAll("#cards article").length')
        assert cards == min(24, len(pictured))
        for place, name in enumerate(MAPS):
            filtered = tab.run(f"return !document.querySelector('[data-block=\"{place}\"] [data-units=found]').hidden")
            assert filtered == (len(expected) < len(UNITS))
            which = expected if filtered else UNITS
            shown = told_scores(tab, place, "found")
            assert shown == [str(len(which)), *(scores(which, name, 0.5) if which else ("-", "-"))]

    choose(tab, "text", " OWL ")
    check(lambda one: "owl" in one.record.answer.lower())
    choose(tab, "kind", "size")
    check(lambda one: "owl" in one.record.answer.lower() and one.record.kind == "size")
    choose(tab, "text", "thing 7")
    check(lambda one: "thing 7" in one.record.question and one.record.kind == "size")
    choose(tab, "text", "")
    choose(tab, "section", "test")
    check(lambda one: one.record.kind == "size" and one.record.section == "test")
    tab.run('document.querySelector("#filter [type=reset]").click(); await new Promise((then) => setTimeout(then, 20))')
    check(lambda one: True)
    tab.run('document.querySelector("#seen").click()')
    check(lambda one: one.picture is not None)
    tab.run('document.querySelector("#seen").click()')
    choose(tab, "flag", "no [SEG]")
    check(lambda one: "no [SEG]" in flags_of(one.record))
    tab.run("document.querySelector('#flag').selectedIndex = 3")
    choose(tab, "text", "image-1")
    check(lambda one: not flags_of(one.record) and "image-1" in one.record.key)
    choose(tab, "text", "nowhere")
    check(lambda one: False)


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_the_sliders_show_the_scores_of_all_units_at_their_threshold(tab: Tab) -> None:
    for place, name in enumerate(MAPS):
        for t in (0.5, 0.0, 0.13, 0.77, 1.0):
            slide(tab, place, t)
            assert told_scores(tab, place, "all") == ["130", *scores(UNITS, name, t)]
    other = told_scores(tab, 0, "all")
    slide(tab, 1, 0.3)
    assert told_scores(tab, 0, "all") == other, "each map has a slider of its own"
    tab.run("document.querySelector('[data-block=\"1\"] input').focus()")
    for _ in range(3):
        tab.press("ArrowRight")
    assert tab.run("return [...document.querySelectorAll('output[data-t=\"1\"]')].map((o) => o.value)") == ["0.33"]
    assert told_scores(tab, 1, "all") == ["130", *scores(UNITS, "sam", 0.33)]


def test_the_bounds_are_those_of_the_best_thresholds(tab: Tab) -> None:
    for place, name in enumerate(MAPS):
        counts = [one.all_counts(name) for one in UNITS]
        best = [max(row, key=lambda count: count[0] / count[1] if count[1] else 1.0) for row in counts]
        single = [mask_ious(*zip(*(row[k] for row in counts), strict=True)).mean() for k in range(101)]
        told = tab.run(f"return document.querySelector('[data-block=\"{place}\"] .notes').textContent")
        top = int(np.argmax(single))
        assert f"Best t of each unit: gIoU {mask_ious(*zip(*best, strict=True)).mean():.3f}." in told
        assert f"Best single t: gIoU {single[top]:.3f} at {top / 100:.2f}." in told
        line = tab.run(
            f"const part = (which) => document.querySelector(`[data-block='{place}'] svg ${{which}}`);"
            "return [part('polyline.giou').getAttribute('points'), part('.bound').getAttribute('y1')]"
        )
        heights = [float(point.split(",")[1]) for point in line[0].split()]
        # The chart's axis: two of its points tell where 0 and 1 are.
        unit = (heights[top] - heights[0]) / (single[top] - single[0])
        assert np.allclose(heights, heights[0] + unit * (np.array(single) - single[0]), atol=0.2)
        assert (
            abs(float(line[1]) - (heights[0] + unit * (mask_ious(*zip(*best, strict=True)).mean() - single[0]))) < 0.3
        )


# -- pictures ----------------------------------------------------------------------------------------------------------


def ramp(folder: Path) -> Path:
    """A page of one unit whose map grows from left to right over a grey picture of 200 x 100 pixels."""
    levels = np.rint(np.arange(10) / 9 * 255)[None].repeat(2, axis=0)
    target, own = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    target[60:90, 20:60] = True
    own[10:40, 20:60] = True
    record = replace(
        UNITS[0].record,
        size=(100, 200),
        target=encode_rle(target),
        ignored=None,
        mask=encode_rle(own),
        points=(PointPrompt(150.0, 20.0, 1),),
        grids={"lmm": (grid_of(levels, (0.0, 0.0, 200.0, 100.0)),), "sam": ()},
    )
    write_page(folder / "ramp.html", "Ramp", {}, [], [record], {0: Image.new("RGB", (200, 100), (90, 90, 90))})
    return folder / "ramp.html"


def pixels(tab: Tab, where: str = "#cards canvas") -> np.ndarray:
    """A canvas (h, w, 3) as it is after the next frame."""
    address = tab.run(
        UNTIL + f"const canvas = document.querySelector({where!r}); canvas.scrollIntoView();"
        "await until(() => painted(canvas)); await frames(); return canvas.toDataURL()"
    )
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Places (h, w) of a colour."""
    found: np.ndarray = (np.abs(picture - colour) < 25).all(axis=-1)
    return found


def test_the_gallery_draws_the_mask_where_the_map_reaches_the_threshold(opened: Browser, tmp_path: Path) -> None:
    there = opened.open(ramp(tmp_path))
    last = pixels(there)
    assert last.shape == (200, 400, 3)
    for t in (0.2, 0.55, 0.8):
        slide(there, 0, t)
        drawn = pixels(there)
        assert (drawn != last).any()
        last, row = drawn, drawn[100]  # free of the other outlines
        edge = np.flatnonzero((row > 225).all(axis=-1))[0] / 400
        assert abs(edge - (9 * t + 0.5) / 10) < 0.01, "the map is linear between its cells' centres"
        # From dark violet to yellow, over grey.
        assert row[4, 2] > row[4, 1] and row[-8, 1] > row[-8, 2] + 60
    assert not there.messages


def test_every_outline_is_shown_when_it_is_asked_for(opened: Browser, tmp_path: Path) -> None:
    there = opened.open(ramp(tmp_path))
    layers = {
        "truth": ((230, 159, 0), (0.1, 0.3, 0.6, 0.9)),
        "own": ((86, 180, 233), (0.1, 0.3, 0.1, 0.4)),
        "points": ((0, 114, 178), (0.74, 0.77, 0.18, 0.23)),
    }
    pixels(there)
    there.run("for (const box of document.querySelectorAll('#layers input')) if (box.checked) box.click()")
    there.run("document.querySelector('#shown [value=\"-1\"]').click()")
    plain = pixels(there)
    assert (np.abs(plain - 90) < 4).all(), "nothing but the picture"
    for name, (colour, (left, right, top, bottom)) in layers.items():
        there.run(f"document.querySelector('#layer-{name}').click()")
        y, x = np.nonzero(near(pixels(there), colour))
        assert len(y) > 20, name
        assert np.allclose(
            [x.min() / 400, x.max() / 400, y.min() / 200, y.max() / 200], [left, right, top, bottom], atol=0.02
        )
        there.run(f"document.querySelector('#layer-{name}').click()")
    there.run("document.querySelector('#layer-mask').click(); document.querySelector('#shown [value=\"1\"]').click()")
    assert (np.abs(pixels(there) - 90) < 4).all(), "there is no such map: neither heat nor mask"
    assert not there.messages


def test_a_unit_is_looked_at_closely_and_left_again(tab: Tab) -> None:
    shown = "return [document.querySelector('dialog').open, document.querySelector('#look-title').textContent]"
    tab.run("const card = document.querySelectorAll('button.look')[2]; card.focus(); card.click()")
    assert tab.run(shown) == [True, UNITS[2].record.question]
    assert tab.run("return document.querySelectorAll('#look-pictures canvas').length") == 1 + len(MAPS)
    assert pixels(tab, "#look-pictures figure:nth-child(2) canvas").shape == (4 * HW[0], 4 * HW[1], 3)
    tab.press("ArrowRight")
    assert tab.run(shown) == [True, UNITS[3].record.question]
    tab.press("ArrowLeft")
    tab.press("ArrowLeft")
    assert tab.run(shown) == [True, UNITS[1].record.question]
    canvases = [f"#look-pictures figure:nth-child({place}) canvas" for place in (2, 3)]
    for place, name in enumerate(MAPS):
        before = [pixels(tab, canvas) for canvas in canvases]
        tab.run(
            f"const input = document.querySelector('#look-pictures [data-map=\"{place}\"]'); input.value = 0.9;"
            "input.dispatchEvent(new Event('input'))"
        )
        changed = [(pixels(tab, canvas) != old).any() for canvas, old in zip(canvases, before, strict=True)]
        assert changed == [place == 0, place == 1], "each map has its own threshold"
        assert told_scores(tab, place, "all") == ["130", *scores(UNITS, name, 0.9)]
    tab.press("Escape")
    assert not tab.run(shown)[0]
    assert tab.run("return document.activeElement === document.querySelectorAll('button.look')[2]")


def test_cards_tell_exact_scores_and_more_of_them_come_when_they_are_asked_for(tab: Tab) -> None:
    slide(tab, 0, 0.61)
    pixels(tab)
    told = tab.run("return document.querySelector('#cards .scores').textContent")
    one = UNITS[0]
    (lmm, sam) = (mask_ious([i], [u])[0] for i, u in (one.counts("lmm", 0.61), one.counts("sam", 0.5)))
    assert told == f"IoU, own mask: {one.record.own_iou:.3f} · lmm ≥ 0.61: {lmm:.3f} · sam ≥ 0.50: {sam:.3f}"
    count = 'document.querySelectorAll("#cards article").length'
    assert tab.run(f"const first = {count}; document.querySelector('#more').click(); return [first, {count}]") == [
        24,
        30,
    ]
    assert tab.run("return document.querySelector('#more').hidden")
    assert tab.run("return document.querySelectorAll('#rows button').length") == 30, "units without one are text"
