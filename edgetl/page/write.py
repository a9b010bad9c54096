"""report.html: one file that needs no network and runs no script but its own. [no torch]"""

from __future__ import annotations

import base64
import hashlib
import importlib
import logging
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from edgetl import __version__, store
from edgetl.extras import install
from edgetl.page import charts, fleet, history, learning, markup, mistakes, sections, times
from edgetl.page.facts import Facts, Sheet, measured
from edgetl.page.markup import Markup
from edgetl.types import Json

NAME = "report.html"
FLEET = "chart-devices"

log = logging.getLogger("edgetl")


def write(facts: Facts, sheets: Sequence[Sheet], unmeasured: Sequence[str]) -> Path | None:
    """Write report.html into the run folder and return its path, or None without plotly; an older page is removed.

    Raises:
        Refused: the answers or the test split of the run are damaged.

    """
    path = facts.run / NAME
    library = _library()
    if library is None:
        path.unlink(missing_ok=True)  # it would show figures of another report
        log.warning("%s is skipped: %s", NAME, install("plotly"))
        return None
    store.write_bytes(path, page(facts, sheets, unmeasured, library).encode())
    return path


def page(facts: Facts, sheets: Sequence[Sheet], unmeasured: Sequence[str], library: str) -> str:
    """Return the page; `library` is the text of plotly.js."""
    parts = _parts(facts, sheets, unmeasured)
    figures = _figures(facts)
    scripts = (library, _asset("report.js"))
    title = f"{facts.plan['name']}: edgetl report"
    head = markup.tag(
        "head",
        markup.tag("meta", charset="utf-8"),
        markup.tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        markup.tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        markup.tag("meta", name="referrer", content="no-referrer"),
        markup.tag("title", title),
        markup.tag("style", Markup(_asset("report.css"))),
    )
    body = markup.tag(
        "body",
        markup.tag("a", "Skip to the result", href="#result", class_="skip"),
        markup.tag("header", markup.tag("h1", str(facts.plan["name"])), _contents(parts)),
        markup.tag("main", *(markup.section(key, name, *inside) for key, (name, *inside) in parts.items())),
        *(markup.data(key, figure) for key, figure in figures.items()),
        *(markup.tag("script", Markup(text)) for text in scripts),
    )
    return f"<!doctype html>\n{markup.tag('html', head, body, lang='en')}\n"


def _parts(facts: Facts, sheets: Sequence[Sheet], unmeasured: Sequence[str]) -> dict[str, tuple[str, *tuple[str, ...]]]:
    """Return title and contents of every section, by its anchor."""
    tables = [markup.join(markup.tag("h3", one.title), sections.sheet(facts, one)) for one in sheets]
    devices = [sections.device_card(facts, device) for device in facts.devices if device]
    nowhere = markup.tag("p", "No device was measured.")
    return {
        "result": ("Result", markup.tag("div", sections.headline(facts), class_="cards")),
        "trade-off": ("Accuracy against cost", *(_fleet(facts) + _trade_offs(facts))),
        "size": ("Memory and size", _bars(facts)),
        "figures": ("All figures", *tables),
        "precisions": ("Targets and precisions", sections.ladder(facts)),
        "steps": ("Steps of the recipe", history.steps(facts)),
        "learning": ("Learning curves", _learning(facts)),
        "operations": ("Where the operations are", history.layers(facts)),
        "time": ("Where the time goes", times.layers(facts)),
        "errors": ("Where the student errs", mistakes.confusions(facts), mistakes.examples(facts)),
        "device": ("Device", *(devices or [nowhere])),
        "unmeasured": ("Not measured", markup.bullets(unmeasured)),
        "repeat": ("Repeat it", sections.repeat(facts)),
    }


def _contents(keys: Iterable[str]) -> Markup:
    links = (markup.tag("li", markup.tag("a", key.capitalize(), href=f"#{key}")) for key in keys)
    made = markup.tag("p", f"Made by edgetl {__version__}. Every figure is of the exported file.", class_="muted")
    return markup.join(made, markup.tag("nav", markup.tag("ul", *links), aria_label="contents"))


def _learning(facts: Facts) -> Markup:
    titles = {"loss": "Losses", "accuracy": "Accuracy on validation"}
    places = {key: _chart(key, titles[key.rpartition("-")[2]]) for key in learning.figures(facts)}
    return learning.section(facts, places)


def _fleet(facts: Facts) -> list[Markup]:
    """Return the chart over all devices, where there are several."""
    if fleet.figure(facts) is None:
        return []
    note = (
        "One line a device through its best trade-offs, by its own clock; a star is what ships there. Hollow: no "
        "better than another file, or, as a star, predicted where nothing was measured."
    )
    return [_chart(FLEET, "Accuracy against time, all devices"), markup.tag("p", note)]


def _trade_offs(facts: Facts) -> list[Markup]:
    shown = []
    for device in _timed(facts):
        where = f" on {device}" if device else "; latency is not measured"
        note = (
            "Bars are 95 % intervals. Grey: another file is at least as accurate at no more cost; filled where the "
            "intervals leave that open, hollow where they do not. All figures are in the tables below."
        )
        chart = _chart(_key("trade-off", device), f"Accuracy against {charts.quantity(facts, device)}{where}")
        few = markup.tag("p", f"Fewer than two files have accuracy and cost{where}.")
        there = {spot.row.title for spot in charts.spots(facts, device)}
        absent = [facts.short(row) for row in facts.rows if row.title not in there]
        left = f" Left out, without a valid measurement: {', '.join(absent)}." if absent else ""
        shown += [chart, markup.tag("p", note + left)] if len(there) > 1 else [few]
    return shown


def _bars(facts: Facts) -> Markup:
    memory = [_chart(_key("memory", device), f"Peak memory on {device}") for device in _timed(facts) if device]
    note = None if memory else markup.tag("p", "Memory: not measured.")
    return markup.join(note, markup.tag("div", *memory, _chart("chart-size", "Size of the model file"), class_="pair"))


def _chart(key: str, title: str) -> Markup:
    place = markup.tag("div", class_="chart", data_chart=key, role="img", aria_label=f"{title}; see the tables")
    without = markup.tag("noscript", markup.tag("p", "Charts need JavaScript; the tables hold the same figures."))
    return markup.tag("div", markup.tag("h3", title), place, without)


def _figures(facts: Facts) -> dict[str, dict[str, Json]]:
    """Return the charts by the key of their place."""
    found: dict[str, dict[str, Json]] = {}
    for device in _timed(facts):
        if figure := charts.trade_off(facts, device):
            found[_key("trade-off", device)] = figure
        peaks = [
            (row, m.memory.peak_delta_max_bytes / 1e6) for row in facts.rows if (m := measured(row, device)) is not None
        ]
        if peaks:
            found[_key("memory", device)] = charts.bars(facts, peaks, "MB beyond the bare runtime")
    if figure := fleet.figure(facts):
        found[FLEET] = figure
    sizes = [(row, row.size_bytes / 1e6) for row in facts.rows]
    return {**found, **learning.figures(facts), "chart-size": charts.bars(facts, sizes, "MB")}


def _timed(facts: Facts) -> list[str | None]:
    """Return the devices with a valid measurement, or None alone, which stands for cost in MACs."""
    return [d for d in facts.devices if d and any(measured(row, d) for row in facts.rows)] or [None]


def _key(kind: str, device: str | None) -> str:
    return f"chart-{kind}-{device or 'macs'}"


def _policy(scripts: Sequence[str]) -> str:
    """Return the rule that lets only these scripts run, and nothing be loaded."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _library() -> str | None:
    try:
        return str(importlib.import_module("plotly.offline").get_plotlyjs())
    except ModuleNotFoundError:
        return None


def _asset(name: str) -> str:
    return resources.files("edgetl.page").joinpath(name).read_text("utf-8")
