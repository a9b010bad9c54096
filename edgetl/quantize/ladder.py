"""The ladder of precisions: what was tried for "auto", which file ships, and why the others do not. [host: torch]"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgetl.artifact import Checked
from edgetl.device import Device
from edgetl.errors import BadHost, OutOfResources
from edgetl.evaluate import interval_json
from edgetl.intervals import Interval
from edgetl.measure.measurement import Measurement
from edgetl.stages.profile import profile
from edgetl.types import Json

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Rung:
    """One precision that was tried."""

    precision: str
    outcome: Literal["ships", "rejected"]
    reason: str
    size_bytes: int | None = None
    given_back: tuple[str, ...] = ()  # nodes that repair left in float
    time_ms: Interval | None = None  # median of one call, CPU time at one thread; None: not timed
    ratio: Interval | None = None  # time over the fp32 file's, paired by round

    def to_json(self) -> Json:
        """Return the plain data of a manifest and of a ladder's own file."""
        return {
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
    """Return the fastest file that keeps the gates: fp32 unless another one is proven to be faster on the device.

    `tried` are files with their bundles, fp32 first; those that miss a gate are rejected before anything is timed.
    """
    kept = [(one, folder) for one, folder in tried if not one.lowered.missed]
    missing = [_rung(one, f"misses {one.lowered.missed}") for one, _ in tried if one.lowered.missed]
    times = _timed([folder for _, folder in kept], device)
    ratios = [_proven(m) for m in times]
    best = min(range(len(kept)), key=lambda i: ratios[i])
    rungs = [_rung(one, _reason(m, ratios[best]), m) for (one, _), m in zip(kept, times, strict=True)]
    rungs[best] = replace(rungs[best], outcome="ships", reason=_why(times[best], len(kept)))
    every = (*rungs, *missing, *rejected)
    for rung in every:
        log.info("%s %s: %s", rung.precision, rung.outcome, rung.reason)
    return Ladder(kept[best][0], every)


def _timed(bundles: Sequence[Path], device: Device) -> list[Measurement | None]:
    """Return one measurement for each bundle, interleaved and paired with the first; None where there is none."""
    if len(bundles) < 2:
        return [None] * len(bundles)
    try:
        return list(profile(bundles, device, out=None, mode="quick", baseline=bundles[0]))
    except (BadHost, OutOfResources) as e:
        log.warning("the precisions cannot be timed here: %s", e.problem)
        return [None] * len(bundles)


def _proven(m: Measurement | None) -> float:
    """Return the time over fp32's where it is proven to be less, else 1: what is not faster is no reason to change."""
    ratio = m.comparison if m is not None and m.verdict != "invalid" else None
    return ratio.ratio if ratio is not None and ratio.word == "faster" and ratio.judged.high < 1 else 1.0


def _reason(m: Measurement | None, best: float) -> str:
    """Return why a file that keeps the gates does not ship."""
    if m is None:
        return "keeps the gates; not timed"
    if m.verdict == "invalid":
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
    return "no other precision keeps the gates" if kept == 1 else "no other precision is proven to be faster"


def _rung(one: Checked, reason: str, m: Measurement | None = None) -> Rung:
    valid = m is not None and m.verdict != "invalid"
    lowered = one.lowered
    return Rung(
        lowered.target.precision,
        "rejected",
        reason,
        lowered.file.stat().st_size,
        lowered.given_back,
        (m.latency.cpu_p50 if m.by_cpu_time else m.latency.p50) if m is not None and valid else None,
        m.comparison.interval if m is not None and valid and m.comparison else None,
    )
