"""Fields that data plugins share, and the pre-processing lists made of them and of what the backbone wants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from edgetl.errors import BadInput
from edgetl.operations import MAX_SIDE, MAX_TOKENS
from edgetl.preprocess import Raw
from edgetl.strict import Strict
from edgetl.types import Json, Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

T = TypeVar("T")
LENGTH = 128
"""Tokens of a text where neither the recipe nor the backbone says."""


class Scaling(Strict):
    """What is subtracted and divided by, channel by channel. What is not given, the backbone decides."""

    mean: tuple[float, ...] | None = None  # per channel; of images, of values in [0, 1]
    std: tuple[float, ...] | None = None


class ImageFields(Scaling):
    """How images are brought to one size and range. What is not given, the backbone decides."""

    size: int | tuple[int, int] | None = None  # pixels: one side of a square, or [height, width]
    fit: Literal["squash", "crop"] = "squash"  # to the size as it is, or the shorter side and then the middle
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    channels: Literal[1, 3] | None = None  # grey or colour


class TextFields(Strict):
    """How text is tokenized. What is not given, the backbone decides."""

    tokenizer: Path | None = None  # a tokenizer.json or the folder that holds one
    length: int | None = Field(None, ge=2, le=MAX_TOKENS)  # most tokens; default: the backbone's, else 128


def image_operations(fields: ImageFields, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
    """Return the list for images and image-like arrays; other arrays pass through as float32.

    Raises:
        BadInput: a field contradicts the backbone, or the size is nowhere to be had.

    """
    pixels = raw.kind == "image" or (raw.dtype == "uint8" and _image_like(raw.shape))
    tail: list[Operation] = [{"op": "to_float"}]
    if not pixels:
        return (*tail, *normalise(fields, prep, None))
    channels = agreed("channels", fields.channels, prep.channels)
    if channels is None:
        channels = 3 if raw.kind == "image" or (len(raw.shape) == 3 and raw.shape[2] > 1) else 1
    if channels not in (1, 3):
        raise BadInput(f"the backbone wants {channels} channels, images have 1 or 3", fix="choose another backbone")
    height, width = _size(fields, raw, prep)
    resample = agreed("resample", fields.resample, prep.resample) or "bilinear"
    if fields.fit == "crop":
        sized: list[Operation] = [
            {"op": "resize_shorter", "size": max(height, width), "resample": resample},
            {"op": "center_crop", "height": height, "width": width},
        ]
    else:
        sized = [{"op": "resize", "height": height, "width": width, "resample": resample}]
    decode: Operation = {"op": "decode", "mode": "L" if channels == 1 else "RGB"}
    return (decode, *sized, {"op": "channels_first"}, *tail, *normalise(fields, prep, channels, (0.5, 0.5)))


def text_operations(fields: TextFields, prep: Prep) -> tuple[Operation, ...]:
    """Return the list for text; `tokenize` names the tokenizer by its path, of which `prepare` makes a copy.

    Raises:
        BadInput: there is no tokenizer, or a field contradicts the backbone.

    """
    own, wanted = _tokenizer(fields.tokenizer), _tokenizer(None if prep.tokenizer is None else Path(prep.tokenizer))
    file = own or wanted
    if file is None:
        raise BadInput("no tokenizer is known", fix="give data.tokenizer, the path of the backbone's tokenizer.json")
    if own is not None and wanted is not None and own.read_bytes() != wanted.read_bytes():
        raise BadInput(
            f"data.tokenizer {own} is not the tokenizer of the backbone", fix=f"leave it out to use {wanted}"
        )
    length = fields.length or min(LENGTH, prep.length or LENGTH)
    if prep.length is not None and length > prep.length:
        problem = f"data.length {length} is more than the backbone's {prep.length} tokens"
        raise BadInput(problem, fix=f"set data.length to at most {prep.length}")
    return ({"op": "tokenize", "file": str(file), "length": length},)


def normalise(
    fields: Scaling, prep: Prep, channels: int | None, usual: tuple[float, float] | None = None
) -> list[Operation]:
    """Return the operation for these channels, or none where nobody gives mean, deviation or what is usual.

    Raises:
        BadInput: a field contradicts the backbone, has another number of channels, or is impossible.

    """
    mean, std = agreed("mean", fields.mean, prep.mean), agreed("std", fields.std, prep.std)
    if usual is None and mean is None and std is None:
        return []
    count = channels or len(mean or std or ())
    values: dict[str, Json] = {}
    for key, given, default in zip(("mean", "std"), (mean, std), usual or (0.0, 1.0), strict=True):
        full = given or (default,)
        full = full * count if len(full) == 1 else full
        if len(full) != count:
            other = f", or set data.channels to {len(full)}" if usual else ""
            fix = f"give {count} values as data.{key}{other}"
            raise BadInput(f"{key} has {len(full)} values for {count} channels", fix=fix)
        if key == "std" and min(full) <= 0:
            raise BadInput(f"data.std {list(full)} is not positive", fix="give positive values")
        values[key] = list(full)
    return [{"op": "normalise", **values}]


def agreed(name: str, own: T | None, wanted: T | None) -> T | None:
    """Return what the field `name` of the data and the backbone agree on, None where neither says.

    Raises:
        BadInput: they say different things.

    """
    if own is not None and wanted is not None and own != wanted:
        fix = f"leave data.{name} out, or choose a backbone that wants {own}"
        raise BadInput(f"data.{name} is {own}, but the weights of the backbone want {wanted}", fix=fix)
    return wanted if own is None else own


def _image_like(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))


def _size(fields: ImageFields, raw: Raw, prep: Prep) -> tuple[int, int]:
    own = (fields.size, fields.size) if isinstance(fields.size, int) else fields.size
    size = agreed("size", own, prep.size) or (raw.shape[:2] if raw.kind == "array" else None)
    if size is None:
        raise BadInput("the size of the images is not given", fix="give data.size, in pixels")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise BadInput(f"data.size {list(size)} is out of range", fix=f"give sides from 1 to {MAX_SIDE}")
    return size[0], size[1]


def _tokenizer(path: Path | None) -> Path | None:
    if path is None:
        return None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"there is no tokenizer at {file}", fix="give data.tokenizer, the path of a tokenizer.json")
    return file
