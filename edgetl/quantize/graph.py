"""Base ONNX files, read for a change of precision, and what was made of them, written. [host: onnx]"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from edgetl import store
from edgetl.errors import BadInput

MOST_BYTES = 2**31 - 2**20
"""A protobuf holds less than 2 GiB; edgetl writes no external data, which apps would have to trust."""


TABLE = "Gather"
"""The operator that looks rows of an embedding up."""

LEAST_WEIGHT = 1024
"""Smaller weights gain nothing by being stored short."""


def read(base: Path) -> onnx.ModelProto:
    """Return the model with the shapes that can be inferred.

    Raises:
        BadInput: it does not fit into one file.

    """
    if base.stat().st_size > MOST_BYTES:
        problem = f"{base} is larger than 2 GiB, which one ONNX file cannot hold while its precision changes"
        raise BadInput(problem, fix="choose a smaller backbone, or prune")
    model = onnx.load(base)
    del model.graph.value_info[:]  # what exporters note there may contradict what the quantizer changes
    return onnx.shape_inference.infer_shapes(model)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model without the notes of the tools that made it; equal models give equal bytes."""
    for owner in (model, model.graph, *model.graph.node):
        del owner.metadata_props[:]
    del model.graph.value_info[:]
    store.write_bytes(path, model.SerializeToString(deterministic=True))


def working(model: onnx.ModelProto, operators: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the nodes of these operators; depthwise convolutions, slower in int8, are left out."""
    dims = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return tuple(n.name for n in model.graph.node if n.op_type in operators and not _depthwise(n, dims))


def quantizable(model: onnx.ModelProto, operators: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the nodes of these operators that int8 changes: products, and lookups in large tables."""
    work = set(working(model, [name for name in operators if name != TABLE]))
    tables = set(weighted(model, (TABLE,), LEAST_WEIGHT)) if TABLE in operators else set()
    return tuple(n.name for n in model.graph.node if n.name in work | tables)


def weighted(model: onnx.ModelProto, operators: Sequence[str], least: int) -> tuple[str, ...]:
    """Return the names of the nodes of these operators that hold a weight of at least so many values."""
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    return tuple(
        n.name
        for n in model.graph.node
        if n.op_type in operators and max(sizes.get(name, 0) for name in n.input) >= least
    )


def unshare(model: onnx.ModelProto, apart: Callable[[onnx.NodeProto], bool]) -> None:
    """Give the nodes that stand apart weights of their own, so that one weight need not have two types."""
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    others = {name for node in model.graph.node if not apart(node) for name in node.input}
    for node in filter(apart, model.graph.node):
        for i, name in enumerate(node.input):
            if name in weights and name in others:
                copy = model.graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = node.input[i] = f"{name}.{node.name}.{i}"


def _depthwise(node: onnx.NodeProto, dims: dict[str, tuple[int, ...]]) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return node.op_type == "Conv" and groups > 1 and dims.get(node.input[1], (0, 0))[1] == 1
