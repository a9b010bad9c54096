"""ONNX files, opened by ONNX Runtime [no torch]."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.machine import cpu_features
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    import onnxruntime

    from edgetl.recipe.schema import Material

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
BITS: Mapping[str, int] = {"w8": 8, "w4": 4}
NOWHERE = "/nonexistent/edgetl"
"""Where ONNX Runtime is told to look for external data: bundles embed their weights."""


Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int8_dynamic", "w8", "w4", "auto"]


@dataclass(frozen=True)
class Onnx:
    """An ONNX file for ONNX Runtime."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    refuses: ClassVar[Mapping[str, str]] = {"bf16": "ONNX Runtime's CPU provider has no bf16 kernels"}

    use: Literal["onnx"] = "onnx"
    precision: Precision = "fp32"  # int8 is static, with calibrated ranges; w8 and w4 shorten only large weights
    samples: int = 128  # of the training part, for calibration and repair
    method: Literal["minmax", "entropy", "percentile"] = "minmax"  # how int8 finds the ranges of activations
    operators: tuple[str, ...] = ("MatMul", "Gemm", "Conv", "Gather")  # what int8 quantizes; Gather: large embeddings
    reduce_range: bool | None = None  # weights of 7 bits, for x86 without VNNI; default: where this machine is one

    def __post_init__(self) -> None:
        """Refuse values that make no file; a recipe reports them with its other errors."""
        if self.samples < 1 or not self.operators:
            raise ValueError("samples and operators must not be empty")

    @property
    def calibrates(self) -> bool:
        """Whether `lower` reads calibration batches: static int8 does."""
        return self.precision == "int8"

    def candidates(self, quick: Sequence[str]) -> tuple[Onnx, ...]:
        """Return this target, or for "auto" fp32 and the two kinds of int8 where the device is quick in it.

        ONNX Runtime's CPU provider has no fp16 kernels: it would convert to fp32 and back at every node.
        """
        if self.precision != "auto":
            return (self,)
        tried: tuple[Precision, ...] = ("fp32", *(("int8", "int8_dynamic") if "int8" in quick else ()))
        return tuple(replace(self, precision=precision) for precision in tried)

    def nodes(self, base: Path) -> tuple[str, ...]:
        """Return the nodes of the base file whose precision `lower` changes."""
        from edgetl.quantize import graph

        if self.precision == "fp32":
            return ()
        if self.precision in BITS:
            return graph.weighted(graph.read(base), ("MatMul", graph.TABLE), graph.LEAST_WEIGHT)
        return graph.quantizable(graph.read(base), self.operators)

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        """Write the artifact made from the base ONNX file into the folder and return its file name.

        Raises:
            BadInput: too few calibration samples, or a network that cannot be quantized this way.

        """
        if self.precision == "fp32":
            shutil.copyfile(base, folder / FILE)
            return FILE
        from edgetl.quantize import graph, lower

        if self.precision == "int8":
            how = lower.Static(self.operators, self.method, reduce_range=self._reduces())
            model = lower.static(base, material, how, folder)
        elif self.precision == "int8_dynamic":
            model = lower.dynamic(base, material, self.operators, self._reduces(), folder)
        elif self.precision == "fp16":
            model = lower.half(base, material)
        else:
            model = lower.weights(base, material, BITS[self.precision], folder)
        graph.write(model, folder / FILE)
        return FILE

    def dtypes(self, file: Path, names: Sequence[str]) -> Mapping[str, str]:
        """Return the precision in which a lowered file computes each of these nodes of the base file, read back."""
        from edgetl.quantize.dtypes import dtypes

        return dtypes(file, names)

    def session(self) -> dict[str, Json]:
        """Return the runtime options that ship in the manifest; none: a CPU runs every file with the defaults."""
        return {}

    def needs(self) -> str:
        """Return the oldest version of ONNX Runtime that reads the file.

        1.20 is the first with opset 20 and IR 10 on every platform, 1.22 the first that multiplies weights of 8 bits.
        """
        return ">=1.22" if self.precision == "w8" else ">=1.20"

    def _reduces(self) -> bool:
        if self.reduce_range is not None:
            return self.reduce_range
        features = set(cpu_features())
        return "avx2" in features and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}

    def judge(self, file: Path, threads: int) -> OnnxSession:
        """Open a lowered file for its answers."""
        return self.open(file, self.session(), threads)

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> OnnxSession:
        """Open an artifact on a number of threads (0: the runtime's choice).

        Options: `provider` "cpu" (default) or "cuda"; `spinning` whether idle threads wait actively.

        Raises:
            Refused: the runtime cannot read the file, it keeps weights elsewhere, or an option is unknown.
            BadHost: the provider asked for is not there, or fell back.

        """
        import onnxruntime

        provider, spinning = settled(options)
        if provider not in onnxruntime.get_available_providers():
            fix = 'put onnxruntime-gpu in the place of onnxruntime, or open it with the provider "cpu"'
            raise BadHost(f"this ONNX Runtime has no {provider}", fix=fix)
        wanted = session_options(onnxruntime, threads, spinning)
        return OnnxSession(load(onnxruntime, embedded(file), wanted, provider), provider)

    @staticmethod
    def runtime() -> str:
        """Return the runtime and its version: "onnxruntime 1.31.1"."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"


class OnnxSession:
    """An ONNX file opened by ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, provider: str) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self.provider = provider
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._wrong = (ValueError, state.InvalidArgument)
        self._failed = (RuntimeError, state.Fail, state.RuntimeException)

    def run(self, feed: Feed) -> Feed:
        """Return the outputs by name, each (B, ...), for named inputs, each (B, ...).

        Raises:
            BadInput: a name, shape or dtype differs from the file's, or the session is closed.
            OutOfResources: the runtime found no memory.
            BadHost: the runtime failed.

        """
        if self._session is None:
            raise BadInput("the session is closed", fix="open the bundle again")
        try:
            values = self._session.run(self._outputs, dict(feed))
        except self._wrong as error:
            raise BadInput(
                f"the model does not take this input: {_line(error)}", fix="see the inputs in manifest.json"
            ) from error
        except self._failed as error:
            if "allocat" in str(error) or "bad_alloc" in str(error):
                raise OutOfResources(f"no memory for the model: {_line(error)}", fix="run a smaller batch") from error
            raise BadHost(f"ONNX Runtime failed: {_line(error)}", fix="try another version of onnxruntime") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the runtime's memory."""
        self._session = None


def settled(options: Mapping[str, Json]) -> tuple[str, bool]:
    """The provider's full name, and whether idle threads spin. The options are untrusted."""
    name, spinning = options.get("provider", "cpu"), options.get("spinning", True)
    unknown = sorted(set(options) - {"provider", "spinning"})
    if unknown or name not in PROVIDERS or not isinstance(spinning, bool):
        what = unknown[0] if unknown else "provider" if name not in PROVIDERS else "spinning"
        raise Refused(f"session option '{what}' is not known or not valid", fix="upgrade edgetl, or export again")
    return PROVIDERS[name], spinning


def session_options(runtime: ModuleType, threads: int, spinning: bool) -> onnxruntime.SessionOptions:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # what fails is raised, one line; the runtime would print it as well
    wait = "1" if spinning and threads != 1 else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", wait)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    return settings


def embedded(file: bytes | Path) -> bytes:
    """The bytes of the file, which must hold its weights.

    From bytes, ONNX Runtime looks for external data in the working folder; from a path, it follows hard links.
    """
    data = file if isinstance(file, bytes) else _read(file)
    # The key of an external data entry: the word after its length, 8, in either encoding that ends a varint.
    if b"location" in data and (b"\x08location" in data or b"\x00location" in data):
        raise Refused("the ONNX file keeps weights outside itself", fix="export it with embedded weights")
    return data


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}", fix="give the path of an ONNX file") from error


def load(
    runtime: ModuleType, data: bytes, settings: onnxruntime.SessionOptions, provider: str
) -> onnxruntime.InferenceSession:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    unreadable = (
        *(RuntimeError, ValueError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
        *(state.NotImplemented, state.RuntimeException, state.NoModel),
    )
    try:
        session = runtime.InferenceSession(data, settings, providers=[provider])
    except unreadable as error:
        fix = f"export again; this is onnxruntime {runtime.__version__}, see the version that the bundle needs"
        raise Refused(f"ONNX Runtime cannot open the file: {_line(error)}", fix=fix) from error
    if session.get_providers()[0] != provider:
        raise BadHost(f"{provider} fell back to {session.get_providers()[0]}", fix="see `edgetl doctor`")
    session.disable_fallback()
    session._model_bytes = b""  # kept only to fall back; it would hold the model in memory twice
    return session


def _line(error: Exception) -> str:
    """The first line of what the runtime says, without its prefix."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split(" : ", 3)[-1][:300]


PLUGIN = Onnx
