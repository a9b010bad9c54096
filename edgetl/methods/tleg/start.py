"""What a learngene starts from: the blocks of a pretrained backbone, or random weights.

Fitting all blocks at once is rarely better than chance, because independently trained blocks order their heads and
neurons each in its own way; the interpolation goes through blocks that are there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.families._transformer import Transformer
from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learngene import DEPTH, Learngene, by_kind, outer
from edgetl.network.names import live
from edgetl.network.network import Network

LOG = logging.getLogger("edgetl")

Start: TypeAlias = Literal["secant", "repeat", "least_squares", "rescaled", "random"]
"""Through as many blocks as there are sets | the middle block everywhere | closest to all blocks | the same with the
blocks' norms | random weights, those outside of the blocks too."""

Init: TypeAlias = Literal["auto", "secant", "repeat", "least_squares", "rescaled", "random"]
"""A way to start, or the best of all."""


def started(net: Network, sharing: Sharing, start: Start, seed: int) -> Learngene:
    """Return the learngene that a way to start makes of a backbone.

    Raises:
        BadInput: the backbone has no equal blocks, or fewer than there are sets to put a line through.

    """
    check(net)
    if start == "random":
        return _random(net, sharing, seed)
    ways: Mapping[Start, Callable[[Tensor, Sharing], Tensor]] = {
        "secant": interpolated,
        "repeat": repeated,
        "least_squares": least_squares,
        "rescaled": rescaled,
    }
    state = net.state()
    tensors: dict[str, Tensor] = {}
    for kind, blocks in by_kind(state).items():
        sets = ways[start](torch.stack(blocks), sharing)
        tensors |= {f"layers.{k}.{kind}": sets[k] for k in range(sharing.sets)}
    return _gene(net, sharing, {**outer(state), **tensors})


def possible(net: Network, sharing: Sharing) -> tuple[Start, ...]:
    """Return the ways to start that use what the backbone has learnt and that its depth allows."""
    depth = int(net.config[DEPTH])
    through: tuple[Start, ...] = ("secant",) if depth >= sharing.sets else ()
    return (*through, "repeat", "least_squares", "rescaled")


def check(net: Network) -> None:
    """Refuse a network that is not made of equal blocks.

    Raises:
        BadInput: it is of another kind, or was cut.

    """
    if not isinstance(net.family, Transformer):
        problem = f"tleg expands transformers of equal blocks, and this is a network of family '{net.family.name}'"
        raise BadInput(problem, fix="choose a backbone of a family such as hf_vit or hf_bert")
    if net.edits:
        raise BadInput("tleg expands equal blocks, and this network was cut", fix="put the tleg step before the cut")


def interpolated(blocks: Tensor, sharing: Sharing) -> Tensor:
    """Return the sets (K, ...) whose expansion goes through K of the blocks (L, ...), the first and last among them.

    Raises:
        BadInput: there are fewer blocks than sets.

    """
    depth = len(blocks)
    if depth < sharing.sets:
        problem = f"{sharing.sets} sets cannot go through {depth} {'blocks' if depth > 1 else 'block'}"
        raise BadInput(problem, fix="use fewer sets (order, stages), or init: repeat")
    table = sharing.coefficients(depth).double()
    if sharing.form == "stagewise":
        places = [int(rows.nonzero().double().mean()) for rows in table.T]
    else:
        places = np.linspace(0, depth - 1, sharing.sets).round().astype(int).tolist()
    return _mixed(torch.linalg.inv(table[places]), blocks[places])


def repeated(blocks: Tensor, sharing: Sharing) -> Tensor:
    """Return the sets (K, ...) whose expansion is the middle block everywhere.

    No noise is needed to part the blocks: the gradients of the sets differ as the coefficients do.
    """
    weights = torch.ones(sharing.sets) if sharing.form == "stagewise" else torch.eye(sharing.sets)[0]
    return _mixed(weights.double()[:, None], blocks[len(blocks) // 2][None])


def least_squares(blocks: Tensor, sharing: Sharing) -> Tensor:
    """Return the sets (K, ...) whose expansion is closest to the blocks (L, ...)."""
    return _mixed(torch.linalg.pinv(sharing.coefficients(len(blocks)).double()), blocks)


def rescaled(blocks: Tensor, sharing: Sharing) -> Tensor:
    """Return the least-squares sets with the blocks' mean norm, as averages of unrelated matrices shrink."""
    sets = least_squares(blocks, sharing)
    if blocks.dim() < 3:
        return sets
    fitted = _mixed(sharing.coefficients(len(blocks)).double(), sets).flatten(1).norm(dim=1).mean()
    scale: Tensor = blocks.flatten(1).norm(dim=1).mean() / fitted.clamp(min=1e-12)
    return sets * scale


def explained(net: Network, sharing: Sharing) -> float:
    """Return the share R^2 of the energy of the blocks' matrices that the least-squares fit explains.

    K sets explain K/L of that of L unrelated blocks, by chance.
    """
    left = whole = 0.0
    for blocks in (torch.stack(b) for b in by_kind(net.state()).values() if b[0].dim() > 1):
        fit = _mixed(sharing.coefficients(len(blocks)).double(), least_squares(blocks, sharing))
        left += float((blocks - fit).square().sum())
        whole += float(blocks.square().sum())
    return 1 - left / whole if whole else 0.0


def told(net: Network, sharing: Sharing) -> str:
    """Return in words how much of the blocks the least-squares fit explains, beside chance."""
    depth = int(net.config[DEPTH])
    chance = min(1.0, sharing.sets / depth)
    found = explained(net, sharing)
    return f"R² of {sharing.sets} sets to {depth} blocks: {found:.3f}; of unrelated blocks it is {chance:.3f}"


def _mixed(weights: Tensor, blocks: Tensor) -> Tensor:
    """Return (M, ...) sums of blocks (L, ...) by weights (M, L), computed in float64."""
    total: Tensor = torch.tensordot(weights, blocks.double(), dims=1)
    return total.to(blocks.dtype)


def _random(net: Network, sharing: Sharing, seed: int) -> Learngene:
    """Return random weights as a new network has them; of a polynomial only the constant set scales a norm."""
    config = net.family.config({**net.config, DEPTH: sharing.sets}, len(net.labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = net.family.build(config)
    tensors = {k: v.detach() for k, v in live(net.family, module).state().items()}
    if sharing.form != "stagewise":
        for name, tensor in tensors.items():
            if name.startswith("layers.") and not name.startswith("layers.0.") and "norm" in name.split(".")[2]:
                tensor.zero_()
    return _gene(net, sharing, tensors)


def _gene(net: Network, sharing: Sharing, tensors: Mapping[str, Tensor]) -> Learngene:
    facts = {k: v for k, v in net.facts.items() if k != "head"}
    return Learngene(net.family, net.config, net.labels, sharing, tensors, facts)
