from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from edgetl import providers
from edgetl.finding import Finding
from edgetl.stages import doctor as module
from edgetl.stages.doctor import doctor

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Nvml(ModuleType):
    """A driver that runs CUDA up to a version, or that does not answer."""

    class NVMLError(Exception): ...

    def __init__(self, version: int | None) -> None:
        super().__init__("pynvml")
        self.version = version

    def nvmlInit(self) -> None:  # noqa: N802
        if self.version is None:
            raise self.NVMLError

    def nvmlSystemGetCudaDriverVersion(self) -> int | None:  # noqa: N802
        return self.version


class Runtime(ModuleType):
    """An onnxruntime-gpu, built for CUDA 13, that gives sessions only these providers."""

    cuda_version = "13.0"

    def __init__(self, folder: Path, works: list[str]) -> None:
        super().__init__("onnxruntime")
        self.__file__ = str(folder / "__init__.py")
        self.works = works

    def get_available_providers(self) -> list[str]:
        return GPU

    def SessionOptions(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace()

    def InferenceSession(self, file: bytes, settings: object, providers: list[str]) -> SimpleNamespace:  # noqa: N802
        assert file
        return SimpleNamespace(get_providers=lambda: [p for p in providers if p in self.works])


Machine = Callable[..., dict[str, Finding]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine(driver=, works=, tensorrt=)`: what is found on a machine with a GPU build."""

    def found(driver: int | None = 13020, works: list[str] = GPU, tensorrt: str = "10.13.3") -> dict[str, Finding]:
        library = tmp_path / providers.TENSORRT_LIBRARY
        library.parent.mkdir(exist_ok=True)
        library.write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
        monkeypatch.setitem(sys.modules, "onnxruntime", Runtime(tmp_path, works))
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(driver))
        monkeypatch.setattr(providers, "_version", lambda name: tensorrt if name == "tensorrt" else "")
        return {one.what: one for one in providers.acceleration()}

    return found


def test_a_machine_that_fits_is_good(machine: Machine) -> None:
    found = machine()
    assert {one.state for one in found.values()} == {"good"}
    assert set(found) == {"NVIDIA driver", "TensorRT", "CUDAExecutionProvider", "TensorrtExecutionProvider"}


def test_a_provider_that_falls_back_is_broken(machine: Machine) -> None:
    found = machine(works=["CPUExecutionProvider"])
    assert found["CUDAExecutionProvider"].state == "broken"
    assert "falls back to CPUExecutionProvider" in found["CUDAExecutionProvider"].found
    assert "pip install onnxruntime" in found["CUDAExecutionProvider"].fix


@pytest.mark.parametrize(("driver", "state"), [(13000, "good"), (12040, "broken"), (None, "broken")])
def test_the_driver_has_to_run_the_cuda_of_the_build(machine: Machine, driver: int | None, state: str) -> None:
    found = machine(driver=driver)["NVIDIA driver"]
    assert found.state == state
    assert bool(found.fix) == (state == "broken")
    if driver == 12040:
        assert "runs CUDA 12.4; onnxruntime is built for CUDA 13.0" in found.found


@pytest.mark.parametrize(("tensorrt", "state"), [("10.16.1", "good"), ("11.4.0.106", "broken"), ("", "absent")])
def test_tensorrt_has_to_be_the_one_that_the_provider_links(machine: Machine, tensorrt: str, state: str) -> None:
    found = machine(tensorrt=tensorrt)["TensorRT"]
    assert found.state == state
    assert "libnvinfer.so.10" in found.found
    assert ("tensorrt==10.*" in found.fix) == (state != "good")


def test_without_a_gpu_build_nothing_is_said() -> None:
    pytest.importorskip("onnxruntime")
    assert list(providers.acceleration()) == []


def test_two_flavours_of_onnxruntime_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}
    monkeypatch.setattr(module, "_version", lambda name: installed.get(name, ""))
    found = next(one for one in doctor("onnx") if one.what == "onnxruntime")
    assert found.state == "broken"
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.30.0" in found.found
    assert "pip uninstall -y" in found.fix


def test_bundles_that_the_runtime_cannot_open_are_named(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(made_run)
    monkeypatch.chdir(tmp_path)
    good = [one for one in doctor("onnx") if one.what.startswith("bundle")]
    assert len(good) >= 2
    assert {one.state for one in good} == {"good"}
    assert "opset 20" in good[0].found
    monkeypatch.setattr("edgetl.targets.onnx.Onnx.runtime", staticmethod(lambda: "onnxruntime 1.2.0"))
    old = [one for one in doctor("onnx") if one.what.startswith("bundle")]
    assert {one.state for one in old} == {"broken"}
    assert "pip install --upgrade" in old[0].fix
