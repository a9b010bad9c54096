"""What each of several devices gets: one table and one chart over all of them. [no torch]"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle

from edgetl.comparison import Row
from edgetl.intervals import Interval
from edgetl.page import charts
from edgetl.page.facts import Facts, Sheet, chosen, compared_time, measured
from edgetl.types import Json

HEADER = ("device", "file", "outcome", "depth", "chosen", "accuracy %", "median ms", "p90 ms", "peak MB", "MB")
NOTE = (
    "Each device gets the most accurate file that keeps every limit there as measured; of equals the quickest. A depth "
    "that was predicted is the deepest that could keep the limits at best; nothing ships to a device unmeasured. The "
    "median is of CPU time where one thread runs, else of wall time. A dash is not known."
)
COLOURS = ("var(--accent)", "var(--warm)", "var(--good)", "var(--bad)", "var(--grey)")
TIMES = ("p50_ms", "p90_ms")


@dataclass(frozen=True)
class Place:
    """What one device gets, or what comes nearest to it."""

    device: str
    row: Row | None
    ships: bool

    @property
    def chosen(self) -> Mapping[str, Json]:
        """What a method chose the file's network for this device by; nothing where none did."""
        found = chosen(self.row) if self.row else {}
        return found if found.get("device") == self.device else {}


def places(facts: Facts) -> list[Place]:
    """Return one place for every device: with what ships there, else with what comes closest."""
    found = [(device, facts.shipped(device)) for device in facts.devices if device]
    return [Place(device, ships or facts.closest(device), ships is not None) for device, ships in found]


def at_best(found: Mapping[str, Json]) -> float | None:
    """Return the predicted milliseconds of what was chosen; None where it was measured, or no time was limited."""
    if found.get("how") != "predicted" or not isinstance(found.get("tried"), list):
        return None
    tried = [one for one in found["tried"] if isinstance(one, dict) and one.get("depth") == found.get("depth")]
    times = [one[name] for one in tried for name in TIMES if _number(one.get(name))]
    return float(times[0]) if times else None


def sheet(facts: Facts) -> Sheet | None:
    """Return the table of all devices, None where there are fewer than two."""
    found = places(facts)
    return Sheet("Devices", [NOTE], HEADER, [_cells(place) for place in found]) if len(found) > 1 else None


def figure(facts: Facts) -> dict[str, Json] | None:
    """Return accuracy against time over all devices, what ships marked; None where fewer than two have a point."""
    groups = [list(_traces(facts, *one)) for one in zip(places(facts), cycle(COLOURS), strict=False)]
    if sum(map(bool, groups)) < 2:
        return None
    x = {"title": {"text": "median ms of a call (less is better)"}, "type": "log"}
    return {"data": [trace for group in groups for trace in group], "layout": charts.against_accuracy(x)}


def _traces(facts: Facts, place: Place, colour: str) -> Iterator[dict[str, Json]]:
    """Yield the best trade-offs of a device as a line, the others, and what ships; or else what is predicted."""
    spots = [s for s in charts.spots(facts, place.device) if s.row.judged]
    if not spots:
        yield from _predicted(facts, place, colour)
    best = sorted((s for s in spots if s.standing == "best"), key=lambda s: s.point.cost.value)
    if best:
        line = {"mode": "lines+markers", "line": {"color": colour, "width": 1}, **_marker("circle", 8, colour)}
        yield {**charts.scatter(best, colour), **line, "name": html.escape(place.device)}
    if others := [s for s in spots if s.standing != "best"]:
        faint = {"mode": "markers", "showlegend": False, "opacity": 0.5}
        yield {**charts.scatter(others, colour), **faint, **_marker("circle-open", 8, colour)}
    if shipped := [s for s in spots if place.ships and s.row is place.row]:
        star = {"name": f"{_label(facts, place)} ships", "mode": "markers", **_marker("star", 16, colour)}
        yield {**charts.scatter(shipped, colour), **star}


def _predicted(facts: Facts, place: Place, colour: str) -> Iterator[dict[str, Json]]:
    ms, score = at_best(place.chosen), place.row.quality.score if place.row else None
    if ms is not None and score is not None:
        words = f"{_label(facts, place)}, predicted"
        at = {"type": "scatter", "mode": "markers", "x": [ms], "y": [100 * score.accuracy.value], "name": words}
        yield {
            **at,
            "hovertext": [f"{words}: {ms:.3g} ms at best"],
            "hoverinfo": "text",
            **_marker("star-open", 16, colour),
        }


def _label(facts: Facts, place: Place) -> str:
    return html.escape(f"{place.device}: {facts.short(place.row)}" if place.row else place.device)


def _marker(symbol: str, size: int, colour: str) -> dict[str, Json]:
    return {"marker": {"color": colour, "symbol": symbol, "size": size, "line": {"width": 2, "color": colour}}}


def _cells(place: Place) -> list[str]:
    row, found = place.row, place.chosen
    if row is None:
        return [place.device, "-", "no student is exported", *["-"] * (len(HEADER) - 3)]
    m, ms = measured(row, place.device), at_best(found)
    missed = len(row.missed(place.device))
    outcome = "ships" if place.ships else f"fails: misses {missed}" if m else "fails: not measured"
    depth = str(found["depth"]) if _number(found.get("depth")) else "-"
    how = found["how"] if found.get("how") in ("measured", "predicted") else "-"
    score = row.quality.score
    best = "-" if ms is None else f"{ms:.3g} at best, predicted"
    p90 = m.latency.p90_es_ms if m else None
    return [
        *(place.device, row.title, outcome, depth, how),
        f"{100 * score.accuracy.value:.2f}" if score else "-",
        _interval(compared_time(m)) if m else best,
        "-" if p90 is None else f"{p90:.3g}",
        f"{m.memory.peak_delta_max_bytes / 1e6:.1f}" if m else "-",
        f"{row.size_bytes / 1e6:.3f}",
    ]


def _interval(i: Interval) -> str:
    return f"{i.value:.3g} ({i.low:.3g} to {i.high:.3g})"


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18
