"""The parts of the page that are text and tables: what ships, where it ran, which limits hold. [no torch]"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from edgetl import __version__
from edgetl.comparison import Row
from edgetl.gates import Verdict
from edgetl.measure.measurement import Measurement
from edgetl.overview import count
from edgetl.page import markup
from edgetl.page.facts import Facts, Sheet, chosen, compared_time, measured
from edgetl.page.history import commands, environment, recipe_text
from edgetl.page.markup import Markup

MOST_LINES = 12
"""Above this many lines a table that has several for each file is folded."""

LADDER = ("file", "target", "precision", "outcome", "MB", "drop, points", "reason")


def headline(facts: Facts) -> Markup:
    """Return which student each device gets and why, or the limits that the closest one misses."""
    return markup.join(*(_shipping(facts, device) for device in facts.devices))


def sheet(facts: Facts, one: Sheet) -> Markup:
    """Return the same table as report.md has; it is folded where it holds many lines for each file."""
    notes = [markup.tag("p", note) for note in one.notes]
    if not one.lines:
        return markup.join(*notes)
    table = markup.table(one.title, one.header, one.lines)
    long = len(one.lines) > len(facts.rows) and len(one.lines) > MOST_LINES
    return markup.join(*notes, markup.details(f"{len(one.lines)} lines", table) if long else table)


def ladder(facts: Facts) -> Markup:
    """Return one line for each file that the recipe plans: what became of it, and why."""
    lines = [_rung(row, facts.devices) for row in facts.rows]
    for title in facts.missing:
        name, target, precision = title.rsplit(" ", 2)
        lines.append([name, target, precision, _word("missing", "bad"), "-", "-", "not exported, or out of date"])
    return markup.table("Files by target and precision", LADDER, lines)


def device_card(facts: Facts, device: str) -> Markup:
    """Return the machine, the conditions and what disturbed the measurements."""
    found = [row.measured[device] for row in facts.rows if device in row.measured]
    if not found:
        return markup.tag("article", markup.tag("h3", device), markup.tag("p", "Not measured."), class_="card")
    newest = max(found, key=lambda m: m.run.started_utc)
    return markup.tag(
        "article",
        markup.tag("h3", device),
        markup.facts([*_machine(newest), *_conditions(newest), *_disturbances(found)]),
        class_="card",
    )


def repeat(facts: Facts) -> Markup:
    """Return versions, commands and the resolved recipe."""
    there = environment(facts.run)
    versions = {"edgetl": __version__, **(there.get("versions") or {})}
    for row in facts.rows:
        for m in row.measured.values():
            versions |= m.config.versions
    host = {key: str(there[key]) for key in ("python", "machine", "threads", "device") if key in there}
    recipe, folder = recipe_text(facts.run), shlex.quote(f"runs/{facts.plan['name']}")
    return markup.join(
        markup.tag(
            "p",
            "Commands; where the run folder lies elsewhere, put its path instead of ",
            markup.tag("code", folder),
            ".",
        ),
        markup.tag("pre", markup.tag("code", "\n".join(commands(folder, facts.rows))), tabindex=0),
        markup.tag("h3", "Versions"),
        markup.facts([*((k, str(v)) for k, v in sorted(versions.items()) if k not in host), *host.items()]),
        markup.details("The recipe with every default", markup.tag("pre", markup.tag("code", recipe), tabindex=0))
        if recipe
        else markup.tag("p", "The recipe is not in the run folder."),
    )


def _shipping(facts: Facts, device: str | None) -> Markup:
    where = f"On {device}" if device else "No device was measured"
    row = facts.shipped(device)
    if row is not None:
        return _card(where, row, "ships", _why(facts, row, device), facts)
    closest = facts.closest(device)
    if closest is None:
        return markup.tag("article", markup.tag("h3", where), markup.tag("p", "No student is exported."), class_="card")
    return _card(where, None, "no student keeps every limit", _misses(closest, device), facts)


def _card(where: str, row: Row | None, says: str, lines: Sequence[str], facts: Facts) -> Markup:
    kind = "good" if row else "bad"
    title = markup.tag("strong", facts.short(row)) if row else None
    return markup.tag(
        "article",
        markup.tag("h3", where),
        markup.tag("p", title, " " if row else None, _word(says, kind), class_="verdict"),
        markup.bullets(lines),
        class_=f"card {kind}",
    )


def _why(facts: Facts, row: Row, device: str | None) -> list[str]:
    passing, budget = facts.passing(device), facts.plan["budgets"].get(device)
    keeping = f"{len(passing)} of {len(facts.students)} files keep every limit"
    if budget:
        chosen = "this one is the most accurate of them"
    else:
        timed = measured(row, device)
        chosen = "of them, this one has the lowest median time" if timed else "of them, this one has the fewest MACs"
    lines = [f"{keeping}; {chosen}.", _cost(row), *_speed(row, device)]
    lines += [_limit(v) for v in row.verdicts if v.device in (None, device)]
    return lines if row.verdicts else [*lines, "The recipe sets no limit."]


def _cost(row: Row) -> str:
    cost, score = row.bundle.manifest["cost"], row.quality.score
    right = "accuracy not measured"
    if score:
        share = score.accuracy
        right = f"accuracy {100 * share.value:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f})"
    return f"{right}, {count(cost['macs'])} MACs, {count(cost['parameters'])} parameters, {row.size_bytes / 1e6:.3f} MB"


def _speed(row: Row, device: str | None) -> list[str]:
    found = measured(row, device)
    if found is None:
        return []
    time, ratio = compared_time(found), found.comparison
    kind = "CPU" if found.by_cpu_time else "wall"
    said = f"median {kind} time {time.value:.3g} ms ({time.low:.3g} to {time.high:.3g})"
    if ratio:
        said += f", {ratio.ratio:.3g} ({ratio.low:.3g} to {ratio.high:.3g}) of the reference's"
    flags = f" ({', '.join(found.noise.flags)})" if found.noise.flags else ""
    return [f"{said}; the measurement is {found.verdict}{flags}"]


def _limit(v: Verdict) -> str:
    return f"{'keeps' if v.kept else 'not judged'} {v}"


def _misses(row: Row, device: str | None) -> list[str]:
    found = chosen(row)
    predicted = device is not None and (found.get("device"), found.get("how")) == (device, "predicted")
    away = [f"its depth was predicted for {device}, which was not attached"] if predicted else []
    return [f"{row.title} comes closest; it misses:", *map(str, row.missed(device)), *away]


def _rung(row: Row, devices: Sequence[str | None]) -> list[str]:
    drop = row.quality.drop
    missed = [v for v in row.verdicts if not v.passes]
    reason = "; ".join(map(str, missed)) or ("keeps every limit" if row.verdicts else "no limit is set for it")
    points = f"{100 * drop.value:.2f}" if drop else "-"
    size = f"{row.size_bytes / 1e6:.3f}"
    return [row.name, row.target, row.precision, _outcome(row, devices), size, points, reason]


def _outcome(row: Row, devices: Sequence[str | None]) -> Markup:
    if not row.judged:
        return _word("reference", "muted")
    kept = [device for device in devices if not row.missed(device)]
    if len(kept) == len(devices):
        return _word("kept", "good")
    return _word(f"kept on {', '.join(map(str, kept))}", "good") if kept else _word("rejected", "bad")


def _word(text: str, kind: str) -> Markup:
    return markup.tag("span", text, class_=kind)


def _machine(m: Measurement) -> list[tuple[str, str | None]]:
    device = m.device
    return [
        ("machine", f"{device.cpu_model} ({device.kind})"),
        ("memory", f"{device.mem_total_bytes / 1e9:.1f} GB"),
        ("kernel", device.kernel),
        ("governor", device.governor),
        ("turbo", None if device.turbo is None else "allowed" if device.turbo else "barred"),
        ("GPU", f"{device.gpu_model}, driver {device.driver}" if device.gpu_model else None),
        ("power mode", device.power_mode),
        ("reached by", device.link),
    ]


def _conditions(m: Measurement) -> list[tuple[str, str | None]]:
    config = m.config
    cpus = f", on CPUs {', '.join(map(str, config.cpus))}" if config.cpus else ""
    shapes = "; ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in config.shapes.items())
    return [
        ("provider", config.provider),
        ("threads", f"{config.threads}{cpus}"),
        ("batch", str(config.batch)),
        ("inputs", f"{config.distinct_inputs} of {config.inputs}: {shapes}"),
        ("rounds", f"{m.run.rounds} of fresh processes ({m.run.mode}), {m.run.failed_rounds} failed"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(config.versions.items()))),
        ("measured", f"{m.run.started_utc}, in {m.run.wall_s:.0f} s"),
    ]  # fmt: skip


def _disturbances(found: Sequence[Measurement]) -> list[tuple[str, str | None]]:
    verdicts = Counter(m.verdict for m in found)
    flags = Counter(flag for m in found for flag in m.noise.flags)
    effects = [m.noise.mde for m in found if m.noise.mde is not None]
    clocks = [
        m.noise.clock_mhz_min / m.noise.clock_mhz_median
        for m in found
        if m.noise.clock_mhz_min and m.noise.clock_mhz_median
    ]
    offs = [m.accuracy.parity.max_rel for m in found if m.accuracy and m.accuracy.parity.max_rel is not None]
    return [
        ("verdicts", ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())),
        ("noise flags", ", ".join(f"{flag} ({n} of {len(found)})" for flag, n in flags.items()) or "none"),
        ("lowest clock", f"{100 * min(clocks):.0f} % of the median" if clocks else None),
        ("answers while timed", f"off by at most {max(offs):.1e} of the largest golden logit" if offs else None),
        ("smallest provable effect", f"{100 * max(effects):.1f} %" if effects else None),
    ]
