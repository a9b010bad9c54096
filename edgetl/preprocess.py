"""Pre-processing as data: a list of named operations, run in numpy and Pillow. [no torch, no pydantic].

The head turns one raw value into arrays of fixed shape; the tail turns a batch of those into what the network reads.
Letters: H height, W width, C channels, N tokens, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput, Refused
from edgetl.operations import check_operations
from edgetl.types import Array, Feed, Operation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgetl.audio import Samples
    from edgetl.images import Resample

MAX_TOKENIZER_BYTES = 256 * 10**6
IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class Raw:
    """How the bytes of one raw example read."""

    kind: Literal["image", "text", "audio", "array"]  # an image file, UTF-8, a WAV file, or C-ordered numbers
    dtype: str = ""  # of arrays
    shape: tuple[int, ...] = ()


class Preprocess:
    """A checked list of operations, ready to run on raw values."""

    def __init__(
        self,
        operations: Sequence[Operation],
        raw: Raw,
        inputs: Sequence[str],
        assets: Path,
        tokenizer: bytes | None = None,
    ) -> None:
        """Check the list; `assets` is the folder that holds the files it names.

        `tokenizer` holds the bytes of the tokenizer's file where they were read already: a bundle's were verified.

        Raises:
            Refused: the list is malformed; the message names the operation by its number.

        """
        check_operations(operations, raw)
        produced = (IDS, MASK) if raw.kind == "text" else tuple(inputs[:1])
        if not inputs or not set(inputs) <= set(produced):
            raise Refused(
                f"the pre-processing list cannot fill the inputs {', '.join(inputs) or '(none)'}",
                fix=f"export the bundle again; {raw.kind} data fills {', '.join(produced) or 'one input'}",
            )
        self.operations, self.raw, self.inputs, self.assets = tuple(operations), raw, tuple(inputs), Path(assets)
        self._bytes = tokenizer

    def from_bytes(self, data: bytes) -> object:
        """Return what `head` takes, from the raw bytes of one example.

        Raises:
            BadInput: the bytes are no UTF-8, or not as many as the array's shape holds.

        """
        if self.raw.kind in ("image", "audio"):
            return data
        if self.raw.kind == "text":
            return _utf8(data)
        dtype = np.dtype(self.raw.dtype)
        if len(data) != dtype.itemsize * math.prod(self.raw.shape):
            raise BadInput(f"{len(data)} bytes are no array of {_wanted(self.raw)}", fix=f"give {_wanted(self.raw)}")
        return np.frombuffer(data, dtype).reshape(self.raw.shape)

    def head(self, value: object) -> dict[str, Array]:
        """Return the arrays of one sample by input name, without a batch axis: (C, ...), or (N,) ids and mask.

        `value` is a path, file bytes, PIL image or uint8 array for images, a path, file bytes or samples for audio, a
        str for text, else an array.

        Raises:
            BadInput: the value is of another kind, or cannot be read.

        """
        if self.raw.kind == "text":
            return self._tokens(value)
        x = value if self._decodes else _plain(value, self.raw)
        for operation in self.operations:
            if operation["op"] in _HEAD:
                x = _HEAD[operation["op"]](x, operation)
        return {self.inputs[0]: np.ascontiguousarray(cast(Array, x))}

    def tail(self, feed: Feed) -> Feed:
        """Return the batch as the network reads it: float32 (B, C, ...), or int64 ids and mask (B, longest).

        Raises:
            BadInput: the batch does not have as many channels as the list normalises.

        """
        if self.raw.kind == "text":
            return self._trimmed(feed)
        x = feed[self.inputs[0]]
        for operation in self.operations:
            if operation["op"] in _TAIL:
                x = _TAIL[operation["op"]](x, operation)
        return {self.inputs[0]: x}

    def feed(self, values: Sequence[object]) -> Feed:
        """Return the network's inputs for raw values: the head on each, stacked, then the tail.

        Raises:
            BadInput: there is no value, or one cannot be read.

        """
        if not values:
            raise BadInput("no input was given", fix="give at least one")
        return self.tail(stacked([self.head(value) for value in values]))

    @property
    def _decodes(self) -> bool:
        return bool(self.operations) and self.operations[0]["op"] in ("decode", "decode_wav")

    def _tokens(self, value: object) -> dict[str, Array]:
        if not isinstance(value, str):
            raise BadInput(f"text is wanted, not {type(value).__name__}", fix="give a str")
        if not value.strip():
            raise BadInput("the text is empty", fix="give at least one word")
        encoding = self._tokenizer.encode(value)
        arrays = {IDS: np.array(encoding.ids, np.int64), MASK: np.array(encoding.attention_mask, np.int64)}
        return {name: arrays[name] for name in self.inputs}

    def _trimmed(self, feed: Feed) -> Feed:
        names = [name for name in self.inputs if name in feed]
        longest = max(1, int(feed[MASK].sum(axis=1).max())) if MASK in feed else None
        return {name: np.ascontiguousarray(feed[name][:, :longest], np.int64) for name in names}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        operation = self.operations[0]
        return load_tokenizer(self.assets / operation["file"], operation["length"], self._bytes)


def stacked(heads: Sequence[Feed]) -> Feed:
    """Return the arrays of samples, each (...), as a batch (B, ...)."""
    if len(heads) == 1:  # np.stack costs more than a small network's own layers
        return {name: array[None] for name, array in heads[0].items()}
    return {name: np.stack([head[name] for head in heads]) for name in heads[0]}


def load_tokenizer(file: Path, length: int, data: bytes | None = None) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json that cuts and pads every text to `length` tokens.

    Its bytes, where given, are taken in the place of the file.

    Raises:
        BadInput: the file is missing.
        Refused: it is no tokenizer.

    """
    from tokenizers import Tokenizer

    fix = "give the tokenizer.json of the backbone"
    if data is None and not file.is_file():
        raise BadInput(f"there is no tokenizer at {file}", fix=fix)
    if (file.stat().st_size if data is None else len(data)) > MAX_TOKENIZER_BYTES:
        raise Refused(f"{file} is larger than {MAX_TOKENIZER_BYTES // 10**6} MB", fix=fix)
    try:
        tokenizer = Tokenizer.from_file(str(file)) if data is None else Tokenizer.from_buffer(data)
        padding = tokenizer.padding or {}
        tokenizer.enable_truncation(length)
    except Exception as error:  # tokenizers raises Exception itself for each of its errors
        raise Refused(f"{file} is no tokenizer that makes {length} tokens: {error}", fix=fix) from error
    names = (name for name in ("[PAD]", "<pad>", "<|padding|>") if tokenizer.token_to_id(name) is not None)
    token = padding.get("pad_token") or next(names, "[PAD]")
    number = padding.get("pad_id", tokenizer.token_to_id(token) or 0)
    tokenizer.enable_padding(direction="right", pad_id=number, pad_token=token, length=length)
    return tokenizer


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("the text is not UTF-8", fix="save it as UTF-8") from error


def _wanted(raw: Raw) -> str:
    return f"{raw.dtype} values of shape {raw.shape}"


def _plain(value: object, raw: Raw) -> Array:
    if not isinstance(value, np.ndarray) or value.shape != raw.shape:
        given = f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise BadInput(f"an array of {_wanted(raw)} is wanted, not {given}", fix="give one sample, as in the data")
    if not np.can_cast(value.dtype, raw.dtype, "same_kind"):
        raise BadInput(f"{raw.dtype} values are wanted, not {value.dtype}", fix=f"convert them to {raw.dtype}")
    return value.astype(raw.dtype, copy=False)


def _decode(value: object, operation: Operation) -> Array:
    from edgetl.images import decode

    return decode(value, operation["mode"])


def _resize(x: object, operation: Operation) -> Array:
    from edgetl.images import resize

    return resize(cast(Array, x), operation["height"], operation["width"], cast("Resample", operation["resample"]))


def _resize_shorter(x: object, operation: Operation) -> Array:
    from edgetl.images import resize_shorter

    return resize_shorter(cast(Array, x), operation["size"], cast("Resample", operation["resample"]))


def _center_crop(x: object, operation: Operation) -> Array:
    from edgetl.images import center_crop

    return center_crop(cast(Array, x), operation["height"], operation["width"])


def _decode_wav(value: object, operation: Operation) -> Array:
    from edgetl.audio import decode

    return decode(value, operation["rate"])


def _pad_or_trim(x: object, operation: Operation) -> Array:
    from edgetl.audio import pad_or_trim

    return pad_or_trim(cast("Samples", x), operation["samples"])


def _log_mel(x: object, operation: Operation) -> Array:
    from edgetl.audio import log_mel, mel_filters

    filters = mel_filters(*(operation[key] for key in ("rate", "window", "bands", "low", "high")))
    return log_mel(cast("Samples", x), operation["window"], operation["hop"], filters, operation["floor"])


def _channels_first(x: object, _: Operation) -> Array:
    image = cast(Array, x)
    return image.transpose(-1, *range(image.ndim - 1))  # np.moveaxis works out the same order more slowly


def _to_float(x: Array, _: Operation) -> Array:
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32, copy=False)


def _normalise(x: Array, operation: Operation) -> Array:
    channels = len(operation["mean"])
    if x.ndim < 2 or x.shape[1] != channels:
        raise BadInput(f"{channels} channels are wanted on axis 1, not shape {x.shape}", fix="give such samples")
    mean, std = (_by_channel(tuple(operation[key]), x.ndim - 2) for key in ("mean", "std"))
    return (x.astype(np.float32, copy=False) - mean) / std


@lru_cache(64)
def _by_channel(values: tuple[float, ...], axes: int) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, *[1] * axes)


_HEAD: Mapping[str, Callable[[object, Operation], Array]] = {
    "decode": _decode,
    "resize": _resize,
    "resize_shorter": _resize_shorter,
    "center_crop": _center_crop,
    "decode_wav": _decode_wav,
    "pad_or_trim": _pad_or_trim,
    "log_mel": _log_mel,
    "channels_first": _channels_first,
}
_TAIL: Mapping[str, Callable[[Array, Operation], Array]] = {"to_float": _to_float, "normalise": _normalise}
