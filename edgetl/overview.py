"""A comparison at a glance: the table that a terminal shows, about 100 columns wide. [no torch]"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgetl.comparison import Row
from edgetl.intervals import Interval
from edgetl.measure.measurement import Measurement

if TYPE_CHECKING:
    from rich.table import Table

DASH = "-"
COST = ("MACs", "MB", "accuracy %", "drop")
SPEED = ("p50 ms", "p90 ms", "peak MB", "time ratio")


def overview(title: str, rows: Sequence[Row], devices: Sequence[str | None], details: str) -> Table:
    """Return one line for each file and device; below them the limits that are missed, and how to read the rest.

    `details` says where all figures stand with their intervals.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    measured = any(devices)
    kinds = {(row.target, row.precision) for row in rows}
    made = Table("file", *COST, *(SPEED if measured else ()), "limits", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.pad_edge = False
    made.title, made.title_justify = Text(title), "left"
    for column in made.columns[1:-1]:
        column.justify = "right"
    for row in rows:
        name = row.name if len(kinds) == 1 else row.title
        for device in devices:
            where = f" @ {device}" if device and len(devices) > 1 else ""
            speed = _speed(row, device) if measured else []
            made.add_row(*map(Text, (name + where, *_cost(row), *speed, _outcome(row, device))))
    made.caption, made.caption_justify = Text("\n".join([*_missed(rows), *_legend(rows, devices), details])), "left"
    return made


def count(n: float) -> str:
    """Return a large number with its unit: 2.38 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def _cost(row: Row) -> list[str]:
    accuracy = row.quality.score.accuracy if row.quality.score else None
    macs = row.bundle.manifest["cost"]["macs"]
    return [count(macs), f"{row.size_bytes / 1e6:.2f}", _points(accuracy), _points(row.quality.drop)]


def _speed(row: Row, device: str | None) -> list[str]:
    """Return the cells of SPEED; an invalid measurement shows no figure."""
    m = row.measured.get(device) if device else None
    if m is None or m.verdict == "invalid":
        return [DASH] * len(SPEED)
    p90, ratio = m.latency.p90_es_ms, m.comparison.interval if m.comparison else None
    peak = f"{m.memory.peak_delta_max_bytes / 1e6:.1f}"
    return [_plus_minus(m.latency.p50), DASH if p90 is None else f"{p90:.3g}", peak, _plus_minus(ratio)]


def _outcome(row: Row, device: str | None) -> str:
    if not row.judged:
        return "reference"
    missed = len(row.missed(device))
    return f"misses {missed}" if missed else "keeps all"


def _missed(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for verdict in row.verdicts:
            if not verdict.passes:
                yield f"{row.name} misses {verdict}"


def _legend(rows: Sequence[Row], devices: Sequence[str | None]) -> Iterator[str]:
    n = next((row.quality.score.n for row in rows if row.quality.score), 0)
    files = ", ".join(sorted({f"{row.target} {row.precision}" for row in rows}))
    yield f"{files}; {n} test samples; drop in percentage points; ± reaches to the further end of the 95 % interval"
    for device in filter(None, devices):
        measured = [row.measured[device] for row in rows if device in row.measured]
        yield f"{device}: {_conditions(measured)}"


def _conditions(measured: Sequence[Measurement]) -> str:
    if not measured:
        return "not measured"
    one = measured[0].config.threads == 1
    words = [f"{measured[0].config.threads} thread{'' if one else 's'}", f"batch {measured[0].config.batch}"]
    words += ["ms of wall time", f"ratio to the reference of {'CPU' if measured[0].by_cpu_time else 'wall'} time"]
    for verdict in ("noisy", "invalid"):
        found = [m for m in measured if m.verdict == verdict]
        flags = ", ".join(dict.fromkeys(flag for m in found for flag in m.noise.flags))
        words += [f"{len(found)} of {len(measured)} {verdict}" + (f" ({flags})" if flags else "")] if found else []
    return ", ".join(words)


def _points(share: Interval | None) -> str:
    if share is None:
        return DASH
    return f"{100 * share.value:.1f} ±{100 * _reach(share):.1f}"


def _plus_minus(i: Interval | None) -> str:
    return DASH if i is None else f"{i.value:.3g} ±{_reach(i):.1g}"


def _reach(i: Interval) -> float:
    return max(i.value - i.low, i.high - i.value)
