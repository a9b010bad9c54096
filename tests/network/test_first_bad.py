from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgetl.errors import BadInput
from edgetl.explain.first_bad import FileAnswers, common, first_bad
from edgetl.explain.onnx_graph import Graph, Node, read_graph
from edgetl.network.hooked import TorchAnswers
from edgetl.network.network import Network, create
from edgetl.network.to_onnx import to_onnx
from edgetl.stages.debug_parity import LIMITS
from edgetl.types import Array, Feed

pytestmark = pytest.mark.xdist_group("first_bad")  # what the fixture exports is exported once

TOLERANCE, LIMIT = LIMITS["fp32"], LIMITS["int8"]


class Exported(NamedTuple):
    """A network whose every layer matters, its file and some inputs; a layer in its middle."""

    net: Network
    file: bytes
    feed: Feed
    layer: str
    least: int  # values of the file that torch tells too


SMALL = {
    "hf_vit": ({"num_hidden_layers": 3}, "layers.1.ffn.down/MatMul", 35),
    "hf_bert": ({"num_hidden_layers": 3}, "layers.1.ffn.down/MatMul", 35),
    "resnet_cifar": ({"depth": 14}, "layers.2.0.second.conv/Conv", 20),
}


@pytest.fixture(scope="module", params=SMALL)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    sizes, layer, least = SMALL[request.param]
    net = create(request.param, sizes, ["a", "b", "c"], 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.module.parameters():
            weight.add_(0.15 * torch.randn(weight.shape, generator=draw))
    path = tmp_path_factory.mktemp("base") / "base.onnx"
    to_onnx(net, path)
    feed = {k: v.numpy() for k, v in net.family.example(net.config, 2).items()}
    return Exported(net, path.read_bytes(), feed, layer, least)


def corrupted(file: bytes, weight: str, seed: int) -> bytes:
    model = onnx.load_from_string(file)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(seed).standard_normal(values.shape).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values + noise, weight))
    return model.SerializeToString()


def matrices(file: bytes) -> dict[str, str]:
    """The weight of every linear layer in a file, and the module that reads it."""
    graph = read_graph(file)
    modules = graph.modules()
    return {
        name: modules[node.outputs[0]]
        for node in graph.nodes
        if node.op in ("MatMul", "Gemm", "Conv")
        for name in node.inputs
        if name in graph.weights and len(graph.weights[name].shape) > 1
    }


def test_a_good_file_has_no_bad_module(exported: Exported) -> None:
    net, file, feed = exported[:3]
    graph = read_graph(file)
    torch_side, tried = TorchAnswers(net, graph, feed), FileAnswers(file, {}, feed)
    found = first_bad(graph, torch_side.seen, torch_side, tried, TOLERANCE)
    assert found.module is None
    assert found.runs == 1
    right, answers = torch_side.values(torch_side.seen), tried.values(torch_side.seen)
    assert len(right) >= exported.least, "most layers of the network are seen in the file"
    for name, value in right.items():
        np.testing.assert_allclose(answers[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_ten_random_corrupted_layers_are_named(exported: Exported) -> None:
    net, file, feed = exported[:3]
    graph, layers = read_graph(file), matrices(file)
    torch_side = TorchAnswers(net, graph, feed)
    most = math.ceil(math.log2(len(torch_side.seen))) + 1
    for i, weight in enumerate(np.random.default_rng(2).choice(sorted(layers), 10, replace=False)):
        tried = FileAnswers(corrupted(file, weight, i), {}, feed)
        found = first_bad(graph, torch_side.seen, torch_side, tried, TOLERANCE)
        assert found.module == layers[weight], weight
        assert found.difference > TOLERANCE
        assert found.runs <= most


def test_two_files_are_compared_without_torch(exported: Exported) -> None:
    _, file, feed, layer, _ = exported
    graph, layers = read_graph(file), matrices(file)
    weight = next(name for name, module in layers.items() if module == layer.rpartition("/")[0])
    bad = corrupted(file, weight, 0)
    right, tried = FileAnswers(file, {}, feed), FileAnswers(bad, {}, feed)
    found = first_bad(graph, common(read_graph(bad), graph), right, tried, TOLERANCE)
    assert found.module == layer.rpartition("/")[0]
    assert found.runs <= math.ceil(math.log2(len(graph.nodes))) + 1


class Samples:
    """Calibration data for ONNX Runtime's quantiser."""

    def __init__(self, feed: Feed) -> None:
        self.left = [dict(feed)]

    def get_next(self) -> dict[str, Array] | None:
        return self.left.pop() if self.left else None


def test_a_wrong_zero_point_in_an_int8_file_is_named(exported: Exported, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    _, file, feed, layer, _ = exported
    (tmp_path / "base.onnx").write_bytes(file)
    quantize_static(
        tmp_path / "base.onnx", tmp_path / "int8.onnx", Samples(feed), per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    right, reference = FileAnswers(file, {}, feed), read_graph(file)
    good = (tmp_path / "int8.onnx").read_bytes()
    kept = first_bad(read_graph(good), common(read_graph(good), reference), right, FileAnswers(good, {}, feed), LIMIT)
    assert kept.module is None, "rounding stays within the limit"
    bad = wrong_zero_point(good, layer)
    graph = read_graph(bad)
    found = first_bad(graph, common(graph, reference), right, FileAnswers(bad, {}, feed), LIMIT)
    assert found.module == layer.rpartition("/")[0]
    assert found.runs <= math.ceil(math.log2(len(reference.nodes))) + 1


def wrong_zero_point(file: bytes, reader: str) -> bytes:
    """Move the zero point with which the first input of a node is dequantized, by half the range."""
    model = onnx.load_from_string(file)
    value = next(n.input[0] for n in model.graph.node if n.name == reader)
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == value)
    point = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[2]))
    moved = (point.astype(np.int64) + 128) % 256
    model.graph.initializer.append(numpy_helper.from_array(moved.astype(np.uint8), "moved"))
    node.input[2] = "moved"
    return model.SerializeToString()


class Scripted:
    """A network whose values are numbers."""

    def __init__(self, numbers: Mapping[str, float]) -> None:
        self.numbers, self.asked = numbers, 0

    def values(self, names: Collection[str]) -> Mapping[str, Array]:
        self.asked += 1
        return {name: np.array([self.numbers[name]]) for name in names}


def test_networks_of_other_answers_are_refused() -> None:
    graph = Graph((Node("head/Gemm", "Gemm", ("x",), ("logits",)),), {}, ("logits",))

    class Wider(Scripted):
        def values(self, names: Collection[str]) -> Mapping[str, Array]:
            return {name: np.zeros(3) for name in names}

    with pytest.raises(BadInput, match="other shapes"):
        first_bad(graph, {"logits"}, Scripted({"logits": 1.0}), Wider({}), 0.1)


def test_a_value_that_is_no_number_is_wrong() -> None:
    nodes = tuple(Node(f"m{i}/Op", "Op", (f"v{i - 1}",), (f"v{i}",)) for i in range(4))
    graph, good = Graph(nodes, {}, ("v3",)), {f"v{i}": 1.0 for i in range(4)}
    bad = good | {"v2": math.nan, "v3": math.nan}
    found = first_bad(graph, set(good), Scripted(good), Scripted(bad), 0.1)
    assert (found.module, found.difference) == ("m2", math.inf)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_only_wrong_node_of_any_graph_is_found(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 40))
    rest = [data.draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=3)) for i in range(1, size)]
    before = [[-1], *rest]
    unread = (i for i in range(size - 1) if not any(i in later for later in before[i + 1 :]))
    before[-1] = sorted({*before[-1], *unread})
    nodes = [Node(f"m{i}/Op", "Op", tuple(f"v{k}" for k in ins), (f"v{i}",)) for i, ins in enumerate(before)]
    graph = Graph(tuple(nodes), {}, (f"v{size - 1}",))
    wrong = data.draw(st.integers(0, size - 1))
    good = {f"v{i}": 1.0 for i in range(size)}
    spoilt = {wrong}
    for i in range(wrong + 1, size):
        if spoilt & set(before[i]):
            spoilt.add(i)
    bad = good | {f"v{i}": 2.0 for i in spoilt}
    hidden = data.draw(st.sets(st.integers(0, size - 2)))
    seen = {f"v{i}" for i in range(size) if i not in hidden}
    right, tried = Scripted(good), Scripted(bad)
    found = first_bad(graph, seen, right, tried, 1e-3)
    assert tried.asked == right.asked == found.runs <= math.ceil(math.log2(len(seen))) + 1
    first = found.value
    assert first in seen
    assert bad[first] == 2.0
    # All that is seen and feeds it past what is hidden is right.
    waiting = list(before[int(first[1:])])
    while waiting:
        i = waiting.pop()
        if f"v{i}" in seen:
            assert bad[f"v{i}"] == 1.0
        elif i >= 0:
            waiting += before[i]
