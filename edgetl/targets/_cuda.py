"""What a TensorRT session needs of CUDA's driver: a GPU, its memory and a stream. [no torch]

The driver is there wherever a GPU is; the CUDA runtime would be a package of its own.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadHost, OutOfResources

_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

_NAME_BYTES = 256
_FIX = "run it on a machine with an NVIDIA GPU and its driver, or export for the target onnx"


class Gpu:
    """The first GPU that CUDA shows, with a stream of its own; calls may come from any thread."""

    def __init__(self) -> None:
        self._driver = _driver()
        number, device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), _text()
        self._call("cuInit", 0)
        self._call("cuDeviceGetCount", ctypes.byref(number))
        if not number.value:
            raise BadHost("there is no NVIDIA GPU here", fix=_FIX)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self._device, self._context, self._stream = device, ctypes.c_void_p(), ctypes.c_void_p()
        self.name = name.value.decode("utf-8", "replace")
        self.driver = version.value
        self.capability = tuple(self._attribute(number) for number in (_MAJOR, _MINOR))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.use()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """The stream on which everything is done, as a number."""
        return self._stream.value or 0

    def use(self) -> None:
        """Make the calling thread work on this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Return the address of that many bytes of the GPU's memory.

        Raises:
            OutOfResources: it has no more.

        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def send(self, values: NDArray[np.generic], address: int) -> None:
        """Copy a contiguous array to the GPU, in the order of the stream."""
        at = ctypes.c_void_p(values.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), at, ctypes.c_size_t(values.nbytes), self._stream)

    def fetch(self, address: int, values: NDArray[np.generic]) -> None:
        """Copy from the GPU into a contiguous array, which is filled when `wait` returns."""
        at = ctypes.c_void_p(values.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", at, ctypes.c_uint64(address), ctypes.c_size_t(values.nbytes), self._stream)

    def wait(self) -> None:
        """Wait until all that was asked for is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the GPU back."""
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _call(self, function: str, *args: Any) -> None:
        code = getattr(self._driver, function)(*args)
        if code == _OUT_OF_MEMORY:
            raise OutOfResources("the GPU has no memory left", fix="run a smaller batch, or end what else uses it")
        if code:
            raise BadHost(f"CUDA's {function} failed with error {code}", fix=_FIX)


def _driver() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise BadHost("there is no NVIDIA driver here", fix=_FIX) from error


def _text() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(_NAME_BYTES)
