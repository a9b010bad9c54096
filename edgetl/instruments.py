"""What is read beside a measuring process: energy meters, and the memory of a GPU. [no torch]

Each is read by the waiting process, so that the measured one holds nothing of them. The paths for NVIDIA GPUs follow
NVML's documentation and have not run on a GPU yet.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from edgetl.device import Device

Source: TypeAlias = Literal["ina3221", "nvml", "rapl"]
METER_PERIOD_S, GPU_PERIOD_S = 0.05, 0.01
INPUTS = ("VDD_IN", "POM_5V_IN")
"""The rails of Jetson boards that feed all the others; adding up the others would miss or double some."""


class Meter(Protocol):
    """A source of energy readings."""

    source: Source

    def joules(self) -> float:
        """Return the energy since some moment; OSError where it can no longer be read."""


class Rapl:
    """The package counters of Intel and AMD processors, which wrap; intel-rapl-mmio shows the same ones again."""

    source: Source = "rapl"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._ranges = {zone: _number(zone / "max_energy_range_uj") for zone in zones}
        self._last = {zone: _number(zone / "energy_uj") for zone in zones}
        self._total = 0.0

    @classmethod
    def found(cls, root: Path) -> Rapl | None:
        """Return the counters below a sysfs root; None where there are none, or only root may read them."""
        zones = [
            zone
            for zone in sorted((root / "class/powercap").glob("intel-rapl:*"))
            if _text(zone / "name").startswith("package")
        ]
        try:
            return cls(zones) if zones else None
        except OSError:
            return None

    def joules(self) -> float:
        """Return the energy of all packages since this was made."""
        for zone, before in self._last.items():
            now = _number(zone / "energy_uj")
            self._total += now - before if now >= before else now - before + self._ranges[zone]
            self._last[zone] = now
        return self._total / 1e6


class Ina3221:
    """The supply rail of a Jetson board: power now, summed up from reading to reading."""

    source: Source = "ina3221"

    def __init__(self, chip: Path, channel: str) -> None:
        self._volts, self._amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
        self._last = (time.monotonic(), self._watts())
        self._total = 0.0

    @classmethod
    def found(cls, root: Path) -> Ina3221 | None:
        """Return the rail that feeds the board, below a sysfs root; None where no rail is known to."""
        for chip in sorted((root / "class/hwmon").glob("hwmon*")):
            for label in sorted(chip.glob("in[1-3]_label")) if _text(chip / "name") == "ina3221" else ():
                if _text(label) in INPUTS:
                    try:
                        return cls(chip, label.name[2])
                    except OSError:
                        return None
        return None

    def joules(self) -> float:
        """Return the energy since this was made."""
        now, watts = time.monotonic(), self._watts()
        before, earlier = self._last
        self._total += (watts + earlier) / 2 * (now - before)
        self._last = now, watts
        return self._total

    def _watts(self) -> float:
        return _number(self._volts) * _number(self._amperes) / 1e6  # millivolts times milliamperes


class Nvml:
    """The energy counter of an NVIDIA GPU, and the memory that a process holds on it."""

    source: Source = "nvml"

    def __init__(self, library: Any, index: int = 0) -> None:
        self._library, self._gpu = library, library.nvmlDeviceGetHandleByIndex(index)

    @classmethod
    def found(cls) -> Nvml | None:
        """Return the first GPU; None without a driver, or without the package that reads it."""
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            library.nvmlInit()
            return cls(library)
        except library.NVMLError:
            return None

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


@dataclass(frozen=True)
class Instruments:
    """What is read while a process runs."""

    meter: Meter | None = None
    gpu: Nvml | None = None
    idle_w: float = 0.0

    @property
    def period_s(self) -> float | None:
        """The time between readings; None where there is nothing to read."""
        return GPU_PERIOD_S if self.gpu else METER_PERIOD_S if self.meter else None


NONE = Instruments()


@dataclass
class Readings:
    """What was read while a process ran."""

    clock_ns: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    gpu_peak: int | None = None

    def take(self, watch: Instruments, pid: int) -> None:
        """Read every instrument once; energy that can no longer be read ends its series for good."""
        if watch.meter:
            try:
                joules = watch.meter.joules()
            except OSError:
                joules = float("nan")
            self.clock_ns.append(time.perf_counter_ns())
            self.energy.append(joules)
        if watch.gpu and (used := watch.gpu.memory(pid)):
            self.gpu_peak = max(used, self.gpu_peak or 0)

    def joules(self, start_ns: int, end_ns: int) -> float | None:
        """Return the energy between two moments, on a line between readings; None outside what was read."""
        if len(self.clock_ns) < 2 or start_ns < self.clock_ns[0] or end_ns > self.clock_ns[-1]:
            return None
        first, last = np.interp([start_ns, end_ns], self.clock_ns, self.energy)
        used = float(last - first)
        return used if np.isfinite(self.energy).all() else None


def instruments(device: Device, root: Path = Path("/sys"), idle_s: float = 1.0) -> Instruments:
    """Return what this machine can read, and measure the power of the idle machine for so many seconds."""
    gpu = Nvml.found() if device.kind == "cuda" else None
    there: tuple[Meter | None, ...] = (Ina3221.found(root), gpu, Rapl.found(root))
    meter = next((one for one in there if one and device.power.energy in ("none", one.source)), None)
    watts = None if meter is None else _idle(meter, idle_s)
    return Instruments(None, gpu) if watts is None else Instruments(meter, gpu, watts)


def _idle(meter: Meter, seconds: float) -> float | None:
    """Return the watts of the machine while nothing of ours runs; None where the meter fails."""
    try:
        start, before = time.monotonic(), meter.joules()
        time.sleep(seconds)
        return (meter.joules() - before) / (time.monotonic() - start)
    except OSError:
        return None


def _number(path: Path) -> float:
    try:
        return float(path.read_text("ascii"))
    except ValueError as e:
        raise OSError(f"{path} holds no number") from e


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
