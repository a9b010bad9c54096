"""What is read beside a measuring process: energy meters, clocks, and the memory of a GPU. [no torch]

Each is read by the waiting process, so that the measured one holds nothing of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from edgetl import machine
from edgetl.device import Device, usable_cpus
from edgetl.measure.gpu import Nvml

Source: TypeAlias = Literal["ina3221", "nvml", "rapl"]
METER_PERIOD_S, GPU_PERIOD_S, CLOCK_PERIOD_S = 0.05, 0.01, 0.25
INPUTS = ("VDD_IN", "POM_5V_IN")
"""The rails of Jetson boards that feed all the others; adding up the others would miss or double some."""


class Meter(Protocol):
    """A source of energy readings."""

    @property
    def source(self) -> Source:
        """What is read, as a measurement names it."""

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


class Clocks:
    """The clocks of the cores that compute, as the kernel shows them."""

    def __init__(self, cpus: Sequence[int], threads: int, root: Path) -> None:
        self._cpus, self._threads, self._root = cpus, threads, root / "devices/system/cpu"

    def mhz(self) -> float | None:
        """Return the lowest clock now of as many cores as there are threads, the fastest: the others may be idle."""
        shown = (machine.clock_mhz(cpu, self._root) for cpu in self._cpus)
        return min(sorted((c for c in shown if c is not None), reverse=True)[: self._threads], default=None)


@dataclass(frozen=True)
class Instruments:
    """What is read while a process runs."""

    meter: Meter | None = None
    gpu: Nvml | None = None
    idle_w: float = 0.0
    clocks: Clocks | Nvml | None = None  # of what computes

    @property
    def period_s(self) -> float | None:
        """The time between readings; None where there is nothing to read."""
        if self.gpu:
            return GPU_PERIOD_S
        return METER_PERIOD_S if self.meter else CLOCK_PERIOD_S if self.clocks else None


NONE = Instruments()


@dataclass
class Readings:
    """What was read while a process ran."""

    clock_ns: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    gpu_peak: int | None = None
    clocks: list[tuple[int, float]] = field(default_factory=list)  # when, and megahertz
    reasons: list[tuple[int, int]] = field(default_factory=list)  # when, and why the GPU's clocks are low, as bits

    def take(self, watch: Instruments, pid: int) -> None:
        """Read every instrument once; energy that can no longer be read ends its series for good."""
        if watch.meter:
            try:
                joules = watch.meter.joules()
            except OSError:
                joules = float("nan")
            self.clock_ns.append(time.perf_counter_ns())
            self.energy.append(joules)
        if watch.gpu:
            self._take_gpu(watch.gpu, pid)
        now = time.perf_counter_ns()
        due = not self.clocks or now - self.clocks[-1][0] >= CLOCK_PERIOD_S * 1e9
        if watch.clocks and due and (mhz := watch.clocks.mhz()) is not None:
            self.clocks.append((now, mhz))

    def _take_gpu(self, gpu: Nvml, pid: int) -> None:
        if used := gpu.memory(pid):
            self.gpu_peak = max(used, self.gpu_peak or 0)
        if (bits := gpu.reasons()) is not None:
            self.reasons.append((time.perf_counter_ns(), bits))

    def mhz(self, start_ns: int, end_ns: int) -> list[float]:
        """Return the clocks read between two moments."""
        return [mhz for when, mhz in self.clocks if start_ns <= when <= end_ns]

    def why_slow(self, start_ns: int, end_ns: int) -> list[int]:
        """Return the bits of why the GPU's clocks were low at every reading between two moments."""
        return [bits for when, bits in self.reasons if start_ns <= when <= end_ns]

    def joules(self, start_ns: int, end_ns: int) -> float | None:
        """Return the energy between two moments, on a line between readings; None outside what was read."""
        if len(self.clock_ns) < 2 or start_ns < self.clock_ns[0] or end_ns > self.clock_ns[-1]:
            return None
        first, last = np.interp([start_ns, end_ns], self.clock_ns, self.energy)
        used = float(last - first)
        return used if np.isfinite(self.energy).all() else None


def instruments(device: Device, root: Path = Path("/sys"), idle_s: float = 1.0) -> Instruments:
    """Return what this machine can read, and measure the power of the idle machine for so many seconds."""
    gpu = Nvml.found() if device.kind in ("cuda", "jetson") else None
    shown = gpu or clocks(device, root)
    there: tuple[Meter | None, ...] = (Ina3221.found(root), gpu, Rapl.found(root))
    meter = next((one for one in there if one and device.power.energy in ("none", one.source)), None)
    watts = None if meter is None else _idle(meter, idle_s)
    return Instruments(None, gpu, clocks=shown) if watts is None else Instruments(meter, gpu, watts, shown)


def clocks(device: Device, root: Path = Path("/sys")) -> Clocks | None:
    """Return the clocks of a device's cores; None where the kernel shows none, as in most VMs."""
    made = Clocks(device.cpus or usable_cpus(), device.threads, root)
    return None if made.mhz() is None else made


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
