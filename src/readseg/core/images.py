"""Owns how a picture comes in: whatever a user holds becomes an upright 8-bit RGB image, or one clear error.

Frame: image pixels. Row 0 is the top after the EXIF orientation has been applied; every mask, box and point of
the package lives in the frame of the image that `load_image` returns.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from readseg.errors import ReadsegError

MAX_PIXELS = 80_000_000
"""Largest image that is opened, in pixels (80 megapixels): a small file can claim more than memory holds."""

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_INTERPRETED = frozenset({"EPS"})  # Pillow would start Ghostscript, an interpreter, on a stranger's file


class ImageError(ReadsegError):
    """An image cannot be used; the message says which one, why, and what was expected."""


def load_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open any usual image as an upright RGB picture; the caller's object is never changed.

    - files (path, `Path`, bytes, binary file object): whatever Pillow reads, except EPS; the first frame of
      an animation; EXIF orientation applied.
    - PIL images: any mode, the current frame, EXIF orientation applied.
    - numpy arrays: `(H, W)`, `(H, W, 1 | 2 | 3 | 4)` as grey, grey + alpha, RGB, RGBA; bool, uint8, uint16,
      other integers from 0 to 255, or floats in [0, 1]. Channels first is refused, not guessed.

    Transparency is composited over white. 16-bit grey v becomes round(v * 255 / 65535).

    Args:
        source: the picture.
        max_pixels: refuse larger pictures before they are decoded.

    Returns:
        A PIL image of mode "RGB", size (W, H).

    Raises:
        ImageError: missing, empty, truncated, not an image, too large, or an array of a wrong shape or range.

    >>> import numpy as np
    >>> load_image(np.full((2, 3), 65535, np.uint16)).getpixel((2, 1))
    (255, 255, 255)
    """
    if isinstance(source, Image.Image):
        _check_size(source.size, "the image", max_pixels)
        return _decode(source, "the image")
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = str(path)
        if len(name) > 200 or not name.isprintable():  # an error stays one line that can be read
            name = repr(name[:200])
        with _open_path(path, name) as stream:
            return _from_stream(stream, name, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), "the image bytes", max_pixels)
    if hasattr(source, "read"):
        try:
            content = source.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise ImageError(f"the image file cannot be read: {_first_line(error)}") from error
        if not isinstance(content, bytes):
            raise ImageError('the image file was opened as text: open it with mode "rb"')
        return _from_bytes(content, str(getattr(source, "name", "the image file")), max_pixels)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}: expected a path, a PIL image, a numpy array "
        "(H, W, 3), bytes or a binary file"
    )


def _open_path(path: Path, name: str) -> IO[bytes]:
    """Open a regular, non-empty file, or say in words why not."""
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a directory: name an image file in it")
        if not path.exists():
            raise ImageError(f"{name}: no such image file")
        if not path.is_file():
            raise ImageError(f"{name} is not a regular file: save the image to a file first")
        if path.stat().st_size == 0:
            raise ImageError(f"{name} is empty: expected an image")
        return path.open("rb")
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name} cannot be opened: {reason}") from error


def _from_bytes(content: bytes, name: str, max_pixels: int) -> Image.Image:
    if not content:
        raise ImageError(f"{name}: empty, expected an encoded image such as PNG or JPEG")
    return _from_stream(io.BytesIO(content), name, max_pixels)


def _from_stream(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Read the header, check the size it claims, and only then decode."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images where it opens them; ours is an error with a limit of our own.
            warnings.simplefilter("ignore")
            image = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: more than {_megapixels(max_pixels)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that can be read: expected PNG, JPEG, ...") from error
    except Exception as error:  # decoders raise anything on damaged headers
        raise ImageError(f"{name} cannot be read as an image: {_first_line(error)}") from error
    with image:
        if image.format in _INTERPRETED:
            raise ImageError(f"{name} is {image.format}, which is not read: convert it to PNG first")
        _check_size(image.size, name, max_pixels)
        return _decode(image, name)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: its size is {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is too large: {width} x {height} pixels, the limit is {_megapixels(max_pixels)}; shrink it first"
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Decode all pixels, turn upright, and bring any mode to RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. of damaged EXIF, which only costs the orientation
            image.load()
            return _to_rgb(_upright(image), name)
    except ImageError:
        raise
    except Exception as error:  # damaged data raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(f"{name} is damaged or truncated: {_first_line(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF: the pixels are fine, so show them as they are stored
        return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _from_deep(np.asarray(image), name)
    if image.mode == "F":
        return Image.fromarray(_unit_to_bytes(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_deep(values: np.ndarray, name: str) -> Image.Image:
    """Grey of more than 8 bits: 0..65535 becomes 0..255 (Pillow's own conversion would clip at 255)."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name} has grey values from {low} to {high}: expected 16 bits, 0 to 65535")
    grey = np.rint(values.astype(np.float32) * (255 / 65535)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _unit_to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values: expected floats in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ImageError(
            f"{name} has float values from {low:g} to {high:g}: expected [0, 1]; divide by the largest value "
            "that its format allows, such as 255"
        )
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    name = "the image array"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; this one has channels first: pass array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; this one is a batch: pass its images one by one"
        raise ImageError(f"{name} has shape {array.shape}: expected (H, W) or (H, W, channels){hint}")
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    values = _array_to_bytes(array, name)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(values))
    return _over_white(image.convert("RGBA")) if image.mode in ("LA", "RGBA") else image.convert("RGB")


def _array_to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array.astype(np.float32) * (255 / 65535)).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        return _unit_to_bytes(array.astype(np.float32), name)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise ImageError(f"{name} ({array.dtype}) has values from {low} to {high}: expected 0 to 255, or uint16")
        return array.astype(np.uint8)
    raise ImageError(f"{name} has dtype {array.dtype}: expected uint8, uint16, or floats in [0, 1]")


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:g} megapixels"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
