"""Part A of the reference: similarity, maps, point selection and DtoC, in `reference` alignment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from readseg.core.frames import ImageFrame
from readseg.core.sasp import (
    PointConfig,
    PointPrompts,
    discrete_to_continuous,
    discrete_to_continuous_on_map,
    full_map,
    normalise,
    points_from_scores,
    select_cells,
    select_points,
    similarity,
)
from readseg.core.token_grid import REFERENCE_SIDE

POINT_TOLERANCE = 2e-3  # pixels
MAP_TOLERANCE = 1e-5

Case = dict[str, Any]


class Part:
    """Part A: its index, and its tensors by file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Case = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._files: dict[str, dict[str, Tensor]] = {}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one file."""
        if name not in self._files:
            self._files[name] = load_file(self.folder / f"{name}.safetensors")
        return self._files[name]

    def cases(self, name: str) -> Iterator[tuple[Case, dict[str, Tensor]]]:
        """Each record of one kind with its tensors, named without the key."""
        tensors = self.tensors(name)
        assert self.index[name], f"no case of {name}"
        for case in self.index[name]:
            start = case.get("key", "\0") + "."
            yield case, {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


@pytest.fixture(scope="module")
def part(reference: Path) -> Part:
    return Part(reference / "A_sasp")


def settings(case: Case) -> PointConfig:
    """The case's settings of points."""
    return PointConfig(case["num_points"], case["t_pos"], case["t_neg"], case["down_sample"], "reference")


def sound_cases(part: Part) -> Iterator[tuple[Case, dict[str, Tensor], dict[str, Tensor]]]:
    """Cases in which the reference works: record, all tensors, and those to test against (stable sort)."""
    for case, tensors in part.cases("points"):
        if case["status"] == "ok" and not case.get("nan_points"):
            stable = {name.removeprefix("stable."): t for name, t in tensors.items() if name.startswith("stable.")}
            yield case, tensors, {**tensors, **stable}


def given_points(truth: dict[str, Tensor]) -> PointPrompts:
    """The reference's discrete points as prompts."""
    xy, labels = truth["int_points"][None].float(), truth["labels"][None]
    return PointPrompts(xy, labels, torch.ones_like(labels, dtype=torch.bool))


def test_points_and_labels_are_selected_exactly(part: Part) -> None:
    wrong, seen = [], 0
    for case, tensors, truth in sound_cases(part):
        seen += 1
        points = select_points(tensors["sm"][None], tuple(case["shape"]), settings(case))
        count = len(truth["labels"])
        expected_valid = torch.arange(points.valid.shape[1])[None] < count
        same = (
            torch.equal(points.valid, expected_valid)
            and torch.equal(points.labels[0, :count], truth["labels"])
            and torch.equal(points.xy[0, :count], truth["int_points"].float())
        )
        if not same:
            wrong.append(case["key"])
    assert seen
    assert not wrong


def test_cells_are_ranked_exactly(part: Part) -> None:
    wrong = []
    for case, _, truth in sound_cases(part):
        grid = truth["small"].view(1, *case["grid_hw"])
        cells, labels, valid = select_cells(grid, grid[0] >= 0, settings(case))
        count = len(truth["selected"])
        same = (
            bool(valid[0, :count].all() and not valid[0, count:].any())
            and torch.equal(cells[0, :count], truth["selected"])
            and torch.equal(labels[0, :count], truth["labels"])
        )
        if not same:
            wrong.append(case["key"])
    assert not wrong


def test_continuous_points(part: Part) -> None:
    deviations = {}
    for case, tensors, truth in sound_cases(part):
        points = points_from_scores(tensors["sm"][None], tuple(case["shape"]), settings(case))
        count = len(truth["points"])
        deviations[case["key"]] = (points.xy[0, :count] - truth["points"]).abs().max().item()
    assert max(deviations.values()) <= POINT_TOLERANCE, sorted(deviations, key=deviations.__getitem__)[-3:]


def test_all_cases_of_one_layout_at_once_equal_single_ones(part: Part) -> None:
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for case, tensors, truth in sound_cases(part):
        layout = json.dumps([case["shape"], case["n_tokens"], case["dtype"], vars(settings(case))])
        groups.setdefault(layout, []).append((tensors["sm"], truth["points"]))
    for layout, members in groups.items():
        shape, _, _, options = json.loads(layout)
        points = points_from_scores(
            torch.stack([scores for scores, _ in members]), tuple(shape), PointConfig(**options)
        )
        for row, (_, expected) in enumerate(members):
            assert int(points.valid[row].sum()) == len(expected)
            assert (points.xy[row, : len(expected)] - expected).abs().max() <= POINT_TOLERANCE, layout


def test_what_has_no_points(part: Part) -> None:
    """Where the reference fails or gives NaN, a map without a range has no points, a bad grid is an error."""
    for case, tensors in part.cases("points"):
        if case["status"] == "ok" and not case.get("nan_points"):
            continue
        scores, shape = tensors["sm"][None], tuple(case["shape"])
        if math.isqrt(scores.shape[1]) ** 2 != scores.shape[1]:
            with pytest.raises(ValueError, match="square"):
                points_from_scores(scores, shape, settings(case))
            continue
        points = points_from_scores(scores, shape, settings(case))
        assert not points.valid.any(), case["key"]
        assert points.xy.isfinite().all(), case["key"]


def test_full_maps(part: Part) -> None:
    for case, tensors, truth in sound_cases(part):
        if "origin_map" in truth:
            ours = full_map(tensors["sm"][None], tuple(case["shape"]), alignment="reference")[0]
            assert (ours - truth["origin_map"]).abs().max() <= MAP_TOLERANCE, case["key"]
        if "origin_sum" in case and math.prod(case["shape"]) < 2e5:
            ours = full_map(tensors["sm"][None], tuple(case["shape"]), alignment="reference")
            assert ours.double().sum().item() == pytest.approx(case["origin_sum"], rel=1e-4), case["key"]
            assert ours.max().item() == pytest.approx(case["origin_max"], abs=MAP_TOLERANCE), case["key"]


def test_cropped_minima(part: Part) -> None:
    """Where int(min * (T / min)) is T - 1, one cell of each side of a square image is cropped, and only there."""
    for cells, minima in part.index["float_truncation_minima"].items():
        side = int(cells)
        scores = torch.arange(side * side, dtype=torch.float32)[None]
        for short in minima:
            points = select_points(scores, (short, short), PointConfig(side * side, downsample=1))
            assert int(points.valid.sum()) == (side - 2) ** 2, (side, short)


def test_similarity_maps_of_both_frames(part: Part) -> None:
    for case, tensors in part.cases("get_similarity_map"):
        frame, size = re.fullmatch(r"(llava|sam)(\d+)", case["variant"]).groups()
        if "key" not in case:  # a constant map: the reference gives NaN
            assert full_map(torch.ones(1, 16), (8, 12), alignment="reference").eq(0).all()
            continue
        batch, tokens, texts = tensors["sm"].shape
        scores = tensors["sm"].transpose(1, 2).reshape(batch * texts, tokens)
        image_hw = tuple(case["shape"])
        if frame == "llava":
            assert int(size) == REFERENCE_SIDE
            maps = full_map(scores, image_hw, alignment="reference")
        else:
            grid = normalise(scores.unflatten(1, (math.isqrt(tokens), -1)))[0]
            maps = ImageFrame(*image_hw, lmm_size=REFERENCE_SIDE, mask_size=int(size)).masks_to_image(grid)
        maps = maps.unflatten(0, (batch, texts)).permute(0, 2, 3, 1)
        assert maps.shape == tensors["out"].shape
        assert (maps - tensors["out"]).abs().max() <= MAP_TOLERANCE, case["key"]


def weighted_by_text(image: Tensor, text: Tensor) -> Tensor:
    """Several texts compete: each text's similarity times n * softmax over texts of 2 * first patch . text."""
    scores = similarity(text, image)  # (texts, patches)
    return scores * len(text) * (2 * scores[:, :1]).softmax(dim=0)


def test_similarity(part: Part) -> None:
    for case, tensors in part.cases("compute_similarity_map"):
        text = tensors["text"]
        if "redundant" in tensors:  # a feature that all texts share is taken out
            ours = [similarity(text - tensors["redundant"], image) for image in tensors["image"]]
        elif len(text) > 1:
            ours = [weighted_by_text(image, text) for image in tensors["image"]]
        else:
            ours = [similarity(text, image) for image in tensors["image"]]
        maps = torch.stack(ours).transpose(1, 2)
        if case["status"] != "ok":  # the reference cannot do batches
            assert maps.shape == (*tensors["image"].shape[:2], len(text))
            assert maps.isfinite().all()
            continue
        torch.testing.assert_close(maps, tensors["out"], rtol=1e-5, atol=2e-5, msg=case["key"])


def test_dtoc_on_given_maps(part: Part) -> None:
    for case, tensors in part.cases("discrete_to_continuous"):
        if "key" not in case:  # no point at all: the reference fails
            assert discrete_to_continuous_on_map(torch.zeros(1, 0, 2), torch.rand(1, 5, 5)).shape == (1, 0, 2)
            continue
        maps, points = tensors["sm"][None], tensors["points"][None].float()
        if not maps.isfinite().all():
            assert torch.equal(discrete_to_continuous_on_map(points, maps), points), case["key"]
            continue
        radius = math.ceil(math.sqrt(float(maps.max() - maps.min()) + 17))
        ours = discrete_to_continuous_on_map(points, maps, radius=radius)[0]
        assert (ours - tensors["out"]).abs().max() <= POINT_TOLERANCE, case["key"]


def test_window_equals_the_sum_over_the_image(part: Part) -> None:
    recorded = json.loads((part.folder / "window_equivalence.json").read_text(encoding="utf-8"))
    radii = {int(name.split()[1]): entry for name, entry in recorded.items() if re.fullmatch(r"radius \d+", name)}
    assert radii
    for case, tensors, truth in sound_cases(part):
        shape, scores = tuple(case["shape"]), tensors["sm"][None]
        points = given_points(truth)
        ours = discrete_to_continuous(points, scores, shape, settings(case))[0]
        assert (ours - truth["points"]).abs().max() <= POINT_TOLERANCE
        maps = full_map(scores, shape, alignment="reference")
        for radius, entry in radii.items():
            moved = discrete_to_continuous_on_map(points.xy, maps, radius=radius)[0]
            apart = (moved - truth["points"]).abs().max().item()
            assert apart <= POINT_TOLERANCE + entry["max_abs_px"], (case["key"], radius)
