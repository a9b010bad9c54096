"""ONNX files written by hand, as far as calibration needs them: a device has no onnx package. [no torch, no onnx]

The numbers are the tags of onnx.proto; a tag is the field's number and how its value is coded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IR_VERSION, OPSET = 8, 13
"""Old enough for every runtime that edgetl supports."""

_TYPES = {"float32": 1, "uint8": 2, "int8": 3}
_VARINT, _BYTES = 0, 2


def model(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], initialisers: Sequence[bytes] = ()
) -> bytes:
    """Return an ONNX file of nodes, graph inputs and outputs, and weights, each as the functions below write it."""
    fields = [*((1, n) for n in nodes), (2, b"edgetl"), *((5, t) for t in initialisers)]
    graph = _all([*fields, *((11, i) for i in inputs), *((12, o) for o in outputs)])
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, opset)


def node(op: str, inputs: Sequence[str], output: str) -> bytes:
    """Return a node of the default domain, without attributes."""
    return b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(3, output) + _text(4, op)


def value(name: str, shape: Sequence[int], dtype: str = "float32") -> bytes:
    """Return the name, type and fixed shape of a graph's input or output."""
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    tensor = _number(1, _TYPES[dtype]) + _field(2, dims)
    return _text(1, name) + _field(2, _field(1, tensor))


def weight(name: str, array: NDArray[np.generic]) -> bytes:
    """Return a tensor that the file holds."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, _TYPES[array.dtype.name]) + _text(8, name) + _field(9, little.tobytes())


def with_outputs(file: bytes, names: Sequence[str]) -> bytes:
    """Return an ONNX file that also gives these values: what stands behind a message is merged into it."""
    return file + _field(7, b"".join(_field(12, _text(1, name)) for name in names))


def _all(fields: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(_field(number, data) for number, data in fields)


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _number(number: int, count: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(count)


def _varint(count: int) -> bytes:
    """Return a number in base 128, least digit first; the high bit says that another follows."""
    digits = bytearray()
    while count > 0x7F:
        digits.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([*digits, count])
