"""What disturbs a measurement, and whether it still counts. [no torch, no pydantic]"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from edgetl import machine
from edgetl.intervals import Interval
from edgetl.measure import gpu

HALF_WIDTH = 0.10
"""Above this relative half-width of the median a measurement is invalid."""

FAILED = 0.20
"""Above this share of failed rounds a measurement is invalid."""

_CPU = "devices/system/cpu"
_COUNTS, _ALARMS = f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count", "class/hwmon/hwmon*/curr[0-9]*_*_alarm"
TURNS, REPEATS = 1000, 10
"""How often cores are tried, all of them together, and pieces of work at each turn."""

WRONG = "wrong_answers"
"""The flag of a measurement whose answers are not the bundle's goldens: a fast wrong answer is no measurement."""

FATAL = frozenset({"throttled", "battery", WRONG})

UNSTEADY = {"cpu": 0.05, "gpu": 0.025}
"""Above this coefficient of variation a window is unstable; the second is what trtexec warns at."""

STEADY_CLOCK, POWER_CAPPED = 0.95, 0.05
"""The least share of the median clock that every reading has to reach; and the most readings at a GPU's power cap."""

_REASONS = sum(gpu.REASONS)
_THROTTLE_BITS = 0xF  # Raspberry Pi: under-voltage, frequency capped, throttled, soft temperature limit


@dataclass(frozen=True)
class State:
    """The machine at one moment; times in seconds since it started."""

    steal: float
    total: float
    throttle_count: int  # x86: thermal events
    throttle_word: str | None  # Raspberry Pi
    battery: bool
    temp_c: float | None = None  # of the hottest sensor
    alarms: int = 0  # Jetson: supply rails beyond their limit
    policy: tuple[str | None, float | None] = (None, None)  # the governor, and the highest clock allowed, in megahertz


@dataclass(frozen=True)
class Disturbance:
    """What was seen while one artifact was measured; None where it cannot be read or does not apply."""

    steal: float  # share of the machine's time
    contention: float | None  # wall / CPU time, at one thread
    switches: float  # involuntary, per second
    others: float  # runnable besides ours, per cpu
    cv: float
    unsteady: float  # the limit of `cv`
    trend: Interval  # the time at the end of a window over that at its start, over rounds
    growth: float  # of the memory's peak in the second half of the window
    throttled: bool
    battery: bool
    mhz: Sequence[float] = ()  # clocks read in the windows
    reasons: Sequence[int] = ()  # why a GPU's clocks were low, at each reading
    hot: bool = False  # hotter at the start than the device file allows
    policy: bool = False  # the governor or the highest clock allowed changed


def state(root: Path = Path("/sys")) -> State:
    """Read the machine's state."""
    times = psutil.cpu_times()._asdict()
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return State(
        times.get("steal", 0.0),
        sum(v for k, v in times.items() if k not in ("guest", "guest_nice")),
        sum(int(text) for text in _texts(root, _COUNTS)),
        _throttle_word(root),
        battery is not None and battery.power_plugged is False,
        temperature(root),
        sum(int(text) for text in _texts(root, _ALARMS)),
        (machine.governor(root / _CPU), machine.cap_mhz(root / _CPU)),
    )


def temperature(root: Path = Path("/sys")) -> float | None:
    """Return the degrees Celsius of the hottest sensor; None where the kernel shows none."""
    found = map(_celsius, sorted((root / "class/thermal").glob("thermal_zone*/temp")))
    return max((c for c in found if c is not None), default=None)


def steal(before: State, after: State) -> float:
    """Return the share of the machine's time that the hypervisor gave to others."""
    total = after.total - before.total
    return max(0.0, (after.steal - before.steal) / total) if total > 0 else 0.0


def throttled(before: State, after: State) -> bool:
    """Say whether the machine slowed down for heat or power."""
    words = [int(s.throttle_word, 16) if s.throttle_word else 0 for s in (before, after)]
    now = any(word & _THROTTLE_BITS for word in words)
    return now or words[0] != words[1] or after.throttle_count > before.throttle_count or after.alarms > 0


def readable(probe: str, root: Path = Path("/sys")) -> bool:
    """Say whether this machine shows throttling where a device file says it does ("nvml" is read with the GPU)."""
    if probe == "vcgencmd":
        return _throttle_word(root) is not None
    return probe != "sysfs" or any(True for pattern in (_COUNTS, _ALARMS) for _ in _texts(root, pattern))


def quietest(cpus: Sequence[int]) -> int:
    """Return the core on which a short piece of work is done first, on average over half a second.

    On a shared host one core may share its caches and units with a busy neighbour and another not: processes that
    land on either then differ by tens of percent, in CPU time too; and another program may run on one of them. The work
    is spread over the time, core by core in turn; where the system cannot pin a process, it is the first core.
    """
    if len(cpus) < 2 or not hasattr(os, "sched_setaffinity"):
        return cpus[0]
    before, took = os.sched_getaffinity(0), dict.fromkeys(cpus, 0)
    data = bytes(1 << 16)
    try:
        for _ in range(max(3, TURNS // len(cpus))):
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                start = time.perf_counter_ns()
                for _ in range(REPEATS):
                    hashlib.sha256(data)
                took[cpu] += time.perf_counter_ns() - start
    finally:
        os.sched_setaffinity(0, before)
    return min(took, key=lambda cpu: took[cpu])


def flags(seen: Disturbance) -> list[str]:
    """Return the names of what was above its threshold."""
    above: Mapping[str, bool] = {
        "steal": seen.steal > 0.01,
        "contention": seen.contention is not None and seen.contention > 1.05,
        "switches": seen.switches > 20,
        "load": seen.others > 0.5,
        "instability": seen.cv > seen.unsteady,
        "thermal_or_drift": _drifts(seen.trend),
        "memory_growth": seen.growth > 0.02,
        "throttled": seen.throttled or any(bits & ~gpu.POWER_CAP & _REASONS for bits in seen.reasons),
        "power_cap": sum(bool(bits & gpu.POWER_CAP) for bits in seen.reasons) > POWER_CAPPED * len(seen.reasons),
        "frequency": bool(seen.mhz) and min(seen.mhz) < STEADY_CLOCK * statistics.median(seen.mhz),
        "clock_policy": seen.policy,
        "hot_start": seen.hot,
        "battery": seen.battery,
    }
    return [name for name, yes in above.items() if yes]


def verdict(raised: Sequence[str], half_width: float, failed: float) -> Literal["clean", "noisy", "invalid"]:
    """Return what a measurement is worth; `half_width` and `failed` are shares."""
    if FATAL & set(raised) or half_width > HALF_WIDTH or failed > FAILED:
        return "invalid"
    return "noisy" if raised or failed else "clean"


def _drifts(trend: Interval) -> bool:
    """Say whether windows end more than 1 % off their start, and not by chance: short ones seem to drift by noise."""
    return abs(math.log(trend.value)) > 0.01 and (trend.low > 1 or trend.high < 1)


def _throttle_word(root: Path) -> str | None:
    """Return what a Raspberry Pi's firmware says, by the kernel or by its own command; None elsewhere."""
    shown = next(_texts(root, "devices/platform/soc*/soc*:firmware/get_throttled"), None)
    if shown is not None or shutil.which("vcgencmd") is None:
        return shown
    try:
        said = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"throttled=(0x[0-9a-fA-F]{1,8})", said.stdout.strip())
    return found[1] if found else None


def _celsius(path: Path) -> float | None:
    try:
        return int(path.read_text("ascii")) / 1000
    except (OSError, ValueError):
        return None


def _texts(root: Path, pattern: str) -> Iterator[str]:
    for path in sorted(root.glob(pattern)):
        try:
            text = path.read_text("ascii").strip()
        except OSError:
            continue
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
            yield text
