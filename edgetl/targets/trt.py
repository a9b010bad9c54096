"""Typed ONNX files, from which TensorRT builds an engine where it runs [no torch]."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from edgetl.errors import BadHost, BadInput, EdgetlError, Refused
from edgetl.explain.onnx_graph import read_graph
from edgetl.targets import _engine, _opening, onnx
from edgetl.targets._cuda import Gpu
from edgetl.targets._engine import Most
from edgetl.targets._opening import Input
from edgetl.types import Array, Feed, Json

if TYPE_CHECKING:
    from edgetl.recipe.schema import Material
    from edgetl.session import Session

FILE = "model.onnx"
OPERATORS = ("MatMul", "Gemm", "Conv")
"""Whose precision changes."""


Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "auto"]


@dataclass(frozen=True)
class Trt:
    """An ONNX file for TensorRT or TensorRT-RTX: its types say in what every node computes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    refuses: ClassVar[Mapping[str, str]] = {"int8_dynamic": "TensorRT's int8 has calibrated ranges"}

    use: Literal["trt"] = "trt"
    precision: Precision = "fp32"  # int8 is static, with calibrated ranges around 0
    samples: int = 128  # of the training part, for calibration and repair
    batch: int = 64  # the most samples that an engine takes at once; larger batches are run in parts
    tokens: int = 512  # the longest text that an engine takes

    def __post_init__(self) -> None:
        """Refuse values that make no file; a recipe reports them with its other errors."""
        if min(self.samples, self.batch, self.tokens) < 1:
            raise ValueError("samples, batch and tokens must be at least 1")

    @property
    def calibrates(self) -> bool:
        """Whether `lower` reads calibration batches: int8 does."""
        return self.precision == "int8"

    def candidates(self, quick: Sequence[str]) -> tuple[Trt, ...]:
        """Return this target, or for "auto" fp32 and each precision that the device is quick in."""
        if self.precision != "auto":
            return (self,)
        every: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
        return tuple(replace(self, precision=p) for p in every if p == "fp32" or p in quick)

    def nodes(self, base: Path) -> tuple[str, ...]:
        """Return the nodes of the base file whose precision `lower` changes."""
        if self.precision == "fp32":
            return ()
        from edgetl.quantize import graph

        return graph.working(graph.read(base), OPERATORS)

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        """Write the artifact made from the base ONNX file into the folder and return its file name.

        Where TensorRT can do so without a GPU, it has read the file.

        Raises:
            BadInput: too few calibration samples, or a network that cannot be quantized this way.
            Refused: TensorRT has no form of this network.
            BadHost: TensorRT is not installed.

        """
        runtime = _engine.library()
        if self.precision == "fp32":
            shutil.copyfile(base, folder / FILE)
        else:
            self._change(base, folder, material)
        _engine.tried(runtime, (folder / FILE).read_bytes())
        return FILE

    def _change(self, base: Path, folder: Path, material: Material) -> None:
        from edgetl.quantize import graph, lower
        from edgetl.targets import _typed

        if self.precision == "int8":
            model = lower.static(base, material, lower.Static(OPERATORS, symmetric=True), folder)
        elif self.precision == "fp16":
            model = lower.half(base, material)
        else:
            model = _typed.bf16(base, set(self.nodes(base)) - material.floats)
        graph.write(model, folder / FILE)

    def dtypes(self, file: Path, names: Sequence[str]) -> Mapping[str, str]:
        """Return the precision in which a lowered file computes each of these nodes of the base file, read back."""
        if self.precision == "bf16":
            from edgetl.targets import _typed

            return _typed.dtypes(file, names)
        from edgetl.quantize.dtypes import dtypes

        return dtypes(file, names)

    def session(self) -> dict[str, Json]:
        """Return the runtime options that ship in the manifest: the largest sizes of an engine."""
        return {"batch": self.batch, "tokens": self.tokens}

    def needs(self) -> str:
        """Return the oldest version of the runtime that reads the file, that of TensorRT-RTX: `open` knows both."""
        return ">=1.0"

    def judge(self, file: Path, threads: int) -> Session:
        """Open a lowered file for its answers: as `open` does, or without a GPU in ONNX Runtime on the CPU.

        Raises:
            BadHost: without a GPU nobody computes in bf16.

        """
        try:
            Gpu().close()
        except BadHost as error:
            if self.precision == "bf16":
                fix = "export on a machine with an NVIDIA GPU, or choose fp16"
                raise BadHost(f"bf16 is not judged: {error.problem}", fix=fix) from error
            return onnx.Onnx.open(file, {}, threads)
        return self.open(file, self.session(), threads)

    @staticmethod
    def open(file: bytes | Path, options: Mapping[str, Json], threads: int) -> TrtSession:
        """Build or find the engine of an artifact and open it on the first GPU; `threads` are the CPU's business.

        Options: `batch` and `tokens`, the largest sizes that the engine takes (64 and 512).

        Raises:
            Refused: TensorRT cannot read the file, or an option is unknown.
            BadHost: there is no GPU, no driver or no TensorRT.
            OutOfResources: the GPU has no memory left.

        """
        most, data = _most(options), onnx.embedded(file)
        if not read_graph(data).nodes:
            raise Refused("the file holds no network", fix="copy the bundle again, or export it again")
        runtime = _engine.library()
        gpu = Gpu()
        try:
            return TrtSession(runtime, gpu, _engine.engine(runtime, gpu, data, most), most)
        except EdgetlError:
            gpu.close()
            raise

    @staticmethod
    def runtime() -> str:
        """Return the runtime and its version: "tensorrt 11.4.0.106"."""
        library = _engine.imported()
        return f"{library.__name__} {library.__version__}"


class TrtSession:
    """An engine on a GPU, with memory for its inputs and outputs. Threads that share it take turns."""

    def __init__(self, runtime: ModuleType, gpu: Gpu, plan: bytes, most: Most) -> None:
        self.provider = "TensorRT-RTX" if runtime.__name__ == "tensorrt_rtx" else "TensorRT"
        self._gpu, self._most, self._turn = gpu, most, threading.Lock()
        said = _engine.logger(runtime)
        self._runtime = runtime.Runtime(said)  # has to outlive the engine
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        self._context: Any = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise BadHost(f"TensorRT cannot load its engine: {said.last()}", fix="see `edgetl doctor --target trt`")
        self._places: dict[str, tuple[int, int]] = {}  # name -> address and bytes on the GPU
        self._inputs: dict[str, Input] = {}
        self._outputs: dict[str, np.dtype[np.generic]] = {}
        for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors)):
            dtype = np.dtype(runtime.nptype(self._engine.get_tensor_dtype(name)))
            if self._engine.get_tensor_mode(name) == runtime.TensorIOMode.OUTPUT:
                self._outputs[name] = dtype
            else:
                self._inputs[name] = Input(dtype, tuple(self._engine.get_tensor_shape(name)))

    def run(self, feed: Feed) -> Feed:
        """Return the outputs by name, each (B, ...), for named inputs, each (B, ...).

        Raises:
            BadInput: a name, shape or dtype differs from the engine's, or the session is closed.
            OutOfResources: the GPU has no memory left.
            BadHost: the runtime failed.

        """
        with self._turn:
            if self._context is None:
                raise BadInput("the session is closed", fix="open the bundle again")
            _opening.check(feed, self._inputs)
            self._gpu.use()
            size = len(next(iter(feed.values())))
            starts = range(0, size, self._most.batch)
            parts = [self._part({k: v[at : at + self._most.batch] for k, v in feed.items()}) for at in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def close(self) -> None:
        """Free the GPU's memory."""
        with self._turn:
            if self._context is None:
                return
            self._gpu.use()
            for address, _ in self._places.values():
                self._gpu.free(address)
            self._places.clear()
            self._context = self._engine = self._runtime = None
            self._gpu.close()

    def _part(self, feed: Feed) -> Feed:
        """Run at most as many samples as the engine takes at once."""
        sent: list[Array] = []  # what is being copied has to stay
        for name, value in feed.items():
            if not self._context.set_input_shape(name, value.shape):
                raise BadInput(f"the model does not take {name} of shape {list(value.shape)}", fix=self._range())
            sent.append(np.ascontiguousarray(value))
            self._gpu.send(sent[-1], self._place(name, value.nbytes))
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}
        found = {name: np.empty(shapes[name], dtype) for name, dtype in self._outputs.items()}
        for name, value in found.items():
            self._place(name, value.nbytes)
        for name, (address, _) in self._places.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(self._gpu.stream):
            raise BadHost("TensorRT failed to run the engine", fix="see `edgetl doctor --target trt`")
        for name, value in found.items():
            self._gpu.fetch(self._places[name][0], value)
        self._gpu.wait()
        return found

    def _place(self, name: str, size: int) -> int:
        """Return the address of a tensor's memory on the GPU, which grows with the largest batch seen."""
        address, held = self._places.get(name, (0, -1))
        if size > held:
            if held >= 0:
                del self._places[name]
                self._gpu.free(address)
            address = self._gpu.allocate(size)
            self._places[name] = address, size
        return address

    def _range(self) -> str:
        return f"the engine takes texts of up to {self._most.tokens} tokens: export with a larger `tokens`"


def _most(options: Mapping[str, Json]) -> Most:
    """The largest sizes of a manifest's options, which are untrusted."""
    sizes = {"batch": Trt.batch, "tokens": Trt.tokens, **options}
    for name, size in sizes.items():
        good = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 2**20
        if name not in ("batch", "tokens") or not good:
            raise Refused(f"session option '{name}' is not known or not valid", fix="upgrade edgetl, or export again")
    return Most(**sizes)


PLUGIN = Trt
