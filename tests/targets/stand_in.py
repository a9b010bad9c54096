"""A GPU and a TensorRT that stand in for real ones: memory is the process's own, an engine answers twice its input."""

from __future__ import annotations

import ctypes
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from edgetl.explain.onnx_graph import read_graph

HEAD = b"engine:"


class Machine:
    """What a session asks of the GPU's driver and of TensorRT; `counts` says how often."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.loaded: list[bytes] = []
        self.driver_version = 13000
        self.capacity = 1 << 20
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._blocks: dict[int, Any] = {}

    @property
    def held(self) -> int:
        """Bytes that are allocated."""
        return sum(len(block) for block in self._blocks.values())

    def driver(self) -> SimpleNamespace:
        def put(pointer: Any, value: int) -> int:
            pointer._obj.value = value
            return 0

        def allocate(pointer: Any, size: ctypes.c_size_t) -> int:
            if self.held + size.value > self.capacity:
                return 2
            block = (ctypes.c_char * size.value)()
            self._blocks[ctypes.addressof(block)] = block
            return put(pointer, ctypes.addressof(block))

        def free(address: ctypes.c_uint64) -> int:
            return 0 if self._blocks.pop(address.value, None) is not None else 1

        def copy(to: Any, source: Any, size: ctypes.c_size_t, stream: Any) -> int:
            self.counts["copies"] += 1
            ctypes.memmove(to.value, source.value, size.value)
            return 0

        def name(text: Any, size: int, device: Any) -> int:
            text.value = b"Stand-in GPU"
            return 0

        return SimpleNamespace(
            cuInit=lambda flags: 0,
            cuDeviceGetCount=lambda number: put(number, 1),
            cuDeviceGet=lambda device, place: put(device, 0),
            cuDeviceGetName=name,
            cuDriverGetVersion=lambda version: put(version, self.driver_version),
            cuDeviceGetAttribute=lambda value, number, device: put(value, {75: 8, 76: 7}[number]),
            cuDevicePrimaryCtxRetain=lambda context, device: put(context, 1),
            cuCtxSetCurrent=lambda context: 0,
            cuStreamCreate=lambda stream, flags: put(stream, 7),
            cuStreamSynchronize=lambda stream: 0,
            cuStreamDestroy_v2=lambda stream: 0,
            cuDevicePrimaryCtxRelease_v2=lambda device: 0,
            cuMemAlloc_v2=allocate,
            cuMemFree_v2=free,
            cuMemcpyHtoDAsync_v2=copy,
            cuMemcpyDtoHAsync_v2=copy,
        )

    def tensorrt(self) -> ModuleType:
        """Return a module of TensorRT's interface, for networks with one float input x of shape (-1, 2)."""
        machine = self
        module = ModuleType("tensorrt")

        class Logger:
            ERROR, INTERNAL_ERROR = 1, 0

        class Profile:
            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                machine.shapes[name] = shapes

        class Config:
            def clear_flag(self, flag: str) -> None:
                machine.counts[flag] += 1

            def add_optimization_profile(self, profile: Profile) -> int:
                return 0

            def create_timing_cache(self, data: bytes) -> SimpleNamespace:
                return SimpleNamespace(serialize=lambda: data + b"t")

            def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
                self.cache = cache
                return True

            def get_timing_cache(self) -> SimpleNamespace:
                return self.cache

        class Network:
            num_inputs = 1

            def get_input(self, place: int) -> SimpleNamespace:
                return SimpleNamespace(name="x", shape=(-1, 2))

        class Builder:
            def __init__(self, said: Any) -> None:
                self.said = said

            create_optimization_profile = staticmethod(Profile)
            create_builder_config = staticmethod(Config)

            def create_network(self, flags: int) -> Network:
                assert flags == 1 << 3
                return Network()

            def build_serialized_network(self, network: Network, config: Config) -> bytes:
                machine.counts["builds"] += 1
                return HEAD + str(machine.counts["builds"]).encode()

        class Parser:
            num_errors = 1

            def __init__(self, network: Network, said: Any) -> None:
                pass

            def parse(self, file: bytes) -> bool:
                return all(node.op == "Add" for node in read_graph(file).nodes)

            def get_error(self, place: int) -> SimpleNamespace:
                return SimpleNamespace(
                    desc=lambda: "no plugin\nmore", node_name=lambda: "layer/Sub", node_operator=lambda: "Sub"
                )

        class Context:
            def __init__(self) -> None:
                self.shape: tuple[int, ...] = ()
                self.at: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shape = tuple(shape)
                return shape[0] <= machine.shapes["x"][2][0]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self.shape

            def set_tensor_address(self, name: str, address: int) -> bool:
                self.at[name] = address
                return True

            def execute_async_v3(self, stream: int) -> bool:
                assert stream == 7
                machine.counts["runs"] += 1
                count = int(np.prod(self.shape))
                ends = [
                    np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.at[n])) for n in ("x", "logits")
                ]
                ends[1][:] = 2 * ends[0]
                return True

        class Engine:
            num_io_tensors = 2
            create_execution_context = staticmethod(Context)

            def get_tensor_name(self, place: int) -> str:
                return ("x", "logits")[place]

            def get_tensor_dtype(self, name: str) -> str:
                return "float"

            def get_tensor_mode(self, name: str) -> str:
                return {"x": "in", "logits": "out"}[name]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (-1, 2)

        class Runtime:
            def __init__(self, said: Any) -> None:
                pass

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                machine.loaded.append(plan)
                return Engine() if plan.startswith(HEAD) else None

        module.__dict__.update(
            __version__="10.9.0", ILogger=Logger, Builder=Builder, OnnxParser=Parser, Runtime=Runtime,
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=3),
            BuilderFlag=SimpleNamespace(TF32="without TF32"),
            TensorIOMode=SimpleNamespace(OUTPUT="out"), nptype=lambda dtype: np.float32,
        )  # fmt: skip
        return module
