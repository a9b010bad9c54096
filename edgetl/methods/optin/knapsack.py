"""Which option of every item is worth most within a budget (multiple-choice knapsack, by dynamic programming)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PARTS = 10_000
"""Parts of the budget that costs are counted in, where they are no whole multiples of something larger."""


def knapsack(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.float64]], budget: float, parts: int = PARTS
) -> list[int]:
    """Return which option of every item has the largest sum of values within a budget; of equal sums the first.

    Costs are rounded up to whole parts of the budget, so that it is kept; where they are whole parts, it is exact.
    The first option of every item must fit beside the first of all others.

    Args:
        values: of each item's options.
        costs: of each item's options, not negative.
        budget: not negative.
        parts: into which the budget is divided.

    """
    unit = max(budget, 0.0) / parts or 1.0
    best, chosen = np.zeros(parts + 1), []
    for value, cost in zip(values, costs, strict=True):
        whole = np.ceil(cost / unit - 1e-9).astype(np.int64)
        whole = np.where(cost > max(budget, 0.0) * (1 + 1e-9), parts + 1, np.minimum(whole, parts + 1))
        found, option = np.full(parts + 1, -np.inf), np.zeros(parts + 1, np.int64)
        for number, (gain, spent) in enumerate(zip(value, whole, strict=True)):
            candidate = best[: parts + 1 - spent] + gain
            better = candidate > found[spent:]
            found[spent:][better] = candidate[better]
            option[spent:][better] = number
        best = found
        chosen.append((option, whole))
    left, picked = parts, []
    for option, whole in reversed(chosen):
        picked.append(int(option[left]))
        left -= int(whole[picked[-1]])
    return picked[::-1]
