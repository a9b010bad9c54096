"""TensorRT engines: built from an ONNX file where they run, kept for the next time. [no torch]

An engine is code: NVIDIA's guide forbids to load one of unknown origin. It is read from this user's own cache only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from edgetl import extras
from edgetl.errors import BadHost, Refused
from edgetl.targets import _opening, _sealed_cache
from edgetl.targets._cuda import Gpu
from edgetl.types import Json
from edgetl.versions import numbers

LIBRARIES = ("tensorrt", "tensorrt_rtx")
OLDEST = 10
"""The first major version of TensorRT whose networks can be typed by their file alone."""

FAST = {"batch": 1, "tokens": 32}
"""The sizes for which an engine is tuned, at most those that it takes."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Most:
    """The largest sizes that an engine takes; the smallest are 1."""

    batch: int
    tokens: int


def imported() -> ModuleType:
    """Import and return TensorRT, or TensorRT-RTX where only that is installed.

    Raises:
        ImportError: neither is there.

    """
    try:
        return _opening.imported(LIBRARIES[0])
    except ImportError as missing:
        try:
            return _opening.imported(LIBRARIES[1])
        except ImportError:
            raise missing from None


def library() -> ModuleType:
    """Return what `imported` does, where it builds strongly typed networks.

    Raises:
        BadHost: it is not there, or too old.

    """
    try:
        found = imported()
    except ImportError as error:
        fixes = " or, for a GeForce RTX, ".join(filter(None, map(extras.install, LIBRARIES)))
        raise BadHost(f"TensorRT is not installed or broken: {_opening.first_line(error)}", fix=fixes) from error
    if found.__name__ == LIBRARIES[0] and numbers(found.__version__)[:1] < (OLDEST,):
        fix = f'pip install --upgrade "tensorrt>={OLDEST}", or JetPack 6.1 on a Jetson'
        raise BadHost(f"tensorrt {found.__version__} builds no strongly typed networks of today's ONNX", fix=fix)
    return found


def engine(runtime: ModuleType, gpu: Gpu, file: bytes, most: Most) -> bytes:
    """Return the engine of an ONNX file for this GPU, driver and version: the one kept, or a new one.

    Raises:
        Refused: TensorRT cannot read the file.
        BadHost: it cannot build the engine.

    """
    here = {
        "library": f"{runtime.__name__} {runtime.__version__}",
        "gpu": [gpu.name, *gpu.capability],
        "driver": gpu.driver,
    }
    facts = {**here, "onnx": hashlib.sha256(file).hexdigest(), **asdict(most)}
    if (kept := _sealed_cache.read("engine", facts)) is not None:
        return kept
    log.info("building a TensorRT engine for %s: once, up to some minutes", gpu.name)
    timings = _sealed_cache.read("timings", here)
    made, learned = build(runtime, file, most, timings or b"")
    _sealed_cache.write("engine", facts, made)
    if learned and learned != timings:
        _sealed_cache.write("timings", here, learned)
    return made


def build(runtime: ModuleType, file: bytes, most: Most, timings: bytes = b"") -> tuple[bytes, bytes]:
    """Return the engine of a typed ONNX file, and what building it taught of kernels' times. It may need a GPU.

    Raises:
        Refused: TensorRT cannot read the file.
        BadHost: there is no GPU and the library needs one, or it cannot build the engine.

    """
    said = logger(runtime)
    builder, network, parser = parsed(runtime, file, said)
    config = builder.create_builder_config()
    config.clear_flag(runtime.BuilderFlag.TF32)  # unless told, fp32 is multiplied with 10 bits of mantissa
    config.add_optimization_profile(_profile(builder, network, most))
    times = runtime.__name__ == LIBRARIES[0]  # RTX chooses its kernels without timing them
    if times:
        config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    made = builder.build_serialized_network(network, config)
    del parser  # until here the network's weights lay in it
    if made is None:
        fix = f"see the versions of ONNX that {runtime.__name__} {runtime.__version__} takes, or export for onnx"
        raise BadHost(f"TensorRT cannot build the engine: {said.last()}", fix=fix)
    return bytes(made), bytes(config.get_timing_cache().serialize()) if times else b""


def tried(runtime: ModuleType, file: bytes) -> None:
    """Have a file read, where the library can do so without a GPU or one is there.

    Raises:
        Refused: TensorRT cannot read it.

    """
    said = logger(runtime)
    try:
        parsed(runtime, file, said)
    except BadHost as error:
        log.debug("%s", error)


def parsed(runtime: ModuleType, file: bytes, said: Any) -> tuple[Any, Any, Any]:
    """Return builder, network and parser of an ONNX file, whose types alone say in what it computes.

    Raises:
        Refused: TensorRT cannot read the file.
        BadHost: the library needs a GPU, and there is none.

    """
    try:
        builder = runtime.Builder(said)
    except (TypeError, RuntimeError) as error:  # where CUDA does not start, the binding has nothing to return
        raise BadHost(f"TensorRT cannot start: {said.last()}", fix="see `edgetl doctor --target trt`") from error
    typed = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # one day the only way
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = runtime.OnnxParser(network, said)
    if not parser.parse(file):
        told = _told(parser.get_error(0)) if parser.num_errors else said.last()
        fix = f"this is {runtime.__name__} {runtime.__version__}; see the operators that it takes, or export for onnx"
        raise Refused(f"TensorRT cannot read the file: {told}", fix=fix)
    return builder, network, parser


def logger(runtime: ModuleType) -> Any:
    """Return a logger that keeps the last error that TensorRT tells, and prints nothing."""

    class Said(runtime.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (runtime.ILogger.ERROR, runtime.ILogger.INTERNAL_ERROR):
                self._errors.append(message)

        def last(self) -> str:
            return self._errors[-1].splitlines()[0][:300] if self._errors else "it does not say why"

    return Said()


def _told(error: Any) -> str:
    """Return what the parser found, and where."""
    return f"{error.node_name()} ({error.node_operator()}): {error.desc().splitlines()[0][:200]}"


def _profile(builder: Any, network: Any, most: Most) -> Any:
    """Return the ranges of the network's inputs. The first axis is the batch; another one that varies, the tokens."""
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        end = network.get_input(place)
        shapes = [_shape(tuple(end.shape), sizes) for sizes in ({"batch": 1, "tokens": 1}, _fast(most), asdict(most))]
        profile.set_shape(end.name, *shapes)
    return profile


def _fast(most: Most) -> Mapping[str, int]:
    return {axis: min(size, FAST[axis]) for axis, size in asdict(most).items()}


def _shape(shape: tuple[int, ...], sizes: Mapping[str, Json]) -> tuple[int, ...]:
    return tuple(n if n >= 0 else sizes["tokens" if axis else "batch"] for axis, n in enumerate(shape))
