"""Figures of one image: every map, mask and word stands in its panel, and what is no answer is named as such."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.analysis.map_metrics import GroundTruth
from readseg.analysis.similarity_maps import SimilarityMap
from readseg.analysis.studies import single_image as figures
from readseg.analysis.studies.map_records import MapResult, MapScores, PromptMask
from readseg.analysis.studies.single_image import ClosestToken, ImageResult, ModelResult, SegResult
from readseg.core.masks import Counts
from readseg.core.sasp import PointConfig
from readseg.viz import overlays

HW = (80, 120)
GREY = (128, 128, 128)
SIDE = figures.WIDTH // figures.COLUMNS
# Places of an image that maps and masks light up, as (top, left) of a rectangle of 20 x 30 pixels.
SPOTS = [(top, left) for top in (0, 20, 40) for left in (0, 30, 60, 90)]
CENTRES = [(top + 10, left + 15) for top, left in SPOTS]


def spot(k: int) -> np.ndarray:
    """A map or mask that is 1 on one of `SPOTS`."""
    found = np.zeros(HW, bool)
    top, left = SPOTS[k]
    found[top : top + 20, left : left + 30] = True
    return found


def map_of(k: int, *, scores: bool = True, constant: bool = False, layer: int = 2) -> MapResult:
    on_image = None if constant else spot(k).astype(np.float32)
    similarity = SimilarityMap(layer, "[SEG]", np.zeros(16, np.float32), (4, 4), on_image)
    told = MapScores(Counts(k, 100), k / 100, 1.0, 0.5, 1 - k / 100)
    return MapResult((similarity,), on_image, told if scores and not constant else None)


def mask_of(k: int, count: int | None = None, points: tuple[tuple[float, float, int], ...] = ()) -> PromptMask:
    xy = np.array([[x, y] for x, y, _ in points], np.float32).reshape(-1, 2)
    return PromptMask(
        spot(k), xy, np.array([label for *_, label in points], int), None if count is None else Counts(count, 100)
    )


POINTS = ((105.0, 70.0, 1), (75.0, 70.0, 0))


def seg(**changes: Any) -> SegResult:
    """Map k and mask k light up at place k: lmm 0, before 1, sam 2, words 3; own 4, seg 5, points 6, plain 7."""
    values: dict[str, Any] = {
        "words": "the red cup",
        "model_agrees": None,
        "maps": {"lmm": map_of(0), "before": map_of(1), "sam": map_of(2), "words": map_of(3)},
        "layers": tuple(map_of(k, layer=k) for k in range(9)),
        "masks": {
            "own": mask_of(4, 40, POINTS),
            "both": mask_of(4, 40, POINTS),
            "seg": mask_of(5, 50),
            "points": mask_of(6, 60, POINTS),
            "plain_points": mask_of(7, 70, POINTS),
            "plain_extremes": mask_of(8, 80, POINTS),
        },
        "agreement": {("own", "seg"): 0.25},
        "spearman": 0.37,
        "consistency": 0.21,
    }
    return SegResult(**(values | changes))


def model(*segs: SegResult, **changes: Any) -> ModelResult:
    values: dict[str, Any] = {
        "name": "the model",
        "source": None,
        "settings": {},
        "question": "what is the cup?",
        "answer": "it is the red cup [SEG].",
        "given": False,
        "finished": True,
        "present": bool(segs),
        "prompt": "both",
        "points": PointConfig(),
        "extremes": 5,
        "original_sam": True,
        "segs": segs,
        "together": {"own": Counts(45, 100)},
        "nearest": None,
    }
    return ModelResult(**(values | changes))


def image_found(
    *models: ModelResult, truths: tuple[GroundTruth, ...] | None = None, hw: tuple[int, int] = HW
) -> ImageResult:
    target = spot(9).astype(np.uint8)
    target[60:, :30] = 255
    expected = (GroundTruth("truth.png", target, 1),) if truths is None else truths
    return ImageResult("cup.png", Image.new("RGB", hw[::-1], GREY), "the cup", expected, models)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a figure says."""
    said: list[str] = []
    write = figures.text_block

    def heard(text: str, *args: Any, **options: Any) -> Image.Image | None:
        said.append(text)
        return write(text, *args, **options)

    monkeypatch.setattr(figures, "text_block", heard)
    return said


class Seen:
    """A figure's panels, found by their look.

    tops: where the panels of the first column begin: rows where something that is not white begins and lasts.
    """

    def __init__(self, picture: Image.Image, columns: int = figures.COLUMNS) -> None:
        self.picture = picture
        self.pixels = np.asarray(picture).astype(int)
        self.side = figures.WIDTH // columns
        inside = (self.pixels[:, self.side // 2] != 255).any(axis=1)
        starts = np.flatnonzero(inside & ~np.roll(inside, 1))
        self.tops = [int(start) for start in starts if inside[start : start + 60].all()]

    def at(self, line: int, column: int, place: tuple[int, int]) -> np.ndarray:
        """The colour of the panel at (line, column) at a place (y, x) of the image."""
        scale = (self.side - 8) / HW[1]
        y, x = ((part + 0.5) * scale for part in place)
        return self.pixels[int(self.tops[line] + y), int(column * self.side + 4 + x)]

    def brightest(self, line: int, column: int) -> int:
        """Which of `SPOTS` a map lights up: by far the brightest of a panel."""
        bright = [int(self.at(line, column, place).sum()) for place in CENTRES]
        assert sorted(bright)[-1] > sorted(bright)[-2] + 100
        return int(np.argmax(bright))


def tinted(colour: tuple[int, int, int]) -> np.ndarray:
    return (np.array(GREY) + np.array(colour)) // 2


def test_every_map_and_mask_is_in_its_panel() -> None:
    seen = Seen(figures.image_figure(image_found(model(seg()))))
    assert seen.picture.width == figures.WIDTH
    assert len(seen.tops) == 2
    for place in CENTRES:
        np.testing.assert_array_equal(seen.at(0, 0, place), GREY)
    for column in range(1, 5):  # the maps: language model, before, mask decoder, words
        expected = {1: 0, 2: 1, 3: 2, 4: 3}[column]
        assert seen.brightest(0, column) == expected
    for column, expected, colour in ((0, 4, 0), (1, 5, 0), (2, 6, 0), (3, 7, 0), (4, 9, 2)):
        for k, place in enumerate(CENTRES):
            wanted = tinted(overlays.MASK_COLOURS[colour]) if k == expected else GREY
            np.testing.assert_allclose(seen.at(1, column, place), wanted, atol=2, err_msg=f"panel {column}, spot {k}")
    np.testing.assert_allclose(seen.at(1, 4, (70, 10)), (150, 150, 150), atol=2)  # not counted


def test_points_are_on_the_map_and_on_the_original_sams_mask() -> None:
    seen = Seen(figures.image_figure(image_found(model(seg()))))
    for line, column, there in ((0, 1, True), (1, 3, True), (0, 0, False), (0, 2, False), (1, 0, False)):
        for x, y, label in POINTS:
            found = np.abs(seen.at(line, column, (int(y), int(x))) - overlays.POINT_COLOURS[label]).max() < 40
            assert found == there, (line, column, label)


def test_words_and_numbers_stand_at_their_panels(words: list[str]) -> None:
    figures.image_figure(image_found(model(seg())))
    text = "\n".join(words)
    for told in (
        "question: the cup",
        "model: the model",
        "answer: it is the red cup [SEG].",
        "map: language model, last layer; 1 positive, 1 negative points",
        'map: the answer\'s own words: "the red cup"',
        "IoU 0.00 (t 0.00), AUC 1.00",
        "IoU 0.02 (t 0.02), AUC 0.98",
        "the model's mask: points and [SEG]",
        "rank correlation 0.37, IoU of their masks at best thresholds 0.21",
        "a bound",
        "truth (grey: not counted)",
    ):
        assert told in text
    titles = [
        words.index(title) for title in ("mask: [SEG] alone", "mask: points alone", "mask: points alone, original SAM")
    ]
    assert [words[place + 1] for place in titles] == ["IoU 0.50", "IoU 0.60", "IoU 0.70"]
    assert words[words.index("the model's mask: points and [SEG]") + 1] == "IoU 0.40"


def test_a_number_that_is_none_is_not_shown(words: list[str]) -> None:
    scores = map_of(2).scores
    assert scores is not None
    one = map_of(2)._replace(scores=replace(scores, auc=float("nan"), pointing=float("nan")))
    figures.image_figure(image_found(model(seg(maps={**seg().maps, "sam": one}, spearman=float("nan")))))
    assert "IoU 0.02 (t 0.02)" in words
    assert not any("nan" in word for word in words)


def test_without_a_truth_no_word_of_it(words: list[str]) -> None:
    maps = {name: map_of(k, scores=False) for k, name in enumerate(("lmm", "before", "sam", "words"))}
    masks = {name: one._replace(counts=None) for name, one in seg().masks.items()}
    one = seg(maps=maps, masks=masks, layers=(), consistency=float("nan"))
    seen = Seen(figures.image_figure(image_found(model(one, together={}), truths=())))
    assert not [word for word in words if "IoU" in word or "truth" in word]
    assert "6.2% of the image" in words  # 20 x 30 of 80 x 120
    np.testing.assert_array_equal(seen.at(1, 4, (10, 10)), [255, 255, 255])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"present": False},
            "The model refuses: its answer holds no [SEG], so it gives no mask. IoU with the truth: 0",
        ),
        ({"present": None}, "No object was asked for"),
        ({"given": True, "present": False}, "The given answer holds no [SEG]"),
        ({"present": False, "together": {"own": Counts(0, 0)}}, "Nothing is in the truth either: IoU 1."),
        ({"present": False, "finished": False}, "cut off"),
    ],
)
def test_an_answer_without_seg_is_no_answer(words: list[str], changes: dict[str, Any], told: str) -> None:
    nearest = ClosestToken(2, "red", 0.031, 4, map_of(5))
    values = {"answer": "there is no cup.", "together": {"own": Counts(0, 600)}, "nearest": nearest} | changes
    seen = Seen(figures.image_figure(image_found(model(**values))))
    assert any(told in word for word in words)
    assert any(word.startswith("NOT an answer") and '"red"' in word for word in words)
    assert any("chance of [SEG] there 0.03" in word for word in words)
    assert len(seen.tops) == 1
    assert seen.brightest(0, 1) == 5
    orange = np.abs(seen.pixels - tinted(overlays.MASK_COLOURS[0])).max(axis=2) < 3
    assert not orange.any()


def test_an_answer_without_any_word(words: list[str]) -> None:
    figures.image_figure(image_found(model(answer="", nearest=None, present=False), truths=()))
    assert "answer: (no words)" in words


def test_several_segs_and_models_have_rows_of_their_own(words: list[str]) -> None:
    two = model(seg(), seg(words=""), together={"own": Counts(45, 100)})
    seen = Seen(figures.image_figure(image_found(two, model(seg(), name="another"))))
    assert len(seen.tops) == 6
    for told in ("[SEG] 1 of 2: the red cup", "[SEG] 2 of 2", "model: another"):
        assert told in words
    assert any("All masks together: IoU 0.45" in word and "all of it" in word for word in words)


def test_each_seg_is_shown_beside_its_own_truth(words: list[str]) -> None:
    truths = tuple(GroundTruth(f"{k}.png", spot(k).astype(np.uint8), 255) for k in (9, 10, 11))
    seen = Seen(figures.image_figure(image_found(model(seg(), seg()), truths=truths)))
    for line, expected in ((1, 9), (3, 10)):
        for k, place in enumerate(CENTRES):
            wanted = tinted(overlays.MASK_COLOURS[2]) if k == expected else GREY
            np.testing.assert_allclose(seen.at(line, 4, place), wanted, atol=2)
    assert any("Expected: 3 masks; the answer holds 2 [SEG]." in word for word in words)


def test_what_is_missing_is_said_in_its_place(words: list[str]) -> None:
    masks = {name: one for name, one in seg().masks.items() if not name.startswith("plain")}
    one = seg(maps={"lmm": map_of(0, constant=True), "before": map_of(1), "sam": map_of(2)}, masks=masks, words="")
    figures.image_figure(image_found(model(one, original_sam=False)))
    for told in ("there is no map", "the answer has no words for this [SEG]", "comes without the original SAM"):
        assert any(told in word for word in words)


def test_a_model_without_points_shows_those_it_would_have(words: list[str]) -> None:
    masks = dict(seg().masks) | {"own": mask_of(5, 50)}
    seen = Seen(figures.image_figure(image_found(model(seg(masks=masks), prompt="seg"))))
    assert any("1 positive, 1 negative points, not in its prompt" in word for word in words)
    assert "the model's mask: [SEG] alone" in words
    assert "mask: points and [SEG]" in words
    np.testing.assert_allclose(seen.at(0, 1, (70, 105)), overlays.POINT_COLOURS[1], atol=40)


def test_more_segs_than_can_be_looked_at_are_told(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_ROWS", 3)
    seen = Seen(figures.image_figure(image_found(model(seg(), seg()), model(*[seg()] * 3, name="another"))))
    assert len(seen.tops) == 2 * figures.MOST_ROWS
    assert "2 more [SEG] are in the JSON file." in words


def test_layers_stand_in_their_order(words: list[str]) -> None:
    seen = Seen(figures.image_figure(image_found(model(seg())), layers=True), columns=figures.LAYER_COLUMNS)
    assert seen.picture.width == figures.WIDTH
    assert len(seen.tops) == 2  # nine layers in lines of seven
    assert [seen.brightest(layer // 7, layer % 7) for layer in range(9)] == list(range(9))
    assert [word for word in words if word.startswith("layer")] == [
        "layer 0: embeddings", *(f"layer {k}" for k in range(1, 8)), "layer 8: last, after the norm",
    ]  # fmt: skip
    assert "IoU 0.03 (t 0.03), AUC 0.97" in words


def test_layers_of_an_answer_without_seg(words: list[str]) -> None:
    picture = figures.image_figure(image_found(model(present=False, answer="no cup.")), layers=True)
    assert picture.height < 300
    assert any("refuses" in word for word in words)
    assert not any("bound" in word for word in words)


@pytest.mark.parametrize("hw", [(1, 1), (3, 20_000), (20_000, 3), (400, 900)])
def test_images_of_any_shape(hw: tuple[int, int]) -> None:
    mask = np.zeros(hw, bool)
    mask[0, 0] = True
    points = PromptMask(mask, np.zeros((1, 2), np.float32), np.ones(1, int), Counts(1, 1))
    value_map = mask.astype(np.float32)
    one = MapResult((SimilarityMap(2, "[SEG]", np.zeros(16, np.float32), (4, 4), value_map),), value_map, None)
    shown = seg(
        maps=dict.fromkeys(("lmm", "before", "sam"), one), masks=dict.fromkeys(seg().masks, points), layers=(one,)
    )
    found = image_found(model(shown), truths=(GroundTruth("t.png", mask.astype(np.uint8), 255),), hw=hw)
    for picture in (figures.image_figure(found), figures.image_figure(found, layers=True)):
        assert picture.width == figures.WIDTH
        assert 200 < picture.height < 1500
