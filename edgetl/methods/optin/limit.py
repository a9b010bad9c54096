"""Which units keep a limit in milliseconds: chosen by a table, then exported, measured and chosen again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.device import Device
from edgetl.errors import BadInput, GateMissed
from edgetl.intervals import Interval
from edgetl.measure.measurement import Measurement
from edgetl.methods.optin.knapsack import knapsack
from edgetl.methods.optin.latency import Counts, Table, measured, sizes, took
from edgetl.network.edits import Edit
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.schema import Context, MaxLatency

CUTS = 4
"""How many cuts are measured at most before the best is taken, or none."""

SLACK = 0.05
"""A cut that lies further below the limit has lost units that the limit pays for."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Goal:
    """A limit on one device, in relation to the uncut network that was measured there."""

    step: str  # the step's name, for messages
    device: Device
    limit: MaxLatency
    table: Table

    @property
    def share(self) -> float:
        """The limit as a share of the uncut network's time."""
        if self.limit.share is not None:
            return self.limit.share
        assert self.limit.p50_ms is not None
        return self.limit.p50_ms / took(self.table.dense).value

    def ms(self, share: float) -> float:
        """Return a share in milliseconds."""
        return share * took(self.table.dense).value

    @property
    def kept_uncut(self) -> bool:
        """Whether nothing has to be cut."""
        if self.limit.p50_ms is None:
            return self.share >= 1
        return took(self.table.dense).high <= self.limit.p50_ms

    def measured(self, cut: Measurement) -> Interval:
        """Return the time of a cut network as a share.

        A share is compared within each round, beside the uncut network; milliseconds are as they are.
        """
        if self.limit.p50_ms is None:  # a cut of nothing is the uncut network, which is not compared with itself
            return cut.comparison.interval if cut.comparison else Interval(1.0, 1.0, 1.0)
        unit, time = took(self.table.dense).value, took(cut)
        return Interval(time.value / unit, time.low / unit, time.high / unit)


@dataclass(frozen=True)
class Ways:
    """How many units a group may keep: the options that one is chosen from."""

    order: NDArray[np.int64]  # units, the most important first
    counts: tuple[int, ...]  # that may stay, ascending, the most important
    values: NDArray[np.float64]  # what each option is worth
    times: NDArray[np.float64]  # what it takes beyond the first, as a share of the uncut network's time

    def kept(self, option: int) -> tuple[int, ...]:
        """Return the units of an option."""
        return tuple(sorted(int(u) for u in self.order[: self.counts[option]]))

    def lost(self, count: int) -> tuple[int, ...]:
        """Return the units that are gone where so many are kept."""
        return tuple(int(u) for u in self.order[count:])


def goal(step: str, limit: MaxLatency, device: Device, net: Network, ctx: Context) -> Goal:
    """Measure the tables of a network's groups on a device, and check that the limit can be reached there.

    Raises:
        BadInput: not even the least of all units is quick enough.
        BadHost: the device cannot be measured.

    """
    groups = [g for g in net.family.units(net.module) if len(sizes(g)) > 1]
    table = measured(net, groups, ctx.measure, device)
    made = Goal(step, device, limit, table)
    log.info("%s: uncut %.4g ms on %s; tables off by %.1f %% where left out",
             step, made.ms(1), device.name, 100 * table.error)  # fmt: skip
    if made.share < table.smallest:
        asked = f"share {limit.share:g}" if limit.p50_ms is None else f"p50_ms {limit.p50_ms:g}"
        least = table.smallest if limit.p50_ms is None else made.ms(table.smallest)
        problem = f"{step}: {asked} on {device.name} is below the smallest latency that a cut reaches, {least:.4g}"
        field = "share" if limit.p50_ms is None else "p50_ms"
        raise BadInput(problem, fix=f"set {field} to {_up(least):g} or more, or start from a smaller backbone")
    return made


def ways(
    groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], table: Table, multiple: int = 1
) -> dict[str, Ways]:
    """Return how each group may be cut, by its name, worth the sum of the scores of the units that stay.

    Neurons and channels are kept in multiples of `multiple`, or none or all of a group's.
    """
    found = {}
    for group in groups:
        counts = _options(group, table, multiple)
        order = np.argsort(-scores[group.name], kind="stable")
        totals = np.concatenate([np.zeros(1), np.cumsum(scores[group.name][order])])
        found[group.name] = Ways(order, counts, totals[list(counts)], table.at(group.name, counts))
    return found


def choose(ways: Mapping[str, Ways], table: Table, share: float) -> dict[str, tuple[int, ...]]:
    """Return the units to keep by group that are worth most, all together, within a share of the time as predicted."""
    every = list(ways.values())
    picked = knapsack([w.values for w in every], [w.times for w in every], share - table.fixed)
    return {name: w.kept(option) for (name, w), option in zip(ways.items(), picked, strict=True)}


def _options(group: Group, table: Table, multiple: int) -> tuple[int, ...]:
    every = sizes(group, table.times[group.name][0][-1])
    whole = 1 if group.kind == "heads" else multiple
    return tuple(n for n in every if n % whole == 0 or n in (every[0], group.count))


def settle(
    made: Goal, net: Network, ctx: Context, start: Network, pick: Callable[[float], Mapping[str, tuple[int, ...]]]
) -> Network:
    """Return a cut of `start` that keeps the limit as measured beside the uncut `net`, the largest that was found.

    `pick` returns the units to keep for a predicted share. What a measurement says in excess of the prediction
    corrects the next one.

    Raises:
        GateMissed: no cut keeps the limit; it says how far the closest is off.

    """
    groups = [g for g in start.family.units(start.module) if g.name in made.table.times]
    allowed = max(made.share / (1 + made.table.error), made.table.smallest)
    tried: list[Mapping[str, tuple[int, ...]]] = []
    best: tuple[float, Network] | None = None
    closest = math.inf
    while len(tried) < CUTS and (kept := dict(pick(allowed))) not in tried:
        tried.append(kept)
        cut = start.edit(trimmed(groups, kept))
        predicted = made.table.predict(_counts(kept))
        seen = made.measured(ctx.measure([net, cut], made.device)[1])
        log.info("%s: cut %d: predicted %.4g ms, measured %.4g (to %.4g), limit %.4g", made.step, len(tried),
                 made.ms(predicted), made.ms(seen.value), made.ms(seen.high), made.ms(made.share))  # fmt: skip
        closest = min(closest, seen.high)
        if seen.high <= made.share and (best is None or predicted > best[0]):
            best = (predicted, cut)
        if (1 - SLACK) * made.share <= seen.high <= made.share:
            break
        allowed = predicted * made.share / seen.high
    if best is None:
        raise _missed(made, closest, len(tried))
    return best[1]


def trimmed(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> list[Edit]:
    """Return the edits that leave these units."""
    return [g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count]


def _missed(made: Goal, closest: float, cuts: int) -> GateMissed:
    off = 100 * (closest / made.share - 1)
    problem = (
        f"{made.step}: the closest of {cuts} cuts takes up to {made.ms(closest):.4g} ms on {made.device.name}, "
        f"{off:.1f} % above the limit of {made.ms(made.share):.4g}"
    )
    return GateMissed(problem, fix="allow more, or stop other programs there so that intervals are narrower")


def _counts(kept: Mapping[str, Sequence[int]]) -> Counts:
    return {name: len(units) for name, units in kept.items()}


def _up(value: float) -> float:
    """Return a value rounded up to three digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / digit) * digit
