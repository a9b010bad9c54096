"""OPTIN: cut heads and neurons in one shot, without gradients, labels or retraining.

Khaki & Plataniotis, "The Need for Speed: Pruning Transformers with One Recipe", ICLR 2024, arXiv 2403.17921.
A unit's importance is what its silence does to the blocks downstream (the trajectory) and to the answer; heads and
neurons are ranked apart over all layers, and one split between them fills the MAC budget.

The text of the paper could not be read. The score follows its published Algorithm 1, the search and the details the
authors' released code; the paper's tables of ablations, its search time and its transfer results are unverified.
Decisions where these are silent, disagree or err:
- features are the outputs of the blocks, so that the last block is not blind to its own units; the blocks after the
  unit's own are compared, and for the last block its own output;
- every unit starts from an open mask, without the released code's weights by position and by layer;
- one fixed draw of positions serves all units, padding left out;
- KL(dense || silenced) at temperature 1, summed over the samples, times the constant `lambda_c`;
- a neuron is silent after its activation, which is right for every activation;
- MACs count everything that runs, stem and head included, and the budget is never exceeded; a layer may lose all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from edgetl.errors import BadInput
from edgetl.methods.optin.score import Distortion, record, score
from edgetl.methods.optin.search import search
from edgetl.methods.optin.terms import Draw
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.schema import Branches, Context, Need, Share, Step
from edgetl.train.batches import Data

log = logging.getLogger("edgetl")

SCORES = "scores.npz"


class Optin(Step):
    """Cut attention heads and FFN neurons down to a share of the MACs, in one shot."""

    use: Literal["optin"] = "optin"
    keep_macs: Branches[Share] = 0.6  # share to keep of the MACs of this step's input, stem and head included
    samples: int = Field(128, ge=1)  # training samples to score with, labels unused
    lambda_c: float = Field(0.1, ge=0)  # weight of the output's distortion beside the trajectory's
    tokens: int = Field(768, ge=1)  # positions that the trajectory's distortion compares
    batch: int = Field(32, ge=1)  # samples in one forward: memory and speed

    cuts: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})
    shared: ClassVar[bool] = True

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes the scores cost: a silent unit runs half of the blocks again."""
        return 0.5 * self.samples * units

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the network without its least important units.

        Raises:
            BadInput: the share is below what cannot be cut, there are fewer training samples than asked for, or the
                family has no heads and no neurons.
            Diverged: the network gives values that are not finite.

        """
        groups = tuple(g for g in net.family.units(net.module) if g.kind in ("heads", "neurons"))
        tokens = ctx.data.mean_tokens()
        prices = cost.prices(net, tokens)
        budget = self._budget(net, groups, prices, tokens)
        if budget >= sum(g.count * prices[g.name] for g in groups):
            log.info("optin: every head and neuron is kept")
            return net
        scores = _read(self._scored(net, groups, ctx), groups, self.lambda_c)
        kept = search(groups, scores, prices, budget)
        for group in groups:
            log.info("optin: %s: %d of %d kept", group.name, len(kept[group.name]), group.count)
        return net.edit([g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count])

    def _budget(self, net: Network, groups: Sequence[Group], prices: Mapping[str, int], tokens: int | None) -> int:
        """Return the MACs that are left for units after all that cannot be cut."""
        if not groups:
            raise BadInput(
                f"{self.name or self.use}: family '{net.family.name}' has no heads and no neurons to cut",
                fix="use another method for this backbone, or a transformer family such as hf_vit",
            )
        dense = cost.macs(net, tokens)
        fixed = dense - sum(g.count * prices[g.name] for g in groups)
        budget = math.floor(self.keep_macs * dense) - fixed
        if budget < 0:
            raise BadInput(
                f"{self.name or self.use}: keep_macs {self.keep_macs:g} is below the share that cannot be cut, "
                f"{fixed / dense:.4f}",
                fix=f"set keep_macs to {math.ceil(fixed / dense * 1e3) / 1e3:g} or more",
            )
        return budget

    def _scored(self, net: Network, groups: Sequence[Group], ctx: Context) -> Path:
        """Return the file of scores, the same one for all branches of this step."""
        n = len(ctx.data.rows("train"))
        if self.samples > n:
            raise BadInput(
                f"{self.name or self.use}: {self.samples} samples to score with, but the training split holds {n}",
                fix=f"set samples to {n} or less",
            )

        def make(folder: Path, seed: int) -> None:
            sampling = Sampling(self.samples, self.tokens, self.batch, seed)
            _write(folder / SCORES, distortions(net, groups, ctx.data, sampling))

        parts = {"network": net, "samples": self.samples, "tokens": self.tokens, "batch": self.batch}
        return ctx.once("optin-scores", parts, make) / SCORES


@dataclass(frozen=True)
class Sampling:
    """What the units are scored on."""

    samples: int  # training samples
    tokens: int  # positions of them that the manifold term compares
    batch: int  # samples in one forward
    seed: int


def distortions(net: Network, groups: Sequence[Group], data: Data, sampling: Sampling) -> dict[str, Distortion]:
    """Return what silencing each unit does, by group.

    Raises:
        Diverged: the network gives values that are not finite.

    """
    rows = _drawn(data, sampling)
    blocks = {path: net.at(path) for path in net.family.stages(net.module)}
    gates = {g.name: net.at(g.gate) for g in groups}
    with _placed(net.module) as device:
        inputs = [data.batch(rows[i : i + sampling.batch], device) for i in range(0, len(rows), sampling.batch)]
        trajectory = record(net.module, net.family, blocks, inputs, Draw(sampling.tokens, sampling.seed))
        return score(trajectory, groups, gates)


def _drawn(data: Data, sampling: Sampling) -> NDArray[np.int64]:
    """Return training rows; texts by length, so that little padding is computed."""
    rows = np.random.default_rng(sampling.seed).choice(data.rows("train"), size=sampling.samples, replace=False)
    mask = data.prepared.inputs.get("attention_mask")
    return rows if mask is None else rows[np.argsort(mask[rows].sum(axis=1, dtype=np.int64), kind="stable")]


@contextmanager
def _placed(module: nn.Module) -> Iterator[torch.device]:
    """Put the module on the accelerator, where there is one, while open."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    try:
        yield device
    finally:
        module.to("cpu")


def _write(file: Path, found: Mapping[str, Distortion]) -> None:
    terms = {f"{name}.manifold": d.manifold for name, d in found.items()}
    np.savez(file, allow_pickle=False, **terms, **{f"{name}.output": d.output for name, d in found.items()})


def _read(file: Path, groups: Sequence[Group], lambda_c: float) -> dict[str, NDArray[np.float64]]:
    """Return the scores by group: manifold + lambda_c * output (Algorithm 1, line 7)."""
    with np.load(file, allow_pickle=False) as stored:
        return {g.name: stored[f"{g.name}.manifold"] + lambda_c * stored[f"{g.name}.output"] for g in groups}


PLUGIN = Optin
