"""Tiny networks of every kind as base ONNX files, with inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.network.network import create
from edgetl.network.to_onnx import to_onnx
from edgetl.types import Feed

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
NETWORKS = {
    "vit": ("hf_vit", {"image_size": 8, "patch_size": 4, "num_channels": 1, **TRANSFORMER}),
    "bert": ("hf_bert", {"vocab_size": 50, "max_position_embeddings": 48, **TRANSFORMER}),
    "resnet_cifar": ("resnet_cifar", {"depth": 8}),
}
SHAPES = {"vit": (1, 8, 8), "resnet_cifar": (3, 32, 32), "depthwise": (3, 8, 8)}
EVERY = (*NETWORKS, "depthwise")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the base ONNX file of a tiny network, made once."""
    folder = tmp_path_factory.mktemp("networks")

    def made(name: str) -> Path:
        file = folder / name / "base.onnx"
        if name == "depthwise" and not file.is_file():
            file.parent.mkdir()
            file.write_bytes(depthwise().SerializeToString())
        if not file.is_file():
            family, sizes = NETWORKS[name]
            to_onnx(create(family, sizes, ("a", "b", "c"), 0), file)
        return file

    return made


def depthwise() -> onnx.ModelProto:
    """Return a full, a depthwise and a pointwise convolution with biases, and a classifier."""
    random = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (32, 16, 1, 1), "w4": (32, 3), "b1": (16,), "b4": (3,)}
    held = [numpy_helper.from_array(random.normal(size=s).astype(np.float32) / 4, n) for n, s in shapes.items()]
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["pixel_values", "w1", "b1"], ["a"], "full/Conv", **pads),
        helper.make_node("Relu", ["a"], ["b"], "full/Relu"),
        helper.make_node("Conv", ["b", "w2", "b1"], ["c"], "depthwise/Conv", group=16, **pads),
        helper.make_node("Conv", ["c", "w3"], ["d"], "pointwise/Conv"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["e"], ["f"], "pool/Flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["logits"], "head/Gemm"),
    ]
    x = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "edgetl", [x], [y], held)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def feed(name: str, batch: int, tokens: int = 9, seed: int = 0) -> Feed:
    """Return a batch of random inputs; of every second text, the last two tokens are padding."""
    random = np.random.default_rng(seed)
    if name != "bert":
        return {"pixel_values": random.normal(size=(batch, *SHAPES[name])).astype(np.float32)}
    mask = np.ones((batch, tokens), np.int64)
    mask[::2, max(tokens - 2, 1) :] = 0
    return {"input_ids": random.integers(0, 50, (batch, tokens)), "attention_mask": mask}


def calibration(name: str) -> tuple[Feed, ...]:
    """Return enough batches to calibrate a network on."""
    return tuple(feed(name, 8, tokens=5 + 4 * i, seed=i) for i in range(4))
