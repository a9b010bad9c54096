"""ONNX files, opened by ONNX Runtime [no torch]."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal

from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    import onnxruntime

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NOWHERE = "/nonexistent/edgetl"
"""Where ONNX Runtime is told to look for external data: bundles embed their weights."""


@dataclass(frozen=True)
class Onnx:
    """An ONNX file for ONNX Runtime."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    use: Literal["onnx"] = "onnx"
    precision: Literal["fp32"] = "fp32"

    def lower(self, base: Path, folder: Path) -> str:
        """Write the artifact made from the base ONNX file into the folder and return its file name."""
        shutil.copyfile(base, folder / FILE)
        return FILE

    def session(self) -> dict[str, Json]:
        """Return the runtime options that ship in the manifest; none: a CPU runs fp32 with the defaults."""
        return {}

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> OnnxSession:
        """Open an artifact on a number of threads (0: the runtime's choice).

        Options: `provider` "cpu" (default) or "cuda"; `spinning` whether idle threads wait actively.

        Raises:
            Refused: the runtime cannot read the file, it keeps weights elsewhere, or an option is unknown.
            BadHost: the provider asked for is not there, or fell back.

        """
        import onnxruntime

        provider, spinning = _options(options)
        if provider not in onnxruntime.get_available_providers():
            fix = 'put onnxruntime-gpu in the place of onnxruntime, or open it with the provider "cpu"'
            raise BadHost(f"this ONNX Runtime has no {provider}", fix=fix)
        settings = _settings(onnxruntime, threads, spinning)
        return OnnxSession(_load(onnxruntime, _embedded(file), settings, provider), provider)

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


def _options(options: Mapping[str, Json]) -> tuple[str, bool]:
    """The provider's full name, and whether idle threads spin. The options are untrusted."""
    name, spinning = options.get("provider", "cpu"), options.get("spinning", True)
    unknown = sorted(set(options) - {"provider", "spinning"})
    if unknown or name not in PROVIDERS or not isinstance(spinning, bool):
        what = unknown[0] if unknown else "provider" if name not in PROVIDERS else "spinning"
        raise Refused(f"session option '{what}' is not known or not valid", fix="upgrade edgetl, or export again")
    return PROVIDERS[name], spinning


def _settings(runtime: ModuleType, threads: int, spinning: bool) -> onnxruntime.SessionOptions:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # what fails is raised, one line; the runtime would print it as well
    wait = "1" if spinning and threads != 1 else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", wait)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    return settings


def _embedded(file: bytes | Path) -> bytes:
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


def _load(
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
