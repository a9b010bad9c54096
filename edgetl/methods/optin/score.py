"""How much the answer, and the way to it, change when one unit is silent.

Only what lies behind the unit runs again, for as many units at once as one forward takes best.
Letters: B samples, T positions, D width of the residual stream, N blocks, K sampled positions, C units in hand.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.errors import BadInput, Diverged
from edgetl.methods.optin.tail import Tail, silent, tail
from edgetl.methods.optin.terms import Draw, divergence, manifold_distance, manifold_distances
from edgetl.methods.optin.trajectory import Batch, Trajectory, flat, listen, log_p, repeated, sampled, valid, walk
from edgetl.network.family import Family, Group

log = logging.getLogger("edgetl")

EVERY = 2.0
"""Seconds between two lines of progress."""

POSITIONS = 1600
"""In one forward, or compared, up to which units share it: with fewer a core waits for Python, with more for memory."""


@dataclass(frozen=True)
class Distortion:
    """What silencing each unit of a group does, per unit: (count,) each, 0 where nothing changes."""

    manifold: NDArray[np.float64]  # L_MD summed over the blocks compared (Eq. 2)
    output: NDArray[np.float64]  # L_KD: KL(dense || silenced) summed over the samples (Eq. 3)


@dataclass
class Progress:
    """Counts the blocks that run, and logs at most every two seconds how far the scores are."""

    whole: int = 0  # blocks that one forward of the whole network for each unit would run
    blocks: int = 0  # blocks run
    total: int = 0  # blocks to run, and classifiers
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def add(self, units: int, blocks: int) -> None:
        """Count some units, each of which ran this many blocks and the classifier."""
        self.blocks += units * blocks
        self.done += units * (blocks + 1)
        now = time.monotonic()
        if now - self.said >= EVERY:
            left = (now - self.started) / self.done * (self.total - self.done)
            counts = {"done": self.done, "total": self.total}
            log.info("scores: %.0f %%, about %.0f s left", 100 * self.done / self.total, left, extra=counts)
            self.said = now


@dataclass(frozen=True)
class _Dense:
    """What every unit is compared with."""

    trajectory: Trajectory
    grams: tuple[Tensor, ...]  # N of (D, D), of the points
    stacks: bool  # whether the blocks take several copies of the samples


@dataclass(frozen=True)
class _Way:
    """How the units of a group are silenced."""

    recites: bool  # only what lies behind the gate runs again; else the whole block, for one unit after another
    adds: bool  # the block's output moves as the gate's answer
    blocks: int  # that run for one unit


@torch.no_grad()
def record(
    module: nn.Module,
    family: Family,
    blocks: Mapping[str, nn.Module],
    inputs: Sequence[Mapping[str, Tensor]],
    draw: Draw,
) -> Trajectory:
    """Run the dense network once and return its trajectory.

    Args:
        module: in eval mode.
        family: describes the module.
        blocks: the family's stages by name, in order.
        inputs: batches; where they hold an `attention_mask`, padding is never drawn.
        draw: which positions the manifold term compares.

    Raises:
        Diverged: a block gives values that are not finite; the message names it.
        BadInput: the blocks of the family do not follow one another directly.

    """
    heard = [listen(module, family, blocks, one) for one in inputs]
    # Blocks of one size share one draw: with the same seed and as many positions it is the same.
    drawn = [
        draw.rows([valid(one, h.shapes[z]) for one, h in zip(inputs, heard, strict=True)]) for z in range(len(blocks))
    ]
    batches = tuple(
        Batch(one, h.entry, h.calls, picked, log_p(h.logits))
        for one, h, picked in zip(inputs, heard, zip(*drawn, strict=True), strict=True)
    )
    bare = Trajectory(module, family, blocks, batches, ())
    points, answers = walk(bare, 0, [b.entry for b in batches])
    places = (*(f"block {name}" for name in blocks), "the classifier")
    for place, values in zip(places, (*points, torch.cat(answers)), strict=True):
        if not torch.isfinite(values).all():
            raise diverged(place)
    if not all(torch.allclose(b.log_p, q, rtol=1e-4, atol=1e-4) for b, q in zip(batches, answers, strict=True)):
        raise BadInput(
            f"the blocks of family '{family.name}' do not follow one another directly, so optin cannot score them",
            fix="let the family's stages() name only blocks whose input is the output of the one before",
        )
    return Trajectory(module, family, blocks, batches, points)


@torch.no_grad()
def score(
    trajectory: Trajectory,
    groups: Sequence[Group],
    gates: Mapping[str, nn.Module],
    only: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Distortion]:
    """Return the distortions of all units by group, or of just some of them.

    Args:
        trajectory: of the dense network.
        groups: whose units are silenced one by one.
        gates: by group, the layer whose input carries its units.
        only: by group, the units to silence; all where it is left out.
        progress: counts the blocks that run.

    Raises:
        Diverged: a unit's distortion is not finite.

    """
    progress = progress or Progress()
    units = {g.name: range(g.count) if only is None else only[g.name] for g in groups}
    groups = [g for g in groups if units[g.name]]
    ways = _ways(trajectory, groups, gates)
    progress.whole += len(trajectory.blocks) * sum(map(len, units.values()))
    progress.total += sum(len(units[name]) * (way.blocks + 1) for name, way in ways.items())
    dense = _Dense(trajectory, tuple(p.T @ p for p in trajectory.points), _stacks(trajectory))
    found = {name: Distortion(np.zeros(0), np.zeros(0)) for name in units}
    hidden = [b.entry for b in trajectory.batches]
    for stage, block in enumerate(trajectory.blocks.values()):
        for group in (g for g in groups if g.stage == stage):
            rows = []
            for part in _chunks(dense, group, gates[group.name], ways[group.name], units[group.name], hidden):
                rows += part
                progress.add(len(part), ways[group.name].blocks)
            manifold, output = np.array(rows, dtype=np.float64).T
            found[group.name] = Distortion(manifold, output)
        hidden = [b.calls[stage](block, h) for b, h in zip(trajectory.batches, hidden, strict=True)]
    return found


def combined(
    found: Mapping[str, Distortion], weight: float, *, normalised: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Return the scores by group: manifold + weight * output (Algorithm 1, line 7), or of their shares of all units."""
    manifold = output = 1.0
    if normalised:
        manifold = math.fsum(float(d.manifold.sum()) for d in found.values()) or 1.0
        output = math.fsum(float(d.output.sum()) for d in found.values()) or 1.0
    return {name: d.manifold / manifold + weight * (d.output / output) for name, d in found.items()}


def distort(trajectory: Trajectory, stage: int, hidden: Sequence[Tensor]) -> tuple[float, float]:
    """Return the manifold and output distortion of the network as it is now, run from one block on.

    The outputs of the blocks after `stage` are compared, and for the last block, which has none after it, its own.

    Args:
        trajectory: of the dense network.
        stage: the first block that may differ from the dense network.
        hidden: its dense input, (B, T, D) per batch.

    """
    first = min(stage + 1, len(trajectory.blocks) - 1)
    points, log_q = walk(trajectory, stage, hidden)
    pairs = list(zip(points, trajectory.points[stage:], strict=True))
    manifold = math.fsum(manifold_distance(s, t) for s, t in pairs[first - stage :])
    return manifold, answered(trajectory, log_q)


def answered(trajectory: Trajectory, log_q: Sequence[Tensor]) -> float:
    """Return KL(dense || now) summed over the samples; `log_q` are the (B, labels) logarithms of each batch."""
    return math.fsum(divergence(b.log_p, q) for b, q in zip(trajectory.batches, log_q, strict=True))


def _ways(trajectory: Trajectory, groups: Sequence[Group], gates: Mapping[str, nn.Module]) -> dict[str, _Way]:
    """Return how the units of each group are silenced, tried on the first batch."""
    batch, found = trajectory.batches[0], {}
    hidden = batch.entry
    for stage, block in enumerate(trajectory.blocks.values()):
        after = len(trajectory.blocks) - 1 - stage
        for group in (g for g in groups if g.stage == stage):
            rest = tail(block, gates[group.name], batch.calls[stage], hidden)
            recites = rest is not None and rest.repeats()
            runs = rest is None or rest.runs or not recites
            found[group.name] = _Way(recites, recites and rest is not None and rest.adds(), after + runs)
        hidden = batch.calls[stage](block, hidden)
    return found


def _stacks(trajectory: Trajectory) -> bool:
    """Return whether two copies of the samples in one forward are answered as one is."""
    for batch in trajectory.batches:
        if not any(isinstance(x, Tensor) for c in batch.calls for x in (*c.args, *c.kwargs.values())):
            continue
        samples, h, twice = len(batch.entry), batch.entry, repeated(batch.entry, 2)
        try:
            for call, block in zip(batch.calls, trajectory.blocks.values(), strict=True):
                h, twice = call(block, h), call.copied(2, samples)(block, twice)
        except RuntimeError:  # of shapes: a table that is as long as the batch was taken for one entry per sample
            return False
        near = 1e-4 * float(h.abs().max())
        if not all(torch.allclose(h, x, rtol=1e-3, atol=near) for x in torch.split(twice, samples)):
            return False
    return True


def _chunks(
    dense: _Dense, group: Group, gate: nn.Module, way: _Way, units: Sequence[int], hidden: Sequence[Tensor]
) -> Iterator[list[tuple[float, float]]]:
    """Yield the manifold and output distortion of the units, some at a time."""
    block = list(dense.trajectory.blocks.values())[group.stage]
    tails = []
    if way.recites:
        every = [
            tail(block, gate, b.calls[group.stage], h) for b, h in zip(dense.trajectory.batches, hidden, strict=True)
        ]
        tails = [replace(rest, before={}) if way.adds else rest for rest in every if rest is not None]
    longest = max(len(dense.trajectory.points[group.stage]), *(len(flat(h)) for h in hidden))
    copies = max(1, POSITIONS // longest) if tails and dense.stacks else 1
    for start in range(0, len(units), copies):
        some = units[start : start + copies]
        if tails:
            rows = _stacked(dense, group, tails, some, adds=way.adds)
        else:
            with silent(gate, group, some[0]):
                rows = [distort(dense.trajectory, group.stage, hidden)]
        for unit, row in zip(some, rows, strict=True):
            if not np.isfinite(row).all():
                raise diverged(f"the network without unit {unit} of {group.name}")
        yield rows


def _stacked(
    dense: _Dense, group: Group, tails: Sequence[Tail], units: Sequence[int], *, adds: bool
) -> list[tuple[float, float]]:
    """Return the distortions of some units, all in one forward of each batch."""
    way, copies = dense.trajectory, len(units)
    blocks = list(way.blocks.values())
    first = min(group.stage + 1, len(blocks) - 1)
    points: list[list[Tensor]] = [[] for _ in blocks]
    output, moved = np.zeros(copies), np.zeros(copies, dtype=bool)
    for batch, rest in zip(way.batches, tails, strict=True):
        h, changes = rest.without(group, units, adds=adds)
        moved |= changes
        for z in range(group.stage, len(blocks)):
            if z > group.stage:
                h = batch.calls[z].copied(copies, len(batch.entry))(blocks[z], h)
            if z >= first:
                points[z].append(sampled(h, batch.rows[z], copies))
        output += [divergence(batch.log_p, way.answers(batch, own)) for own in torch.split(h, len(batch.entry))]
    manifold = np.zeros(copies)
    for z in range(first, len(blocks)):
        manifold += manifold_distances(torch.cat(points[z], dim=1), way.points[z], dense.grams[z]).cpu().numpy()
    # What is nowhere in the answer of its gate changes nothing; the rest of the forward would only round differently.
    return list(zip(np.where(moved, manifold, 0).tolist(), np.where(moved, output, 0).tolist(), strict=True))


def diverged(what: str) -> Diverged:
    """Return the error that something gives values that are not finite."""
    return Diverged(
        f"{what} gives values that are not finite", fix="train the step before optin with a lower learning rate"
    )
