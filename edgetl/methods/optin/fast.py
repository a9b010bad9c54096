"""Rough scores of all units from a few backward passes, and which units deserve an exact one.

Near an open mask both distortions are squares: of the change of the Gram matrices, and, to second order, of the change
of the answer's log-probabilities. With random signs u and v, E[(u' dG v)^2] is the squared norm of dG; with a sign s
for each label, E[(sum s sqrt(p) d log p)^2] / 2 is a sample's divergence (the diagonal of the Fisher information).
So one backward pass to the masks estimates every unit at once.
Each sample has a mask of its own, so that the squares are taken sample by sample and then added: what one sample's
signs say about another's change is nothing but noise on average, and would need hundreds of passes to vanish.
A unit is taken to leave wholly, which is a long way for a first order: the estimates rank, and what lies near the cut
is scored exactly.
Letters: R draws, N blocks, B samples, K sampled positions, D width.
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

from edgetl.methods.optin.score import Distortion
from edgetl.methods.optin.search import rank, split
from edgetl.methods.optin.tail import unit_axis
from edgetl.methods.optin.trajectory import Batch, Trajectory, walk
from edgetl.network.family import Group

DRAWS = 6
"""Backward passes to the masks for the trajectory; the squares of all samples are averaged besides."""

ANSWERS = 2
"""Those for the output, at most as many: its estimates vary less."""


HEADS = 0.5
"""Least share of the heads to score exactly: they are few, and each weighs as much as a hundred neurons."""


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
        gates: by group, the layer whose input carries its units.
        seed: of the draws.

    """
    draw = torch.Generator().manual_seed(seed)
    probes = [_probe(trajectory.points, draw) for _ in range(DRAWS)]
    sums = {g.name: np.zeros((2, g.count)) for g in groups}
    at = [0] * len(trajectory.blocks)
    for batch in trajectory.batches:
        with torch.enable_grad():
            _add(
                replace(trajectory, batches=(batch,)), groups, gates, [_part(p, at, batch) for p in probes], draw, sums
            )
        at = [start + len(rows) for start, rows in zip(at, batch.rows, strict=True)]
    return {name: Distortion(manifold / DRAWS, output / ANSWERS / 2) for name, (manifold, output) in sums.items()}


def near(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    prices: Mapping[str, int],
    budget: int,
    share: float,
) -> dict[str, list[int]]:
    """Return which units to score exactly, ascending: half of the heads, and this share of the others, around the cut.

    Args:
        groups: heads, and neurons or channels.
        scores: estimated, by group.
        prices: MACs of one unit, by group.
        budget: MACs for all units together.
        share: in (0, 1]; above a half, of the heads too.

    """
    heads, neurons = (rank([g for g in groups if (g.kind == "heads") == one], scores, prices) for one in (True, False))
    cuts = split(heads, neurons, budget)
    chosen: set[tuple[str, int]] = set()
    for ranking, kept, part in zip((heads, neurons), cuts, (max(share, HEADS), share), strict=True):
        count = math.ceil(part * len(ranking.units))
        start = min(max(0, kept - count // 2), len(ranking.units) - count)
        chosen.update(ranking.units[start : start + count])
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
    signs = [_signs((2, len(p)), draw).to(p) for p in points]
    sums = [one @ p for one, p in zip(signs, points, strict=True)]
    left, right, left_sum, right_sum = ([one[i] for one in many] for many in (signs, sums) for i in (0, 1))
    return Probe(tuple(left), tuple(right), tuple(left_sum), tuple(right_sum))


def _signs(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=draw).mul(2).sub(1)


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
    """Add the squares of one batch's gradients with respect to the masks, by term and unit."""
    batch = one.batches[0]
    count, device = len(batch.entry), batch.entry.device
    masks = {g.name: torch.ones(count, g.count, requires_grad=True, device=device) for g in groups}
    with masked(groups, gates, masks):
        points, (log_q,) = walk(one, 0, [batch.entry])
    roots = (batch.log_p / 2).exp()
    for r, probe in enumerate(probes):
        moves = [
            (p.T @ probe.left[z]) @ probe.right_sum[z] + (p.T @ probe.right[z]) @ probe.left_sum[z]
            for z, p in enumerate(points)
        ]
        terms = [_after(moves, masks, groups)]
        if r < ANSWERS:
            terms.append(_gradients((_signs(roots.shape, draw).to(roots) * roots * log_q).sum(), masks))
        for term, gradients in enumerate(terms):
            for name, gradient in gradients.items():
                sums[name][term] += gradient.square().sum(0, dtype=torch.float64).cpu().numpy()


def _after(moves: Sequence[Tensor], masks: Mapping[str, Tensor], groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return the gradients of the moves of the blocks after a unit's own, which are those compared."""
    found = _gradients(torch.stack(list(moves)).sum(), masks)
    for stage in sorted({g.stage for g in groups if g.stage < len(moves) - 1}):
        own = {g.name: masks[g.name] for g in groups if g.stage == stage}
        for name, gradient in _gradients(moves[stage], own).items():
            found[name] = found[name] - gradient
    return found


def _gradients(value: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the (B, count) gradients of a number with respect to the masks."""
    return dict(zip(masks, torch.autograd.grad(value, [*masks.values()], retain_graph=True), strict=True))


@contextmanager
def masked(groups: Sequence[Group], gates: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply each unit's slice of its gate's input by its mask, sample by sample, while open."""
    with ExitStack() as stack:
        for group in groups:
            channels = unit_axis(gates[group.name]) == 1
            whole = masks[group.name].repeat_interleave(group.width, dim=1)

            def times(
                _: nn.Module, args: tuple[Tensor, ...], mask: Tensor = whole, channels: bool = channels
            ) -> tuple[Tensor, ...]:
                own = mask[:, :, None, None] if channels else mask.view(len(mask), *[1] * (args[0].ndim - 2), -1)
                return (args[0] * own, *args[1:])

            stack.callback(gates[group.name].register_forward_pre_hook(times).remove)
        yield
