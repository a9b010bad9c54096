"""Measurements: latency, memory and size of one artifact on one device, as schemas/profile-result-1.json. [no torch]"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError

from edgetl import store
from edgetl.errors import BadInput, Refused
from edgetl.gates import Timing
from edgetl.intervals import Interval
from edgetl.measure.capacity import Accuracy, Energy, Record, Roof, Throughput
from edgetl.types import Json

SCHEMA_VERSION = 1

CONTROL = "aa_control"
"""The flag of a comparison whose baseline, measured twice, differs from itself or by more than the candidate does."""

Mode: TypeAlias = Literal["quick", "standard", "certify"]
Word: TypeAlias = Literal["faster", "slower", "equivalent", "inconclusive"]
Grade: TypeAlias = Literal["clean", "noisy", "invalid"]
Ends: TypeAlias = tuple[float, float]
Hash: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Run(Record):
    """What artifacts measured together share."""

    id: str
    started_utc: str
    tool_version: str
    mode: Mode
    seed: int
    rounds: int
    failed_rounds: int
    wall_s: float


class Artifact(Record):
    """What was measured."""

    sha256: Hash  # see `identity`
    name: str
    recipe_sha256: str | None
    precision: str
    opset: int | None
    runtime: str
    signature: Literal["none", "verified", "failed"]
    flops: float | None  # twice the multiply-adds
    params: int | None


class Machine(Record):
    """Where it was measured."""

    profile: str
    fingerprint: str
    kind: str
    cpu_model: str
    kernel: str
    mem_total_bytes: int
    governor: str | None
    turbo: bool | None = None
    power_mode: str | None
    link: str
    gpu_model: str | None = None
    gpu_uuid: str | None = None
    driver: str | None = None
    limit_p90_ms: float | None = None  # its file's own, for whatever runs there
    limit_bundle_bytes: int | None = None


class Warmup(Record):
    """What ran before the window; `steady` is null where the mode does not test it."""

    inferences: int
    steady: bool | None


class Config(Record):
    """How it was measured."""

    provider: str
    provider_options: dict[str, Json]
    threads: int
    cpus: list[int]
    batch: int
    shapes: dict[str, list[int]]
    inputs: Literal["dataset", "synthetic"]
    distinct_inputs: int
    transfers_included: bool
    versions: dict[str, str]
    warmup: Warmup
    turn_ms: float | None = None  # least length of the turns that the processes of a round took; null: no turns


class Latency(Record):
    """Milliseconds for each run of one batch, without pre- and post-processing."""

    p50_ms: float
    p50_ci95_ms: Ends
    rel_half_width: float
    mean_ms: float
    p90_es_ms: float | None
    p99_es_ms: float | None
    p999_es_ms: float | None = None
    min_ms: float
    max_ms: float
    n: int
    rounds_p50_ms: list[float]
    cpu_time_p50_ms: float
    cpu_time_p50_ci95_ms: Ends
    rounds_cpu_time_p50_ms: list[float]
    outliers: dict[str, int]
    trend: float | None = None  # change over the window as a share of the median, of the time that is judged
    samples_sha256: Hash | None = None  # of `<same stem>.npz`: wall_ns and cpu_ns, cut into processes by offsets

    @property
    def p50(self) -> Interval:
        """The median wall time with its interval over rounds."""
        return Interval(self.p50_ms, *self.p50_ci95_ms)

    @property
    def cpu_p50(self) -> Interval:
        """The median CPU time with its interval over rounds."""
        return Interval(self.cpu_time_p50_ms, *self.cpu_time_p50_ci95_ms)


class Cold(Record):
    """Medians over rounds; the file is in the page cache."""

    load_ms: float  # checking the bundle and opening the artifact
    first_ms: float
    process_to_output_ms: float
    page_cache: Literal["warm", "dropped"]


class Memory(Record):
    """Resident bytes beyond the bare runtime's, medians over rounds; `_max` is the maximum."""

    base_rss_bytes: int
    load_peak_delta_bytes: int
    peak_delta_bytes: int
    peak_delta_max_bytes: int
    steady_delta_bytes: int
    pss_bytes: int | None = None  # of the whole process after the window, its part of what is shared
    private_dirty_bytes: int | None = None
    gpu_peak_bytes: int | None = None  # of the process, with the driver's context
    gpu_method: Literal["nvml"] | None = None
    budget_bytes: int | None = None  # the limit that was kept on every process
    fits: bool | None = None  # within it, and at most 5 % slower than without; null: no limit, or not comparable


class Size(Record):
    """Bytes on disk."""

    model_bytes: int
    bundle_bytes: int


class Noise(Record):
    """What disturbed the measurement."""

    flags: list[str]
    steal: float  # share of the machine's time
    wall_over_cpu: float | None  # at one thread
    involuntary_switches_per_s: float
    runnable_others: float | None
    cv: float | None  # of the timed samples, within rounds
    throttle_word: str | None
    temp_c_max: float | None = None
    clock_mhz_min: float | None = None  # in the windows, of the slowest core or of the GPU
    clock_mhz_median: float | None = None
    clock_reasons: tuple[str, ...] = ()  # why a GPU's clocks were low
    mde: float | None  # smallest effect that the comparison could have shown
    aa_ratio_ci95: Ends | None = None  # of the baseline to itself in the same rounds; null where the mode has none


class Comparison(Record):
    """The ratio to the baseline, paired by round; below 1 is faster."""

    baseline: str
    baseline_sha256: Hash
    quantity: Literal["cpu_time_p50", "p50"]
    ratio: float
    low: float
    high: float
    rounds: int
    word: Word | None = None  # null: an older edgetl wrote it
    more_rounds: int | None = None  # until it is no longer inconclusive; null: rounds do not help
    candidates: int = 1  # compared with this baseline in this run
    holm_low: float | None = None  # the interval on which a gate is judged, corrected for the other candidates
    holm_high: float | None = None

    @property
    def interval(self) -> Interval:
        """The ratio with its interval."""
        return Interval(self.ratio, self.low, self.high)

    @property
    def judged(self) -> Interval:
        """The ratio with the interval that a gate is judged on."""
        low, high = self.holm_low, self.holm_high
        return Interval(self.ratio, self.low if low is None else low, self.high if high is None else high)


class Measurement(Record):
    """One artifact on one device."""

    schema_version: Literal[1] = 1
    run: Run
    bundle: Artifact
    device: Machine
    config: Config
    latency: Latency
    cold: Cold
    memory: Memory
    size: Size
    throughput: Throughput | None = None
    accuracy: Accuracy | None = None  # None: an older edgetl wrote it
    energy: Energy | None = None
    comparison: Comparison | None = None
    roofline: Roof | None = None  # None: the device file has no peak for it
    noise: Noise
    verdict: Grade

    @property
    def by_cpu_time(self) -> bool:
        """Whether comparisons use CPU time."""
        return by_cpu_time(self.config.threads, self.device.kind)

    def to_json(self) -> dict[str, Json]:
        """Return the plain data of the file."""
        return self.model_dump(mode="json")


def by_cpu_time(threads: int, kind: str) -> bool:
    """Say whether CPU time is what counts: at one thread it leaves out the waiting for others; a GPU has none."""
    return threads == 1 and kind in ("cpu", "android")


def timing(m: Measurement) -> Timing:
    """Return what gates judge of a measurement. A ratio that the control does not resolve holds 1."""
    ratio = m.comparison.judged if m.comparison else None
    if ratio and CONTROL in m.noise.flags:
        ratio = Interval(ratio.value, min(ratio.low, 1.0), max(ratio.high, 1.0))
    peak = m.memory.peak_delta_max_bytes
    return Timing(m.verdict, m.latency.p50, m.latency.p90_es_ms, peak, ratio, tuple(m.noise.flags))


def identity(sums: Mapping[str, str]) -> str:
    """Return the sha256 of a bundle from those of its files, by name."""
    return store.digest(dict(sums))


def stem(name: str, target: str, precision: str) -> str:
    """Return `<name>-<target>-<precision>`, the start of a measurement's file name.

    Raises:
        Refused: a part would leave the folder.

    """
    joined = f"{name}-{target}-{precision}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", joined):
        raise Refused(f"{joined!r} cannot be a file name", fix="export the bundle again under a plain name")
    return joined


def write(measurement: Measurement, path: Path) -> None:
    """Write a measurement atomically."""
    store.write_json(path, measurement.to_json())


def read(path: Path) -> Measurement:
    """Read a measurement.

    Raises:
        BadInput: it is not there, or a newer version wrote it.
        Refused: it is damaged.

    """
    try:
        value = store.read_json(path)
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror}", fix="give a result that `edgetl profile` wrote") from e
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BadInput(f"{path}: schema_version {version} is newer than this edgetl", fix="upgrade edgetl")
    try:
        return Measurement.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise Refused(f"{path}: {key}: {first['msg']}", fix="delete the file and run `edgetl profile` again") from e
