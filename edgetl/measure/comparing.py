"""Which of several artifacts is faster than the baseline, and how sure that is. [no torch]"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from edgetl.errors import BadInput
from edgetl.intervals import Interval, geometric_mean, student_t, student_within
from edgetl.measure.measurement import Comparison, Measurement, Word

THRESHOLD = 0.01
"""A smaller difference is not called one."""

SAME = 0.02
"""Ratios that lie within this of 1, with their whole interval, are called equivalent."""

RISK = 0.05
MOST_ROUNDS = 1000
"""Where more rounds would be needed, their number is not told: the difference is too close to a threshold."""

Quantity: TypeAlias = Literal["cpu_time_p50", "p50"]


@dataclass(frozen=True)
class Baseline:
    """What candidates are compared with, and the ratio of the baseline to itself in the same rounds."""

    stem: str
    sha256: str
    quantity: Quantity
    control: Interval | None  # None: the mode has none


def compare_all(base: Baseline, ratios: Mapping[str, Sequence[float]]) -> dict[str, Comparison]:
    """Return the comparison of each candidate, by its key, from its ratios to the baseline, one a round.

    Of a candidate with fewer than two rounds there is none.
    """
    counted = {key: values for key, values in ratios.items() if len(values) > 1}
    levels = holm({key: _chance(values) for key, values in counted.items()})
    found = {}
    for key, values in counted.items():
        ratio, strict = geometric_mean(values), geometric_mean(values, levels[key])
        found[key] = Comparison(
            baseline=base.stem,
            baseline_sha256=base.sha256,
            quantity=base.quantity,
            ratio=ratio.value,
            low=ratio.low,
            high=ratio.high,
            rounds=len(values),
            word=word(ratio, base.control),
            more_rounds=more_rounds(ratio, len(values), base.control),
            candidates=len(counted),
            holm_low=strict.low,
            holm_high=strict.high,
        )
    return found


def word(ratio: Interval, control: Interval | None) -> Word:
    """Return what an interval of new / base says; nothing where the control says that the rounds cannot tell."""
    return "inconclusive" if doubted(ratio, control) else plain_word(ratio)


def doubted(ratio: Interval, control: Interval | None) -> bool:
    """Say whether the baseline differs from itself, or is known less well than the difference that is claimed."""
    if control is None:
        return False
    effect = SAME if plain_word(ratio) == "equivalent" else abs(math.log(ratio.value))
    return _excludes_one(control) or _half(control) > effect


def more_rounds(ratio: Interval, rounds: int, control: Interval | None) -> int | None:
    """Return how many rounds are still needed for a word other than inconclusive; None where rounds do not help.

    The spread between rounds, s, is that of the rounds seen: R rounds resolve a difference d on the logarithm when
    Student's t of R - 1 times s / sqrt(R) is below d.
    """
    if word(ratio, control) != "inconclusive":
        return 0
    distance = _distance(math.log(ratio.value))
    if (control is not None and _excludes_one(control)) or distance <= 0:
        return None
    half = max(_half(ratio), _half(control) if control else 0.0)
    spread = half * math.sqrt(rounds) / student_t(0.95, rounds - 1)
    if not _resolved(MOST_ROUNDS, spread, distance):
        return None
    low, high = rounds, MOST_ROUNDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _resolved(middle, spread, distance) else (middle, high)
    return high - rounds


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Return the level of the interval on which each of several decisions is made, from their p-values (Holm 1979).

    With it, the chance that one decision or more is wrong is at most 5 %.
    """
    levels, strictest = {}, 0
    ordered = sorted(chances, key=lambda key: chances[key])
    for i, key in enumerate(ordered):
        levels[key] = 1 - RISK / (len(ordered) - strictest)
        if chances[key] < 1 - levels[key] and strictest == i:
            strictest = i + 1
    return levels


def across_runs(new: Measurement, old: Measurement) -> Interval:
    """Return the ratio new / old of two runs: each against the baseline that they share, with the variances added.

    Raises:
        BadInput: the machines differ, or nothing was measured in both runs.

    """
    together = "measure both in one run: edgetl profile NEW OLD --baseline OLD"
    if new.device.fingerprint != old.device.fingerprint:
        here, there = (f"{m.bundle.name} on {m.device.profile} {m.device.fingerprint[:12]}" for m in (new, old))
        raise BadInput(f"no ratio of {here} and {there}: machine, versions or settings differ", fix=together)
    if new.bundle.sha256 == old.bundle.sha256:
        raise BadInput(f"{new.bundle.name}: the other measurement is of the same artifact", fix=together)
    quantities = {m.comparison.quantity for m in (new, old) if m.comparison}
    if _baseline(new) != _baseline(old) or len(quantities) > 1:
        problem = f"no ratio of {new.bundle.name} and {old.bundle.name}: their runs share no baseline"
        raise BadInput(problem, fix=together)
    first, second = _to_baseline(new), _to_baseline(old)
    middle, half = math.log(first.value / second.value), math.hypot(_half(first), _half(second))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def plain_word(ratio: Interval) -> Word:
    """Return what an interval of new / base says, whatever a control says."""
    if ratio.high < 1 - THRESHOLD:
        return "faster"
    if ratio.low > 1 + THRESHOLD:
        return "slower"
    return "equivalent" if ratio.low >= 1 - SAME and ratio.high <= 1 + SAME else "inconclusive"


def _distance(middle: float) -> float:
    """Return how narrow half the interval around a log ratio must be to say something; 0 where it never does."""
    faster, slower = math.log(1 - THRESHOLD) - middle, middle - math.log(1 + THRESHOLD)
    same = min(math.log(1 + SAME) - middle, middle - math.log(1 - SAME))
    return max(faster, slower, same)


def _resolved(rounds: int, spread: float, distance: float) -> bool:
    return student_t(0.95, rounds - 1) * spread / math.sqrt(rounds) < distance


def _chance(ratios: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's test that the mean of the log ratios is 0."""
    logs = np.log(np.asarray(ratios, np.float64))
    mean, spread = abs(float(logs.mean())), float(logs.std(ddof=1))
    if spread == 0:
        return 0.0 if mean else 1.0
    return 1 - student_within(mean / spread * math.sqrt(len(logs)), len(logs) - 1)


def _excludes_one(interval: Interval) -> bool:
    return interval.low > 1 or interval.high < 1


def _half(interval: Interval) -> float:
    """Return half the width of an interval on the logarithm."""
    return math.log(interval.high / interval.value) if math.isfinite(interval.high) else math.inf


def _baseline(m: Measurement) -> str:
    return m.comparison.baseline_sha256 if m.comparison else m.bundle.sha256


def _to_baseline(m: Measurement) -> Interval:
    return m.comparison.interval if m.comparison else Interval(1.0, 1.0, 1.0)
