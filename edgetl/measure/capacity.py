"""What an artifact gives and takes over time, and at best, as parts of a measurement. [no torch]"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgetl.intervals import Interval


class Record(BaseModel):
    """A part of a measurement: frozen; keys that a newer version wrote are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Batch(Record):
    """The rate at one batch size, with its interval over processes."""

    batch: int
    items_per_s: float
    low: float
    high: float
    n: int  # batches
    peak_delta_bytes: int

    @property
    def rate(self) -> Interval:
        """The rate with its interval."""
        return Interval(self.items_per_s, self.low, self.high)


class Throughput(Record):
    """Items / (last completion - first issue), at growing batch sizes."""

    best_items_per_s: float
    best_batch: int
    sweep: list[Batch]
    stopped: Literal["gain", "memory", "shape", "most"]  # why no larger batch was tried
    verdict: Literal["clean", "noisy", "invalid"] | None = None  # null: an older edgetl wrote it
    flags: tuple[str, ...] = ()  # what disturbed the best batch, and the machine over the whole sweep


class Energy(Record):
    """Joules for each inference, in the window: all that the meter saw, and what it saw beyond an idle machine."""

    gross_j_per_inf: float
    net_j_per_inf: float
    idle_w: float
    source: Literal["meter", "ina3221", "nvml", "rapl"]


class Answers(Record):
    """How far the timed sessions' answers were from the bundle's golden logits, in the worst of all processes."""

    max_abs: float | None  # null: an answer was not finite
    max_rel: float | None
    limit: float  # that one of both has to keep
    n: int


class Accuracy(Record):
    """What the answers were worth while they were timed."""

    measured_on_device: Literal[True] = True
    parity: Answers


class Roof(Record):
    """What the device's peaks allow at best, and how near the median comes; see `edgetl.roofline`."""

    t_compute_ms: float
    t_memory_ms: float
    t_traffic_ms: float
    t_nodes_ms: float
    t_overhead_ms: float | None
    t_roof_ms: float
    bound: Literal["compute", "memory", "overhead"]
    pct_of_roofline: float
    peak_source: Literal["measured", "datasheet"]
    weights_in_cache: bool | None
