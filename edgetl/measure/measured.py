"""Measurements as a table for the terminal. [no torch]"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgetl.errors import BadInput
from edgetl.intervals import Interval
from edgetl.measure import comparing
from edgetl.measure.capacity import Energy, Roof, Throughput
from edgetl.measure.measurement import Comparison, Measurement, Memory
from edgetl.types import Json

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    *("artifact", "p50 ms", "95 %", "p90 ms", "CPU p50 ms", "ratio", "95 %", "against the baseline"),
    *("cold ms", "peak MB", "verdict"),
)

ACROSS = ("artifact", "against", "ratio", "95 %", "word")


def table(measurements: Sequence[Measurement]) -> Table:
    """Return the measurements as a table for the terminal; what not all have only where it is known."""
    from rich.table import Table

    rates, energies = any(m.throughput for m in measurements), any(m.energy for m in measurements)
    roofs, limited = any(m.roofline for m in measurements), any(m.memory.budget_bytes for m in measurements)
    more = (
        *(["items/s"] if rates else []), *(["mJ gross, net"] if energies else []),
        *(["% of roofline"] if roofs else []),
        *(["fits"] if limited else [])
    )  # fmt: skip
    made = Table(*COLUMNS, *more, title="measured", title_justify="left", caption=floor(measurements))
    for m in measurements:
        added = (
            *([_rate(m.throughput)] if rates else []),
            *([_millijoules(m.energy)] if energies else []),
            *([roof(m.roofline)] if roofs else []),
            *([_fits(m.memory)] if limited else []),
        )
        made.add_row(*cells(m), *added)
    return made


def floor(measurements: Sequence[Measurement]) -> str:
    """Return what the baseline, measured twice, differed from itself, in words; empty where it was not."""
    ends = dict.fromkeys(m.noise.aa_ratio_ci95 for m in measurements if m.noise.aa_ratio_ci95)
    return "; ".join(f"noise floor: the baseline over itself is {low:.3f} to {high:.3f}" for low, high in ends)


def cells(m: Measurement) -> list[str]:
    """Return the figures of a measurement as text; a dash is not measured."""
    time, ratio = m.latency, m.comparison
    why = f" ({', '.join(m.noise.flags)})" if m.noise.flags else ""
    return [
        f"{m.bundle.name} {m.bundle.precision}",
        f"{time.p50_ms:.3g}",
        f"{time.p50.low:.3g} to {time.p50.high:.3g}",
        "-" if time.p90_es_ms is None else f"{time.p90_es_ms:.3g}",
        f"{time.cpu_time_p50_ms:.3g}",
        f"{ratio.ratio:.3f}" if ratio else "-",
        f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else "-",
        word(ratio),
        f"{m.cold.load_ms + m.cold.first_ms:.3g}",
        f"{m.memory.peak_delta_max_bytes / 1e6:.1f}",
        m.verdict + why,
    ]


@dataclass(frozen=True)
class Across:
    """One measurement against one of another run: the ratio, or why there is none."""

    name: str
    other: str
    ratio: Interval | None
    refused: BadInput | None = None

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the row of a table."""
        if self.ratio is None:
            return self.name, self.other, "-", "-", "no ratio"
        ends = f"{self.ratio.low:.3f} to {self.ratio.high:.3f}"
        return self.name, self.other, f"{self.ratio.value:.3f}", ends, comparing.word(self.ratio, None)

    def to_json(self) -> Json:
        """Return plain data; no ratio is null."""
        ratio = self.ratio
        said = None if ratio is None else {**asdict(ratio), "word": comparing.word(ratio, None), "kind": "cross-run"}
        return {"name": self.name, "against": self.other, "ratio": said}

    def require(self) -> None:
        """Raise why there is no ratio, where there is none."""
        if self.refused:
            raise self.refused


def against(measurements: Sequence[Measurement], old: Measurement) -> list[Across]:
    """Return the ratio of each measurement to one of another run, by the baseline that both share."""
    found = []
    for m in measurements:
        try:
            found.append(Across(m.bundle.name, old.bundle.name, comparing.across_runs(m, old)))
        except BadInput as error:
            found.append(Across(m.bundle.name, old.bundle.name, None, error))
    return found


def word(ratio: Comparison | None) -> str:
    """Return what a comparison says, and what it would take to say more; a dash is not compared."""
    if ratio is None or ratio.word is None:
        return "-"
    if ratio.word != "inconclusive":
        return ratio.word
    return f"{ratio.word}, {ratio.more_rounds} more rounds needed" if ratio.more_rounds else ratio.word


def roof(found: Roof | None) -> str:
    """Return how near an artifact comes to what the device allows, and which limit that is; a dash is not known."""
    return f"{found.pct_of_roofline:.0f} ({found.bound}, {found.peak_source})" if found else "-"


def _rate(rate: Throughput | None) -> str:
    if rate is None:
        return "-"
    doubt = "" if rate.verdict in (None, "clean") else f", {rate.verdict} ({', '.join(rate.flags) or 'too uncertain'})"
    return f"{rate.best_items_per_s:.4g} at batch {rate.best_batch}{doubt}"


def _fits(memory: Memory) -> str:
    if memory.budget_bytes is None or memory.fits is None:
        return "-"
    return f"{memory.budget_bytes / 1e6:g} MB" if memory.fits else f"slower within {memory.budget_bytes / 1e6:g} MB"


def _millijoules(energy: Energy | None) -> str:
    return f"{energy.gross_j_per_inf * 1e3:.3g}, {energy.net_j_per_inf * 1e3:.3g} ({energy.source})" if energy else "-"
