"""Where packed questions lie; that they train as rows of their own is tested with the stages of training."""

from __future__ import annotations

from readseg.model.packing import STEP, Layout, pack


def test_layout() -> None:
    found = pack([7, 8], [[([1, 2, 5, 5, 5], [-100, 2, 5, 5, 5]), ([3], [3])], [([4], [4])]], pad_token_id=0)
    assert found.layout == Layout(2, (8, 4)) and STEP == 4
    assert found.input_ids.tolist() == [[7, 8, 1, 2, 5, 5, 5, 0, 0, 0, 3, 0, 0, 0], [7, 8, 4] + [0] * 11]
    assert found.labels[0].tolist() == [-100, -100, -100, 2, 5, 5, 5, -100, -100, -100, 3, -100, -100, -100]
    assert found.position_ids[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]


def test_rows_without_questions() -> None:
    assert pack([7], [[]], pad_token_id=0).input_ids.tolist() == [[7]]
