"""What the units are scored on, and how much memory that takes. Letters: B samples, T positions, D width, N blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgetl.errors import OutOfResources
from edgetl.methods.optin.score import POSITIONS, Distortion, record, score
from edgetl.methods.optin.terms import Draw
from edgetl.methods.optin.trajectory import Trajectory, listen
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.train.batches import Data, Rows

BYTES = 4
"""Of one float32."""


@dataclass(frozen=True)
class Sampling:
    """What the units are scored on."""

    samples: int  # training samples
    tokens: int  # positions of them that the manifold term compares
    batch: int  # samples in one forward
    seed: int


@dataclass(frozen=True)
class Memory:
    """The peak of a scoring beyond the weights, in bytes, by what takes it."""

    cached: int  # of all samples: inputs, and dense states of the block in hand and those around it
    points: int  # dense and silenced outputs of all blocks at the sampled positions
    stacked: int  # activations of as many copies of the samples as units share one forward, which is a bounded size
    sample: int  # activations of one sample: inside one block, or of all where gradients need them

    def total(self, batch: int) -> int:
        """Return the bytes with this many samples in one forward."""
        return self.cached + self.points + max(self.stacked, batch * self.sample)

    def told(self, batch: int) -> str:
        """Return the peak and its parts in words."""
        inside = max(self.stacked, batch * self.sample)
        parts = (self.total(batch), self.cached, self.points, inside)
        total, cached, points, activations = (f"{n / 1e6:.3g}" for n in parts)
        return (
            f"{total} MB beyond the weights: {cached} of inputs and block outputs, {points} of compared positions, "
            f"{activations} of activations of {batch} samples"
        )


def distortions(net: Network, groups: Sequence[Group], data: Data, sampling: Sampling) -> dict[str, Distortion]:
    """Return what silencing each unit does, by group.

    Raises:
        Diverged: the network gives values that are not finite.

    """
    with recorded(net, data, sampling) as trajectory:
        return score(trajectory, groups, gates(net, groups))


@contextmanager
def recorded(net: Network, data: Data, sampling: Sampling) -> Iterator[Trajectory]:
    """Give the dense network's way through the samples; the network is on the accelerator while open.

    Raises:
        Diverged: the network gives values that are not finite.

    """
    rows = by_length(data, np.random.default_rng(sampling.seed).choice(data.rows("train"), sampling.samples, False))
    blocks = {path: net.at(path) for path in net.family.stages(net.module)}
    with placed(net.module) as device:
        inputs = batches(data, rows, sampling.batch, device)
        yield record(net.module, net.family, blocks, inputs, Draw(sampling.tokens, sampling.seed))


def gates(net: Network, groups: Sequence[Group]) -> dict[str, nn.Module]:
    """Return by group the layer whose input carries its units."""
    return {g.name: net.at(g.gate) for g in groups}


@torch.no_grad()
def memory(net: Network, groups: Sequence[Group], data: Data, sampling: Sampling, *, graph: bool = False) -> Memory:
    """Return an estimate from the sizes of the network and of the longest training sample.

    With `graph` a backward pass holds the activations of all blocks at once.
    """
    blocks = {path: net.at(path) for path in net.family.stages(net.module)}
    longest = by_length(data, data.rows("train"))[-1:]
    one = data.batch(longest)
    heard = listen(net.module, net.family, blocks, one)
    shapes = [heard.entry.shape, *heard.shapes]
    widths = [s[1 if len(s) == 4 else -1] for s in shapes]
    places = [math.prod(s) // w for s, w in zip(shapes, widths, strict=True)]
    t, state, d = max(places), max(map(math.prod, shapes)), max(widths)
    heads = max((g.count for g in groups if g.kind == "heads"), default=0)
    # Between two layers of a block: the units of its widest gate, at every position.
    units = max(
        (g.count * g.width * max(places[g.stage : g.stage + 2]) for g in groups if g.kind != "heads"), default=0
    )
    inside = 4 * state + max(2 * heads * t * t, 3 * units)  # attention and feed-forward network take turns
    held = len(blocks) * (12 * state + 2 * heads * t * t + 4 * units) if graph else inside
    read = sum(x.numel() * x.element_size() for x in one.values())
    cached = sampling.samples * (BYTES * (9 * state + 2 * units) + read)
    drawn = min(sampling.tokens, sampling.samples * t)
    most = max(drawn, POSITIONS)
    points = len(blocks) * d * (drawn + most + d) + most * (4 * d + min(2 * drawn, 4 * d))
    return Memory(cached, points * BYTES, -(-POSITIONS // t) * inside * BYTES, held * BYTES)


def fitting(needed: Memory, batch: int, limit: float) -> int:
    """Return the largest batch, at most the given one, that keeps the peak within `limit` bytes.

    Raises:
        OutOfResources: one sample at a time is too much.

    """
    if needed.total(1) > limit:
        raise OutOfResources(
            f"scoring needs {needed.told(1)}, which is more than {limit / 1e6:g} MB",
            fix="lower samples, or raise memory_mb if this machine has more",
        )
    return min(batch, int((limit - needed.cached - needed.points) // max(needed.sample, 1)))


def by_length(data: Data, rows: Rows) -> Rows:
    """Return the rows; texts by length, so that little padding is computed."""
    mask = data.prepared.inputs.get("attention_mask")
    return rows if mask is None else rows[np.argsort(mask[rows].sum(axis=1, dtype=np.int64), kind="stable")]


def batches(data: Data, rows: Rows, size: int, device: torch.device) -> list[Mapping[str, Tensor]]:
    """Return the rows in batches on a device."""
    return [data.batch(rows[i : i + size], device) for i in range(0, len(rows), size)]


@contextmanager
def placed(*modules: nn.Module) -> Iterator[torch.device]:
    """Put the modules on the accelerator, where there is one, while open."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in modules:
        module.to(device)
    try:
        yield device
    finally:
        for module in modules:
            module.to("cpu")
