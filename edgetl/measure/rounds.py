"""Rounds of measuring processes, interleaved, until every median is known well enough. [no torch, no runtime]"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

import psutil

from edgetl import __version__, intervals
from edgetl.device import Device, usable_cpus
from edgetl.errors import BadHost, BadInput
from edgetl.intervals import Interval
from edgetl.measure import comparing, conditions, noise, placement, summary
from edgetl.measure._probe import SAMPLES, Job
from edgetl.measure.comparing import Baseline
from edgetl.measure.instruments import NONE, Instruments, instruments
from edgetl.measure.measurement import Comparison, Measurement, Mode, Run
from edgetl.measure.probing import Sample
from edgetl.measure.summary import Subject
from edgetl.measure.turns import Start, one_round
from edgetl.plugins import nearest

LOG = logging.getLogger("edgetl")

LEAST_S, TIMES, START_S = 60.0, 20.0, 5.0
"""A process may take that many seconds, or that many times what is expected, with that much to start and to load."""

FREE, THRASHING = "unlimited", 1.05
"""The keys of artifacts without the limit of memory begin so; and how much slower within it is no longer fitting."""

PEAK, RUNTIME = 10.0, 150e6
"""What a process takes at most for each byte of its model, by our measurements at most 8, and without any model."""

CONTROL = "control"
"""The key of the baseline's second process in every round."""

Samples: TypeAlias = dict[str, list[Sample | None]]
"""One sample a round, by key; None where a process did not finish in time."""


@dataclass(frozen=True)
class Effort:
    """How much one mode measures: rounds are added until every median is known well enough, or time is up."""

    rounds: int
    most: int
    enough: float  # relative half-width of the median
    seconds: float  # no further round is begun that would end later,
    patience: float  # or, while a median is too uncertain to count, later than this
    warmup_s: float
    warmup_n: int
    window_s: float  # of each process
    window_n: int
    cap_s: float
    steady: bool
    control: bool = False  # the baseline runs twice in every round
    long_s: float | None = None  # window of the first round, where it differs
    samples: int = SAMPLES  # most of one process


EFFORTS: dict[Mode, Effort] = {
    "quick": Effort(3, 60, 0.02, 20, 180, 0.2, 3, 1.0, 64, 30, False),
    "standard": Effort(5, 60, 0.02, 120, 600, 1.0, 10, 3.0, 200, 30, True, True),
    "certify": Effort(7, 25, 0.01, 3600, 7200, 3.0, 10, 60.0, 200, 120, True, True, 600.0, 1 << 20),
}


def mode_named(name: str) -> Mode:
    """Return the mode of that name.

    Raises:
        BadInput: there is none.

    """
    for mode in EFFORTS:
        if mode == name:
            return mode
    raise BadInput(f"--mode: no mode '{name}'", fix=nearest(name, tuple(EFFORTS)))


class Measured(NamedTuple):
    """A measurement and the samples that it was made from."""

    measurement: Measurement
    samples: Sequence[Sample | None]


@dataclass(frozen=True)
class Bench:
    """Where and how rounds run."""

    device: Device
    effort: Effort
    seed: int = 0
    watch: Instruments = field(default=NONE)


def measure(subjects: Sequence[Subject], base: Subject | None, device: Device, mode: Mode, seed: int) -> list[Measured]:
    """Return one measurement for each subject, all of one run; the ratio to `base`, one of them, is paired by round."""
    device = pinned(device)
    bench = Bench(device, EFFORTS[mode], seed, instruments(device))
    before, start = conditions.begin(device), time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    for subject in subjects:
        placement.require(subject, device)
    samples = interleave(_slots(subjects, base, bench), bench)
    run = Run(
        id=secrets.token_hex(8),
        started_utc=started,
        tool_version=__version__,
        mode=mode,
        seed=seed,
        rounds=len(samples[subjects[0].sha256]),
        failed_rounds=0,
        wall_s=time.monotonic() - start,
    )
    for runtime in dict.fromkeys(s.runtime for one in samples.values() for s in one if s is not None):
        conditions.warn_of_version(device, runtime)
    control = _control(base, samples, device)
    around = conditions.around(before, noise.state(), device, bench.watch, control)
    compared = _compared(subjects, base, samples, device, control)
    found = []
    for s in subjects:
        one = summary.summarise(s, device, run, samples[s.sha256], around, compared.get(s.sha256))
        memory = one.memory.model_copy(update={"budget_bytes": device.memory.limit_bytes, "fits": _fits(s, samples)})
        found.append(Measured(one.model_copy(update={"memory": memory}), samples[s.sha256]))
    return found


def _slots(subjects: Sequence[Subject], base: Subject | None, bench: Bench) -> dict[str, Subject]:
    """Return what runs in every round: each artifact, the baseline again, and all without the limit of memory."""
    control = {CONTROL: base} if base and bench.effort.control else {}
    limit = bench.device.memory.limit_bytes
    free = {f"{FREE} {s.sha256}": replace(s, unlimited=True) for s in subjects} if limit else {}
    return {s.sha256: s for s in subjects} | control | free


def _fits(subject: Subject, samples: Samples) -> bool | None:
    """Say whether an artifact runs within the limit as fast as without: else it only does by reading weights again.

    None where there is no limit, or a container's runtime, which is another, kept it.
    """
    within, free = samples[subject.sha256], samples.get(f"{FREE} {subject.sha256}", [])
    pairs = [(a, b) for a, b in zip(within, free, strict=False) if a is not None and b is not None]
    if len(pairs) < 2 or any(a.runtime != b.runtime for a, b in pairs):
        return None
    found = summary.ratios(
        [b for _, b in pairs], [a for a, _ in pairs], cpu=False
    )  # waiting for the disk is no CPU time
    return intervals.geometric_mean(found).value <= THRASHING


def pinned(device: Device) -> Device:
    """Return the device with only its quietest core where one thread runs, so that no process lands on another."""
    cpus = device.cpus or usable_cpus()
    if device.threads > 1 or len(cpus) < 2:
        return device
    return device.model_copy(update={"cpus": (noise.quietest(cpus),)})


def interleave(slots: Mapping[str, Subject], bench: Bench) -> Samples:
    """Return the samples of every key: each round runs a fresh process for each, in an order shuffled by the seed.

    The processes of a round take turns of a few calls where they fit beside each other; else whole windows.

    Raises:
        BadHost: another provider than the device's was used, or an artifact did not finish in two rounds.

    """
    samples: Samples = {key: [] for key in slots}
    took: dict[str, float] = {}
    draw = random.Random(bench.seed)
    start, done, shared = time.monotonic(), 0, side_by_side(slots, bench.device)
    while not _enough(samples, bench, done, time.monotonic() - start):
        starts = {}
        for key in draw.sample(list(slots), len(slots)):
            job = _job(slots[key], bench, first=done == 0)
            starts[key] = Start(job, draw.randrange(4096), timeout_s(job, took.get(key)))
        for key, sample in one_round(starts, bench.watch, draw if shared else None):
            check_provider(sample, bench.device)
            samples[key].append(sample)
            if sample is not None:
                took[key] = sample.process_ns / 1e9 + sample.seconds
        done += 1
        LOG.info("profile: round %d, %d processes, %.0f s", done, len(slots), time.monotonic() - start)
    for key, subject in slots.items():
        if sum(s is not None for s in samples[key]) < 2:
            problem = f"{subject.stem} did not finish in time in {done} rounds"
            raise BadHost(problem, fix="use a smaller artifact, or more threads in the device file")
    return samples


def side_by_side(slots: Mapping[str, Subject], device: Device) -> bool:
    """Say whether processes may take turns: on a CPU, and in at most half of the memory that is free."""
    files = [s.bundle.folder / s.bundle.manifest["file"] for s in slots.values()]
    needed = sum(RUNTIME + PEAK * file.stat().st_size for file in files)
    unlimited_cpu = device.kind in ("cpu", "android") and device.memory.limit_bytes is None
    return len(files) > 1 and unlimited_cpu and needed < psutil.virtual_memory().available / 2


def job_of(subject: Subject, device: Device, effort: Effort) -> Job:
    """Return what one measuring process of an artifact does."""
    return Job(
        bundle=str(subject.bundle.folder),
        target=subject.bundle.manifest["target"],
        inputs=str(subject.inputs),
        threads=device.threads,
        cpus=device.cpus,
        warmup_s=effort.warmup_s,
        warmup_n=effort.warmup_n,
        window_s=effort.window_s,
        window_n=effort.window_n,
        cap_s=effort.cap_s,
        steady=effort.steady,
        most=effort.samples,
        limit=None if subject.unlimited else device.memory.limit_bytes,
        answers=None if subject.answers is None else str(subject.answers),
    )


def timeout_s(job: Job, took: float | None) -> float:
    """Return how long a process may take, from what the last one of its artifact took; None: there is none yet."""
    nominal = START_S + job.warmup_s + job.window_s
    return max(LEAST_S, TIMES * max(nominal, took or 0.0))


def check_provider(sample: Sample | None, device: Device) -> None:
    """Check that a process used a provider of the device.

    Raises:
        BadHost: it did not; a silent fallback is no measurement.

    """
    if sample is None:
        return
    name = sample.runtime.split()[0]
    allowed = [p for r in device.runtimes if r.name == name for p in r.providers]
    on_cpu = {"cpu": True, "cuda": False}.get(device.kind, "CPU" in sample.provider)
    wrong = sample.provider not in allowed if allowed else ("CPU" in sample.provider) != on_cpu
    if wrong:
        fix = f"add it to the providers of {name} in the device file, or export for {', '.join(allowed) or device.kind}"
        raise BadHost(f"{device.name} was measured with {sample.provider}", fix=fix)


def _job(subject: Subject, bench: Bench, *, first: bool) -> Job:
    job, long = job_of(subject, bench.device, bench.effort), bench.effort.long_s
    return replace(job, window_s=long, cap_s=2 * long) if first and long else job


def _enough(samples: Samples, bench: Bench, done: int, seconds: float) -> bool:
    effort, cpu = bench.effort, summary.by_cpu_time(bench.device)
    if done < effort.rounds:
        return False
    finished = [[s for s in one if s is not None] for one in samples.values()]
    if done >= effort.most or min(map(len, finished)) < 2:
        return True
    widest = max(intervals.half_width(summary.judged(one, cpu=cpu)) for one in finished)
    limit = effort.patience if widest > noise.HALF_WIDTH else effort.seconds
    return widest <= effort.enough or seconds * (done + 1) / done > limit


def _control(base: Subject | None, samples: Samples, device: Device) -> Interval | None:
    """Return the ratio of the baseline to itself; None where it was not measured twice."""
    if base is None or CONTROL not in samples:
        return None
    found = summary.ratios(samples[base.sha256], samples[CONTROL], cpu=summary.by_cpu_time(device))
    return intervals.geometric_mean(found) if len(found) > 1 else None


def _compared(
    subjects: Sequence[Subject], base: Subject | None, samples: Samples, device: Device, control: Interval | None
) -> dict[str, Comparison]:
    if base is None:
        return {}
    cpu = summary.by_cpu_time(device)
    ratios = {
        s.sha256: summary.ratios(samples[base.sha256], samples[s.sha256], cpu=cpu)
        for s in subjects
        if s.sha256 != base.sha256
    }
    return comparing.compare_all(Baseline(base.stem, base.sha256, "cpu_time_p50" if cpu else "p50", control), ratios)
