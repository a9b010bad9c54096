"""What a pre-processing list may hold: operations, their parameters and their order. [no torch, no pydantic]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from edgetl.errors import Refused
from edgetl.types import Json, Operation

if TYPE_CHECKING:
    from edgetl.preprocess import Raw

MAX_SIDE = 8192
"""Most pixels along one side that an operation may ask for."""

MAX_TOKENS = 32_768
"""Most tokens that an operation may ask for."""

MAX_OPERATIONS = 16
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


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
    if raw.kind not in ("image", "text", "array"):
        raise _refusal(f"reads {raw.kind!r}, which is no kind of data")
    sides = isinstance(raw.shape, tuple) and 1 <= len(raw.shape) <= 4 and all(_whole(MAX_SIDE)(s) for s in raw.shape)
    if raw.kind == "array" and not (raw.dtype in DTYPES and sides and math.prod(raw.shape) <= MAX_SIDE**2):
        raise _refusal(f"reads arrays of an unknown type or absurd size: {str(raw.dtype)[:40]} {str(raw.shape)[:80]}")


def _check_kind(ops: Sequence[str], raw: Raw) -> None:
    first = ops[0] if ops else None
    if raw.kind == "image" and first != "decode":
        raise _refusal("an image is decoded first", 1)
    if (raw.kind == "text") != (first == "tokenize") or (first == "tokenize" and len(ops) > 1):
        raise _refusal("text, and only text, is tokenized, and nothing more", 1)
    if first == "decode" and raw.kind == "array" and not (raw.dtype == "uint8" and len(raw.shape) in (2, 3)):
        raise _refusal("only uint8 arrays (height, width) or (height, width, channels) are images", 1)
    for number, op in enumerate(ops, 1):
        if _RANK[op] == _RANK["resize"] and first != "decode":
            raise _refusal(f"'{op}' needs a decoded image", number)
        if op == "normalise" and "to_float" not in ops:
            raise _refusal("'normalise' follows 'to_float'", number)


def _check_channels(number: int, operation: Operation, first: Operation) -> None:
    channels = {"L": 1, "RGB": 3}.get(str(first.get("mode")), len(operation["mean"]))
    if not len(operation["mean"]) == len(operation["std"]) == channels:
        raise _refusal(f"'normalise' wants {channels} values in mean and in std", number)


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


def _bare(name: Json) -> bool:
    return isinstance(name, str) and 0 < len(name) < 100 and not name.startswith(".") and not set(name) & set("/\\:\0")


_side = (_whole(MAX_SIDE), f"a whole number from 1 to {MAX_SIDE}")
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
    "channels_first": {},
    "to_float": {},
    "normalise": {"mean": (_numbers(-math.inf), "numbers"), "std": (_numbers(0), "positive numbers")},
}
_RANK = {"decode": 0, "tokenize": 0, "resize": 1, "resize_shorter": 1, "center_crop": 1, "channels_first": 2}
_RANK |= {"to_float": 3, "normalise": 4}
