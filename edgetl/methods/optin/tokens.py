"""Tokens as OPTIN's third unit: what the absence of each costs, and how many every block of a ViT merges therefore.

A token's importance is what its absence does to the blocks downstream and to the answer. For lack of a common set of
positions the blocks are compared by the similarities of the samples to one another, (K, K), averaged over the tokens
that are there. Only the counts of the ranking survive: tokens leave in the order of their scores, and a block merges
as many as leave in it, whichever these are in a picture (families/_merging.py).

As for heads and neurons, the text of the paper could not be read. Decisions against the authors' released code:
- a token that leaves in a block is gone from the input of the next, which is where a merge between attention and FFN
  takes effect; so what is credited is what runs. One that leaves in the last block costs nothing: no block behind it
  reads it, and a class token never leaves;
- no weights by layer, and one fixed draw of samples;
- a block merges no more than half of its tokens, all that bipartite matching can; what is too much is left to the next;
- a fixed share of the saved MACs is the tokens', which the code draws at random from 0.7 to 0.85.

Letters: K samples, N blocks, M tokens that may leave, P protected ones in front, D width.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.methods.optin.sampling import Sampling, recorded
from edgetl.methods.optin.score import Distortion, Progress
from edgetl.methods.optin.terms import divergence
from edgetl.methods.optin.trajectory import Trajectory
from edgetl.network import cost
from edgetl.network.edits import MergeTokens
from edgetl.network.network import Network
from edgetl.recipe.schema import Context

log = logging.getLogger("edgetl")

SCORES = "tokens.npz"


def distortion(net: Network, ctx: Context, sampling: Sampling) -> Distortion:
    """Return the (N, M) distortions of the network without each token behind each block, made once for all branches.

    Raises:
        BadInput: the family's blocks merge no tokens.
        Diverged: the network gives values that are not finite.

    """
    if not net.family.merges:
        raise BadInput(
            f"the blocks of family '{net.family.name}' merge no tokens",
            fix="leave token_share out, or choose a family such as hf_vit",
        )

    def make(folder: Path, seed: int) -> None:
        with recorded(net, ctx.data, replace(sampling, seed=seed)) as trajectory:
            found = score(trajectory, net.family.tokens(net.module)[0])
        np.savez(folder / SCORES, allow_pickle=False, manifold=found.manifold, output=found.output)

    parts = {"network": net, "samples": sampling.samples, "batch": sampling.batch}
    with np.load(ctx.once("optin-token-scores", parts, make) / SCORES, allow_pickle=False) as stored:
        return Distortion(stored["manifold"], stored["output"])


@torch.no_grad()
def score(trajectory: Trajectory, count: int) -> Distortion:
    """Return the (N, M) distortions of the network without each token behind each block.

    Args:
        trajectory: of the dense network.
        count: M, the tokens at the end of every hidden state that may leave.

    """
    depth = len(trajectory.blocks)
    progress = Progress(total=count * sum(range(1, depth + 1)))
    hidden: Sequence[Tensor] = [b.entry for b in trajectory.batches]
    dense = [similarity(h) for h in _walk(trajectory, 0, hidden)]
    manifold, output = np.zeros((2, depth, count))
    for stage, block in enumerate(trajectory.blocks.values()):
        hidden = [b.calls[stage](block, h) for b, h in zip(trajectory.batches, hidden, strict=True)]
        for token in range(count):
            left = [_without(h, h.shape[1] - count + token) for h in hidden]
            for z, last in enumerate(_walk(trajectory, stage + 1, left), stage + 1):
                manifold[stage, token] += float((similarity(last) - dense[z]).square().sum())
                left = list(last)
            pairs = zip(trajectory.batches, left, strict=True)
            output[stage, token] = math.fsum(divergence(b.log_p, trajectory.answers(b, h)) for b, h in pairs)
            progress.add(1, depth - stage - 1)
    return Distortion(manifold, output)


def similarity(hidden: Sequence[Tensor]) -> Tensor:
    """Return the (K, K) cosine similarities of samples, meaned over tokens, of (B, T, D) hidden states by batch."""
    unit = torch.cat([F.normalize(h, dim=-1).flatten(1) for h in hidden])
    return (unit @ unit.T).double() / hidden[0].shape[1]


def schedules(scores: NDArray[np.float64]) -> Iterator[tuple[int, ...]]:
    """Yield how many tokens every block merges, with one token more gone each time, until no more can go.

    The least important of the (N, M) pairs of block and token comes first, ties by block, then by token; a token that
    leaves in a block is gone behind it. What a block cannot merge, as it is more than half, is left to those behind.
    """
    depth, count = scores.shape
    leaves, before = np.full(count, depth), (0,) * depth
    for at in np.argsort(scores, axis=None, kind="stable"):
        layer, token = divmod(int(at), count)
        leaves[token] = min(leaves[token], layer)
        step, left = [], count
        for wanted in (int((leaves > z).sum()) for z in range(depth)):
            step.append(min(left - wanted, left // 2))
            left -= step[-1]
        if tuple(step) != before:
            yield (before := tuple(step))


def merges(net: Network, scores: NDArray[np.float64], saved: int) -> tuple[MergeTokens, ...]:
    """Return the edits that merge the fewest tokens that save so many MACs as counted; all that can where none do."""
    steps = [(0,) * len(scores), *schedules(scores)]
    dense = cost.macs(net)
    # Near enough in order for a bisection: a block's first merge also costs its matching.
    at = bisect_left(steps, saved, key=lambda step: dense - cost.macs(net.edit(_edits(step))))
    chosen = _edits(steps[min(at, len(steps) - 1)])
    for merge in chosen:
        log.info("optin: block %d merges %d tokens", merge.layer, merge.r)
    return chosen


def _edits(step: Sequence[int]) -> tuple[MergeTokens, ...]:
    return tuple(MergeTokens(layer, r) for layer, r in enumerate(step) if r)


def _walk(trajectory: Trajectory, first: int, hidden: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield the hidden states of all batches behind each block from `first` on."""
    for z, block in list(enumerate(trajectory.blocks.values()))[first:]:
        hidden = [b.calls[z](block, h) for b, h in zip(trajectory.batches, hidden, strict=True)]
        yield hidden


def _without(hidden: Tensor, token: int) -> Tensor:
    return torch.cat([hidden[:, :token], hidden[:, token + 1 :]], dim=1)
