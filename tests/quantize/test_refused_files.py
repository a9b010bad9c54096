"""Base files that no target can lower or open: an error of ours, in one line, with a way out."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.quantize import graph
from edgetl.recipe.schema import Material
from edgetl.targets.onnx import Onnx
from edgetl.targets.openvino import Openvino


def written(path: Path, op: str, *, opset: int = 20, domain: str = "") -> Path:
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "logits")]
    node = helper.make_node(op, ["x"], ["logits"], name="odd/node", domain=domain)
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", opset), helper.make_opsetid("nobody.knows", 1)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def test_a_model_above_2_gib_is_told_before_it_is_read(tmp_path: Path) -> None:
    large = tmp_path / "base.onnx"
    with large.open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    with pytest.raises(BadInput, match="larger than 2 GiB") as caught:
        graph.read(large)
    assert "prune" in caught.value.fix
    with pytest.raises(BadInput, match="2 GiB"):
        Onnx(precision="fp16").lower(large, tmp_path, Material())


def test_an_operator_or_opset_that_the_runtime_does_not_know_is_told(tmp_path: Path) -> None:
    for file in (
        written(tmp_path / "op.onnx", "Frobnicate", domain="nobody.knows"),
        written(tmp_path / "opset.onnx", "Relu", opset=99),
    ):
        with pytest.raises(Refused) as caught:
            Onnx.open(file, {}, 1)
        assert "\n" not in caught.value.problem
        assert "onnxruntime" in caught.value.fix


def test_openvino_names_the_operator_that_it_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason='needs openvino: pip install "edgetl[openvino]"')
    odd = written(tmp_path / "op.onnx", "Frobnicate", domain="nobody.knows")
    with pytest.raises(EdgetlError) as caught:
        Openvino().lower(odd, tmp_path, Material())
    assert "\n" not in caught.value.problem
    assert "onnx" in caught.value.fix
