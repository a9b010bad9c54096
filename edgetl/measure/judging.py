"""Whether measurements keep what the command line, their device's file and their recipe ask for. [no torch]"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgetl import comparison, gates
from edgetl.errors import BadHost, BadInput, GateMissed
from edgetl.measure import measurement, noise
from edgetl.measure.measurement import Measurement
from edgetl.plugins import nearest
from edgetl.recipe.plan import read_plan


def judge(where: Sequence[Path], measurements: Sequence[Measurement], gate: str | None = None) -> None:
    """Check measurements against limits such as "p90_ms=12,peak_mb=200", their device's own, and their recipes'.

    Raises:
        GateMissed: one is above its limit, on the pessimistic end.
        BadHost: one is invalid.

    """
    runs = [path for path in where if (path / "plan.json").is_file()]
    for m in measurements:
        _judge_budget(m, limits(gate), own=not runs)
    for run in runs:  # of which the device's own limits hold for the students
        comparison.judge(run, read_plan(run), measurements[0].device.profile)
    for m in measurements:
        _judge_verdict(m)


def limits(gate: str | None) -> dict[str, float]:
    """Return the budget in a text such as "p90_ms=12,peak_mb=200".

    Raises:
        BadInput: an unknown name, or no positive number.

    """
    budget = {}
    for part in filter(None, (gate or "").split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in gates.BUDGETS:
            raise BadInput(f"--gate: no budget '{name.strip()}'", fix=nearest(name.strip(), gates.BUDGETS))
        try:
            budget[name.strip()] = float(value)
        except ValueError as e:
            raise BadInput(f"--gate: {part!r} has no number", fix=f"write {name.strip()}=12") from e
        if not 0 < budget[name.strip()] < math.inf:
            raise BadInput(f"--gate: {part!r} is no limit", fix="give a number above 0")
    return budget


def _judge_budget(m: Measurement, budget: Mapping[str, float], *, own: bool) -> None:
    device = m.device.profile
    facts = gates.Facts(size_bytes=m.size.model_bytes, timings={device: measurement.timing(m)})
    strictest = gates.with_own({device: budget}, {device: m.device.limit_p90_ms if own else None})[device]
    for verdict in gates.judge_budget(strictest, facts, device):
        if verdict.kept is False or (verdict.kept is None and m.verdict != "invalid"):
            raise GateMissed(f"{m.bundle.name} misses {verdict}", fix="use a smaller student, or relax the limit")
    most = m.device.limit_bundle_bytes if own else None
    if most is not None and m.size.bundle_bytes > most:
        problem = f"{m.bundle.name} takes {m.size.bundle_bytes / 1e6:.1f} MB, and {device} has {most / 1e6:.1f}"
        raise GateMissed(problem, fix="use int8 weights or a smaller student, or relax storage.budget_bytes")


def _judge_verdict(m: Measurement) -> None:
    parts = [(m.verdict, m.noise.flags, "the measurement")]
    if m.throughput is not None and m.throughput.verdict is not None:
        parts.append((m.throughput.verdict, list(m.throughput.flags), "the throughput"))
    for verdict, flags, what in parts:
        if verdict == "invalid":
            why = ", ".join(flags) or "the median is too uncertain"
            fix = "stop other programs, cool the machine, and measure again"
            if noise.WRONG in flags:
                fix = "`edgetl verify` tells how far its answers are from its goldens; try another runtime version"
            raise BadHost(f"{what} of {m.bundle.name} on {m.device.profile} is invalid: {why}", fix=fix)
