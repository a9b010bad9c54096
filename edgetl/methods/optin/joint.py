"""What the units of a layer are worth together.

A layer that loses many units loses more than what each of them alone is worth: one head can stand in for another until
both are gone, and a time table makes it tempting to empty layers. So each layer is cut on its own to a few numbers of
units, the least important first, and the answer's divergence from the uncut network's is what that costs. Layers are
still taken to add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl import store
from edgetl.methods.optin.limit import Ways
from edgetl.methods.optin.sampling import Sampling, gates, recorded
from edgetl.methods.optin.score import Progress, answered, diverged
from edgetl.methods.optin.tail import silent
from edgetl.methods.optin.trajectory import Trajectory, walk
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

MOST = 8
"""Numbers of units that one layer is tried with; between them the cost is a straight line."""

FILE = "joint.npz"


def together(
    net: Network, groups: Sequence[Group], apart: Mapping[str, Ways], ctx: Context, planned: Sampling
) -> dict[str, Ways]:
    """Return the ways to cut each group, worth what the answers keep; measured once for all branches of a step.

    Raises:
        Diverged: the network gives values that are not finite.

    """

    def make(folder: Path, seed: int) -> None:
        found = losses(net, groups, apart, ctx.data, replace(planned, seed=seed))
        np.savez(folder / FILE, allow_pickle=False, **found)

    asked = store.digest([[name, w.order.tolist(), w.counts] for name, w in apart.items()])
    parts = {"network": net, "ways": asked, "samples": planned.samples, "batch": planned.batch}
    with np.load(ctx.once("optin-joint", parts, make) / FILE, allow_pickle=False) as stored:
        return {name: replace(w, values=-np.interp(w.counts, _tried(w), stored[name])) for name, w in apart.items()}


@torch.no_grad()
def losses(
    net: Network, groups: Sequence[Group], ways: Mapping[str, Ways], data: Data, sampling: Sampling
) -> dict[str, NDArray[np.float64]]:
    """Return KL(uncut || cut) summed over the samples for each group cut alone to each number of units tried.

    Raises:
        Diverged: the network gives values that are not finite.

    """
    gate, found = gates(net, groups), {}
    with recorded(net, data, sampling) as way:
        hidden, progress = [b.entry for b in way.batches], Progress()
        progress.total = sum((len(way.blocks) - g.stage + 1) * len(_tried(ways[g.name])) for g in groups)
        for stage, block in enumerate(way.blocks.values()):
            for group in (g for g in groups if g.stage == stage):
                rows = []
                for count in _tried(ways[group.name]):
                    rows.append(_loss(way, group, gate[group.name], ways[group.name].lost(count), hidden))
                    progress.add(1, len(way.blocks) - stage)
                found[group.name] = np.array(rows, np.float64)
            hidden = [b.calls[stage](block, h) for b, h in zip(way.batches, hidden, strict=True)]
    return found


def _loss(way: Trajectory, group: Group, gate: nn.Module, lost: Sequence[int], hidden: Sequence[Tensor]) -> float:
    """Return the divergence without some units of a group, whose block reads `hidden`."""
    if not lost:
        return 0.0
    with silent(gate, group, *lost):
        loss = answered(way, walk(way, group.stage, hidden)[1])
    if not math.isfinite(loss):
        raise diverged(f"the network without units of {group.name}")
    return loss


def _tried(ways: Ways) -> list[int]:
    """Return the numbers of units that are tried: the least and the most among them."""
    places = np.linspace(0, len(ways.counts) - 1, min(MOST, len(ways.counts))).round().astype(int)
    return [ways.counts[i] for i in places]
