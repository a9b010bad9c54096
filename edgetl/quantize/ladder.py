"""The ladder of "auto": the targets and precisions tried, what ships, and why the rest does not. [host: torch]"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgetl.artifact import Checked
from edgetl.device import Device
from edgetl.errors import BadHost, OutOfResources, Refused
from edgetl.evaluate import interval_json
from edgetl.intervals import Interval
from edgetl.measure import noise
from edgetl.measure.measurement import Measurement
from edgetl.stages.profile import profile
from edgetl.types import Json

VOID = noise.FATAL | {"failed_rounds"}
"""The flags of a measurement that tells nothing."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Rung:
    """One target and precision that was tried."""

    target: str
    precision: str
    outcome: Literal["ships", "rejected"]
    reason: str
    size_bytes: int | None = None
    given_back: tuple[str, ...] = ()  # nodes that repair left in float
    time_ms: Interval | None = None  # median of one call, CPU time at one thread; None: not timed
    ratio: Interval | None = None  # time over that of the first file, which is fp32, paired by round

    def to_json(self) -> Json:
        """Return the plain data of a manifest and of a ladder's own file."""
        return {
            "target": self.target,
            "precision": self.precision,
            "outcome": self.outcome,
            "reason": self.reason,
            "size_bytes": self.size_bytes,
            "given_back": list(self.given_back),
            "time_ms": interval_json(self.time_ms) if self.time_ms else None,
            "ratio": interval_json(self.ratio) if self.ratio else None,
        }


@dataclass(frozen=True)
class Ladder:
    """All that was tried, and the file that ships."""

    chosen: Checked
    rungs: tuple[Rung, ...]


def climb(tried: Sequence[tuple[Checked, Path]], rejected: Sequence[Rung], device: Device) -> Ladder:
    """Return the fastest file that keeps the gates: the first unless another one is proven to be faster on the device.

    `tried` are files with their bundles, the first at fp32; those that miss a gate are rejected before any is timed.
    """
    kept = [(one, folder) for one, folder in tried if not one.lowered.missed]
    missing = [_rung(one, f"misses {one.lowered.missed}") for one, _ in tried if one.lowered.missed]
    times = _finally([folder for _, folder in kept], device)
    ratios = [_proven(m) for m in times]
    best = min(range(len(kept)), key=lambda i: ratios[i])
    rungs = [_rung(one, _reason(m, ratios[best]), m) for (one, _), m in zip(kept, times, strict=True)]
    rungs[best] = replace(rungs[best], outcome="ships", reason=_why(times[best], len(kept)))
    every = (*rungs, *missing, *rejected)
    for rung in every:
        log.info("%s %s %s: %s", rung.target, rung.precision, rung.outcome, rung.reason)
    return Ladder(kept[best][0], every)


def _finally(bundles: Sequence[Path], device: Device) -> list[Measurement | None]:
    """Return one measurement for each bundle; those that may be the fastest are timed again where that is not clear.

    Many files share the time of the first measurement, which leaves few rounds to each.
    """
    times = _timed(bundles, device, 0)
    ratios = {i: m.comparison.judged for i, m in enumerate(times) if m is not None and m.comparison is not None}
    fastest = min((r.high for i, r in ratios.items() if _proven(times[i]) < 1), default=1.0)
    close = [i for i, r in ratios.items() if r.low <= fastest]
    if len(close) > 1 or any(_proven(times[i]) == 1 for i in close):
        again = _timed([bundles[0], *(bundles[i] for i in close)], device, 1)
        for i, m in zip(close, again[1:], strict=True):
            times[i] = m if _tells(m) else times[i]
    return times


def _timed(bundles: Sequence[Path], device: Device, seed: int) -> list[Measurement | None]:
    """Return one measurement for each bundle, interleaved and paired with the first; None where there is none."""
    if len(bundles) < 2:
        return [None] * len(bundles)
    try:
        return list(profile(bundles, device, out=None, mode="quick", seed=seed, baseline=bundles[0]))
    except (BadHost, OutOfResources, Refused) as e:
        log.warning("the files cannot be timed here: %s", e.problem)
        return [None] * len(bundles)


def _proven(m: Measurement | None) -> float:
    """Return the time over fp32's where it is proven to be less, else 1: what is not faster is no reason to change."""
    ratio = m.comparison if m is not None and _tells(m) else None
    return ratio.ratio if ratio is not None and ratio.word == "faster" and ratio.judged.high < 1 else 1.0


def _tells(m: Measurement | None) -> bool:
    """Say whether a ratio counts: its own interval tells how sure it is, however uncertain the time of one file is."""
    return m is not None and (m.verdict != "invalid" or not VOID & set(m.noise.flags))


def _reason(m: Measurement | None, best: float) -> str:
    """Return why a file that keeps the gates does not ship."""
    if m is None:
        return "keeps the gates; not timed"
    if not _tells(m):
        return f"its time is not known: {', '.join(m.noise.flags) or 'too uncertain'}"
    if m.comparison is None:
        return "slower than the one that ships"
    if _proven(m) < 1:
        return f"faster than fp32, and slower than the one that ships ({best:.2f} of fp32's time)"
    word = m.comparison.word
    return "slower than fp32" if word == "slower" else "not proven to be faster than fp32"


def _why(m: Measurement | None, kept: int) -> str:
    if m is not None and m.comparison is not None:
        return "the fastest that keeps the gates"
    return "no other file keeps the gates" if kept == 1 else "no other file is proven to be faster"


def _rung(one: Checked, reason: str, m: Measurement | None = None) -> Rung:
    valid = m is not None and m.verdict != "invalid"
    lowered = one.lowered
    return Rung(
        lowered.target.use,
        lowered.target.precision,
        "rejected",
        reason,
        lowered.file.stat().st_size,
        lowered.given_back,
        (m.latency.cpu_p50 if m.by_cpu_time else m.latency.p50) if m is not None and valid else None,
        m.comparison.interval if m is not None and _tells(m) and m.comparison else None,
    )
