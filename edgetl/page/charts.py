"""The charts as plain data for plotly.js; colours are names that the page's theme resolves. [no torch]

A figure is {"data", "layout"}; a colour is `var(--name)`, which the page's script looks up.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetl.comparison import Row
from edgetl.intervals import Interval
from edgetl.page.facts import Facts, compared_time, measured
from edgetl.page.frontier import Point, Standing, standings
from edgetl.types import Json

MOST_LETTERS = 80
"""Above this many in all labels only the hover text names the points."""


@dataclass(frozen=True)
class Spot:
    """One file in the chart."""

    row: Row
    point: Point
    standing: Standing


@dataclass(frozen=True)
class Look:
    """How one kind of spot is drawn."""

    name: str
    colour: str
    symbol: str
    size: int


LOOKS: Mapping[str, Look] = {
    "worse": Look("clearly worse than another", "var(--grey)", "circle-open", 9),
    "unclear": Look("no better than another, within intervals", "var(--grey)", "circle", 9),
    "best": Look("best trade-off", "var(--accent)", "circle", 10),
    "reference": Look("reference", "var(--warm)", "diamond", 12),
}


def spots(facts: Facts, device: str | None) -> list[Spot]:
    """Return the files with a known accuracy and cost: time on a device, or MACs where there is none."""
    found = []
    for row in facts.rows:
        price = _price(row, device)
        if price is not None and row.quality.score is not None:
            found.append((row, Point(price, row.quality.score.accuracy)))
    ranks = standings([point for _, point in found])
    return [Spot(row, point, rank) for (row, point), rank in zip(found, ranks, strict=True)]


def trade_off(facts: Facts, device: str | None) -> dict[str, Json] | None:
    """Return accuracy against cost with its intervals, or None where fewer than two files have both."""
    shown = spots(facts, device)
    if len(shown) < 2:
        return None
    labels, costs = _labels(facts, shown), [s.point.cost.value for s in shown]
    middle = (min(costs) + max(costs)) / 2
    traces = [_trace([s for s in shown if _kind(s) == kind], look, labels, middle) for kind, look in LOOKS.items()]
    x = f"{quantity(facts, device)}, {'ms' if device else 'millions'} (less is better)"
    return {"data": [trace for trace in traces if trace["x"]], "layout": against_accuracy({"title": {"text": x}})}


def against_accuracy(x: Mapping[str, Json]) -> dict[str, Json]:
    """Return the layout of a chart of accuracy, its legend below."""
    legend = {"orientation": "h", "y": -0.22, "x": 0, "yanchor": "top"}
    return {**plain_layout(420, x=x, y={"title": {"text": "accuracy, %", "standoff": 12}}), "legend": legend}


def quantity(facts: Facts, device: str | None) -> str:
    """Return what the cost axis of a device shows."""
    found = [m for row in facts.rows if (m := measured(row, device))]
    if not found:
        return "MACs"
    return f"median {'CPU' if found[0].by_cpu_time else 'wall'} time"


def bars(facts: Facts, values: Sequence[tuple[Row, float]], unit: str) -> dict[str, Json]:
    """Return one bar a file, in the order of the tables."""
    colours = ["var(--accent)" if row.judged else "var(--warm)" for row, _ in values]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(facts.short(row)) for row, _ in values],
        "x": [_finite(value) for _, value in values],
        "text": [f"{value:.3g}" for _, value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.4g} " + unit + "<extra></extra>",
        "marker": {"color": colours},
    }
    top = 1.18 * max((value for _, value in values), default=1.0)
    layout = plain_layout(
        70 + 26 * len(values),
        x={"title": {"text": unit}, "range": [0, _finite(top)]},
        y={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    return {"data": [trace], "layout": {**layout, "bargap": 0.35, "showlegend": False}}


def _price(row: Row, device: str | None) -> Interval | None:
    if device is None:
        macs = row.bundle.manifest["cost"]["macs"] / 1e6
        return Interval(macs, macs, macs)
    found = measured(row, device)
    return None if found is None else compared_time(found)


def _kind(spot: Spot) -> str:
    return spot.standing if spot.row.judged else "reference"


def _trace(shown: Sequence[Spot], look: Look, labels: Mapping[str, str], middle: float) -> dict[str, Json]:
    shown = sorted(shown, key=lambda s: s.point.cost.value)
    muted = look.colour == "var(--grey)"
    return {
        **scatter(shown, look.colour),
        "name": look.name,
        "mode": "markers" if muted else "markers+text",
        "text": [labels.get(s.row.title, "") for s in shown],
        "textposition": [_place(i, s.point.cost.value, middle) for i, s in enumerate(shown)],
        "textfont": {"size": 11},
        "marker": {
            "color": look.colour,
            "symbol": look.symbol,
            "size": look.size,
            "line": {"width": 2, "color": look.colour},
        },
    }


def scatter(shown: Sequence[Spot], colour: str) -> dict[str, Json]:
    """Return cost and accuracy of files with their intervals, and what is said when one is pointed at."""
    costs, shares = [s.point.cost for s in shown], [_percent(s.point.accuracy) for s in shown]
    return {
        "type": "scatter",
        "x": [_finite(i.value) for i in costs],
        "y": [_finite(i.value) for i in shares],
        "error_x": _ends(costs, colour),
        "error_y": _ends(shares, colour),
        "hovertext": [_hover(s, share) for s, share in zip(shown, shares, strict=True)],
        "hoverinfo": "text",
    }


def _place(number: int, cost: float, middle: float) -> str:
    """Return where a label stands: towards the middle, above and below by turns."""
    return f"{'bottom' if number % 2 else 'top'} {'left' if cost > middle else 'right'}"


def _hover(spot: Spot, share: Interval) -> str:
    cost = spot.point.cost
    return (
        f"{html.escape(spot.row.title)}<br>accuracy {share.value:.2f} % ({share.low:.2f} to {share.high:.2f})"
        f"<br>cost {cost.value:.4g} ({cost.low:.4g} to {cost.high:.4g})"
    )


def _labels(facts: Facts, shown: Sequence[Spot]) -> dict[str, str]:
    """Return short names by title: what the names share is left out, and all where there are too many."""
    students = [s for s in shown if _kind(s) == "best"]
    names = [facts.short(s.row) for s in students]
    shared = _beginning(names) if len(names) > 1 else ""
    cut = max(shared.rfind("-"), shared.rfind("_"), shared.rfind(" ")) + 1
    short = {s.row.title: html.escape(name[cut:]) for s, name in zip(students, names, strict=True)}
    fits = sum(map(len, short.values())) <= MOST_LETTERS
    return (short if fits else {}) | {s.row.title: html.escape(facts.short(s.row)) for s in shown if not s.row.judged}


def _beginning(names: Sequence[str]) -> str:
    """Return what all names begin with: as much as the first and the last in order share."""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]


def _ends(intervals: Sequence[Interval], colour: str) -> dict[str, Json]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [_finite(i.high - i.value) for i in intervals],
        "arrayminus": [_finite(i.value - i.low) for i in intervals],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def plain_layout(height: int, x: Mapping[str, Json], y: Mapping[str, Json]) -> dict[str, Json]:
    axis = {"gridcolor": "var(--line)", "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8, "pad": 4},
        "paper_bgcolor": "var(--page)",
        "plot_bgcolor": "var(--page)",
        "font": {"color": "var(--text)", "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"bgcolor": "var(--page)", "font": {"color": "var(--text)"}, "bordercolor": "var(--grey)"},
        "dragmode": False,
        "xaxis": {**axis, **x},
        "yaxis": {**axis, **y},
    }


def _percent(share: Interval) -> Interval:
    return Interval(100 * share.value, 100 * share.low, 100 * share.high)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
