"""Measure what a device can do at best through the runtime that ships: its roofline and its noise. [no torch]"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from edgetl import device as devices
from edgetl import intervals, machine, remote
from edgetl._peak import Job, Kind
from edgetl.device import Device, Floor, Roofline
from edgetl.errors import MEASURING, BadHost, EdgetlError, OutOfResources
from edgetl.intervals import Interval
from edgetl.measure import noise
from edgetl.measure.alone import alone
from edgetl.measure.probing import KEPT
from edgetl.types import Json

LOG = logging.getLogger("edgetl")
START = "import sys; sys.path.insert(0, sys.argv[1]); from edgetl._peak import main; main()"
TIMEOUT_S = 120.0

FP32, AGAIN, INT8 = "fp32_gflops", "again", "int8_gops"
MEMORY, CACHE, LAUNCH = "bandwidth_gbs", "cache_bandwidth_gbs", "launch_us"
UNITS: Mapping[str, str] = {FP32: "GFLOP/s", INT8: "GOP/s", MEMORY: "GB/s", CACHE: "GB/s", LAUNCH: "us a node"}

LEAST_SET, BLIND_SET = 64 << 20, 256 << 20
"""Bytes streamed to measure the memory, at least; and where the size of the caches is unknown."""


@dataclass(frozen=True)
class Effort:
    """How much is measured; rounds are added until all that is asked is known well enough."""

    rounds: int = 7
    most: int = 15
    enough: float = 0.05  # relative half-width of every rate
    window_s: float = 0.4  # of each graph in each process
    side: int = 1024  # of the matrices
    streamed: int | None = None  # bytes; None: five times the last-level cache


def calibrate(device: Device, effort: Effort | None = None, seed: int = 0) -> Device:
    """Return the device with a measured roofline and noise; it takes one to two minutes.

    Every round starts a fresh process for each rate, in an order shuffled by the seed, with the device's threads and
    cores. A rate is the geometric mean over rounds of the median of each process, with its 95 % interval: of CPU time
    at one thread, of wall time at more.

    Raises:
        BadHost: this machine cannot stand for the device, is no CPU, throttles or runs on battery.
        OutOfResources: memory does not hold what has to be streamed past the caches.

    """
    effort = effort or Effort()
    if device.kind != "cpu":
        fix = "keep the datasheet values of its file; calibration measures processors"
        raise BadHost(f"{device.name} is of kind {device.kind}, which cannot be calibrated", fix=fix)
    _here(device)
    cache = device.arch.cache_bytes or machine.cache_bytes()
    jobs = _jobs(device, effort, cache)
    before = noise.state()
    _undisturbed(before, before)
    with alone():
        rates = _rounds(jobs, effort, seed)
    _undisturbed(before, noise.state())
    found = {name: value for name in jobs if (value := _mean(rates[name])) is not None}
    ratio = intervals.paired_ratio(rates[AGAIN], rates[FP32])
    _warn(found)
    return device.model_copy(
        update={
            "arch": device.arch.model_copy(update={"cache_bytes": cache}),
            "roofline": _roofline(found, device.threads),
            "noise": Floor(
                aa_ratio_ci95=(_short(ratio.low), _short(ratio.high)), mde=_short(intervals.half_width(ratio))
            ),
        }
    )


def _here(device: Device) -> None:
    try:
        devices.require_here(device)
    except BadHost as e:
        if device.link == "local://":
            raise
        fix = f"run this command on {device.name} itself; `--device local` calibrates this machine"
        raise BadHost(e.problem, fix=fix) from e
    if remote.is_remote(device):
        fix = "run this command there; `--device local` calibrates this machine"
        raise BadHost(f"{device.name} is behind {device.link}, and calibration measures where it runs", fix=fix)


def lines(device: Device) -> list[tuple[str, str, str, str]]:
    """Return quantity, value, 95 % interval and unit of all that was calibrated; empty where nothing was."""
    roof, floor = device.roofline, device.noise
    if roof is None or roof.source != "measured":
        return []
    rates = {**roof.peak, MEMORY: roof.bandwidth_gbs, CACHE: roof.cache_bandwidth_gbs, LAUNCH: roof.launch_us}
    made = [
        (name, f"{value:g}", " to ".join(f"{end:g}" for end in roof.ci95.get(name, ())), UNITS.get(name, ""))
        for name, value in rates.items()
        if value is not None
    ]
    if floor is not None:
        low, high = floor.aa_ratio_ci95
        made.append(("the same twice", "1", f"{low:g} to {high:g}", "ratio"))
        made.append(("smallest effect shown", f"{100 * floor.mde:.2g}", "", "% of the latency"))
    return made


def _jobs(device: Device, effort: Effort, cache: int | None) -> dict[str, Job]:
    """Return one job for each rate; the cache's only where its size is known."""
    streamed = effort.streamed or (max(LEAST_SET, 5 * cache) if cache else BLIND_SET)
    if 2 * streamed > psutil.virtual_memory().available:
        problem = f"{2 * streamed / 1e6:.0f} MB of free memory are needed to read past the caches"
        raise OutOfResources(problem, fix="stop other programs and calibrate again")
    sizes: list[tuple[str, Kind, int]] = [
        *((FP32, "fp32", effort.side), (AGAIN, "fp32", effort.side), (INT8, "int8", effort.side)),
        *((MEMORY, "stream", streamed), (LAUNCH, "launch", 16)),
    ]
    if cache:
        sizes.append((CACHE, "stream", min(cache // 2, streamed)))
    return {name: Job(kind, n, device.threads, device.cpus, effort.window_s) for name, kind, n in sizes}


def _rounds(jobs: Mapping[str, Job], effort: Effort, seed: int) -> dict[str, list[float]]:
    """Return the rate that each process saw, one a round."""
    draw = random.Random(seed)
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    done = 0
    while done < effort.rounds or (done < effort.most and _widest(rates) > effort.enough):
        for name in draw.sample(list(jobs), len(jobs)):
            rates[name].append(_rate(name, jobs[name], draw.randrange(4096)))
        done += 1
        LOG.info("calibrate: round %d", done, extra={"done": min(done, effort.rounds), "total": effort.rounds})
    return rates


def _widest(rates: Mapping[str, Sequence[float]]) -> float:
    found = [value for values in rates.values() if (value := _mean(values)) is not None]
    return max(intervals.half_width(value) for value in found)


def _mean(rates: Sequence[float]) -> Interval | None:
    """Return the mean of a rate; a slope that noise made negative does not count. None with fewer than two."""
    good = [rate for rate in rates if rate > 0]
    return intervals.geometric_mean(good) if len(good) > 1 else None


def _rate(name: str, job: Job, pad: int) -> float:
    """Run one job in a fresh process. `pad` bytes lengthen the environment, whose size shifts the stack."""
    package = str(Path(__file__).parents[2])
    kept = {key: os.environ[key] for key in KEPT if key in os.environ} | {"EDGETL_PAD": "x" * pad}
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-I", "-c", START, package, str(out.fileno()), json.dumps(asdict(job))]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, env=kept, pass_fds=(out.fileno(),),
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            fix = "calibrate with fewer threads, or when the machine is idle"
            raise BadHost(f"{name}: nothing was measured within {TIMEOUT_S:.0f} s", fix=fix) from e
        out.seek(0)
        said: Json = json.loads(out.read() or "{}")
    if "rate" in said:
        return float(said["rate"])
    raise _explained(name, ended.returncode, said, ended.stderr.decode("utf-8", "replace"))


def _explained(name: str, code: int, said: Mapping[str, str], errors: str) -> EdgetlError:
    if "problem" in said:
        return MEASURING.get(code, BadHost)(f"{name}: {said['problem']}", fix=said["fix"])
    if code == -signal.SIGKILL:
        return OutOfResources(f"{name}: the system killed the process, most likely for memory", fix="free memory")
    last = (errors.strip().splitlines() or [f"code {code}"])[-1][:200]
    return BadHost(f"{name}: the calibrating process failed: {last}", fix="run `edgetl doctor`")


def _undisturbed(before: noise.State, after: noise.State) -> None:
    """Check that the machine ran at its full speed."""
    if noise.throttled(before, after):
        raise BadHost("the machine throttled during the calibration", fix="cool it, mend its supply, and try again")
    if before.battery or after.battery:
        raise BadHost("the machine runs on battery, where rates are not its best", fix="plug it in and try again")


def _warn(found: Mapping[str, Interval]) -> None:
    for name, value in found.items():
        if name != AGAIN and intervals.half_width(value) > noise.HALF_WIDTH:
            wide = 100 * intervals.half_width(value)
            LOG.warning("%s is uncertain by %.0f %%: other programs run here, or the clock changes", name, wide)


def _roofline(found: Mapping[str, Interval], threads: int) -> Roofline:
    good = {name: value for name, value in found.items() if name != AGAIN}
    values = {name: _short(value.value) for name, value in good.items()}
    return Roofline(
        peak={name: values[name] for name in (FP32, INT8) if name in values},
        bandwidth_gbs=values.get(MEMORY),
        cache_bandwidth_gbs=values.get(CACHE),
        launch_us=values.get(LAUNCH),
        threads=threads,
        ci95={name: (_short(value.low), _short(value.high)) for name, value in good.items()},
        source="measured",
    )


def _short(value: float) -> float:
    """Return four significant digits, more than any of these is known to."""
    return float(f"{value:.4g}")
