"""What an app may give a model, checked so that a mistake is named before the runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.errors import BadInput, Refused
from edgetl.preprocess import Preprocess
from edgetl.types import Array, Feed, Json

TAKES = {
    "image": "an image: a path, PIL image or array",
    "audio": "a recording: the path of a WAV file, its bytes or an array",
    "array": "an array or a .npy file",
}
"""By kind of raw data, what a sample may be."""


def value(sample: object, preprocess: Preprocess) -> object:
    """Return what the pre-processing takes for a sample: raw bytes and .npy files are read, numbers checked.

    Raises:
        BadInput: a file is missing or malformed, or an array does not hold numbers that fit.

    """
    raw = preprocess.raw
    if isinstance(sample, bytes):
        sample = preprocess.from_bytes(sample)
    if raw.kind == "text":
        return sample
    if isinstance(sample, str | Path):
        _exists(Path(sample), raw.kind)
        if Path(sample).suffix.lower() != ".npy":
            return sample
        sample = _npy(Path(sample))
    if raw.kind == "audio" or not isinstance(sample, np.ndarray):  # decoding a recording checks its samples
        return sample
    return _numbers(sample, raw.dtype)


def fits(head: Feed, inputs: Sequence[Json]) -> None:
    """Check the arrays of one sample against the shapes that the manifest states.

    Raises:
        BadInput: a fixed size differs.

    """
    for item in inputs:
        found, wanted = head[item["name"]].shape, tuple(item["shape"][1:])
        same = len(found) == len(wanted)
        if not same or any(isinstance(w, int) and w != f for f, w in zip(found, wanted, strict=True)):
            problem = f"the sample gives {item['name']} the shape {found}; the model reads {wanted}"
            raise BadInput(problem, fix="give one sample of the size that the model was made for; several as a list")


def in_range(feed: Feed, inputs: Sequence[Json]) -> None:
    """Check a batch against the ranges that the manifest states.

    Raises:
        Refused: a value is outside: the pre-processing does not belong to this model.

    """
    for item in inputs:
        values = feed[item["name"]]
        if item["range"] is None or not values.size:
            continue
        low, high = item["range"]
        if values.min() < low or values.max() > high:
            problem = f"{item['name']} holds a value outside {low}..{high}: the tokenizer does not fit the model"
            raise Refused(problem, fix="export the bundle again with the backbone's own tokenizer")


def _exists(path: Path, kind: str) -> None:
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long, or a NUL: a text, no path
        there = False
    if not there:
        raise BadInput(f"there is no file {str(path)[:200]!r}", fix=f"this model takes {TAKES[kind]}")


def _npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is no .npy file of numbers", fix="write it with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{path} holds several arrays", fix="write one array with numpy.save")
    return array


def _numbers(array: Array, dtype: str) -> Array:
    """The array in the dtype of the raw data ("" for images: uint8), if no value changes its meaning by that."""
    wanted: np.dtype[Any] = np.dtype(dtype or np.uint8)
    if array.dtype.kind not in "buif":
        raise BadInput(f"an array of {array.dtype} holds no numbers", fix=f"give an array of {wanted}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput("the array holds NaN or infinity", fix="replace what is missing before you predict")
    if array.dtype == wanted:
        return array
    if wanted.kind == "f":
        if array.size and np.abs(array).max() > np.finfo(wanted).max:
            raise BadInput(f"the array of {array.dtype} does not fit {wanted}", fix="scale it as the training data")
        return array.astype(wanted)
    low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
    if array.size and (array.min() < low or array.max() > high or (array.dtype.kind == "f" and (array % 1).any())):
        fix = f"scale the values to whole numbers in {low}..{high}, as in the training data"
        raise BadInput(f"the array of {array.dtype} does not fit {wanted}", fix=fix)
    return array.astype(wanted)
