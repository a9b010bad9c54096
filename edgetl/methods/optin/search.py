"""Which units stay within a budget.

Heads and neurons have two prices, and the exact one-dimensional split between them is enough. Channels cost something
else in every layer: there the best units of every group are an item of a knapsack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.methods.optin.knapsack import PARTS, knapsack

if TYPE_CHECKING:
    from edgetl.methods.optin.bill import Bill
    from edgetl.network.family import Group


@dataclass(frozen=True)
class Ranking:
    """Units of one kind, the most important first, with running totals over them."""

    units: tuple[tuple[str, int], ...]  # n pairs of (group, unit)
    value: NDArray[np.float64]  # (n + 1,) scores of the first 0, 1, ..., n units together
    price: NDArray[np.int64]  # (n + 1,) MACs of the first 0, 1, ..., n units together


def rank(groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], prices: Mapping[str, int]) -> Ranking:
    """Return the units of the groups by descending score; ties by stage, then by index."""
    ordered = sorted(groups, key=lambda g: g.stage)
    units = [(g.name, u) for g in ordered for u in range(g.count)]
    score = np.array([scores[name][u] for name, u in units], dtype=np.float64)
    price = np.array([prices[name] for name, _ in units], dtype=np.int64)
    order = np.argsort(-score, kind="stable")
    value = np.concatenate([np.zeros(1), np.cumsum(score[order])])
    spent = np.concatenate([np.zeros(1, np.int64), np.cumsum(price[order])])
    return Ranking(tuple(units[i] for i in order), value, spent)


def split(heads: Ranking, neurons: Ranking, budget: int) -> tuple[int, int]:
    """Return how many of the best heads and neurons to keep for the largest sum of scores within the budget.

    Exact where all units of a kind cost the same: the best n of a kind are then its first n, so trying every number
    of heads, none included, tries every split worth trying. Where prices differ between layers it is the best pair
    of prefixes, which keeps the budget but is not the optimum over all subsets. Equal sums keep more heads.

    Args:
        heads: all heads, best first.
        neurons: all neurons, best first.
        budget: MACs for heads and neurons together, not negative.

    """
    feasible = int(np.searchsorted(heads.price, budget, side="right"))
    n_neurons = np.searchsorted(neurons.price, budget - heads.price[:feasible], side="right") - 1
    total = heads.value[:feasible] + neurons.value[n_neurons]
    n_heads = feasible - 1 - int(np.argmax(total[::-1]))
    return n_heads, int(n_neurons[n_heads])


def search(
    groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], prices: Mapping[str, int], budget: int
) -> dict[str, tuple[int, ...]]:
    """Return the units to keep by group, ascending; a group may lose all.

    Args:
        groups: heads and neurons.
        scores: by group, (count,) not negative.
        prices: by group, MACs of one unit, positive.
        budget: MACs for all units together, not negative.

    """
    heads, neurons = (rank([g for g in groups if g.kind == kind], scores, prices) for kind in ("heads", "neurons"))
    n_heads, n_neurons = split(heads, neurons, budget)
    kept: dict[str, list[int]] = {g.name: [] for g in groups}
    for name, unit in heads.units[:n_heads] + neurons.units[:n_neurons]:
        kept[name].append(unit)
    return {name: tuple(sorted(units)) for name, units in kept.items()}


def fill(
    groups: Sequence[Group], scores: Mapping[str, NDArray[np.float64]], bill: Bill, budget: int, multiple: int = 1
) -> dict[str, tuple[int, ...]]:
    """Return the units to keep by group, ascending, whose scores add up to most within the budget.

    Exact for heads and neurons, and for other units where every unit has one price and the budget is no more than
    10,000 times what all prices have in common. Otherwise the budget is kept, and used as far as prices rounded up
    allow. A layer between two groups makes prices that depend on each other: they are then taken from above, and the
    largest budget under which the true cost still fits is looked for.

    Args:
        groups: whose units are chosen.
        scores: by group, (count,) not negative.
        bill: what the units cost.
        budget: for all units together, not less than the fewest that must stay cost.
        multiple: neurons and channels are kept in multiples of this, or all of a group's; heads one by one.

    """
    if multiple == 1 and not any(g.kind == "channels" for g in groups):
        return search(groups, scores, bill.prices, budget)
    order = {g.name: np.argsort(-scores[g.name], kind="stable") for g in groups}
    options = {g.name: counts(g, multiple) for g in groups}
    sums = {g.name: np.concatenate([np.zeros(1), np.cumsum(scores[g.name][order[g.name]])]) for g in groups}
    values = [sums[name][found] for name, found in options.items()]
    costs = [(found * bill.parts(name)).astype(np.float64) for name, found in options.items()]
    common = math.gcd(*(int(c) for cost in costs for c in cost))

    def within(limit: int) -> dict[str, int]:
        parts = limit // common if common else 0
        whole = 1 <= parts <= PARTS
        picked = knapsack(values, costs, parts * common if whole else limit, parts if whole else PARTS)
        return {name: int(found[i]) for (name, found), i in zip(options.items(), picked, strict=True)}

    least, most = budget * bill.scale, sum(int(cost[-1]) for cost in costs)
    found = within(least)
    exact = bill.linear and least // max(common, 1) <= PARTS
    while not exact and most - least > max(common, most // 1000):
        middle = (least + most) // 2
        tried = within(middle)
        if bill.of(tried) <= budget:
            least, found = middle, tried
        else:
            most = middle
    return {g.name: tuple(sorted(int(u) for u in order[g.name][: found[g.name]])) for g in groups}


def counts(group: Group, multiple: int) -> NDArray[np.int64]:
    """Return how many units of a group may be kept, ascending, from the fewest that must stay to all."""
    step = 1 if group.kind == "heads" else multiple
    possible = {group.least, *range(0, group.count, step), group.count}
    return np.array(sorted(n for n in possible if n >= group.least), dtype=np.int64)
