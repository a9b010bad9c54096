from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgetl import cli
from edgetl.bundle import open_bundle, read_golden, write_bundle
from edgetl.errors import BadHost, BadInput, Refused
from edgetl.explain import explained
from edgetl.explain._explain import Kernel
from edgetl.explain.attribution import origins
from edgetl.explain.causes import causes
from edgetl.explain.onnx_graph import Graph, Node, read_graph
from edgetl.measure import measurement
from edgetl.stages import explain as stage
from edgetl.stages.explain import explain

Maker = Callable[..., Path]
SCHEMA = json.loads((Path(measurement.__file__).parents[1] / "schemas" / "explain-1.json").read_text())
CPU = "CPUExecutionProvider"


def convolutional(channels: int) -> onnx.ModelProto:
    """A stem, two blocks of which the second is much wider inside, and a head, named as edgetl names nodes."""
    draw = np.random.default_rng(0)
    shapes = {"stem": (channels, 1, 3, 3), "layers.0.conv": (16, channels, 3, 3), "layers.1.conv": (256, 16, 3, 3),
              "layers.1.down": (16, 256, 3, 3), "head": (10, 16)}  # fmt: skip
    weights = {name: (0.1 * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    nodes, last = [], "pixel_values"
    for name in list(shapes)[:-1]:
        nodes.append(helper.make_node("Conv", [last, name], [f"{name}:c"], f"{name}/Conv", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}:c"], [f"{name}:r"], f"{name}.act/Relu"))
        last = f"{name}:r"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "network/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "network/Flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], "head/Gemm", transB=1),
    ]
    ends = [
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, n) for n, w in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rewritten(bundle: Path, model: onnx.ModelProto, folder: Path) -> Path:
    """The bundle with another model."""
    opened = open_bundle(bundle)
    file = folder.parent / "other.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    write_bundle(
        folder, {k: v for k, v in opened.manifest.items() if k != "golden"}, {"model.onnx": file}, read_golden(opened)
    )
    return folder


@pytest.fixture(scope="module")
def named(make: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewritten(make("named"), convolutional(16), tmp_path_factory.mktemp("named") / "onnx-fp32")


def test_the_widest_layers_take_most_of_the_time(named: Path, tmp_path: Path) -> None:
    [one] = explain([named], "local", tmp_path)
    share = {part.module: part.share for part in one.modules}
    assert set(share) >= {"stem", "layers.0.conv", "layers.1.conv", "layers.1.down", "head"}
    assert share["layers.1.conv"] + share["layers.1.down"] > 0.5
    assert sum(share.values()) == pytest.approx(1)
    assert one.modules[0].module == "stem"
    assert one.operators[0].module in ("layers.1.conv", "layers.1.down")
    assert one.call_ms > one.empty_call_ms > 0
    assert [block for block, _ in explained.blocks(one.modules)][:3] == ["stem", "layers.0", "layers.1"]
    [file] = tmp_path.glob("*/explain/*.json")
    jsonschema.validate(json.loads(file.read_text()), SCHEMA)
    assert explained.read(file) == one


def test_a_file_of_other_origin_has_operators_without_modules(make: Maker) -> None:
    [one] = explain([make("unnamed")], "local", None)
    assert [part.module for part in one.modules] == [""]
    assert "export it again" in explained.text(one)


def test_another_machine_and_other_targets_are_told(named: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--explain does not reach rpi5 over ssh://pi@rpi5.local"):
        explain([named], "rpi5", None)
    other = tmp_path / "other"
    shutil.copytree(named, other)
    opened = open_bundle(named)
    manifest = {k: v for k, v in opened.manifest.items() if k != "golden"} | {"target": "openvino"}
    write_bundle(other, manifest, {"model.onnx": named / "model.onnx"}, read_golden(opened))
    with pytest.raises(BadInput, match="no bundle is for ONNX Runtime"):
        explain([other], "local", None)


def test_a_process_that_dies_or_refuses_is_an_error_of_ours(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stage.Job(str(named / "missing"), str(named), None)
    with pytest.raises(BadInput):
        stage._child(job, "x")
    monkeypatch.setattr(stage, "START", "import os; os.abort()")
    with pytest.raises(Refused, match="crashed the runtime"):
        stage._child(job, "x")
    monkeypatch.setattr(stage, "START", "import sys; sys.exit(9)")
    with pytest.raises(BadHost, match="code 9"):
        stage._child(job, "x")


def test_the_command_prints_it_and_keeps_it_apart_from_measurements(
    named: Path, tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["profile", str(named), "--mode", "quick", "--explain", "--no-judge", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(cli.app, [*command, "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["explained"][0]["bundle_sha256"] == found["measurements"][0]["bundle"]["sha256"]
    assert [p.parent.name for p in (tmp_path / "out").rglob("*.json")].count("explain") == 1


def test_a_fused_node_stands_for_all_that_leads_to_its_value() -> None:
    file = Graph(
        (
            Node("a/Conv", "Conv", ("x", "w"), ("c",)),
            Node("a.act/Relu", "Relu", ("c",), ("r",)),
            Node("b/MatMul", "MatMul", ("r", "v"), ("m",)),
            Node("b/Add", "Add", ("m", "bias"), ("s",)),
            Node("b.act/Gelu", "Gelu", ("s",), ("g",)),
            Node("head/Gemm", "Gemm", ("g", "h"), ("logits",)),
        ),
        {},
        ("logits",),
    )
    optimised = Graph(
        (
            Node("r_nchwc", "Conv", ("x", "reorder"), ("reorder_token_0",)),
            Node("ReorderOutput", "ReorderOutput", ("reorder_token_0",), ("r",)),
            Node("b/MatMul", "MatMul", ("r", "v"), ("m",)),
            Node("BiasGelu_token_2", "BiasGelu", ("m", "bias"), ("g",)),
            Node("Transpose_token_7", "Transpose", ("g",), ("t",)),
            Node("head/Gemm_token_1", "Gemm", ("t", "h"), ("logits",)),
        ),
        {},
        ("logits",),
    )
    found = origins(file, optimised)
    assert {name: (o.module, o.node and o.node.op) for name, o in found.items()} == {
        "r_nchwc": ("a", "Conv"),
        "ReorderOutput": ("a", None),
        "b/MatMul": ("b", "MatMul"),
        "BiasGelu_token_2": ("b.act", "Gelu"),
        "Transpose_token_7": ("b.act", None),
        "head/Gemm_token_1": ("head", "Gemm"),
    }


def kernel(op: str, us: float = 10, **changes: object) -> Kernel:
    facts: dict[str, object] = {
        "name": op, "module": "layers.0", "provider": CPU, "types": ("float", "float"), "node": op, "group": 0,
        "weight": (64, 64) if op in ("MatMul", "Gemm") else (), **changes,
    }  # fmt: skip
    return Kernel(op=op, us=us, **facts)  # type: ignore[arg-type]


QUANTIZED = {"node": "Conv", "types": ("uint8", "float"), "group": 1, "weight": (32, 32, 3, 3)}


@pytest.mark.parametrize(
    ("kind", "kernels"),
    [
        ("fallback", [kernel("MatMul"), kernel("Softmax", provider="CUDAExecutionProvider")]),
        ("reformat", [kernel("MatMul"), kernel("ReorderOutput", node="")]),
        ("reformat", [kernel("MatMul"), kernel("Transpose", node="")]),
        ("quantize", [kernel("MatMul"), kernel("QuantizeLinear")]),
        ("float island", [kernel("QLinearConv", **QUANTIZED), kernel("MatMul")]),
        ("depthwise int8", [kernel("QLinearConv", **(QUANTIZED | {"group": 32, "weight": (32, 1, 3, 3)}))]),
        ("width", [kernel("MatMul"), kernel("Conv", group=1, weight=(24, 16, 3, 3))]),
        ("width", [kernel("Gemm", weight=(64, 40))]),
    ],
)
def test_each_cause_is_told_with_its_share_and_fix(kind: str, kernels: list[Kernel]) -> None:
    found = causes(kernels, CPU, 0.0)
    assert [cause.kind for cause in found] == [kind]
    assert found[0].share == pytest.approx(1 / len(kernels))
    assert "layers.0" in found[0].says
    assert found[0].fix
    louder = [*kernels, kernel("Softmax", 1e4)]
    assert causes(louder, CPU, 0.0) == [], "a small share is no cause"


def test_nothing_is_told_of_a_file_without_a_fault() -> None:
    assert causes([kernel("MatMul"), kernel("Softmax"), kernel("Transpose", node="Transpose")], CPU, 0.01) == []


def test_the_runtimes_own_share_is_a_cause() -> None:
    [found] = causes([kernel("MatMul")], CPU, 0.4)
    assert found.kind == "overhead"
    assert "40 %" in found.says


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have signed kernels")
def test_signed_activations_have_no_fast_kernel_on_x86() -> None:
    signed = kernel("QLinearConv", **(QUANTIZED | {"types": ("int8", "float")}))
    assert [cause.kind for cause in causes([signed], CPU, 0.0)] == ["signed int8"]


def test_conversions_and_floats_in_a_real_int8_file_are_found(make: Maker, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    class Samples:
        def __init__(self) -> None:
            self.left = [{"pixel_values": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    onnx.save(convolutional(16), tmp_path / "base.onnx")
    quantize_static(tmp_path / "base.onnx", tmp_path / "int8.onnx", Samples(), activation_type=QuantType.QUInt8,
                    op_types_to_quantize=["Conv"], nodes_to_exclude=["layers.1.conv/Conv"])  # fmt: skip
    bundle = rewritten(make("quantized"), onnx.load(tmp_path / "int8.onnx"), tmp_path / "bundle" / "onnx-int8")
    [one] = explain([bundle], "local", None)
    found = {cause.kind: cause for cause in one.causes}
    assert "layers.1.conv" in found["float island"].says
    assert "quantize" in found
    assert {part.module for part in one.modules} >= {"stem", "layers.0.conv", "layers.1.conv", "layers.1.down"}


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_break_the_reader(noise: bytes, place: int) -> None:
    whole = convolutional(4).SerializeToString()
    for data in (noise, whole[:place] + noise + whole[place:]):
        try:
            graph = read_graph(data)
        except Refused:
            continue
        assert set(graph.modules()) >= set(graph.producers())


def test_the_reader_agrees_with_onnx_and_refuses_all_else() -> None:
    model = convolutional(24)
    graph = read_graph(model.SerializeToString())
    assert [(n.name, n.op, list(n.inputs), list(n.outputs)) for n in graph.nodes] == [
        (n.name, n.op_type, list(n.input), list(n.output)) for n in model.graph.node
    ]
    assert {k: w.shape for k, w in graph.weights.items()} == {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert graph.outputs == ("logits",)
    for data in (b"\x3a\x7f\x01", b"\xff" * 30, b"\x3a\x02\x0a\x05"):
        with pytest.raises(Refused):
            read_graph(data)
