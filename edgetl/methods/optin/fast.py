"""Rough scores of all units from a few backward passes, and which units deserve an exact one.

Near an open mask both distortions are squares: of the change of the Gram matrices, and, to second order, of the change
of the answer's log-probabilities. With random signs u and v, E[(u' dG v)^2] is the squared norm of dG; with answers y
drawn as the network gives them and one random sign a sample, E[(d sum(sign log p(y)))^2] / 2 is the divergence
(the diagonal of the Fisher information). So one backward pass to the masks estimates every unit at once, and the mean
of several draws is better. A unit is taken to leave wholly, which is a long way for a first order: the estimates rank,
and what lies near the cut is scored exactly.
Letters: R draws, N blocks, K sampled positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.methods.optin.score import Batch, Distortion, Trajectory, unit_axis, walk
from edgetl.methods.optin.search import rank, split
from edgetl.network.family import Group

DRAWS = 32
"""Backward passes to the masks; the error of an estimate falls with their square root."""


@dataclass(frozen=True)
class Probe:
    """One random question to all blocks: how far does u' G v move?"""

    left: tuple[Tensor, ...]  # N of (K,) signs
    right: tuple[Tensor, ...]  # N of (K,) signs
    left_sum: tuple[Tensor, ...]  # N of (D,): signs times the dense points
    right_sum: tuple[Tensor, ...]  # N of (D,)


def estimate(
    trajectory: Trajectory, groups: Sequence[Group], gates: Mapping[str, nn.Module], seed: int
) -> dict[str, Distortion]:
    """Return estimated distortions of all units by group.

    Args:
        trajectory: of the dense network.
        groups: whose units are estimated.
        gates: by group, the layer whose input (last axis) carries its units.
        seed: of the draws.

    """
    draw = torch.Generator().manual_seed(seed)
    probes = [_probe(trajectory.points, draw) for _ in range(DRAWS)]
    sums = {g.name: np.zeros((2, DRAWS, g.count)) for g in groups}
    at = [0] * len(trajectory.blocks)
    for batch in trajectory.batches:
        with torch.enable_grad():
            _add(
                replace(trajectory, batches=(batch,)), groups, gates, [_part(p, at, batch) for p in probes], draw, sums
            )
        at = [start + len(rows) for start, rows in zip(at, batch.rows, strict=True)]
    means = {name: np.square(s).mean(axis=1) for name, s in sums.items()}
    return {name: Distortion(manifold, output / 2) for name, (manifold, output) in means.items()}


def near(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    prices: Mapping[str, int],
    budget: int,
    share: float,
) -> dict[str, list[int]]:
    """Return which units to score exactly, ascending: every head, and this share of the neurons around the cut.

    Args:
        groups: heads and neurons.
        scores: estimated, by group.
        prices: MACs of one unit, by group.
        budget: MACs for all units together.
        share: in (0, 1].

    """
    heads, neurons = (rank([g for g in groups if g.kind == kind], scores, prices) for kind in ("heads", "neurons"))
    _, kept = split(heads, neurons, budget)
    count = math.ceil(share * len(neurons.units))
    start = min(max(0, kept - count // 2), len(neurons.units) - count)
    chosen = (*heads.units, *neurons.units[start : start + count])
    return {g.name: sorted(unit for name, unit in chosen if name == g.name) for g in groups}


def merged(
    groups: Sequence[Group],
    rough: Mapping[str, Distortion],
    exact: Mapping[str, Distortion],
    chosen: Mapping[str, Sequence[int]],
) -> dict[str, Distortion]:
    """Return the exact distortions of the chosen units and, brought to their scale by kind, the others' estimates."""
    found = {}
    for group in groups:
        kin = [g.name for g in groups if g.kind == group.kind]
        terms = []
        for term in ("manifold", "output"):
            known = math.fsum(float(getattr(exact[n], term).sum()) for n in kin if chosen[n])
            guessed = math.fsum(float(getattr(rough[n], term)[list(chosen[n])].sum()) for n in kin)
            values = getattr(rough[group.name], term) * (known / guessed if guessed > 0 else 1.0)
            if chosen[group.name]:
                values[list(chosen[group.name])] = getattr(exact[group.name], term)
            terms.append(values)
        found[group.name] = Distortion(*terms)
    return found


def _probe(points: Sequence[Tensor], draw: torch.Generator) -> Probe:
    signs = [torch.randint(0, 2, (2, len(p)), generator=draw).mul(2).sub(1).to(p) for p in points]
    sums = [one @ p for one, p in zip(signs, points, strict=True)]
    left, right, left_sum, right_sum = ([one[i] for one in many] for many in (signs, sums) for i in (0, 1))
    return Probe(tuple(left), tuple(right), tuple(left_sum), tuple(right_sum))


def _part(probe: Probe, starts: Sequence[int], batch: Batch) -> Probe:
    """Return the probe with the signs of one batch's positions only."""
    own = [slice(start, start + len(rows)) for start, rows in zip(starts, batch.rows, strict=True)]
    left, right = (tuple(x[o] for x, o in zip(side, own, strict=True)) for side in (probe.left, probe.right))
    return replace(probe, left=left, right=right)


def _add(
    one: Trajectory,
    groups: Sequence[Group],
    gates: Mapping[str, nn.Module],
    probes: Sequence[Probe],
    draw: torch.Generator,
    sums: Mapping[str, NDArray[np.float64]],
) -> None:
    """Add one batch's gradients with respect to the masks, by term, draw and unit."""
    batch = one.batches[0]
    masks = {g.name: torch.ones(g.count, device=batch.entry.device, requires_grad=True) for g in groups}
    with _masked(groups, gates, masks):
        points, (log_q,) = walk(one, 0, [batch.entry])
    answers = torch.multinomial(batch.log_p.exp().cpu(), len(probes), replacement=True, generator=draw).to(log_q.device)
    signs = torch.randint(0, 2, answers.shape, generator=draw).mul(2).sub(1).to(log_q)
    for r, probe in enumerate(probes):
        moves = [
            (p.T @ probe.left[z]) @ probe.right_sum[z] + (p.T @ probe.right[z]) @ probe.left_sum[z]
            for z, p in enumerate(points)
        ]
        _take(moves, masks, groups, {name: s[0, r] for name, s in sums.items()})
        told = (signs[:, r] * log_q.gather(1, answers[:, r : r + 1]).squeeze(1)).sum()
        for name, gradient in zip(masks, torch.autograd.grad(told, [*masks.values()], retain_graph=True), strict=True):
            sums[name][1, r] += gradient.cpu().double().numpy()


def _take(
    moves: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    groups: Sequence[Group],
    into: Mapping[str, NDArray[np.float64]],
) -> None:
    """Add the gradients of all blocks' moves, less that of the unit's own block: only those after it are compared."""
    every = torch.autograd.grad(torch.stack(list(moves)).sum(), [*masks.values()], retain_graph=True)
    for name, gradient in zip(masks, every, strict=True):
        into[name][:] += gradient.cpu().double().numpy()
    for stage in sorted({g.stage for g in groups if g.stage < len(moves) - 1}):
        own = [g.name for g in groups if g.stage == stage]
        mine = torch.autograd.grad(moves[stage], [masks[name] for name in own], retain_graph=True)
        for name, gradient in zip(own, mine, strict=True):
            into[name][:] -= gradient.cpu().double().numpy()


@contextmanager
def _masked(groups: Sequence[Group], gates: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply each unit's slice of its gate's input by its mask while open."""
    with ExitStack() as stack:
        for group in groups:
            whole = masks[group.name].repeat_interleave(group.width)
            whole = whole[:, None, None] if unit_axis(gates[group.name]) == 1 else whole

            def times(_: nn.Module, args: tuple[Tensor, ...], mask: Tensor = whole) -> tuple[Tensor, ...]:
                return (args[0] * mask, *args[1:])

            stack.callback(gates[group.name].register_forward_pre_hook(times).remove)
        yield
