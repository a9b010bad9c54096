"""Whether the providers that ONNX Runtime lists really work here, and what keeps them from it. [no torch]

The paths of a GPU follow the vendors' documentation and are tested with stand-ins.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

from edgetl import _onnx_bytes
from edgetl.finding import Finding
from edgetl.versions import numbers

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
TENSORRT_LIBRARY = "capi/libonnxruntime_providers_tensorrt.so"


def acceleration() -> Iterator[Finding]:
    """Report each provider of a GPU that ONNX Runtime lists; none where it lists none, or is not installed."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return
    listed = [name for name in (CUDA, TENSORRT) if name in runtime.get_available_providers()]
    if listed:
        yield _driver(str(getattr(runtime, "cuda_version", "")))
    if TENSORRT in listed:
        yield _tensorrt(Path(str(runtime.__file__)).parent / TENSORRT_LIBRARY)
    for name in listed:
        used = _used(runtime, name)
        fix = "mend the driver and libraries above, or: pip uninstall -y onnxruntime-gpu && pip install onnxruntime"
        state = f"falls back to {used}" if used != name else "works"
        yield Finding(name, state, "good" if used == name else "broken", "" if used == name else fix)


def _used(runtime: ModuleType, provider: str) -> str:
    """Return the provider that an almost empty graph is really given when one is asked for."""
    ends = [_onnx_bytes.value(name, [1]) for name in "xy"]
    file = _onnx_bytes.model([_onnx_bytes.node("Identity", ["x"], "y")], ends[:1], ends[1:])
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    session = runtime.InferenceSession(file, settings, providers=[provider, "CPUExecutionProvider"])
    return str(session.get_providers()[0])


def _driver(built: str) -> Finding:
    """Compare the CUDA that the runtime was built for with the newest that the driver runs: the major counts."""
    what, runs = "NVIDIA driver", _driver_cuda()
    if runs is None:
        return Finding(what, "none found", "broken", "install the NVIDIA driver, and: pip install nvidia-ml-py")
    found = f"runs CUDA {'.'.join(map(str, runs))}; onnxruntime is built for CUDA {built or 'of unknown version'}"
    if built and numbers(built)[:1] > runs[:1]:
        fix = f"upgrade the driver, or install an onnxruntime-gpu that is built for CUDA {runs[0]}"
        return Finding(what, found, "broken", fix)
    return Finding(what, found, "good")


def _driver_cuda() -> tuple[int, int] | None:
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
        version = int(library.nvmlSystemGetCudaDriverVersion())
    except library.NVMLError:
        return None
    return version // 1000, version % 1000 // 10


def _tensorrt(provider: Path) -> Finding:
    """Compare the TensorRT that the provider links with the one that is installed."""
    wanted = _linked(provider)
    installed = next(filter(None, map(_version, TENSORRT_PACKAGES)), "")
    found = f"{installed or 'not installed as a package'}; onnxruntime's provider links libnvinfer.so.{wanted or '?'}"
    if wanted is None or numbers(installed)[:1] == (wanted,):
        return Finding("TensorRT", found, "good")
    fix = f'pip install "tensorrt=={wanted}.*", or use the CUDA provider'
    return Finding("TensorRT", found, "broken" if installed else "absent", fix)


def _linked(library: Path) -> int | None:
    """Return the major version of libnvinfer that a library names as its dependency."""
    try:
        found = re.search(rb"libnvinfer\.so\.(\d+)", library.read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
