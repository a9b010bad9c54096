"""What the kernel says of this machine's processor; nothing is started or timed. [no torch, no pydantic]"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_KNOWN_FEATURES = frozenset(
    {"avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
    | {"asimd", "asimddp", "asimdhp", "bf16"}
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

QUICK = {
    "fp16": {"asimdhp"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"},
}
"""The instructions with which a processor computes faster in a precision than in fp32."""


def cpu_model() -> str:
    """Return the processor's name, as the kernel gives it."""
    return cpuinfo("model name", "Model", "Hardware") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets that matter for networks, sorted."""
    return tuple(sorted(_KNOWN_FEATURES & set(cpuinfo("flags", "Features").split())))


def usable_cpus() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def governor(root: Path = _CPU) -> str | None:
    """Return the frequency governor of the first core; None where the kernel shows none, as in most VMs."""
    return _text(root / "cpu0/cpufreq/scaling_governor")


def turbo(root: Path = _CPU) -> bool | None:
    """Return whether clocks above the nominal one are allowed; None where the kernel does not say."""
    if (barred := _text(root / "intel_pstate/no_turbo")) is not None:
        return barred == "0"
    boost = _text(root / "cpufreq/boost")
    return None if boost is None else boost == "1"


def cap_mhz(root: Path = _CPU) -> float | None:
    """Return the lowest of the highest clocks that cores are allowed now; None where the kernel shows none."""
    return min(_mhz(root, "cpu[0-9]*/cpufreq/scaling_max_freq"), default=None)


def clock_mhz(cpu: int, root: Path = _CPU) -> float | None:
    """Return the clock of a core now; None where the kernel shows none, as in most VMs."""
    return next(iter(_mhz(root, f"cpu{cpu}/cpufreq/scaling_cur_freq")), None)


def cache_bytes(root: Path = _CPU) -> int | None:
    """Return the size of the last-level cache; None where the kernel does not show it."""
    found = []
    for folder in root.glob(f"cpu{usable_cpus()[0]}/cache/index*"):
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(folder / "size") or "")
        level = _text(folder / "level") or ""
        if size and level.isdigit() and _text(folder / "type") != "Instruction":
            found.append((int(level), int(size[1]) * _UNITS[size[2]]))
    return max(found)[1] or None if found else None


def cpuinfo(*keys: str) -> str:
    """Return the first of these fields that /proc/cpuinfo has; empty without any."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    for key in keys:
        found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def _mhz(root: Path, pattern: str) -> list[float]:
    """Return the clocks in files of a pattern, which count in kilohertz."""
    texts = (_text(path) or "" for path in root.glob(pattern))
    return [int(text) / 1000 for text in texts if text.isdecimal()]


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return None


def quick(features: Iterable[str]) -> tuple[str, ...]:
    """Return the precisions in which a processor with these features computes faster than in fp32."""
    return tuple(name for name, needs in QUICK.items() if needs & set(features))
