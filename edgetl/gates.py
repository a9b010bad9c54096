"""Gates and budgets, judged on the pessimistic end of what was measured. [no torch, no pydantic]"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgetl.intervals import Interval
from edgetl.types import Json

GATES = ("accuracy", "accuracy_drop", "class_drop", "f1", "agreement", "faster")
BUDGETS = ("p50_ms", "p90_ms", "peak_mb", "size_mb")

REMEDY = "cut less or train longer for accuracy, cut more for time and memory, or relax the limit in the recipe"


@dataclass(frozen=True)
class Timing:
    """What one measurement on one device says."""

    verdict: Literal["clean", "noisy", "invalid"]
    p50_ms: Interval
    p90_ms: float | None  # None: too few samples
    peak_bytes: int  # beyond the bare runtime's, maximum over rounds
    ratio: Interval | None  # time over the reference's, paired
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of one artifact: shares in [0, 1]; None is not measured."""

    accuracy: Interval | None = None
    f1: Interval | None = None
    drop: Interval | None = None  # of accuracy, against the reference exported at fp32
    class_drop: Interval | None = None  # of the worst class
    agreement: Interval | None = None
    size_bytes: int = 0
    cut: bool = False  # it costs fewer multiply-adds than the reference
    timings: Mapping[str, Timing] = field(default_factory=dict)  # by device


@dataclass(frozen=True)
class Verdict:
    """One limit and whether it is kept, in the gate's own unit; `kept` is None where nothing valid was measured."""

    gate: str
    limit: float | None  # None: only that there is a valid measurement
    value: float | None
    kept: bool | None
    device: str | None = None
    note: str = ""
    binding: bool = True  # not measured counts as missed

    @property
    def passes(self) -> bool:
        """Whether this limit lets the artifact through."""
        return not self.binding if self.kept is None else self.kept

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device else ""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        limit = "" if self.limit is None else f", limit {self.limit:.4g}"
        note = f" ({self.note})" if self.note not in ("", "not measured") else ""
        return f"{self.gate}{where}: {value}{limit}{note}"


def judge(gates: Mapping[str, Json], budgets: Mapping[str, Mapping[str, Json]], facts: Facts) -> list[Verdict]:
    """Return a verdict on every gate, every budget of every device, and on the speed of a cut on every device."""
    verdicts = [
        _at_least("accuracy", gates, _percent(facts.accuracy)),
        _at_most("accuracy_drop", gates, _percent(facts.drop)),
        _at_most("class_drop", gates, _percent(facts.class_drop)),
        _at_least("f1", gates, _percent(facts.f1)),
        _at_least("agreement", gates, facts.agreement),
    ]
    found = [v for v in verdicts if v is not None]
    for device in sorted({*budgets, *facts.timings}):
        found += judge_budget(budgets[device], facts, device) if device in budgets else []
        found += _faster(gates.get("faster"), facts, device)
    return found


def judge_budget(budget: Mapping[str, Json], facts: Facts, device: str) -> list[Verdict]:
    """Return a verdict on every limit of one device. Without a valid measurement one of them is not kept, at least."""
    timing = facts.timings.get(device)
    note = _why_not(timing)
    values: dict[str, float | None] = dict.fromkeys(BUDGETS)
    values["size_mb"] = facts.size_bytes / 1e6
    if timing is not None and timing.verdict != "invalid":
        values |= {"p50_ms": timing.p50_ms.high, "p90_ms": timing.p90_ms, "peak_mb": timing.peak_bytes / 1e6}
        note = "noisy" if timing.verdict == "noisy" else ""
    found = []
    for gate, value in values.items():
        limit = budget.get(gate)
        if limit is not None:
            kept = None if value is None else value <= limit
            said = "" if gate == "size_mb" else note or ("too few samples" if value is None else "")
            found.append(Verdict(gate, limit, value, kept, device, said))
    if note and note != "noisy" and all(v.kept is not None for v in found):
        found.append(Verdict("latency and memory", None, None, None, device, note))
    return found


def with_own(
    budgets: Mapping[str, Mapping[str, Json]], own: Mapping[str, float | None]
) -> Mapping[str, Mapping[str, Json]]:
    """Return the budgets with the 90th percentile in milliseconds that a device's file sets, where that is stricter."""
    found = dict(budgets)
    for device, most in own.items():
        if most is not None:
            asked = found.get(device, {})
            found[device] = {**asked, "p90_ms": min(most, asked.get("p90_ms") or most)}
    return found


def missed(verdicts: Sequence[Verdict], device: str | None) -> list[Verdict]:
    """Return the limits that are not kept, of those that hold everywhere or on the device."""
    return [v for v in verdicts if v.device in (None, device) and not v.passes]


def _at_least(gate: str, gates: Mapping[str, Json], value: Interval | None) -> Verdict | None:
    limit = gates.get(gate)
    if limit is None:
        return None
    if value is None:
        return Verdict(gate, limit, None, None, note="not measured")
    return Verdict(gate, limit, value.low, value.low >= limit)


def _at_most(gate: str, gates: Mapping[str, Json], value: Interval | None) -> Verdict | None:
    limit = gates.get(gate)
    if limit is None:
        return None
    if value is None:
        return Verdict(gate, limit, None, None, note="not measured")
    return Verdict(gate, limit, value.high, value.high <= limit)


def _faster(asked: bool | None, facts: Facts, device: str) -> list[Verdict]:
    """Judge a cut's speed-up: its interval must exclude 1. By default it is judged where latency was measured."""
    if asked is False or not facts.cut:
        return []
    timing = facts.timings.get(device)
    ratio = None if timing is None or timing.verdict == "invalid" else timing.ratio
    if timing is None or ratio is None:
        note = _why_not(timing) or "no reference was measured with it"
        return [Verdict("faster", 1.0, None, None, device, note, binding=bool(asked))]
    notes = ["no measurable gain"] if ratio.high >= 1 else []
    notes += ["noisy"] if timing.verdict == "noisy" else []
    return [Verdict("faster", 1.0, ratio.high, ratio.high < 1, device, ", ".join(notes))]


def _why_not(timing: Timing | None) -> str:
    if timing is None:
        return "not measured"
    return f"invalid: {', '.join(timing.flags) or 'too uncertain'}" if timing.verdict == "invalid" else ""


def _percent(share: Interval | None) -> Interval | None:
    return None if share is None else Interval(100 * share.value, 100 * share.low, 100 * share.high)
