"""OpenVINO's own files, opened by OpenVINO on a CPU [no torch]."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from edgetl import store
from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.targets import _ir, _opening
from edgetl.targets._opening import Input
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    import openvino

    from edgetl.recipe.schema import Material

FILE = "model.zip"
PROVIDER = "CPU"
HINTS = {"fp32": ("FP32", "f32"), "bf16": ("BF16", "bf16"), "fp16": ("FP16", "f16")}
"""What a CPU calls the ability to compute in a precision, and what it is asked for by."""

OPERATORS = ("MatMul", "Gemm", "Conv")
"""Of the base file: what int8 quantizes."""

log = logging.getLogger("edgetl")


Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "auto"]


@dataclass(frozen=True)
class Openvino:
    """A file of OpenVINO for a CPU. fp16 and bf16 are hints: a CPU that is no faster in them computes in fp32."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    refuses: ClassVar[Mapping[str, str]] = {"int8_dynamic": "OpenVINO's int8 has calibrated ranges"}

    use: Literal["openvino"] = "openvino"
    precision: Precision = "fp32"  # fp16 also halves the file; int8 is static, with calibrated ranges
    samples: int = 128  # of the training part, for calibration and repair

    def __post_init__(self) -> None:
        """Refuse values that make no file; a recipe reports them with its other errors."""
        if self.samples < 1:
            raise ValueError("samples must be at least 1")

    @property
    def calibrates(self) -> bool:
        """Whether `lower` reads calibration batches: int8 does."""
        return self.precision == "int8"

    def candidates(self, quick: Sequence[str]) -> tuple[Openvino, ...]:
        """Return this target, or for "auto" fp32 and each precision that the device is quick in."""
        if self.precision != "auto":
            return (self,)
        every: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
        return tuple(replace(self, precision=p) for p in every if p == "fp32" or p in quick)

    def nodes(self, base: Path) -> tuple[str, ...]:
        """Return the nodes of the base file whose precision `lower` changes one by one: a hint holds for all.

        NNCF leaves the product of attention's weights and values in float.
        """
        if self.precision != "int8":
            return ()
        from edgetl.quantize import graph

        model = graph.read(base)
        shares = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.output}
        left = {node.name for node in model.graph.node if shares & set(node.input)}
        return tuple(name for name in graph.working(model, OPERATORS) if name not in left)

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        """Write the artifact made from the base ONNX file into the folder and return its file name.

        Raises:
            BadInput: too few calibration samples, or OpenVINO has no form of this network.
            BadHost: OpenVINO or NNCF is not installed.

        """
        runtime = _opening.library("openvino")
        model = _ir.converted(runtime, base)
        if self.precision == "int8":
            from edgetl.targets import _nncf

            lowered = set(self.nodes(base)) - material.floats
            if not lowered:
                problem = f"{base.parent.name} has no operation whose precision can be lowered"
                raise BadInput(problem, fix="export it at fp32")
            model = _nncf.quantized(model, material.calibration, lowered)
        store.write_bytes(folder / FILE, _ir.written(runtime, model, halved=self.precision == "fp16"))
        return FILE

    def dtypes(self, file: Path, names: Sequence[str]) -> Mapping[str, str]:
        """Return the precision of these nodes of the base file, read back; what only is asked for ends in "hint"."""
        from edgetl.targets import _nncf

        runtime = _opening.library("openvino")
        model = _read(runtime, file)
        wanted, told = set(names), self.precision
        left = f"{told} hint" if told in ("fp16", "bf16") else "fp32"
        nodes = [n for n in model.get_ops() if n.get_type_name() in _nncf.WORKING]
        return {
            name: "int8" if all(_nncf.is_integer(end) for end in node.input_values()[:2]) else left
            for name, node in ((_nncf.base_name(n), n) for n in nodes)
            if name in wanted
        }

    def session(self) -> dict[str, Json]:
        """Return the runtime options that ship in the manifest: unless told, OpenVINO chooses a precision itself."""
        return {"precision_hint": self.precision if self.precision in HINTS else "fp32"}

    def needs(self) -> str:
        """Return the oldest version of OpenVINO that reads the file."""
        return ">=2025.0"

    def judge(self, file: Path, threads: int) -> OpenvinoSession:
        """Open a lowered file for its answers."""
        return self.open(file, self.session(), threads)

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> OpenvinoSession:
        """Open an artifact on a number of threads of the CPU (0: the runtime's choice).

        Options: `precision_hint` "fp32" (default), "bf16" or "fp16", followed where the CPU computes in it.

        Raises:
            Refused: OpenVINO cannot read the file, or an option is unknown.
            BadHost: OpenVINO is not installed, or did not choose the CPU.

        """
        hint = _hint(options)
        runtime = _opening.library("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": _possible(runtime, hint),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # who starts the process chooses its cores
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        model = _read(runtime, file)
        try:
            return OpenvinoSession(runtime, model, settings)
        except RuntimeError as error:
            raise Refused(f"OpenVINO cannot open the file: {_ir.last_line(error)}", fix=_again(runtime)) from error

    @staticmethod
    def runtime() -> str:
        """Return the runtime and its version: "openvino 2026.4.1"."""
        return f"openvino {_version(_opening.imported('openvino'))}"


class OpenvinoSession:
    """A file opened by OpenVINO. Threads that share it take turns.

    One sample of fixed shape has a form of the network of its own, which does not work out shapes at every call, and
    is copied into the runtime's own memory: with ours it prepares itself anew every time. The form for any shape is
    made where it is needed.
    """

    def __init__(self, runtime: ModuleType, model: openvino.Model, settings: Mapping[str, Json]) -> None:
        self.provider = PROVIDER
        self._runtime, self._settings, self._turn = runtime, dict(settings), threading.Lock()
        self._model: openvino.Model | None = model
        self._outputs = [port.get_any_name() for port in model.outputs]
        self._inputs = {port.get_any_name(): _input(port) for port in model.inputs}
        self._fixed = all(-1 not in wanted.shape[1:] for wanted in self._inputs.values())
        self._requests: dict[bool, openvino.InferRequest] = {}
        first = self._request(model, single=self._fixed)
        self._own = {name: first.get_tensor(name).data for name in self._inputs} if self._fixed else {}

    def run(self, feed: Feed) -> Feed:
        """Return the outputs by name, each (B, ...), for named inputs, each (B, ...).

        Raises:
            BadInput: a name, shape or dtype differs from the file's, or the session is closed.
            OutOfResources: the runtime found no memory.
            BadHost: the runtime failed.

        """
        with self._turn:
            if self._model is None:
                raise BadInput("the session is closed", fix="open the bundle again")
            alone = self._takes_as_it_is(feed)
            if not alone:
                _opening.check(feed, self._inputs)
            try:
                request = self._request(self._model, single=alone)
                if alone:
                    for name, own in self._own.items():
                        own[...] = feed[name]
                    request.infer(share_outputs=True)
                else:
                    request.infer(dict(feed), share_inputs=True, share_outputs=True)
                found = [request.get_output_tensor(i).data.copy() for i in range(len(self._outputs))]
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or "alloc" in str(error):
                    problem = f"no memory for the model: {_ir.last_line(error)}"
                    raise OutOfResources(problem, fix="run a smaller batch") from error
                raise BadHost(
                    f"OpenVINO failed: {_ir.last_line(error)}", fix="try another version of openvino"
                ) from error
        return dict(zip(self._outputs, found, strict=True))

    def _takes_as_it_is(self, feed: Feed) -> bool:
        """Say whether this is one sample of the fixed shape: of a small network, more questions take more than it."""
        if not self._own or len(feed) != len(self._own):
            return False
        for name, own in self._own.items():
            value = feed.get(name)
            if value is None or value.shape != own.shape or value.dtype != own.dtype:
                return False
        return True

    def close(self) -> None:
        """Free the runtime's memory."""
        with self._turn:
            self._model, self._own = None, {}
            self._requests.clear()

    def _request(self, model: openvino.Model, *, single: bool) -> openvino.InferRequest:
        if single not in self._requests:
            if single:
                model = model.clone()
                model.reshape({name: [1, *wanted.shape[1:]] for name, wanted in self._inputs.items()})
            compiled = self._runtime.Core().compile_model(model, PROVIDER, self._settings)
            used = list(compiled.get_property("EXECUTION_DEVICES"))
            if used != [PROVIDER]:
                raise BadHost(f"{PROVIDER} fell back to {', '.join(used)}", fix="see `edgetl doctor`")
            self._requests[single] = compiled.create_infer_request()
        return self._requests[single]


def _input(port: openvino.Output) -> Input:
    """Return what an input of the model takes."""
    shape = tuple(-1 if n.is_dynamic else n.get_length() for n in port.get_partial_shape())
    return Input(np.dtype(port.get_element_type().to_dtype()), shape)


def _hint(options: Mapping[str, Json]) -> str:
    """The precision hint of a manifest's options, which are untrusted."""
    hint = options.get("precision_hint", "fp32")
    unknown = sorted(set(options) - {"precision_hint"})
    if unknown or hint not in HINTS:
        what = unknown[0] if unknown else "precision_hint"
        raise Refused(f"session option '{what}' is not known or not valid", fix="upgrade edgetl, or export again")
    return str(hint)


def _possible(runtime: ModuleType, hint: str) -> str:
    """Return what to ask for: in a precision that it has no instructions for, a CPU refuses or takes another."""
    ability, word = HINTS[hint]
    if ability in runtime.Core().get_property(PROVIDER, "OPTIMIZATION_CAPABILITIES"):
        return word
    log.warning("this CPU does not compute in %s: the file is run in fp32", hint)
    return HINTS["fp32"][1]


def _read(runtime: ModuleType, file: bytes | Path) -> openvino.Model:
    """Return the model of a file. It names no other file, and no extension is ever loaded for it."""
    graph, weights = _ir.unpack(runtime, _opening.contents(file, "a model of OpenVINO"))
    try:
        return runtime.Core().read_model(graph, weights)
    except RuntimeError as error:
        raise Refused(f"OpenVINO cannot read the file: {_ir.last_line(error)}", fix=_again(runtime)) from error


def _again(runtime: ModuleType) -> str:
    return f"export again; this is openvino {_version(runtime)}, see the version that the bundle needs"


def _version(runtime: ModuleType) -> str:
    return str(runtime.__version__).partition("-")[0]


PLUGIN = Openvino
