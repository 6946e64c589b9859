"""The names of classes: as many as the data sets have, and the reference's where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from readseg.data.class_names import ADE20K, COCO_STUFF

REFERENCE = os.environ.get("READSEG_REFERENCE")


def test_tables_are_whole() -> None:
    assert (len(ADE20K), len(set(ADE20K))) == (150, 150)
    assert (len(COCO_STUFF), len(set(COCO_STUFF))) == (182, 182)
    for name in ADE20K + COCO_STUFF:
        assert name == " ".join(name.split()).lower()
    # Places that the data sets' papers and configurations name: the first, the last, and where stuff begins.
    assert (ADE20K[0], ADE20K[12], ADE20K[149]) == ("wall", "person", "flag")
    assert [COCO_STUFF[k] for k in (0, 90, 91, 181)] == ["person", "hair brush", "banner", "wood"]


def test_stuff_is_in_the_order_of_the_alphabet() -> None:
    assert sorted(COCO_STUFF[91:]) == list(COCO_STUFF[91:])


@pytest.mark.skipif(not REFERENCE, reason="needs the reference's class names: set READSEG_REFERENCE")
def test_names_are_the_reference_s() -> None:
    names = json.loads((Path(str(REFERENCE)) / "classes.json").read_text(encoding="utf-8"))
    assert list(ADE20K) == names["ade20k"]
    assert list(COCO_STUFF) == names["cocostuff"]
