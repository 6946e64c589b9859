"""Masks written as polygons come back, whoever paints them."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from readseg.core.masks import decode_rle, iou, polygons_to_mask
from readseg.miniatures.files import coco_annotation, halves, trace


def disc(radius: float, hw: tuple[int, int] = (60, 80), centre: tuple[float, float] = (30, 40)) -> np.ndarray:
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    return (ys - centre[0]) ** 2 + (xs - centre[1]) ** 2 <= radius**2


def filled_as_coco(polygons: list, hw: tuple[int, int]) -> np.ndarray:
    flat = [[value for point in polygon for value in point] for polygon in polygons]
    return coco.decode(coco.merge(coco.frPyObjects(flat, *hw))).astype(bool)


def test_a_square_is_traced_along_its_pixels_outer_edges() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert sorted(trace(mask)[0]) == [[3.1, 2.1], [3.1, 4.9], [8.9, 2.1], [8.9, 4.9]]


@pytest.mark.parametrize(
    "mask",
    [
        disc(20),
        disc(20) & ~disc(9),
        disc(25) & ~disc(4, centre=(20, 40)) & ~disc(5, centre=(38, 33)) & ~disc(5, centre=(36, 50)),
        disc(9, centre=(5, 5)) | disc(8, centre=(50, 70)) | disc(6, centre=(30, 40)),
        disc(200),
        (disc(24) & ~disc(15)) | disc(7),
    ],
    ids=["disc", "ring", "three holes", "three parts, two at the edge", "everything", "target within a ring"],
)
def test_polygons_give_the_mask_back_exactly_and_as_coco_fills_them_nearly(mask: np.ndarray) -> None:
    polygons = trace(mask)
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert iou(filled_as_coco(polygons, mask.shape), mask) > 0.97


def test_single_pixels_and_thin_lines_come_back() -> None:
    mask = np.zeros((12, 12), bool)
    assert trace(mask) == []
    mask[0, 0] = mask[4, 2:8] = mask[7:11, 1] = mask[6, 11] = True
    mask[[8, 9, 10], [5, 6, 7]] = mask[[10, 9, 8], [9, 10, 11]] = True
    polygons = trace(mask)
    assert len(polygons) == 6
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    straight = mask.copy()
    straight[8:, 2:] = False
    assert np.array_equal(filled_as_coco(trace(straight), mask.shape), straight)


def test_an_annotation_has_exact_area_and_box() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    record = coco_annotation(7, 8, 9, mask)
    assert record["segmentation"][0][:2] == [3.1, 2.1] and len(record["segmentation"]) == 1
    assert (record["id"], record["image_id"], record["category_id"], record["iscrowd"]) == (7, 8, 9, 0)
    assert record["bbox"] == [3.0, 2.0, 6.0, 3.0] and record["area"] == 18.0
    assert np.array_equal(decode_rle(coco_annotation(7, 8, 9, mask, run_lengths=True)["segmentation"][0]), mask)


def test_halves_are_named_for_where_they_are() -> None:
    wide = np.zeros((10, 12), bool)
    wide[2:5, 3:9] = True
    parts = halves(wide)
    assert list(parts) == ["left half", "right half"]
    assert parts["left half"].sum() == parts["right half"].sum() == 9
    assert np.flatnonzero(parts["left half"].any(0)).tolist() == [3, 4, 5]
    tall = halves(wide.T)
    assert list(tall) == ["top half", "bottom half"]
    assert np.flatnonzero(tall["bottom half"].any(1)).tolist() == [6, 7, 8]
