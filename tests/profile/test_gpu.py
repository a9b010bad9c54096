from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.device import fingerprint, probe
from edgetl.errors import BadHost
from edgetl.measure import gpu, placement
from edgetl.measure._placement import fallen
from edgetl.measure.gpu import Facts, Nvml
from edgetl.measure.instruments import Instruments, Readings
from edgetl.measure.measurement import Measurement


class Driver(Exception):
    """What the library raises."""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVML with three GPUs, numbered otherwise than CUDA numbers them; `read` is what was asked of which."""
    buses = {b"0000:65:00.0": 2}
    uuids = {b"GPU-b": 1}
    made = SimpleNamespace(
        NVMLError=Driver,
        count=3,
        why=0x1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByPciBusId=buses.__getitem__,
        nvmlDeviceGetHandleByUUID=uuids.__getitem__,
        nvmlDeviceGetName=lambda gpu: f"card {gpu}".encode(),
        nvmlDeviceGetUUID=lambda gpu: f"GPU-{'abc'[gpu]}",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetVbiosVersion=lambda gpu: f"vbios {gpu}",
        nvmlDeviceGetTotalEnergyConsumption=lambda _gpu: 5_000,
        nvmlDeviceGetComputeRunningProcesses=lambda _gpu: [
            SimpleNamespace(pid=7, usedGpuMemory=300), SimpleNamespace(pid=8, usedGpuMemory=None)
        ],
        nvmlDeviceGetClockInfo=lambda _gpu, _kind: 1500,
    )  # fmt: skip
    made.nvmlDeviceGetCount = lambda: made.count
    made.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _gpu: made.why
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    return made


def absent(_name: str) -> None:
    raise OSError("no driver")


def cuda(_name: str) -> SimpleNamespace:
    """The driver of CUDA, whose first GPU is the one on bus 65."""

    def address(text: ctypes.Array[ctypes.c_char], _size: int, _gpu: ctypes.c_int) -> int:
        text.value = b"0000:65:00.0"
        return 0

    return SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=lambda _gpu, _i: 0, cuDeviceGetPCIBusId=address)


def test_the_gpu_is_the_one_that_cuda_uses(library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml.found() is None, "one of three, without a word of which"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-a")
    assert facts() == Facts("card 1", "580.1", "GPU-b", "vbios 1")
    monkeypatch.setattr(ctypes, "CDLL", cuda)
    assert facts() == Facts("card 2", "580.1", "GPU-c", "vbios 2")
    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    library.count = 1
    assert facts() == Facts("card 0", "580.1", "GPU-a", "vbios 0")


def facts() -> Facts | None:
    found = Nvml.found()
    return found.facts() if found else None


def test_a_driver_that_does_not_answer_is_not_available(library: SimpleNamespace) -> None:
    def broken(*_: object) -> None:
        raise Driver("lost")

    library.count = 1
    found = Nvml.found()
    assert found is not None
    library.nvmlDeviceGetVbiosVersion = broken
    assert found.facts() == Facts("card 0", "580.1", "GPU-a", None)
    library.nvmlDeviceGetName = library.nvmlDeviceGetClockInfo = broken
    library.nvmlDeviceGetCurrentClocksThrottleReasons = broken
    library.nvmlDeviceGetComputeRunningProcesses = library.nvmlDeviceGetTotalEnergyConsumption = broken
    assert (found.facts(), found.mhz(), found.reasons(), found.memory(7)) == (None, None, None, None)
    with pytest.raises(OSError, match="lost"):
        found.joules()
    library.nvmlInit = broken
    assert Nvml.found() is None


def test_the_fingerprint_knows_the_gpu_of_a_device_that_has_one(library: SimpleNamespace) -> None:
    library.count = 1
    cpu, card = probe(), probe().model_copy(update={"kind": "cuda"})
    assert (gpu.facts("cpu"), gpu.facts("cuda")) == (None, facts())
    before, plain = fingerprint(card, "onnxruntime 1"), fingerprint(cpu, "onnxruntime 1")
    library.nvmlSystemGetDriverVersion = lambda: "590.0"
    assert fingerprint(card, "onnxruntime 1") != before
    assert fingerprint(cpu, "onnxruntime 1") == plain


def test_memory_clocks_and_reasons_are_read_meanwhile(library: SimpleNamespace) -> None:
    library.count, library.why = 1, 0x20
    card = Nvml.found()
    assert card is not None
    assert card.joules() == 5
    assert (card.memory(7), card.memory(8), card.memory(9)) == (300, None, None)
    seen, watch = Readings(), Instruments(None, card, clocks=card)
    seen.take(watch, 7)
    now = seen.reasons[0][0]
    assert (seen.gpu_peak, watch.period_s) == (300, 0.01)
    assert (seen.why_slow(now, now), seen.why_slow(0, now - 1)) == ([0x20], [])
    assert seen.mhz(0, now + 10**9) == [1500]


@pytest.mark.parametrize(
    ("reasons", "flags", "verdict", "named"),
    [
        ([0x1, 0x0], [], "clean", ()),
        ([0x8], ["throttled"], "invalid", ("hardware_slowdown",)),
        ([0x20, 0x40], ["throttled"], "invalid", ("software_thermal", "hardware_thermal")),
        ([0x4, *[0x0] * 9], ["power_cap"], "noisy", ("power_cap",)),
        ([0x4, *[0x0] * 99], [], "clean", ("power_cap",)),
    ],
)
def test_why_the_clocks_of_a_gpu_were_low(
    replay: Callable[..., Measurement], reasons: list[int], flags: list[str], verdict: str, named: tuple[str, ...]
) -> None:
    one = replay([[5] * 64] * 3, reasons=reasons)
    assert (one.noise.flags, one.verdict, one.noise.clock_reasons) == (flags, verdict, named)


def test_gpu_memory_in_the_measurement(replay: Callable[..., Measurement]) -> None:
    one = replay([[5] * 64] * 3, gpu_peak=300).memory
    assert (one.gpu_peak_bytes, one.gpu_method) == (300, "nvml")


def test_nodes_that_compute_on_the_cpu_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make("everywhere", 32, 2)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, pixel_values=np.ones((2, 1, 8, 8), np.float32))
    nodes = placement.fallen(bundle, inputs)  # a profile of this machine's CPU: all that compute are there
    assert len(nodes) >= 3
    assert any("MatMul" in name for name in nodes)
    with pytest.raises(BadHost, match=r"x: 3 nodes fell back to the CPU: \S+, \S+, \S+\n"):
        placement.check("x", nodes[:3])
    with pytest.raises(BadHost, match=r"7 nodes .* and 2 more"):
        placement.check("x", list("abcdefg"))
    placement.check("x", [])


def test_shapes_on_the_cpu_are_no_fallback(tmp_path: Path) -> None:
    import onnxruntime

    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Reshape", ["h", "s"], ["y"], name="again"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.enable_profiling, settings.profile_file_prefix = True, str(tmp_path / "nodes")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((2, 4), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    assert fallen(events) == ["product", "again"]
    for event in events:
        if event["name"].startswith("product"):
            event["args"]["provider"] = "CUDAExecutionProvider"
    assert fallen(events) == ["again"]


def test_a_bundle_for_the_cpu_is_not_asked(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetl.bundle import open_bundle
    from edgetl.measure.summary import Subject

    monkeypatch.setattr(placement, "fallen", lambda *_: ["node"])
    subject = Subject(open_bundle(make("plain")), "0" * 64, "x", Path(), {}, 1)
    on_gpu = probe().model_copy(update={"kind": "cuda"})
    placement.require(subject, on_gpu)  # its manifest opens it on the CPU, which `check_provider` refuses
    subject.bundle.manifest["session"]["provider"] = "cuda"
    placement.require(subject, probe())
    with pytest.raises(BadHost, match="fell back"):
        placement.require(subject, on_gpu)
