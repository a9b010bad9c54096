"""What a pre-processing list may hold: operations, their parameters and their order. [no torch, no pydantic]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgetl.errors import Refused
from edgetl.types import Json, Operation

if TYPE_CHECKING:
    from edgetl.preprocess import Raw

Kind: TypeAlias = Literal["image", "text", "sensor", "audio"]
"""What a family reads: pictures, texts, windows of readings, or recordings."""

INPUTS: Mapping[Kind, tuple[str, ...]] = {
    "image": ("pixel_values",),
    "text": ("input_ids", "attention_mask"),
    "sensor": ("input_values",),
    "audio": ("input_values",),
}
"""What a network calls its inputs, by kind of data."""

MAX_SIDE = 8192
"""Most pixels along one side that an operation may ask for."""

MAX_RATE = 768_000
MAX_SAMPLES = 30_000_000
"""Most samples of a recording, per channel: over ten minutes at 48 kHz."""

MAX_WINDOW = 65_536
"""Most samples of a spectrogram's frame, and between frames."""

MAX_BANDS = 512
MAX_TOKENS = 32_768
"""Most tokens that an operation may ask for."""

MAX_OPERATIONS = 16
IMAGE = ("resize", "resize_shorter", "center_crop")
AUDIO = ("decode_wav", "pad_or_trim", "log_mel")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def kind_of(raw: Raw) -> Kind:
    """Return the kind of data: arrays of three axes, and bytes of two, are pictures, other arrays are readings."""
    if raw.kind != "array":
        return raw.kind
    return "image" if len(raw.shape) == 3 or (len(raw.shape) == 2 and raw.dtype == "uint8") else "sensor"


def check_operations(operations: Sequence[Operation], raw: Raw) -> None:
    """Check a list from a manifest: known operations, parameters of the right kind, a possible order.

    Raises:
        Refused: something is wrong; the message names the operation by its number.

    """
    if not isinstance(operations, Sequence) or len(operations) > MAX_OPERATIONS:
        raise _refusal(f"is no list of at most {MAX_OPERATIONS}")
    for number, operation in enumerate(operations, 1):
        _check_parameters(number, operation)
    _check_raw(raw)
    ops = [str(operation["op"]) for operation in operations]
    for number, (before, after) in enumerate(pairwise(ops), 2):
        if _RANK[before] > _RANK[after] or (_RANK[before] == _RANK[after] != _RANK["resize"]):
            raise _refusal(f"'{after}' cannot follow '{before}'", number)
    _check_kind(ops, raw)
    for number, operation in enumerate(operations, 1):
        if operation["op"] == "normalise":
            _check_channels(number, operation, operations[0])
    if raw.kind == "audio":
        _check_spectrogram(*operations[:3])


def _check_parameters(number: int, operation: Json) -> None:
    op = operation.get("op") if isinstance(operation, Mapping) else None
    if not isinstance(op, str) or op not in _PARAMETERS:
        raise _refusal(f"unknown operation {op!r}", number)
    wanted = _PARAMETERS[op]
    if set(operation) != {"op", *wanted}:
        raise _refusal(
            f"'{op}' takes {', '.join(wanted) or 'no parameters'}, not {sorted(set(operation) - {'op'})}", number
        )
    for key, (valid, words) in wanted.items():
        if not valid(operation[key]):
            raise _refusal(f"'{op}' wants {words} as {key}, not {str(operation[key])[:40]!r}", number)


def _check_raw(raw: Raw) -> None:
    if raw.kind not in ("image", "text", "audio", "array"):
        raise _refusal(f"reads {raw.kind!r}, which is no kind of data")
    sides = isinstance(raw.shape, tuple) and 1 <= len(raw.shape) <= 4 and all(_whole(MAX_SIDE)(s) for s in raw.shape)
    if raw.kind == "array" and not (raw.dtype in DTYPES and sides and math.prod(raw.shape) <= MAX_SIDE**2):
        raise _refusal(f"reads arrays of an unknown type or absurd size: {str(raw.dtype)[:40]} {str(raw.shape)[:80]}")


def _check_kind(ops: Sequence[str], raw: Raw) -> None:
    first = ops[0] if ops else None
    if (raw.kind == "audio") != (tuple(ops[:3]) == AUDIO) or any(op in AUDIO for op in ops[3:]):
        raise _refusal(f"a recording, and only a recording, begins with {', '.join(AUDIO)}", 1)
    if raw.kind == "image" and first != "decode":
        raise _refusal("an image is decoded first", 1)
    if (raw.kind == "text") != (first == "tokenize") or (first == "tokenize" and len(ops) > 1):
        raise _refusal("text, and only text, is tokenized, and nothing more", 1)
    if first == "decode" and raw.kind == "array" and not (raw.dtype == "uint8" and len(raw.shape) in (2, 3)):
        raise _refusal("only uint8 arrays (height, width) or (height, width, channels) are images", 1)
    for number, op in enumerate(ops, 1):
        if op in IMAGE and first != "decode":
            raise _refusal(f"'{op}' needs a decoded image", number)
        if op == "normalise" and "to_float" not in ops:
            raise _refusal("'normalise' follows 'to_float'", number)


def _check_channels(number: int, operation: Operation, first: Operation) -> None:
    known = {"L": 1, "RGB": 3}.get(str(first.get("mode")))
    channels = 1 if first["op"] == "decode_wav" else known or len(operation["mean"])
    if not len(operation["mean"]) == len(operation["std"]) == channels:
        raise _refusal(f"'normalise' wants {channels} values in mean and in std", number)


def _check_spectrogram(decode: Operation, trim: Operation, mel: Operation) -> None:
    if mel["rate"] != decode["rate"]:
        raise _refusal("'log_mel' and 'decode_wav' want one rate", 3)
    if mel["window"] > trim["samples"] or mel["hop"] > mel["window"]:
        raise _refusal("'log_mel' wants a hop within its window, and a window within the samples", 3)
    if not mel["low"] < mel["high"] <= mel["rate"] / 2:
        raise _refusal("'log_mel' wants low below high, and high at most half the rate", 3)
    if trim["samples"] // mel["hop"] * max(mel["bands"], mel["window"]) > MAX_SIDE**2:
        raise _refusal("'log_mel' would make a spectrogram of absurd size", 3)


def _refusal(words: str, number: int | None = None) -> Refused:
    where = "the pre-processing list" if number is None else f"pre-processing operation {number}:"
    return Refused(f"{where} {words}", fix="export the bundle again; do not edit its manifest")


def _whole(most: int) -> Callable[[Json], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _numbers(least: float) -> Callable[[Json], bool]:
    def valid(values: Json) -> bool:
        return (
            isinstance(values, list | tuple)
            and 1 <= len(values) <= MAX_SIDE
            and all(type(v) in (int, float) and math.isfinite(v) and v > least for v in values)
        )

    return valid


def _number(least: float) -> Callable[[Json], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and value >= least


def _bare(name: Json) -> bool:
    return isinstance(name, str) and 0 < len(name) < 100 and not name.startswith(".") and not set(name) & set("/\\:\0")


_side = (_whole(MAX_SIDE), f"a whole number from 1 to {MAX_SIDE}")
_rate = (_whole(MAX_RATE), f"a whole number from 1 to {MAX_RATE}")
_frame = (_whole(MAX_WINDOW), f"a whole number from 1 to {MAX_WINDOW}")
_filter = (FILTERS.__contains__, f"one of {', '.join(FILTERS)}")
_PARAMETERS: Mapping[str, Mapping[str, tuple[Callable[[Json], bool], str]]] = {
    "decode": {"mode": (("L", "RGB").__contains__, "L or RGB")},
    "tokenize": {
        "file": (_bare, "a file name inside the bundle"),
        "length": (_whole(MAX_TOKENS), f"a whole number from 1 to {MAX_TOKENS}"),
    },
    "resize": {"height": _side, "width": _side, "resample": _filter},
    "resize_shorter": {"size": _side, "resample": _filter},
    "center_crop": {"height": _side, "width": _side},
    "decode_wav": {"rate": _rate},
    "pad_or_trim": {"samples": (_whole(MAX_SAMPLES), f"a whole number from 1 to {MAX_SAMPLES}")},
    "log_mel": {
        "rate": _rate,
        "window": _frame,
        "hop": _frame,
        "bands": (_whole(MAX_BANDS), f"a whole number from 1 to {MAX_BANDS}"),
        "low": (_number(0), "hertz from 0"),
        "high": (_number(0), "hertz from 0"),
        "floor": (_number(1e-30), "a positive number"),
    },
    "channels_first": {},
    "to_float": {},
    "normalise": {"mean": (_numbers(-math.inf), "numbers"), "std": (_numbers(0), "positive numbers")},
}
_RANK = {"decode": 0, "tokenize": 0, "resize": 1, "resize_shorter": 1, "center_crop": 1, "channels_first": 2}
_RANK |= {"decode_wav": 0, "pad_or_trim": 1, "log_mel": 2, "to_float": 3, "normalise": 4}
