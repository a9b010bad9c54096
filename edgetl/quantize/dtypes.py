"""What a file of lower precision really computes in, read back from the file. [host: onnx]"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto

from edgetl.types import Json

MADE = re.compile(r"(_MatMul)?(_quant|_Q[48])?$")
"""What quantizers append to the name of a node that they replace."""

_INTEGER = ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm")
_SHORT = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}
_WORDS = {
    TensorProto.FLOAT: "tensor(float)",
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}
_STORED = {TensorProto.UINT4: "w4", TensorProto.INT4: "w4", TensorProto.UINT8: "w8", TensorProto.INT8: "w8"}
_PLAIN = ("MatMul", "Gemm", "Conv")


def dtypes(file: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the precision of each named node of the base file, as an ONNX file holds it.

    "int8" multiplies integers; "w8" and "w4" store the weight so short, with a scale a block, and round activations
    where they multiply. A node that the file does not hold in any form is left out.
    """
    model = onnx.load(file)
    wanted = set(names)
    named = {(n.name if n.name in wanted else MADE.sub("", n.name, count=1)): n for n in model.graph.node}
    nodes = {name: node for name, node in named.items() if name in wanted}
    stored = {t.name: t.data_type for t in model.graph.initializer}
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    types = _types(model, [n.input[0] for n in nodes.values() if n.op_type in _PLAIN])
    found = {name: _dtype(node, types, stored, made) for name, node in nodes.items()}
    return {name: dtype for name, dtype in found.items() if dtype is not None}


def shares(found: Mapping[str, str], nodes: Sequence[Mapping[str, Json]]) -> dict[str, float]:
    """Return the share of MACs in each precision; `nodes` are a manifest's, with name and MACs."""
    total = sum(node["macs"] for node in nodes)
    sums: dict[str, float] = {}
    for node in nodes:
        dtype = found.get(node["name"], "unknown")
        sums[dtype] = sums.get(dtype, 0.0) + node["macs"] / total
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _types(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Return the type of each value that is computed, as ONNX Runtime resolves it; the model's outputs are replaced.

    Shape inference knows nothing behind the operators of ONNX Runtime's own domain.
    """
    computed = {output for node in model.graph.node for output in node.output}
    given = {v.name: _WORDS.get(v.type.tensor_type.elem_type, "") for v in model.graph.input}
    asked = sorted(computed & set(names))
    if not asked:
        return given
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return given | {output.name: output.type for output in session.get_outputs()}


def _dtype(
    node: onnx.NodeProto, types: Mapping[str, str], stored: Mapping[str, int], made: Mapping[str, str]
) -> str | None:
    if node.op_type in _INTEGER:
        return "int8"
    if node.op_type == "MatMulNBits":
        return f"w{next(a.i for a in node.attribute if a.name == 'bits')}"
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        kind = stored.get(node.input[0], TensorProto.UNDEFINED)
        return _STORED.get(kind) or _SHORT.get(_WORDS.get(kind, ""))
    if node.op_type not in _PLAIN:
        return None
    if all(made.get(name) == "DequantizeLinear" for name in node.input[:2]):
        return "int8"
    kind = stored.get(node.input[0], TensorProto.UNDEFINED)
    return _SHORT.get(types.get(node.input[0], _WORDS.get(kind, "")))
