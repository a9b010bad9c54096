"""Files for TensorRT: engines are really built where the package is; running is tested with a stand-in for a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.recipe.schema import Material
from edgetl.targets import _cuda, _engine, _sealed_cache
from edgetl.targets._engine import Most
from edgetl.targets.trt import Trt
from tests.targets import stand_in
from tests.targets.conftest import EVERY, calibration, feed

has_rtx = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason='needs tensorrt_rtx: pip install "edgetl[trt-rtx]"'
)


def no_gpu() -> bool:
    try:
        _cuda.Gpu().close()
    except BadHost:
        return True
    return False


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgetl" / "engines"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> stand_in.Machine:
    """A machine with a GPU and TensorRT that multiply the sum of all inputs by 2, and count what they do."""
    machine = stand_in.Machine()
    monkeypatch.setitem(sys.modules, "tensorrt", machine.tensorrt())
    monkeypatch.setattr(_cuda, "_driver", machine.driver)
    return machine


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])
    node = onnx.helper.make_node("Add", ["x", "x"], ["logits"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out])).SerializeToString()


def lowered(base: Path, folder: Path, precision: str, floats: frozenset[str] = frozenset()) -> Path:
    folder.mkdir(exist_ok=True)
    material = Material(calibration(base.parent.name), floats)
    return folder / Trt(precision=precision).lower(base, folder, material)


@has_rtx
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", Trt.precisions[:-1])
def test_an_engine_is_built_from_every_file(
    name: str, precision: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    file = lowered(base(name), tmp_path / "out", precision)
    runtime = importlib.import_module("tensorrt_rtx")
    made, timings = _engine.build(runtime, file.read_bytes(), Most(batch=8, tokens=48))
    assert len(made) > 10_000
    assert timings == b""  # RTX does not time kernels
    target = Trt(precision=precision)
    assert set(target.dtypes(file, target.nodes(base(name))).values()) == (
        {precision} if precision != "fp32" else set()
    )


@has_rtx
def test_an_operator_that_it_does_not_know_is_refused_when_the_file_is_made(tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 2]) for n in ("x", "logits")]
    node = onnx.helper.make_node("Foreign", ["x"], ["logits"], domain="nobody")
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid(domain, 1 + 19 * (not domain)) for domain in ("", "nobody")]
    base = tmp_path / "base.onnx"
    base.write_bytes(onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString())
    with pytest.raises(Refused, match="Foreign"):
        Trt().lower(base, tmp_path, Material())


@has_rtx
@pytest.mark.skipif(not no_gpu(), reason="there is a GPU")
def test_without_a_gpu_files_are_judged_in_onnxruntime_and_bf16_is_not(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    inputs = feed("resnet_cifar", 7)
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        file = lowered(base("resnet_cifar"), tmp_path / precision, precision)
        session = Trt(precision=precision).judge(file, 1)
        assert session.provider == "CPUExecutionProvider"
        found[precision] = np.asarray(session.run(inputs)["logits"], np.float32)
    for precision in ("fp16", "int8"):
        assert 0 < np.abs(found[precision] - found["fp32"]).max() < 0.1 * np.abs(found["fp32"]).max()
    file = lowered(base("resnet_cifar"), tmp_path / "bf16", "bf16")
    with pytest.raises(BadHost, match="bf16 is not judged"):
        Trt(precision="bf16").judge(file, 1)
    with pytest.raises(BadHost) as caught:
        Trt.open(file, {}, 1)
    assert caught.value.code == 4
    assert "NVIDIA" in caught.value.problem


@has_rtx
def test_bf16_rounds_what_is_multiplied_and_nothing_else(base: Callable[[str], Path], tmp_path: Path) -> None:
    target = Trt(precision="bf16")
    nodes = target.nodes(base("bert"))
    back = frozenset(nodes[::2])
    file = lowered(base("bert"), tmp_path, "bf16", back)
    assert {name for name, dtype in target.dtypes(file, nodes).items() if dtype == "fp32"} == back
    inputs = dict(feed("bert", 3))
    exact, rounded = (ReferenceEvaluator(onnx.load(path)).run(None, inputs)[0] for path in (base("bert"), file))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()
    held = {tensor.name: tensor.data_type for tensor in onnx.load(file).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in held.values()
    assert not {f"{name}_bf16" for name in held} & set(held)  # no weight is there twice


def test_answers_come_from_the_engine_in_parts_of_its_batch(machine: stand_in.Machine, model: bytes) -> None:
    session = Trt.open(model, {"batch": 4, "tokens": 9}, 1)
    assert machine.shapes["x"] == ((1, 2), (1, 2), (4, 2))
    assert session.provider == "TensorRT"
    assert machine.counts["without TF32"] == 1
    for size in (1, 10, 3):
        x = np.random.default_rng(size).normal(size=(2, size)).astype(np.float32).T  # not contiguous
        np.testing.assert_array_equal(session.run({"x": x})["logits"], 2 * x)
    assert machine.counts["runs"] == 1 + 3 + 1
    assert machine.held == 2 * 4 * 2 * 4  # both ends of the largest part
    for wrong in ({"y": x}, {}, {"x": x.astype(np.float64)}, {"x": x[:, :1]}, {"x": x[:0]}):
        with pytest.raises(BadInput):
            session.run(wrong)
    session.close()
    session.close()
    assert machine.held == 0
    with pytest.raises(BadInput, match="closed"):
        session.run({"x": x})


def test_a_gpu_without_memory_is_told(machine: stand_in.Machine, model: bytes) -> None:
    session = Trt.open(model, {"batch": 2**20}, 1)
    with pytest.raises(OutOfResources, match="no memory"):
        session.run({"x": np.ones((10**6, 2), np.float32)})
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 2), np.float32)})["logits"], [[2, 2]])


def test_an_engine_is_built_once_for_a_file_a_driver_and_its_sizes(machine: stand_in.Machine, model: bytes) -> None:
    for _ in range(2):
        Trt.open(model, {}, 1).close()
    assert machine.counts["builds"] == 1
    Trt.open(model, {"batch": 8}, 1).close()
    assert machine.counts["builds"] == 2
    machine.driver_version += 10
    Trt.open(model, {}, 1).close()
    assert machine.counts["builds"] == 3


def test_an_engine_that_was_changed_is_never_loaded(
    machine: stand_in.Machine, model: bytes, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Trt.open(model, {}, 1).close()
    (kept,) = own_cache.glob("*.engine")
    whole = kept.read_bytes()
    planted = (
        whole[:-1] + b"X",  # a byte differs
        whole[: _sealed_cache.SIZE] + stand_in.HEAD + b"evil",
        stand_in.HEAD + b"evil",  # no MAC
        b"",
    )
    assert next(own_cache.glob("*.timings"))
    for builds, data in enumerate(planted, 2):
        kept.write_bytes(data)
        Trt.open(model, {}, 1).close()
        assert machine.counts["builds"] == builds
    assert "made again" in caplog.text
    assert not any(plan.endswith((b"X", b"evil")) or not plan for plan in machine.loaded)
    assert kept.read_bytes() != planted[-1]


def test_an_engine_under_another_name_is_never_loaded(machine: stand_in.Machine, model: bytes, own_cache: Path) -> None:
    Trt.open(model, {"batch": 1}, 1).close()
    (one,) = own_cache.glob("*.engine")
    Trt.open(model, {"batch": 2}, 1).close()
    (other,) = set(own_cache.glob("*.engine")) - {one}
    other.write_bytes(one.read_bytes())
    Trt.open(model, {"batch": 2}, 1).close()
    assert machine.counts["builds"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_the_key_is_this_users_alone(machine: stand_in.Machine, model: bytes, own_cache: Path) -> None:
    Trt.open(model, {}, 1).close()
    key = own_cache / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert own_cache.stat().st_mode & 0o777 == 0o700
    before = key.read_bytes()
    key.chmod(0o644)  # others may have read it, and made engines with it
    Trt.open(model, {}, 1).close()
    assert machine.counts["builds"] == 2
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_cache_that_cannot_be_written_costs_time_only(
    machine: stand_in.Machine, model: bytes, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file in its place")
    for _ in range(2):
        session = Trt.open(model, {}, 1)
        np.testing.assert_array_equal(session.run({"x": np.ones((1, 2), np.float32)})["logits"], [[2, 2]])
    assert machine.counts["builds"] == 2
    assert "cannot be kept" in caplog.text


def test_a_file_that_tensorrt_cannot_read_is_refused(machine: stand_in.Machine, model: bytes) -> None:
    for data, said in ((model.replace(b"Add", b"Sub"), "layer/Sub .Sub.: no plugin"), (bytes(100), "no network")):
        with pytest.raises(Refused, match=said) as caught:
            Trt.open(data, {}, 1)
        assert "\n" not in caught.value.problem


@pytest.mark.parametrize("options", [{"batch": 0}, {"tokens": True}, {"batch": 2**40}, {"plan": "x"}, {"batch": "4"}])
def test_options_of_a_manifest_are_checked_first(options: dict[str, object], model: bytes) -> None:
    with pytest.raises(Refused):
        Trt.open(model, options, 1)


def test_a_missing_or_old_library_says_what_to_install(
    machine: stand_in.Machine, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.1")
    with pytest.raises(BadHost, match="strongly typed") as caught:
        Trt.open(model, {}, 1)
    assert 'pip install --upgrade "tensorrt>=10"' in caught.value.fix
    for name in _engine.LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadHost) as caught:
        Trt.open(model, {}, 1)
    assert caught.value.fix == 'pip install "edgetl[trt]" or, for a GeForce RTX, pip install "edgetl[trt-rtx]"'
    with pytest.raises(ImportError):  # what `doctor` asks
        Trt.runtime()


def test_auto_tries_what_the_device_is_quick_in() -> None:
    found = [one.precision for one in Trt(precision="auto").candidates(("fp32", "int8", "fp16"))]
    assert found == ["fp32", "fp16", "int8"]
    with pytest.raises(ValueError, match="at least 1"):
        Trt(batch=0)
