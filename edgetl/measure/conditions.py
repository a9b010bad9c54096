"""What a machine was like while it measured: what was read before, meanwhile and after. [no torch]"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetl import intervals, versions
from edgetl.device import Device, usable_cpus
from edgetl.intervals import Interval
from edgetl.measure import gpu, noise
from edgetl.measure.instruments import Instruments, Source
from edgetl.measure.measurement import Comparison, Noise, by_cpu_time
from edgetl.measure.probing import Sample

LOG = logging.getLogger("edgetl")
COOL_S = 1.0
"""Between two looks at a machine that is cooling."""


@dataclass(frozen=True)
class Surroundings:
    """The machine over the whole run."""

    steal: float
    throttled: bool
    throttle_word: str | None
    battery: bool
    temp_c_max: float | None = None
    idle_w: float | None = None  # None: no energy meter
    meter: Source | None = None
    control: Interval | None = None  # the baseline over itself; None where it was not measured twice
    hot: bool = False  # at the start, above what the device file allows
    policy: bool = False  # the governor or the highest clock allowed changed


def around(
    before: noise.State, after: noise.State, device: Device, watch: Instruments, control: Interval | None = None
) -> Surroundings:
    """Return what two looks at the machine, with a run between them, say of it."""
    temperatures = [s.temp_c for s in (before, after) if s.temp_c is not None]
    most = device.thermal.max_start_temp_c
    return Surroundings(
        steal=noise.steal(before, after),
        throttled=noise.throttled(before, after),
        throttle_word=after.throttle_word,
        battery=before.battery or after.battery,
        temp_c_max=max(temperatures, default=None),
        idle_w=watch.idle_w if watch.meter else None,
        meter=watch.meter.source if watch.meter else None,
        control=control,
        hot=most is not None and before.temp_c is not None and before.temp_c > most,
        policy=before.policy != after.policy,
    )


def begin(device: Device) -> noise.State:
    """Return the machine's state once it is as cool as its file asks for, or has had its time to cool down."""
    thermal = device.thermal
    if thermal.throttle_probe and not noise.readable(thermal.throttle_probe):
        LOG.warning("profile: %s: throttling cannot be read here (%s)", device.name, thermal.throttle_probe)
    end, most = time.monotonic() + (thermal.cooldown_s or 0.0), thermal.max_start_temp_c
    while most is not None and time.monotonic() < end and (noise.temperature() or 0.0) > most:
        LOG.info("profile: cooling down to %.0f C (%s cooling)", most, thermal.cooling or "unknown")
        time.sleep(COOL_S)
    state = noise.state()
    if most is not None and state.temp_c is None:
        LOG.warning("profile: %s: its temperature cannot be read here", device.name)
    return state


def warn_of_version(device: Device, runtime: str) -> None:
    """Warn where a runtime such as "onnxruntime 1.31.1" is not the one that the device's file is written for."""
    name, _, version = runtime.partition(" ")
    wanted = [r.version for r in device.runtimes if r.name == name]
    if wanted and not any(versions.fits(version, one) for one in wanted):
        LOG.warning("profile: %s is here with %s %s, its file says %s", device.name, name, version, " or ".join(wanted))


def disturbance(done: Sequence[Sample], device: Device, surroundings: Surroundings) -> noise.Disturbance:
    """Return what disturbed these processes of one artifact."""
    one = by_cpu_time(device.threads, device.kind)
    chosen = [np.asarray(s.cpu if one else s.wall, np.float64) for s in done]
    trends = [intervals.theil_sen(v) / float(np.median(v)) for v in chosen]
    return noise.Disturbance(
        steal=surroundings.steal,
        contention=sum(sum(s.wall) for s in done) / sum(sum(s.cpu) for s in done) if one else None,
        switches=sum(s.switches for s in done) / sum(s.seconds for s in done),
        others=statistics.fmean(s.others for s in done) / len(device.cpus or usable_cpus()),
        cv=float(statistics.median(v.std() / v.mean() for v in chosen)),
        unsteady=noise.UNSTEADY["gpu" if device.kind in ("cuda", "jetson") else "cpu"],
        trend=intervals.geometric_mean([math.exp(t) for t in trends]),
        growth=statistics.median(s.growth for s in done),
        throttled=surroundings.throttled,
        battery=surroundings.battery,
        mhz=[mhz for s in done for mhz in s.mhz],
        reasons=[bits for s in done for bits in s.reasons],
        hot=surroundings.hot,
        policy=surroundings.policy,
    )


def recorded(
    seen: noise.Disturbance, raised: list[str], surroundings: Surroundings, comparison: Comparison | None
) -> Noise:
    """Return the `noise` object of a measurement."""
    control = surroundings.control
    return Noise(
        flags=raised,
        steal=seen.steal,
        wall_over_cpu=seen.contention,
        involuntary_switches_per_s=seen.switches,
        runnable_others=seen.others,
        cv=seen.cv,
        throttle_word=surroundings.throttle_word,
        temp_c_max=surroundings.temp_c_max,
        clock_mhz_min=min(seen.mhz, default=None),
        clock_mhz_median=statistics.median(seen.mhz) if seen.mhz else None,
        clock_reasons=tuple(dict.fromkeys(name for bits in seen.reasons for name in gpu.names(bits))),
        aa_ratio_ci95=(control.low, control.high) if control else None,
        mde=None if comparison is None else intervals.half_width(comparison.interval),
    )
