from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.network import cost
from edgetl.network.network import create
from edgetl.network.to_onnx import node_costs, to_onnx


def saved(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_weights_and_activations_are_told_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "turn"),
        helper.make_node("MatMul", ["x", "t"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["m"], "second"),
        helper.make_node("Gemm", ["m", "v", "b"], ["logits"], "last"),
    ]
    square = np.ones((8, 8), np.float32)
    path = saved(tmp_path / "m.onnx", nodes, {"w": square, "v": square, "b": np.ones(8, np.float32)})
    found = {n["name"]: n for n in node_costs(path, {"batch": 1})}
    assert list(found) == ["first", "second", "last"]
    assert found["first"]["weight_bytes"] == 256
    assert found["second"]["weight_bytes"] == 0  # the same weight again
    assert found["last"]["weight_bytes"] == 256 + 32
    assert all(n["activation_bytes"] == 2 * 8 * 4 for n in found.values())
    assert all(n["bytes"] == n["weight_bytes"] + n["activation_bytes"] for n in found.values())


@pytest.mark.parametrize("family", ["hf_vit", "hf_bert"])
def test_a_real_file_accounts_for_its_layers(tmp_path: Path, family: str) -> None:
    net = create(family, {"num_hidden_layers": 1}, ["a", "b"], 0)
    to_onnx(net, tmp_path / "base.onnx")
    found = node_costs(tmp_path / "base.onnx", {"batch": 1, "tokens": 16})
    assert sum(n["macs"] for n in found) == cost.macs(net, 16 if family == "hf_bert" else None)
    layers = 4 * 4 * 64 * 64 + 2 * 4 * 64 * 128 + 4 * 64 * 2  # attention, feed-forward and head
    assert layers <= sum(n["weight_bytes"] for n in found) <= 4 * cost.parameters(net)
    assert sum(n["weight_bytes"] == 0 for n in found) == 2  # both products of attention
