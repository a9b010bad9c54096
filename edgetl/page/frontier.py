"""Which trade-offs of accuracy and cost are worth taking. [no torch]"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgetl.intervals import Interval

Standing: TypeAlias = Literal["best", "unclear", "worse"]


@dataclass(frozen=True)
class Point:
    """One file: less cost is better, more accuracy is better."""

    cost: Interval
    accuracy: Interval


def standings(points: Sequence[Point]) -> list[Standing]:
    """Return for every point whether no other is better in both, one may be, or one is beyond both intervals."""
    return [_standing(point, points) for point in points]


def _standing(point: Point, points: Sequence[Point]) -> Standing:
    if not any(_dominates(other, point) for other in points):
        return "best"
    return "worse" if any(_surely_dominates(other, point) for other in points) else "unclear"


def _dominates(a: Point, b: Point) -> bool:
    at_least = a.cost.value <= b.cost.value and a.accuracy.value >= b.accuracy.value
    return at_least and (a.cost.value, a.accuracy.value) != (b.cost.value, b.accuracy.value)


def _surely_dominates(a: Point, b: Point) -> bool:
    return a.cost.high < b.cost.low and a.accuracy.low > b.accuracy.high
