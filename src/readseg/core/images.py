"""How a picture comes in: whatever a user holds becomes an upright 8-bit RGB image, or one clear error.

Every mask, box and point of the package lives in the frame of the image that `load_image` returns.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from readseg.errors import ReadsegError

MAX_PIXELS = 80_000_000
"""Largest image that is opened, in pixels (80 megapixels): a small file can claim more than memory holds."""


class ImageError(ReadsegError):
    """An image cannot be used; the message says which one, why, and what was expected."""


def load_image(source: Any) -> Image.Image:
    """Open any usual image as an upright RGB picture; the caller's object is never changed.

    - files (path, `Path`, bytes, binary file object): whatever Pillow reads, except EPS; the first frame of
      an animation; EXIF orientation applied, as to PIL images of any mode (their current frame).
    - numpy arrays: `(H, W)`, `(H, W, 1 | 2 | 3 | 4)` as grey, grey + alpha, RGB, RGBA; bool, uint8, uint16,
      other integers from 0 to 255, or floats in [0, 1]. Channels first is refused, not guessed.

    Transparency is composited over white. 16-bit grey v becomes round(v * 255 / 65535). `ImageError` for what is
    missing, empty, truncated, no image, of more than `MAX_PIXELS` (before it is decoded), or a wrong array.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        with _as_image_errors("the image"):
            return _to_rgb(source, "the image")
    stream, name = _open(source)
    with stream, _as_image_errors(name), Image.open(stream) as image:
        if image.format == "EPS":  # Pillow would start Ghostscript, an interpreter, on a stranger's file
            raise ImageError(f"{name} is EPS, which is not read: convert it to PNG first")
        return _to_rgb(image, name)


def image_hw(path: Path) -> tuple[int, int]:
    """(H, W) of the picture that `load_image` makes of a file, from the file's head: nothing is decoded."""
    stream, name = _open(path)
    with stream, _as_image_errors(name), Image.open(stream) as image:
        _check_size(*image.size, name)
        is_sideways = False
        with suppress(Exception):  # unreadable EXIF, which `load_image` passes over too
            is_sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size if is_sideways else (image.height, image.width)


def _open(source: Any) -> tuple[IO[bytes], str]:
    """A stream of the file's bytes, and the name of it in errors."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), "the image bytes"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = str(path)
        if len(name) > 200 or not name.isprintable():  # an error stays one line that can be read
            name = repr(name[:200])
        try:
            if path.is_file():
                return path.open("rb"), name
            problem = f"{name}: no such image file"
            if path.exists():
                problem = f"{name} is a directory or no regular file: name an image file"
        except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in the name
            raise ImageError(f"{name} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        raise ImageError(problem)
    if not hasattr(source, "read"):
        expected = "expected a path, a PIL image, a numpy array (H, W, 3), bytes or a binary file"
        raise ImageError(f"cannot read an image from {type(source).__name__}: {expected}")
    try:
        content = source.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ImageError(f"the image file cannot be read: {_first_line(error)}") from error
    if not isinstance(content, bytes):
        raise ImageError('the image file was opened as text: open it with mode "rb"')
    return io.BytesIO(content), str(getattr(source, "name", "the image file"))


@contextmanager
def _as_image_errors(name: str) -> Iterator[None]:
    """Whatever Pillow raises on a file becomes one clear error; its warnings are dropped."""
    try:
        with warnings.catch_warnings():
            # Of large images, where ours is an error with its own limit; of damaged EXIF, which costs the orientation.
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: more than {MAX_PIXELS / 1e6:g} megapixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that can be read, or empty: expected PNG, JPEG, ...") from error
    except Exception as error:  # damaged data raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(f"{name} is damaged or truncated: {_first_line(error)}") from error


def _check_size(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        problem = f"{name} {'is too large' if width * height else 'has no pixels'}: {width} x {height} pixels"
        raise ImageError(f"{problem}; expected 1 pixel to {MAX_PIXELS / 1e6:g} megapixels")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Check the size that the header claims, decode all pixels, turn upright, and bring any mode to RGB over white."""
    _check_size(*image.size, name)
    image.load()
    with suppress(Exception):  # unreadable EXIF: the pixels are fine, so show them as they are stored
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        image = Image.fromarray(_to_bytes(np.asarray(image), name, highest=65535))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """The image of an array, 8 bits a channel."""
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; this one has channels first: pass array.transpose(1, 2, 0)" if channels_first else ""
        raise ImageError(f"the image array has shape {array.shape}: expected (H, W) or (H, W, channels){hint}")
    _check_size(array.shape[1], array.shape[0], "the image array")
    values = _to_bytes(array, "the image array", highest=65535 if array.dtype == np.uint16 else 255)
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2:] == (1,) else values))


def _to_bytes(values: np.ndarray, name: str, highest: int) -> np.ndarray:
    """Floats in [0, 1], or whole numbers from 0 to `highest`, as uint8 of 0 to 255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    top, margin, expected = float(highest), 0.0, f"0 to {highest}" + (", or uint16" if highest == 255 else "")
    if np.issubdtype(values.dtype, np.floating):
        top, margin, expected = 1.0, 1e-3, "[0, 1]; divide by the largest value that its format allows, such as 255"
    elif not np.issubdtype(values.dtype, np.integer):
        raise ImageError(f"{name} has dtype {values.dtype}: expected uint8, uint16, or floats in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (-margin <= low and high <= top + margin):  # also where either is NaN
        raise ImageError(f"{name} ({values.dtype}) has values from {low:g} to {high:g}: expected {expected}")
    return np.rint(values.astype(np.float32).clip(0, top) * (255 / top)).astype(np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
