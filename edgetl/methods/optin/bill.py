"""What a cut costs: the MACs, or the weights, of a network by the groups whose counts they grow with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edgetl.network import cost
from edgetl.network.network import Network


@dataclass(frozen=True)
class Bill:
    """A cost that is a sum of products of counts: a layer between two groups shrinks with both."""

    work: Mapping[tuple[str, ...], int]  # of the network as it is, by the groups' names; () is for what stays
    counts: Mapping[str, int]  # units of every group

    @property
    def whole(self) -> int:
        """What the network costs."""
        return sum(self.work.values())

    @property
    def fixed(self) -> int:
        """What is left when every unit is gone."""
        return self.work[()]

    @property
    def units(self) -> int:
        """What all units cost together."""
        return self.whole - self.fixed

    @property
    def linear(self) -> bool:
        """Whether every unit costs the same whatever else is kept."""
        return all(len(groups) < 2 for groups in self.work)

    @cached_property
    def scale(self) -> int:
        """How many parts a cost is counted in, so that shared layers divide into whole ones."""
        return math.lcm(*(len(groups) for groups in self.work if groups), 1)

    def parts(self, group: str) -> int:
        """Return the price of a unit in parts, `scale` of which are one MAC or weight.

        Of a layer between groups each pays an equal share of what it costs whole. As a product of shares is not above
        their mean, a cut never costs more than the sum of its units' prices.
        """
        paid = sum(amount * self.scale // len(groups) for groups, amount in self.work.items() if group in groups)
        return paid // self.counts[group]

    @property
    def prices(self) -> dict[str, int]:
        """The price of one unit by group, rounded up to whole MACs or weights."""
        return {name: -(-self.parts(name) // self.scale) for name in self.counts}

    def of(self, kept: Mapping[str, int]) -> int:
        """Return what so many units of every group cost, without what stays."""
        return sum(
            amount * math.prod(kept[g] for g in groups) // math.prod(self.counts[g] for g in groups)
            for groups, amount in self.work.items()
            if groups
        )


def macs(net: Network, tokens: int | None) -> Bill:
    """Return the MACs of one sample; `tokens` is the length of a text."""
    return Bill(cost.work(net, tokens), _counts(net))


def weights(net: Network) -> Bill:
    """Return the weights; running statistics are none."""
    return Bill(cost.shared_parameters(net), _counts(net))


def _counts(net: Network) -> dict[str, int]:
    return {g.name: g.count for g in net.family.units(net.module)}
