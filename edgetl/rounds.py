"""Rounds of measuring processes, interleaved, until every median is known well enough. [no torch, no runtime]"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from edgetl import __version__, intervals, noise, summary
from edgetl._probe import Job
from edgetl.device import Device
from edgetl.errors import BadHost
from edgetl.measurement import Measurement, Mode, Run
from edgetl.probing import Sample, probe
from edgetl.summary import Subject, Surroundings

LOG = logging.getLogger("edgetl")
WATCHDOG_S = 180.0


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


EFFORTS: dict[Mode, Effort] = {
    "quick": Effort(3, 15, 0.02, 20, 45, 0.2, 3, 0.4, 64, 30, False),
    "standard": Effort(5, 15, 0.02, 120, 240, 1.0, 10, 3.0, 200, 30, True),
}


def measure(
    subjects: Sequence[Subject], base: Subject | None, device: Device, mode: Mode, seed: int
) -> list[Measurement]:
    """Return one measurement for each subject, all of one run; the ratio to `base`, one of them, is paired by round."""
    start, before = time.monotonic(), noise.state()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rounds = _rounds(subjects, device, EFFORTS[mode], seed)
    after = noise.state()
    around = Surroundings(
        noise.steal(before, after), noise.throttled(before, after), after.throttle_word, before.battery or after.battery
    )
    run = Run(
        id=secrets.token_hex(8),
        started_utc=started,
        tool_version=__version__,
        mode=mode,
        seed=seed,
        rounds=len(next(iter(rounds.values()))),
        failed_rounds=0,
        wall_s=time.monotonic() - start,
    )
    found = []
    for subject in subjects:
        samples = rounds[subject.sha256]
        other = None if base is None or base.sha256 == subject.sha256 else base
        ratio = summary.compare(other, rounds[other.sha256], samples, device.threads) if other else None
        found.append(summary.summarise(subject, device, run, samples, around, ratio))
    return found


def _rounds(subjects: Sequence[Subject], device: Device, effort: Effort, seed: int) -> dict[str, list[Sample | None]]:
    """Return the samples of every artifact, one a round; None where a process did not finish in time."""
    samples: dict[str, list[Sample | None]] = {s.sha256: [] for s in subjects}
    draw = random.Random(seed)
    start, done = time.monotonic(), 0
    while not _enough(samples, device, effort, done, time.monotonic() - start):
        for subject in draw.sample(list(subjects), len(subjects)):
            sample = probe(_job(subject, device, effort), draw.randrange(4096), WATCHDOG_S)
            _check_provider(sample, device)
            samples[subject.sha256].append(sample)
        done += 1
        LOG.info("profile: round %d, %d artifacts, %.0f s", done, len(subjects), time.monotonic() - start)
    for subject in subjects:
        if sum(s is not None for s in samples[subject.sha256]) < 2:
            problem = f"{subject.stem} did not finish within {WATCHDOG_S:.0f} s in {done} rounds"
            raise BadHost(problem, fix="use a smaller artifact, or more threads in the device file")
    return samples


def _enough(samples: dict[str, list[Sample | None]], device: Device, effort: Effort, done: int, seconds: float) -> bool:
    if done < effort.rounds:
        return False
    finished = [[s for s in one if s is not None] for one in samples.values()]
    if done >= effort.most or min(map(len, finished)) < 2:
        return True
    widest = max(intervals.half_width(summary.judged(one, device.threads)) for one in finished)
    limit = effort.patience if widest > noise.HALF_WIDTH else effort.seconds
    return widest <= effort.enough or seconds * (done + 1) / done > limit


def _job(subject: Subject, device: Device, effort: Effort) -> Job:
    return Job(
        bundle=str(subject.bundle.folder),
        target=subject.bundle.manifest["target"],
        inputs=str(subject.inputs),
        started_ns=time.perf_counter_ns(),
        threads=device.threads,
        cpus=device.cpus,
        warmup_s=effort.warmup_s,
        warmup_n=effort.warmup_n,
        window_s=effort.window_s,
        window_n=effort.window_n,
        cap_s=effort.cap_s,
        steady=effort.steady,
    )


def _check_provider(sample: Sample | None, device: Device) -> None:
    if sample is None:
        return
    name = sample.runtime.split()[0]
    allowed = [p for r in device.runtimes if r.name == name for p in r.providers]
    wrong = sample.provider not in allowed if allowed else device.kind == "cpu" and "CPU" not in sample.provider
    if wrong:
        fix = f"add it to the providers of {name} in the device file, or export for {', '.join(allowed) or 'the CPU'}"
        raise BadHost(f"{device.name} was measured with {sample.provider}", fix=fix)
