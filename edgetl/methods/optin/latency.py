"""Latency as a sum over groups of units, fitted to whole networks that were measured on the device.

Tables of layers measured alone miss the caches and fused kernels of the whole (profiled apart, a sum is biased low), so
nothing is taken apart here: networks with one kind of layer cut to a few sizes, and some cut at random, are exported
and timed beside the uncut one. Groups of layers alike share a table, which never falls with the number of units (least
squares without negative terms). Units go by the step that kernels use well, as in HALP (Shen et al. 2022, arXiv
2110.10811). All times are shares of the uncut network's, which cancels the speed of the day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.device import Device
from edgetl.intervals import Interval
from edgetl.measure.measurement import Measurement
from edgetl.network.edits import Edit
from edgetl.network.family import Group
from edgetl.network.network import Network

Measure: TypeAlias = Callable[[Sequence[Network], Device], Sequence[Measurement]]
Counts: TypeAlias = Mapping[str, int]
"""How many units every group keeps, by the group's name."""

NETWORKS = 16
"""About how many networks are measured for the tables of one network, those cut at random not counted."""

MIXED = 4
"""Networks with random counts in all groups: they tie the tables together, and tell how far a prediction may be off."""

INSIDE = (0.0, 0.35, 0.7)
"""Where knots lie between the least and all units of a group; the first is one step above the least."""

WIDEST_STEP, STEPS = 64, 8
"""A group keeps whole multiples of a power of two up to the widest step, but has at least that many sizes."""

TOGETHER = 4
"""Networks that are timed beside the uncut one in one go: with more of them each would get too few rounds."""

PRICE = 1e9
"""Units of a whole price for the uncut network's time, where the search wants whole numbers."""


@dataclass(frozen=True)
class Kind:
    """Groups of layers alike but for their number of units; between knots the time is a straight line."""

    groups: tuple[str, ...]
    knots: tuple[int, ...]  # ascending, from the least to all units of the largest of them

    def parts(self, counts: Counts) -> NDArray[np.float64]:
        """Return how much of the way from each knot to the next the counts go, summed over the groups."""
        units = np.array([counts.get(name, 0) for name in self.groups], np.float64)[:, None]
        low, high = np.array(self.knots[:-1], np.float64), np.array(self.knots[1:], np.float64)
        return np.asarray(np.clip((units - low) / (high - low), 0, 1).sum(axis=0))


@dataclass(frozen=True)
class Table:
    """The time of a network by the counts of its groups, as a share of the uncut network's."""

    kinds: tuple[Kind, ...]
    steps: NDArray[np.float64]  # what all that cannot be cut takes, then each kind's way from knot to knot
    dense: Measurement  # of the uncut network
    error: float  # mean of what was left out while the table was fitted, relative
    smallest: float  # the share that was measured with the least of all units

    @cached_property
    def times(self) -> dict[str, tuple[tuple[int, ...], NDArray[np.float64]]]:
        """Knots, and the time at each beyond that at the first, by group."""
        found, start = {}, 1
        for kind in self.kinds:
            stop = start + len(kind.knots) - 1
            at = np.concatenate([np.zeros(1), np.cumsum(self.steps[start:stop])])
            found.update(dict.fromkeys(kind.groups, (kind.knots, at)))
            start = stop
        return found

    @property
    def fixed(self) -> float:
        """The share of what cannot be cut."""
        return float(self.steps[0])

    def at(self, group: str, units: Sequence[int]) -> NDArray[np.float64]:
        """Return the time of a group with these numbers of units, beyond that with the least."""
        knots, times = self.times[group]
        return np.asarray(np.interp(units, knots, times), np.float64)

    def predict(self, counts: Counts) -> float:
        """Return the time of the network with these counts."""
        return self.fixed + sum(float(self.at(name, [units])[0]) for name, units in counts.items())

    def prices(self, groups: Sequence[Group]) -> dict[str, int]:
        """Return the time of one unit of every group on average, in whole billionths."""
        return {g.name: max(1, round(PRICE * float(self.at(g.name, [g.count])[0]) / g.count)) for g in groups}

    def budget(self, share: float) -> int:
        """Return what a share leaves for units, in whole billionths."""
        return max(0, math.floor(PRICE * (share - self.fixed)))


def sizes(group: Group, whole: int | None = None) -> tuple[int, ...]:
    """Return the numbers of units that a group may keep: none, where a constant takes its place, to all.

    `whole` is the count before earlier cuts, which decides the step.
    """
    uncut = group if whole is None else replace(group, count=whole)
    return tuple(dict.fromkeys((*range(_least(uncut), group.count, _step(uncut)), group.count)))


def took(one: Measurement) -> Interval:
    """Return the median time of a call in milliseconds that is compared: CPU time where one thread runs."""
    return one.latency.cpu_p50 if one.by_cpu_time else one.latency.p50


def measured(net: Network, groups: Sequence[Group], measure: Measure, device: Device) -> Table:
    """Measure the networks of the design and return the table of the groups.

    Raises:
        BadHost: the device cannot be measured.

    """
    kinds, chosen = design(net, groups)
    found, dense = [1.0], None
    for start in range(1, len(chosen), TOGETHER):
        cut = [net.edit(_edits(groups, counts)) for counts in chosen[start : start + TOGETHER]]
        timed = measure([net, *cut], device)
        found += shares(timed)
        dense = dense or timed[0]
    assert dense is not None
    return fit(kinds, chosen, found, dense)


def design(net: Network, groups: Sequence[Group]) -> tuple[tuple[Kind, ...], list[Counts]]:
    """Return the kinds of groups and the counts of the networks to measure.

    The uncut network comes first, then the one with the least of all units; those at random are the last.
    """
    kinds = _kinds(net, groups)
    dense = {g.name: g.count for g in groups}
    chosen: list[Counts] = [dense, {g.name: _least(g) for g in groups}]
    for kind in kinds:
        chosen += [dense | {n: min(knot, dense[n]) for n in kind.groups} for knot in kind.knots[:-1]]
    draw = np.random.default_rng(0)
    mixed: list[Counts] = [{g.name: int(draw.choice(sizes(g))) for g in groups} for _ in range(MIXED)]
    distinct = [c for i, c in enumerate(chosen) if c not in chosen[:i]]
    return kinds, [*distinct, *mixed]


def shares(timed: Sequence[Measurement]) -> list[float]:
    """Return the times of networks that were timed together, the uncut one first, as shares of its own.

    What disturbs a process only ever makes it slower: the least of its rounds is nearest to the truth.
    """
    least = [min(_rounds(one)) for one in timed]
    return [ms / least[0] for ms in least[1:]]


def fit(kinds: tuple[Kind, ...], chosen: Sequence[Counts], found: Sequence[float], dense: Measurement) -> Table:
    """Return the table that fits the shares found for the chosen networks best, each in relation to its own."""
    seen = np.asarray(found, np.float64)
    rows = np.stack([np.concatenate([np.ones(1), *(k.parts(c) for k in kinds)]) for c in chosen])
    errors = []
    for i in range(len(chosen) - MIXED, len(chosen)):
        steps = _solved(np.delete(rows, i, axis=0), np.delete(seen, i))
        errors.append(abs(float(rows[i] @ steps) / seen[i] - 1))
    return Table(kinds, _solved(rows, seen), dense, float(np.mean(errors)), float(seen[1]))


def _rounds(one: Measurement) -> list[float]:
    return one.latency.rounds_cpu_time_p50_ms if one.by_cpu_time else one.latency.rounds_p50_ms


def _edits(groups: Sequence[Group], counts: Counts) -> list[Edit]:
    """Return the edits that leave as many units: which they are does not change the time."""
    return [g.keep(range(counts[g.name])) for g in groups if counts[g.name] < g.count]


def _solved(rows: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-negative terms with the least squared relative error."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression(fit_intercept=False, positive=True)
    return np.asarray(model.fit(rows / shares[:, None], np.ones(len(shares))).coef_, np.float64)


def _kinds(net: Network, groups: Sequence[Group]) -> tuple[Kind, ...]:
    """Put groups together whose slices lie in tensors of the same sizes, but for the cut axis."""
    alike: dict[object, list[Group]] = {}
    state = net.state()
    for group in groups:
        shapes = tuple(
            (axis, *state[path].shape[:axis], *state[path].shape[axis + 1 :]) for path, axis in group.tensors
        )
        alike.setdefault((group.kind, group.width, shapes), []).append(group)
    inside = min(len(INSIDE), max(1, NETWORKS // len(alike) - 1)) if alike else 0
    return tuple(Kind(tuple(g.name for g in one), _knots(one, inside)) for one in alike.values())


def _knots(groups: Sequence[Group], inside: int) -> tuple[int, ...]:
    largest = max(groups, key=lambda g: g.count)
    least, step = _least(largest), _step(largest)
    places = INSIDE if inside == len(INSIDE) else INSIDE[-inside:]
    found = {least + max(step, step * round(place * (largest.count - least) / step)) for place in places}
    return tuple(sorted({least, *(k for k in found if k < largest.count), largest.count}))


def _step(group: Group) -> int:
    """Return how many units go at once: kernels work on vectors, and a head is one or more."""
    if group.kind == "heads":
        return 1
    return min(WIDEST_STEP, 1 << max(0, (group.count // STEPS).bit_length() - 1))


def _least(group: Group) -> int:
    """Return the fewest units: none where a constant takes their place, but a step of channels, not a thin map."""
    return min(group.count, max(group.least, _step(group))) if group.kind == "channels" else group.least
