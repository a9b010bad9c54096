"""Which units stay within a budget: the exact one-dimensional split between heads and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
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
