"""Every kind of picture a user may hold becomes upright RGB, and every bad one gives one clear line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from readseg.core import images
from readseg.core.images import ImageError, load_image
from readseg.errors import ReadsegError


def picture(height: int = 6, width: int = 9) -> np.ndarray:
    """Random RGB, never symmetric, so that flips and swapped axes show."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(source: object) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def error_line(source: object) -> str:
    with pytest.raises(ReadsegError) as caught:
        load_image(source)
    assert isinstance(caught.value, ImageError) and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_source_gives_the_same_pixels_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    content, image, array = path.read_bytes(), Image.fromarray(picture()), picture()
    with path.open("rb") as stream:
        for source in (path, str(path), content, bytearray(content), stream, Image.open(path), image, array):
            np.testing.assert_array_equal(pixels(source), picture())
    for source in (image, array):
        load_image(source).putpixel((0, 0), (1, 2, 3))
        np.testing.assert_array_equal(np.asarray(source), picture())


# EXIF 6 says "turn me 90 degrees clockwise to view": so it is stored turned anticlockwise.
TURNS = "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored, turned = Image.fromarray(picture()), (None, *TURNS)[orientation - 1]
    if turned is not None:
        stored = stored.transpose(Image.Transpose[turned])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(stored, exif=exif)), picture())


def test_transparency_is_composited_over_white() -> None:
    rgba = np.dstack([picture(), np.zeros((6, 9), np.uint8)])
    rgba[:, 4:, 3] = 255
    expected = picture()
    expected[:, :4] = 255
    np.testing.assert_array_equal(pixels(rgba), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgba))), expected)
    half = np.zeros((1, 1, 4), np.uint8)
    half[..., 3] = 128
    assert pixels(half)[0, 0, 0] == 127


def test_palette_with_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    assert pixels(encoded(image, "GIF", transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_grey_one_bit_and_grey_with_alpha() -> None:
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for source in (grey, grey[..., None], encoded(Image.fromarray(grey)), Image.fromarray(grey), grey.astype(np.int64)):
        np.testing.assert_array_equal(pixels(source), expected)
    assert pixels(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    assert pixels(Image.new("1", (1, 1), 1)).tolist() == [[[255] * 3]]
    assert pixels(np.array([[[7, 255], [7, 0]]], np.uint8)).tolist() == [[[7] * 3, [255] * 3]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    for source in (deep, encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF"), Image.fromarray(deep)):
        assert pixels(source)[0, :, 0].tolist() == expected
    assert pixels(Image.fromarray(deep.astype(np.int32)))[0, :, 1].tolist() == expected
    assert "70000" in error_line(Image.fromarray(np.array([[70000]], np.int32)))


def test_floats_are_zero_to_one() -> None:
    values = np.array([[0.0, 0.5, 1.0]])
    for source in (values, values.astype(np.float16), Image.fromarray(values.astype(np.float32))):
        assert pixels(source)[0, :, 0].tolist() == [0, 128, 255]
    assert "[0, 1]" in error_line(picture().astype(np.float32))
    assert "nan to nan" in error_line(np.array([[np.nan, 0.0]]))
    assert "0 to inf" in error_line(np.array([[np.inf, 0.0]]))


def test_cmyk_and_other_colour_spaces() -> None:
    blue = Image.new("RGB", (8, 8), (0, 0, 255))
    for source in (blue.convert("CMYK"), blue.convert("YCbCr"), blue.convert("HSV")):
        np.testing.assert_allclose(pixels(source)[4, 4], [0, 0, 255], atol=2)
    np.testing.assert_allclose(pixels(encoded(blue.convert("CMYK"), "JPEG"))[4, 4], [0, 0, 255], atol=6)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_thin_images_are_fine(size: tuple[int, int]) -> None:
    assert load_image(encoded(Image.new("RGB", size))).size == size


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((1, 20, 30), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 20, 30, 3), np.uint8), "expected (H, W)"),
        (np.zeros(20, np.uint8), "expected (H, W)"),
        (np.zeros((20, 30, 5), np.uint8), "expected (H, W)"),
        (np.zeros((0, 30, 3), np.uint8), "no pixels"),
        (np.array([[300]], np.int32), "300"),
        (np.array([[-1]], np.int64), "-1"),
        (np.array([["a"]]), "dtype"),
        (np.array([[1j]]), "dtype"),
    ],
)
def test_arrays_are_checked(array: np.ndarray, words: str) -> None:
    assert words in error_line(array)


def test_bad_files(tmp_path: Path) -> None:
    empty, text, folder = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "folder.png"
    empty.touch()
    text.write_text("I am a poem, not a picture.\n")
    folder.mkdir()
    closed = io.BytesIO(b"any")
    closed.close()
    for source, words in (
        (empty, "empty"),
        (text, "not an image"),
        (folder, "directory"),
        (tmp_path / "missing.png", "missing.png: no such"),
        ("a\0b\n", r"'a\x00b\n'"),
        ("x" * 5000, "cannot be opened"),
        (b"", "empty"),
        (None, "NoneType"),
        (io.StringIO("text"), '"rb"'),
        (closed, "cannot be read"),
        # PostScript is never interpreted.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n", "EPS"),
    ):
        assert words in error_line(source)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_files(format: str) -> None:
    content = encoded(Image.fromarray(picture(64, 64)), format)
    for share in (0.5, 0.9):
        error_line(content[: int(len(content) * share)])
    error_line(content[:12])


def test_damaged_bytes_never_escape_as_other_errors() -> None:
    rng = np.random.default_rng(1)
    refused = 0
    for format in ("JPEG", "PNG", "TIFF", "GIF", "WEBP"):
        content = np.frombuffer(encoded(Image.fromarray(picture(32, 32)), format), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 8)] = rng.integers(0, 256, 8)
            try:
                load_image(damaged.tobytes())
            except ImageError:
                refused += 1
    assert refused > 20


def claimed_png(width: int, height: int) -> bytes:
    """A PNG header that claims a size, with next to no data behind it: a decompression bomb's outside."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 40_000, 2**31 - 1])
def test_absurdly_large_images_are_refused_before_decoding(side: int) -> None:
    assert "80 megapixels" in error_line(claimed_png(side, side))


@pytest.mark.parametrize("source", [picture(), Image.fromarray(picture())])
def test_the_limit_holds_for_arrays_and_images(monkeypatch: pytest.MonkeyPatch, source: object) -> None:
    assert images.MAX_PIXELS == 80_000_000
    monkeypatch.setattr(images, "MAX_PIXELS", 54)
    assert load_image(source).size == (9, 6)
    monkeypatch.setattr(images, "MAX_PIXELS", 53)
    assert "too large: 9 x 6" in error_line(source)
