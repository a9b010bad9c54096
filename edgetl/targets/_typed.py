"""ONNX files typed as TensorRT takes them: in bf16, or quantized with biases in float. [host: onnx]"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetl.quantize import graph

_BF16 = "_bf16"
"""What the names of values in bf16 end in."""


def bf16(base: Path, names: Collection[str]) -> onnx.ModelProto:
    """Return the base model with these nodes in bf16 and all else in fp32, as autocasting does.

    Weights that only they read are stored in bf16.
    """
    model = graph.read(base)
    made: list[onnx.NodeProto] = []
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    short: dict[str, str] = {}  # value -> its name in bf16
    for node in model.graph.node:
        if node.name in names:
            for place, value in enumerate(node.input):
                if value and value not in short:
                    short[value] = f"{value}{_BF16}"
                    if value in weights:
                        model.graph.initializer.append(_rounded(weights[value], short[value]))
                    else:
                        made.append(_cast(value, short[value], TensorProto.BFLOAT16))
                node.input[place] = short.get(value, value)
            result, node.output[0] = node.output[0], f"{node.output[0]}{_BF16}"
            made += [node, _cast(node.output[0], result, TensorProto.FLOAT)]
        else:
            made.append(node)
    del model.graph.node[:]
    model.graph.node.extend(made)
    _forget(model)
    return model


def dtypes(file: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Return the precision of these nodes in a file that `bf16` made."""
    wanted = set(names)
    nodes = [node for node in onnx.load(file).graph.node if node.name in wanted]
    return {node.name: "bf16" if node.output[0].endswith(_BF16) else "fp32" for node in nodes}


def _forget(model: onnx.ModelProto) -> None:
    """Remove the weights that no node reads."""
    read = {value for node in model.graph.node for value in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _rounded(weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16), name)


def _cast(value: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], name=f"{result}/Cast", to=to)
