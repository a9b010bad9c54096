"""How many items an artifact handles in a second, at growing batches. [no torch, no runtime]"""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from edgetl import intervals
from edgetl.device import Device
from edgetl.errors import BadHost, OutOfResources
from edgetl.measure import conditions, noise, summary
from edgetl.measure.capacity import Batch, Throughput
from edgetl.measure.instruments import NONE, Instruments, clocks
from edgetl.measure.probing import Sample, probe
from edgetl.measure.rounds import EFFORTS, check_provider, job_of, pinned, timeout_s
from edgetl.measure.summary import Subject

LOG = logging.getLogger("edgetl")
MOST = 1024
"""Largest batch that is tried."""

GAIN = 0.05
"""Where two doublings running gain less than this over all before, no larger batch is tried; one may be noise."""

SHARE = 0.8
"""Of the machine's memory that a batch may take, where the device names no budget."""

PROCESSES, PATIENCE = 3, 12
"""Of every batch; and at most of the best, while its rate is too uncertain to count."""

EFFORT = replace(EFFORTS["quick"], window_s=1.0, window_n=3)

Stopped: TypeAlias = Literal["gain", "memory", "shape", "most"]


def sweep(subject: Subject, device: Device, seed: int) -> Throughput:
    """Return the rates at batches 1, 2, 4 ... until the gain, the memory or the artifact's shape ends it.

    Each rate is items / (last completion - first issue), over several fresh processes; of the best batch more are
    added while its rate is too uncertain to count.

    Raises:
        BadHost: a process did not finish in time.
        OutOfResources: there is no memory for one item.

    """
    draw, device = random.Random(seed), pinned(device)
    before = conditions.begin(device)
    seen, stopped = _grown(subject, device, draw)
    rates = [rate(2**i, samples) for i, samples in enumerate(seen)]
    best = max(range(len(rates)), key=lambda i: rates[i].items_per_s)
    while intervals.half_width(rates[best].rate) > noise.HALF_WIDTH and len(seen[best]) < PATIENCE:
        seen[best].append(_sample(subject, device, rates[best].batch, draw))
        rates[best] = rate(rates[best].batch, seen[best])
    around = conditions.around(before, noise.state(), device, NONE)
    flags = noise.flags(conditions.disturbance(seen[best], device, around))
    flags += [] if all(summary.right(subject, one) for one in seen) else [noise.WRONG]
    return Throughput(
        best_items_per_s=rates[best].items_per_s,
        best_batch=rates[best].batch,
        sweep=rates,
        stopped=stopped,
        verdict=noise.verdict(flags, intervals.half_width(rates[best].rate), 0.0),
        flags=tuple(flags),
    )


def rate(size: int, samples: Sequence[Sample]) -> Batch:
    """Return the rate of one batch size from the samples of several processes."""
    found = intervals.geometric_mean([size * len(s.wall) / s.seconds for s in samples])
    peak = round(statistics.median(max(s.load_peak, s.peak, 0) for s in samples))
    n = sum(len(s.wall) for s in samples)
    return Batch(batch=size, items_per_s=found.value, low=found.low, high=found.high, n=n, peak_delta_bytes=peak)


def why_stop(rates: Sequence[Batch], most: int, budget_bytes: float) -> Stopped | None:
    """Return why no larger batch is tried after these; None: try twice the last one."""
    last = rates[-1]
    earlier = rates[-2] if len(rates) > 1 else None
    grown = last.peak_delta_bytes - (earlier.peak_delta_bytes if earlier else 0)
    rate_of = [one.items_per_s for one in rates]
    if len(rates) > 2 and max(rate_of[-2:]) < (1 + GAIN) * max(rate_of[:-2]):
        return "gain"
    if last.peak_delta_bytes + (2 * grown if earlier else 0) > budget_bytes:
        return "memory"
    if 2 * last.batch > MOST:
        return "most"
    return "shape" if 2 * last.batch > most else None


def budget(device: Device) -> float:
    """Return the bytes that one artifact may take on a device."""
    return device.memory.budget_bytes or SHARE * device.memory.total_bytes


def _grown(subject: Subject, device: Device, draw: random.Random) -> tuple[list[list[Sample]], Stopped]:
    """Return the samples of every batch size that was tried, and why no larger one was."""
    most = _largest(subject)
    seen: list[list[Sample]] = []
    rates: list[Batch] = []
    stopped: Stopped | None = None
    while stopped is None:
        size = 2 ** len(rates)
        try:
            seen.append([_sample(subject, device, size, draw) for _ in range(PROCESSES)])
        except OutOfResources:
            if not rates:
                raise
            return seen, "memory"
        rates.append(rate(size, seen[-1]))
        LOG.info("profile: %s at batch %d, %.0f items/s", subject.stem, size, rates[-1].items_per_s)
        stopped = why_stop(rates, most, budget(device))
    return seen, stopped


def _sample(subject: Subject, device: Device, size: int, draw: random.Random) -> Sample:
    job = replace(job_of(subject, device, EFFORT), batch=size)
    sample = probe(job, draw.randrange(4096), timeout_s(job, None), Instruments(clocks=clocks(device)))
    if sample is None:
        problem = f"{subject.stem} did not finish {EFFORT.window_n} batches of {size} in time"
        raise BadHost(problem, fix="leave out --throughput, or use a smaller artifact")
    check_provider(sample, device)
    return sample


def _largest(subject: Subject) -> int:
    """Return the largest batch that the artifact takes."""
    first = subject.bundle.manifest["inputs"][0]["shape"][0]
    if isinstance(first, int):
        return first
    largest = subject.bundle.manifest["axes"].get(first, [1, None])[1]
    return MOST if largest is None else int(largest)
