"""The names of classes: as many as the data sets have; and which are surely not in an image."""

from __future__ import annotations

import pytest

from readseg.data.readers.semantic import _DOUBTFUL, _FAMILIES, surely_absent
from readseg.data.readers.semantic import ADE20K_NAMES as ADE20K
from readseg.data.readers.semantic import COCO_STUFF_NAMES as COCO_STUFF


def test_tables_are_whole() -> None:
    assert (len(ADE20K), len(set(ADE20K))) == (150, 150)
    assert (len(COCO_STUFF), len(set(COCO_STUFF))) == (182, 182)
    for name in ADE20K + COCO_STUFF:
        assert name == " ".join(name.split()).lower()
    # Indices that the data sets' papers and configurations name: the first, the last, and where stuff begins.
    assert (ADE20K[0], ADE20K[12], ADE20K[149]) == ("wall", "person", "flag")
    assert [COCO_STUFF[k] for k in (0, 90, 91, 181)] == ["person", "hair brush", "banner", "wood"]
    assert sorted(COCO_STUFF[91:]) == list(COCO_STUFF[91:])


@pytest.mark.parametrize(
    ("present", "name"),
    [
        ("wall", "wall"),
        ("dining table", "table"),
        ("building", "windowpane"),
        ("building-other", "house"),
        ("person", "clothes"),
        ("sea", "water"),
        ("tree", "plant"),
        ("traffic lights", "light"),
        ("sky", "metal"),
        ("lane marking - stop line", "lane marking - crosswalk"),
    ],
)
def test_what_another_label_may_cover_is_not_denied(present: str, name: str) -> None:
    assert surely_absent([name, "clock"], [present]) == ("clock",)


def test_the_order_stays_and_what_has_nothing_to_do_with_it_is_absent() -> None:
    assert surely_absent(["zebra", "airplane", "car"], ["grass", "car"]) == ("zebra", "airplane")
    assert surely_absent(["zebra"], []) == ("zebra",)


@pytest.mark.parametrize("table", [ADE20K, COCO_STUFF])
def test_there_is_always_something_to_deny(table: tuple[str, ...]) -> None:
    asked = [name for name in table if "-" not in name]
    for start in range(0, len(table) - 10, 5):
        assert len(surely_absent(asked, table[start : start + 10])) > 20


def test_what_coco_gave_up_labelling_is_never_denied() -> None:
    given_up = ["street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender"]
    given_up.append("hair brush")
    assert set(given_up) <= set(COCO_STUFF)
    assert not surely_absent(given_up, ["sky"])


def test_no_name_is_misspelt() -> None:
    # Names of Mapillary are in a file of the data set; these are the ones that we know of.
    mapillary = """
        ambiguous barrier, animal group, balcony, barrier, bicyclist, bike lane, billboard, car mount, caravan,
        catch basin, cctv camera, concrete block, crosswalk - plain, curb, curb cut, driveway, dynamic, ego vehicle,
        garage, ground, ground animal, guard rail, lane separator, manhole, motorcyclist, on rails, other rider,
        other vehicle, parking, parking aisle, pedestrian area, person group, phone booth, pole group, pothole, rail
        track, road barrier, road median, road shoulder, road side, service lane, static, street light, temporary
        barrier, terrain, traffic cone, traffic island, traffic sign frame, trailer, trash can, tunnel, utility
        pole, vegetation, vehicle group, wheeled slow
    """
    known = {*ADE20K, *COCO_STUFF, *(" ".join(name.split()) for name in mapillary.split(","))}
    assert frozenset().union(*_FAMILIES, _DOUBTFUL) <= known
