"""What the page is made from, and which student each device gets. [no torch]"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.comparison import Row
from edgetl.intervals import Interval
from edgetl.measure.measurement import Measurement
from edgetl.types import Json


@dataclass(frozen=True)
class Sheet:
    """A table of report.md: the page shows the same cells."""

    title: str
    notes: Sequence[str]
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Facts:
    """The comparison of one run."""

    run: Path
    plan: Mapping[str, Json]
    rows: Sequence[Row]
    devices: Sequence[str | None]  # in budgets or measured; None where there is neither
    missing: Sequence[str]  # planned files that are not exported

    @property
    def students(self) -> list[Row]:
        """The rows that limits are judged on."""
        return [row for row in self.rows if row.judged]

    def passing(self, device: str | None) -> list[Row]:
        """Return the students that keep every limit that holds everywhere or on the device."""
        return [row for row in self.students if not row.missed(device)]

    def shipped(self, device: str | None) -> Row | None:
        """Return what the device gets: the most accurate that keeps its budget, without a budget the cheapest."""
        passing = self.passing(device)
        if self.plan["budgets"].get(device):
            return min(passing, key=lambda row: (-_accuracy(row), *cost(row, device)), default=None)
        return min(passing, key=lambda row: cost(row, device), default=None)

    def closest(self, device: str | None) -> Row | None:
        """Return the student that misses fewest limits, of equals the one whose network was chosen for the device."""

        def distance(row: Row) -> tuple[int, bool]:
            return len(row.missed(device)), device is None or chosen(row).get("device") != device

        return min(self.students, key=distance, default=None)

    def best(self) -> Row | None:
        """Return the student that is looked at closely: what a device gets, or else what comes closest to it."""
        found = [self.shipped(device) for device in self.devices] + [self.closest(d) for d in self.devices]
        return next((row for row in found if row is not None), None)

    def short(self, row: Row) -> str:
        """Return the row's name, with target and precision where the rows differ in them."""
        kinds = {(other.target, other.precision) for other in self.rows}
        return row.name if len(kinds) == 1 else row.title


def chosen(row: Row) -> Mapping[str, Json]:
    """Return how a file's network was chosen for a device, as its manifest says, which is not trusted."""
    found = row.bundle.manifest["provenance"].get("chosen")
    return found if isinstance(found, dict) else {}


def measured(row: Row, device: str | None) -> Measurement | None:
    """Return the row's measurement on a device unless it is invalid."""
    found = row.measured.get(device) if device else None
    return None if found is None or found.verdict == "invalid" else found


def compared_time(m: Measurement) -> Interval:
    """Return the median that comparisons use, of CPU or wall time, in ms."""
    return m.latency.cpu_p50 if m.by_cpu_time else m.latency.p50


def cost(row: Row, device: str | None) -> tuple[float, float, float]:
    """Return the time in ms, MACs and bytes of a row; without a measurement its time counts as endless."""
    found = measured(row, device)
    time = math.inf if found is None else compared_time(found).value
    return time, row.bundle.manifest["cost"]["macs"], row.size_bytes


def _accuracy(row: Row) -> float:
    return row.quality.score.accuracy.value if row.quality.score else -1.0
