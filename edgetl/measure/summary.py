"""From the samples of several rounds to one measurement. [no torch]"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edgetl import device as devices
from edgetl import intervals, machine
from edgetl.bundle import Bundle
from edgetl.device import Device
from edgetl.evaluate import Parity, tolerance
from edgetl.intervals import Interval
from edgetl.measure import comparing, conditions, gpu, measurement, noise
from edgetl.measure.capacity import Accuracy, Answers, Energy, Roof
from edgetl.measure.conditions import Surroundings
from edgetl.measure.measurement import (
    Artifact,
    Cold,
    Comparison,
    Config,
    Latency,
    Machine,
    Measurement,
    Memory,
    Run,
    Size,
    Warmup,
)
from edgetl.measure.probing import Sample
from edgetl.measure.turns import TURN_S
from edgetl.roofline import roofline


@dataclass(frozen=True)
class Subject:
    """One artifact to measure."""

    bundle: Bundle
    sha256: str  # `measurement.identity`
    stem: str  # `<name>-<target>-<precision>`
    inputs: Path  # .npz of the declared inputs
    shapes: dict[str, list[int]]  # of one batch
    count: int  # distinct inputs
    answers: Path | None = None  # .npy of their golden logits; None: answers are not compared
    unlimited: bool = False  # measured without the device's limit of memory, to see what that costs


def medians(samples: Iterable[Sample | None], *, cpu: bool) -> list[float]:
    """Return the median of each finished round in milliseconds, of CPU or wall time."""
    return [statistics.median(s.cpu if cpu else s.wall) / 1e6 for s in samples if s is not None]


def by_cpu_time(device: Device) -> bool:
    """Say whether CPU time is what counts on a device."""
    return measurement.by_cpu_time(device.threads, device.kind)


def judged(samples: Iterable[Sample | None], *, cpu: bool) -> Interval:
    """Return the median that decides whether a measurement counts, of CPU or wall time."""
    return intervals.geometric_mean(medians(samples, cpu=cpu))


def ratios(base: Sequence[Sample | None], samples: Sequence[Sample | None], *, cpu: bool) -> list[float]:
    """Return the time over the baseline's in each round that both finished, of CPU or wall time."""
    pairs = [(a, b) for a, b in zip(samples, base, strict=True) if a is not None and b is not None]
    return [_ratio(a, b, cpu=cpu) for a, b in pairs]


def _ratio(new: Sample, old: Sample, *, cpu: bool) -> float:
    """Return the ratio of the medians, turn by turn: the machine is the same in one cycle, and not in the next."""
    cycles = zip(_turns(new, cpu=cpu), _turns(old, cpu=cpu), strict=False)
    return math.exp(statistics.median(math.log(a / b) for a, b in cycles))


def _turns(sample: Sample, *, cpu: bool) -> list[float]:
    """Return the median of each turn in nanoseconds, of CPU or wall time; without turns, of the window."""
    times = sample.cpu if cpu else sample.wall
    counts = [calls for _, _, calls in sample.turns] or [len(times)]
    ends = list(itertools.accumulate(counts))
    return [statistics.median(times[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def summarise(
    subject: Subject,
    device: Device,
    run: Run,
    samples: Sequence[Sample | None],
    around: Surroundings,
    comparison: Comparison | None,
) -> Measurement:
    """Return the measurement of one artifact; None among the samples is a round that was stopped."""
    done = [s for s in samples if s is not None]
    failed = len(samples) - len(done)
    seen = conditions.disturbance(done, device, around)
    raised = noise.flags(seen) + (["failed_rounds"] if failed else [])
    raised += [] if right(subject, done) else [noise.WRONG]
    if comparison and comparing.doubted(comparison.interval, around.control):
        raised.append(measurement.CONTROL)
    median = judged(done, cpu=by_cpu_time(device))
    return Measurement(
        run=run.model_copy(update={"failed_rounds": failed}),
        bundle=_artifact(subject, done[0].runtime),
        device=_machine(device, done[0].runtime),
        config=_config(subject, device, done),
        latency=_latency(done, seen.trend),
        cold=_cold(done),
        memory=_memory(done),
        size=_size(subject.bundle),
        accuracy=_accuracy(done, subject),
        energy=_energy(done, around),
        comparison=comparison,
        noise=conditions.recorded(seen, raised, around, comparison),
        roofline=_roof(subject, device, median.value),
        verdict=noise.verdict(raised, intervals.half_width(median), failed / len(samples)),
    )


def right(subject: Subject, done: Sequence[Sample]) -> bool:
    """Say whether the answers of every process were the golden ones, as far as they were compared."""
    limit = tolerance(subject.bundle.manifest)
    offs = [(s.max_abs, s.max_rel) for s in done if s.checked]
    return all(a is not None and b is not None and Parity(a, b).within(limit) for a, b in offs)


def _accuracy(done: Sequence[Sample], subject: Subject) -> Accuracy | None:
    """Return the parity of the worst process; None where answers were not compared."""
    checked = sum(s.checked for s in done)
    if not checked:
        return None
    limit = tolerance(subject.bundle.manifest)
    return Accuracy(
        parity=Answers(
            max_abs=_worst(s.max_abs for s in done), max_rel=_worst(s.max_rel for s in done), limit=limit, n=checked
        )
    )


def _worst(values: Iterable[float | None]) -> float | None:
    """Return the largest; None where one was not finite."""
    known = list(values)
    return None if None in known else max(v for v in known if v is not None)


def _roof(subject: Subject, device: Device, median_ms: float) -> Roof | None:
    found = roofline(subject.bundle.manifest, device, median_ms)
    return None if found is None else Roof(**found.to_json())


def outliers(values: NDArray[np.float64]) -> tuple[int, int]:
    """Return how many values lie beyond Tukey's inner fences only, and beyond his outer ones; none is dropped."""
    low, high = np.percentile(values, (25, 75))
    mild, severe = (
        int(((values < low - k * (high - low)) | (values > high + k * (high - low))).sum()) for k in (1.5, 3.0)
    )
    return mild - severe, severe


def _latency(done: Sequence[Sample], trend: Interval) -> Latency:
    wall = np.concatenate([np.asarray(s.wall, np.float64) for s in done]) / 1e6
    rounds, cpu_rounds = medians(done, cpu=False), medians(done, cpu=True)
    p50, cpu = intervals.geometric_mean(rounds), intervals.geometric_mean(cpu_rounds)
    counts = [outliers(np.asarray(s.wall, np.float64)) for s in done]
    return Latency(
        p50_ms=p50.value,
        p50_ci95_ms=(p50.low, p50.high),
        rel_half_width=intervals.half_width(p50),
        mean_ms=float(wall.mean()),
        p90_es_ms=intervals.early_stopping(wall, 0.90),
        p99_es_ms=intervals.early_stopping(wall, 0.99),
        p999_es_ms=intervals.early_stopping(wall, 0.999),
        min_ms=float(wall.min()),
        max_ms=float(wall.max()),
        n=len(wall),
        rounds_p50_ms=rounds,
        cpu_time_p50_ms=cpu.value,
        cpu_time_p50_ci95_ms=(cpu.low, cpu.high),
        rounds_cpu_time_p50_ms=cpu_rounds,
        outliers={"mild": sum(m for m, _ in counts), "severe": sum(s for _, s in counts)},
        trend=math.log(trend.value),
    )


def _cold(done: Sequence[Sample]) -> Cold:
    return Cold(
        load_ms=statistics.median(s.load_ns for s in done) / 1e6,
        first_ms=statistics.median(s.first_ns for s in done) / 1e6,
        process_to_output_ms=statistics.median(s.process_ns for s in done) / 1e6,
        page_cache="warm",
    )


def _memory(done: Sequence[Sample]) -> Memory:
    peaks = [max(s.load_peak, s.peak, 0) for s in done]
    return Memory(
        base_rss_bytes=round(statistics.median(s.base for s in done)),
        load_peak_delta_bytes=round(statistics.median(s.load_peak for s in done)),
        peak_delta_bytes=round(statistics.median(peaks)),
        peak_delta_max_bytes=max(peaks),
        steady_delta_bytes=round(statistics.median(s.steady_rss for s in done)),
        pss_bytes=_median(s.pss for s in done),
        private_dirty_bytes=_median(s.private_dirty for s in done),
        gpu_peak_bytes=max((s.gpu_peak for s in done if s.gpu_peak is not None), default=None),
        gpu_method="nvml" if any(s.gpu_peak is not None for s in done) else None,
    )


def _median(values: Iterable[int | None]) -> int | None:
    """Return the median in bytes; None where a process could not read it."""
    known = list(values)
    return None if None in known else round(statistics.median(v for v in known if v is not None))


def _energy(done: Sequence[Sample], around: Surroundings) -> Energy | None:
    """Return the energy of all windows, for each inference; None without a meter, or where it failed."""
    joules = [s.joules for s in done if s.joules is not None]
    if around.meter is None or around.idle_w is None or len(joules) < len(done):
        return None
    n, seconds = sum(len(s.wall) for s in done), sum(s.seconds for s in done)
    return Energy(
        gross_j_per_inf=sum(joules) / n,
        net_j_per_inf=(sum(joules) - around.idle_w * seconds) / n,
        idle_w=around.idle_w,
        source=around.meter,
    )


def _size(bundle: Bundle) -> Size:
    model = (bundle.folder / bundle.manifest["file"]).stat().st_size
    return Size(model_bytes=model, bundle_bytes=sum(p.stat().st_size for p in bundle.folder.iterdir()))


def _artifact(subject: Subject, runtime: str) -> Artifact:
    manifest = subject.bundle.manifest
    return Artifact(
        sha256=subject.sha256,
        name=manifest["name"],
        recipe_sha256=manifest["provenance"]["recipe_sha256"] or None,
        precision=manifest["precision"],
        opset=manifest.get("opset"),
        runtime=runtime,
        signature="none",
        flops=2.0 * manifest["cost"]["macs"],
        params=manifest["cost"]["parameters"],
    )


def _machine(device: Device, runtime: str) -> Machine:
    card = gpu.facts(device.kind)
    return Machine(
        profile=device.name,
        fingerprint=devices.fingerprint(device, runtime),
        kind=device.kind,
        cpu_model=devices.cpu_model(),
        kernel=platform.release(),
        mem_total_bytes=psutil.virtual_memory().total,
        governor=devices.governor(),
        turbo=machine.turbo(),
        power_mode=device.power.mode,
        link="local://",
        gpu_model=card.name if card else None,
        gpu_uuid=card.uuid if card else None,
        driver=card.driver if card else None,
        limit_p90_ms=device.limits.latency_p90_ms,
        limit_bundle_bytes=device.storage.budget_bytes,
    )


def _config(subject: Subject, device: Device, done: Sequence[Sample]) -> Config:
    steady = [s.steady for s in done if s.steady is not None]
    name, version = done[0].runtime.split(maxsplit=1)
    return Config(
        provider=done[0].provider,
        provider_options=dict(subject.bundle.manifest["session"]),
        threads=device.threads,
        cpus=list(device.cpus or devices.usable_cpus()),
        batch=1,
        shapes=subject.shapes,
        inputs="dataset",
        distinct_inputs=subject.count,
        transfers_included=True,
        versions={"python": platform.python_version(), "numpy": np.__version__, name: version},
        warmup=Warmup(inferences=min(s.warm for s in done), steady=all(steady) if steady else None),
        turn_ms=1e3 * TURN_S if len(done[0].turns) > 1 else None,
    )
