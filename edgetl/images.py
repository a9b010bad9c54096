"""Images as uint8 arrays (H, W, C): decoding, resizing, cropping. Pillow is imported when needed. [no torch]."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import IO, TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image

    from edgetl.types import Array

Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Mode: TypeAlias = Literal["L", "RGB"]
Pixels: TypeAlias = NDArray[np.uint8]

MAX_PIXELS = 89_000_000
"""Most pixels of an image: just below where Pillow starts to warn of decompression bombs."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""What is decoded; Pillow's other readers call programs or are rarely tested."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, OverflowError)
"""What Pillow raises for damaged files."""


def decode(value: object, mode: Mode) -> Pixels:
    """Return (H, W, 1) or (H, W, 3) pixels of a path, file bytes, PIL image or uint8 array, turned as its EXIF says.

    Transparency is dropped, 16-bit grey keeps its upper 8 bits.

    Raises:
        BadInput: it is no image, is damaged, or has more than MAX_PIXELS pixels.

    """
    if isinstance(value, np.ndarray):
        return _from_array(value, mode)
    if isinstance(value, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(value), f"{len(value)} bytes", mode)
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        if not os.path.isfile(name):
            raise BadInput(f"there is no image at {name}", fix="give the path of an image file")
        with open(name, "rb") as file:
            return _from_file(file, str(name), mode)
    from PIL import Image

    if isinstance(value, Image.Image):
        return _pixels(value, "the image", mode)
    kinds = "a path, the bytes of an image file, a PIL image or a uint8 array"
    raise BadInput(f"an image is wanted, not {type(value).__name__}", fix=f"give {kinds}")


def resize(x: Pixels | Array, height: int, width: int, resample: Resample) -> Pixels:
    """Return the pixels at another size."""
    if x.shape[:2] == (height, width):
        return cast(Pixels, x)
    from PIL import Image

    image = _image(x).resize((width, height), Image.Resampling[resample.upper()])
    return np.asarray(image).reshape(height, width, x.shape[2])


def resize_shorter(x: Pixels | Array, size: int, resample: Resample) -> Pixels:
    """Return the pixels with the shorter side at `size`, the longer one in proportion, rounded down.

    Raises:
        BadInput: the image is so narrow that the result would have more than MAX_PIXELS pixels.

    """
    height, width = x.shape[:2]
    shorter = min(height, width)
    if size * size * max(height, width) / shorter > MAX_PIXELS:
        raise BadInput(f"an image of {width} x {height} is too narrow", fix="crop it first")
    return resize(x, size * height // shorter, size * width // shorter, resample)


def center_crop(x: Pixels | Array, height: int, width: int) -> Pixels:
    """Return the middle of the pixels; where the image is smaller, zeros are added around it."""
    for axis, size in enumerate((height, width)):
        missing = max(0, size - x.shape[axis])
        if missing:
            edges = [(0, 0)] * x.ndim
            edges[axis] = (missing // 2, missing - missing // 2)
            x = np.pad(x, edges)
        start = (x.shape[axis] - size) // 2
        x = x[start : start + size] if axis == 0 else x[:, start : start + size]
    return cast(Pixels, x)


def _from_array(x: Array, mode: Mode) -> Pixels:
    plain = x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x
    shaped = plain.ndim == 2 or (plain.ndim == 3 and plain.shape[2] in (3, 4))
    if x.dtype != np.uint8 or not shaped or 0 in x.shape:
        problem = f"an image of shape (height, width[, channels]) and uint8 is wanted, not {x.shape} {x.dtype}"
        raise BadInput(problem, fix="give pixels from 0 to 255, channels last")
    _check_size(plain.shape[1], plain.shape[0], "the array")
    if plain.ndim == 2 and mode == "L":
        return cast(Pixels, plain[..., None])
    if plain.ndim == 2:
        return cast(Pixels, np.repeat(plain[..., None], 3, axis=2))
    if plain.shape[2] == 3 and mode == "RGB":
        return cast(Pixels, plain)
    return _converted(_image(plain), mode)


def _from_file(file: IO[bytes], name: str, mode: Mode) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            return _pixels(image, name, mode)
    except UnidentifiedImageError as error:
        raise BadInput(f"{name}: no image", fix=f"give one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except BROKEN as error:
        raise BadInput(f"{name}: damaged image ({error})", fix="replace the file") from error


def _pixels(image: Image.Image, name: str, mode: Mode) -> Pixels:
    from PIL import ImageOps

    _check_size(image.width, image.height, name)
    try:
        image.load()
    except BROKEN as error:
        raise BadInput(f"{name}: damaged image ({error})", fix="replace the file") from error
    return _converted(ImageOps.exif_transpose(image), mode)


def _converted(image: Image.Image, mode: Mode) -> Pixels:
    from PIL import Image

    if image.mode == "F":
        raise BadInput("an image of floating-point pixels has no known range", fix="save it with 8 bits a channel")
    if image.mode.startswith("I"):  # convert() would clip at 255 instead of scaling
        image = Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    x = np.asarray(image.convert(mode))
    return x[..., None] if x.ndim == 2 else x


def _image(x: Pixels | Array) -> Image.Image:
    from PIL import Image

    return Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(name)


def _too_large(name: str) -> BadInput:
    return BadInput(f"{name}: more than {MAX_PIXELS // 10**6} million pixels", fix="make the image smaller")
