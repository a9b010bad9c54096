"""The base ONNX of a network: dynamic batch, weights inside, nothing of the builder's machine. [host: torch]"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgetl import store
from edgetl.errors import BadInput
from edgetl.network.family import Family
from edgetl.network.names import places
from edgetl.network.network import Network
from edgetl.types import Json

Shape: TypeAlias = tuple[int, ...]

OPSET = 20
WORKING = ("MatMul", "Gemm", "Conv")
"""The operators whose MACs are counted."""

WRAPPED = "module."
"""What the exporter's wrapper below puts before the name of each module."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the torch modules that a node comes from, outermost first, the operation last."""

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
    with quiet(), plain_attention(net.module):
        program = torch.onnx.export(
            _Logits(net.family, net.module, names).eval(), tuple(example.values()), dynamo=True, opset_version=OPSET,
            input_names=list(names), output_names=["logits"], dynamic_shapes=(shapes,), verbose=False,
        )  # fmt: skip
    assert program is not None
    write(program.model_proto, net, path)


def write(model: onnx.ModelProto, net: Network, path: Path) -> None:
    """Write what an exporter made of the network: named, equal weights stored once, nothing of the builder's machine.

    Every node has the torch modules that it comes from noted under SCOPES.
    """
    name_nodes(model, places(net.family, net.module))
    store_once(model.graph)
    strip(model, text=net.family.data == "text")
    store.write_bytes(path, model.SerializeToString(deterministic=True))


def configurations(module: nn.Module) -> list[Json]:
    """Return the configurations of transformers that a network is built from, each once, the outermost first."""
    every = {id(one.config): one.config for one in module.modules() if hasattr(one, "config")}
    return [*every.values()]


@contextlib.contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Have transformers compute attention by its parts while a network is exported.

    From torch's own operator the exporter makes a guard against tokens that may look at nothing, and shapes that are
    worked out at every call, which a small network notices. The answers are the same.
    """
    configs = [config for config in configurations(module) if hasattr(config, "_attn_implementation")]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def name_nodes(model: onnx.ModelProto, modules: Mapping[str, str]) -> None:
    """Call every node `<module>/<operator>`, as in `layers.3.attn.q/MatMul`; a repeated name is numbered.

    `modules` gives the canonical place of every module by the name that torch has for it.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        name = f"{_module(node, modules)}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _module(node: onnx.NodeProto, modules: Mapping[str, str]) -> str:
    """Return the place of the innermost module that a node comes from; the exporter's own nodes are the network's.

    A convolution is its own even where the exporter folded the normalisation behind it into it.
    """
    if node.op_type == "Conv":
        owner = node.input[1].removeprefix(WRAPPED).rpartition(".")[0]
        if owner and owner in modules:
            return modules[owner]
    noted = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
    scopes = [str(scope).removeprefix(WRAPPED) for scope in ast.literal_eval(noted)]
    return next((modules[scope] for scope in reversed(scopes) if scope in modules), modules[""])


def store_once(graph: onnx.GraphProto) -> None:
    """Keep one of weights that are equal, as those of blocks that a network repeats are."""
    first: dict[str, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        content = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)};".encode() + tensor.raw_data).hexdigest()
        names[tensor.name] = first.setdefault(content if tensor.raw_data else tensor.name, tensor.name)
    for i in reversed(range(len(graph.initializer))):
        if names[graph.initializer[i].name] != graph.initializer[i].name:
            del graph.initializer[i]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


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

    `bytes` is the sum of `weight_bytes` and `activation_bytes`, those of its inputs and outputs. A weight that several
    nodes read counts at the first of them. `sizes` gives the dynamic axes: {"batch": 1, "tokens": 32}.
    """
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in WORKING]
    sources, shapes, costs = _constants(model.graph), _shapes(model, nodes, sizes), []
    read: set[str] = set()
    for node in nodes:
        costs.append(_node_cost(node, shapes, sources, read))
        read |= {sources[name] for name in node.input if name in sources}
    return [cost for cost in costs if cost["macs"]]


def _constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Return, for every value that is a weight or a weight seen another way, the weight it is."""
    sources = {t.name: t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            sources |= {name: name for name in node.output}
        elif node.op_type in ("Transpose", "Reshape", "Identity", "Cast", "Unsqueeze", "Squeeze") and all(
            name in sources for name in node.input
        ):
            sources |= dict.fromkeys(node.output, sources[node.input[0]])
    return sources


def _node_cost(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], sources: Mapping[str, str], read: Collection[str]
) -> Json:
    names = [name for name in node.input if name]
    weights = {sources[name]: shapes[name] for name in names if name in sources}
    new = sum(4 * math.prod(shape) for source, shape in weights.items() if source not in read)
    moved = sum(4 * math.prod(shapes[name]) for name in (*names, *node.output) if name not in sources)
    macs = _macs(node, [shapes[name] for name in names], shapes[node.output[0]])
    cost = {"name": node.name, "op": node.op_type, "macs": macs, "bytes": new + moved}
    return {**cost, "weight_bytes": new, "activation_bytes": moved}


def _macs(node: onnx.NodeProto, ins: Sequence[Shape], out: Shape) -> int:
    if node.op_type == "MatMul":
        return math.prod(out) * ins[0][-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * ins[0][0 if transposed else 1]
    return math.prod(out) * math.prod(ins[1][1:])


def _shapes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Return the shapes of all that these nodes read and write, by running one sample.

    Shape inference loses the sizes of a text behind its mask, and with them every node. The model's outputs are
    replaced.
    """
    graph = model.graph
    feed = {v.name: np.zeros(*_zeros(v, sizes)) for v in graph.input}
    shapes: dict[str, Shape] = {name: value.shape for name, value in feed.items()}
    shapes |= {t.name: tuple(t.dims) for t in graph.initializer}
    touched = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name)
    wanted = [name for name in touched if name not in shapes]
    if not wanted:
        return shapes
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return shapes | {name: value.shape for name, value in zip(wanted, session.run(wanted, feed), strict=True)}


def _zeros(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> tuple[Shape, np.dtype[np.generic]]:
    """Return the shape and dtype of an input; zero is a token of every vocabulary."""
    tensor = value.type.tensor_type
    shape = tuple(sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim)
    return shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
