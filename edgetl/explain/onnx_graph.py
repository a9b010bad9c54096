"""The nodes of an ONNX file and what feeds them, read without its values: a device has no onnx package. [no torch]

The numbers are the tags of onnx.proto. Subgraphs of control flow are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgetl.errors import Refused

_MODULE = re.compile(r"([A-Za-z_][\w.]*)/[A-Z]\w*")
"""A node that edgetl named: `layers.3.attn.q/MatMul`, or what a quantiser made of it."""

_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}


@dataclass(frozen=True)
class Node:
    """One operation; `numbers` are its attributes that are one integer."""

    name: str
    op: str
    inputs: tuple[str, ...]  # of optional ones that are not given, ""
    outputs: tuple[str, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Weight:
    """The shape and dtype of a tensor that the file holds."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Graph:
    """A graph in topological order."""

    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight]
    outputs: tuple[str, ...]

    def producers(self) -> dict[str, Node]:
        """Return the node behind every value that one computes."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                found.setdefault(name, []).append(node)
        return found

    def modules(self) -> dict[str, str]:
        """Return the torch module of every value that a node computes, by the names that edgetl gives nodes.

        What a quantiser put in belongs to the module that feeds it, or else to the one that it feeds. A file of
        other origin has no modules: then each is "".
        """
        found: dict[str, str] = {}
        for node in self.nodes:
            named = _MODULE.fullmatch(node.name)
            before = (found[name] for name in node.inputs if found.get(name))
            found |= dict.fromkeys(filter(None, node.outputs), named[1] if named else next(before, ""))
        for node in reversed(self.nodes):
            after = next((found[name] for name in node.outputs if found.get(name)), "")
            found |= {name: after for name in node.inputs if found.get(name) == ""}
        return found


def read_graph(file: bytes) -> Graph:
    """Return the graph of an ONNX file.

    Raises:
        Refused: the bytes are no ONNX file.

    """
    nodes: list[Node] = []
    weights: dict[str, Weight] = {}
    outputs: list[str] = []
    try:
        for number, part in _fields(memoryview(file)):
            if number != 7 or isinstance(part, int):
                continue
            for kind, inner in _fields(part):
                if kind == 1:
                    nodes.append(_node(_bytes(inner)))
                elif kind == 5:
                    name, weight = _weight(_bytes(inner))
                    weights[name] = weight
                elif kind == 12:
                    outputs += [_text(value) for tag, value in _fields(_bytes(inner)) if tag == 1]
    except (ValueError, IndexError) as error:
        raise Refused("the file is no ONNX graph", fix="export it again") from error
    return Graph(tuple(nodes), weights, tuple(outputs))


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
    numbers: dict[str, int] = {}
    for number, value in _fields(data):
        if number in texts:
            texts[number].append(_text(value))
        elif number == 5:
            numbers |= _number(_bytes(value))
    return Node(texts[3][-1], texts[4][-1], tuple(texts[1]), tuple(texts[2]), numbers)


def _number(data: memoryview) -> dict[str, int]:
    name, found = "", None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3 and isinstance(value, int):
            found = value
    return {} if found is None else {name: found}


def _weight(data: memoryview) -> tuple[str, Weight]:
    shape: list[int] = []
    name, dtype = "", 0
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8:
            name = _text(value)
    return name, Weight(tuple(shape), _TYPES.get(dtype, f"type {dtype}"))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Return the number and value of every field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("a field leaves its message")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for digit in range(10):
        byte = data[at + digit]
        value |= (byte & 0x7F) << 7 * digit
        if byte < 0x80:
            return value, at + digit + 1
    raise ValueError("a number has no end")


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")  # noqa: TRY004 - the file is wrong, no caller
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
