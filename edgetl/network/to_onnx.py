"""The base ONNX of a network: dynamic batch, weights inside, nothing of the builder's machine. [host: torch]"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from edgetl import store
from edgetl.errors import BadInput
from edgetl.network.family import Family
from edgetl.network.network import Network
from edgetl.types import Json

OPSET = 20
MOST_BYTES = 2**31 - 2**20
"""A protobuf holds less than 2 GiB; edgetl writes no external data, which apps would have to trust."""


class _Logits(nn.Module):
    """A network as a function of its inputs in order, for the exporter."""

    def __init__(self, family: Family, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.family, self.module, self.names = family, module, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.family.logits(self.module, dict(zip(self.names, inputs, strict=True)))


def to_onnx(net: Network, path: Path) -> None:
    """Write the network as one ONNX file; equal networks give equal bytes.

    Raises:
        BadInput: the weights do not fit into one file.

    """
    if sum(t.numel() * t.element_size() for t in net.state().values()) > MOST_BYTES:
        raise BadInput(
            "the network is larger than one ONNX file can be (2 GiB)", fix="choose a smaller backbone, or prune"
        )
    example = net.family.example(net.config, 2)
    names = tuple(example)
    axes = {0: torch.export.Dim("batch", min=1, max=2**20)}
    shapes = tuple({**axes, **({1: torch.export.Dim.DYNAMIC} if net.family.data == "text" else {})} for _ in names)
    with _quiet():
        program = torch.onnx.export(
            _Logits(net.family, net.module, names).eval(), tuple(example.values()), dynamo=True, opset_version=OPSET,
            input_names=list(names), output_names=["logits"], dynamic_shapes=(shapes,), verbose=False,
        )  # fmt: skip
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    strip(model, text=net.family.data == "text")
    store.write_bytes(path, model.SerializeToString(deterministic=True))


def strip(model: onnx.ModelProto, text: bool) -> None:
    """Remove source paths, stack traces and shapes the exporter noted; name the dynamic axes."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del graph.value_info[:]
    graph.name = "edgetl"
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if text and value.name != "logits":
            dims[1].dim_param = "tokens"


def node_costs(path: Path, sizes: Mapping[str, int]) -> list[Json]:
    """Return name, operator, MACs and bytes moved of every node that does work, for one sample.

    `sizes` gives the dynamic axes: {"batch": 1, "tokens": 32}.
    """
    model = onnx.load(path)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: _dims(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {t.name: tuple(t.dims) for t in graph.initializer}
    found = [_node_cost(node, shapes) for node in graph.node]
    return [cost for cost in found if cost["macs"]]


def _node_cost(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...] | None]) -> Json:
    ins = [shapes.get(name) for name in node.input if name]
    outs = [shapes.get(name) for name in node.output]
    moved = sum(4 * math.prod(s) for s in (*ins, *outs) if s is not None)
    return {"name": node.name, "op": node.op_type, "macs": _macs(node, ins, outs[0] if outs else None), "bytes": moved}


def _macs(node: onnx.NodeProto, ins: list[tuple[int, ...] | None], out: tuple[int, ...] | None) -> int:
    if out is None or not ins or ins[0] is None or (len(ins) > 1 and ins[1] is None):
        return 0
    if node.op_type == "MatMul":
        return math.prod(out) * ins[0][-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * ins[0][0 if transposed else 1]
    if node.op_type == "Conv" and ins[1] is not None:
        return math.prod(out) * math.prod(ins[1][1:])
    return 0


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (missing torchvision, opset conversions) off the user's screen."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
