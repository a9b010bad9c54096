"""NVIDIA GPUs through NVML: which one computes, what it is, and what is read of it meanwhile. [no torch]

These paths follow NVIDIA's documentation and are tested with stand-ins; they have not run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
from dataclasses import dataclass
from typing import Any, Literal

LOG = logging.getLogger("edgetl")

POWER_CAP = 0x4
REASONS = {
    POWER_CAP: "power_cap",
    0x8: "hardware_slowdown",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
}
"""Why the driver lowers a GPU's clocks, of NVML's reasons those that are no choice of the user's."""

SM_CLOCK = 1
"""NVML_CLOCK_SM."""

_ADDRESS_BYTES = 32


@dataclass(frozen=True)
class Facts:
    """What a GPU is; None where the driver does not say."""

    name: str
    driver: str
    uuid: str
    vbios: str | None


class Nvml:
    """One NVIDIA GPU: its energy counter, its clocks, and the memory that a process holds on it."""

    source: Literal["nvml"] = "nvml"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._gpu = library, handle

    @classmethod
    def found(cls) -> Nvml | None:
        """Return the GPU that CUDA uses first; None without a driver, without the package, or where that is not known.

        NVML and CUDA number GPUs differently, and only CUDA heeds CUDA_VISIBLE_DEVICES: the one is found in the
        other by its address on the bus or its UUID, never by its number.
        """
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            library.nvmlInit()
            handle = _handle(library)
        except library.NVMLError:
            return None
        return None if handle is None else cls(library, handle)

    def facts(self) -> Facts | None:
        """Return what it is; None where the driver does not say."""
        library, gpu = self._library, self._gpu
        try:
            name, uuid = _text(library.nvmlDeviceGetName(gpu)), _text(library.nvmlDeviceGetUUID(gpu))
            driver = _text(library.nvmlSystemGetDriverVersion())
        except library.NVMLError:
            return None
        try:
            vbios = _text(library.nvmlDeviceGetVbiosVersion(gpu))
        except library.NVMLError:  # as on boards that have none
            vbios = None
        return Facts(name, driver, uuid, vbios)

    def joules(self) -> float:
        """Return the energy since the driver was loaded."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1e3
        except self._library.NVMLError as error:
            raise OSError(str(error)) from error

    def memory(self, pid: int) -> int | None:
        """Return the bytes that a process holds; None where the driver does not say."""
        try:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(self._gpu)
        except self._library.NVMLError:
            return None
        used: list[int | None] = [one.usedGpuMemory for one in running if one.pid == pid]
        return used[0] if used else None

    def mhz(self) -> float | None:
        """Return the clock of the multiprocessors; None where the driver does not say."""
        try:
            return float(self._library.nvmlDeviceGetClockInfo(self._gpu, SM_CLOCK))
        except self._library.NVMLError:
            return None

    def reasons(self) -> int | None:
        """Return the bits of why the clocks are low now; None where the driver does not say."""
        try:
            return int(self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._gpu))
        except self._library.NVMLError:
            return None


def facts(kind: str) -> Facts | None:
    """Return what this machine's GPU is; None where a device of this kind has none, or the driver does not say."""
    card = Nvml.found() if kind in ("cuda", "jetson") else None
    return card.facts() if card else None


def names(bits: int) -> tuple[str, ...]:
    """Return the names of the reasons in such bits."""
    return tuple(name for bit, name in REASONS.items() if bits & bit)


def _handle(library: Any) -> Any | None:
    """Return NVML's handle of the GPU that CUDA uses first; None where it cannot be told from others."""
    address = _address()
    if address is not None:
        return library.nvmlDeviceGetHandleByPciBusId(address.encode())
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if first.startswith("GPU-"):
        return library.nvmlDeviceGetHandleByUUID(first.encode())
    if library.nvmlDeviceGetCount() == 1:
        return library.nvmlDeviceGetHandleByIndex(0)
    LOG.warning("profile: there are several GPUs, and CUDA does not tell which one it uses: none is read")
    return None


def _address() -> str | None:
    """Return the PCI address of the GPU that CUDA numbers 0; None where the driver is not there or does not say."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    gpu, address = ctypes.c_int(), ctypes.create_string_buffer(_ADDRESS_BYTES)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(gpu), 0):
        return None
    return None if cuda.cuDeviceGetPCIBusId(address, _ADDRESS_BYTES, gpu) else address.value.decode("ascii")


def _text(value: str | bytes) -> str:
    """Return a text of NVML's, which older versions of its package give as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
