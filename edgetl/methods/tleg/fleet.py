"""Which depth a device gets: the deepest that keeps its limits there.

The time of equal blocks is a straight line in their number, so the shallowest and the deepest network are measured,
the line between them says which depths are worth measuring, and a measurement decides. All this happens before
anything is trained: weights do not change the time, an impossible budget is told at once, and only what ships is
fine-tuned. Of the depths that keep the limits the deepest counts as the most accurate, as no accuracy is known yet.
A device that is not attached gets what it takes at best, predicted from the rates in its file. That decides nothing
but the depth: without a measurement no device passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from pydantic import Field, field_validator

from edgetl import gates
from edgetl.attached import absence
from edgetl.device import Device, load_device
from edgetl.errors import BadHost, BadInput
from edgetl.gates import Timing, Verdict
from edgetl.intervals import Interval
from edgetl.measure import measurement
from edgetl.measure.measurement import Measurement
from edgetl.methods.tleg.learngene import DEPTH
from edgetl.network.network import Network, create
from edgetl.recipe.schema import Context, ForDevice
from edgetl.roofline import Prediction
from edgetl.types import Json

MARGIN = 0.05
"""The share of a limit in time that stays free: the report measures again, and two measurements differ."""

TIMES = ("p50_ms", "p90_ms")

UNEQUAL = 1e-3
"""The deviation by which biases and gains of an untrained network differ from block to block."""

log = logging.getLogger("edgetl")


class DepthFor(ForDevice):
    """The deepest student that keeps the limits of a device; limits left out are those of its `budgets:`."""

    among: tuple[int, ...] | None = Field(None, min_length=1)  # depths to choose from; default: 1 to the backbone's

    @field_validator("among")
    @classmethod
    def _ascending(cls, depths: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if depths is not None and (min(depths) < 1 or len(set(depths)) < len(depths)):
            raise ValueError("list each depth once, 1 or more")
        return None if depths is None else tuple(sorted(depths))


@dataclass(frozen=True)
class Seen:
    """What a network of one depth takes, judged on each limit."""

    depth: int
    verdicts: tuple[Verdict, ...]

    @property
    def keeps(self) -> bool:
        """Whether it keeps every limit."""
        return all(v.passes for v in self.verdicts)

    @property
    def values(self) -> dict[str, float]:
        """What it takes of everything that is limited and known."""
        return {v.gate: v.value for v in self.verdicts if v.value is not None}


Look: TypeAlias = Callable[[Sequence[int]], Sequence[Seen]]
"""Returns what networks of these depths take, seen together."""


@dataclass(frozen=True)
class Choice:
    """The depth that a device gets, and what it was chosen by."""

    device: str | None  # a device at an address is not named: bundles name no host
    depth: int
    how: Literal["measured", "predicted"]
    limits: Mapping[str, float]
    seen: tuple[Seen, ...]  # ascending by depth

    def to_json(self) -> dict[str, Json]:
        """Return what a network's `facts` keep under `chosen`, for its bundle and the report."""
        tried = [{"depth": one.depth, "keeps": one.keeps, **one.values} for one in self.seen]
        return {"device": self.device, "depth": self.depth, "how": self.how, "limits": {**self.limits}, "tried": tried}


def choose(step: str, asked: DepthFor, at: Callable[[int], Network], deepest: int, ctx: Context) -> Choice:
    """Return the depth that a device gets; `at` makes a network of a depth, trained or not.

    Raises:
        BadInput: the device is limited in nothing, not even the shallowest network keeps the limits, or the device is
            away and its file does not say how quick it is.
        BadHost: the device is attached and cannot be measured.
        GateMissed: an exported file does not equal its network.

    """
    if not asked.limits:
        fix = f"give budgets.{asked.device} in the recipe, such as {{p90_ms: 12}}"
        raise BadInput(f"{step}: nothing is limited on {asked.device}", fix=fix)
    device = load_device(asked.device)
    away = absence(device)
    look = _predicting(asked, at, device, ctx) if away else _measuring(asked, at, device, ctx)
    depths = asked.among or tuple(range(1, deepest + 1))
    depth, seen = deepest_kept(depths, look)
    how: Literal["measured", "predicted"] = "predicted" if away else "measured"
    if depth is None:
        raise _impossible(step, asked, seen[0], how)
    choice = Choice(None if "://" in asked.device else device.name, depth, how, asked.limits, tuple(seen))
    chosen = next(one for one in seen if one.depth == depth)
    log.info("%s: depth %d for %s: %s", step, depth, asked.device, _told(chosen, how))
    if away:
        log.warning("%s: %s is not attached (%s): depth %d is only predicted, and a predicted device never passes",
                    step, asked.device, away, depth)  # fmt: skip
    return choice


def untrained(net: Network, depth: int) -> Network:
    """Return a network of another depth that is like this one but for its weights, which do not change its cost.

    They are all different, as after training: a file stores equal tensors once.

    Raises:
        BadInput: no network of this family has that depth.

    """
    drawn = create(net.family.name, {**net.config, DEPTH: depth}, net.labels, seed=0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in drawn.module.parameters():
            tensor.add_(UNEQUAL * torch.randn(tensor.shape, generator=noise))
    return replace(drawn)  # with no digest of the weights it had before


def deepest_kept(depths: Sequence[int], look: Look) -> tuple[int | None, list[Seen]]:
    """Return the largest of ascending depths that keeps every limit, None where none does, and all that was seen.

    Besides both ends, only depths near the last that the line between them lets keep the limits are looked at.
    """
    first, *more = look(list(dict.fromkeys((depths[0], depths[-1]))))
    last = more[0] if more else first
    seen = {first.depth: first, last.depth: last}
    if first.keeps and not last.keeps:
        for depth in reversed(_shortlist(depths[1:-1], first, last)):
            seen[depth] = look([first.depth, depth])[-1]
            if seen[depth].keeps:
                break
    kept = [one.depth for one in seen.values() if one.keeps]
    return (max(kept) if first.keeps else None), [seen[depth] for depth in sorted(seen)]


def _shortlist(depths: Sequence[int], first: Seen, last: Seen) -> Sequence[int]:
    """Return the depths that a line lets keep the limits, and the next, as the line may be off by one."""
    keeping = [depth for depth in depths if _predicted(depth, first, last)]
    return depths[: len(keeping) + 1]


def _predicted(depth: int, first: Seen, last: Seen) -> bool:
    way = (depth - first.depth) / (last.depth - first.depth)
    limits = {v.gate: v.limit for v in first.verdicts}
    for gate, low in first.values.items():
        rise = max(0.0, last.values.get(gate, low) - low)
        limit = limits[gate]
        if limit is not None and low + way * rise > limit:
            return False
    return True


def _measuring(asked: DepthFor, at: Callable[[int], Network], device: Device, ctx: Context) -> Look:
    def look(depths: Sequence[int]) -> list[Seen]:
        found = ctx.measure([at(depth) for depth in depths], device)
        return [Seen(d, _judged(asked, _measured(m, device))) for d, m in zip(depths, found, strict=True)]

    return look


def _predicting(asked: DepthFor, at: Callable[[int], Network], device: Device, ctx: Context) -> Look:
    def look(depths: Sequence[int]) -> list[Seen]:
        found = ctx.predict([at(depth) for depth in depths], device)
        _check_rates(asked, found)
        return [Seen(d, _judged(asked, _at_best(p, device))) for d, p in zip(depths, found, strict=True)]

    return look


def _check_rates(asked: DepthFor, found: Sequence[Prediction]) -> None:
    timed = [name for name in TIMES if name in asked.limits]
    if timed and any(one.ms is None for one in found):
        raise BadInput(
            f"{asked.device} is not attached, and its file has no rates to predict {timed[0]} from",
            fix="attach it, or run `edgetl devices calibrate` there and name the file it writes as the device",
        )


def _measured(m: Measurement, device: Device) -> gates.Facts:
    return gates.Facts(size_bytes=m.size.model_bytes, timings={device.name: measurement.timing(m)})


def _at_best(p: Prediction, device: Device) -> gates.Facts:
    ms = p.ms or 0.0  # where no time is limited none need be known
    timing = Timing("clean", Interval(ms, ms, ms), ms, round(p.memory_bytes), None)
    return gates.Facts(size_bytes=p.size_bytes, timings={device.name: timing})


def _judged(asked: DepthFor, facts: gates.Facts) -> tuple[Verdict, ...]:
    tight = {name: limit * (1 - MARGIN) if name in TIMES else limit for name, limit in asked.limits.items()}
    (device,) = facts.timings
    verdicts = tuple(gates.judge_budget(tight, facts, device))
    if unknown := next((v for v in verdicts if v.kept is None), None):
        raise BadHost(f"{unknown.gate} on {device} is not known: {unknown.note}", fix="measure again while it is idle")
    return verdicts


def _impossible(step: str, asked: DepthFor, smallest: Seen, how: str) -> BadInput:
    missed = [v for v in smallest.verdicts if not v.passes]
    needed = {v.gate: (v.value or 0.0) / (1 - MARGIN if v.gate in TIMES else 1) for v in missed}
    words = ", ".join(f"{gate} {value:.3g} (limit {asked.limits[gate]:g})" for gate, value in needed.items())
    problem = f"{step}: no depth keeps the budget of {asked.device}; the smallest, {smallest.depth}, is {how} to need "
    enough = ", ".join(f"{gate} to {1.01 * value:.3g}" for gate, value in needed.items())
    return BadInput(problem + words, fix=f"set {enough} or more, or start from a narrower backbone")


def _told(seen: Seen, how: str) -> str:
    return f"{how} " + ", ".join(f"{gate} {value:.3g}" for gate, value in seen.values.items())
