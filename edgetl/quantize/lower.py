"""The base ONNX file at another precision, for ONNX Runtime. [host: onnx, ONNX Runtime]"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from edgetl.errors import BadInput
from edgetl.quantize import graph, ranges
from edgetl.quantize.graph import LEAST_WEIGHT, TABLE
from edgetl.recipe.schema import Material

LEAST_SAMPLES = 16
"""Fewer samples do not tell the range of an activation."""

BLOCK = 32
"""Weights that share a scale."""

MULTIPLIED = 4
"""What MatMulNBits calls activations rounded to int8, block by block, at each run. Unless it may do so, ONNX Runtime's
CPU provider unpacks all weights to fp32 at every call: of MiniLM, 44 ms instead of 7."""

NEVER_HALF = (
    *DEFAULT_OP_BLOCK_LIST,
    *("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Reciprocal"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSumExp"),
    *("GlobalAveragePool", "AveragePool"),
)
"""Operators that add up or raise what fp16, which ends at 65,504, cannot hold."""


@dataclass(frozen=True)
class Static:
    """How a file with int8 activations and weights (QDQ) is made."""

    operators: Sequence[str]
    method: ranges.Method = "minmax"
    symmetric: bool = False  # int8 activations around 0, as TensorRT wants; else uint8, which x86 multiplies faster
    reduce_range: bool = False  # weights of 7 bits: without VNNI, x86 saturates where two products meet in 16 bits


def static(base: Path, material: Material, how: Static, folder: Path) -> onnx.ModelProto:
    """Return the model with quantize and dequantize nodes around its operators; weights have a scale a channel.

    Large embeddings are looked up in 8 bits.

    Raises:
        BadInput: too few samples, or nothing to quantize.

    """
    model, found = graph.read(base), _ranges(base, material, how)
    activation = QuantType.QInt8 if how.symmetric else QuantType.QUInt8
    names, tables = _parts(model, how.operators, material.floats, base)
    if names:
        quantizer = QDQQuantizer(
            *(model, True, how.reduce_range, QuantType.QInt8, activation),
            *(_tensors(found), names, [], list(_products(how.operators))),
            # TensorRT dequantizes no 32 bit integers, which biases would be
            {"ActivationSymmetric": how.symmetric, "WeightSymmetric": True, "QuantizeBias": not how.symmetric},
        )
        with _quietly(base):
            quantizer.quantize_model()
        model = quantizer.model.model
    return _tables(model, tables, folder, base)


def dynamic(
    base: Path, material: Material, operators: Sequence[str], reduce_range: bool, folder: Path
) -> onnx.ModelProto:
    """Return the model with int8 weights whose activations are quantized at each run, by their own range.

    Large embeddings are looked up in 8 bits.
    """
    model = graph.read(base)
    names, tables = _parts(model, operators, material.floats, base)
    if names:
        names += [f"{name}_MatMul" for name in names]  # what the quantizer calls a Gemm that it has taken apart
        path = folder / ".dynamic.onnx"
        with _quietly(base):
            quantize_dynamic(
                model, path, op_types_to_quantize=list(_products(operators)), per_channel=True,
                reduce_range=reduce_range, weight_type=QuantType.QInt8, nodes_to_quantize=names,
            )  # fmt: skip
        model = onnx.load(path)
        path.unlink()
    return _tables(model, tables, folder, base)


def half(base: Path, material: Material) -> onnx.ModelProto:
    """Return the model typed fp16, but for inputs, outputs and operators that would overflow.

    Raises:
        BadInput: it has an operator that cannot be typed so.

    """
    model = graph.read(base)
    graph.unshare(model, lambda node: node.op_type in NEVER_HALF or node.name in material.floats)
    with _quietly(base):
        made: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=list(NEVER_HALF), node_block_list=sorted(material.floats)
        )
    return made


def weights(base: Path, material: Material, bits: int, folder: Path) -> onnx.ModelProto:
    """Return the model with large matrices and embeddings stored in 8 or 4 bits; matrices multiply int8 activations.

    Raises:
        BadInput: it has none that ONNX Runtime's CPU provider reads in so few bits.

    """
    model = graph.read(base)
    kinds = ("MatMul", TABLE)
    names = _chosen(graph.weighted(model, kinds, LEAST_WEIGHT), material.floats, base)
    left = [node.name for node in model.graph.node if node.name not in names]
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=MULTIPLIED,
        nodes_to_exclude=left,
        op_types_to_quantize=kinds if bits == 4 else kinds[:1],
    )
    with _quietly(base):
        quantizer.process()
    if bits == 4:
        made: onnx.ModelProto = quantizer.model.model
        return made
    tables = [node.name for node in model.graph.node if node.op_type == TABLE and node.name in names]
    return _tables(quantizer.model.model, tables, folder, base)


def _parts(
    model: onnx.ModelProto, operators: Sequence[str], floats: frozenset[str], base: Path
) -> tuple[list[str], list[str]]:
    """Return the nodes whose products change, and the embeddings that do.

    Raises:
        BadInput: the network has neither.

    """
    names = _chosen(graph.quantizable(model, operators), floats, base)
    tables = [node.name for node in model.graph.node if node.op_type == TABLE and node.name in names]
    return [name for name in names if name not in tables], tables


def _products(operators: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in operators if name != TABLE)


def _tables(model: onnx.ModelProto, names: Sequence[str], folder: Path, base: Path) -> onnx.ModelProto:
    """Return the model with these embeddings in 8 bits."""
    if not names:
        return model
    path = folder / ".tables.onnx"
    with _quietly(base):
        quantize_dynamic(model, path, op_types_to_quantize=[TABLE], nodes_to_quantize=list(names))
    made = onnx.load(path)
    path.unlink()
    return made


def _ranges(base: Path, material: Material, how: Static) -> ranges.Ranges:
    count = sum(len(next(iter(feed.values()))) for feed in material.calibration)
    if count < LEAST_SAMPLES:
        problem = f"{count} training samples do not tell the ranges of int8, it takes {LEAST_SAMPLES} at least"
        raise BadInput(
            problem, fix="raise `samples`, give more training data, or choose int8_dynamic, which needs none"
        )
    return ranges.kept(material.cache, base, material.calibration, (_products(how.operators), how.method))


def _tensors(found: ranges.Ranges) -> TensorsData:
    ends = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    return TensorsData(CalibrationMethod.MinMax, {name: tuple(map(np.asarray, pair)) for name, pair in ends.items()})


def _chosen(names: Sequence[str], floats: frozenset[str], base: Path) -> list[str]:
    """Return the nodes that change.

    Raises:
        BadInput: the network has none, and a list of none would mean all.

    """
    found = [name for name in names if name not in floats]
    if not found:
        problem = f"{base.parent.name} has no operation whose precision can be lowered"
        raise BadInput(problem, fix="export it at fp32")
    return found


@contextlib.contextmanager
def _quietly(base: Path) -> Iterator[None]:
    """Turn what the library does not know how to do into an error of ours, and keep its advice off the screen."""
    loud = [logging.getLogger(name) for name in (None, "onnxruntime.quantization", "onnxruntime.transformers")]
    levels = [one.level for one in loud]
    for one in loud:
        one.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"):  # a row of zeros has no scale
            yield
    except (ValueError, RuntimeError, AssertionError, KeyError, TypeError, onnx.checker.ValidationError) as e:
        line = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        problem = f"ONNX Runtime cannot lower the precision of {base.parent.name}: {line}"
        raise BadInput(problem, fix="export it at fp32, or leave the operator out of `operators`") from e
    finally:
        for one, level in zip(loud, levels, strict=True):
            one.setLevel(level)
