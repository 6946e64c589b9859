"""The expected mask: read as people and data sets draw it, and refused in words where it is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readseg.analysis.truth import joined, read_truth
from readseg.errors import ReadsegError

HW = (4, 6)


def write(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def grey(*values: int) -> np.ndarray:
    """An image with these values in its first row, 0 elsewhere."""
    image = np.zeros(HW, np.uint8)
    image[0, : len(values)] = values
    return image


def test_255_is_the_object_where_there_is_no_1(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.png", grey(255, 0, 255)), HW)
    np.testing.assert_array_equal(truth.target, grey(1, 0, 1))
    assert (truth.object_value, truth.wanted, truth.counted) == (255, 2, 24)
    assert truth.source == str(tmp_path / "t.png")


def test_255_is_not_counted_beside_a_1(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.png", grey(255, 1, 1, 255)), HW)
    np.testing.assert_array_equal(truth.target, grey(255, 1, 1, 255))
    assert (truth.object_value, truth.wanted, truth.counted) == (1, 2, 22)


def test_only_0_expects_nothing(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.png", grey()), HW)
    assert (truth.wanted, truth.counted) == (0, 24)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "LA"])
def test_kinds_of_files_that_hold_the_same(tmp_path: Path, mode: str) -> None:
    truth = read_truth(write(tmp_path / "t.png", grey(255, 0, 255), mode), HW)
    np.testing.assert_array_equal(truth.target, grey(1, 0, 1))


def test_values_of_a_palette_are_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(grey(1, 255), "P")
    image.putpalette([k % 256 for k in range(100, 868)])
    image.save(tmp_path / "t.png")
    np.testing.assert_array_equal(read_truth(tmp_path / "t.png", HW).target, grey(1, 255))


def test_sixteen_bits(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.png", grey(1, 255).astype(np.uint16)), HW)
    np.testing.assert_array_equal(truth.target, grey(1, 255))
    with pytest.raises(ReadsegError, match="holds the values 257, 65535:"):
        read_truth(write(tmp_path / "t.png", grey(1, 255).astype(np.uint16) * 257), HW)


def test_turned_upright_like_the_image(tmp_path: Path) -> None:
    image = Image.fromarray(grey(255, 255).T.copy())
    exif = Image.Exif()
    exif[0x0112] = 5  # transposed
    image.save(tmp_path / "t.png", exif=exif)
    np.testing.assert_array_equal(read_truth(tmp_path / "t.png", HW).target, grey(1, 1))


def test_wrong_size_is_told_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"t\.png: the truth has 6 x 4 pixels \(width x height\), the image 4 x 6"):
        read_truth(write(tmp_path / "t.png", grey()), (6, 4))


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="holds the values 2, 128: expected 0 and 255"):
        read_truth(write(tmp_path / "t.png", grey(128, 255, 2)), HW)
    with pytest.raises(ReadsegError, match="holds the values 2, 3, 4, 5, 6 and 18 more"):
        read_truth(write(tmp_path / "t.png", np.arange(2, 26, dtype=np.uint8).reshape(HW)[:, :6] % 25), HW)
    with pytest.raises(ReadsegError, match=r"holds the values 0\.5"):
        read_truth(write(tmp_path / "t.tiff", grey(1).astype(np.float32) / 2), HW)


def test_wrong_colours_and_transparency_are_told(tmp_path: Path) -> None:
    red = np.zeros((*HW, 3), np.uint8)
    red[0, 0, 0] = 255
    with pytest.raises(ReadsegError, match="has colours"):
        read_truth(write(tmp_path / "t.png", red), HW)
    clear = np.zeros((*HW, 4), np.uint8)
    with pytest.raises(ReadsegError, match="is transparent"):
        read_truth(write(tmp_path / "t.png", clear), HW)


def test_wrong_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match="no such image file"):
        read_truth(tmp_path / "none.png", HW)
    (tmp_path / "t.png").write_text("no image")
    with pytest.raises(ReadsegError, match="is not an image"):
        read_truth(tmp_path / "t.png", HW)
    noise = np.random.default_rng(0).integers(0, 2, (200, 200)).astype(np.uint8) * 255
    content = write(tmp_path / "u.png", noise).read_bytes()
    (tmp_path / "u.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadsegError, match=r"u\.png is damaged or truncated"):
        read_truth(tmp_path / "u.png", HW)


def test_joined_is_the_union_and_what_any_leaves_out(tmp_path: Path) -> None:
    truths = [
        read_truth(write(tmp_path / f"{k}.png", grey(*values)), HW)
        for k, values in enumerate(((1, 0, 255), (0, 0, 1, 1)))
    ]
    np.testing.assert_array_equal(joined(truths), grey(1, 0, 255, 1))
