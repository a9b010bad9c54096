"""What an exported attention layer is made of."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest

from edgetl.network.network import create
from edgetl.network.to_onnx import to_onnx

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES = {
    "hf_vit": {**TINY, "image_size": 8, "patch_size": 4, "num_channels": 1},
    "hf_bert": {**TINY, "vocab_size": 50, "max_position_embeddings": 16},
}


OWN = pytest.mark.skipif(
    int(version("transformers").split(".")[0]) < 5, reason="there BERT has torch's operator built in"
)


@pytest.mark.parametrize("family", ["hf_vit", pytest.param("hf_bert", marks=OWN)])
def test_attention_is_two_products_and_a_softmax_and_nothing_that_shapes_are_worked_out_by(
    family: str, tmp_path: Path
) -> None:
    net = create(family, SIZES[family], ("a", "b"), 0)
    before = [m.config._attn_implementation for m in net.module.modules() if hasattr(m, "config")]
    to_onnx(net, tmp_path / "base.onnx")
    nodes = onnx.load(tmp_path / "base.onnx").graph.node
    in_layer = Counter(node.op_type for node in nodes if node.name.startswith("layers.1."))
    assert in_layer["MatMul"] == 6 + 2  # q, k, v, o, up, down; scores and values
    assert in_layer["Softmax"] == 1
    assert not in_layer.keys() & {"IsNaN", "Where", "Slice", "Shape", "Gather"}
    assert [m.config._attn_implementation for m in net.module.modules() if hasattr(m, "config")] == before
