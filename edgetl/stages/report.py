"""Compare the exported files of a run: accuracy, parity, latency, memory, and the limits they keep. [no torch]"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl import __version__, comparison, gates, store
from edgetl.comparison import Row
from edgetl.errors import BadInput, GateMissed
from edgetl.gates import Verdict
from edgetl.intervals import Interval
from edgetl.measure.measured import roof, word
from edgetl.measure.measurement import Measurement
from edgetl.overview import DASH, count, overview
from edgetl.page import fleet
from edgetl.page import write as page
from edgetl.page.facts import Facts, Sheet
from edgetl.page.precisions import precisions, unpaid
from edgetl.recipe.plan import files, folder_name, read_plan
from edgetl.types import Json

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("edgetl")

SCHEMA_VERSION = 1
ACCURACY = (
    *("file", "MACs", "params", "MB", "accuracy %", "balanced %", "macro-F1 %", "ECE %", "drop, points"),
    *("largest difference", "agreement"),
)
_UNITS = (
    "Accuracy, macro-F1 and ECE, the expected calibration error over 10 bins, in percent, drops in percentage points, "
    "agreement a share, times in ms, memory and size in MB; `faster` is time / reference, which must stay below 1."
)
LIMITS = ("file", "where", "limit on", "value, pessimistic end", "limit", "outcome", "note")
SPEED = (
    *("file", "n", "p50 ms", "p90 ms", "CPU p50 ms", "cold ms", "peak MB", "time / reference", "says"),
    *("% of roofline", "verdict"),
)


_WHY = {
    "energy": ": no meter was read",
    "throughput": ": `edgetl profile --throughput` measures it",
    "roofline": ": `edgetl devices calibrate` measures what the device allows",
}


@dataclass(frozen=True)
class Report:
    """The comparison of one run."""

    run: Path
    name: str
    rows: tuple[Row, ...]
    devices: tuple[str | None, ...]  # in budgets or measured; None where there is neither
    missing: tuple[str, ...]  # planned files that are not exported
    plan: Mapping[str, Json]

    @property
    def facts(self) -> Facts:
        """What the page and the table of devices are made from."""
        return Facts(self.run, self.plan, self.rows, self.devices, self.missing)

    def to_json(self) -> dict[str, Json]:
        """Return the plain data of report.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "edgetl": __version__,
            "reference": next((r.name for r in self.rows if r.reference), None),
            "devices": [d for d in self.devices if d],
            "missing": list(self.missing),
            "best": {d or "any": [r.title for r in self.passing(d)] for d in self.devices},
            "rows": [row.to_json() for row in self.rows],
        }

    def passing(self, device: str | None) -> list[Row]:
        """Return the students that keep every gate and the budget of a device."""
        return [row for row in self.rows if row.judged and not row.missed(device)]

    def judge(self) -> None:
        """Check that every device has a student that keeps every gate and budget.

        Raises:
            GateMissed: it names the device, the gate, the value and the limit of the student that misses fewest.

        """
        if any(row.judged for row in self.rows) or self.missing:
            missed = [_missed(self, device) for device in self.devices if not self.passing(device)]
            if missed:
                fixes = dict.fromkeys(one.fix for one in missed)
                raise GateMissed("; ".join(one.problem for one in missed), fix="; ".join(fixes))

    def table(self) -> Table:
        """Return the comparison for the terminal."""
        return overview(self.name, self.rows, self.devices, f"more in {self.run / 'report.md'}")

    def markdown(self) -> str:
        """Return report.md."""
        accuracy = _markdown(ACCURACY, [_accuracy_cells(row) for row in self.rows])
        parts = [f"# {self.name}", _reading(self.rows), "## Accuracy and cost", accuracy]
        if every := fleet.sheet(self.facts):
            parts += [f"## {every.title}", *every.notes, _markdown(every.header, every.lines)]
        for device in filter(None, self.devices):
            parts += [f"## On {device}", *_device_parts(self.rows, device)]
        if tried := precisions(self.rows):
            parts += [f"## {tried.title}", *tried.notes, _markdown(tried.header, tried.lines)]
        parts += ["## Limits", _limits(self.rows), "## Not measured", _not_measured(self)]
        return "\n\n".join(parts) + "\n"


def report(run: Path) -> Report:
    """Compare the files of a run, write report.json, .md and .html into it and return the comparison.

    Raises:
        BadInput: the folder is no run, or nothing is exported.
        Refused: a bundle, an array or a measurement is damaged.

    """
    plan = read_plan(run)
    rows = tuple(comparison.rows(run, plan))
    if not rows:
        raise BadInput(f"{run} has no bundles of its networks", fix=f"run `edgetl export {run}` first")
    devices = tuple(sorted({*plan["budgets"], *(d for row in rows for d in row.measured)})) or (None,)
    made = Report(run, plan["name"], rows, devices, _missing(plan, rows), plan)
    store.write_json(run / "report.json", made.to_json())
    store.write_bytes(run / "report.md", made.markdown().encode())
    for sentence in unpaid(rows):
        log.warning("%s", sentence)
    unmeasured = [line.removeprefix("- ").replace("`", "") for line in _not_measured(made).splitlines()]
    page.write(made.facts, _sheets(made), unmeasured)
    return made


def _sheets(made: Report) -> list[Sheet]:
    """Return the tables of report.md."""
    found = [Sheet("Accuracy and cost", [_reading(made.rows)], ACCURACY, [_accuracy_cells(row) for row in made.rows])]
    found += [every] if (every := fleet.sheet(made.facts)) else []
    for device in filter(None, made.devices):
        measured = [(row, row.measured[device]) for row in made.rows if device in row.measured]
        notes = sorted({_conditions(m) for _, m in measured}) or ["Not measured."]
        found.append(Sheet(f"On {device}", notes, SPEED, [[row.title, *_speed_cells(m)] for row, m in measured]))
    limits = [[row.title, *_verdict_cells(v)] for row in made.rows for v in row.verdicts]
    units = _UNITS.replace("`", "") if limits else "The recipe sets none."
    tried = precisions(made.rows)
    return [*found, *([tried] if tried else []), Sheet("Limits", [units], LIMITS, limits)]


def _missing(plan: Mapping[str, Json], rows: Sequence[Row]) -> tuple[str, ...]:
    there = {(row.name, row.bundle.folder.name) for row in rows}
    absent = [(name, t) for name, t in files(plan) if (name, folder_name(t)) not in there]
    return tuple(f"{name} {t['use']} {t['precision']}" for name, t in absent)


def _missed(made: Report, device: str | None) -> GateMissed:
    where, students = f" on {device}" if device else "", made.facts.students
    if not students:
        return GateMissed(f"no student is exported, {made.missing[-1]} is missing", fix="run `edgetl export` first")
    place = next((p for p in fleet.places(made.facts) if p.device == device), None)
    if place and place.row and place.chosen.get("how") == "predicted" and device not in place.row.measured:
        problem = f"{place.row.title} was chosen for {device} by a prediction and is not measured there"
        return GateMissed(problem, fix=f"attach {device}, then run the same command again: it chooses anew")
    missed = {row.title: row.missed(device) for row in students}
    title, closest = min(missed.items(), key=lambda item: len(item[1]))
    if all(v.kept is None for v in closest):
        fix = f"run `edgetl profile` on {device} while it is idle" if device else "run `edgetl export` again"
    else:
        fix = gates.REMEDY
    return GateMissed(f"no student keeps every limit{where}; {title} misses {'; '.join(map(str, closest))}", fix=fix)


def _accuracy_cells(row: Row) -> list[str]:
    cost, score = row.bundle.manifest["cost"], row.quality.score
    agreement = row.quality.agreement
    return [
        row.title + ("" if row.judged else " (reference)"),
        count(cost["macs"]),
        count(cost["parameters"]),
        f"{row.size_bytes / 1e6:.3f}",
        _percent(score.accuracy if score else None),
        _percent(score.balanced if score else None),
        _percent(score.macro_f1 if score else None),
        DASH if score is None else f"{100 * score.ece:.2f}",
        _percent(row.quality.drop),
        f"{row.bundle.manifest['parity']['max_abs']:.1e}",
        DASH if agreement is None else f"{agreement.value:.4f} (from {agreement.low:.4f})",
    ]


def _device_parts(rows: Sequence[Row], device: str) -> list[str]:
    measured = [(row, row.measured[device]) for row in rows if device in row.measured]
    if not measured:
        return ["Not measured."]
    conditions = sorted({_conditions(m) for _, m in measured})
    return [*conditions, _markdown(SPEED, [[row.title, *_speed_cells(m)] for row, m in measured])]


def _conditions(m: Measurement) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in sorted(m.config.versions.items()))
    threads = f"{m.config.threads} thread{'s' if m.config.threads > 1 else ''}"
    turns = "one after the other" if m.config.turn_ms is None else f"in turns of {m.config.turn_ms:g} ms"
    return (
        f"{m.device.cpu_model}, kernel {m.device.kernel}, {m.config.provider}, {threads}, batch {m.config.batch}; "
        f"{m.run.rounds} rounds of fresh processes, {turns} ({m.run.mode}); {versions}. Times are wall time for "
        "one run of the file without pre-processing, medians of n runs with 95 % intervals over rounds; p90 is "
        "MLPerf's early-stopping estimate; cold is opening the file and its first run; peak is memory beyond the bare "
        "runtime's in MB (10^6 bytes), maximum over rounds; the ratio is paired by round and in "
        f"{'CPU' if m.by_cpu_time else 'wall'} time."
    )  # fmt: skip


def _speed_cells(m: Measurement) -> list[str]:
    """Return the cells of SPEED after the first; an invalid measurement shows no figure."""
    flags = f" ({', '.join(m.noise.flags)})" if m.noise.flags else ""
    if m.verdict == "invalid":
        return [DASH] * (len(SPEED) - 2) + ["not measured, invalid" + flags]
    ratio = m.comparison.interval if m.comparison else None
    return [
        str(m.latency.n),
        _interval(m.latency.p50),
        DASH if m.latency.p90_es_ms is None else f"{m.latency.p90_es_ms:.3g}",
        _interval(m.latency.cpu_p50),
        f"{m.cold.load_ms + m.cold.first_ms:.3g}",
        f"{m.memory.peak_delta_max_bytes / 1e6:.1f}",
        _interval(ratio) if ratio else DASH,
        word(m.comparison),
        roof(m.roofline),
        m.verdict + flags,
    ]


def _limits(rows: Sequence[Row]) -> str:
    lines = [[row.title, *_verdict_cells(v)] for row in rows for v in row.verdicts]
    if not lines:
        return "The recipe sets none."
    return _UNITS + "\n\n" + _markdown(LIMITS, lines)


def _verdict_cells(v: Verdict) -> list[str]:
    value, limit = (DASH if x is None else f"{x:.4g}" for x in (v.value, v.limit))
    outcome = {True: "kept", False: "missed", None: "not measured: missed" if v.binding else "not judged"}[v.kept]
    return [v.device or "everywhere", v.gate, value, limit, outcome, v.note.replace("not measured", "")]


def _not_measured(made: Report) -> str:
    lines = [f"- {title}: not exported, or not since its network changed" for title in made.missing]
    for row in made.rows:
        lines += [f"- {row.title}: accuracy on the test split"] if row.quality.score is None else []
        lines += [f"- {row.title}: latency and memory on {d}" for d in made.devices if d and d not in row.measured]
    if made.devices == (None,):
        lines.append("- latency and memory: no device was measured")
    every = [m for row in made.rows for m in row.measured.values()]
    for what, known in (("energy", "energy"), ("throughput", "throughput"), ("the roofline", "roofline")):
        lines += [] if any(getattr(m, known) for m in every) else [f"- {what}{_WHY[known]}"]
    return "\n".join(lines)


def _reading(rows: Sequence[Row]) -> str:
    n = next((row.quality.score.n for row in rows if row.quality.score), None)
    samples = f"{n} test samples" if n else "no test samples"
    return (
        f"Made by edgetl {__version__}. Every figure is of the exported file. Accuracy: {samples}, 95 % intervals; "
        "a drop is paired with the reference exported at fp32 on the same samples. MACs are multiply-adds of one sample"
        f"{_tokens(rows)}; MB (10^6 bytes) is the model file; the largest difference is that of a logit from the "
        "file's own torch network, agreement the share of equal answers. A dash is not measured."
    )


def _tokens(rows: Sequence[Row]) -> str:
    tokens = rows[0].bundle.manifest["cost"].get("tokens")
    return f" of {tokens} tokens, the mean of the training texts" if tokens else ""


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _interval(i: Interval) -> str:
    return f"{i.value:.3g} ({i.low:.3g} to {i.high:.3g})"


def _percent(share: Interval | None) -> str:
    if share is None:
        return DASH
    return f"{100 * share.value:.2f} ({100 * share.low:.2f} to {100 * share.high:.2f})"
