"""Networks in int8 for OpenVINO, by NNCF's post-training quantization. [host: nncf]"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from edgetl.errors import BadInput
from edgetl.quantize.lower import LEAST_SAMPLES
from edgetl.targets import _opening
from edgetl.types import Feed

if TYPE_CHECKING:
    import openvino

WORKING = ("MatMul", "Convolution", "GroupConvolution")
"""OpenVINO's operators that do the work."""

_BARE = "/WithoutBiases"
"""What OpenVINO appends to the name of an ONNX node whose bias it adds in a node of its own."""

_MOVING = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
_UNPACKING = ("Convert", "Multiply", "Subtract")
"""What stands between the integers of a stored weight and the node that reads it."""


def base_name(node: openvino.Node) -> str:
    """Return the name of the ONNX node that an OpenVINO node was made from."""
    return str(node.get_friendly_name()).removesuffix(_BARE)


def is_integer(end: openvino.Output) -> bool:
    """Say whether a value that a node reads is computed with in 8 bits: quantized, or a weight stored so."""
    node = end.get_node()
    while node.get_type_name() in _MOVING:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    while node.get_type_name() in _UNPACKING:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8")


def quantized(model: openvino.Model, feeds: Sequence[Feed], lowered: Collection[str]) -> openvino.Model:
    """Return the model with int8 weights and activations where nodes of these base names work.

    Attention is quantized as NNCF does for transformers: its inputs are smoothed and its masks left alone.

    Raises:
        BadInput: too few samples, or NNCF cannot quantize it.

    """
    count = sum(len(next(iter(feed.values()))) for feed in feeds)
    if count < LEAST_SAMPLES:
        problem = f"{count} training samples do not tell the ranges of int8, it takes {LEAST_SAMPLES} at least"
        raise BadInput(problem, fix="give more training data, or choose bf16, which needs none")
    with _quiet():
        nncf = _opening.library("nncf")
    nodes = model.get_ordered_ops()
    left = [n.get_friendly_name() for n in nodes if n.get_type_name() in WORKING and base_name(n) not in lowered]
    attends = any(n.get_type_name() == "Softmax" for n in nodes)
    try:
        with _quiet():
            return nncf.quantize(
                *(model, nncf.Dataset([dict(feed) for feed in feeds])),
                subset_size=len(feeds),
                model_type=nncf.ModelType.TRANSFORMER if attends else None,
                ignored_scope=nncf.IgnoredScope(names=left),
            )
    except (nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError, RuntimeError, ValueError) as error:
        problem = f"NNCF cannot quantize the network: {_opening.first_line(error)}"
        raise BadInput(problem, fix="export it at bf16 or fp32") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and advice off the standard output, where a result is printed."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
